//! What to do now about the machines that are kept ready. No IO and no clock: the [keeper](super::keeper) does it.
//!
//! Builds come first: nothing is made while one of them starts a machine, and what one lacks is given up for it.

use std::fmt;
use std::time::Duration;

use protocol::command::Name;

use crate::pool::slots::Lack;

/// How long nobody has to have started a machine before another is made ready, so that the first commands of a build have the
/// host for themselves, and several builds that come at once are all served first.
pub(super) const QUIET: Duration = Duration::from_secs(1);

/// How things are.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub wishes: Vec<Wish>,
    /// The oldest first.
    pub spares: Vec<Seen>,
    /// What a build lacks that waits to start a machine, or else a template that waits to be made.
    pub lack: Lack,
    /// For how long no build has been starting a machine; none while one is.
    pub quiet: Option<Duration>,
    /// Whether the host is too busy to make one.
    pub busy: bool,
    pub max_age: Duration,
}

/// What an image wants.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub image: Name,
    /// How many are to be ready.
    pub count: usize,
    /// Whether one can be made now: there is a template, and none failed a moment ago.
    pub possible: bool,
}

/// A machine that is kept ready.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub id: u64,
    pub image: Name,
    pub memory_mib: u64,
    pub age: Duration,
    /// Why nobody should get it, if nobody should.
    pub flaw: Option<Flaw>,
}

/// Why a machine is not to be handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Flaw {
    /// It ended, or can't be reached; the sentence says what happened.
    Dead(String),
    /// Its image is configured otherwise by now, or not at all.
    Changed,
    /// The pool has fewer slots by now, and its is too many.
    Retired,
    /// Clones are made of another template by now.
    Superseded,
    /// The host slept, or its clock was set, and the guest does not know.
    ClockJumped,
}

/// Why a machine that was ready is ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    Flaw(Flaw),
    Old,
    /// There are more of its image than are to be.
    Surplus,
    /// For a build that needs another one.
    Slot,
    /// For such a build, or for a template.
    Memory,
    Disk,
    /// No build is going to come.
    Closing,
}

/// What to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub discard: Vec<(u64, Why)>,
    /// The image to make one of.
    pub make: Option<Name>,
}

/// Decides what to do now.
pub(super) fn plan(view: &View) -> Plan {
    let mut discard = Vec::new();
    let mut good = Vec::new();
    for spare in &view.spares {
        match &spare.flaw {
            Some(flaw) => discard.push((spare.id, Why::Flaw(flaw.clone()))),
            None if spare.age >= view.max_age => discard.push((spare.id, Why::Old)),
            None => good.push(spare),
        }
    }
    while let Some(place) = surplus(view, &good) {
        discard.push((good.remove(place).id, Why::Surplus));
    }
    // What is ended anyway is what the build gets.
    let coming: u64 = view.spares.iter().filter(|spare| is_in(&discard, spare)).map(|spare| spare.memory_mib).sum();
    let mut memory_mib = view.lack.memory_mib.saturating_sub(coming);
    let mut slot = view.lack.slot && discard.is_empty();
    if view.lack.disk {
        // Nothing is handed out while there is no space, and what they wrote is some.
        discard.extend(good.drain(..).map(|spare| (spare.id, Why::Disk)));
    }
    // If all of them are not enough, the build waits for others, which may end without any of them being given up.
    let enough = memory_mib <= good.iter().map(|spare| spare.memory_mib).sum();
    while enough && (slot || memory_mib > 0) {
        let Some(place) = to_give_up(&good) else { break };
        let spare = good.remove(place);
        discard.push((spare.id, if slot { Why::Slot } else { Why::Memory }));
        memory_mib = memory_mib.saturating_sub(spare.memory_mib);
        slot = false;
    }
    let calm = view.lack == Lack::default() && !view.busy && view.quiet.is_some_and(|quiet| quiet >= QUIET);
    let make = if calm { to_make(view, &good) } else { None };
    Plan { discard, make }
}

fn is_in(discard: &[(u64, Why)], spare: &Seen) -> bool {
    discard.iter().any(|(id, _)| *id == spare.id)
}

