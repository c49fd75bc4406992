//! Which builders have a build, as far as a worker can tell by itself. No IO and no clock.
//!
//! Neither protocol says that a build has ended; only `KVMWorker` of buildbot-kvm does. Without its word a build is taken to
//! run while a command of its builder runs or the builder has a machine, and for some time after that, as it may be between
//! two steps. A builder that nothing was heard of for that long, or never on this line, has none.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// What was heard of builds on the line that there is now.
#[derive(Debug, Default)]
pub(super) struct Builds {
    /// When something was heard of each builder, for the last time.
    heard: BTreeMap<String, Instant>,
    /// When the master began a build, for the last time. Over MessagePack it does not say whose.
    begun: Option<Instant>,
}

/// Why a build is taken to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// A command of its builder runs.
    Command,
    /// Its builder has a machine.
    Machine,
    /// It may be between two steps, until then.
    Quiet(Instant),
}

/// The builds that are taken to run.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Running {
    /// By builder.
    builders: BTreeMap<String, Sign>,
    /// Until when one may be about to show whose it is.
    beginning: Option<Instant>,
}

impl Builds {
    /// Notes that a build of a builder begins, or does something.
    pub(super) fn note(&mut self, builder: &str, now: Instant) {
        match self.heard.get_mut(builder) {
            Some(heard) => *heard = now,
            None => drop(self.heard.insert(builder.to_owned(), now)),
        }
    }

    /// Notes that a build of some builder begins.
    pub(super) fn note_beginning(&mut self, now: Instant) {
        self.begun = Some(now);
    }

    /// Notes that the master says that the builder's build is over.
    pub(super) fn note_end(&mut self, builder: &str) {
        self.heard.remove(builder);
    }

    /// Forgets them, as the line is gone and all builds are over with it.
    pub(super) fn clear(&mut self) {
        *self = Builds::default();
    }

    /// The builds that are taken to run, by the builders whose commands run or that have a machine. What is quiet for longer
    /// than `quiet` is over, and forgotten.
    pub(super) fn running<'a>(
        &mut self,
        commands: impl IntoIterator<Item = &'a str>,
        machines: impl IntoIterator<Item = String>,
        quiet: Duration,
        now: Instant,
    ) -> Running {
        self.heard.retain(|_, heard| *heard + quiet > now);
        let mut builders: BTreeMap<_, _> =
            self.heard.iter().map(|(builder, heard)| (builder.clone(), Sign::Quiet(*heard + quiet))).collect();
        builders.extend(machines.into_iter().map(|builder| (builder, Sign::Machine)));
        builders.extend(commands.into_iter().map(|builder| (builder.to_owned(), Sign::Command)));
        self.begun = self.begun.filter(|begun| *begun + quiet > now);
        Running { builders, beginning: self.begun.map(|begun| begun + quiet) }
    }
}

impl Running {
    /// Whether there is none.
    pub(super) fn is_none(&self) -> bool {
        self.builders.is_empty() && self.beginning.is_none()
    }

    /// The builders that have one, as far as is known whose it is.
    pub(super) fn builders(&self) -> impl Iterator<Item = &str> {
        self.builders.keys().map(String::as_str)
    }

    /// Those, as what a person is told changes with them.
    pub(super) fn names(&self) -> (BTreeSet<String>, bool) {
        (self.builders.keys().cloned().collect(), self.beginning.is_some())
    }

    /// When there will be fewer, if nothing is heard until then.
    pub(super) fn fewer_at(&self) -> Option<Instant> {
        let quiet = self.builders.values().filter_map(|sign| match sign {
            Sign::Quiet(until) => Some(*until),
            Sign::Command | Sign::Machine => None,
        });
        quiet.chain(self.beginning).min()
    }
}

/// `a command of 'a', a machine of 'b', 'c' to be quiet for longer`
impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (builder, sign) in &self.builders {
            // A master may name a builder anything.
            let builder = builder.escape_debug();
            match sign {
                Sign::Command => write!(f, "{separator}a command of '{builder}'")?,
                Sign::Machine => write!(f, "{separator}a machine of '{builder}'")?,
                Sign::Quiet(_) => write!(f, "{separator}'{builder}' to be quiet for longer")?,
            }
            separator = ", ";
        }
        match self.beginning {
            Some(_) => write!(f, "{separator}a build that has just begun"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_secs(60);

    /// What is taken to run so many seconds after the start, if these builders have commands and machines.
    fn check(builds: &mut Builds, start: Instant, now: u64, busy: [&[&str]; 2], expected: (&str, Option<u64>)) {
        let now = start + Duration::from_secs(now);
        let [commands, machines] = busy;
        let machines = machines.iter().map(|builder| (*builder).to_owned());
        let running = builds.running(commands.iter().copied(), machines, QUIET, now);
        let fewer_at = running.fewer_at().map(|at| (at - start).as_secs());
        assert_eq!((running.to_string().as_str(), fewer_at), expected);
        assert_eq!(running.is_none(), expected.0.is_empty());
    }

    #[test]
    fn a_build_runs_while_something_of_it_does_and_for_a_while_after_that() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut builds = Builds::default();
        check(&mut builds, start, 0, [&[], &[]], ("", None));
        builds.note("a", at(0));
        check(&mut builds, start, 0, [&["a"], &[]], ("a command of 'a'", None));
        check(&mut builds, start, 500, [&["a"], &["a"]], ("a command of 'a'", None));
        builds.note("a", at(500));
        check(&mut builds, start, 501, [&[], &["a"]], ("a machine of 'a'", None));
        check(&mut builds, start, 559, [&[], &[]], ("'a' to be quiet for longer", Some(560)));
        check(&mut builds, start, 560, [&[], &[]], ("", None));
    }

    #[test]
    fn a_build_that_begins_is_one_though_nobody_knows_whose() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut builds = Builds::default();
        builds.note_beginning(at(10));
        check(&mut builds, start, 10, [&[], &[]], ("a build that has just begun", Some(70)));
        builds.note("a", at(5));
        check(
            &mut builds,
            start,
            20,
            [&[], &["b"]],
            ("'a' to be quiet for longer, a machine of 'b', a build that has just begun", Some(65)),
        );
        check(&mut builds, start, 70, [&[], &[]], ("", None));
    }

    #[test]
    fn the_masters_word_and_the_end_of_the_line_count_at_once() {
        let start = Instant::now();
        let mut builds = Builds::default();
        builds.note("a", start);
        builds.note("b", start);
        builds.note_beginning(start);
        builds.note_end("a");
        check(&mut builds, start, 1, [&[], &[]], ("'b' to be quiet for longer, a build that has just begun", Some(60)));
        builds.clear();
        check(&mut builds, start, 1, [&[], &[]], ("", None));
    }
}
