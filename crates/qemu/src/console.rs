//! What a guest wrote to its console.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

/// Reads the end of a console log as text a person can be shown: at most `max_bytes` of it, from the beginning of a line
/// where there is one, undecodable bytes replaced, and without terminal control. A log that is not there yet is empty.
/// Blocks, for as long as reading a file does.
pub fn tail(path: &Path, max_bytes: usize) -> io::Result<String> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(max_bytes as u64)))?;
    let mut bytes = Vec::new();
    // A guest may write faster than we read.
    file.take(max_bytes as u64).read_to_end(&mut bytes)?;
    let cut = if size > max_bytes as u64 { line_start(&bytes) } else { 0 };
    Ok(plain(&String::from_utf8_lossy(&bytes[cut..])))
}

/// Gives back to the file system what a console log has but its last `keep` bytes, once it occupies twice as much, and returns
/// whether it did. The log keeps its length, so that places in it stay what they are and QEMU writes on where it was; what is
/// gone reads as zeros, and is a hole to whoever asks for data (`SEEK_DATA`). Some file systems can't do that. Blocks.
pub(crate) fn trim(path: &Path, keep: u64) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let metadata = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        metadata => metadata?,
    };
    let gone = metadata.len().saturating_sub(keep);
    if metadata.blocks() * 512 <= keep.saturating_mul(2) || gone == 0 {
        return Ok(false);
    }
    let file = File::options().write(true).open(path)?;
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, gone)?;
    Ok(true)
}

/// Finds where the first whole line begins, if there is one.
pub(crate) fn line_start(bytes: &[u8]) -> usize {
    let newline = bytes.iter().position(|&byte| byte == b'\n');
    newline.map(|at| at + 1).filter(|&start| start < bytes.len()).unwrap_or(0)
}

/// Takes terminal control out of a text: escape sequences (ECMA-48), carriage returns and all other control characters
/// but line ends and tabs.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(char) = rest.next() {
        match char {
            '\u{1b}' => skip_sequence(&mut rest),
            '\n' | '\t' => plain.push(char),
            _ if char.is_control() => {}
            _ => plain.push(char),
        }
    }
    plain
}

/// Skips what belongs to an escape character.
fn skip_sequence(rest: &mut std::str::Chars<'_>) {
    let mut ahead = rest.clone();
    match ahead.next() {
        // Control sequence: parameters and intermediates up to a final byte.
        Some('[') => skip_while(&mut ahead, |char| (' '..='?').contains(&char), |char| ('@'..='~').contains(&char)),
        // Operating system command and other strings: up to BEL or the terminator ESC \, on one line.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            skip_while(&mut ahead, |char| !char.is_control(), |char| char == '\u{7}');
            let mut terminator = ahead.clone();
            if terminator.next() == Some('\u{1b}') && terminator.next() == Some('\\') {
                ahead = terminator;
            }
        }
        // Escape sequence: intermediates, then a final byte.
        Some(char) if (' '..='/').contains(&char) => {
            skip_while(&mut ahead, |char| (' '..='/').contains(&char), |char| ('0'..='~').contains(&char));
        }
        Some(char) if ('0'..='~').contains(&char) => {}
        // A lone escape character.
        _ => return,
    }
    *rest = ahead;
}

/// Skips characters that belong inside, and one that ends them if that is next.
fn skip_while(rest: &mut std::str::Chars<'_>, inside: impl Fn(char) -> bool, end: impl Fn(char) -> bool) {
    loop {
        let mut ahead = rest.clone();
        match ahead.next() {
            Some(char) if end(char) => {
                *rest = ahead;
                return;
            }
            Some(char) if inside(char) => *rest = ahead,
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(plain(text), expected);
    }

    #[test]
    fn terminal_control_is_taken_out() {
        check("plain\n\ttext\n", "plain\n\ttext\n");
        check("a\r\nb\0\u{7}\u{8}c", "a\nbc");
        check("\u{1b}[2J\u{1b}[1;31mred\u{1b}[0m\u{1b}[?7l end", "red end");
        check("\u{1b}]0;title\u{7}a\u{1b}]0;title\u{1b}\\b", "ab");
        check("\u{1b}(B\u{1b}ca\u{1b}=b", "ab");
        check("\u{9b}1mx", "1mx");
    }

    #[test]
    fn broken_sequences_cost_no_more_than_themselves() {
        check("end\u{1b}", "end");
        check("end\u{1b}[", "end");
        check("a\u{1b}[12\nb", "a\nb");
        check("a\u{1b}]title\nb", "a\nb");
        check("\u{1b}\u{1b}[1mx", "x");
        check("a\u{1b}ü", "aü");
    }

    #[test]
    fn a_log_that_has_grown_long_keeps_its_end_and_its_length() {
        use std::os::unix::fs::MetadataExt;
        const KEEP: u64 = 1 << 20;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("console.log");
        assert!(!trim(&path, KEEP).expect("one that is not there yet is short"));
        let check = |megabytes: usize, trimmed: bool| {
            std::fs::write(&path, "0123456789abcde\n".repeat(megabytes << 16)).expect("written");
            assert_eq!(trim(&path, KEEP).expect("the file system can do it"), trimmed, "{megabytes}");
            let metadata = std::fs::metadata(&path).expect("it is there");
            assert_eq!(metadata.len(), (megabytes as u64) << 20);
            assert!(metadata.blocks() * 512 <= 2 * KEEP + (64 << 10), "{}", metadata.blocks());
            assert_eq!(tail(&path, 20).expect("readable"), "0123456789abcde\n");
            assert!(!trim(&path, KEEP).expect("once is enough"));
        };
        check(1, false);
        check(3, true);
        let text = std::fs::read(&path).expect("readable");
        assert!(text[..2 << 20].iter().all(|byte| *byte == 0) && text[2 << 20..].iter().all(|byte| *byte != 0));
    }

    #[test]
    fn only_the_end_of_a_log_is_read() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("console.log");
        let check = |max_bytes, expected: &str| assert_eq!(tail(&path, max_bytes).expect("readable"), expected);
        check(10, "");
        std::fs::write(&path, b"first\r\nsecond \xff\r\nthird\r\n").expect("written");
        check(100, "first\nsecond \u{fffd}\nthird\n");
        check(24, "first\nsecond \u{fffd}\nthird\n");
        check(20, "second \u{fffd}\nthird\n");
        check(3, "d\n");
        check(0, "");
    }
}
