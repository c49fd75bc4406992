//! What the log of a shell command begins with, to the letter as Buildbot 4.3.0's worker says it: steps and people's
//! scripts look for these lines.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use protocol::Value;
use protocol::command::{CommandLine, Shell, Word};

/// The lines that say what is about to run.
pub(super) fn header(shell: &Shell, workdir: &Path, environment: &[(OsString, OsString)], pty: bool) -> String {
    let mut header = String::new();
    if shell.use_pty && !pty {
        // Without a newline there, too.
        header.push_str("WARNING: disabling usePTY for this command");
    }
    header.push_str(&displayed(&shell.command));
    let _ = write!(header, "\n in dir {}", workdir.display());
    if let Some(timeout) = shell.timeout {
        let _ = write!(header, " (timeout {})", seconds_with_unit(timeout));
    }
    if let Some(max_time) = shell.max_time {
        let _ = write!(header, " (maxTime {})", seconds_with_unit(max_time));
    }
    let _ =
        write!(header, "\n watching logfiles {}\n argv: {}\n", repr(&shell.logfiles_shown), argv_repr(&shell.command));
    if shell.log_environ {
        header.push_str(" environment:\n");
        for (name, value) in environment {
            let _ = writeln!(header, "  {}={}", name.to_string_lossy(), value.to_string_lossy());
        }
    }
    if let Some(stdin) = shell.initial_stdin.as_ref().filter(|stdin| !stdin.is_empty()) {
        let _ = writeln!(header, " writing {} bytes to stdin", stdin.len());
    }
    let _ = writeln!(header, " using PTY: {}", truth(pty));
    header
}

/// The command as Python prints the bytes of its line, or the list of the bytes of its words; secrets as they are shown.
pub(super) fn argv_repr(command: &CommandLine) -> String {
    match command {
        CommandLine::Line(line) => bytes_repr(line.as_bytes()),
        CommandLine::Words(words) => {
            let words: Vec<String> = words.iter().map(|word| bytes_repr(shown(word).as_bytes())).collect();
            format!("[{}]", words.join(", "))
        }
    }
}

/// A number of seconds as Python prints it.
pub(super) fn seconds(span: Duration) -> String {
    match span.subsec_nanos() {
        0 => span.as_secs().to_string(),
        _ => span.as_secs_f64().to_string(),
    }
}

fn seconds_with_unit(span: Duration) -> String {
    let unit = if span == Duration::from_secs(1) { "sec" } else { "secs" };
    format!("{} {unit}", seconds(span))
}

/// The command as one would type it.
fn displayed(command: &CommandLine) -> String {
    match command {
        CommandLine::Line(line) => line.clone(),
        CommandLine::Words(words) => words.iter().map(|word| quote(shown(word))).collect::<Vec<_>>().join(" "),
    }
}

fn shown(word: &Word) -> &str {
    word.shown.as_deref().unwrap_or(&word.real)
}

/// Quotes a word for a POSIX shell where it needs it.
fn quote(word: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    match word {
        "" => "\"\"".to_owned(),
        _ if word.chars().all(safe) => word.to_owned(),
        _ => format!("'{}'", word.replace('\'', "'\"'\"'")),
    }
}

