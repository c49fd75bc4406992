use std::borrow::Cow;

/// Turns UTF-8 that arrives in pieces into text; what is not UTF-8 becomes U+FFFD, one for each maximal invalid part, as
/// Python's decoders do it with `errors='replace'`.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// The beginning of a character whose other bytes have not arrived yet: at most 3 bytes.
    begun: Vec<u8>,
}

impl Decoder {
    /// Decodes what has arrived, as far as it ends with a whole character.
    pub(crate) fn decode<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, str> {
        if !self.begun.is_empty() {
            let mut joined = std::mem::take(&mut self.begun);
            joined.extend_from_slice(bytes);
            return Cow::Owned(self.decode_whole(&joined).into_owned());
        }
        self.decode_whole(bytes)
    }

    /// Ends the stream: a character that was begun is not going to be completed.
    pub(crate) fn finish(&mut self) -> &'static str {
        let begun = std::mem::take(&mut self.begun);
        if begun.is_empty() { "" } else { "\u{fffd}" }
    }

    fn decode_whole<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, str> {
        let error = match std::str::from_utf8(bytes) {
            Ok(text) => return Cow::Borrowed(text),
            Err(error) => error,
        };
        if error.error_len().is_none() {
            let (whole, begun) = bytes.split_at(error.valid_up_to());
            self.begun = begun.to_vec();
            return String::from_utf8_lossy(whole);
        }
        let mut text = String::with_capacity(bytes.len() + 2);
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && is_begun(invalid) {
                self.begun = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push('\u{fffd}');
            }
        }
        Cow::Owned(text)
    }
}

/// Whether further bytes can make this a character.
fn is_begun(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(pieces: &[&[u8]]) -> String {
        let mut decoder = Decoder::default();
        let mut text: String = pieces.iter().map(|piece| decoder.decode(piece).into_owned()).collect();
        text.push_str(decoder.finish());
        text
    }

    #[track_caller]
    fn check(pieces: &[&[u8]], expected: &str) {
        assert_eq!(decode(pieces), expected);
    }

    #[test]
    fn a_character_may_arrive_in_pieces() {
        check(&[b"caf\xc3", b"\xa9 au lait"], "café au lait");
        check(&[b"\xf0", b"\x9f", b"\x98", b"\x80"], "😀");
        check(&[b"\xff\xe2\x82", b"\xac"], "\u{fffd}€");
    }

    #[test]
    fn what_is_not_utf_8_is_replaced() {
        check(&[b"bad\xff\xfe end"], "bad\u{fffd}\u{fffd} end");
        check(&[b"\xe2\x82", b"x"], "\u{fffd}x");
        check(&[b"\xc3", b"\xff"], "\u{fffd}\u{fffd}");
        check(&[b"\xed\xa0\x80"], "\u{fffd}\u{fffd}\u{fffd}");
    }

    #[test]
    fn a_character_begun_at_the_end_is_not_forgotten() {
        check(&[b"x\xe2\x82"], "x\u{fffd}");
    }

    proptest! {
        #[test]
        fn the_text_does_not_depend_on_the_pieces(
            bytes in proptest::collection::vec(
                prop_oneof![any::<u8>(), Just(0xe2), Just(0x82), Just(0xac), Just(b'a')], 0..60),
            size in 1usize..7,
        ) {
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            prop_assert_eq!(decode(&pieces), String::from_utf8_lossy(&bytes));
        }
    }
}
