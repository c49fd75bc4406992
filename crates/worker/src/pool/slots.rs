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
//!
//! Those who want one wait in one queue, for a slot and for what the [`Budget`] promises with it. Only the first in it is
//! served: a small machine does not overtake a large one, which might else wait for ever. Slot and promise are got
//! together or not at all, so that nobody who waits keeps from others what is of no use without the rest. While the worker is
//! paused nobody is served.
//!
//! How many slots there are may change while machines run. New ones begin like all others. Those that are too many, the
//! ones of the highest numbers, are *retired*: nobody gets them any more, and each goes when it is clean.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use qemu::Leftover;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::board::{Board, Notice, SlotState};
use super::budget::{Budget, Need, Promise};
use super::disks::DiskLock;
use super::generations::Ground;
use super::slot::Slot;
use super::turn::{self, Turn, Wait, Waiting};
use crate::core_tasks::{CoreTasks, End};

/// How long a slot that can't be cleaned is left alone before the next attempt.
const QUARANTINE: Duration = Duration::from_secs(30);

/// How long a QEMU that was left in a slot has after each signal.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many may come to the queue at once; more than any master starts builds on one worker.
const WAITING: usize = 1024;

/// How often the disk is looked at while it has too little space: nothing tells when that ends.
const DISK_LOOK: Duration = Duration::from_secs(1);

/// The slots of the pool.
#[derive(Debug, Clone)]
pub(crate) struct Slots {
    wanted: mpsc::Sender<Want>,
    census: watch::Receiver<Census>,
    board: Board,
    /// Whether none is handed out.
    paused: Arc<watch::Sender<bool>>,
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
    /// How many there are beside these that go when they are clean.
    pub retired: u16,
    /// The number after the highest that there is, retired ones included.
    pub beyond: u16,
    /// How many wait for one.
    pub waiting: usize,
    /// What the first of them lacks.
    pub lack: Lack,
}

/// What the first of those who wait lacks, beyond what is on its way back from machines that end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lack {
    pub slot: bool,
    pub memory_mib: u64,
    /// Space on the disk.
    pub disk: bool,
}

/// One who wants a slot.
#[derive(Debug)]
enum Want {
    /// And waits for it.
    Waiting(Waiting),
    /// If nobody waits, and it is there.
    AtOnce { need: Need, answer: oneshot::Sender<Option<Lease>> },
    /// Nothing, but gives one back soon.
    Leaving { slot: Slot, memory_mib: u64 },
    /// Nothing, but asks what others lack: those who wait, or else one who needs no slot.
    Lack { slotless: Option<Need>, answer: oneshot::Sender<Lack> },
    /// Nothing, but says which slots there are to be.
    Only { slots: Vec<Slot>, done: oneshot::Sender<()> },
}

/// The use of a slot, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    slot: Slot,
    promise: Option<Promise>,
    disk: Option<DiskLock>,
    ground: Option<Ground>,
    notice: Notice,
    returned: mpsc::UnboundedSender<Used>,
}

/// A slot that is not clean, and what its QEMU, if it is still there, may write to and stands on.
#[derive(Debug)]
struct Used {
    slot: Slot,
    promise: Option<Promise>,
    disk: Option<DiskLock>,
    ground: Option<Ground>,
    /// Whether it was an earlier run that used it.
    earlier: bool,
}

