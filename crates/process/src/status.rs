use std::fmt;

use nix::sys::signal::Signal;
use rustix::process::WaitIdStatus;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited by itself with this code, 0 to 255.
    Code(i32),
    /// It was ended by the signal of this number.
    Signal(i32),
}

impl ExitStatus {
    /// Says whether it exited by itself with code 0.
    pub fn success(self) -> bool {
        self == ExitStatus::Code(0)
    }

    pub(crate) fn from_wait(status: &WaitIdStatus) -> Option<Self> {
        let signal = status.terminating_signal().map(ExitStatus::Signal);
        signal.or_else(|| status.exit_status().map(ExitStatus::Code))
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ExitStatus::Code(code) => write!(f, "code {code}"),
            ExitStatus::Signal(number) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "signal {number} ({signal})"),
                Err(_) => write!(f, "signal {number}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: ExitStatus, expected: &str) {
        assert_eq!(status.to_string(), expected);
    }

    #[test]
    fn a_status_reads_as_people_say_it() {
        check(ExitStatus::Code(0), "code 0");
        check(ExitStatus::Code(255), "code 255");
        check(ExitStatus::Signal(9), "signal 9 (SIGKILL)");
        check(ExitStatus::Signal(40), "signal 40");
    }

    #[test]
    fn only_code_0_is_success() {
        assert!(ExitStatus::Code(0).success());
        assert!(!ExitStatus::Code(1).success());
        assert!(!ExitStatus::Signal(15).success());
    }
}
