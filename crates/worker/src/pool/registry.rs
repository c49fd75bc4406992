//! Which builder has what machine under which name. No IO and no clock: the pool acts on what is decided here.
//!
//! ```text
//! claim ─▶ Starting ──fulfil──▶ Machine ──take, release──▶ (gone)
//!             │                    it may have died or expired, and says so until it is taken
//!             │                    └──hold──▶ held, by nobody, until it is let go
//!             └──give up──▶ Failed if it was to be bound, else (gone)
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::{Owner, Status, VmError};

/// What a builder has.
#[derive(Debug)]
pub(super) struct Registry<M> {
    entries: BTreeMap<Owner, Entry<M>>,
    /// Those that are nobody's but run on for people, the one that was held first at the front.
    held: VecDeque<Arc<M>>,
    /// Those that people started.
    lent: Vec<Arc<M>>,
}

/// What the registry has to know of a machine.
pub(super) trait Tenant {
    /// Whether it is there.
    fn status(&self) -> Status;
}

/// What a builder has under a name.
#[derive(Debug)]
struct Entry<M> {
    build: Option<u64>,
    bind: bool,
    state: State<M>,
}

#[derive(Debug)]
enum State<M> {
    /// It is being started, by the holder of this.
    Starting(Token),
    /// It was to be bound and did not start. Commands that were meant for it must not run elsewhere.
    Failed { reason: String },
    /// It is there, or was until it died.
    Machine(Arc<M>),
}

/// Tells one start from another of the same name.
#[derive(Debug, Clone)]
pub(super) struct Token(Arc<()>);

