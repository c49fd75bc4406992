//! Reads one table of the configuration key by key and notes whatever is wrong.
//!
//! A key with a problem yields a placeholder, so that reading goes on and finds the other problems. Placeholders are
//! never seen outside: a configuration with a problem is not handed out.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use config::{Value, ValueKind};
use protocol::command::Name;

use super::problem::{Problem, Problems};

/// One table and its place in the configuration.
pub(super) struct Section<'a> {
    path: String,
    values: BTreeMap<String, Value>,
    known: Vec<&'static str>,
    problems: &'a Problems,
}

impl<'a> Section<'a> {
    pub(super) fn root(tree: Value, problems: &'a Problems) -> Self {
        Self::new(String::new(), tree, problems)
    }

    fn new(path: String, value: Value, problems: &'a Problems) -> Self {
        let origin = value.origin().map(str::to_owned);
        let values = match value.kind {
            ValueKind::Table(table) => table.into_iter().collect(),
            ValueKind::Nil => BTreeMap::new(),
            other => {
                let remedy = "should be a table".to_owned();
                problems.add(Problem { origin, key: path.clone(), value: Some(shown(&other)), remedy });
                BTreeMap::new()
            }
        };
        Section { path, values, known: Vec::new(), problems }
    }

    /// The table under `key`; an empty one if it is absent.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'a> {
        let value = self.take(key).unwrap_or_else(|| Value::new(None, ValueKind::Nil));
        Section::new(self.key(key), value, self.problems)
    }

    /// The tables under `key`, each with a name that its author chose.
    pub(super) fn named_sections(&mut self, key: &'static str) -> Vec<(Name, Section<'a>)> {
        let parent = self.section(key);
        let mut sections = Vec::new();
        for (text, value) in parent.values {
            let path = format!("{}.{text}", parent.path);
            match Name::new(&text) {
                Some(name) => sections.push((name, Section::new(path, value, self.problems))),
                None => self.problems.add(Problem {
                    origin: origin(&value),
                    key: path,
                    value: None,
                    remedy: "choose a name of at most 64 letters, digits, '_', '.', '+' and '-', other than 'host'"
                        .to_owned(),
                }),
            }
        }
        sections
    }

    /// A value that has to be there.
    pub(super) fn required<T: FromKind, U: Placeholder, E: Display>(
        &mut self,
        key: &'static str,
        what: &str,
        parse: impl FnOnce(T) -> Result<U, E>,
    ) -> U {
        if !self.values.contains_key(key) {
            self.known.push(key);
            self.problems.add(Problem {
                origin: None,
                key: self.key(key),
                value: None,
                remedy: format!("is missing; set it to {what}"),
            });
            return U::placeholder();
        }
        self.optional(key, parse).unwrap_or_else(U::placeholder)
    }

    /// A value that may be there.
    pub(super) fn optional<T: FromKind, U, E: Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(T) -> Result<U, E>,
    ) -> Option<U> {
        let value = self.take(key)?;
        let origin = origin(&value);
        let text = shown(&value.kind);
        let result = match T::from_kind(value.kind) {
            Some(raw) => parse(raw).map_err(|expected| format!("should be {expected}")),
            None => Err(format!("should be {}", T::KIND)),
        };
        match result {
            Ok(parsed) => Some(parsed),
            Err(remedy) => {
                self.problems.add(Problem { origin, key: self.key(key), value: Some(text), remedy });
                None
            }
        }
    }

    /// A value with a default.
    pub(super) fn parsed<T: FromKind, U, E: Display>(
        &mut self,
        key: &'static str,
        default: U,
        parse: impl FnOnce(T) -> Result<U, E>,
    ) -> U {
        self.optional(key, parse).unwrap_or(default)
    }

    /// A value of a plain type with a default.
    pub(super) fn or<T: FromKind>(&mut self, key: &'static str, default: T) -> T {
        self.parsed(key, default, Ok::<T, &str>)
    }

    /// A whole number in a range, with a default.
    pub(super) fn number<N>(&mut self, key: &'static str, range: RangeInclusive<N>, default: N) -> N
    where
        N: TryFrom<i64> + PartialOrd + Display + Copy,
    {
        self.optional_number(key, range).unwrap_or(default)
    }

    /// A whole number in a range.
    pub(super) fn optional_number<N>(&mut self, key: &'static str, range: RangeInclusive<N>) -> Option<N>
    where
        N: TryFrom<i64> + PartialOrd + Display + Copy,
    {
        self.optional(key, |number: i64| {
            N::try_from(number)
                .ok()
                .filter(|number| range.contains(number))
                .ok_or_else(|| format!("a whole number from {} to {}", range.start(), range.end()))
        })
    }

    /// A time in seconds, with a default.
    pub(super) fn seconds(&mut self, key: &'static str, range: RangeInclusive<f64>, default: f64) -> Duration {
        let seconds = self.parsed(key, default, |seconds: f64| {
            if range.contains(&seconds) {
                Ok(seconds)
            } else {
                Err(format!("a number of seconds from {} to {}", range.start(), range.end()))
            }
        });
        Duration::from_secs_f64(seconds)
    }

    /// Notes a problem that no single value shows.
    pub(super) fn problem(&self, key: &str, value: &dyn Display, remedy: &str) {
        self.problems.add(Problem {
            origin: None,
            key: self.key(key),
            value: Some(value.to_string()),
            remedy: remedy.to_owned(),
        });
    }

    /// Notes the keys that nobody asked for.
    pub(super) fn finish(self) {
        for (key, value) in &self.values {
            let near =
                self.known.iter().min_by_key(|known| distance(known, key)).filter(|known| distance(known, key) <= 3);
            let remedy = match near {
                Some(known) => format!("is not a key; did you mean {known}?"),
                None => format!("is not a key; the keys here are {}", self.known.join(", ")),
            };
            self.problems.add(Problem { origin: origin(value), key: self.key(key), value: None, remedy });
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.values.remove(key)
    }

    fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// A plain type of a configuration value.
pub(super) trait FromKind: Sized {
    /// What a value that is not one should be.
    const KIND: &'static str;
    /// The value, if it is one.
    fn from_kind(kind: ValueKind) -> Option<Self>;
}

impl FromKind for String {
    const KIND: &'static str = "text";
    fn from_kind(kind: ValueKind) -> Option<Self> {
        match kind {
            ValueKind::String(text) => Some(text),
            // The environment turns text that looks like a number into one.
            ValueKind::I64(number) => Some(number.to_string()),
            _ => None,
        }
    }
}

impl FromKind for i64 {
    const KIND: &'static str = "a whole number";
    fn from_kind(kind: ValueKind) -> Option<Self> {
        match kind {
            ValueKind::I64(number) => Some(number),
            ValueKind::U64(number) => number.try_into().ok(),
            _ => None,
        }
    }
}

impl FromKind for f64 {
    const KIND: &'static str = "a number";
    fn from_kind(kind: ValueKind) -> Option<Self> {
        match kind {
            ValueKind::I64(number) => Some(number as f64),
            ValueKind::Float(number) => Some(number),
            _ => None,
        }
    }
}

impl FromKind for bool {
    const KIND: &'static str = "true or false";
    fn from_kind(kind: ValueKind) -> Option<Self> {
        match kind {
            ValueKind::Boolean(truth) => Some(truth),
            _ => None,
        }
    }
}

impl FromKind for Vec<String> {
    const KIND: &'static str = "a list of texts";
    fn from_kind(kind: ValueKind) -> Option<Self> {
        match kind {
            ValueKind::Array(items) => items.into_iter().map(|item| String::from_kind(item.kind)).collect(),
            _ => None,
        }
    }
}

/// What stands in for a value that is missing or wrong until reading is over.
pub(super) trait Placeholder {
    /// Any value.
    fn placeholder() -> Self;
}

impl Placeholder for String {
    fn placeholder() -> Self {
        String::new()
    }
}

impl Placeholder for std::path::PathBuf {
    fn placeholder() -> Self {
        std::path::PathBuf::from("/")
    }
}

fn origin(value: &Value) -> Option<String> {
    value.origin().map(str::to_owned)
}

/// A value as a person wrote it, cut where it gets long.
fn shown(kind: &ValueKind) -> String {
    let text = match kind {
        ValueKind::String(text) => format!("{text:?}"),
        other => other.to_string(),
    };
    if text.chars().count() <= 100 { text } else { text.chars().take(97).chain("...".chars()).collect() }
}

/// The number of characters to insert, remove or change (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let change = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
