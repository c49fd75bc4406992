use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::Signal;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::watched::{runtime_is_gone, watch};

/// A hold on one process, a child or not, that never comes to mean another one when its number is given away again.
#[derive(Debug)]
pub struct Pidfd {
    fd: AsyncFd<OwnedFd>,
}

impl Pidfd {
    /// Takes hold of the process that has this id now. Whether that is the one that was meant is to be checked *after*
    /// this. `NotFound` if there is none. Must be called in the context of a tokio runtime with IO.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => Ok(Pidfd { fd: watch(fd, Interest::READABLE)? }),
            // EINVAL: the number is that of a thread.
            Err(Errno::SRCH | Errno::INVAL) => Err(io::ErrorKind::NotFound.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends a signal to the process. `NotFound` if it is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.fd.get_ref(), raw(signal)?) {
            Err(Errno::SRCH) => Err(io::ErrorKind::NotFound.into()),
            result => Ok(result?),
        }
    }

    /// Waits until the process has exited. Cancel safe.
    pub async fn exited(&self) {
        // Readiness is not cleared: an exit is for ever.
        if self.fd.readable().await.is_err() {
            runtime_is_gone().await;
        }
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

pub(crate) fn raw(signal: Signal) -> io::Result<rustix::process::Signal> {
    Ok(rustix::process::Signal::from_named_raw(signal as i32).ok_or(Errno::INVAL)?)
}
