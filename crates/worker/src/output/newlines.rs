//! Finds what counts as a newline: `newline_re` of the master's settings.
//!
//! The default pattern of Buildbot 4.3.0 is scanned by hand, for speed and because the result of the scan must not
//! depend on how the output happened to arrive in pieces. Any other pattern goes through a regular expression engine.

use std::fmt::Write as _;

use fancy_regex::{NoExpand, Regex, RegexBuilder};
use protocol::Settings;

/// What a match of a custom pattern may cost before the pattern is given up.
const BACKTRACK_LIMIT: usize = 100_000;

/// Longer than any cursor movement; what is still unfinished then is text.
const MAX_ESCAPE: usize = 32;

/// What the text turns into.
pub(crate) trait Sink {
    /// Text without a newline of any kind, except that it may contain `\n`.
    fn text(&mut self, text: &str);
    /// A newline that was not `\n`.
    fn newline(&mut self);
    /// Something has arrived of which it isn't clear yet what it will be.
    fn begun(&mut self);
}

/// The pattern of what becomes a newline.
#[derive(Debug)]
pub(crate) enum Newlines {
    /// Buildbot 4.3.0's default.
    Default(Scanner),
    /// One that the master's administrator chose.
    Custom(Box<Regex>),
}

impl Newlines {
    /// Prepares a pattern of Python's `re`. One that can't be used is warned of, and the default takes its place.
    pub(crate) fn new(newline_re: &str) -> Self {
        if newline_re == Settings::default().newline_re {
            return Newlines::Default(Scanner::default());
        }
        match RegexBuilder::new(&from_python(newline_re)).backtrack_limit(BACKTRACK_LIMIT).build() {
            Ok(regex) => Newlines::Custom(Box::new(regex)),
            Err(error) => {
                tracing::warn!(newline_re, %error, "the master's newline_re can't be used here, the default is");
                Newlines::Default(Scanner::default())
            }
        }
    }
}

/// Replaces every match of a custom pattern.
///
/// # Errors
/// The pattern costs too much on this text.
pub(crate) fn substitute(pattern: &Regex, text: &str) -> Result<String, fancy_regex::Error> {
    pattern.try_replacen(text, 0, NoExpand("\n")).map(std::borrow::Cow::into_owned)
}

/// Finds matches of
/// `(\r\n|\r(?=.)|\033\[u|\033\[[0-9]+;[0-9]+[Hf]|\033\[2J|\x08+)`
/// in text that arrives in pieces.
#[derive(Debug, Default)]
pub(crate) enum Scanner {
    /// Nothing is pending.
    #[default]
    Plain,
    /// After a carriage return.
    Return,
    /// In a run of backspaces, whose newline is already out.
    Backspaces,
    /// In what may be a control sequence.
    Escape(String),
}

/// What one more character makes of a control sequence.
enum Sequence {
    Begun,
    Newline,
    Text,
}

impl Scanner {
    /// Scans the next piece.
    pub(crate) fn scan(&mut self, text: &str, sink: &mut impl Sink) {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            match self {
                Scanner::Plain => {
                    let end = memchr::memchr3(b'\r', b'\x1b', b'\x08', &bytes[at..]).map_or(bytes.len(), |n| at + n);
                    if at < end {
                        sink.text(&text[at..end]);
                    }
                    at = end;
                    if at < bytes.len() {
                        self.enter(bytes[at], sink);
                        at += 1;
                    }
                }
                Scanner::Return => {
                    sink.newline();
                    at += usize::from(bytes[at] == b'\n');
                    *self = Scanner::Plain;
                }
                Scanner::Backspaces => {
                    if bytes[at] == b'\x08' {
                        at += 1;
                    } else {
                        *self = Scanner::Plain;
                    }
                }
                Scanner::Escape(begun) => match extend(begun, bytes[at]) {
                    Sequence::Begun => at += 1,
                    Sequence::Newline => {
                        sink.newline();
                        at += 1;
                        *self = Scanner::Plain;
                    }
                    Sequence::Text => {
                        sink.text(begun);
                        *self = Scanner::Plain;
                    }
                },
            }
        }
    }

    /// Ends the text: what is pending will not be continued. A carriage return is dropped, as the line is ended anyway.
    pub(crate) fn finish(&mut self, sink: &mut impl Sink) {
        match std::mem::take(self) {
            Scanner::Plain | Scanner::Backspaces => {}
            Scanner::Return => sink.newline(),
            Scanner::Escape(begun) => sink.text(&begun),
        }
    }

    fn enter(&mut self, special: u8, sink: &mut impl Sink) {
        *self = match special {
            b'\r' => {
                sink.begun();
                Scanner::Return
            }
            b'\x08' => {
                sink.newline();
                Scanner::Backspaces
            }
            _ => {
                sink.begun();
                Scanner::Escape("\x1b".to_owned())
            }
        };
    }
}

