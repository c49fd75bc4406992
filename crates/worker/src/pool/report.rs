//! What there is to say of each slot, for people who ask.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::Pool;
use super::board::{Note, SlotState};

/// How much of a console is looked at for its last line, in bytes.
const CONSOLE_TAIL: u64 = 4096;

/// The longest line of a console that is told, in characters.
const LONGEST_LINE: usize = 200;

/// What there is to say of a slot.
#[derive(Debug, Clone)]
pub(crate) struct SlotReport {
    pub slot: u16,
    pub ssh_port: u16,
    pub note: Note,
    console_log: PathBuf,
}

impl SlotReport {
    /// How much of the host's memory its QEMU takes, in bytes. Blocks for a moment.
    pub(crate) fn memory(&self) -> Option<u64> {
        memory_of(self.note.pid?)
    }

    /// What its console said last, if nothing else of its guest is heard. Blocks for a moment.
    pub(crate) fn last_words(&self) -> Option<String> {
        let silent = matches!(self.note.state, SlotState::Starting | SlotState::Template | SlotState::Stopping);
        let silent = silent || self.note.doing.is_some();
        silent.then(|| last_line(&self.console_log)).flatten()
    }
}

impl Pool {
    /// What there is to say of the slots, in their order; last of that in which templates are made, if one is.
    pub(crate) fn report(&self) -> Vec<SlotReport> {
        let notes = self.0.slots.board().slots();
        let reports = notes.into_iter().map(|(number, note)| {
            let slot = self.slot_numbered(number);
            SlotReport { slot: number, ssh_port: slot.ssh_port(), note, console_log: slot.console_log() }
        });
        reports.collect()
    }

    /// What the first of those who wait for a machine waits for.
    pub(crate) fn first_wait(&self) -> Option<String> {
        self.0.slots.board().wait().map(|wait| self.describe(&wait))
    }
}

/// The part of the host's memory that is a process' own, with its share of what it has in common with others; all of it where
/// the kernel does not tell (before Linux 4.14).
fn memory_of(pid: u32) -> Option<u64> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(process.join(file)).ok()?;
        kilobytes(&text, name)
    };
    Some(field("smaps_rollup", "Pss:").or_else(|| field("status", "VmRSS:"))? << 10)
}

/// The number of a line such as `Pss:   1234 kB`.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The last line of a file that has something in it, as far as it is text.
fn last_line(path: &Path) -> Option<String> {
    let mut file = fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_TAIL))).ok()?;
    let mut tail = Vec::new();
    file.take(CONSOLE_TAIL).read_to_end(&mut tail).ok()?;
    let text = crate::plain::plain(&tail);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().take(LONGEST_LINE).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_the_kernel_says() {
        let rollup =
            "55d8-7ffe ---p 00000000 00:00 0    [rollup]\nRss:     2048 kB\nPss:     1234 kB\nPss_Dirty:  7 kB\n";
        assert_eq!(kilobytes(rollup, "Pss:"), Some(1234));
        assert_eq!(kilobytes(rollup, "VmRSS:"), None);
        assert!(memory_of(std::process::id()).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(memory_of(u32::MAX), None);
    }

    #[test]
    fn the_last_words_of_a_console_are_its_last_line_with_something_in_it() {
        let check = |text: &[u8], expected: Option<&str>| {
            let file = tempfile::NamedTempFile::new().expect("made");
            fs::write(file.path(), text).expect("written");
            assert_eq!(last_line(file.path()).as_deref(), expected, "{text:?}");
        };
        check(b"", None);
        check(b"\r\n \r\n", None);
        check(b"[    1.2] Freeing\r\n[    1.3] Run /init\r\n\r\n", Some("[    1.3] Run /init"));
        check(b"login: ", Some("login:"));
        check(b"\x1b[0;32m  OK  \x1b[0m Started ssh.\r\n", Some("OK   Started ssh."));
        let long = [b'x'; 9000];
        check(&long, Some(&"x".repeat(LONGEST_LINE)));
        assert_eq!(last_line(Path::new("/nowhere/console.log")), None);
    }
}
