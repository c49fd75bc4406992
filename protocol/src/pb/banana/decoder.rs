use super::{
    BigInt, Expression, FLOAT, INT, LIST, LONG_INT, LONG_NEGATIVE, MAX_DEPTH, MAX_DIGITS, MAX_MESSAGE_SIZE, NEGATIVE,
    SIZE_LIMIT, STRING, Violation, WORD, WORDS,
};

/// An emptied buffer larger than this is given back.
const KEPT_CAPACITY: usize = 64 * 1024;

/// Makes expressions of bytes that arrive in pieces.
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// How much of the buffer has been read.
    read: usize,
    /// The lists that lack items, the outermost first.
    open: Vec<OpenList>,
    /// What the expression being read takes so far.
    size: usize,
}

struct OpenList {
    missing: usize,
    items: Vec<Expression>,
}

enum Token {
    Open(usize),
    Item(Expression),
}

impl Decoder {
    /// Takes bytes, wherever they were split.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_CAPACITY {
            self.buffer = Vec::new();
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole expression; nothing if it takes more bytes.
    ///
    /// # Errors
    /// The bytes break a rule. What follows them has no meaning: the decoder is not to be used any more.
    pub fn next_expression(&mut self) -> Result<Option<Expression>, Violation> {
        while let Some(token) = self.token()? {
            let mut item = match token {
                Token::Item(item) => item,
                Token::Open(0) => Expression::List(Vec::new()),
                Token::Open(_) if self.open.len() == MAX_DEPTH => return Err(Violation::TooDeep),
                Token::Open(missing) => {
                    self.open.push(OpenList { missing, items: Vec::new() });
                    continue;
                }
            };
            loop {
                let Some(list) = self.open.last_mut() else {
                    self.size = 0;
                    return Ok(Some(item));
                };
                list.items.push(item);
                list.missing -= 1;
                if list.missing > 0 {
                    break;
                }
                item = Expression::List(self.open.pop().map(|list| list.items).unwrap_or_default());
            }
        }
        Ok(None)
    }

    fn token(&mut self) -> Result<Option<Token>, Violation> {
        let rest = &self.buffer[self.read..];
        let count = rest.iter().take(MAX_DIGITS + 1).take_while(|byte| **byte < 0x80).count();
        if count > MAX_DIGITS {
            return Err(Violation::TooManyDigits);
        }
        let Some((&kind, data)) = rest[count..].split_first() else { return Ok(None) };
        let digits = &rest[..count];
        let mut data_length = 0;
        let token = match kind {
            LIST => Token::Open(length(digits)?),
            INT | LONG_INT => Token::Item(integer(false, digits)),
            NEGATIVE | LONG_NEGATIVE => Token::Item(integer(true, digits)),
            STRING => {
                data_length = length(digits)?;
                if self.size + data_length > MAX_MESSAGE_SIZE {
                    return Err(Violation::TooLarge);
                }
                let Some(bytes) = data.get(..data_length) else { return Ok(None) };
                Token::Item(Expression::Bytes(bytes.to_vec()))
            }
            FLOAT => {
                let Some(bytes) = data.first_chunk() else { return Ok(None) };
                data_length = bytes.len();
                Token::Item(Expression::Float(f64::from_be_bytes(*bytes)))
            }
            WORD => {
                let word = length(digits).ok().and_then(|index| WORDS.get(index)).filter(|word| !word.is_empty());
                Token::Item(Expression::Bytes(word.ok_or(Violation::UnknownWord)?.as_bytes().to_vec()))
            }
            other => return Err(Violation::UnknownType(other)),
        };
        self.read += count + 1 + data_length;
        self.size += size_of::<Expression>() + data_length;
        if self.size > MAX_MESSAGE_SIZE { Err(Violation::TooLarge) } else { Ok(Some(token)) }
    }
}

/// A list's or byte string's length.
fn length(digits: &[u8]) -> Result<usize, Violation> {
    match integer(false, digits) {
        Expression::Int(length) => {
            usize::try_from(length).ok().filter(|length| *length <= SIZE_LIMIT).ok_or(Violation::TooLong)
        }
        _ => Err(Violation::TooLong),
    }
}

fn integer(negative: bool, digits: &[u8]) -> Expression {
    let significant = digits.iter().rposition(|digit| *digit != 0).map_or(0, |last| last + 1);
    let digits = &digits[..significant];
    // 18 digits are 126 bits.
    if digits.len() <= 18 {
        let magnitude = digits.iter().rev().fold(0_i128, |number, digit| number << 7 | i128::from(*digit));
        if let Ok(number) = i64::try_from(if negative { -magnitude } else { magnitude }) {
            return Expression::Int(number);
        }
    }
    Expression::BigInt(BigInt { negative, digits: digits.to_vec() })
}