/// Adds a character to a sequence that began with an escape, if it belongs there.
fn extend(begun: &mut String, next: u8) -> Sequence {
    let (numbers, separators) = match begun.strip_prefix("\x1b[") {
        Some(parameters) => (parameters, parameters.matches(';').count()),
        None if next == b'[' => {
            begun.push('[');
            return Sequence::Begun;
        }
        None => return Sequence::Text,
    };
    let ends_with_digit = numbers.ends_with(|last: char| last.is_ascii_digit());
    match next {
        b'0'..=b'9' if begun.len() < MAX_ESCAPE => {
            begun.push(char::from(next));
            Sequence::Begun
        }
        b';' if ends_with_digit && separators == 0 && begun.len() < MAX_ESCAPE => {
            begun.push(';');
            Sequence::Begun
        }
        b'u' if numbers.is_empty() => Sequence::Newline,
        b'H' | b'f' if ends_with_digit && separators == 1 => Sequence::Newline,
        b'J' if numbers == "2" => Sequence::Newline,
        _ => Sequence::Text,
    }
}

/// Rewrites what Python's `re` spells differently: octal escapes and `\Z`.
fn from_python(pattern: &str) -> String {
    let mut rewritten = String::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some(backslash) = rest.find('\\') {
        rewritten.push_str(&rest[..backslash]);
        let escape = &rest[backslash + 1..];
        rest = match octal(escape) {
            Some((code, length)) => {
                let _ = write!(rewritten, "\\x{{{code:x}}}");
                &escape[length..]
            }
            None => {
                let length = escape.chars().next().map_or(0, char::len_utf8);
                rewritten.push('\\');
                rewritten.push_str(if escape.starts_with('Z') { "z" } else { &escape[..length] });
                &escape[length..]
            }
        };
    }
    rewritten.push_str(rest);
    rewritten
}

/// Reads an octal escape: up to three digits that begin with 0, or three that begin with 1 to 3.
fn octal(escape: &str) -> Option<(u32, usize)> {
    let digits = escape.bytes().take(3).take_while(|digit| matches!(digit, b'0'..=b'7')).count();
    let is_octal = match escape.as_bytes().first()? {
        b'0' => true,
        b'1'..=b'3' => digits == 3,
        _ => false,
    };
    let code = u32::from_str_radix(escape.get(..digits)?, 8).ok()?;
    is_octal.then_some((code, digits))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Text(String);

    impl Sink for Text {
        fn text(&mut self, text: &str) {
            self.0.push_str(text);
        }
        fn newline(&mut self) {
            self.0.push('\n');
        }
        fn begun(&mut self) {}
    }

    fn scan(pieces: &[&str]) -> String {
        let mut text = Text::default();
        let mut scanner = Scanner::default();
        for piece in pieces {
            scanner.scan(piece, &mut text);
        }
        scanner.finish(&mut text);
        text.0
    }

    #[track_caller]
    fn check(pieces: &[&str], expected: &str) {
        assert_eq!(scan(pieces), expected);
    }

    #[test]
    fn carriage_returns_are_newlines() {
        check(&["a\r\nb"], "a\nb");
        check(&["a\rb"], "a\nb");
        check(&["a\r\r\nb"], "a\n\nb");
        check(&["a\r", "\nb"], "a\nb");
        check(&["a\r", "b"], "a\nb");
        check(&["a\n\rb"], "a\n\nb");
    }

    #[test]
    fn cursor_movements_are_newlines() {
        check(&["a\x1b[ub"], "a\nb");
        check(&["a\x1b[2Jb"], "a\nb");
        check(&["a\x1b[3;4Hb\x1b[10;20fc"], "a\nb\nc");
        check(&["a\x1b", "[", "3", ";4", "Hb"], "a\nb");
    }

    #[test]
    fn other_control_sequences_stay() {
        for text in ["\x1b[0m", "\x1b[1;31m", "\x1b[;4H", "\x1b[3;H", "\x1b[3;4;5H", "\x1b[22J", "\x1b[5u", "\x1bM"] {
            check(&[text], text);
        }
        check(&["\x1b\x1b[u"], "\x1b\n");
        check(&["\x1b[2"], "\x1b[2");
        let long = format!("\x1b[{}", "1".repeat(100));
        check(&[&long], &long);
    }

    #[test]
    fn a_run_of_backspaces_is_one_newline() {
        check(&["a\x08\x08\x08b"], "a\nb");
        check(&["a\x08", "\x08b\x08c"], "a\nb\nc");
    }

    #[test]
    fn pythons_escapes_are_understood() {
        assert_eq!(
            from_python(r"(\033\[u|\0|\101x|\1|\r(?=.)|\Z|\\033)"),
            r"(\x{1b}\[u|\x{0}|\x{41}x|\1|\r(?=.)|\z|\\033)"
        );
    }

    #[test]
    fn an_unusable_pattern_gives_way_to_the_default() {
        assert!(matches!(Newlines::new("("), Newlines::Default(_)));
        assert!(matches!(Newlines::new("x"), Newlines::Custom(_)));
    }

    proptest! {
        #[test]
        fn the_scanner_agrees_with_the_expression_however_the_text_arrives(
            text in "([\r\n\x08\x1b]|\x1b\\[|[0-9];|[0-9a;Hfu2Jé]){0,24}",
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let pattern = Settings::default().newline_re;
            let Ok(regex) = Regex::new(&from_python(&pattern)) else { panic!("the default pattern compiles") };
            // A newline follows at the end of a stream, and ends the line that a last carriage return would.
            let mut expected = substitute(&regex, &format!("{text}\n")).unwrap_or_default();
            if !text.ends_with('\r') {
                expected.pop();
            }
            let boundaries: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.get(&boundaries)).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&text[from..cut]);
                from = cut;
            }
            pieces.push(&text[from..]);
            prop_assert_eq!(scan(&pieces), expected);
        }
    }
}
