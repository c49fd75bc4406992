//! What goes on in the slots, for people who ask. Nobody decides anything by it.
//!
//! Whoever brings something about notes it: the slots' task that a slot is leased, cleaned or free; those who have the lease
//! what they do in it, by its [`Notice`]. A lease that is over notes nothing more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::command::Name;
use tokio::time::Instant;

use super::machine::How;
use super::turn::Wait;

/// What is noted of all slots.
#[derive(Debug, Clone, Default)]
pub(super) struct Board(Arc<Mutex<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    slots: BTreeMap<u16, Note>,
    wait: Option<Wait>,
}

/// What is noted of one slot.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Note {
    pub state: SlotState,
    /// Since when it is in that state.
    pub since: Instant,
    /// Whom it is for; the last one while it is being cleaned.
    pub occupant: Option<Occupant>,
    /// What is being done in it, and since when.
    pub doing: Option<(String, Instant)>,
    /// Its QEMU.
    pub pid: Option<u32>,
    /// Whether the slot goes when it is free, as there are to be fewer.
    pub leaving: bool,
    /// Tells one lease from the next.
    lease: u64,
}

/// What a slot is used for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SlotState {
    /// What was in it is being removed.
    Cleaning,
    Free,
    /// A machine is being brought up in it.
    Starting,
    /// Its machine is somebody's.
    Up,
    /// Its machine is ready for a build to come.
    Warm,
    /// Its machine is held for a person.
    Held {
        until: Instant,
    },
    /// A template is being made in it.
    Template,
    /// Its machine is being ended.
    Stopping,
    /// It can't be cleaned.
    Quarantined {
        why: String,
    },
}

impl SlotState {
    /// What there is to say to who wants to get into it.
    pub(super) fn sentence(&self) -> &'static str {
        match self {
            SlotState::Cleaning => "being cleaned",
            SlotState::Free => "free",
            SlotState::Starting => "still being started",
            SlotState::Up | SlotState::Held { .. } => "just ending",
            SlotState::Warm => "warm, for a build that is to get it unused",
            SlotState::Template => "where a template is being made",
            SlotState::Stopping => "being ended",
            SlotState::Quarantined { .. } => "quarantined",
        }
    }
}

/// Whom a machine is for, and what it is made of, as far as that is known.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Occupant {
    /// None if it is no builder's.
    pub builder: Option<String>,
    /// The master's number of the build.
    pub build: Option<u64>,
    pub vm: Option<Name>,
    pub image: Name,
    pub generation: Option<u32>,
    pub how: Option<How>,
}

impl Occupant {
    /// A machine of an image that is nobody's yet.
    pub(super) fn of_nobody(image: &Name) -> Self {
        Occupant { builder: None, build: None, vm: None, image: image.clone(), generation: None, how: None }
    }

    /// A machine that is ordered.
    pub(super) fn ordered(order: &super::Order) -> Self {
        let builder = Some(order.owner.builder.clone()).filter(|builder| !builder.is_empty());
        Occupant { builder, build: order.build, vm: Some(order.owner.vm.clone()), ..Occupant::of_nobody(&order.image) }
    }
}

impl Board {
    /// Notes what a slot is that nobody has.
    pub(super) fn vacate(&self, slot: u16, state: SlotState) {
        let mut notes = self.notes();
        let Some(note) = notes.slots.get_mut(&slot) else {
            notes.slots.insert(slot, Note::new(state, 0));
            return;
        };
        // From here on the last lease has nothing to say.
        note.lease += 1;
        note.turn(state);
        if note.state == SlotState::Free {
            *note = Note::new(SlotState::Free, note.lease);
        }
    }

    /// Notes whether a slot goes when it is free.
    pub(super) fn leaves(&self, slot: u16, leaving: bool) {
        if let Some(note) = self.notes().slots.get_mut(&slot) {
            note.leaving = leaving;
        }
    }

    /// Notes that somebody has a slot from now on.
    pub(super) fn let_in(&self, slot: u16) -> Notice {
        let mut notes = self.notes();
        let lease = notes.slots.get(&slot).map_or(0, |note| note.lease) + 1;
        notes.slots.insert(slot, Note::new(SlotState::Starting, lease));
        drop(notes);
        Notice { board: self.clone(), slot, lease }
    }

    /// The right to note something of whoever has the slot now.
    pub(super) fn notice(&self, slot: u16) -> Option<Notice> {
        let lease = self.notes().slots.get(&slot)?.lease;
        Some(Notice { board: self.clone(), slot, lease })
    }

    /// Forgets a slot.
    pub(super) fn forget(&self, slot: u16) {
        self.notes().slots.remove(&slot);
    }

