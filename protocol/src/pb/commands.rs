//! The commands a master has started, with the objects of the master that belong to them.

use std::collections::HashMap;
use std::fmt;

use crate::message::CommandId;

/// A command, from its start until the master knows that it is complete.
pub(super) struct Running {
    /// The builder it runs at.
    pub builder: String,
    /// The object that hears of its progress.
    pub reference: u64,
    /// The object that takes what it uploads.
    pub writer: Option<u64>,
    /// The object that has what it downloads.
    pub reader: Option<u64>,
    /// The objects it came with, each as often as it was sent; a `decref` is owed for each.
    pub owed: Vec<u64>,
    /// Whether the master has been told that it is complete.
    pub complete: bool,
}

/// Commands by id.
#[derive(Default)]
pub(super) struct Commands {
    running: HashMap<CommandId, (u64, Running)>,
    /// How many there have been: each has its place in the order of starts.
    started: u64,
}

impl Commands {
    pub(super) fn contains(&self, id: &CommandId) -> bool {
        self.running.contains_key(id)
    }

    pub(super) fn start(&mut self, id: CommandId, command: Running) {
        self.started += 1;
        self.running.insert(id, (self.started, command));
    }

    /// A command that may still say something.
    pub(super) fn talking(&mut self, id: &CommandId) -> Option<&mut Running> {
        self.running.get_mut(id).map(|(_, command)| command).filter(|command| !command.complete)
    }

    pub(super) fn remove(&mut self, id: &CommandId) -> Option<Running> {
        self.running.remove(id).map(|(_, command)| command)
    }

    /// The command that an interrupt at `builder` is meant for. A master interrupts whatever runs there: Buildbot's own
    /// worker never looks at the id. There may be several commands, so we do; without one of this id, it is the latest.
    pub(super) fn meant(&self, builder: &str, hint: CommandId) -> CommandId {
        let here = || self.running.iter().filter(|(_, (_, command))| command.builder == builder && !command.complete);
        if here().any(|(id, _)| *id == hint) {
            return hint;
        }
        here().max_by_key(|(_, (started, _))| *started).map_or(hint, |(id, _)| id.clone())
    }
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.running.keys().map(|id| &id.0)).finish()
    }
}
