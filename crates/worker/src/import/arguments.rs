//! The arguments of a call, taken one by one.

use super::scope::{Argument, Located, Value};

/// The arguments that nobody took yet.
pub(super) struct Arguments(Vec<Argument>);

impl Arguments {
    pub(super) fn new(arguments: Vec<Argument>) -> Self {
        Arguments(arguments)
    }

    /// An argument that may be None, by its name or its place.
    pub(super) fn take(&mut self, position: Option<usize>, name: &str) -> Option<Located> {
        if let Some(at) = self.0.iter().position(|argument| argument.name.as_deref() == Some(name)) {
            let none = Located { value: Value::None, line: 0 };
            return Some(std::mem::replace(&mut self.0[at].value, none));
        }
        let argument = self.0.get(position?)?;
        argument.name.is_none().then(|| argument.value.clone())
    }

    /// An argument, unless it is None.
    pub(super) fn given(&mut self, name: &str) -> Option<Located> {
        self.take(None, name).filter(|given| given.value != Value::None)
    }

    /// An argument that a worker can't do without.
    pub(super) fn required(&mut self, position: usize, name: &str) -> Located {
        self.take(Some(position), name).unwrap_or(MISSING)
    }

    /// What is left of those without names beyond `places`, and of those with names: each with its place from 1.
    pub(super) fn rest(self, places: usize) -> impl Iterator<Item = (usize, Argument)> {
        let arguments = self.0.into_iter().enumerate().map(|(at, argument)| (at + 1, argument));
        arguments.filter(move |(place, argument)| {
            argument.value.value != Value::None && (argument.name.is_some() || *place > places)
        })
    }
}

/// What can't be used, where it is said, and why.
pub(super) struct Wrong {
    pub line: usize,
    pub subject: &'static str,
    /// A sentence's predicate.
    pub why: &'static str,
}

/// What stands for an argument that is not given.
pub(super) const MISSING: Located = Located { value: Value::Unknown("is missing"), line: 0 };

/// Says of a value that can't be used where it is.
pub(super) fn located<T>(given: &Located, subject: &'static str, value: Result<T, &'static str>) -> Result<T, Wrong> {
    value.map_err(|why| Wrong { line: given.line, subject, why })
}

/// A text that is not empty.
pub(super) fn text(value: &Value) -> Result<String, &'static str> {
    match value {
        Value::Text(text) if text.is_empty() => Err("is empty"),
        Value::Text(text) => Ok(text.clone()),
        Value::Unknown(why) => Err(why),
        _ => Err("is not a text"),
    }
}

/// Where something is said; `0` is nowhere in particular.
pub(super) fn place(line: usize) -> String {
    if line == 0 { "buildbot.tac".to_owned() } else { format!("buildbot.tac:{line}") }
}