/// Finds one that is too many: the oldest of its image.
fn surplus(view: &View, good: &[&Seen]) -> Option<usize> {
    let wanted = |image: &Name| view.wishes.iter().find(|wish| wish.image == *image).map_or(0, |wish| wish.count);
    let ready = |image: &Name| good.iter().filter(|spare| spare.image == *image).count();
    good.iter().position(|spare| ready(&spare.image) > wanted(&spare.image))
}

/// Chooses one to give up: the oldest of an image that has the most.
fn to_give_up(good: &[&Seen]) -> Option<usize> {
    let of_its_image = |spare: &Seen| good.iter().filter(|other| other.image == spare.image).count();
    let most = good.iter().map(|spare| of_its_image(spare)).max()?;
    good.iter().position(|spare| of_its_image(spare) == most)
}

/// Chooses an image to make one of: that which has the fewest.
fn to_make(view: &View, good: &[&Seen]) -> Option<Name> {
    let ready = |wish: &Wish| good.iter().filter(|spare| spare.image == wish.image).count();
    let wishes = view.wishes.iter().filter(|wish| wish.possible && ready(wish) < wish.count);
    wishes.min_by_key(|wish| ready(wish)).map(|wish| wish.image.clone())
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flaw::Dead(why) => f.write_str(why),
            Flaw::Changed => f.write_str("the configuration of its image was changed"),
            Flaw::Retired => f.write_str("the pool has fewer slots now"),
            Flaw::Superseded => f.write_str("its template is not used any more"),
            Flaw::ClockJumped => f.write_str("the host slept or its clock was set, which its guest does not know"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Flaw(flaw) => flaw.fmt(f),
            Why::Old => f.write_str("it is older than pool.warm_max_age"),
            Why::Surplus => f.write_str("fewer are to be ready now"),
            Why::Slot => f.write_str("a build needs its slot"),
            Why::Memory => f.write_str("a build or a template needs its memory"),
            Why::Disk => f.write_str("the disk has no space for builds"),
            Why::Closing => f.write_str("no more builds are taken"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Name {
        Name::new(name).expect("a name")
    }

    fn wish(image: &str, count: usize) -> Wish {
        Wish { image: name(image), count, possible: true }
    }

    fn spare(id: u64, image: &str) -> Seen {
        Seen { id, image: name(image), memory_mib: 512, age: Duration::from_secs(100 - id), flaw: None }
    }

    /// Two wanted of one image and one of another, and nothing in the way.
    fn view(spares: Vec<Seen>) -> View {
        View {
            wishes: vec![wish("a", 2), wish("b", 1)],
            spares,
            lack: Lack::default(),
            quiet: Some(QUIET),
            busy: false,
            max_age: Duration::from_secs(3600),
        }
    }

    #[track_caller]
    fn check(view: &View, discard: &[(u64, Why)], make: Option<&str>) {
        assert_eq!(plan(view), Plan { discard: discard.to_vec(), make: make.map(name) });
    }

    #[test]
    fn what_is_missing_is_made_one_at_a_time() {
        check(&view(vec![]), &[], Some("a"));
        check(&view(vec![spare(1, "a")]), &[], Some("b"));
        check(&view(vec![spare(1, "b")]), &[], Some("a"));
        check(&view(vec![spare(1, "a"), spare(2, "b")]), &[], Some("a"));
        check(&view(vec![spare(1, "a"), spare(2, "b"), spare(3, "a")]), &[], None);
        check(&view(vec![spare(1, "a"), spare(2, "a")]), &[], Some("b"));
        let mut impossible = view(vec![spare(1, "b")]);
        impossible.wishes[0].possible = false;
        check(&impossible, &[], None);
    }

    #[test]
    fn what_is_too_many_is_ended_oldest_first() {
        let fewer = |a: usize, b: Option<usize>, spares: Vec<Seen>| {
            let wishes = [Some(wish("a", a)), b.map(|b| wish("b", b))];
            View { wishes: wishes.into_iter().flatten().collect(), ..view(spares) }
        };
        let spares = || vec![spare(1, "b"), spare(2, "a"), spare(3, "a")];
        check(&fewer(1, Some(1), spares()), &[(2, Why::Surplus)], None);
        check(&fewer(0, Some(1), spares()), &[(2, Why::Surplus), (3, Why::Surplus)], None);
        check(&fewer(2, None, spares()), &[(1, Why::Surplus)], None);
        check(&fewer(3, None, spares()), &[(1, Why::Surplus)], Some("a"));
        // It is what a build gets that lacks something.
        let lack = Lack { slot: true, memory_mib: 512, disk: false };
        check(&View { lack, quiet: None, ..fewer(1, Some(1), spares()) }, &[(2, Why::Surplus)], None);
    }

    #[test]
    fn builds_come_first() {
        let calm = view(vec![]);
        check(&View { quiet: None, ..calm.clone() }, &[], None);
        check(&View { quiet: Some(QUIET / 2), ..calm.clone() }, &[], None);
        check(&View { busy: true, ..calm.clone() }, &[], None);
        check(&View { lack: Lack { slot: true, ..Lack::default() }, ..calm.clone() }, &[], None);
        check(&View { lack: Lack { memory_mib: 1, ..Lack::default() }, ..calm.clone() }, &[], None);
        check(&View { lack: Lack { disk: true, ..Lack::default() }, ..calm }, &[], None);
    }

    #[test]
    fn what_nobody_should_get_is_ended() {
        let with = |flaw: Option<Flaw>, age: u64| {
            let flawed = Seen { flaw, age: Duration::from_secs(age), ..spare(1, "a") };
            view(vec![flawed, spare(2, "a"), spare(3, "b")])
        };
        let dead = Flaw::Dead("it died".to_owned());
        check(&with(Some(dead.clone()), 1), &[(1, Why::Flaw(dead))], Some("a"));
        check(&with(Some(Flaw::Superseded), 1), &[(1, Why::Flaw(Flaw::Superseded))], Some("a"));
        check(&with(Some(Flaw::Changed), 1), &[(1, Why::Flaw(Flaw::Changed))], Some("a"));
        check(&with(Some(Flaw::Retired), 1), &[(1, Why::Flaw(Flaw::Retired))], Some("a"));
        check(&with(Some(Flaw::ClockJumped), 1), &[(1, Why::Flaw(Flaw::ClockJumped))], Some("a"));
        check(&with(None, 3600), &[(1, Why::Old)], Some("a"));
        check(&with(None, 3599), &[], None);
    }

    #[test]
    fn a_build_gets_what_it_lacks() {
        let lacking = |slot, memory_mib, disk, spares| View {
            lack: Lack { slot, memory_mib, disk },
            quiet: None,
            ..view(spares)
        };
        let spares = || vec![spare(1, "b"), spare(2, "a"), spare(3, "a")];
        check(&lacking(true, 0, false, spares()), &[(2, Why::Slot)], None);
        check(&lacking(true, 0, false, vec![spare(1, "b"), spare(2, "a")]), &[(1, Why::Slot)], None);
        check(&lacking(true, 0, false, vec![]), &[], None);
        check(&lacking(false, 512, false, spares()), &[(2, Why::Memory)], None);
        check(&lacking(false, 513, false, spares()), &[(2, Why::Memory), (1, Why::Memory)], None);
        check(&lacking(true, 513, false, spares()), &[(2, Why::Slot), (1, Why::Memory)], None);
        // Less than all it lacks is of no use to it.
        check(&lacking(false, 1537, false, spares()), &[], None);
        check(&lacking(true, 1537, false, spares()), &[], None);
        check(&lacking(false, 0, true, spares()), &[(1, Why::Disk), (2, Why::Disk), (3, Why::Disk)], None);
        check(&lacking(true, 512, true, vec![spare(1, "b")]), &[(1, Why::Disk)], None);
    }

    #[test]
    fn what_is_ended_anyway_is_given_to_the_build() {
        let old = Seen { age: Duration::from_secs(3600), ..spare(1, "a") };
        let lacking = |slot, memory_mib| View {
            lack: Lack { slot, memory_mib, disk: false },
            quiet: None,
            ..view(vec![old.clone(), spare(2, "a")])
        };
        check(&lacking(true, 0), &[(1, Why::Old)], None);
        check(&lacking(true, 512), &[(1, Why::Old)], None);
        check(&lacking(true, 1024), &[(1, Why::Old), (2, Why::Memory)], None);
    }
}
