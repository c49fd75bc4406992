//! A connection against recordings of Buildbot's own worker, and against a master that does what the recorded one
//! did not.

mod conversation;
mod golden;

use serde_json::{Map, Value as Json, json};

use super::Connection;
use super::banana::tests::encode;
use super::banana::{Decoder, Expression};

/// The expression that a recording shows: text stands for a byte string.
fn expression(json: &Json) -> Expression {
    match json {
        Json::Array(items) => Expression::List(items.iter().map(expression).collect()),
        Json::String(text) => Expression::Bytes(text.clone().into_bytes()),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Expression::Int(number),
            None => Expression::Float(number.as_f64().unwrap()),
        },
        Json::Object(object) => Expression::Bytes(recorded_bytes(object)),
        Json::Null | Json::Bool(_) => panic!("{json} is not in Banana"),
    }
}

/// Bytes that are not text. Long ones were cut when they were recorded; they come out at their full length.
fn recorded_bytes(object: &Map<String, Json>) -> Vec<u8> {
    let hex = object["$hex"].as_str().unwrap();
    let mut bytes: Vec<u8> =
        (0..hex.len()).step_by(2).map(|place| u8::from_str_radix(&hex[place..place + 2], 16).unwrap()).collect();
    bytes.resize(usize::try_from(object["$bytes_len"].as_u64().unwrap()).unwrap(), 0);
    bytes
}

/// The reverse of [`expression`].
fn shown(expression: &Expression) -> Json {
    match expression {
        Expression::Int(number) => json!(number),
        Expression::Float(number) => json!(number),
        Expression::BigInt(number) => panic!("nobody sends {number:?}"),
        Expression::List(items) => Json::Array(items.iter().map(shown).collect()),
        Expression::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => json!(text),
            Err(_) => {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                json!({"$bytes_len": bytes.len(), "$hex": hex})
            }
        },
    }
}

/// All that the connection wants to send.
fn sent(connection: &mut Connection) -> Vec<Expression> {
    let mut decoder = Decoder::default();
    decoder.push(&connection.take_output());
    std::iter::from_fn(|| decoder.next_expression().unwrap()).collect()
}

fn wire(message: &Json) -> Vec<u8> {
    encode(&expression(message))
}
