//! What guests print, as plain text for a terminal: nothing in it moves the cursor, sets colours or talks to the terminal.

/// Makes plain text of bytes, which may begin or end anywhere.
pub(crate) fn plain(bytes: &[u8]) -> String {
    let mut text = Plain::default();
    let mut out = text.take(bytes);
    out.push_str(&text.rest());
    out
}

/// Makes plain text of a stream of bytes, part by part.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    state: State,
    /// The beginning of a character whose end has not come yet.
    partial: Vec<u8>,
}

/// Where in an escape sequence (ECMA-48) the stream is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After ESC and an intermediate character, such as in `ESC ( B`.
    Intermediate,
    /// In a control sequence, `ESC [ … letter`.
    Sequence,
    /// In a string for the terminal, `ESC ] … BEL` or `ESC ] … ESC \`.
    Command,
    /// After ESC in such a string.
    CommandEscape,
}

impl Plain {
    /// The plain text of the next part.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> String {
        self.partial.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.partial);
        let mut text = String::with_capacity(bytes.len());
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            chunk.valid().chars().for_each(|char| self.char(char, &mut text));
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            // A character is at most four bytes long.
            if chunks.peek().is_none() && invalid.len() < 4 && is_beginning(invalid) {
                self.partial = invalid.to_vec();
            } else {
                self.char(char::REPLACEMENT_CHARACTER, &mut text);
            }
        }
        text
    }

    /// What is left at the end of the stream.
    pub(crate) fn rest(&mut self) -> String {
        let left = !std::mem::take(&mut self.partial).is_empty();
        if left { char::REPLACEMENT_CHARACTER.to_string() } else { String::new() }
    }

    fn char(&mut self, char: char, text: &mut String) {
        use State::{Command, CommandEscape, Escape, Intermediate, Sequence, Text};
        self.state = match (self.state, char) {
            // Whatever was begun is given up.
            (Text | Escape | Intermediate | Sequence, '\u{1b}') => Escape,
            (Command, '\u{1b}') => CommandEscape,
            (Command, '\u{7}') => Text,
            (Command, _) => Command,
            (CommandEscape, '\\') => Text,
            (CommandEscape, _) => Command,
            (Escape, '[') => Sequence,
            (Escape, ']' | 'P' | 'X' | '^' | '_') => Command,
            (Escape, ' '..='/') => Intermediate,
            (Escape, _) => Text,
            (Intermediate, ' '..='/') => Intermediate,
            (Intermediate, _) => Text,
            (Sequence, '@'..='~') => Text,
            // A newline is in none; one that was cut off must not swallow the lines after it.
            (Sequence, '\n') => {
                text.push('\n');
                Text
            }
            (Sequence, _) => Sequence,
            (Text, '\n' | '\t') => {
                text.push(char);
                Text
            }
            (Text, char) if char.is_control() || is_invisible(char) => Text,
            (Text, char) => {
                text.push(char);
                Text
            }
        };
    }
}

/// Whether bytes that are no character are the beginning of one.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// Whether a character changes the direction of those beside it, by which a text can be made to look like another.
fn is_invisible(char: char) -> bool {
    matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_terminals_is_left_out() {
        let check = |bytes: &[u8], expected: &str| {
            assert_eq!(plain(bytes), expected, "{bytes:?}");
            // However it is cut.
            for at in 0..=bytes.len() {
                let mut text = Plain::default();
                let parts = [text.take(&bytes[..at]), text.take(&bytes[at..]), text.rest()].concat();
                assert_eq!(parts, expected, "{bytes:?} at {at}");
            }
        };
        check(b"Linux version 6.1\r\n\tok\r\n", "Linux version 6.1\n\tok\n");
        check(b"\x1b[0;32m  OK  \x1b[0m Started\x1b[K", "  OK   Started");
        check(b"\x1b[2J\x1b[1;1H\x1bcclear\x1b(B", "clear");
        check(b"\x1b]0;a title\x07after\x1b]52;c;Y2xpcA==\x1b\\more", "aftermore");
        check(b"\x1b[31\nred", "\nred");
        check(b"a\x08b\x00\x07", "ab");
        check("grün ✓ \u{202e}txt".as_bytes(), "grün ✓ txt");
        check(b"\xff\xfe ok \xe2\x9c", "\u{fffd}\u{fffd} ok \u{fffd}");
    }
}
