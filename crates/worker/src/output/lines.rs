use std::mem;

use protocol::{Lines, Settings};

use super::newlines::{Newlines, Sink, substitute};

/// What the longest line may be, whatever the master's settings say; characters. At 4 bytes each it still fits into one
/// string of Buildbot's older protocol.
const MAX_LINE_LENGTH: usize = 128 * 1024;

/// Cuts the text of one stream into lines.
///
/// A line is given out once it is ended, by a newline or because it is as long as a line may be: with its newline at
/// most `max_line_length` characters. What is cut continues as the next line; nothing is lost.
#[derive(Debug)]
pub(crate) struct LineSplitter {
    newlines: Newlines,
    line: Line,
}

/// The line that is not ended yet.
#[derive(Debug)]
struct Line {
    max_length: usize,
    text: String,
    /// Characters in `text`.
    length: usize,
    /// When its first character arrived.
    started: Option<f64>,
}

impl LineSplitter {
    /// Splits as the master wants it.
    pub(crate) fn new(settings: &Settings) -> Self {
        let max_length = settings.max_line_length.clamp(2, MAX_LINE_LENGTH) - 1;
        let line = Line { max_length, text: String::new(), length: 0, started: None };
        LineSplitter { newlines: Newlines::new(&settings.newline_re), line }
    }

    /// Takes text that arrived at `now`, and returns the lines that it ended.
    pub(crate) fn push(&mut self, text: &str, now: f64) -> Lines {
        let mut turn = Turn::new(&mut self.line, text, now);
        match &mut self.newlines {
            Newlines::Default(scanner) => scanner.scan(text, &mut turn),
            Newlines::Custom(pattern) => {
                // A match may begin in what has arrived before.
                let joined = turn.take_back(text);
                match substitute(pattern, &joined) {
                    Ok(substituted) => turn.text(&substituted),
                    Err(error) => {
                        tracing::warn!(%error, "the master's newline_re costs too much on this output, the default is used");
                        self.newlines = Newlines::new(&Settings::default().newline_re);
                        if let Newlines::Default(scanner) = &mut self.newlines {
                            scanner.scan(&joined, &mut turn);
                        }
                    }
                }
            }
        }
        turn.ended
    }

    /// Ends the stream, and with it the last line if that has any text.
    pub(crate) fn finish(&mut self, now: f64) -> Lines {
        let mut turn = Turn::new(&mut self.line, "", now);
        if let Newlines::Default(scanner) = &mut self.newlines {
            scanner.finish(&mut turn);
        }
        if turn.line.length > 0 {
            turn.newline();
        }
        turn.ended
    }
}

/// The work on one piece of text.
struct Turn<'a> {
    line: &'a mut Line,
    ended: Lines,
    /// Characters in `ended`.
    length: usize,
    now: f64,
    /// All of the text is ASCII, so that bytes are characters.
    ascii: bool,
}

impl<'a> Turn<'a> {
    fn new(line: &'a mut Line, text: &str, now: f64) -> Self {
        let ascii = text.is_ascii() && line.text.is_ascii();
        let text = String::with_capacity(if text.is_empty() { 0 } else { line.text.len() + text.len() + 1 });
        Turn { line, ended: Lines { text, ..Lines::default() }, length: 0, now, ascii }
    }

    /// Returns the line that was not ended together with what follows it, as if both had arrived together.
    fn take_back(&mut self, text: &str) -> String {
        let mut joined = mem::take(&mut self.line.text);
        self.line.length = 0;
        joined.push_str(text);
        joined
    }

    fn characters(&self, text: &str) -> usize {
        if self.ascii { text.len() } else { text.chars().count() }
    }

    /// Adds to the line, and cuts it where it gets too long.
    fn extend(&mut self, mut text: &str) {
        let mut length = self.characters(text);
        while self.line.length + length > self.line.max_length {
            let room = self.line.max_length - self.line.length;
            let cut = if self.ascii { room } else { text.char_indices().nth(room).map_or(text.len(), |(at, _)| at) };
            self.begun();
            self.end(&text[..cut], room);
            text = &text[cut..];
            length -= room;
        }
        if length > 0 {
            self.begun();
            self.line.text.push_str(text);
            self.line.length += length;
        }
    }

    /// Ends the line with this last part of it, which is `length` characters long.
    fn end(&mut self, last: &str, length: usize) {
        self.ended.text.push_str(&self.line.text);
        self.ended.text.push_str(last);
        self.ended.text.push('\n');
        self.length += self.line.length + length;
        self.ended.newlines.push(u32::try_from(self.length).unwrap_or(u32::MAX));
        self.length += 1;
        self.ended.times.push(self.line.started.take().unwrap_or(self.now));
        self.line.text.clear();
        self.line.length = 0;
    }
}

