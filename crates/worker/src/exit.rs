//! The exit statuses of the command line: all of them, with what they mean.

use std::process::ExitCode;

/// Done.
pub(crate) const DONE: u8 = 0;

/// It failed, was refused, or no worker runs; the reason is on standard error.
pub(crate) const FAILED: u8 = 1;

/// The configuration or the command line can't be used; clap uses it for a wrong command line, too.
pub(crate) const UNUSABLE: u8 = 2;

/// `exec`: the command did not end in time.
pub(crate) const TIMED_OUT: u8 = 124;

/// `exec`: there was no machine, or it was lost. As of docker, env and timeout.
pub(crate) const NO_MACHINE: u8 = 125;

/// `exec`: the program can't be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;

/// `exec`: there is no such program.
pub(crate) const NOT_FOUND: u8 = 127;

/// `exec`: what is added to the number of the signal that ended the command. Interrupted from the keyboard, it is 130.
pub(crate) const SIGNALLED: u8 = 128;

/// What `--help` and the manual page say of them.
pub(crate) const HELP: &str = "\
Exit status:
  0        done
  1        it failed, was refused, or no worker runs; the reason is on standard error
  2        the configuration or the command line can't be used
exec has the command's own exit status, and
  124      the command did not end within --timeout
  125      there was no machine for it, or it was lost
  126      the program can't be executed in the guest
  127      there is no such program in the guest
  128+N    signal N ended the command; 130 if exec was interrupted
ssh has that of OpenSSH's client: the command's own, or 255.
";

/// A program's exit status.
pub(crate) fn code(status: u8) -> ExitCode {
    ExitCode::from(status)
}

/// Says on standard error why something was not done.
pub(crate) fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("kvm-worker: {error:#}");
    code(FAILED)
}

/// That of a command that a signal of this name, without `SIG`, has ended.
pub(crate) fn signalled(signal: &str) -> u8 {
    let number =
        format!("SIG{signal}").parse().map_or(nix::libc::SIGKILL, |signal: nix::sys::signal::Signal| signal as i32);
    u8::try_from(number).map_or(u8::MAX, |number| SIGNALLED.saturating_add(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_128_and_its_number() {
        assert_eq!(signalled("KILL"), 137);
        assert_eq!(signalled("INT"), 130);
        assert_eq!(signalled("UNHEARD_OF"), 137);
    }
}
