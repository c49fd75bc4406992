//! What a guest says, as it may stand in an error, on a terminal or in a log: a hostile one chooses its words with care.

/// How long a line of a guest's may be, in characters.
const LINE: usize = 200;

/// How long a text of a guest's may be, in characters.
const TEXT: usize = 4096;

/// A guest's words as one line.
pub(crate) fn line(words: &str) -> String {
    bounded(words.trim(), LINE, is_harmless)
}

/// A guest's words as a text, whose lines stay apart.
pub(crate) fn text(words: &str) -> String {
    bounded(words.trim(), TEXT, |char| is_harmless(char) || char == '\n' || char == '\t')
}

fn bounded(words: &str, most: usize, is_fine: impl Fn(char) -> bool) -> String {
    let mut said = String::new();
    for (count, char) in words.chars().enumerate() {
        match char {
            _ if count == most => {
                said.push('…');
                break;
            }
            char if is_fine(char) => said.push(char),
            char => said.extend(char.escape_default()),
        }
    }
    said
}

/// Whether a character only stands for itself: it moves no cursor, and does not change the direction of those beside it.
fn is_harmless(char: char) -> bool {
    !char.is_control() && !matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_short_and_do_nothing() {
        let check = |words: &str, expected_line: &str, expected_text: &str| {
            assert_eq!((line(words).as_str(), text(words).as_str()), (expected_line, expected_text), "{words:?}");
        };
        check(
            " too many authentication failures\r\n",
            "too many authentication failures",
            "too many authentication failures",
        );
        check("grün \"✓\"", "grün \"✓\"", "grün \"✓\"");
        check("a\n\tb\u{1b}[2J\0", r"a\n\tb\u{1b}[2J\u{0}", "a\n\tb\\u{1b}[2J\\u{0}");
        check("a\u{202e}b\u{2028}c", r"a\u{202e}b\u{2028}c", r"a\u{202e}b\u{2028}c");
        let long = "é".repeat(100_000);
        check(&long, &("é".repeat(LINE) + "…"), &("é".repeat(TEXT) + "…"));
        check(&long[..2 * LINE], &"é".repeat(LINE), &"é".repeat(LINE));
    }
}
