//! Processes that nobody here is the parent of.

use std::fs;
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
        let pid = Pid::from_raw(self.pid).context("a process id is positive")?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("{self:?} is gone already"))?;
        // Now that it is held, the number can't become another process's.
        ensure!(Running::of(self.pid, directory).as_ref() == Some(self), "{self:?} is gone already");
        pidfd_send_signal(&pidfd, Signal::KILL).with_context(|| format!("kill {self:?}"))?;
        ensure!(has_ended(&pidfd, Duration::from_secs(10))?, "{self:?} does not die");
        Ok(())
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
