use std::collections::VecDeque;

/// The last bytes of a stream: a bounded buffer that forgets from the front.
#[derive(Clone, Debug)]
pub struct Tail {
    bytes: VecDeque<u8>,
    max_bytes: usize,
    forgotten: bool,
}

impl Tail {
    /// Makes an empty tail that keeps at most `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Tail { bytes: VecDeque::new(), max_bytes, forgotten: false }
    }

    /// Takes in what the stream brought.
    pub fn push(&mut self, chunk: &[u8]) {
        let kept = &chunk[chunk.len().saturating_sub(self.max_bytes)..];
        let excess = (self.bytes.len() + kept.len()).saturating_sub(self.max_bytes);
        self.forgotten |= excess > 0 || kept.len() < chunk.len();
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
    }

    /// Returns what is kept as text, undecodable bytes replaced by U+FFFD. When something was forgotten, the text starts
    /// at a line's beginning if it has one.
    pub fn text(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let start = match bytes.iter().position(|&b| b == b'\n') {
            Some(newline) if self.forgotten && newline + 1 < bytes.len() => newline + 1,
            _ => 0,
        };
        String::from_utf8_lossy(&bytes[start..]).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(max_bytes: usize, chunks: &[&[u8]], expected: &str) {
        let mut tail = Tail::new(max_bytes);
        for chunk in chunks {
            tail.push(chunk);
        }
        assert_eq!(tail.text(), expected);
        assert!(tail.bytes.len() <= max_bytes);
    }

    #[test]
    fn only_the_end_is_kept() {
        check(10, &[], "");
        check(10, &[b"ab", b"", b"cd"], "abcd");
        check(4, &[b"abcdef"], "cdef");
        check(4, &[b"abc", b"def"], "cdef");
        check(0, &[b"abc"], "");
    }

    #[test]
    fn a_cut_text_starts_at_a_line() {
        check(8, &[b"first\nsecond"], "second");
        check(6, &[b"first\nsecond"], "second");
        check(4, &[b"abcdef\n"], "def\n");
        check(20, &[b"a\nb"], "a\nb");
    }

    #[test]
    fn undecodable_bytes_are_replaced() {
        check(10, &[b"a\xffb"], "a\u{fffd}b");
    }
}
