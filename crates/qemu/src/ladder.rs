//! The ladder by which a machine is shut down: what is tried, in which order, and for how long. Policy only; who does it
//! is in `shutdown`.

use std::fmt;
use std::time::Duration;

/// A way to shut a machine down, the gentlest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// A command in the guest, which the caller knows how to give.
    Guest,
    /// The power button (QMP `system_powerdown`).
    Powerdown,
    /// QEMU exits at once and closes its files (QMP `quit`). To the guest it is a power failure.
    Quit,
    /// SIGTERM to QEMU, which does the same where its monitor does not answer.
    Terminate,
    /// SIGKILL to QEMU.
    Kill,
}

impl Rung {
    fn next(self) -> Option<Rung> {
        match self {
            Rung::Guest => Some(Rung::Powerdown),
            Rung::Powerdown => Some(Rung::Quit),
            Rung::Quit => Some(Rung::Terminate),
            Rung::Terminate => Some(Rung::Kill),
            Rung::Kill => None,
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rung::Guest => "guest command",
            Rung::Powerdown => "power button",
            Rung::Quit => "quit",
            Rung::Terminate => "SIGTERM",
            Rung::Kill => "SIGKILL",
        })
    }
}

/// How long each rung has before the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For the guest to go down by its own command.
    pub guest: Duration,
    /// For the guest to go down by its power button.
    pub powerdown: Duration,
    /// For QEMU to quit.
    pub quit: Duration,
    /// For QEMU to react to SIGTERM.
    pub terminate: Duration,
    /// For the kernel to end QEMU.
    pub kill: Duration,
}

impl Patience {
    pub(crate) fn with(&self, rung: Rung) -> Duration {
        match rung {
            Rung::Guest => self.guest,
            Rung::Powerdown => self.powerdown,
            Rung::Quit => self.quit,
            Rung::Terminate => self.terminate,
            Rung::Kill => self.kill,
        }
    }
}

/// 20 s for each of the guest's rungs, 5 s for each of QEMU's.
impl Default for Patience {
    fn default() -> Self {
        let (guest, qemu) = (Duration::from_secs(20), Duration::from_secs(5));
        Patience { guest, powerdown: guest, quit: qemu, terminate: qemu, kill: qemu }
    }
}

/// What happens on a rung, short of the machine's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    /// Its time is over.
    PatienceOver,
    /// It can't be done: nobody knows how, or it failed.
    Impossible,
    /// Somebody wants to be on at least this rung now.
    Hurried(Rung),
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Stay,
    Climb(Rung),
    /// There is nothing left to try.
    GiveUp,
}

/// Decides what to do about what happens on a rung.
pub(crate) fn step(rung: Rung, happening: Happening) -> Step {
    match happening {
        Happening::Hurried(to) if to > rung => Step::Climb(to),
        Happening::Hurried(_) => Step::Stay,
        Happening::PatienceOver | Happening::Impossible => rung.next().map_or(Step::GiveUp, Step::Climb),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_is_climbed_rung_by_rung_and_skipped_only_in_a_hurry() {
        let check = |rung, happening, expected| assert_eq!(step(rung, happening), expected, "{rung:?} {happening:?}");
        for happening in [Happening::PatienceOver, Happening::Impossible] {
            check(Rung::Guest, happening, Step::Climb(Rung::Powerdown));
            check(Rung::Powerdown, happening, Step::Climb(Rung::Quit));
            check(Rung::Quit, happening, Step::Climb(Rung::Terminate));
            check(Rung::Terminate, happening, Step::Climb(Rung::Kill));
            check(Rung::Kill, happening, Step::GiveUp);
        }
        check(Rung::Guest, Happening::Hurried(Rung::Quit), Step::Climb(Rung::Quit));
        check(Rung::Guest, Happening::Hurried(Rung::Kill), Step::Climb(Rung::Kill));
        check(Rung::Quit, Happening::Hurried(Rung::Quit), Step::Stay);
        check(Rung::Kill, Happening::Hurried(Rung::Guest), Step::Stay);
    }
}
