use super::super::banana::{Encoder, TooLong};
use super::{Jelly, Moment, Sequence};
use crate::value::Value;

impl Jelly {
    /// Writes this value. Nothing is shared in it.
    ///
    /// # Errors
    /// A part of it is too long for Banana.
    pub fn write(&self, encoder: &mut Encoder) -> Result<(), TooLong> {
        match self {
            Jelly::None => encoder.none()?,
            Jelly::Bool(truth) => encoder.boolean(*truth)?,
            Jelly::Int(number) => encoder.int(*number),
            Jelly::Float(number) => encoder.float(*number),
            Jelly::Bytes(bytes) => encoder.bytes(bytes)?,
            Jelly::Str(text) => encoder.text(text)?,
            Jelly::Sequence(sequence, items) => {
                encoder.tagged(sequence.tag(), items.len())?;
                items.iter().try_for_each(|item| item.write(encoder))?;
            }
            Jelly::Dictionary(pairs) => {
                encoder.dictionary(pairs.len())?;
                for (key, value) in pairs {
                    encoder.list(2)?;
                    key.write(encoder)?;
                    value.write(encoder)?;
                }
            }
            Jelly::Decimal(number, exponent) => {
                encoder.tagged("decimal", 2)?;
                encoder.int(*number);
                encoder.int(*exponent);
            }
            Jelly::Moment(moment, text) => {
                encoder.tagged(moment.tag(), 1)?;
                encoder.bytes(text.as_bytes())?;
            }
            Jelly::Remote(number) => encoder.object("remote", *number)?,
            Jelly::Local(number) => encoder.object("local", *number)?,
            Jelly::Copied { class, state } => {
                encoder.tagged(class, 1)?;
                state.write(encoder)?;
            }
        }
        Ok(())
    }
}

impl Sequence {
    fn tag(self) -> &'static str {
        match self {
            Sequence::List => "list",
            Sequence::Tuple => "tuple",
            Sequence::Set => "set",
            Sequence::FrozenSet => "frozenset",
        }
    }
}

impl Moment {
    fn tag(self) -> &'static str {
        match self {
            Moment::DateTime => "datetime",
            Moment::Date => "date",
            Moment::Time => "time",
            Moment::TimeDelta => "timedelta",
        }
    }
}

/// Jelly, written piece by piece.
impl Encoder {
    /// Begins a value of several parts.
    pub(in crate::pb) fn tagged(&mut self, tag: &str, parts: usize) -> Result<(), TooLong> {
        self.list(parts + 1)?;
        self.bytes(tag.as_bytes())
    }

    /// Begins a tuple.
    pub(in crate::pb) fn tuple(&mut self, items: usize) -> Result<(), TooLong> {
        self.tagged("tuple", items)
    }

    /// Begins a dictionary: as many times [`Encoder::key`] and a value.
    pub(in crate::pb) fn dictionary(&mut self, pairs: usize) -> Result<(), TooLong> {
        self.tagged("dictionary", pairs)
    }

    /// Begins a pair of a dictionary.
    pub(in crate::pb) fn key(&mut self, key: &str) -> Result<(), TooLong> {
        self.list(2)?;
        self.text(key)
    }

    pub(in crate::pb) fn none(&mut self) -> Result<(), TooLong> {
        self.tagged("None", 0)
    }

    pub(in crate::pb) fn boolean(&mut self, truth: bool) -> Result<(), TooLong> {
        self.tagged("boolean", 1)?;
        self.bytes(if truth { b"true" } else { b"false" })
    }

    pub(in crate::pb) fn text(&mut self, text: &str) -> Result<(), TooLong> {
        self.tagged("unicode", 1)?;
        self.bytes(text.as_bytes())
    }

    /// Writes a reference to an object: a `remote` is ours, a `local` the other side's.
    pub(in crate::pb) fn object(&mut self, tag: &str, number: u64) -> Result<(), TooLong> {
        self.tagged(tag, 1)?;
        self.int(number.cast_signed());
        Ok(())
    }

    pub(in crate::pb) fn value(&mut self, value: &Value) -> Result<(), TooLong> {
        match value {
            Value::Nil => self.none()?,
            Value::Bool(truth) => self.boolean(*truth)?,
            Value::Int(number) => self.int(*number),
            Value::Float(number) => self.float(*number),
            Value::Str(text) => self.text(text)?,
            Value::Bytes(bytes) => self.bytes(bytes)?,
            Value::List(items) => {
                self.tagged("list", items.len())?;
                items.iter().try_for_each(|item| self.value(item))?;
            }
            Value::Map(pairs) => {
                self.dictionary(pairs.len())?;
                for (key, value) in pairs {
                    self.key(key)?;
                    self.value(value)?;
                }
            }
        }
        Ok(())
    }
}
