use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::migration::{CHUNK, Fault, Migration, unless_exited};
use crate::qmp::QmpError;
use crate::start::{END_PATIENCE, StartError};
use crate::{Exit, Files, Machine, Memory, Qemu, Vm};

/// Why a machine was not restored. QEMU is gone, and so are its files except for the console log.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The machine is not to have a frozen one's memory.
    #[error("the machine's memory is not that of a frozen one")]
    NotPrivate,
    /// QEMU did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// QEMU exited, which it does when it can't make sense of the state, or when the state is that of another machine. It
    /// says why.
    #[error("qemu exited while the machine was restored with {0}")]
    Exited(Exit),
    /// QEMU refused.
    #[error("qemu can't restore the machine's state: {why}")]
    Failed {
        /// What it says.
        why: String,
    },
    /// The state could not be read from its file.
    #[error("read the machine's state: {0}")]
    State(#[source] io::Error),
    /// QEMU's monitor did not answer as it should.
    #[error("qemu's monitor: {0}")]
    Monitor(#[source] QmpError),
    /// It took too long.
    #[error("the machine was not restored within {} s", after.as_secs_f32())]
    TimedOut {
        /// The time it had.
        after: Duration,
    },
}

/// How long a QEMU that answers may take to read the state and let the guest go on. It takes some 30 ms; a host that is
/// starting many may be slower.
const PATIENCE: Duration = Duration::from_secs(30);

impl Vm {
    /// Starts a machine that goes on where another was [frozen](Vm::freeze), and returns when its guest runs. It has
    /// [that one's memory](Memory::Private), its [blueprint](Machine::blueprint), and for its disk an overlay on that
    /// one's. The state's file is read from its beginning, wherever its position is, and not needed any more afterwards.
    ///
    /// Takes some 60 ms, 40 of them for QEMU to start, whatever the accelerator. A state that is damaged, or another
    /// machine's, makes QEMU exit; one that was made on purpose can make it do anything, so it must come from a directory
    /// that is nobody else's.
    ///
    /// The guest does not notice, except by its [generation](crate::Features::vmgenid): its clocks (with KVM also the
    /// paravirtual one) go on from where they stood, and all clones have the same secrets, network address and random
    /// numbers. If this future is dropped before it is ready, QEMU is killed.
    pub async fn restore(qemu: &Qemu, machine: &Machine, files: Files, state: File) -> Result<Self, RestoreError> {
        if !matches!(machine.memory, Memory::Private { .. }) {
            return Err(RestoreError::NotPrivate);
        }
        let vm = Self::launch(qemu, machine, files, None).await?;
        let error = match timeout(PATIENCE, unless_exited(&vm, vm.load(state))).await {
            Ok(Ok(())) => return Ok(vm),
            Ok(Err(fault)) => RestoreError::from(fault),
            Err(_) => RestoreError::TimedOut { after: PATIENCE },
        };
        let exited = vm.exited();
        drop(vm);
        let _ = timeout(END_PATIENCE, exited).await;
        Err(error)
    }

    async fn load(&self, state: File) -> Result<(), Fault> {
        let (migration, socket) = Migration::prepare(self.qmp()).await?;
        let mut reading = pin!(read(state, socket));
        let mut loading = pin!(migration.run("migrate-incoming"));
        tokio::select! {
            read = &mut reading => {
                read.map_err(Fault::State)?;
                loading.await?;
            }
            loaded = &mut loading => loaded?,
        }
        self.qmp().execute("cont", json!({})).await?;
        Ok(())
    }
}

impl From<Fault> for RestoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Exited(exit) => RestoreError::Exited(exit),
            Fault::Failed(why) => RestoreError::Failed { why },
            Fault::Monitor(error) => RestoreError::Monitor(error),
            Fault::State(error) => RestoreError::State(error),
        }
    }
}

/// Writes a file to a socket, and closes it. That nobody reads it to its end is for QEMU to explain.
async fn read(state: File, mut socket: UnixStream) -> io::Result<()> {
    let state = Arc::new(state);
    let mut offset = 0;
    loop {
        let file = state.clone();
        let chunk = move || {
            let mut chunk = vec![0; CHUNK];
            let length = file.read_at(&mut chunk, offset)?;
            chunk.truncate(length);
            io::Result::Ok(chunk)
        };
        let chunk = spawn_blocking(chunk).await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
        if chunk.is_empty() || socket.write_all(&chunk).await.is_err() {
            return Ok(());
        }
        offset += chunk.len() as u64;
    }
}
