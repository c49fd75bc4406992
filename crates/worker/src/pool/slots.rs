//! Hands out slots and takes them back.
//!
//! ```text
//! Free ──lease──▶ Leased ──drop──▶ Reclaiming ──clean──▶ Free
//!                                      │  ▲
//!                                 can't│  │again, later
//!                                      ▼  │
//!                                  Quarantined { why }
//! ```
//!
//! Every slot begins in `Reclaiming`: what an earlier run left in it is dealt with before it is used. A slot is free
//! only when its QEMU is gone and its files are, too; one that can't be cleaned is never handed out.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use qemu::Leftover;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::disks::DiskLock;
use super::generations::Ground;
use super::slot::Slot;

/// How long a slot that can't be cleaned is left alone before the next attempt.
const QUARANTINE: Duration = Duration::from_secs(30);

/// How long a QEMU that was left in a slot has after each signal.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many `lease`s may wait; more than any master starts builds on one worker.
const WAITING: usize = 1024;

/// The slots of the pool.
#[derive(Debug, Clone)]
pub(crate) struct Slots {
    wanted: mpsc::Sender<oneshot::Sender<Lease>>,
    census: watch::Receiver<Census>,
}

/// How the slots are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// All of them.
    pub slots: u16,
    /// Those that can be leased.
    pub free: u16,
    /// Those that can't be cleaned, and why.
    pub quarantined: Vec<(u16, String)>,
}

/// The use of a slot, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    slot: Slot,
    disk: Option<DiskLock>,
    ground: Option<Ground>,
    returned: mpsc::UnboundedSender<Used>,
}

/// A slot that is not clean, and what its QEMU, if it is still there, may write to and stands on.
#[derive(Debug)]
struct Used {
    slot: Slot,
    disk: Option<DiskLock>,
    ground: Option<Ground>,
}

impl Used {
    fn alone(slot: Slot) -> Self {
        Used { slot, disk: None, ground: None }
    }
}

impl Lease {
    /// The slot.
    pub(crate) fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Keeps a disk locked until the slot is clean, that is until its QEMU is gone.
    pub(crate) fn keep(&mut self, disk: DiskLock) {
        self.disk = Some(disk);
    }

    /// Keeps what its machine stands on, for as long.
    pub(super) fn stand_on(&mut self, ground: Ground) {
        self.ground = Some(ground);
    }

    /// What was given to [`stand_on`](Self::stand_on).
    pub(super) fn ground(&self) -> Option<&Ground> {
        self.ground.as_ref()
    }

    /// The disk that was given to [`keep`](Self::keep).
    pub(crate) fn disk(&self) -> Option<&DiskLock> {
        self.disk.as_ref()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Fails only if the slots' task has ended; then the next start cleans up.
        let _ =
            self.returned.send(Used { slot: self.slot.clone(), disk: self.disk.take(), ground: self.ground.take() });
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Free,
    Leased,
    Reclaiming,
    Quarantined { why: String },
}

impl Slots {
    /// Starts the slots' task. It ends when the last `Slots` and the last [`Lease`] are gone.
    pub(crate) fn new(slots: Vec<Slot>) -> Self {
        let (wanted, wants) = mpsc::channel(WAITING);
        let (census_out, census) = watch::channel(Census::default());
        tokio::spawn(Keeper::new(slots, census_out).run(wants));
        Slots { wanted, census }
    }

    /// Waits for a free slot, in the order of asking. Dropping the future gives up the place in the queue.
    pub(crate) async fn lease(&self) -> Lease {
        let (answer, lease) = oneshot::channel();
        // The task ends only after this handle, so both always succeed.
        let _ = self.wanted.send(answer).await;
        match lease.await {
            Ok(lease) => lease,
            Err(_) => std::future::pending().await,
        }
    }

    /// How the slots are now.
    pub(crate) fn census(&self) -> Census {
        self.census.borrow().clone()
    }

