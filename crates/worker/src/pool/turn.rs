//! A place in the queue for a slot, as the one who waits and the one who serves have it.

use tokio::sync::{oneshot, watch};

use super::budget::{Need, Shortage};
use super::slots::Lease;

/// What one waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wait {
    /// For a slot.
    Slot { slots: u16, quarantined: Vec<(u16, String)> },
    /// For what machines take of the host.
    Short(Shortage),
    /// For the end of a pause of the whole worker.
    Paused,
    /// For those who came before, the first of whom does not fit.
    Turn { ahead: usize, first: Shortage },
}

/// What happens to one who waits.
#[derive(Debug)]
pub(super) enum Step {
    /// The wait is over.
    Leased(Box<Lease>),
    /// It goes on, for this.
    Waits(Wait),
}

/// A place in the queue, as the one who waits has it. It is given up when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    lease: oneshot::Receiver<Lease>,
    wait: watch::Receiver<Option<Wait>>,
}

/// The same as the one who serves has it.
#[derive(Debug)]
pub(super) struct Waiting {
    /// What the machine in the slot will take.
    pub need: Need,
    answer: oneshot::Sender<Lease>,
    wait: watch::Sender<Option<Wait>>,
}

/// Makes both.
pub(super) fn take(need: Need) -> (Waiting, Turn) {
    let (answer, lease) = oneshot::channel();
    let (wait, waits) = watch::channel(None);
    (Waiting { need, answer, wait }, Turn { lease, wait: waits })
}

impl Turn {
    /// Waits for what happens next. Cancel-safe, until the lease is there.
    pub(super) async fn next(&mut self) -> Step {
        tokio::select! {
            biased;
            Ok(lease) = &mut self.lease => Step::Leased(Box::new(lease)),
            Some(wait) = another(&mut self.wait) => Step::Waits(wait),
            // Who serves goes only after the last who may wait.
            else => std::future::pending().await,
        }
    }
}

/// The next thing to wait for; nothing after the last.
async fn another(wait: &mut watch::Receiver<Option<Wait>>) -> Option<Wait> {
    wait.changed().await.ok()?;
    wait.borrow_and_update().clone()
}

impl Waiting {
    /// Whether nobody waits any more.
    pub(super) fn has_left(&self) -> bool {
        self.answer.is_closed()
    }

    /// What was told last.
    pub(super) fn waits_for(&self) -> Option<Wait> {
        self.wait.borrow().clone()
    }

    /// Tells what is waited for, if that was not told last.
    pub(super) fn tell(&self, wait: Wait) {
        self.wait.send_if_modified(|old| old.replace(wait.clone()) != Some(wait));
    }

    /// Ends the wait. If nobody waits any more the lease is dropped, which returns the slot.
    pub(super) fn serve(self, lease: Lease) {
        let _ = self.answer.send(lease);
    }
}

/// Waits until one who waits does so no more; for ever, if nobody does.
pub(super) async fn given_up(waiting: Option<&mut Waiting>) {
    match waiting {
        Some(waiting) => waiting.answer.closed().await,
        None => std::future::pending().await,
    }
}
