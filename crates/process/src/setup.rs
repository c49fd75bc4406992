//! What happens in the child between fork and exec.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;

use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use rustix::fs::Mode;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{getpid, getppid, ioctl_tiocsctty, set_parent_process_death_signal, setsid, umask};

/// What the child does before it becomes the program.
pub(crate) struct Setup {
    /// Become the leader of a session whose terminal is stdin.
    pub(crate) terminal: bool,
    pub(crate) umask: Option<Mode>,
    pub(crate) dies_with_parent: bool,
    /// Stay open in the program under their present numbers.
    pub(crate) inherited: Vec<OwnedFd>,
}

impl Setup {
    pub(crate) fn apply_to(self, command: &mut std::process::Command) {
        if !self.terminal {
            command.process_group(0);
        }
        let parent = getpid();
        let in_child = move || {
            default_signals()?;
            if self.dies_with_parent {
                set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                if getppid() != Some(parent) {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            }
            if self.terminal {
                setsid()?;
                // SAFETY: descriptor 0 is open, the standard library has put the terminal there before this runs, and
                // nothing closes it while it is borrowed.
                ioctl_tiocsctty(unsafe { BorrowedFd::borrow_raw(0) })?;
            }
            if let Some(mask) = self.umask {
                umask(mask);
            }
            close_on_exec();
            for fd in &self.inherited {
                fcntl_setfd(fd, FdFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: after a fork of a process with threads only async-signal-safe work is allowed. The closure makes system
        // calls (sigaction, rt_sigprocmask, prctl, getppid, setsid, ioctl, umask, close_range, fcntl) and reads what it
        // has captured; it does not allocate, lock or panic.
        unsafe { command.pre_exec(in_child) };
    }
}

/// Gives every signal its default action, then lets all of them through. The spawning threads block them, so that none
/// reaches a handler of the parent in the child.
fn default_signals() -> io::Result<()> {
    for each in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: installs no handler.
        unsafe { signal(each, SigHandler::SigDfl) }?;
    }
    Ok(SigSet::empty().thread_set_mask()?)
}

/// Keeps descriptors from the program that whoever started us has left open, and that we know nothing of. Kernels before
/// 5.11 can't; ours are marked when they are opened.
fn close_on_exec() {
    // SAFETY: marks descriptors and touches no memory; the exec or the exit that follows closes them in any case.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Makes sure that exited children wait to be reaped. A process started with SIGCHLD ignored would lose their exit
/// status, and with it the certainty whose process id a number is (waitpid(2)).
pub(crate) fn keep_exited_children() {
    if ignores(Signal::SIGCHLD) {
        // SAFETY: installs no handler; that nothing else in this process has one was just read.
        let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
    }
}

fn ignores(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal as u32 - 1)) != 0
}