    /// Waits until every slot is free or quarantined.
    pub(crate) async fn settled(&self) {
        let mut census = self.census.clone();
        let settled =
            |census: &Census| usize::from(census.free) + census.quarantined.len() >= usize::from(census.slots);
        let _ = census.wait_for(settled).await;
    }
}

/// The task that owns the slots' states.
struct Keeper {
    slots: Vec<(Slot, State)>,
    census: watch::Sender<Census>,
    waiting: VecDeque<oneshot::Sender<Lease>>,
    /// At most one message for each slot is in either of these, so they need no bound.
    returned: (mpsc::UnboundedSender<Used>, mpsc::UnboundedReceiver<Used>),
    cleaned: (mpsc::UnboundedSender<Cleaned>, mpsc::UnboundedReceiver<Cleaned>),
}

struct Cleaned {
    used: Used,
    result: anyhow::Result<()>,
}

impl Keeper {
    fn new(slots: Vec<Slot>, census: watch::Sender<Census>) -> Self {
        let slots = slots.into_iter().map(|slot| (slot, State::Reclaiming)).collect();
        let keeper = Keeper {
            slots,
            census,
            waiting: VecDeque::new(),
            returned: mpsc::unbounded_channel(),
            cleaned: mpsc::unbounded_channel(),
        };
        for (slot, _) in &keeper.slots {
            keeper.reclaim(Used::alone(slot.clone()), Duration::ZERO);
        }
        keeper.tell();
        keeper
    }

    async fn run(mut self, mut wants: mpsc::Receiver<oneshot::Sender<Lease>>) {
        let mut wanted = true;
        while wanted || self.slots.iter().any(|(_, state)| matches!(state, State::Leased | State::Reclaiming)) {
            tokio::select! {
                want = wants.recv(), if wanted => match want {
                    Some(answer) => self.waiting.push_back(answer),
                    None => wanted = false,
                },
                Some(used) = self.returned.1.recv() => {
                    self.set(&used.slot, State::Reclaiming);
                    self.reclaim(used, Duration::ZERO);
                }
                Some(Cleaned { used, result }) = self.cleaned.1.recv() => self.judge(used, result),
            }
            self.hand_out();
            self.tell();
        }
    }

    fn set(&mut self, slot: &Slot, new: State) {
        if let Some((_, state)) = self.slots.iter_mut().find(|(candidate, _)| candidate == slot) {
            *state = new;
        }
    }

    fn judge(&mut self, used: Used, result: anyhow::Result<()>) {
        match result {
            Ok(()) => {
                self.set(&used.slot, State::Free);
                drop((used.disk, used.ground));
            }
            Err(error) => self.quarantine(used, format!("{error:#}")),
        }
    }

    fn quarantine(&mut self, used: Used, why: String) {
        error!(slot = used.slot.number(), retry_in_s = QUARANTINE.as_secs(), "slot quarantined: {why}");
        self.set(&used.slot, State::Quarantined { why });
        self.reclaim(used, QUARANTINE);
    }

    /// Gives free slots to those who wait, lowest number first.
    fn hand_out(&mut self) {
        while !self.waiting.is_empty() {
            let Some(slot) = self.slots.iter().find(|(_, state)| *state == State::Free).map(|(slot, _)| slot.clone())
            else {
                return;
            };
            if let Err(error) = port_is_free(slot.ssh_port()) {
                self.quarantine(Used::alone(slot), format!("{error:#}"));
                continue;
            }
            self.set(&slot, State::Leased);
            let lease = Lease { slot, disk: None, ground: None, returned: self.returned.0.clone() };
            if let Some(answer) = self.waiting.pop_front() {
                // One who waits no more drops the lease, which returns the slot.
                let _ = answer.send(lease);
            }
        }
    }

    fn reclaim(&self, used: Used, after: Duration) {
        let cleaned = self.cleaned.0.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let result = clean(&used.slot).await;
            let _ = cleaned.send(Cleaned { used, result });
        });
    }

    fn tell(&self) {
        let census = Census {
            slots: u16::try_from(self.slots.len()).unwrap_or(u16::MAX),
            free: u16::try_from(self.slots.iter().filter(|(_, state)| *state == State::Free).count())
                .unwrap_or(u16::MAX),
            quarantined: self
                .slots
                .iter()
                .filter_map(|(slot, state)| match state {
                    State::Quarantined { why } => Some((slot.number(), why.clone())),
                    _ => None,
                })
                .collect(),
        };
        self.census.send_if_modified(|old| std::mem::replace(old, census.clone()) != census);
    }
}

