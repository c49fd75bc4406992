//! Machines that an earlier run left behind.

use std::io;
use std::time::Duration;

use process::{Pidfd, Signal};
use thiserror::Error;
use tokio::time::{Instant, timeout};

use crate::{Pidfile, PidfileError};

/// What was found behind a pidfile, and is there no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// There was no pidfile.
    None,
    /// The pidfile's process had already ended. Another one may have its id now, and was left alone.
    Stale {
        /// The id it had.
        pid: u32,
    },
    /// The pidfile came here with a copy of the directory that it was written in. Its process, if it runs, is that of the
    /// original, and was left alone.
    Copied {
        /// The id in it.
        pid: u32,
    },
    /// The process still ran, and was ended.
    Ended {
        /// Its id.
        pid: u32,
        /// The signal that did it.
        with: Signal,
        /// How long it took.
        after: Duration,
    },
}

/// Why what an earlier run left could not be cleared away. The slot can't be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LeftoverError {
    /// The pidfile can't be used.
    #[error(transparent)]
    Pidfile(#[from] PidfileError),
    /// The process could not be reached.
    #[error("end process {pid}, left by an earlier run: {source}")]
    Signal {
        /// Its id.
        pid: u32,
        /// Why not.
        source: io::Error,
    },
    /// The process outlived a SIGKILL, which means that the kernel is not done with it.
    #[error(
        "process {pid}, left by an earlier run, does not end even when killed; look for a hung disk or network mount"
    )]
    Stuck {
        /// Its id.
        pid: u32,
    },
}

impl Pidfile {
    /// Ends the process that the pidfile names, if it still runs, and removes the pidfile. It is given `patience` after
    /// a SIGTERM and once more after a SIGKILL. A process that only has the same id is never touched, nor is one of which only
    /// a copy of its pidfile is here.
    pub async fn clear(&self, patience: Duration) -> Result<Leftover, LeftoverError> {
        let Some(identity) = self.read()? else { return Ok(Leftover::None) };
        let pid = identity.pid;
        if self.is_copy()? {
            self.remove()?;
            return Ok(Leftover::Copied { pid });
        }
        let held = identity.hold().map_err(|source| LeftoverError::Signal { pid, source })?;
        let leftover = match held {
            Some(process) => end(pid, &process, patience).await?,
            None => Leftover::Stale { pid },
        };
        self.remove()?;
        Ok(leftover)
    }
}

async fn end(pid: u32, process: &Pidfd, patience: Duration) -> Result<Leftover, LeftoverError> {
    let begun = Instant::now();
    for with in [Signal::SIGTERM, Signal::SIGKILL] {
        match process.signal(with) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(LeftoverError::Signal { pid, source: error });
            }
            _ => {}
        }
        if timeout(patience, process.exited()).await.is_ok() {
            return Ok(Leftover::Ended { pid, with, after: begun.elapsed() });
        }
    }
    Err(LeftoverError::Stuck { pid })
}
