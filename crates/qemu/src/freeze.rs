use std::fs::File;
use std::io;
use std::pin::pin;
use std::time::Duration;

use serde_json::json;
use thiserror::Error;
use tokio::io::{AsyncWriteExt, BufReader, copy_buf};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::migration::{CHUNK, Fault, Migration, unless_exited};
use crate::qmp::QmpError;
use crate::{Exit, Memory, Rung, Shutdown, Stuck, Vm};

/// Why a machine was not frozen. Unless it says otherwise the guest was stopped and can't be trusted to go on: drop the
/// machine, and throw its files away.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FreezeError {
    /// Its memory would be gone with QEMU. Nothing was done to it.
    #[error("the machine's memory is not in a file that others could be started from")]
    NotShared,
    /// QEMU had stopped the guest already, for a reason of its own.
    #[error("the guest does not run any more: its state is {status}")]
    Halted {
        /// QEMU's word for the state (`RunState`): `io-error`, `guest-panicked`, …
        status: String,
    },
    /// QEMU exited.
    #[error("qemu exited while the machine was frozen with {0}")]
    Exited(Exit),
    /// QEMU could not do it, for example because the state of a device can't be saved.
    #[error("qemu can't save the machine's state: {why}")]
    Failed {
        /// What it says.
        why: String,
    },
    /// The state could not be written to its file.
    #[error("write the machine's state: {0}")]
    State(#[source] io::Error),
    /// QEMU's monitor did not answer as it should.
    #[error("qemu's monitor: {0}")]
    Monitor(#[source] QmpError),
    /// It took too long.
    #[error("the machine was not frozen within {} s", after.as_secs_f32())]
    TimedOut {
        /// The time it had.
        after: Duration,
    },
    /// The state is saved, and QEMU does not end.
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

impl Vm {
    /// Stops the guest, saves the state of the machine's devices to an empty file, and ends QEMU. From this file, the
    /// memory's, and overlays on the disk's, any number of machines can be [restored](Vm::restore), each of which goes on
    /// where this one was stopped. Takes some 25 ms when QEMU is not busy with the guest's disk. Connections to the guest
    /// should be closed before: in a clone they lead nowhere.
    ///
    /// The state's file is on the host's disk when this returns. The files of the memory and the disk are whole, but in the
    /// host's cache: who wants to use them after a crash of the host syncs them.
    ///
    /// With KVM and `-cpu host` that works as QEMU leaves out by itself what it can't save; a cpu that was asked for
    /// `+invtsc` it refuses to. A clone needs the same processor model and microcode then.
    ///
    /// Dropping the future leaves the machine stopped for good.
    ///
    /// # Errors
    /// Nearly all leave a machine that is of no use any more: see [`FreezeError`].
    pub async fn freeze(&self, state: File, within: Duration) -> Result<(), FreezeError> {
        if !matches!(self.memory(), Memory::Shared { .. }) {
            return Err(FreezeError::NotShared);
        }
        let freeze = async {
            let status = unless_exited(self, self.stopped()).await?;
            if status != "paused" {
                return Err(FreezeError::Halted { status });
            }
            unless_exited(self, self.save(state)).await?;
            // A frozen machine never goes on: what it did to its memory would be done to that of its clones.
            self.shutdown(Shutdown::from(Rung::Quit)).await?;
            Ok(())
        };
        timeout(within, freeze).await.unwrap_or(Err(FreezeError::TimedOut { after: within }))
    }

    /// Stops the guest, and returns the state it is in then.
    async fn stopped(&self) -> Result<String, Fault> {
        self.qmp().execute("stop", json!({})).await?;
        Ok(self.qmp().status().await?)
    }

    async fn save(&self, state: File) -> Result<(), Fault> {
        let (migration, socket) = Migration::prepare(self.qmp()).await?;
        let mut saving = pin!(migration.run("migrate"));
        let mut writing = pin!(write(socket, state));
        tokio::select! {
            saved = &mut saving => {
                saved?;
                writing.await.map_err(Fault::State)
            }
            // The end of the file is the end of the socket, and so of the save.
            written = &mut writing => {
                written.map_err(Fault::State)?;
                saving.await
            }
        }
    }
}

impl From<Fault> for FreezeError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Exited(exit) => FreezeError::Exited(exit),
            Fault::Failed(why) => FreezeError::Failed { why },
            Fault::Monitor(error) => FreezeError::Monitor(error),
            Fault::State(error) => FreezeError::State(error),
        }
    }
}

/// Writes what comes out of a socket to a file, until QEMU has closed its end.
async fn write(socket: UnixStream, state: File) -> io::Result<()> {
    let mut state = tokio::fs::File::from_std(state);
    copy_buf(&mut BufReader::with_capacity(CHUNK, socket), &mut state).await?;
    state.flush().await?;
    state.sync_all().await
}