/// Ends what still runs in a slot, provided that it is provably ours, and removes the slot's files.
pub(super) async fn clean(slot: &Slot) -> anyhow::Result<()> {
    match qemu::Pidfile::new(slot.pid_file()).clear(PATIENCE).await? {
        Leftover::None => {}
        Leftover::Stale { pid } => info!(slot = slot.number(), pid, "the slot's qemu is gone already"),
        Leftover::Ended { pid, with, after } => {
            info!(slot = slot.number(), pid, signal = %with, after_s = after.as_secs_f32(), "ended a qemu that was left");
        }
    }
    remove_directory(slot.directory()).await
}

pub(super) async fn remove_directory(directory: &Path) -> anyhow::Result<()> {
    match tokio::fs::remove_dir_all(directory).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Whether QEMU will be able to listen on a slot's port.
fn port_is_free(port: u16) -> anyhow::Result<()> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(drop).with_context(|| {
        format!("listen on 127.0.0.1:{port}: another program uses it; stop it or change pool.ssh_port_base")
    })
}

/// Cleans slots that the configuration no longer has.
pub(super) async fn clean_beyond(slots: &Path, count: u16, ssh_port_base: u16) {
    let Ok(mut entries) = tokio::fs::read_dir(slots).await else { return };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(number) = number.filter(|number| *number >= count)
            && let Err(error) = clean(&Slot::new(number, ssh_port_base, slots)).await
        {
            warn!(slot = number, "clean a slot that the configuration no longer has: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slots whose ports nobody listens on, in a directory of their own.
    fn slots(count: u16) -> (tempfile::TempDir, Slots) {
        let directory = tempfile::tempdir().unwrap();
        let base = loop {
            // Others on this machine may have the next ones.
            let base = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
            if (0..count).all(|number| base.checked_add(number).is_some_and(|port| port_is_free(port).is_ok())) {
                break base;
            }
        };
        let slots = (0..count).map(|number| Slot::new(number, base, directory.path())).collect();
        (directory, Slots::new(slots))
    }

    #[tokio::test]
    async fn slots_are_leased_lowest_first_and_come_back_clean() {
        let (directory, slots) = slots(2);
        let stale = directory.path().join("0/overlay.qcow2");
        std::fs::create_dir_all(stale.parent().unwrap()).unwrap();
        std::fs::write(&stale, "left by an earlier run").unwrap();
        slots.settled().await;
        assert!(!stale.exists());
        let first = slots.lease().await;
        let second = slots.lease().await;
        assert_eq!((first.slot().number(), second.slot().number()), (0, 1));
        assert_eq!(slots.census(), Census { slots: 2, free: 0, quarantined: vec![] });
        std::fs::create_dir_all(first.slot().directory()).unwrap();
        std::fs::write(first.slot().overlay(), "used").unwrap();
        drop(first);
        let again = slots.lease().await;
        assert_eq!(again.slot().number(), 0);
        assert!(!again.slot().directory().exists());
    }

    #[tokio::test]
    async fn those_who_wait_are_served_in_order_and_those_who_left_are_skipped() {
        let (_directory, slots) = slots(1);
        let first = slots.lease().await;
        let mut left = Box::pin(slots.lease());
        let mut next = Box::pin(slots.lease());
        assert!(futures_util::poll!(&mut left).is_pending());
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(left);
        drop(first);
        assert_eq!(next.await.slot().number(), 0);
    }

    #[tokio::test]
    async fn a_slot_that_cannot_be_cleaned_is_quarantined_and_tried_again() {
        let (directory, slots) = slots(2);
        slots.settled().await;
        let lease = slots.lease().await;
        // A file where the slot's directory should be can't be removed as one.
        std::fs::write(lease.slot().directory(), "in the way").unwrap();
        drop(lease);
        slots.settled().await;
        let census = slots.census();
        assert_eq!((census.free, census.quarantined.len()), (1, 1), "{census:?}");
        let other = slots.lease().await;
        assert_eq!(other.slot().number(), 1);
        std::fs::remove_file(directory.path().join("0")).unwrap();
        tokio::time::pause();
        assert_eq!(slots.lease().await.slot().number(), 0);
    }

    #[tokio::test]
    async fn a_slot_whose_port_is_taken_is_not_handed_out() {
        let (_directory, slots) = slots(2);
        slots.settled().await;
        let port = slots.lease().await.slot().ssh_port();
        slots.settled().await;
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert_eq!(slots.lease().await.slot().number(), 1);
        assert!(slots.census().quarantined[0].1.contains("pool.ssh_port_base"), "{:?}", slots.census());
    }
}
