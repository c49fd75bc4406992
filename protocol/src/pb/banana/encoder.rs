use super::{
    BigInt, Expression, FLOAT, INT, LIST, LONG_INT, LONG_NEGATIVE, NEGATIVE, SIZE_LIMIT, STRING, TooLong, WORD, WORDS,
};

/// Writes expressions as bytes, in the dialect `pb`.
#[derive(Default)]
pub struct Encoder {
    out: Vec<u8>,
}

impl Encoder {
    /// What was written since it was last taken.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Writes all of what `write` writes, or nothing if it fails.
    ///
    /// # Errors
    /// That of `write`.
    pub fn whole(&mut self, write: impl FnOnce(&mut Self) -> Result<(), TooLong>) -> Result<(), TooLong> {
        let start = self.out.len();
        let result = write(self);
        if result.is_err() {
            self.out.truncate(start);
        }
        result
    }

    /// Begins a list: its items are what is written next.
    ///
    /// # Errors
    /// It has more than [`SIZE_LIMIT`] items.
    pub fn list(&mut self, items: usize) -> Result<(), TooLong> {
        self.sized(items, LIST)
    }

    /// Writes an integer.
    pub fn int(&mut self, number: i64) {
        let kind = match number {
            0x8000_0000.. => LONG_INT,
            0..=0x7fff_ffff => INT,
            -0x8000_0000..=-1 => NEGATIVE,
            _ => LONG_NEGATIVE,
        };
        self.digits(number.unsigned_abs());
        self.out.push(kind);
    }

    /// Writes a float.
    pub fn float(&mut self, number: f64) {
        self.out.push(FLOAT);
        self.out.extend_from_slice(&number.to_be_bytes());
    }

    /// Writes a byte string, as a number if it is a word of the vocabulary.
    ///
    /// # Errors
    /// It is longer than [`SIZE_LIMIT`].
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        match WORDS.iter().skip(1).position(|word| word.as_bytes() == bytes) {
            Some(place) => {
                self.digits(place as u64 + 1);
                self.out.push(WORD);
                Ok(())
            }
            None => self.plain_bytes(bytes),
        }
    }

    /// Writes a byte string as it is; what is said before the dialect is agreed on.
    ///
    /// # Errors
    /// It is longer than [`SIZE_LIMIT`].
    pub fn plain_bytes(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        self.sized(bytes.len(), STRING)?;
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes any expression.
    ///
    /// # Errors
    /// A list or byte string in it is longer than [`SIZE_LIMIT`].
    pub fn expression(&mut self, expression: &Expression) -> Result<(), TooLong> {
        match expression {
            Expression::Int(number) => self.int(*number),
            Expression::BigInt(BigInt { negative, digits }) => {
                self.out.extend_from_slice(digits);
                self.out.push(if *negative { LONG_NEGATIVE } else { LONG_INT });
            }
            Expression::Float(number) => self.float(*number),
            Expression::Bytes(bytes) => self.bytes(bytes)?,
            Expression::List(items) => {
                self.list(items.len())?;
                items.iter().try_for_each(|item| self.expression(item))?;
            }
        }
        Ok(())
    }

    fn sized(&mut self, length: usize, kind: u8) -> Result<(), TooLong> {
        if length > SIZE_LIMIT {
            return Err(TooLong { length });
        }
        self.digits(length as u64);
        self.out.push(kind);
        Ok(())
    }

    fn digits(&mut self, mut number: u64) {
        loop {
            self.out.push((number & 0x7f) as u8);
            number >>= 7;
            if number == 0 {
                return;
            }
        }
    }
}
