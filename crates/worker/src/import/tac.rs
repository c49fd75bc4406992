//! Reads a `buildbot.tac`: what its statements set, the workers it makes, and what else it does.
//!
//! Nothing is executed. Statements are followed from top to bottom; a name that is set in a block that may not run, or
//! to something that only running would tell, is unknown from there on.

use std::collections::BTreeMap;
use std::path::Path;

use super::expression::{at_commas, depth_after};
use super::scope::{Located, Scope, Value, WorkerCall};
use super::tokens::{self, Lexeme, SyntaxError, Token};

/// What a `buildbot.tac` says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tac {
    /// The calls that make a worker.
    pub workers: Vec<WorkerCall>,
    /// The statements that do something of their own, in the file's order.
    pub effects: Vec<Effect>,
}

/// A statement that does more than name a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Effect {
    pub line: usize,
    /// What it works on, by its full name: `os.environ`; empty if it has none.
    pub target: String,
}

/// Reads the text of the file at a path, which is absolute.
///
/// # Errors
/// It is not Python.
pub(super) fn parse(file: &Path, source: &str) -> Result<Tac, SyntaxError> {
    let mut reading = Reading {
        scope: Scope { file, names: BTreeMap::new(), calls: Vec::new(), conditional: false },
        effects: Vec::new(),
        blocks: Vec::new(),
    };
    for line in tokens::lines(source)? {
        reading.line(line.indent, &line.tokens);
    }
    Ok(Tac { workers: reading.scope.calls, effects: reading.effects })
}

/// Whether the statements of a block run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runs {
    Yes,
    No,
    Perhaps,
}

struct Block {
    /// The indentation of its head.
    indent: usize,
    runs: Runs,
    /// Whether an `else` after it would run.
    otherwise: Runs,
}

struct Reading<'a> {
    scope: Scope<'a>,
    effects: Vec<Effect>,
    /// The blocks that are open, the outermost first.
    blocks: Vec<Block>,
}

const HEADS: [&str; 13] =
    ["if", "elif", "else", "for", "while", "try", "except", "finally", "with", "def", "class", "async", "match"];

