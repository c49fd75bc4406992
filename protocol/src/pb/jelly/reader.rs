use std::collections::HashMap;

use super::super::banana::{Expression, MAX_DEPTH, MAX_MESSAGE_SIZE};
use super::{Jelly, JellyError, Moment, Sequence};

/// Reads one expression, in which references have a meaning of their own.
pub(super) struct Reader<'a> {
    remotes: &'a mut Vec<u64>,
    shared: HashMap<i64, Shared>,
    /// What the value read so far takes, in bytes.
    size: usize,
    /// What the copies of shared values take.
    copies: usize,
}

struct Shared {
    value: Jelly,
    size: usize,
    height: usize,
}

/// A value and how many levels it has.
type Measured = (Jelly, usize);

impl<'a> Reader<'a> {
    pub(super) fn new(remotes: &'a mut Vec<u64>) -> Self {
        Reader { remotes, shared: HashMap::new(), size: 0, copies: 0 }
    }

    pub(super) fn read(mut self, expression: Expression) -> Result<Jelly, JellyError> {
        Ok(self.value(expression, 0)?.0)
    }

    fn value(&mut self, expression: Expression, depth: usize) -> Result<Measured, JellyError> {
        if depth >= MAX_DEPTH {
            return Err(JellyError::TooDeep);
        }
        let value = match expression {
            Expression::Int(number) => Jelly::Int(number),
            Expression::BigInt(_) => return Err(JellyError::BigInt),
            Expression::Float(number) => Jelly::Float(number),
            Expression::Bytes(bytes) => {
                self.charge(bytes.len())?;
                Jelly::Bytes(bytes)
            }
            Expression::List(items) => {
                let mut items = items.into_iter();
                let Some(Expression::Bytes(tag)) = items.next() else { return Err(JellyError::Untagged) };
                self.charge(size_of::<Jelly>())?;
                return self.tagged(&tag, items.collect(), depth);
            }
        };
        self.charge(size_of::<Jelly>())?;
        Ok((value, 1))
    }

    fn tagged(&mut self, tag: &[u8], parts: Vec<Expression>, depth: usize) -> Result<Measured, JellyError> {
        let tag = std::str::from_utf8(tag).map_err(|_| JellyError::Insecure("not text".to_owned()))?;
        let sequence = match tag {
            "list" => Sequence::List,
            "tuple" => Sequence::Tuple,
            "set" => Sequence::Set,
            "frozenset" => Sequence::FrozenSet,
            "dictionary" => return self.dictionary(parts, depth),
            "reference" => return self.reference(parts, depth),
            "dereference" => return self.dereference(&parts, depth),
            class if class.contains('.') => return self.copied(class, parts, depth),
            _ => return Ok((self.simple(tag, parts)?, 1)),
        };
        let mut height = 0;
        let mut items = Vec::new();
        for part in parts {
            let (item, levels) = self.value(part, depth + 1)?;
            height = height.max(levels);
            items.push(item);
        }
        Ok((Jelly::Sequence(sequence, items), height + 1))
    }

    fn dictionary(&mut self, parts: Vec<Expression>, depth: usize) -> Result<Measured, JellyError> {
        let mut height = 0;
        let mut pairs = Vec::new();
        for part in parts {
            let Expression::List(pair) = part else { return Err(malformed("dictionary")) };
            let [key, value] = <[_; 2]>::try_from(pair).map_err(|_| malformed("dictionary"))?;
            let (key, key_levels) = self.value(key, depth + 1)?;
            let (value, value_levels) = self.value(value, depth + 1)?;
            height = height.max(key_levels).max(value_levels);
            pairs.push((key, value));
        }
        Ok((Jelly::Dictionary(pairs), height + 1))
    }

    fn copied(&mut self, class: &str, parts: Vec<Expression>, depth: usize) -> Result<Measured, JellyError> {
        let [state] = <[_; 1]>::try_from(parts).map_err(|_| malformed(class))?;
        self.charge(class.len())?;
        let (state, height) = self.value(state, depth + 1)?;
        Ok((Jelly::Copied { class: class.to_owned(), state: Box::new(state) }, height + 1))
    }

