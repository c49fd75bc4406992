//! Our objects that the master holds references to.

use std::collections::HashMap;

/// How many objects may be held at once. Twisted allows 1024 to each side; a bound is all that is needed.
const MAX_EXPORTS: usize = 16 * 1024;

/// One of our objects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Exported {
    /// The worker itself.
    Mind,
    /// What the worker is to a builder of this name.
    Builder(String),
}

/// Our objects by number. Each is kept until the master has given up as many references as it was sent.
#[derive(Debug, Default)]
pub(super) struct Exports {
    objects: HashMap<u64, Held>,
    numbers: HashMap<Exported, u64>,
    last: u64,
}

#[derive(Debug)]
struct Held {
    object: Exported,
    references: u64,
}

impl Exports {
    /// Counts one more reference to `object`, and returns the number it goes by; nothing if there are too many objects.
    pub(super) fn export(&mut self, object: Exported) -> Option<u64> {
        if let Some(number) = self.numbers.get(&object) {
            self.objects.get_mut(number)?.references += 1;
            return Some(*number);
        }
        if self.objects.len() >= MAX_EXPORTS {
            return None;
        }
        self.last += 1;
        self.numbers.insert(object.clone(), self.last);
        self.objects.insert(self.last, Held { object, references: 1 });
        Some(self.last)
    }

    /// The object of this number.
    pub(super) fn get(&self, number: u64) -> Option<&Exported> {
        self.objects.get(&number).map(|held| &held.object)
    }

    /// Takes one reference back; false if there was none.
    pub(super) fn decref(&mut self, number: u64) -> bool {
        let Some(held) = self.objects.get_mut(&number) else { return false };
        held.references -= 1;
        if held.references == 0 {
            self.numbers.remove(&held.object);
            self.objects.remove(&number);
        }
        true
    }
}
