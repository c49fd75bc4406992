//! Jelly: Python's values as Banana expressions (Twisted 26.10.0, `twisted.spread.jelly`).
//!
//! Numbers and byte strings stand for themselves. Everything else is a list that begins with a tag. A value that is
//! met again in the same expression is sent once, as a `reference`, and then as `dereference`s.

mod reader;
mod writer;

use thiserror::Error;

use self::reader::Reader;
use super::banana::{Expression, MAX_DEPTH, MAX_MESSAGE_SIZE};
use crate::value::Value;

/// A Python value, or an object that stays where it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Jelly {
    /// `None`.
    None,
    /// `bool`.
    Bool(bool),
    /// `int`.
    Int(i64),
    /// `float`.
    Float(f64),
    /// `bytes`.
    Bytes(Vec<u8>),
    /// `str`.
    Str(String),
    /// Several values.
    Sequence(Sequence, Vec<Jelly>),
    /// `dict`, in the order it arrived.
    Dictionary(Vec<(Jelly, Jelly)>),
    /// `decimal.Decimal`: this times ten to the power of that.
    Decimal(i64, i64),
    /// A date, time or time span: its numbers as text.
    Moment(Moment, String),
    /// An object that lives at the sender, by its number there.
    Remote(u64),
    /// An object that lives at the receiver, by its number there.
    Local(u64),
    /// An object that was copied.
    Copied {
        /// The dotted name of its class.
        class: String,
        /// What it is made of.
        state: Box<Jelly>,
    },
}

/// A Python type of several values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequence {
    /// `list`.
    List,
    /// `tuple`.
    Tuple,
    /// `set`.
    Set,
    /// `frozenset`.
    FrozenSet,
}

/// A type of Python's `datetime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// `datetime.datetime`.
    DateTime,
    /// `datetime.date`.
    Date,
    /// `datetime.time`.
    Time,
    /// `datetime.timedelta`.
    TimeDelta,
}

/// Why an expression is no value that is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JellyError {
    /// A list without a tag.
    #[error("a list without a type")]
    Untagged,
    /// A type that has no business here, such as `module` or `instance`.
    #[error("a value of type '{0}', which is not accepted")]
    Insecure(String),
    /// A tag with something else behind it than belongs there.
    #[error("a malformed value of type '{0}'")]
    Malformed(String),
    /// A value that contains itself, or a reference to nothing.
    #[error("a reference to a value that is not complete")]
    Cyclic,
    /// An integer that 64 bits don't hold.
    #[error("a number that is too large")]
    BigInt,
    /// Too much to hold, once the references are followed.
    #[error("a value of more than {MAX_MESSAGE_SIZE} bytes")]
    TooLarge,
    /// Too deep, once the references are followed.
    #[error("a value nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// What both protocols can't carry, such as a reference to an object.
    #[error("a value of type '{0}' where only plain values may be")]
    NotPlain(&'static str),
    /// A dictionary's key.
    #[error("a dictionary with a key that is not text")]
    Key,
}

impl Jelly {
    /// Reads a value. Every reference to an object of the sender is noted in `remotes`, once for each time it was
    /// sent, even if reading fails: the receiver owes a `decref` for each.
    ///
    /// # Errors
    /// See [`JellyError`].
    pub fn read(expression: Expression, remotes: &mut Vec<u64>) -> Result<Self, JellyError> {
        Reader::new(remotes).read(expression)
    }

    /// The value that is left if the difference between tuples, lists and sets is forgotten.
    ///
    /// # Errors
    /// It holds an object, or a dictionary with a key that is not text.
    pub fn into_value(self) -> Result<Value, JellyError> {
        Ok(match self {
            Jelly::None => Value::Nil,
            Jelly::Bool(truth) => Value::Bool(truth),
            Jelly::Int(number) => Value::Int(number),
            Jelly::Float(number) => Value::Float(number),
            Jelly::Bytes(bytes) => Value::Bytes(bytes),
            Jelly::Str(text) => Value::Str(text),
            Jelly::Sequence(_, items) => {
                Value::List(items.into_iter().map(Jelly::into_value).collect::<Result<_, _>>()?)
            }
            Jelly::Dictionary(pairs) => Value::Map(
                pairs
                    .into_iter()
                    .map(|(key, value)| Ok((key.into_text().ok_or(JellyError::Key)?, value.into_value()?)))
                    .collect::<Result<_, _>>()?,
            ),
            Jelly::Decimal(number, exponent) => {
                let exponent = i32::try_from(exponent).map_err(|_| JellyError::BigInt)?;
                Value::Float(number as f64 * 10_f64.powi(exponent))
            }
            Jelly::Moment(_, text) => Value::Str(text),
            Jelly::Remote(_) => return Err(JellyError::NotPlain("remote")),
            Jelly::Local(_) => return Err(JellyError::NotPlain("local")),
            Jelly::Copied { .. } => return Err(JellyError::NotPlain("copy")),
        })
    }

    /// The text, if this is text or bytes that are UTF-8, as a master on Python 2 sends them.
    pub fn into_text(self) -> Option<String> {
        match self {
            Jelly::Str(text) => Some(text),
            Jelly::Bytes(bytes) => String::from_utf8(bytes).ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
