use std::fs;
use std::io;

use process::Pidfd;
use serde::{Deserialize, Serialize};

/// A process that can be told from any other there ever was on this host: its id alone is given away again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its process id.
    pub pid: u32,
    /// When it started, in clock ticks after the boot (proc_pid_stat(5), field 22).
    pub start_time: u64,
    /// Which boot that was (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

impl Identity {
    /// Identifies the process that has this id now. `NotFound` if there is none, or it has exited and is only waiting to
    /// be reaped.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).map_err(gone)?;
        let start_time = start_time(&stat)?;
        Ok(Identity { pid, start_time, boot_id: boot_id()? })
    }

    /// Says whether the process still runs.
    pub fn is_alive(&self) -> bool {
        Identity::of(self.pid).is_ok_and(|now| now == *self)
    }

    /// Takes hold of the process, if it still runs, so that a signal can reach it and nobody else. Must be called in the
    /// context of a tokio runtime.
    pub fn hold(&self) -> io::Result<Option<Pidfd>> {
        // In this order: once we hold it, its number can't pass to another unnoticed.
        match Pidfd::open(self.pid) {
            Ok(process) => Ok(self.is_alive().then_some(process)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The kernel says ESRCH when the process ends between opening and reading its file.
fn gone(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) {
        return io::ErrorKind::NotFound.into();
    }
    error
}

/// Reads the start time from a `stat` file. The second field is the program's name in parentheses, which may itself
/// contain any of the characters that separate fields.
fn start_time(stat: &[u8]) -> io::Result<u64> {
    let strange = || io::Error::new(io::ErrorKind::InvalidData, "a process's stat file does not look like one");
    let name_ends = stat.iter().rposition(|&byte| byte == b')').ok_or_else(strange)?;
    let rest = std::str::from_utf8(&stat[name_ends + 1..]).map_err(|_| strange())?;
    let mut fields = rest.split_ascii_whitespace();
    // Field 3; what is left starts with field 4.
    if matches!(fields.next(), Some("Z" | "X")) {
        return Err(io::ErrorKind::NotFound.into());
    }
    fields.nth(22 - 4).and_then(|field| field.parse().ok()).ok_or_else(strange)
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(stat: &str, expected: Result<u64, io::ErrorKind>) {
        assert_eq!(start_time(stat.as_bytes()).map_err(|error| error.kind()), expected);
    }

    #[test]
    fn the_start_time_is_found_behind_any_program_name() {
        let rest = "1 42 42 0 -1 4194304 1 0 0 0 1 2 0 0 20 0 1 0 7777 1000 10 18446744073709551615 0";
        check(&format!("42 (qemu) S {rest}"), Ok(7777));
        check(&format!("42 (a) b) R 1 (c) S {rest}"), Ok(7777));
        check(&format!("42 (qemu) Z {rest}"), Err(io::ErrorKind::NotFound));
        check("42 (qemu) S 1 2 3", Err(io::ErrorKind::InvalidData));
        check("", Err(io::ErrorKind::InvalidData));
    }

    #[test]
    fn this_process_is_alive_and_one_of_another_time_or_boot_is_not() {
        let own = Identity::of(std::process::id()).expect("this test runs");
        assert!(own.is_alive());
        assert!(!Identity { start_time: own.start_time + 1, ..own.clone() }.is_alive());
        assert!(!Identity { boot_id: "another".to_owned(), ..own.clone() }.is_alive());
        assert!(!Identity { pid: u32::MAX, ..own }.is_alive());
    }
}