    /// Notes what the first of those who wait for a slot waits for.
    pub(super) fn waits_for(&self, wait: Option<Wait>) {
        self.notes().wait = wait;
    }

    /// What the first of those who wait for a slot waits for.
    pub(super) fn wait(&self) -> Option<Wait> {
        self.notes().wait.clone()
    }

    /// All that is noted of slots.
    pub(super) fn slots(&self) -> BTreeMap<u16, Note> {
        self.notes().slots.clone()
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Note {
    fn new(state: SlotState, lease: u64) -> Self {
        Note { state, since: Instant::now(), occupant: None, doing: None, pid: None, leaving: false, lease }
    }

    fn turn(&mut self, state: SlotState) {
        self.doing = None;
        if self.state != state {
            (self.state, self.since) = (state, Instant::now());
        }
    }
}

/// The right of those who have a slot to note what they do in it.
#[derive(Debug, Clone)]
pub(super) struct Notice {
    board: Board,
    slot: u16,
    lease: u64,
}

impl Notice {
    /// Notes whom the slot is for.
    pub(super) fn occupied_by(&self, occupant: Occupant) {
        self.change(|note| note.occupant = Some(occupant));
    }

    /// Notes what the slot is used for.
    pub(super) fn is(&self, state: SlotState) {
        self.change(|note| note.turn(state));
    }

    /// Notes what is being done in it.
    pub(super) fn doing(&self, what: impl Into<String>) {
        self.change(|note| note.doing = Some((what.into(), Instant::now())));
    }

    /// Notes what is being done in it, until this is dropped.
    pub(super) fn meanwhile(&self, what: impl Into<String>) -> Meanwhile<'_> {
        self.doing(what);
        Meanwhile(self)
    }

    /// Notes its QEMU.
    pub(super) fn process(&self, pid: u32) {
        self.change(|note| note.pid = Some(pid));
    }

    /// Whether the lease is over.
    pub(super) fn is_over(&self) -> bool {
        self.board.notes().slots.get(&self.slot).is_none_or(|note| note.lease != self.lease)
    }

    fn change(&self, change: impl FnOnce(&mut Note)) {
        if let Some(note) = self.board.notes().slots.get_mut(&self.slot)
            && note.lease == self.lease
        {
            change(note);
        }
    }
}

/// Something is being done in a slot, until this is dropped.
#[derive(Debug)]
pub(super) struct Meanwhile<'a>(&'a Notice);

impl Drop for Meanwhile<'_> {
    fn drop(&mut self) {
        self.0.change(|note| note.doing = None);
    }
}

/// A slot that is no lease's, and shows as long as this lives.
#[derive(Debug)]
pub(super) struct Shown(pub Notice);

impl Drop for Shown {
    fn drop(&mut self) {
        // It may have become one of the pool's since.
        if !self.0.is_over() {
            self.0.board.forget(self.0.slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Name {
        Name::new("debian").expect("a name")
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_noted_goes_with_the_lease() {
        let board = Board::default();
        let state = || board.slots().get(&0).map(|note| note.state.clone());
        board.vacate(0, SlotState::Cleaning);
        board.vacate(0, SlotState::Free);
        assert_eq!(state(), Some(SlotState::Free));
        let first = board.let_in(0);
        first.occupied_by(Occupant::of_nobody(&image()));
        first.process(17);
        first.doing("waiting for ssh");
        first.is(SlotState::Up);
        assert_eq!(state(), Some(SlotState::Up));
        let note = board.slots()[&0].clone();
        assert_eq!((note.pid, note.doing), (Some(17), None));
        assert!(!first.is_over());

        board.vacate(0, SlotState::Cleaning);
        assert!(first.is_over());
        // Who was in it last shows as long as something of it may be left.
        assert_eq!(board.slots()[&0].occupant, Some(Occupant::of_nobody(&image())));
        board.vacate(0, SlotState::Free);
        assert_eq!(board.slots()[&0].occupant, None);

        let second = board.let_in(0);
        first.is(SlotState::Stopping);
        assert_eq!(state(), Some(SlotState::Starting));
        second.is(SlotState::Warm);
        assert_eq!(state(), Some(SlotState::Warm));
        board.forget(0);
        assert!(second.is_over() && board.slots().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_lasts_since_it_began() {
        let board = Board::default();
        let begun = Instant::now();
        let notice = board.let_in(0);
        tokio::time::advance(std::time::Duration::from_secs(5)).await;
        notice.is(SlotState::Starting);
        assert_eq!(board.slots()[&0].since, begun);
        notice.is(SlotState::Up);
        assert_eq!(board.slots()[&0].since, Instant::now());
    }
}
