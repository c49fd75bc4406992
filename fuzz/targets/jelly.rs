//! Any expression is read or refused within bounds, and a value that was read survives being written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::pb::banana::{Decoder, Encoder, Expression};
use protocol::pb::jelly::Jelly;

fuzz_target!(|bytes: &[u8]| {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    while let Ok(Some(expression)) = decoder.next_expression() {
        let Ok(jelly) = Jelly::read(expression, &mut Vec::new()) else { continue };
        let written = write(&jelly);
        let mut remotes = Vec::new();
        let again = Jelly::read(decode(&written), &mut remotes).expect("what was written can be read");
        // Bytes are compared, because NaN does not equal itself.
        assert_eq!(written, write(&again));
        let _ = again.into_value();
    }
});

fn write(jelly: &Jelly) -> Vec<u8> {
    let mut encoder = Encoder::default();
    jelly.write(&mut encoder).expect("what was read is short enough to be written");
    encoder.take()
}

fn decode(bytes: &[u8]) -> Expression {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    decoder.next_expression().expect("what was written is Banana").expect("all of it was written")
}
