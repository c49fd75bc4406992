use std::collections::VecDeque;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

/// One rung of an escalation: a signal, and how long the process group has to react to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rung {
    /// What is sent to the group.
    pub signal: Signal,
    /// How long to wait before the next rung.
    pub patience: Duration,
}

impl Rung {
    /// Makes a rung.
    pub fn new(signal: Signal, patience: Duration) -> Self {
        Rung { signal, patience }
    }
}

/// What is still to come of an escalation that has begun.
#[derive(Debug, Default)]
pub(crate) struct Escalation {
    rungs: VecDeque<Rung>,
    /// When the patience with the signal sent last ends; `None` when all of it has ended.
    pub(crate) patience_ends: Option<Instant>,
}

impl Escalation {
    pub(crate) fn new(rungs: impl IntoIterator<Item = Rung>) -> Self {
        Escalation { rungs: rungs.into_iter().collect(), patience_ends: None }
    }

    /// Steps onto the next rung and returns the signal to send, or `None` when there is no further rung.
    pub(crate) fn step(&mut self, now: Instant) -> Option<Signal> {
        let rung = self.rungs.pop_front();
        self.patience_ends = rung.map(|rung| now + rung.patience);
        rung.map(|rung| rung.signal)
    }
}
