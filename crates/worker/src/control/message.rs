use std::fmt;

use serde::{Deserialize, Serialize};

/// What is asked of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Ends the machine that is held in a slot.
    Release {
        /// The slot's number.
        slot: u16,
    },
}

/// What the worker says to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Response {
    /// It was done.
    Done(Answer),
    /// It was not; the sentence says why.
    Refused(String),
}

/// What came of a request. Its text is for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// The machine is gone.
    Released {
        /// Its slot.
        slot: u16,
        /// What ended it.
        how: String,
    },
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Released { slot, how } => writeln!(f, "the machine in slot {slot} has ended ({how})"),
        }
    }
}
