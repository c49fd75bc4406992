//! The worker's process.

use std::ops::{Deref, DerefMut};
use std::process::{Command, ExitStatus};

use anyhow::Result;
use rustix::process::Signal;

use crate::machine_times;
use crate::{Daemon, SOON};

/// A running `kvm-worker run`. A test that fails ends it by SIGKILL; the others stop it.
#[derive(Debug)]
pub struct Worker(Daemon);

impl Worker {
    pub(crate) fn start(command: &mut Command) -> Result<Worker> {
        Daemon::spawn("worker", command, None).map(Worker)
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.0.signal(Signal::TERM)?;
        self.0.wait(SOON)
    }
}

impl Deref for Worker {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.0
    }
}

impl DerefMut for Worker {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.0
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        machine_times::note_all(self.transcript());
    }
}