    fn reference(&mut self, parts: Vec<Expression>, depth: usize) -> Result<Measured, JellyError> {
        let Ok([Expression::Int(number), value]) = <[_; 2]>::try_from(parts) else {
            return Err(malformed("reference"));
        };
        let before = self.size;
        let (value, height) = self.value(value, depth + 1)?;
        let size = self.size - before;
        self.copy(size)?;
        let shared = Shared { value: value.clone(), size, height };
        if self.shared.insert(number, shared).is_some() {
            return Err(malformed("reference"));
        }
        Ok((value, height))
    }

    fn dereference(&mut self, parts: &[Expression], depth: usize) -> Result<Measured, JellyError> {
        let [Expression::Int(number)] = parts else { return Err(malformed("dereference")) };
        // What is referred to comes first, unless the value contains itself.
        let Shared { size, height, .. } = *self.shared.get(number).ok_or(JellyError::Cyclic)?;
        if depth + height > MAX_DEPTH {
            return Err(JellyError::TooDeep);
        }
        self.charge(size)?;
        let shared = self.shared.get(number).ok_or(JellyError::Cyclic)?;
        Ok((shared.value.clone(), height))
    }

    /// Values that have no values in them.
    fn simple(&mut self, tag: &str, parts: Vec<Expression>) -> Result<Jelly, JellyError> {
        let mut text = |bytes: Vec<u8>| {
            self.charge(bytes.len())?;
            String::from_utf8(bytes).map_err(|_| malformed(tag))
        };
        let mut parts = parts.into_iter();
        let value = match (tag, parts.next()) {
            ("None", None) => Jelly::None,
            ("unicode", Some(Expression::Bytes(bytes))) => Jelly::Str(text(bytes)?),
            ("boolean", Some(Expression::Bytes(truth))) => match truth.as_slice() {
                b"true" => Jelly::Bool(true),
                b"false" => Jelly::Bool(false),
                _ => return Err(malformed(tag)),
            },
            ("remote", Some(Expression::Int(number))) => {
                let number = u64::try_from(number).map_err(|_| malformed(tag))?;
                self.remotes.push(number);
                Jelly::Remote(number)
            }
            ("local", Some(Expression::Int(number))) => {
                Jelly::Local(u64::try_from(number).map_err(|_| malformed(tag))?)
            }
            ("decimal", Some(Expression::Int(number))) => match parts.next() {
                Some(Expression::Int(exponent)) => Jelly::Decimal(number, exponent),
                _ => return Err(malformed(tag)),
            },
            ("datetime", Some(Expression::Bytes(bytes))) => Jelly::Moment(Moment::DateTime, text(bytes)?),
            ("date", Some(Expression::Bytes(bytes))) => Jelly::Moment(Moment::Date, text(bytes)?),
            ("time", Some(Expression::Bytes(bytes))) => Jelly::Moment(Moment::Time, text(bytes)?),
            ("timedelta", Some(Expression::Bytes(bytes))) => Jelly::Moment(Moment::TimeDelta, text(bytes)?),
            (
                "None" | "unicode" | "boolean" | "remote" | "local" | "decimal" | "datetime" | "date" | "time"
                | "timedelta",
                _,
            ) => return Err(malformed(tag)),
            _ => return Err(JellyError::Insecure(tag.chars().take(100).collect())),
        };
        if parts.next().is_some() { Err(malformed(tag)) } else { Ok(value) }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), JellyError> {
        self.size += bytes;
        self.copy(0)
    }

    fn copy(&mut self, bytes: usize) -> Result<(), JellyError> {
        self.copies += bytes;
        if self.size + self.copies > MAX_MESSAGE_SIZE { Err(JellyError::TooLarge) } else { Ok(()) }
    }
}

pub(super) fn malformed(tag: &str) -> JellyError {
    JellyError::Malformed(tag.chars().take(100).collect())
}
