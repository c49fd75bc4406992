//! Processes that nobody here is the parent of.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::daemon::has_ended;

/// A process that works on the files of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its id.
    pub pid: i32,
    /// Its arguments, with blanks between them.
    pub command: String,
}

impl Running {
    /// Processes that were started with a path below a directory among their arguments, or that are in one.
    pub(crate) fn under(directory: &Path) -> Result<Vec<Running>> {
        let mut running = Vec::new();
        for entry in fs::read_dir("/proc").context("list processes")? {
            let name = entry?.file_name();
            let pid = name.to_str().and_then(|name| name.parse().ok());
            running.extend(pid.and_then(|pid| Running::of(pid, directory)));
        }
        Ok(running)
    }

    /// Kills the process with SIGKILL and waits until it is gone.
    pub(crate) fn kill(&self, directory: &Path) -> Result<()> {
        let pidfd = self.signal(directory, Signal::KILL)?;
        ensure!(has_ended(&pidfd, Duration::from_secs(10))?, "{self:?} does not die");
        Ok(())
    }

    /// Sends the process a signal; returns a handle on it.
    pub(crate) fn signal(&self, directory: &Path, signal: Signal) -> Result<OwnedFd> {
        let pid = Pid::from_raw(self.pid).context("a process id is positive")?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("{self:?} is gone already"))?;
        // Now that it is held, the number can't become another process's.
        ensure!(Running::of(self.pid, directory).as_ref() == Some(self), "{self:?} is gone already");
        pidfd_send_signal(&pidfd, signal).with_context(|| format!("send {signal:?} to {self:?}"))?;
        Ok(pidfd)
    }

    /// Whether none of its threads can do anything: a signal stopped them, or they have ended.
    pub(crate) fn stands_still(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let state = |thread: fs::DirEntry| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The second field is the program's name in parentheses, and may hold anything.
            stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next())
        };
        threads.map(state).all(|state| matches!(state, None | Some('T' | 't' | 'Z' | 'X')))
    }

    fn of(pid: i32, directory: &Path) -> Option<Running> {
        let process = Path::new("/proc").join(pid.to_string());
        // It may end while it is looked at; one that has ended, but was not waited for, has no arguments.
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&arguments).replace('\0', " ").trim_end().to_owned();
        let is_in = fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory));
        (is_in || command.contains(&directory.display().to_string())).then_some(Running { pid, command })
    }
}
