//! Any bytes mean the same however they are split, and what they mean survives being written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::pb::banana::{Decoder, Encoder, Expression, Violation};

fuzz_target!(|bytes: &[u8]| {
    let whole = decode(bytes, bytes.len().max(1));
    assert_eq!(whole.as_ref().err(), decode(bytes, 3).as_ref().err());
    let Ok(expressions) = whole else { return };
    let written = encode(&expressions);
    let again = decode(&written, 1).expect("what was written can be read");
    // Bytes are compared, because NaN does not equal itself.
    assert_eq!(written, encode(&again));
});

fn decode(bytes: &[u8], chunk: usize) -> Result<Vec<Expression>, Violation> {
    let mut decoder = Decoder::default();
    let mut expressions = Vec::new();
    for piece in bytes.chunks(chunk) {
        decoder.push(piece);
        while let Some(expression) = decoder.next_expression()? {
            expressions.push(expression);
        }
    }
    Ok(expressions)
}

fn encode(expressions: &[Expression]) -> Vec<u8> {
    let mut encoder = Encoder::default();
    for expression in expressions {
        encoder.expression(expression).expect("what was read is short enough to be written");
    }
    encoder.take()
}