/// Whose machines are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope<'a> {
    /// Everybody's: all builds are over.
    All,
    /// A builder's.
    Builder(&'a str),
    /// A builder's whose build is this one, or is not known.
    Build { builder: &'a str, build: u64 },
    /// A builder's whose build is known and another one. A builder has one build at a time on a worker, so theirs is over.
    OtherBuilds { builder: &'a str, build: u64 },
}

impl Scope<'_> {
    fn covers(&self, builder: &str, build: Option<u64>) -> bool {
        match *self {
            Scope::All => true,
            Scope::Builder(whose) => whose == builder,
            Scope::Build { builder: whose, build: over } => whose == builder && build.is_none_or(|build| build == over),
            Scope::OtherBuilds { builder: whose, build: now } => {
                whose == builder && build.is_some_and(|build| build != now)
            }
        }
    }
}

impl<M: Tenant> Registry<M> {
    pub(super) fn new() -> Self {
        Registry { entries: BTreeMap::new(), held: VecDeque::new(), lent: Vec::new() }
    }

    /// Takes the name for a machine that is about to be started.
    pub(super) fn claim(&mut self, owner: &Owner, build: Option<u64>, bind: bool) -> Result<Token, VmError> {
        let taken = match self.entries.get(owner).map(|entry| &entry.state) {
            Some(State::Starting(_)) => true,
            Some(State::Machine(machine)) => machine.status() == Status::Up,
            Some(State::Failed { .. }) | None => false,
        };
        if taken {
            return Err(VmError::AlreadyRunning(owner.vm.clone()));
        }
        let token = Token(Arc::new(()));
        self.entries.insert(owner.clone(), Entry { build, bind, state: State::Starting(token.clone()) });
        Ok(token)
    }

    /// Hands the machine to the builder, unless the builder was released meanwhile.
    pub(super) fn fulfil(&mut self, owner: &Owner, token: &Token, machine: &Arc<M>) -> Result<(), VmError> {
        match self.starting(owner, token) {
            Some(entry) => {
                entry.state = State::Machine(Arc::clone(machine));
                Ok(())
            }
            None => Err(VmError::Lost { reason: format!("vm '{}' was given up while it was being started", owner.vm) }),
        }
    }

    /// Ends a start that came to nothing. After one that was to be bound the name stands for a machine that is not running,
    /// until it is stopped, released or started again.
    pub(super) fn give_up(&mut self, owner: &Owner, token: &Token, reason: String) {
        if let Some(entry) = self.starting(owner, token) {
            if entry.bind {
                entry.state = State::Failed { reason };
            } else {
                self.entries.remove(owner);
            }
        }
    }

    fn starting(&mut self, owner: &Owner, token: &Token) -> Option<&mut Entry<M>> {
        self.entries
            .get_mut(owner)
            .filter(|entry| matches!(&entry.state, State::Starting(holder) if Arc::ptr_eq(&holder.0, &token.0)))
    }

    /// The builder's machine of this name.
    pub(super) fn find(&self, owner: &Owner) -> Result<Arc<M>, VmError> {
        match self.entries.get(owner) {
            None => Err(VmError::NotRunning(owner.vm.clone())),
            Some(entry) => entry.machine(owner),
        }
    }

    /// The machine that the builder's commands run in unless they say otherwise; none if the builder has bound none.
    ///
    /// # Errors
    /// One is bound and is not there: the commands have nowhere to run.
    pub(super) fn bound(&self, builder: &str) -> Result<Option<Arc<M>>, VmError> {
        let bound = self.of(builder).filter(|(_, entry)| entry.bind);
        bound
            .map(|(owner, entry)| entry.machine(owner))
            .reduce(|first, next| if first.is_err() { first } else { next.and(first) })
            .transpose()
    }

    /// All machines of a builder, by name, those that died included.
    pub(super) fn list(&self, builder: &str) -> Vec<Arc<M>> {
        let machine = |entry: &Entry<M>| match &entry.state {
            State::Machine(machine) => Some(Arc::clone(machine)),
            State::Starting(_) | State::Failed { .. } => None,
        };
        self.of(builder).filter_map(|(_, entry)| machine(entry)).collect()
    }

    /// The builders that have a machine which is there, or is being started.
    pub(super) fn builders(&self) -> BTreeSet<String> {
        let there = |entry: &Entry<M>| match &entry.state {
            State::Starting(_) => true,
            State::Machine(machine) => machine.status() == Status::Up,
            State::Failed { .. } => false,
        };
        self.entries.iter().filter(|(_, entry)| there(entry)).map(|(owner, _)| owner.builder.clone()).collect()
    }

    /// Takes the machine from the builder, and the name of one that did not start.
    pub(super) fn take(&mut self, owner: &Owner) -> Option<Arc<M>> {
        if matches!(self.entries.get(owner)?.state, State::Starting(_)) {
            return None;
        }
        match self.entries.remove(owner)?.state {
            State::Machine(machine) => Some(machine),
            State::Starting(_) | State::Failed { .. } => None,
        }
    }

    /// Takes from builders what they have and what is being started for them; the machines are to be stopped.
    pub(super) fn release(&mut self, scope: Scope<'_>) -> Vec<Arc<M>> {
        let mut machines = Vec::new();
        self.entries.retain(|owner, entry| {
            let over = scope.covers(&owner.builder, entry.build);
            if let (true, State::Machine(machine)) = (over, &entry.state) {
                machines.push(Arc::clone(machine));
            }
            !over
        });
        machines
    }

    /// Takes the machine from the builder to hold it, and returns it with those that are to be stopped for it, so that no
    /// more than `most` are held.
    pub(super) fn hold(&mut self, owner: &Owner, most: usize) -> Result<(Arc<M>, Vec<Arc<M>>), VmError> {
        let machine = self.find(owner)?;
        self.entries.remove(owner);
        let displaced = self.hold_another(&machine, most);
        Ok((machine, displaced))
    }

    fn hold_another(&mut self, machine: &Arc<M>, most: usize) -> Vec<Arc<M>> {
        self.held.push_back(Arc::clone(machine));
        let beyond = self.held.len().saturating_sub(most);
        self.held.drain(..beyond).collect()
    }

    /// Notes that a person has a machine, until it is let go.
    pub(super) fn lend(&mut self, machine: &Arc<M>) {
        self.lent.push(Arc::clone(machine));
    }

    /// Holds a machine that a person has; returns what [`hold`](Self::hold) does, or nothing if it was let go meanwhile.
    pub(super) fn hold_lent(&mut self, machine: &Arc<M>, most: usize) -> Option<Vec<Arc<M>>> {
        let place = self.lent.iter().position(|lent| Arc::ptr_eq(lent, machine))?;
        self.lent.swap_remove(place);
        Some(self.hold_another(machine, most))
    }

    /// The machines that people have, and those that are held for them.
    pub(super) fn of_people(&self) -> impl Iterator<Item = &Arc<M>> {
        self.held.iter().chain(&self.lent)
    }

    /// All machines.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<M>> {
        let machine = |entry| match entry {
            &Entry { state: State::Machine(ref machine), .. } => Some(machine),
            _ => None,
        };
        self.entries.values().filter_map(machine).chain(self.of_people())
    }

    /// The machines that are held.
    pub(super) fn held(&self) -> impl Iterator<Item = &Arc<M>> {
        self.held.iter()
    }

    /// Takes a machine from whichever person has it, and returns whether it was held.
    pub(super) fn let_go(&mut self, machine: &Arc<M>) -> bool {
        self.lent.retain(|lent| !Arc::ptr_eq(lent, machine));
        let held = self.held.len();
        self.held.retain(|held| !Arc::ptr_eq(held, machine));
        self.held.len() < held
    }

    /// All machines that are there, those that are held included.
    pub(super) fn up(&self) -> impl Iterator<Item = &Arc<M>> {
        let builders = self.entries.values().filter_map(|entry| match &entry.state {
            State::Machine(machine) => Some(machine),
            State::Starting(_) | State::Failed { .. } => None,
        });
        builders.chain(&self.held).filter(|machine| machine.status() == Status::Up)
    }

    /// Whose the machine is that `is` tells.
    pub(super) fn tenant(&self, is: impl Fn(&M) -> bool) -> Option<Owner> {
        let mut entries = self.entries.iter();
        entries
            .find(|(_, entry)| matches!(&entry.state, State::Machine(machine) if is(machine)))
            .map(|(owner, _)| owner.clone())
    }

    fn of(&self, builder: &str) -> impl Iterator<Item = (&Owner, &Entry<M>)> {
        self.entries.iter().filter(move |(owner, _)| owner.builder == builder)
    }
}