impl Reading<'_> {
    fn line(&mut self, indent: usize, tokens: &[Lexeme]) {
        let mut otherwise = Runs::Perhaps;
        while self.blocks.last().is_some_and(|block| block.indent >= indent) {
            if let Some(block) = self.blocks.pop()
                && block.indent == indent
            {
                otherwise = block.otherwise;
            }
        }
        let runs = self.blocks.iter().map(|block| block.runs).fold(Runs::Yes, both);
        let word = tokens.first().and_then(Lexeme::name).unwrap_or_default();
        let is_head = HEADS.contains(&word) && first_at_top(tokens, ":").is_some();
        if is_head || tokens.last().is_some_and(|last| last.is(":")) {
            self.head(indent, tokens, runs, otherwise);
        } else if runs != Runs::No {
            self.scope.conditional = runs == Runs::Perhaps;
            self.statement(tokens);
        }
    }

    /// The head of a block, and the statement that may follow it on the same line.
    fn head(&mut self, indent: usize, tokens: &[Lexeme], outer: Runs, otherwise: Runs) {
        let colon = first_at_top(tokens, ":").unwrap_or(tokens.len() - 1);
        let (head, body) = (&tokens[..colon], &tokens[colon + 1..]);
        let word = head.first().and_then(Lexeme::name).unwrap_or_default();
        let (runs, otherwise) = match word {
            "if" | "elif" => {
                let truth = self.condition(&head[1..]);
                let reached = if word == "if" { Runs::Yes } else { otherwise };
                (both(reached, truth), both(reached, opposite(truth)))
            }
            "else" => (otherwise, Runs::Perhaps),
            _ => (Runs::Perhaps, Runs::Perhaps),
        };
        if both(outer, runs) != Runs::No {
            self.forget_bound_by(word, head);
        }
        self.blocks.push(Block { indent, runs, otherwise });
        let runs = both(outer, runs);
        if !body.is_empty() && runs != Runs::No {
            self.scope.conditional = runs == Runs::Perhaps;
            self.statement(body);
        }
    }

    /// Whether `a == b` or `a != b` holds.
    fn condition(&mut self, tokens: &[Lexeme]) -> Runs {
        let Some(at) = first_at_top(tokens, "==").or_else(|| first_at_top(tokens, "!=")) else { return Runs::Perhaps };
        let known = |value: &Value| !matches!(value, Value::Unknown(_) | Value::Object(_) | Value::Worker(_));
        let (left, right) = (self.scope.evaluate(&tokens[..at]).value, self.scope.evaluate(&tokens[at + 1..]).value);
        match known(&left) && known(&right) {
            true if (left == right) == tokens[at].is("==") => Runs::Yes,
            true => Runs::No,
            false => Runs::Perhaps,
        }
    }

    /// Names that a head binds, as in `for NAME in` and `with … as NAME`.
    fn forget_bound_by(&mut self, word: &str, head: &[Lexeme]) {
        let mut binds = matches!(word, "for" | "def" | "class" | "async");
        for lexeme in &head[usize::from(!head.is_empty())..] {
            match lexeme.name() {
                Some("as") => binds = true,
                Some("in") => binds = false,
                Some(name) if binds => self.set(name, unknown(lexeme.line, "is set inside a block")),
                _ => binds &= !lexeme.is("("),
            }
        }
    }

    fn statement(&mut self, tokens: &[Lexeme]) {
        match tokens.first().and_then(Lexeme::name) {
            Some("import") => return self.import(&tokens[1..], None),
            Some("from") => {
                let Some(at) = tokens.iter().position(|lexeme| lexeme.name() == Some("import")) else { return };
                return self.import(&tokens[at + 1..], Some(&dotted(&tokens[1..at])));
            }
            Some("pass" | "global" | "nonlocal" | "print" | "assert" | "return") => return,
            _ => {}
        }
        if let Some(at) = tokens.iter().position(is_augmented) {
            return self.assign(&tokens[..at], &unknown(tokens[at].line, "is changed step by step"));
        }
        let Some(last) = last_at_top(tokens, "=") else { return self.expression(tokens) };
        let (targets, value) = (&tokens[..last], &tokens[last + 1..]);
        let changes_user = |lexeme: &Lexeme| matches!(lexeme.name(), Some("uid" | "gid"));
        if let Some(line) = value.iter().find(|lexeme| changes_user(lexeme)).map(|lexeme| lexeme.line)
            && self.full_name(value).ends_with("service.Application")
        {
            self.effects.push(Effect { line, target: "service.Application".to_owned() });
        }
        let mut rest = targets;
        let mut evaluated = None;
        loop {
            let (target, more) = match first_at_top(rest, "=") {
                Some(at) => (&rest[..at], Some(&rest[at + 1..])),
                None => (rest, None),
            };
            let target = &target[..first_at_top(target, ":").unwrap_or(target.len())];
            let (names, values): (Vec<_>, Vec<_>) = (at_commas(target).collect(), at_commas(value).collect());
            if names.len() > 1 && names.len() == values.len() {
                for (name, value) in names.into_iter().zip(values) {
                    let value = self.scope.evaluate(value);
                    self.assign(name, &value);
                }
            } else {
                let value = evaluated.get_or_insert_with(|| self.scope.evaluate(value)).clone();
                for name in &names {
                    let value = if names.len() == 1 { value.clone() } else { unknown(value.line, "is one of several") };
                    self.assign(name, &value);
                }
            }
            match more {
                Some(more) => rest = more,
                None => break,
            }
        }
    }

    fn assign(&mut self, target: &[Lexeme], value: &Located) {
        match target {
            [Lexeme { token: Token::Name(name), .. }] => self.set(name, value.clone()),
            [] => {}
            [first, ..] => self.effects.push(Effect { line: first.line, target: self.full_name(target) }),
        }
    }

    fn set(&mut self, name: &str, value: Located) {
        let value = match value.value {
            // A worker stays one: its call says that it may not run.
            Value::Worker(_) => value,
            _ if self.scope.conditional => unknown(value.line, "is set inside a block"),
            _ => value,
        };
        self.scope.names.insert(name.to_owned(), value);
    }

    /// A statement that is an expression: a call, most often.
    fn expression(&mut self, tokens: &[Lexeme]) {
        let workers = self.scope.calls.len();
        self.scope.evaluate(tokens);
        let target = self.full_name(tokens);
        let makes_worker = self.scope.calls.len() > workers;
        let is_text = tokens.iter().all(|lexeme| matches!(lexeme.token, Token::Text(_)));
        let belongs_to_worker = tokens.first().and_then(Lexeme::name).is_some_and(|name| {
            let known = self.scope.names.get(name).map(|known| &known.value);
            matches!(known, Some(Value::Worker(_))) && target.ends_with(".setServiceParent")
        });
        if !makes_worker && !is_text && !belongs_to_worker && target != "application.setComponent" {
            self.effects.push(Effect { line: tokens[0].line, target });
        }
    }

    /// `import a.b`, `import a.b as c`, `from a import b as c`.
    fn import(&mut self, tokens: &[Lexeme], from: Option<&str>) {
        let inside = match tokens {
            [first, inside @ .., last] if first.is("(") && last.is(")") => inside,
            _ => tokens,
        };
        for part in at_commas(inside).filter(|part| part[0].name().is_some()) {
            let line = part[0].line;
            let renamed = part.iter().position(|lexeme| lexeme.name() == Some("as"));
            let path = dotted(&part[..renamed.unwrap_or(part.len())]);
            let alias = renamed.and_then(|at| part.get(at + 1)).and_then(Lexeme::name);
            let (name, object) = match (from, alias) {
                (Some(module), alias) => (alias.unwrap_or(&path).to_owned(), format!("{module}.{path}")),
                (None, Some(alias)) => (alias.to_owned(), path),
                (None, None) => {
                    let top = path.split('.').next().unwrap_or_default().to_owned();
                    (top.clone(), top)
                }
            };
            // What is imported is what it is wherever the import stands.
            self.scope.names.insert(name, Located { value: Value::Object(object), line });
        }
    }

    /// The dotted name that tokens begin with, its first part as the imports have it.
    fn full_name(&self, tokens: &[Lexeme]) -> String {
        let length = tokens.iter().position(|lexeme| lexeme.name().is_none() && !lexeme.is("."));
        let name = dotted(&tokens[..length.unwrap_or(tokens.len())]);
        let (first, rest) = name.split_at(name.find('.').unwrap_or(name.len()));
        match self.scope.names.get(first).map(|known| &known.value) {
            Some(Value::Object(path)) => format!("{path}{rest}"),
            _ => name,
        }
    }
}

