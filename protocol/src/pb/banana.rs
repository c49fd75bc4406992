//! Banana: numbers, byte strings and lists as bytes (Twisted 26.10.0, `twisted.spread.banana`).
//!
//! A token is up to 64 digits to the base of 128, least significant first, then a byte of at least 0x80
//! that says what the number means, then data. There is no end mark: a list announces how many items follow.

mod decoder;
mod encoder;

pub use decoder::Decoder;
pub use encoder::Encoder;
use thiserror::Error;

/// The longest list and the longest byte string that either side takes, in items and in bytes.
pub const SIZE_LIMIT: usize = 640 * 1024;

/// The largest message that is accepted, counted as the memory it takes when it is decoded, in bytes.
pub const MAX_MESSAGE_SIZE: usize = 64 << 20;

/// How deep lists may be nested in a message.
pub const MAX_DEPTH: usize = 256;

/// The most digits of a number.
const MAX_DIGITS: usize = 64;

const LIST: u8 = 0x80;
const INT: u8 = 0x81;
const STRING: u8 = 0x82;
const NEGATIVE: u8 = 0x83;
const FLOAT: u8 = 0x84;
const LONG_INT: u8 = 0x85;
const LONG_NEGATIVE: u8 = 0x86;
const WORD: u8 = 0x87;

/// The words that the dialect `pb` sends as a number, their place in this list.
const WORDS: [&str; 32] = [
    "",
    "None",
    "class",
    "dereference",
    "reference",
    "dictionary",
    "function",
    "instance",
    "list",
    "module",
    "persistent",
    "tuple",
    "unpersistable",
    "copy",
    "cache",
    "cached",
    "remote",
    "local",
    "lcache",
    "version",
    "login",
    "password",
    "challenge",
    "logged_in",
    "not_logged_in",
    "cachemessage",
    "message",
    "answer",
    "error",
    "decref",
    "decache",
    "uncache",
];

/// What Banana carries.
#[derive(Debug, Clone, PartialEq)]
pub enum Expression {
    /// An integer.
    Int(i64),
    /// An integer beyond 64 bits.
    BigInt(BigInt),
    /// A 64-bit float.
    Float(f64),
    /// A byte string; a word of the vocabulary is one.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Expression>),
}

/// An integer beyond 64 bits. Nothing calculates with it: that one was sent must not break the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BigInt {
    negative: bool,
    /// To the base of 128, least significant first, the last one not zero.
    digits: Vec<u8>,
}

/// Bytes that are not Banana, or too much of it: the connection is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Violation {
    /// A number goes on and on.
    #[error("a number of more than {MAX_DIGITS} digits")]
    TooManyDigits,
    /// A list or byte string is longer than [`SIZE_LIMIT`].
    #[error("a list or byte string of more than {SIZE_LIMIT} items or bytes")]
    TooLong,
    /// Lists are nested deeper than [`MAX_DEPTH`].
    #[error("lists nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// A message takes more than [`MAX_MESSAGE_SIZE`].
    #[error("a message of more than {MAX_MESSAGE_SIZE} bytes")]
    TooLarge,
    /// No token has this type byte.
    #[error("type byte {0:#04x}")]
    UnknownType(u8),
    /// The vocabulary has no such word.
    #[error("a word that is not in the vocabulary")]
    UnknownWord,
}

/// Why something can't be sent.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{length} bytes or items at once are more than the {SIZE_LIMIT} that PB carries")]
pub struct TooLong {
    /// The length of the list or byte string.
    pub length: usize,
}

#[cfg(test)]
pub(super) mod tests;
