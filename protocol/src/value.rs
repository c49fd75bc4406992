//! A value as either protocol can carry it: JSON-like, with byte strings beside text.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

/// A self-describing value, from the master or for it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Python's `None`.
    Nil,
    /// A truth value.
    Bool(bool),
    /// Any integer; a master's number outside this range is refused at decoding.
    Int(i64),
    /// A 64-bit float.
    Float(f64),
    /// Text.
    Str(String),
    /// Python's `bytes`.
    Bytes(Vec<u8>),
    /// A list or a tuple.
    List(Vec<Value>),
    /// A dictionary, in the order it arrived. Keys that are not text are refused at decoding.
    Map(Vec<(String, Value)>),
}

impl Value {
    /// The value under `key`, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Value::Map(pairs) => pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The text, if this is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The same value with text for its byte strings at any depth: in arguments they are the text of an old master.
    pub(crate) fn with_text_for_bytes(self) -> Result<Value, &'static str> {
        Ok(match self {
            Value::Bytes(bytes) => Value::Str(String::from_utf8(bytes).map_err(|_| "an argument is not UTF-8 text")?),
            Value::List(items) => {
                Value::List(items.into_iter().map(Value::with_text_for_bytes).collect::<Result<_, _>>()?)
            }
            Value::Map(pairs) => Value::Map(
                pairs
                    .into_iter()
                    .map(|(key, value)| Ok((key, value.with_text_for_bytes()?)))
                    .collect::<Result<_, &'static str>>()?,
            ),
            other => other,
        })
    }

    /// What an error message calls this kind of value.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Nil => "nil",
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Str(_) => "text",
            Value::Bytes(_) => "bytes",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Str(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Str(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Value::Int(number)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Value::Float(number)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Value::Bool(truth)
    }
}

impl<V: Into<Value>> FromIterator<(&'static str, V)> for Value {
    fn from_iter<I: IntoIterator<Item = (&'static str, V)>>(pairs: I) -> Self {
        Value::Map(pairs.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect())
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Nil => serializer.serialize_unit(),
            Value::Bool(truth) => serializer.serialize_bool(*truth),
            Value::Int(number) => serializer.serialize_i64(*number),
            Value::Float(number) => serializer.serialize_f64(*number),
            Value::Str(text) => serializer.serialize_str(text),
            Value::Bytes(bytes) => serializer.serialize_bytes(bytes),
            Value::List(items) => {
                let mut seq = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    seq.serialize_element(item)?;
                }
                seq.end()
            }
            Value::Map(pairs) => {
                let mut map = serializer.serialize_map(Some(pairs.len()))?;
                for (key, value) in pairs {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}
