//! Works out what Python expressions stand for.

use super::scope::{Argument, Located, Scope, Value, from_environment, text};
use super::tokens::{Lexeme, Token};

/// How deep brackets may be nested.
const MAX_DEPTH: usize = 32;

/// The longest name with dots, in bytes.
const MAX_NAME: usize = 4096;

impl Scope<'_> {
    /// What an expression stands for. Calls that make a worker are noted.
    pub(super) fn evaluate(&mut self, tokens: &[Lexeme]) -> Located {
        self.nested(tokens, 0)
    }

    fn nested(&mut self, tokens: &[Lexeme], depth: usize) -> Located {
        let Some(first) = tokens.first() else { return Located::unknown(0, "is missing") };
        if depth > MAX_DEPTH {
            return Located::unknown(first.line, "is nested too deeply");
        }
        let mut reader = Reader { scope: self, rest: tokens, depth };
        let value = reader.sum();
        if reader.rest.is_empty() { value } else { Located::unknown(first.line, "is an expression, not a value") }
    }
}

/// Splits at the commas that stand in no bracket.
pub(super) fn at_commas(tokens: &[Lexeme]) -> impl Iterator<Item = &[Lexeme]> {
    let mut depth = 0_usize;
    tokens
        .split(move |lexeme| {
            depth = depth_after(depth, lexeme);
            depth == 0 && lexeme.is(",")
        })
        .filter(|part| !part.is_empty())
}

/// How many brackets are open after a token.
pub(super) fn depth_after(depth: usize, lexeme: &Lexeme) -> usize {
    match lexeme.token {
        Token::Operator("(" | "[" | "{") => depth + 1,
        Token::Operator(")" | "]" | "}") => depth.saturating_sub(1),
        _ => depth,
    }
}

/// Reads an expression from its beginning; what it leaves is not understood.
struct Reader<'t, 's, 'f> {
    scope: &'s mut Scope<'f>,
    rest: &'t [Lexeme],
    depth: usize,
}

impl<'t> Reader<'t, '_, '_> {
    fn sum(&mut self) -> Located {
        let mut left = self.product();
        while let Some(operator) = self.operator(&["+", "-"]) {
            let right = self.product();
            left = combined(left, operator, right);
        }
        left
    }

    fn product(&mut self) -> Located {
        let mut left = self.factor();
        while let Some(operator) = self.operator(&["*"]) {
            let right = self.factor();
            left = combined(left, operator, right);
        }
        left
    }

    fn factor(&mut self) -> Located {
        let negative = self.operator(&["-"]).is_some();
        let mut value = self.atom();
        loop {
            if self.operator(&["."]).is_some() {
                value = self.attribute(value);
            } else if let Some(inside) = self.bracket("(") {
                let arguments = self.arguments(inside);
                value = self.scope.call(value, arguments);
            } else if self.bracket("[").is_some() {
                value = match value.value {
                    Value::Object(path) if from_environment(&path) => {
                        Located::unknown(value.line, "comes from the environment")
                    }
                    Value::Unknown(_) => value,
                    _ => Located::unknown(value.line, "is a part of something else"),
                };
            } else {
                break;
            }
        }
        match (negative, &value.value) {
            (true, Value::Number(number)) => {
                let negative = number.checked_neg().map_or(Value::Unknown("is too large a number"), Value::Number);
                Located { value: negative, ..value }
            }
            (true, Value::Unknown(_)) => value,
            (true, _) => Located::unknown(value.line, "is an expression, not a value"),
            (false, _) => value,
        }
    }

    fn atom(&mut self) -> Located {
        if let Some(inside) = self.bracket("(") {
            return self.scope.nested(inside, self.depth + 1);
        }
        let Some((first, rest)) = self.rest.split_first() else { return Located::unknown(0, "is missing") };
        let line = first.line;
        self.rest = rest;
        match &first.token {
            Token::Name(name) => self.scope.lookup(name, line),
            Token::Number(number) => Located { value: Value::Number(*number), line },
            Token::Opaque(why) => {
                // Whatever follows: the first part can't be told.
                let _ = self.more_text();
                Located::unknown(line, why)
            }
            Token::Text(first) => {
                let more = self.more_text();
                let value = more.map_or_else(Value::Unknown, |more| text(first.clone() + &more));
                Located { value, line }
            }
            Token::Operator(_) => Located::unknown(line, "is an expression, not a value"),
        }
    }

    /// The literals that follow a string and are one with it.
    fn more_text(&mut self) -> Result<String, &'static str> {
        let mut more: Result<String, &'static str> = Ok(String::new());
        while let Some((Lexeme { token, .. }, rest)) = self.rest.split_first() {
            match (token, &mut more) {
                (Token::Text(text), Ok(more)) => more.push_str(text),
                (Token::Text(_), Err(_)) => {}
                (Token::Opaque(why), _) => more = Err(*why),
                _ => break,
            }
            self.rest = rest;
        }
        more
    }

    fn attribute(&mut self, of: Located) -> Located {
        let Some((Lexeme { token: Token::Name(name), .. }, rest)) = self.rest.split_first() else {
            return Located::unknown(of.line, "is an expression, not a value");
        };
        self.rest = rest;
        match of.value {
            Value::Object(path) if path.len() + name.len() < MAX_NAME => {
                Located { value: Value::Object(format!("{path}.{name}")), line: of.line }
            }
            Value::Unknown(_) => of,
            _ => Located::unknown(of.line, "is a part of something else"),
        }
    }

    fn arguments(&mut self, tokens: &[Lexeme]) -> Vec<Argument> {
        let mut arguments = Vec::new();
        // Nobody knows the places of those that follow.
        let mut starred = None;
        for tokens in at_commas(tokens) {
            let (name, value) = match tokens {
                [name, equals, value @ ..] if name.name().is_some() && equals.is("=") => (name.name(), value),
                [star, value @ ..] if star.is("*") || star.is("**") => {
                    starred = Some("*");
                    (starred, value)
                }
                value => (starred, value),
            };
            let name = name.map(str::to_owned);
            arguments.push(Argument { name, value: self.scope.nested(value, self.depth + 1) });
        }
        arguments
    }

    /// Takes one of these operators, if one comes next.
    fn operator(&mut self, wanted: &[&'static str]) -> Option<&'static str> {
        let (first, rest) = self.rest.split_first()?;
        let found = wanted.iter().find(|operator| first.is(operator))?;
        self.rest = rest;
        Some(found)
    }

    /// Takes a pair of brackets, if one comes next, for what is inside.
    fn bracket(&mut self, opening: &str) -> Option<&'t [Lexeme]> {
        if !self.rest.first()?.is(opening) {
            return None;
        }
        let mut depth = 0;
        let end = self.rest.iter().position(|lexeme| {
            depth = depth_after(depth, lexeme);
            depth == 0
        })?;
        let inside = &self.rest[1..end];
        self.rest = &self.rest[end + 1..];
        Some(inside)
    }
}

fn combined(left: Located, operator: &str, right: Located) -> Located {
    let value = match (left.value, operator, right.value) {
        (why @ Value::Unknown(_), _, _) => why,
        (_, _, why @ Value::Unknown(_)) => return Located { value: why, line: right.line },
        (Value::Text(left), "+", Value::Text(right)) => text(left + &right),
        (Value::Number(left), operator, Value::Number(right)) => match operator {
            "+" => left.checked_add(right),
            "-" => left.checked_sub(right),
            _ => left.checked_mul(right),
        }
        .map_or(Value::Unknown("is too large a number"), Value::Number),
        _ => Value::Unknown("is an expression, not a value"),
    };
    Located { value, line: left.line }
}
