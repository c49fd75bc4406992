use std::fmt;
use std::time::Duration;

use process::ExitStatus;

use crate::Rung;
use crate::qmp::ShutdownCause;

/// Where a machine is in its life.
///
/// ```text
/// Starting ─▶ Booting ─▶ Ready ─▶ ShuttingDown { rung } ─▶ Exited
///     └──────────┴─────────┴──────────────────────────────────▲
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// QEMU was started, and has not yet answered on its monitor.
    Starting,
    /// QEMU runs the guest.
    Booting,
    /// Whoever uses the guest has said that it can be used.
    Ready,
    /// The machine is being shut down.
    ShuttingDown {
        /// How.
        rung: Rung,
    },
    /// QEMU has exited and was reaped.
    Exited(Exit),
}

/// What may happen to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    MonitorAnswers,
    GuestAnswers,
    Climb(Rung),
    Exit(Exit),
}

impl State {
    /// Returns what a change leads to; `None` where it changes nothing, because it comes too late.
    pub(crate) fn after(&self, change: Change) -> Option<State> {
        match (self, change) {
            (State::Exited(_), _) => None,
            (_, Change::Exit(exit)) => Some(State::Exited(exit)),
            (State::ShuttingDown { rung: now }, Change::Climb(rung)) if rung <= *now => None,
            (_, Change::Climb(rung)) => Some(State::ShuttingDown { rung }),
            (State::Starting, Change::MonitorAnswers) => Some(State::Booting),
            (State::Starting | State::Booting, Change::GuestAnswers) => Some(State::Ready),
            (_, Change::MonitorAnswers | Change::GuestAnswers) => None,
        }
    }
}

/// How QEMU ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit status.
    pub status: ExitStatus,
    /// The end of what it wrote to stderr, at most 8 KiB, without terminal control.
    pub stderr: String,
    /// Why it shut down, if it had the time to say so.
    pub cause: Option<ShutdownCause>,
    /// From its start to its end.
    pub lived: Duration,
}

impl Exit {
    /// Returns what went wrong in QEMU's words, without the program's name it puts before each line; empty if it said
    /// nothing.
    pub fn complaint(&self) -> String {
        let lines = self.stderr.lines().map(|line| match line.split_once(": ") {
            Some((program, text)) if program.contains("qemu") && !program.contains(' ') => text,
            _ => line,
        });
        lines.filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("; ")
    }
}

/// `code 1: Could not open 'x.qcow2'`
impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        match (self.complaint(), &self.cause) {
            (complaint, _) if !complaint.is_empty() => write!(f, ": {complaint}"),
            (_, Some(cause)) => write!(f, " ({})", cause.reason),
            (_, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(status: ExitStatus, stderr: &str, reason: Option<&str>) -> Exit {
        let cause = reason.map(|reason| ShutdownCause { guest: true, reason: reason.to_owned() });
        Exit { status, stderr: stderr.to_owned(), cause, lived: Duration::from_secs(1) }
    }

    #[test]
    fn an_exit_says_why_as_well_as_it_can() {
        let check = |exit: Exit, expected: &str| assert_eq!(exit.to_string(), expected);
        let stderr = "qemu-system-x86_64: -blockdev x: Could not open 'x.qcow2': No such file or directory\n";
        check(
            exit(ExitStatus::Code(1), stderr, None),
            "code 1: -blockdev x: Could not open 'x.qcow2': No such file or directory",
        );
        check(exit(ExitStatus::Code(1), "/opt/qemu/bin/qemu-kvm: one\n\ntwo: 2\n", None), "code 1: one; two: 2");
        check(exit(ExitStatus::Code(0), " \n", Some("guest-shutdown")), "code 0 (guest-shutdown)");
        check(exit(ExitStatus::Signal(9), "", None), "signal 9 (SIGKILL)");
    }

    #[test]
    fn states_only_move_forward() {
        let exit = || exit(ExitStatus::Code(0), "", None);
        let down = |rung| State::ShuttingDown { rung };
        let check = |state: State, change, expected: Option<State>| {
            assert_eq!(state.after(change), expected, "{state:?}");
        };
        check(State::Starting, Change::MonitorAnswers, Some(State::Booting));
        check(State::Starting, Change::GuestAnswers, Some(State::Ready));
        check(State::Starting, Change::Climb(Rung::Quit), Some(down(Rung::Quit)));
        check(State::Starting, Change::Exit(exit()), Some(State::Exited(exit())));
        check(State::Booting, Change::MonitorAnswers, None);
        check(State::Booting, Change::GuestAnswers, Some(State::Ready));
        check(State::Booting, Change::Climb(Rung::Kill), Some(down(Rung::Kill)));
        check(State::Ready, Change::GuestAnswers, None);
        check(State::Ready, Change::Climb(Rung::Guest), Some(down(Rung::Guest)));
        check(State::Ready, Change::Exit(exit()), Some(State::Exited(exit())));
        check(down(Rung::Guest), Change::GuestAnswers, None);
        check(down(Rung::Guest), Change::Climb(Rung::Powerdown), Some(down(Rung::Powerdown)));
        check(down(Rung::Quit), Change::Climb(Rung::Quit), None);
        check(down(Rung::Quit), Change::Climb(Rung::Guest), None);
        check(down(Rung::Kill), Change::Exit(exit()), Some(State::Exited(exit())));
        check(State::Exited(exit()), Change::Exit(exit()), None);
        check(State::Exited(exit()), Change::Climb(Rung::Kill), None);
        check(State::Exited(exit()), Change::GuestAnswers, None);
    }
}
