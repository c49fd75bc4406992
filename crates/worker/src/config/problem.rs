//! What is wrong with a configuration.

use std::cell::RefCell;
use std::fmt;

use thiserror::Error;

/// One thing that is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The file, or `the environment`, or nothing if the key is nowhere.
    pub origin: Option<String>,
    /// The key, such as `pool.slots`.
    pub key: String,
    /// What it says, if it is there.
    pub value: Option<String>,
    /// What would be right.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        match &self.value {
            Some(value) => write!(f, "{} = {value}: {}", self.key, self.remedy),
            None => write!(f, "{}: {}", self.key, self.remedy),
        }
    }
}

/// All that is wrong with a configuration; empty while nothing is.
#[derive(Debug, Default, Error)]
pub(crate) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    /// The configuration could not even be read.
    pub(super) fn unreadable(error: config::ConfigError) -> Self {
        let problem = Problem { origin: None, key: "configuration".to_owned(), value: None, remedy: error.to_string() };
        Problems(RefCell::new(vec![problem]))
    }

    pub(super) fn add(&self, problem: Problem) {
        self.0.borrow_mut().push(problem);
    }

    /// Notes a problem of a key as a whole.
    pub(super) fn note(&self, key: String, remedy: String) {
        self.add(Problem { origin: None, key, value: None, remedy });
    }

    pub(super) fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.0.borrow().is_empty() { Ok(value) } else { Err(self) }
    }

    /// The problems as lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.borrow().iter().map(Problem::to_string).collect()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problems = self.0.borrow();
        match problems.len() {
            1 => write!(f, "the configuration has a problem:")?,
            count => write!(f, "the configuration has {count} problems:")?,
        }
        for problem in problems.iter() {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}
