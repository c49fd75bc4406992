//! Reads a command's arguments by name and type.

use thiserror::Error;

use crate::value::Value;

/// The longest time span that is taken at its word; longer ones, which may not fit a clock, become this.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(365 * 86_400);

/// Why the arguments of a command were refused. The text goes to the master, which shows it at the step.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ArgumentError {
    /// No such command.
    #[error("(command {command_id}): unrecognized WorkerCommand '{name}'")]
    UnknownCommand {
        /// The id the master gave.
        command_id: String,
        /// The name it asked for.
        name: String,
    },
    /// Required arguments are not there. Buildbot's steps know this text.
    #[error("{class} is missing args: {}", .names.join(", "))]
    Missing {
        /// The name of the class that runs this command in Buildbot 4.3.0's worker.
        class: &'static str,
        /// The missing names.
        names: Vec<&'static str>,
    },
    /// An argument is there and of no use.
    #[error("argument '{name}' of {class} is {found}, expected {expected}")]
    Invalid {
        /// The name of the class that runs this command in Buildbot 4.3.0's worker.
        class: &'static str,
        /// The argument.
        name: String,
        /// What it was.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
}

/// The arguments of one command.
#[derive(Debug, Clone, Copy)]
pub struct Args<'a> {
    class: &'static str,
    args: &'a Value,
}

impl<'a> Args<'a> {
    /// Reads `args` on behalf of `class`, which names the command in errors.
    pub fn new(class: &'static str, args: &'a Value) -> Self {
        Args { class, args }
    }

    /// Checks that all of `names` are there.
    pub fn require(&self, names: &[&'static str]) -> Result<(), ArgumentError> {
        let missing: Vec<_> = names.iter().copied().filter(|name| self.args.get(name).is_none()).collect();
        if missing.is_empty() { Ok(()) } else { Err(ArgumentError::Missing { class: self.class, names: missing }) }
    }

    /// The value of an argument; an absent one and nil are the same.
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        self.args.get(name).filter(|value| **value != Value::Nil)
    }

    /// Text; nothing if absent. Bytes that are UTF-8 pass for text, as an old master sends them.
    pub fn text(&self, name: &str) -> Result<Option<String>, ArgumentError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Str(text)) => Ok(Some(text.clone())),
            Some(Value::Bytes(bytes)) => {
                let text = std::str::from_utf8(bytes).map_err(|_| self.invalid(name, "UTF-8 text"))?;
                Ok(Some(text.to_owned()))
            }
            Some(_) => Err(self.invalid(name, "text")),
        }
    }

    /// Text that must be there.
    pub fn required_text(&self, name: &'static str) -> Result<String, ArgumentError> {
        self.text(name)?.ok_or(ArgumentError::Missing { class: self.class, names: vec![name] })
    }

    /// A truth value: a boolean, or 0 or 1.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, ArgumentError> {
        match self.value(name) {
            None => Ok(default),
            Some(Value::Bool(truth)) => Ok(*truth),
            Some(Value::Int(0)) => Ok(false),
            Some(Value::Int(1)) => Ok(true),
            Some(_) => Err(self.invalid(name, "a boolean")),
        }
    }

    /// A whole number that is not negative.
    pub fn count(&self, name: &str) -> Result<Option<u64>, ArgumentError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Int(number)) => {
                u64::try_from(*number).map(Some).map_err(|_| self.invalid(name, "a number of at least 0"))
            }
            Some(_) => Err(self.invalid(name, "a whole number")),
        }
    }

    /// A time span in seconds, whole or not, of at most a year; nothing if absent. A span of 0 is nothing: Buildbot's
    /// "off".
    pub fn seconds(&self, name: &str) -> Result<Option<std::time::Duration>, ArgumentError> {
        let seconds = match self.value(name) {
            None => return Ok(None),
            Some(Value::Int(number)) => *number as f64,
            Some(Value::Float(number)) => *number,
            Some(_) => return Err(self.invalid(name, "a number of seconds")),
        };
        let span = std::time::Duration::try_from_secs_f64(seconds)
            .map_err(|_| self.invalid(name, "a number of seconds of at least 0"))?;
        Ok(Some(span.min(LONGEST)).filter(|span| !span.is_zero()))
    }

    /// A list of texts; a single text is a list of one.
    pub fn texts(&self, name: &str) -> Result<Option<Vec<String>>, ArgumentError> {
        match self.value(name) {
            Some(Value::List(items)) => items
                .iter()
                .map(|item| {
                    item.as_str().map(str::to_owned).ok_or_else(|| self.invalid(name, "text or a list of texts"))
                })
                .collect::<Result<_, _>>()
                .map(Some),
            _ => Ok(self.text(name)?.map(|text| vec![text])),
        }
    }

    /// The error for an argument that has the wrong type or range.
    pub fn invalid(&self, name: &str, expected: &'static str) -> ArgumentError {
        let found = match self.args.get(name) {
            Some(Value::Int(number)) => number.to_string(),
            Some(Value::Float(number)) => number.to_string(),
            Some(Value::Str(text)) if text.len() <= 100 => format!("'{text}'"),
            Some(value) => value.kind().to_owned(),
            None => "absent".to_owned(),
        };
        ArgumentError::Invalid { class: self.class, name: name.to_owned(), found, expected }
    }
}
