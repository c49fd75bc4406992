//! Splits Python source into logical lines of tokens: as much of the language as a `buildbot.tac` may hold.

use thiserror::Error;

use super::string::{self, Literal};

/// A word of Python.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Name(String),
    Number(i64),
    Text(String),
    /// A literal whose value can't be told, and why.
    Opaque(&'static str),
    /// An operator or a bracket; `?` stands for a character that Python does not have.
    Operator(&'static str),
}

/// A token and the line that it begins on, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lexeme {
    pub token: Token,
    pub line: usize,
}

impl Lexeme {
    pub(super) fn is(&self, operator: &str) -> bool {
        matches!(&self.token, Token::Operator(text) if *text == operator)
    }

    pub(super) fn name(&self) -> Option<&str> {
        match &self.token {
            Token::Name(name) => Some(name),
            _ => None,
        }
    }
}

/// One statement, or the head of a block; never empty.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// How far it is indented.
    pub indent: usize,
    pub tokens: Vec<Lexeme>,
}

/// Why a file is not Python.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}: {what}")]
pub(super) struct SyntaxError {
    pub line: usize,
    pub what: &'static str,
}

/// The operators, longer ones before those they begin with.
const OPERATORS: [&str; 48] = [
    "**=", "//=", ">>=", "<<=", "...", "==", "!=", "<=", ">=", "<>", "->", ":=", "+=", "-=", "*=", "/=", "%=", "&=",
    "|=", "^=", "@=", "**", "//", "<<", ">>", "(", ")", "[", "]", "{", "}", ",", ":", ";", ".", "+", "-", "*", "/",
    "%", "=", "<", ">", "&", "|", "^", "~", "@",
];

/// Splits a source into its statements.
///
/// # Errors
/// A string or a bracket is not closed, or a bracket closes what was not opened. No error repeats what the file says.
pub(super) fn lines(source: &str) -> Result<Vec<Line>, SyntaxError> {
    let mut lexer = Lexer {
        rest: source.strip_prefix('\u{feff}').unwrap_or(source),
        line: 1,
        indent: 0,
        open: Vec::new(),
        tokens: Vec::new(),
        lines: Vec::new(),
    };
    lexer.indentation();
    while !lexer.rest.is_empty() {
        lexer.token()?;
    }
    if let Some((_, line)) = lexer.open.pop() {
        return Err(SyntaxError { line, what: "a bracket is never closed" });
    }
    lexer.end_statement();
    Ok(lexer.lines)
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    indent: usize,
    /// The brackets that are open, each by what closes it, and their lines.
    open: Vec<(&'static str, usize)>,
    tokens: Vec<Lexeme>,
    lines: Vec<Line>,
}

impl Lexer<'_> {
    /// Takes one token, or what stands between tokens.
    fn token(&mut self) -> Result<(), SyntaxError> {
        let Some(first) = self.rest.chars().next() else { return Ok(()) };
        if first == '\n' {
            self.skip(1);
            self.line += 1;
            if self.open.is_empty() {
                self.end_statement();
                self.indentation();
            }
        } else if let Some(length) = continuation(self.rest) {
            self.skip(length);
            self.line += 1;
        } else if first == '#' {
            self.skip(self.rest.find('\n').unwrap_or(self.rest.len()));
        } else if first.is_whitespace() {
            self.skip(first.len_utf8());
        } else if let Some(literal) = string::literal(self.rest) {
            self.literal(literal)?;
        } else if first.is_ascii_digit() {
            let length = length_of(self.rest, |c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
            let token = number(&self.rest[..length]);
            self.push(token);
            self.skip(length);
        } else if first.is_alphabetic() || first == '_' {
            let length = length_of(self.rest, |c| c.is_alphanumeric() || c == '_');
            let token = Token::Name(self.rest[..length].to_owned());
            self.push(token);
            self.skip(length);
        } else {
            self.operator(first)?;
        }
        Ok(())
    }

    fn literal(&mut self, literal: Literal) -> Result<(), SyntaxError> {
        let Literal { value, length } = literal;
        let Some(value) = value else {
            return Err(SyntaxError { line: self.line, what: "a string is never closed" });
        };
        let newlines = self.rest[..length].matches('\n').count();
        self.push(match value {
            Ok(text) => Token::Text(text),
            Err(why) => Token::Opaque(why),
        });
        self.skip(length);
        self.line += newlines;
        Ok(())
    }

    fn operator(&mut self, first: char) -> Result<(), SyntaxError> {
        let known = OPERATORS.into_iter().find(|operator| self.rest.starts_with(operator));
        let (operator, length) = known.map_or(("?", first.len_utf8()), |operator| (operator, operator.len()));
        match operator {
            "(" => self.open.push((")", self.line)),
            "[" => self.open.push(("]", self.line)),
            "{" => self.open.push(("}", self.line)),
            ")" | "]" | "}" if self.open.pop().is_none_or(|(closes, _)| closes != operator) => {
                return Err(SyntaxError { line: self.line, what: "a bracket closes what was not opened" });
            }
            _ => {}
        }
        self.skip(length);
        if operator == ";" && self.open.is_empty() {
            self.end_statement();
        } else {
            self.push(Token::Operator(operator));
        }
        Ok(())
    }

    /// Measures the indentation of a new line. A tab goes to the next multiple of eight, as in Python.
    fn indentation(&mut self) {
        self.indent = 0;
        while let Some(c @ (' ' | '\t' | '\x0c')) = self.rest.chars().next() {
            self.indent = match c {
                ' ' => self.indent + 1,
                '\t' => (self.indent / 8 + 1) * 8,
                _ => 0,
            };
            self.skip(1);
        }
    }

    fn end_statement(&mut self) {
        if !self.tokens.is_empty() {
            self.lines.push(Line { indent: self.indent, tokens: std::mem::take(&mut self.tokens) });
        }
    }

    fn push(&mut self, token: Token) {
        self.tokens.push(Lexeme { token, line: self.line });
    }

    fn skip(&mut self, length: usize) {
        self.rest = &self.rest[length..];
    }
}

/// The length of a backslash and the end of line that it joins to the next.
fn continuation(rest: &str) -> Option<usize> {
    ["\\\n", "\\\r\n"].into_iter().find(|text| rest.starts_with(text)).map(str::len)
}

fn length_of(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

/// Reads a whole number. One that begins with a zero is octal, as it was in Python 2.
fn number(text: &str) -> Token {
    let plain = text.replace('_', "").to_ascii_lowercase();
    let (digits, radix) = match plain.get(..2) {
        Some("0x") => (&plain[2..], 16),
        Some("0o") => (&plain[2..], 8),
        Some("0b") => (&plain[2..], 2),
        Some(_) if plain.starts_with('0') => (&plain[1..], 8),
        _ => (plain.as_str(), 10),
    };
    i64::from_str_radix(digits, radix).map_or(Token::Opaque("is not a whole number"), Token::Number)
}