impl Sink for Turn<'_> {
    fn text(&mut self, text: &str) {
        let mut from = 0;
        for newline in memchr::memchr_iter(b'\n', text.as_bytes()) {
            let rest = &text[from..newline];
            from = newline + 1;
            let length = self.characters(rest);
            if self.line.length + length <= self.line.max_length {
                self.end(rest, length);
            } else {
                self.extend(rest);
                self.end("", 0);
            }
        }
        self.extend(&text[from..]);
    }

    fn newline(&mut self) {
        self.end("", 0);
    }

    fn begun(&mut self) {
        self.line.started.get_or_insert(self.now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(max_line_length: usize) -> Settings {
        Settings { max_line_length, ..Settings::default() }
    }

    /// What comes out if each piece arrives a second after the one before it, from second 0 on.
    fn split(settings: &Settings, pieces: &[&str]) -> Vec<(String, f64)> {
        let mut splitter = LineSplitter::new(settings);
        let mut lines = Vec::new();
        for (second, piece) in (0u32..).zip(pieces) {
            collect(&mut lines, splitter.push(piece, f64::from(second)));
        }
        collect(&mut lines, splitter.finish(99.0));
        lines
    }

    fn collect(into: &mut Vec<(String, f64)>, lines: Lines) {
        let newlines: Vec<u32> =
            (0u32..).zip(lines.text.chars()).filter(|(_, c)| *c == '\n').map(|(at, _)| at).collect();
        assert_eq!(lines.newlines, newlines, "positions of {:?}", lines.text);
        assert!(lines.text.is_empty() || lines.text.ends_with('\n'));
        assert_eq!(lines.times.len(), newlines.len());
        into.extend(lines.text.split_terminator('\n').map(str::to_owned).zip(lines.times));
    }

    #[track_caller]
    fn check(pieces: &[&str], expected: &[(&str, f64)]) {
        check_with(&settings(4096), pieces, expected);
    }

    #[track_caller]
    fn check_with(settings: &Settings, pieces: &[&str], expected: &[(&str, f64)]) {
        let expected: Vec<_> = expected.iter().map(|(line, time)| ((*line).to_owned(), *time)).collect();
        assert_eq!(split(settings, pieces), expected);
    }

    #[test]
    fn a_line_has_the_time_of_its_first_character() {
        check(&["no newline", " joined\nnext\n"], &[("no newline joined", 0.0), ("next", 1.0)]);
        check(&["a\n", "\n", "b\n"], &[("a", 0.0), ("", 1.0), ("b", 2.0)]);
        check(&["a\n\r", "\nb\n"], &[("a", 0.0), ("", 0.0), ("b", 1.0)]);
        check(&["\x1b[", "0m\n"], &[("\x1b[0m", 0.0)]);
    }

    #[test]
    fn newlines_of_all_kinds_end_lines() {
        check(
            &["no newline", " joined\nnext\r\ncrlf\r", "\nafter cr\rmid\x08\x08bs\x1b[2Jclr\x1b[3;4Hpos\n", "tail"],
            &[
                ("no newline joined", 0.0),
                ("next", 1.0),
                ("crlf", 1.0),
                ("after cr", 2.0),
                ("mid", 2.0),
                ("bs", 2.0),
                ("clr", 2.0),
                ("pos", 2.0),
                ("tail", 3.0),
            ],
        );
    }

    #[test]
    fn the_last_line_needs_no_newline() {
        check(&["tail"], &[("tail", 0.0)]);
        check(&["tail\r"], &[("tail", 0.0)]);
        check(&["tail\x1b[2"], &[("tail\x1b[2", 0.0)]);
        check(&[""], &[]);
    }

    #[test]
    fn a_long_line_is_cut_and_keeps_every_character() {
        let five = settings(5);
        check_with(&five, &["abcd\n"], &[("abcd", 0.0)]);
        check_with(&five, &["abcde\n"], &[("abcd", 0.0), ("e", 0.0)]);
        check_with(&five, &["abcd", "\n"], &[("abcd", 0.0)]);
        check_with(&five, &["abc", "defghijk", "l"], &[("abcd", 0.0), ("efgh", 1.0), ("ijkl", 1.0)]);
        check_with(&five, &["äöüßéè"], &[("äöüß", 0.0), ("éè", 0.0)]);
        check_with(&settings(0), &["ab\n"], &[("a", 0.0), ("b", 0.0)]);
    }

    #[test]
    fn a_custom_pattern_is_applied_across_pieces() {
        let custom = Settings { newline_re: "<br>|-+".to_owned(), ..Settings::default() };
        check_with(&custom, &["one<b", "r>two\rstill\n", "x"], &[("one", 0.0), ("two\rstill", 1.0), ("x", 2.0)]);
    }

    #[test]
    fn a_pattern_that_costs_too_much_is_given_up() {
        let costly = Settings { newline_re: "(?:(?=a)a|(?=aa)aa)+c".to_owned(), ..Settings::default() };
        let text = "a".repeat(3000) + "bc\rnext";
        let lines = split(&costly, &[&text]);
        assert_eq!(lines.iter().map(|(line, _)| line.len()).collect::<Vec<_>>(), [3002, 4]);
    }

    fn pieces(text: &str, sizes: &[usize]) -> Vec<String> {
        let characters: Vec<char> = text.chars().collect();
        let mut rest = characters.as_slice();
        let mut pieces = Vec::new();
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, others) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece.iter().collect());
            rest = others;
        }
        pieces
    }

    proptest! {
        #[test]
        fn the_lines_do_not_depend_on_the_pieces(
            text in "([a-cé€\n]|\r|\x08|\x1b\\[2J|\x1b\\[[0-9]){0,60}",
            sizes in proptest::collection::vec(1usize..9, 1..4),
            max in 2usize..9,
        ) {
            let whole: Vec<String> = split(&settings(max), &[&text]).into_iter().map(|(line, _)| line).collect();
            let pieces = pieces(&text, &sizes);
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let lines: Vec<String> = split(&settings(max), &pieces).into_iter().map(|(line, _)| line).collect();
            prop_assert_eq!(lines, whole);
        }

        #[test]
        fn no_character_is_lost(text in "[a-cé€\n]{0,200}", max in 2usize..20) {
            let kept: String = split(&settings(max), &[&text]).into_iter().map(|(line, _)| line).collect();
            prop_assert_eq!(kept, text.replace('\n', ""));
        }

        #[test]
        fn no_line_is_longer_than_allowed(text in "[a-cé€\n]{0,200}", max in 2usize..20) {
            for (line, _) in split(&settings(max), &[&text]) {
                prop_assert!(line.chars().count() < max);
            }
        }
    }
}