impl<M: Tenant> Entry<M> {
    fn machine(&self, owner: &Owner) -> Result<Arc<M>, VmError> {
        match &self.state {
            State::Starting(_) => Err(VmError::BeingStarted(owner.vm.clone())),
            State::Failed { reason } => Err(VmError::NotStarted { vm: owner.vm.clone(), reason: reason.clone() }),
            State::Machine(machine) => match machine.status() {
                Status::Up => Ok(Arc::clone(machine)),
                Status::Stopped => Err(VmError::NotRunning(owner.vm.clone())),
                Status::Died { reason } => Err(VmError::Lost { reason }),
                Status::Expired { reason } => Err(VmError::Expired { reason }),
                Status::Outgrown { reason } => Err(VmError::Outgrown { reason }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::command::Name;

    use super::*;

    /// A machine of this name in this state.
    #[derive(Debug)]
    struct Fake(&'static str, Status);

    impl Tenant for Fake {
        fn status(&self) -> Status {
            self.1.clone()
        }
    }

    /// What became of a start.
    #[derive(Debug, Clone)]
    enum Start {
        UnderWay,
        GivenUp,
        Now(Status),
    }

    fn up() -> Start {
        Start::Now(Status::Up)
    }

    fn died() -> Start {
        Start::Now(Status::Died { reason: "it died".to_owned() })
    }

    fn expired() -> Start {
        Start::Now(Status::Expired { reason: "its time was over".to_owned() })
    }

    fn outgrown() -> Start {
        Start::Now(Status::Outgrown { reason: "it grew".to_owned() })
    }

    fn owner(builder: &str, vm: &str) -> Owner {
        Owner { builder: builder.to_owned(), vm: Name::new(vm).expect("a name") }
    }

    fn add(
        registry: &mut Registry<Fake>,
        builder: &str,
        vm: &'static str,
        build: Option<u64>,
        bind: bool,
        start: Start,
    ) {
        let owner = owner(builder, vm);
        let token = registry.claim(&owner, build, bind).expect("it is free");
        match start {
            Start::UnderWay => {}
            Start::GivenUp => registry.give_up(&owner, &token, "it did not start".to_owned()),
            Start::Now(status) => registry.fulfil(&owner, &token, &Arc::new(Fake(vm, status))).expect("it is claimed"),
        }
    }

    /// `Ok` with the machine's name, `Ok` with nothing, or `Err` with the reason on the wire.
    fn outcome(found: Result<Option<Arc<Fake>>, VmError>) -> Result<Option<&'static str>, &'static str> {
        found.map(|machine| machine.map(|machine| machine.0)).map_err(|error| error.reason())
    }

    #[test]
    fn commands_run_where_the_builder_is_bound_to_or_nowhere() {
        let check = |machines: &[(&'static str, bool, Start)], expected| {
            let mut registry = Registry::new();
            for (vm, bind, start) in machines {
                add(&mut registry, "b", vm, Some(1), *bind, start.clone());
            }
            assert_eq!(outcome(registry.bound("b")), expected, "{machines:?}");
            assert_eq!(outcome(registry.bound("another")), Ok(None));
        };
        check(&[], Ok(None));
        check(&[("a", false, up())], Ok(None));
        check(&[("a", false, died()), ("b", false, Start::UnderWay), ("c", false, Start::GivenUp)], Ok(None));
        check(&[("a", false, up()), ("b", true, up())], Ok(Some("b")));
        check(&[("a", true, up()), ("b", true, up())], Ok(Some("a")));
        check(&[("a", true, died())], Err("vm_lost"));
        check(&[("a", true, expired())], Err("vm_expired"));
        check(&[("a", true, outgrown())], Err("vm_outgrown"));
        check(&[("a", true, Start::Now(Status::Stopped))], Err("vm_not_running"));
        check(&[("a", true, Start::UnderWay)], Err("vm_not_running"));
        check(&[("a", true, Start::GivenUp)], Err("vm_not_running"));
        check(&[("a", true, up()), ("b", true, died())], Err("vm_lost"));
        check(&[("a", true, died()), ("b", true, up())], Err("vm_lost"));
    }

    #[test]
    fn builders_have_what_is_there_or_is_being_started() {
        let mut registry = Registry::new();
        add(&mut registry, "a", "one", Some(1), false, up());
        add(&mut registry, "a", "two", Some(1), false, up());
        add(&mut registry, "b", "vm", None, false, Start::UnderWay);
        for (builder, start) in [("c", died()), ("d", expired()), ("e", Start::GivenUp)] {
            add(&mut registry, builder, "vm", Some(1), true, start);
        }
        add(&mut registry, "f", "held", Some(1), false, up());
        registry.hold(&owner("f", "held"), 1).expect("it is up");
        assert_eq!(registry.builders(), ["a", "b"].map(str::to_owned).into());
    }

    #[test]
    fn a_name_is_free_again_when_its_machine_is_not_there() {
        let check = |start: Start, again: bool, found| {
            let mut registry = Registry::new();
            add(&mut registry, "b", "vm", None, true, start.clone());
            assert_eq!(outcome(registry.find(&owner("b", "vm")).map(Some)), found, "{start:?}");
            assert_eq!(registry.claim(&owner("b", "vm"), None, true).is_ok(), again, "{start:?}");
        };
        check(up(), false, Ok(Some("vm")));
        check(Start::UnderWay, false, Err("vm_not_running"));
        check(died(), true, Err("vm_lost"));
        check(expired(), true, Err("vm_expired"));
        check(outgrown(), true, Err("vm_outgrown"));
        check(Start::GivenUp, true, Err("vm_not_running"));
    }

    #[test]
    fn what_was_taken_binds_nobody() {
        for start in [up(), died(), expired(), Start::GivenUp] {
            let mut registry = Registry::new();
            add(&mut registry, "b", "vm", None, true, start.clone());
            let machine = registry.take(&owner("b", "vm")).is_some();
            assert_eq!(machine, !matches!(start, Start::GivenUp), "{start:?}");
            assert_eq!(outcome(registry.bound("b")), Ok(None), "{start:?}");
        }
        let mut registry = Registry::new();
        add(&mut registry, "b", "vm", None, true, Start::UnderWay);
        assert!(registry.take(&owner("b", "vm")).is_none());
        assert_eq!(outcome(registry.bound("b")), Err("vm_not_running"));
    }

    #[test]
    fn releases_take_what_is_over_and_nothing_else() {
        let check = |scope: Scope<'_>, expected: &[&str]| {
            let mut registry = Registry::new();
            add(&mut registry, "b", "first", Some(1), false, up());
            add(&mut registry, "b", "second", Some(2), false, died());
            add(&mut registry, "b", "unknown", None, false, up());
            add(&mut registry, "c", "other", Some(1), false, up());
            let released: Vec<_> = registry.release(scope).iter().map(|machine| machine.0).collect();
            assert_eq!(released, expected, "{scope:?}");
            for vm in expected {
                assert!(registry.find(&owner("b", vm)).is_err(), "{scope:?}");
            }
        };
        check(Scope::All, &["first", "second", "unknown", "other"]);
        check(Scope::Builder("b"), &["first", "second", "unknown"]);
        check(Scope::Builder("nobody"), &[]);
        check(Scope::Build { builder: "b", build: 1 }, &["first", "unknown"]);
        check(Scope::Build { builder: "b", build: 3 }, &["unknown"]);
        check(Scope::OtherBuilds { builder: "b", build: 2 }, &["first"]);
        check(Scope::OtherBuilds { builder: "b", build: 3 }, &["first", "second"]);
    }

    #[test]
    fn a_held_machine_is_nobodys_and_the_oldest_makes_room() {
        let mut registry = Registry::new();
        let names = |machines: &[Arc<Fake>]| machines.iter().map(|machine| machine.0).collect::<Vec<_>>();
        for (vm, expected) in [("one", &[][..]), ("two", &[]), ("three", &["one"]), ("four", &["two"])] {
            add(&mut registry, "b", vm, Some(1), true, up());
            let (machine, displaced) = registry.hold(&owner("b", vm), 2).expect("it is up");
            assert_eq!((machine.0, names(&displaced)), (vm, expected.to_vec()));
            assert_eq!(outcome(registry.bound("b")), Ok(None));
        }
        add(&mut registry, "b", "four", Some(1), true, up());
        assert_eq!(names(&registry.release(Scope::All)), ["four"]);
        let held: Vec<_> = registry.held().cloned().collect();
        assert_eq!(names(&held), ["three", "four"]);
        assert!(registry.let_go(&held[0]) && !registry.let_go(&held[0]));
        assert_eq!(registry.held().count(), 1);
        add(&mut registry, "b", "died", Some(1), true, died());
        assert!(registry.hold(&owner("b", "died"), 2).is_err());
        assert_eq!(outcome(registry.bound("b")), Err("vm_lost"));
    }

    #[test]
    fn a_persons_machine_is_no_builders_until_it_is_held_or_let_go() {
        let mut registry = Registry::new();
        let machine = |name| Arc::new(Fake(name, Status::Up));
        let names = |registry: &Registry<Fake>| {
            let names = |machines: &mut dyn Iterator<Item = &Arc<Fake>>| machines.map(|machine| machine.0).collect();
            let (held, of_people): (Vec<_>, Vec<_>) = (names(&mut registry.held()), names(&mut registry.of_people()));
            (held, of_people)
        };
        let (one, two) = (machine("one"), machine("two"));
        registry.lend(&one);
        registry.lend(&two);
        add(&mut registry, "b", "built", Some(1), true, up());
        assert_eq!(names(&registry), (vec![], vec!["one", "two"]));
        assert_eq!(registry.all().map(|machine| machine.0).collect::<Vec<_>>(), ["built", "one", "two"]);
        // Builds and the line have nothing to do with it.
        assert_eq!(registry.release(Scope::All).len(), 1);
        assert!(registry.tenant(|machine| machine.0 == "one").is_none());

        assert!(registry.hold_lent(&two, 1).is_some_and(|displaced| displaced.is_empty()));
        assert_eq!(names(&registry), (vec!["two"], vec!["two", "one"]));
        let displaced = registry.hold_lent(&one, 1).expect("it was lent");
        assert_eq!(displaced.iter().map(|machine| machine.0).collect::<Vec<_>>(), ["two"]);
        assert!(registry.let_go(&one) && !registry.let_go(&two));
        assert_eq!(names(&registry), (vec![], vec![]));
        registry.lend(&one);
        assert!(!registry.let_go(&one));
        // It ended while its person had it: nothing is left to hold.
        assert!(registry.hold_lent(&one, 1).is_none());
        assert_eq!(names(&registry), (vec![], vec![]));
    }

    #[test]
    fn a_start_is_nobodys_once_its_builder_was_released() {
        let mut registry = Registry::new();
        let (owner, machine) = (owner("b", "vm"), Arc::new(Fake("vm", Status::Up)));
        let token = registry.claim(&owner, Some(1), true).expect("it is free");
        assert!(registry.release(Scope::Build { builder: "b", build: 1 }).is_empty());
        assert_eq!(outcome(registry.bound("b")), Ok(None));
        let next = registry.claim(&owner, Some(2), true).expect("it is free");
        // The start that was released neither takes nor spoils the name of the next one.
        registry.give_up(&owner, &token, "late".to_owned());
        assert!(registry.fulfil(&owner, &token, &machine).is_err());
        registry.fulfil(&owner, &next, &machine).expect("it is claimed");
        assert_eq!(outcome(registry.bound("b")), Ok(Some("vm")));
    }
}