impl Used {
    fn alone(slot: Slot) -> Self {
        Used { slot, promise: None, disk: None, ground: None, earlier: false }
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

    /// Where what is done in it is noted for people.
    pub(super) fn notice(&self) -> &Notice {
        &self.notice
    }

    /// What was promised of the memory to the machine in it, in MiB.
    pub(super) fn memory_mib(&self) -> u64 {
        self.promise.as_ref().map_or(0, |promise| promise.need().memory_mib())
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
        let _ = self.returned.send(Used {
            slot: self.slot.clone(),
            promise: self.promise.take(),
            disk: self.disk.take(),
            ground: self.ground.take(),
            earlier: false,
        });
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Free,
    Leased,
    /// It is going to be given back, and what was promised to its machine with it.
    Leaving {
        memory_mib: u64,
    },
    /// What was promised to its machine comes back with it.
    Reclaiming {
        memory_mib: u64,
    },
    Quarantined {
        why: String,
    },
}

impl Slots {
    /// Starts the slots' task, without any slots. It ends when the last `Slots` and the last [`Lease`] are gone.
    pub(crate) fn new(budget: Budget, tasks: &CoreTasks) -> Self {
        let (wanted, wants) = mpsc::channel(WAITING);
        let (census_out, census) = watch::channel(Census::default());
        let board = Board::default();
        let (paused, pauses) = watch::channel(false);
        let keeper = Keeper::new(budget, tasks.clone(), census_out, board.clone(), pauses);
        tokio::spawn(tasks.watch("the slots' task", End::Never, keeper.run(wants)));
        Slots { wanted, census, board, paused: Arc::new(paused) }
    }

    /// Hands out none from now on, or does again. Those that are leased stay so.
    pub(crate) fn pause(&self, paused: bool) {
        self.paused.send_if_modified(|old| std::mem::replace(old, paused) != paused);
    }

    /// Whether none is handed out.
    pub(crate) fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    /// Has only these slots be there, whose numbers are the first. The others go as soon as no machine is in them.
    pub(crate) async fn set(&self, slots: Vec<Slot>) {
        let (done, is_done) = oneshot::channel();
        let _ = self.wanted.send(Want::Only { slots, done }).await;
        let _ = is_done.await;
    }

    /// Takes a place in the queue for a slot with what the machine in it will need.
    pub(crate) async fn queue(&self, need: Need) -> Turn {
        let (waiting, turn) = turn::take(need);
        // The task ends only after this handle, so this always succeeds.
        let _ = self.wanted.send(Want::Waiting(waiting)).await;
        turn
    }

    /// Leases a slot if there is one, with what the machine in it will need, and nobody waits for one.
    pub(crate) async fn lease_at_once(&self, need: Need) -> Option<Lease> {
        let (answer, lease) = oneshot::channel();
        let _ = self.wanted.send(Want::AtOnce { need, answer }).await;
        lease.await.ok().flatten()
    }

    /// Notes that a slot is going to be given back, so that what it holds is not counted as lacking.
    pub(crate) async fn leaving(&self, lease: &Lease) {
        let leaving = Want::Leaving { slot: lease.slot.clone(), memory_mib: lease.memory_mib() };
        let _ = self.wanted.send(leaving).await;
    }

    /// What the first of those who wait lacks, after all that was noted before. If nobody waits, what one lacks who has a
    /// slot of its own.
    pub(crate) async fn lack(&self, slotless: Option<Need>) -> Lack {
        self.ask(slotless).await.unwrap_or_default()
    }

    /// Waits for an answer of the slots' task; false if there will be none.
    pub(crate) async fn answer(&self) -> bool {
        self.ask(None).await.is_some()
    }

    async fn ask(&self, slotless: Option<Need>) -> Option<Lack> {
        let (answer, lack) = oneshot::channel();
        self.wanted.send(Want::Lack { slotless, answer }).await.ok()?;
        lack.await.ok()
    }

    /// What changes with the slots.
    pub(crate) fn changes(&self) -> watch::Receiver<Census> {
        self.census.clone()
    }

    /// How the slots are now.
    pub(crate) fn census(&self) -> Census {
        self.census.borrow().clone()
    }

    /// What goes on in the slots.
    pub(super) fn board(&self) -> &Board {
        &self.board
    }

    /// Waits until every slot is free or quarantined, and the retired ones are gone.
    pub(crate) async fn settled(&self) {
        let mut census = self.census.clone();
        let settled = |census: &Census| {
            census.retired == 0 && usize::from(census.free) + census.quarantined.len() >= usize::from(census.slots)
        };
        let _ = census.wait_for(settled).await;
    }
}

/// A slot, as its keeper sees it.
struct Place {
    slot: Slot,
    state: State,
    /// Whether it goes as soon as it is clean.
    retired: bool,
}

/// The task that owns the slots' states.
struct Keeper {
    /// By number.
    places: Vec<Place>,
    budget: Budget,
    tasks: CoreTasks,
    census: watch::Sender<Census>,
    board: Board,
    paused: watch::Receiver<bool>,
    waiting: VecDeque<Waiting>,
    /// At most one message for each slot is in either of these, so they need no bound.
    returned: (mpsc::UnboundedSender<Used>, mpsc::UnboundedReceiver<Used>),
    cleaned: (mpsc::UnboundedSender<Cleaned>, mpsc::UnboundedReceiver<Cleaned>),
}

struct Cleaned {
    used: Used,
    result: anyhow::Result<()>,
}

impl Keeper {
    fn new(
        budget: Budget,
        tasks: CoreTasks,
        census: watch::Sender<Census>,
        board: Board,
        paused: watch::Receiver<bool>,
    ) -> Self {
        Keeper {
            places: Vec::new(),
            budget,
            tasks,
            census,
            board,
            paused,
            waiting: VecDeque::new(),
            returned: mpsc::unbounded_channel(),
            cleaned: mpsc::unbounded_channel(),
        }
    }

    async fn run(mut self, mut wants: mpsc::Receiver<Want>) {
        let mut wanted = true;
        // Promises of other slots, too, come out of the one budget.
        let mut promises = self.budget.returned();
        while wanted
            || self
                .places
                .iter()
                .any(|place| matches!(place.state, State::Leased | State::Leaving { .. } | State::Reclaiming { .. }))
        {
            tokio::select! {
                // In this order, so that what was said of a slot is heard before the slot is free again.
                biased;
                Some(used) = self.returned.1.recv() => self.take_back(used),
                want = wants.recv(), if wanted => match want {
                    Some(Want::Waiting(waiting)) => self.waiting.push_back(waiting),
                    Some(Want::AtOnce { need, answer }) => {
                        let idle = self.waiting.is_empty() && !self.is_paused();
                        let lease = if idle { self.place(need).ok() } else { None };
                        // One who asks no more drops the lease, which returns the slot.
                        let _ = answer.send(lease);
                    }
                    Some(Want::Leaving { slot, memory_mib }) => self.note_leaving(&slot, memory_mib),
                    Some(Want::Lack { slotless, answer }) => {
                        // What was given back before this was asked is not lacking.
                        while let Ok(used) = self.returned.1.try_recv() {
                            self.take_back(used);
                        }
                        let _ = answer.send(self.lack(slotless));
                    }
                    Some(Want::Only { slots, done }) => {
                        self.set_slots(slots);
                        self.tell();
                        let _ = done.send(());
                    }
                    None => wanted = false,
                },
                Some(Cleaned { used, result }) = self.cleaned.1.recv() => self.judge(used, result),
                _ = promises.changed() => {}
                Ok(()) = self.paused.changed() => {}
                () = turn::given_up(self.waiting.front_mut()) => {}
                () = tokio::time::sleep(DISK_LOOK), if self.budget.disk_was_low() || self.waits_for_disk() => {
                    self.budget.disk_is_low();
                }
            }
            self.hand_out();
            self.tell();
        }
    }

    fn set(&mut self, slot: &Slot, new: State) {
        let vacant = match &new {
            State::Free => Some(SlotState::Free),
            State::Reclaiming { .. } => Some(SlotState::Cleaning),
            State::Quarantined { why } => Some(SlotState::Quarantined { why: why.clone() }),
            // Whoever has the lease notes what comes of it.
            State::Leased | State::Leaving { .. } => None,
        };
        if let Some(vacant) = vacant {
            self.board.vacate(slot.number(), vacant);
        }
        if let Some(place) = self.places.iter_mut().find(|place| place.slot == *slot) {
            place.state = new;
        }
        self.let_go();
    }

    /// Forgets the retired slots that are clean.
    fn let_go(&mut self) {
        let board = &self.board;
        self.places.retain(|place| {
            let goes = place.retired && place.state == State::Free;
            if goes {
                board.forget(place.slot.number());
            }
            !goes
        });
    }

    /// Has only these slots be there.
    fn set_slots(&mut self, slots: Vec<Slot>) {
        for place in &mut self.places {
            place.retired = !slots.contains(&place.slot);
            self.board.leaves(place.slot.number(), place.retired);
        }
        self.let_go();
        for slot in slots {
            if self.places.iter().all(|place| place.slot != slot) {
                self.board.vacate(slot.number(), SlotState::Cleaning);
                self.reclaim(Used { earlier: true, ..Used::alone(slot.clone()) }, Duration::ZERO);
                self.places.push(Place { slot, state: State::Reclaiming { memory_mib: 0 }, retired: false });
            }
        }
        self.places.sort_by_key(|place| place.slot.number());
    }

    /// The slots that are to stay.
    fn staying(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|place| !place.retired)
    }

    /// Notes that a slot is going to be given back, unless it was already: nothing would end that state then.
    fn note_leaving(&mut self, slot: &Slot, memory_mib: u64) {
        let leased = |place: &Place| place.slot == *slot && place.state == State::Leased;
        if self.places.iter().any(leased) {
            self.set(slot, State::Leaving { memory_mib });
        }
    }

    fn take_back(&mut self, used: Used) {
        let memory_mib = used.promise.as_ref().map_or(0, |promise| promise.need().memory_mib());
        self.set(&used.slot, State::Reclaiming { memory_mib });
        self.reclaim(used, Duration::ZERO);
    }

    fn judge(&mut self, used: Used, result: anyhow::Result<()>) {
        match result {
            Ok(()) => {
                self.set(&used.slot, State::Free);
                drop((used.promise, used.disk, used.ground));
            }
            Err(error) => self.quarantine(used, format!("{error:#}")),
        }
    }

    fn quarantine(&mut self, used: Used, why: String) {
        error!(slot = used.slot.number(), retry_in_s = QUARANTINE.as_secs(), "slot quarantined: {why}");
        self.set(&used.slot, State::Quarantined { why });
        self.reclaim(used, QUARANTINE);
    }

    /// Gives slots to those who wait, in their order, and tells the others what they wait for.
    fn hand_out(&mut self) {
        self.waiting.retain(|waiting| !waiting.has_left());
        if self.is_paused() {
            return self.waiting.iter().for_each(|waiting| waiting.tell(Wait::Paused));
        }
        let first = loop {
            let Some(first) = self.waiting.front() else { return };
            match self.place(first.need) {
                Ok(lease) => {
                    if let Some(first) = self.waiting.pop_front() {
                        first.serve(lease);
                    }
                }
                Err(wait) => break wait,
            }
        };
        for (ahead, waiting) in self.waiting.iter().enumerate() {
            let wait = match first {
                Wait::Short(first) if ahead > 0 => Wait::Turn { ahead, first },
                _ => first.clone(),
            };
            waiting.tell(wait);
        }
    }

    /// Leases a free slot, that of the lowest number, with what its machine will need.
    fn place(&mut self, need: Need) -> Result<Lease, Wait> {
        loop {
            let free = self.staying().find(|place| place.state == State::Free).map(|place| place.slot.clone());
            let Some(slot) = free else {
                return Err(Wait::Slot { slots: self.count(|_| true), quarantined: self.quarantined() });
            };
            let promise = self.budget.promise(need, &slot.overlay()).map_err(Wait::Short)?;
            if let Err(error) = port_is_free(slot.ssh_port()) {
                self.quarantine(Used::alone(slot), format!("{error:#}"));
                continue;
            }
            self.set(&slot, State::Leased);
            let returned = self.returned.0.clone();
            let notice = self.board.let_in(slot.number());
            return Ok(Lease { slot, promise: Some(promise), disk: None, ground: None, notice, returned });
        }
    }

    fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    fn waits_for_disk(&self) -> bool {
        let wait = self.waiting.front().and_then(Waiting::waits_for);
        matches!(wait, Some(Wait::Short(shortage)) if shortage.is_of_disk())
    }

    fn reclaim(&self, used: Used, after: Duration) {
        let cleaned = self.cleaned.0.clone();
        tokio::spawn(self.tasks.watch("the cleaning of a slot", End::Done, async move {
            tokio::time::sleep(after).await;
            let result = if used.earlier { clean_up_after_another(&used.slot).await } else { clean(&used.slot).await };
            let _ = cleaned.send(Cleaned { used, result });
        }));
    }

    fn tell(&self) {
        self.board.waits_for(self.waiting.front().and_then(Waiting::waits_for));
        let retired = self.places.iter().filter(|place| place.retired && !place.is_quarantined()).count();
        let census = Census {
            slots: self.count(|_| true),
            free: self.count(|state| *state == State::Free),
            quarantined: self.quarantined(),
            retired: u16::try_from(retired).unwrap_or(u16::MAX),
            beyond: self.places.last().map_or(0, |place| place.slot.number().saturating_add(1)),
            waiting: self.waiting.len(),
            lack: self.lack(None),
        };
        self.census.send_if_modified(|old| std::mem::replace(old, census.clone()) != census);
    }

    fn lack(&self, slotless: Option<Need>) -> Lack {
        let first = self.waiting.front().filter(|_| !self.is_paused()).map(|first| first.need);
        let Some(need) = first.or(slotless) else { return Lack::default() };
        let coming = self.places.iter().filter_map(|place| match place.state {
            State::Free => Some((place, 0)),
            State::Leaving { memory_mib } | State::Reclaiming { memory_mib } => Some((place, memory_mib)),
            State::Leased | State::Quarantined { .. } => None,
        });
        // Of one that is retired the memory comes back alone.
        let (slots, memory_mib) = coming.fold((0, 0), |(slots, sum): (usize, u64), (place, memory_mib)| {
            (slots + usize::from(!place.retired), sum + memory_mib)
        });
        let left = self.budget.memory_left_mib().unwrap_or(u64::MAX);
        Lack {
            slot: first.is_some() && slots == 0,
            memory_mib: need.memory_mib().saturating_sub(left.saturating_add(memory_mib)),
            disk: self.waits_for_disk(),
        }
    }

    fn count(&self, which: impl Fn(&State) -> bool) -> u16 {
        u16::try_from(self.staying().filter(|place| which(&place.state)).count()).unwrap_or(u16::MAX)
    }

    fn quarantined(&self) -> Vec<(u16, String)> {
        let why = |place: &Place| match &place.state {
            State::Quarantined { why } => Some((place.slot.number(), why.clone())),
            _ => None,
        };
        self.staying().filter_map(why).collect()
    }
}

impl Place {
    fn is_quarantined(&self) -> bool {
        matches!(self.state, State::Quarantined { .. })
    }
}

/// Ends what still runs in a slot, provided that it is provably ours, and removes the slot's files.
pub(super) async fn clean(slot: &Slot) -> anyhow::Result<()> {
    // A machine's own end removes its pidfile. This one had nobody who looked after it any more.
    if let Leftover::Ended { pid, with, after } = qemu::Pidfile::new(slot.pid_file()).clear(PATIENCE).await? {
        let after_s = after.as_secs_f32();
        info!(slot = slot.number(), pid, signal = %with, after_s, "ended a qemu that was left");
    }
    remove_directory(slot.directory()).await
}

/// Does the same with what an earlier run left there, and says what that was.
async fn clean_up_after_another(slot: &Slot) -> anyhow::Result<()> {
    let number = slot.number();
    if !slot.directory().exists() {
        return Ok(());
    }
    let leftover = qemu::Pidfile::new(slot.pid_file()).clear(PATIENCE).await?;
    remove_directory(slot.directory()).await?;
    match leftover {
        Leftover::None => info!(slot = number, "removed the files of an earlier run"),
        Leftover::Stale { pid } => info!(slot = number, pid, "removed the files of an earlier run, whose qemu is gone"),
        Leftover::Copied { pid } => {
            info!(slot = number, pid, "removed the files of a copied directory, whose qemu was left alone");
        }
        Leftover::Ended { pid, with, after } => {
            let after_s = after.as_secs_f32();
            info!(slot = number, pid, signal = %with, after_s, "ended the qemu of an earlier run and removed its files");
        }
    }
    Ok(())
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
pub(crate) fn port_is_free(port: u16) -> anyhow::Result<()> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(drop).with_context(|| {
        format!("listen on 127.0.0.1:{port}: another program uses it; stop it or change pool.ssh_port_base")
    })
}

/// Whether a QEMU that a worker left runs on in a slot.
pub(crate) fn is_left(state_dir: &Path, number: u16) -> bool {
    let slot = Slot::new(number, 0, &directory(state_dir));
    let named = qemu::Pidfile::new(slot.pid_file()).read().ok().flatten();
    named.is_some_and(|identity| identity.is_alive())
}

/// The directory of all slots.
pub(super) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("slots")
}

/// Cleans slots that the configuration no longer has.
pub(super) async fn clean_beyond(slots: &Path, count: u16, ssh_port_base: u16) {
    let Ok(mut entries) = tokio::fs::read_dir(slots).await else { return };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(number) = number.filter(|number| *number >= count)
            && let Err(error) = clean_up_after_another(&Slot::new(number, ssh_port_base, slots)).await
        {
            warn!(slot = number, "clean a slot that the configuration no longer has: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests;
