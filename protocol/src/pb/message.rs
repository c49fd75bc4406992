//! The messages of PB: each is one Banana list that begins with its name (Twisted 26.10.0, `twisted.spread.pb`).

use super::banana::{Encoder, Expression, TooLong};
use super::failure::Failure;

/// The version of PB that both sides must have.
pub(super) const VERSION: i64 = 6;

/// A message from the master.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    /// The version it speaks.
    Version(i64),
    /// It calls one of our objects.
    Call(RemoteCall),
    /// The result of a call of ours.
    Answer { request: u64, value: Expression },
    /// The exception that a call of ours raised.
    Error { request: u64, failure: Expression },
    /// It holds one reference less to an object of ours.
    Decref(Expression),
    /// It did not know a message of ours.
    DidNotUnderstand,
    /// A message of this name does not exist.
    Unknown(Vec<u8>),
}

/// A call of one of our objects.
#[derive(Debug, PartialEq)]
pub(super) struct RemoteCall {
    /// The master's number.
    pub request: u64,
    /// The object's number here, or something that can't be one.
    pub object: Expression,
    /// What it is to do.
    pub method: String,
    /// Whether the master wants to hear of the result.
    pub answer_required: bool,
    /// A jellied tuple.
    pub args: Expression,
    /// A jellied dictionary.
    pub kwargs: Expression,
}

impl Message {
    /// Reads a message.
    ///
    /// # Errors
    /// It is none; says what is wrong with it.
    pub(super) fn read(expression: Expression) -> Result<Self, String> {
        let Expression::List(items) = expression else { return Err("a message that is not a list".to_owned()) };
        let mut items = items.into_iter();
        let Some(Expression::Bytes(name)) = items.next() else {
            return Err("a message without a name".to_owned());
        };
        let items: Vec<_> = items.collect();
        let malformed = || format!("a malformed message '{}'", name.escape_ascii());
        Ok(match name.as_slice() {
            b"version" => match exactly(items) {
                Some([Expression::Int(version)]) => Message::Version(version),
                _ => return Err(malformed()),
            },
            b"message" => {
                let call = exactly(items).and_then(RemoteCall::read);
                Message::Call(call.ok_or_else(malformed)?)
            }
            b"answer" => {
                let [request, value] = exactly(items).ok_or_else(malformed)?;
                Message::Answer { request: number(&request).ok_or_else(malformed)?, value }
            }
            b"error" => {
                let [request, failure] = exactly(items).ok_or_else(malformed)?;
                Message::Error { request: number(&request).ok_or_else(malformed)?, failure }
            }
            b"decref" => {
                let [object] = exactly(items).ok_or_else(malformed)?;
                Message::Decref(object)
            }
            b"didNotUnderstand" => Message::DidNotUnderstand,
            _ => Message::Unknown(name),
        })
    }
}

impl RemoteCall {
    fn read([request, object, method, answer_required, args, kwargs]: [Expression; 6]) -> Option<Self> {
        let Expression::Bytes(method) = method else { return None };
        Some(RemoteCall {
            request: number(&request)?,
            object,
            method: String::from_utf8(method).ok()?,
            answer_required: answer_required != Expression::Int(0),
            args,
            kwargs,
        })
    }
}

fn exactly<const N: usize>(items: Vec<Expression>) -> Option<[Expression; N]> {
    items.try_into().ok()
}

/// A number that an object or a request may have.
pub(super) fn number(expression: &Expression) -> Option<u64> {
    match expression {
        Expression::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// An object of the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remote {
    /// What a connection begins with.
    Root,
    /// One that the master sent a reference to.
    Object(u64),
}

/// The messages we send.
impl Encoder {
    pub(super) fn version(&mut self) -> Result<(), TooLong> {
        self.list(2)?;
        self.bytes(b"version")?;
        self.int(VERSION);
        Ok(())
    }

    /// Writes a call with positional arguments alone: `args` writes a jellied tuple.
    pub(super) fn call(
        &mut self,
        request: u64,
        object: Remote,
        method: &str,
        args: impl FnOnce(&mut Self) -> Result<(), TooLong>,
    ) -> Result<(), TooLong> {
        self.list(7)?;
        self.bytes(b"message")?;
        self.int(request.cast_signed());
        match object {
            Remote::Root => self.bytes(b"root")?,
            Remote::Object(number) => self.int(number.cast_signed()),
        }
        self.bytes(method.as_bytes())?;
        self.int(1);
        args(self)?;
        self.dictionary(0)
    }

    /// Writes the result of a call of the master's.
    pub(super) fn answer(
        &mut self,
        request: u64,
        result: impl FnOnce(&mut Self) -> Result<(), TooLong>,
    ) -> Result<(), TooLong> {
        self.list(3)?;
        self.bytes(b"answer")?;
        self.int(request.cast_signed());
        result(self)
    }

    /// Writes that a call of the master's raised an exception.
    pub(super) fn error(&mut self, request: u64, failure: &Failure) -> Result<(), TooLong> {
        self.list(3)?;
        self.bytes(b"error")?;
        self.int(request.cast_signed());
        failure.write(self)
    }

    /// Writes that one reference to an object of the master's is no longer held.
    pub(super) fn decref(&mut self, object: u64) -> Result<(), TooLong> {
        self.list(2)?;
        self.bytes(b"decref")?;
        self.int(object.cast_signed());
        Ok(())
    }

    /// Writes that a message's name means nothing to us.
    pub(super) fn did_not_understand(&mut self, name: &[u8]) -> Result<(), TooLong> {
        self.list(2)?;
        self.bytes(b"didNotUnderstand")?;
        self.bytes(name)
    }
}
