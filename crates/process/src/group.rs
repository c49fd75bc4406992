//! A process group that can be signalled without ever hitting a stranger.

use std::io;
use std::os::fd::AsFd;

use nix::sys::signal::Signal;
use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::runtime::Handle;

use crate::pidfd::{Pidfd, raw};
use crate::{ExitStatus, SignalError};

/// The group of an unreaped child, which leads it.
///
/// The kernel gives a process id to nobody else before the child of that id is reaped, so until [`Group::reap`] the
/// number means this group and no other.
pub(crate) struct Group {
    pid: Pid,
    /// `None` once reaped.
    leader: Option<Pidfd>,
    runtime: Handle,
}

impl Group {
    /// Takes over a child that leads its group, and has not been waited for. Must be called in the context of a runtime.
    /// If that fails the child is killed.
    pub(crate) fn adopt(mut child: std::process::Child) -> io::Result<Self> {
        let pid = Pid::from_child(&child);
        match Pidfd::open(child.id()) {
            Ok(leader) => Ok(Group { pid, leader: Some(leader), runtime: Handle::current() }),
            Err(error) => {
                let _ = kill_process_group(pid, rustix::process::Signal::KILL);
                let _ = child.wait();
                Err(error)
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<(), SignalError> {
        let leader = self.leader.as_ref().ok_or(SignalError::Finished)?;
        match send(self.pid, leader, signal) {
            // Nobody is left but the leader, and that has exited.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SignalError::Refused { signal, pid: self.id(), source: error })
            }
            _ => Ok(()),
        }
    }

    /// Waits until the leader has exited. Cancel safe.
    pub(crate) async fn exited(&self) {
        if let Some(leader) = &self.leader {
            leader.exited().await;
        }
    }

    /// Returns how the leader ended if it has, and leaves it unreaped.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        wait(self.leader.as_ref()?, WaitIdOptions::NOWAIT)
    }

    /// Reaps the leader, which has exited.
    pub(crate) fn reap(&mut self) {
        if let Some(leader) = self.leader.take() {
            wait(&leader, WaitIdOptions::empty());
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(leader) = self.leader.take() else { return };
        let _ = send(self.pid, &leader, Signal::SIGKILL);
        // Where the runtime is already gone the process is about to be as well, and init reaps.
        self.runtime.spawn(async move {
            leader.exited().await;
            wait(&leader, WaitIdOptions::empty());
        });
    }
}

fn send(pid: Pid, leader: &Pidfd, signal: Signal) -> io::Result<()> {
    match kill_process_group(pid, raw(signal)?) {
        // A program may have moved itself to another group.
        Err(Errno::SRCH) => leader.signal(signal),
        result => Ok(result?),
    }
}

fn wait(leader: &Pidfd, options: WaitIdOptions) -> Option<ExitStatus> {
    loop {
        match waitid(WaitId::PidFd(leader.as_fd()), options | WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(status) => return status.as_ref().and_then(ExitStatus::from_wait),
            Err(Errno::INTR) => {}
            Err(error) => {
                // Only somebody who waits for any child at all can have taken this one.
                tracing::error!(%error, "a child was reaped behind our back; its exit status is lost");
                return Some(ExitStatus::Code(255));
            }
        }
    }
}
