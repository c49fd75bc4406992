//! Python exceptions on the wire: copies of Twisted's `CopyableFailure`.

use std::fmt;

use super::banana::{Encoder, Expression, SIZE_LIMIT, TooLong};
use super::jelly::Jelly;
use super::update::char_boundary;

const COPYABLE_FAILURE: &str = "twisted.spread.pb.CopyableFailure";

/// The longest text that is sent: the failure holds it twice, once with its class before it.
const MAX_TEXT: usize = SIZE_LIMIT - 100;

/// An exception that the worker raises at the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    class: Class,
    text: String,
}

/// The Python class of an exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// The object has no such method. A master takes it for a sign of an old worker.
    NoSuchMethod,
    /// No object has the number that was called.
    InvalidObject,
    /// The worker has no such command.
    UnknownCommand,
    /// The arguments are of no use.
    Value,
    /// Anything else.
    Runtime,
}

impl Class {
    /// The class and those it derives from, as Python has them; the first one is the class itself.
    fn parents(self) -> &'static [&'static str] {
        match self {
            Class::NoSuchMethod => {
                &["twisted.spread.flavors.NoSuchMethod", "builtins.AttributeError", "builtins.Exception"]
            }
            Class::InvalidObject => &["twisted.spread.pb.Error", "builtins.Exception"],
            Class::UnknownCommand => {
                &["buildbot_worker.base.UnknownCommand", "twisted.spread.pb.Error", "builtins.Exception"]
            }
            Class::Value => &["builtins.ValueError", "builtins.Exception"],
            Class::Runtime => &["builtins.RuntimeError", "builtins.Exception"],
        }
    }
}

impl Failure {
    /// An exception with this message.
    pub(super) fn new(class: Class, text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.truncate(char_boundary(&text, MAX_TEXT));
        Failure { class, text }
    }

    /// Why a command was not started. The class is told from the text, as it is all that a reply has.
    pub(super) fn of_start(text: &str) -> Self {
        let class = if text.contains("unrecognized WorkerCommand") { Class::UnknownCommand } else { Class::Value };
        Failure::new(class, text)
    }

    /// Writes what Twisted makes a failure of; it needs all these keys.
    pub(super) fn write(&self, encoder: &mut Encoder) -> Result<(), TooLong> {
        let parents = self.class.parents();
        let class = parents[0];
        encoder.tagged(COPYABLE_FAILURE, 1)?;
        encoder.dictionary(7)?;
        encoder.key("type")?;
        encoder.bytes(class.as_bytes())?;
        encoder.key("value")?;
        encoder.text(&self.text)?;
        encoder.key("tb")?;
        encoder.none()?;
        encoder.key("parents")?;
        encoder.tagged("list", parents.len())?;
        parents.iter().try_for_each(|parent| encoder.text(parent))?;
        encoder.key("frames")?;
        encoder.tagged("list", 0)?;
        encoder.key("stack")?;
        encoder.tagged("list", 0)?;
        encoder.key("traceback")?;
        encoder.text(&format!("{class}: {}\n", self.text))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// An exception that the master raised at the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteFailure {
    /// The dotted name of its class.
    pub class: String,
    /// Its message; its class if it has none.
    pub text: String,
}

impl RemoteFailure {
    /// Reads what can be read of it. Objects of the master in it are noted in `remotes`.
    pub(super) fn read(expression: Expression, remotes: &mut Vec<u64>) -> Self {
        let state = match Jelly::read(expression, remotes) {
            Ok(Jelly::Copied { state, .. }) => *state,
            Ok(_) => Jelly::None,
            Err(error) => {
                return RemoteFailure { class: String::new(), text: format!("an unreadable exception: {error}") };
            }
        };
        let pairs = if let Jelly::Dictionary(pairs) = state { pairs } else { Vec::new() };
        let mut failure = RemoteFailure { class: String::new(), text: String::new() };
        for (key, value) in pairs {
            match (key.into_text().as_deref(), value) {
                (Some("type"), class) => failure.class = class.into_text().unwrap_or_default(),
                (Some("value"), text) => failure.text = text.into_text().unwrap_or_default(),
                _ => {}
            }
        }
        if failure.text.is_empty() {
            failure.text = if failure.class.is_empty() { "an exception" } else { &failure.class }.to_owned();
        }
        failure
    }
}