fn both(a: Runs, b: Runs) -> Runs {
    match (a, b) {
        (Runs::No, _) | (_, Runs::No) => Runs::No,
        (Runs::Yes, Runs::Yes) => Runs::Yes,
        _ => Runs::Perhaps,
    }
}

fn opposite(runs: Runs) -> Runs {
    match runs {
        Runs::Yes => Runs::No,
        Runs::No => Runs::Yes,
        Runs::Perhaps => Runs::Perhaps,
    }
}

fn unknown(line: usize, why: &'static str) -> Located {
    Located { value: Value::Unknown(why), line }
}

fn is_augmented(lexeme: &Lexeme) -> bool {
    let Token::Operator(operator) = lexeme.token else { return false };
    operator.len() > 1 && operator.ends_with('=') && !["==", "!=", "<=", ">=", ":="].contains(&operator)
}

fn first_at_top(tokens: &[Lexeme], operator: &str) -> Option<usize> {
    places_at_top(tokens, operator).next()
}

fn last_at_top(tokens: &[Lexeme], operator: &str) -> Option<usize> {
    places_at_top(tokens, operator).last()
}

/// Where an operator stands in no bracket.
fn places_at_top<'t>(tokens: &'t [Lexeme], operator: &'t str) -> impl Iterator<Item = usize> + 't {
    let mut depth = 0;
    tokens.iter().enumerate().filter_map(move |(at, lexeme)| {
        depth = depth_after(depth, lexeme);
        (depth == 0 && lexeme.is(operator)).then_some(at)
    })
}

fn dotted(tokens: &[Lexeme]) -> String {
    tokens
        .iter()
        .filter_map(|lexeme| match &lexeme.token {
            Token::Name(name) => Some(name.as_str()),
            Token::Operator(operator @ ("." | "...")) => Some(operator),
            _ => None,
        })
        .collect()
}