/// Python's `repr`.
fn repr(value: &Value) -> String {
    match value {
        Value::Nil => "None".to_owned(),
        Value::Bool(value) => truth(*value).to_owned(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Str(text) => text_repr(text),
        Value::Bytes(bytes) => bytes_repr(bytes),
        Value::List(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Value::Map(pairs) => {
            let pair = |(key, value): &(String, Value)| format!("{}: {}", text_repr(key), repr(value));
            format!("{{{}}}", pairs.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
    }
}

fn truth(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

fn bytes_repr(bytes: &[u8]) -> String {
    let quote = quote_for(bytes.contains(&b'\''), bytes.contains(&b'"'));
    let mut repr = format!("b{quote}");
    for &byte in bytes {
        match char::from(byte) {
            ' '..='~' => escape_ascii(&mut repr, char::from(byte), quote),
            '\t' | '\n' | '\r' => escape_ascii(&mut repr, char::from(byte), quote),
            _ => {
                let _ = write!(repr, "\\x{byte:02x}");
            }
        }
    }
    repr.push(quote);
    repr
}

fn text_repr(text: &str) -> String {
    let quote = quote_for(text.contains('\''), text.contains('"'));
    let mut repr = String::from(quote);
    for c in text.chars() {
        match c {
            '\t' | '\n' | '\r' | ' '..='~' => escape_ascii(&mut repr, c, quote),
            _ if is_printable(c) => repr.push(c),
            _ => {
                let _ = match u32::from(c) {
                    code @ ..=0xff => write!(repr, "\\x{code:02x}"),
                    code @ ..=0xffff => write!(repr, "\\u{code:04x}"),
                    code => write!(repr, "\\U{code:08x}"),
                };
            }
        }
    }
    repr.push(quote);
    repr
}

/// Python prefers single quotes.
fn quote_for(has_single: bool, has_double: bool) -> char {
    if has_single && !has_double { '"' } else { '\'' }
}

fn escape_ascii(repr: &mut String, c: char, quote: char) {
    match c {
        '\t' => repr.push_str("\\t"),
        '\n' => repr.push_str("\\n"),
        '\r' => repr.push_str("\\r"),
        '\\' => repr.push_str("\\\\"),
        c if c == quote => repr.extend(['\\', c]),
        c => repr.push(c),
    }
}

/// Python's `str.isprintable` for what is not ASCII, as far as the standard library knows the character's category.
fn is_printable(c: char) -> bool {
    let formatting = matches!(u32::from(c), 0xad | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x2064 | 0xfeff);
    !c.is_control() && !c.is_whitespace() && !formatting
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<const N: usize>(words: [&str; N]) -> CommandLine {
        CommandLine::Words(words.map(|real| Word { real: real.to_owned(), shown: None }).to_vec())
    }

    #[track_caller]
    fn check_argv(command: &CommandLine, display: &str, argv: &str) {
        assert_eq!((displayed(command), argv_repr(command)), (display.to_owned(), argv.to_owned()));
    }

    #[test]
    fn a_line_is_shown_as_it_is() {
        check_argv(&CommandLine::Line("echo out; exit 3".to_owned()), "echo out; exit 3", "b'echo out; exit 3'");
    }

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        check_argv(&words(["echo", "a b", "it's"]), r#"echo 'a b' 'it'"'"'s'"#, r#"[b'echo', b'a b', b"it's"]"#);
        check_argv(
            &words(["make", "CC=gcc-12", "", "é"]),
            r#"make CC=gcc-12 "" 'é'"#,
            r"[b'make', b'CC=gcc-12', b'', b'\xc3\xa9']",
        );
        check_argv(&words(["'\"", "a\\b\n"]), "''\"'\"'\"' 'a\\b\n'", r#"[b'\'"', b'a\\b\n']"#);
    }

    #[test]
    fn a_secret_is_shown_as_the_master_wants_it() {
        let secret = Word { real: "hunter2".to_owned(), shown: Some("XXXX".to_owned()) };
        check_argv(&CommandLine::Words(vec![secret]), "XXXX", "[b'XXXX']");
    }

    #[track_caller]
    fn check_repr(value: impl Into<Value>, expected: &str) {
        assert_eq!(repr(&value.into()), expected);
    }

    #[test]
    fn values_are_shown_as_python_prints_them() {
        check_repr("it's", r#""it's""#);
        check_repr("both ' and \"", r#"'both \' and "'"#);
        check_repr("é\u{a0}\u{200b}\u{1f600}\t\u{7f}", r"'é\xa0\u200b😀\t\x7f'");
        check_repr(2.0, "2.0");
        let follow: Value = [("filename", Value::from("b.log")), ("follow", Value::from(true))].into_iter().collect();
        let logfiles: Value = [("alog", Value::from("a.log")), ("blog", follow)].into_iter().collect();
        check_repr(logfiles, "{'alog': 'a.log', 'blog': {'filename': 'b.log', 'follow': True}}");
        check_repr(Value::List(vec![Value::Nil, Value::Int(3), Value::Bytes(vec![0, 255])]), r"[None, 3, b'\x00\xff']");
    }

    #[track_caller]
    fn check_seconds(span: Duration, expected: &str) {
        assert_eq!(seconds_with_unit(span), expected);
    }

    #[test]
    fn time_is_shown_as_python_prints_it() {
        check_seconds(Duration::from_secs(1200), "1200 secs");
        check_seconds(Duration::from_secs(1), "1 sec");
        check_seconds(Duration::from_millis(1500), "1.5 secs");
    }
}
