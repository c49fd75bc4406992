use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use process::{Child, Signal, SpawnError, Stream};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use crate::arguments::Wiring;
use crate::owner::{Owner, apply, exit_of};
use crate::qmp::{Qmp, QmpError};
use crate::state::{Change, Exit, State};
use crate::tool::tool;
use crate::{Cable, Files, Identity, Machine, Pidfile, PidfileError, Qemu, socket};

/// Why a machine did not start. QEMU is gone, and so are its files except for the console log.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// A machine of an earlier run is still there: see [`Pidfile::clear`].
    #[error("process {pid} of an earlier run still uses {}", pidfile.display())]
    Occupied {
        /// Its process id.
        pid: u32,
        /// The pidfile that names it.
        pidfile: PathBuf,
    },
    /// The machine has the memory of a frozen one, so there is nothing to boot: see [`Vm::restore`](crate::Vm::restore).
    #[error("a machine with the memory of a frozen one can't boot; it can be restored")]
    NotBootable,
    /// The pidfile could not be read or written.
    #[error(transparent)]
    Pidfile(#[from] PidfileError),
    /// One of the machine's files could not be made.
    #[error("make {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// QEMU could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// QEMU exited before it answered, which it does when it does not like its arguments.
    #[error("qemu exited during start with {0}")]
    Exited(Exit),
    /// QEMU did not answer on its monitor.
    #[error("qemu did not answer on its monitor within {} s and was killed", after.as_secs_f32())]
    Silent {
        /// The time it had.
        after: Duration,
    },
    /// QEMU answered, but not like QEMU.
    #[error("qemu's monitor: {0}")]
    Monitor(#[source] QmpError),
}

/// How long QEMU may take to answer on its monitor. It takes some 50 ms; a host that is starting many may be slower.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How long a QEMU that has closed its monitor, or was killed, may take to be gone.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(5);

/// A QEMU that answers, and the task that owns its process.
pub(crate) struct Started {
    pub(crate) identity: Identity,
    pub(crate) qmp: Qmp,
    pub(crate) states: Arc<watch::Sender<State>>,
    /// What QEMU is to be sent. Without it, the owner kills QEMU.
    pub(crate) signals: mpsc::Sender<Signal>,
}

pub(crate) async fn start(
    qemu: &Qemu,
    machine: &Machine,
    files: &Files,
    cable: Option<Cable>,
) -> Result<Started, StartError> {
    let begun = Instant::now();
    let pidfile = Pidfile::new(&files.pidfile);
    check_unoccupied(&pidfile)?;
    remove_stale(&files.qmp_socket)?;
    let monitor = socket::listen(&files.qmp_socket)
        .map_err(|source| StartError::File { path: files.qmp_socket.clone(), source })?;
    let mut guard = RemoveOnDrop { paths: vec![files.qmp_socket.clone()] };
    let child = spawn(qemu, machine, files, monitor.into(), cable).await?;
    let pid = child.id();
    guard.paths.push(files.pidfile.clone());
    let identity = identify(pid, &pidfile)?;
    pidfile.write(&identity)?;

    let states = Arc::new(watch::Sender::new(State::Starting));
    let (signals, signals_out) = mpsc::channel(4);
    let qmp_cell = Arc::new(OnceLock::new());
    let owner = Owner {
        child,
        identity: identity.clone(),
        files: files.clone(),
        begun,
        states: states.clone(),
        qmp: qmp_cell.clone(),
        signals: signals_out,
    };
    guard.paths.clear();
    tokio::spawn(owner.run().in_current_span());

    let qmp = match connect(&files.qmp_socket, &states).await {
        Ok(qmp) => qmp,
        Err(error) => {
            // Without anybody who could signal it, its owner kills it.
            drop(signals);
            let _ = timeout(END_PATIENCE, exit_of(&states)).await;
            return Err(error);
        }
    };
    let _ = qmp_cell.set(qmp.clone());
    apply(&states, Change::MonitorAnswers);
    Ok(Started { identity, qmp, states, signals })
}

fn check_unoccupied(pidfile: &Pidfile) -> Result<(), StartError> {
    match pidfile.read()? {
        Some(identity) if identity.is_alive() => {
            Err(StartError::Occupied { pid: identity.pid, pidfile: pidfile.path().to_owned() })
        }
        _ => Ok(()),
    }
}

fn remove_stale(path: &Path) -> Result<(), StartError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(StartError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

async fn spawn(
    qemu: &Qemu,
    machine: &Machine,
    files: &Files,
    monitor: OwnedFd,
    cable: Option<Cable>,
) -> Result<Child, StartError> {
    let card = cable.as_ref().map(Cable::card);
    let wiring = Wiring { qmp: monitor.as_raw_fd(), console_log: &files.console_log, card };
    let mut command = tool(qemu.system())
        .args(machine.arguments(qemu.features(), wiring))
        .null(Stream::Stdout)
        .inherit_fd(monitor)
        .umask(0o077)
        .dies_with_parent();
    if let Some(cable) = cable {
        command = command.inherit_fd(cable.socket);
    }
    Ok(command.spawn().await?)
}

/// Identifies our own child, which is not reaped yet and so has its number to itself.
fn identify(pid: u32, pidfile: &Pidfile) -> Result<Identity, StartError> {
    Identity::of(pid).map_err(|source| StartError::File { path: pidfile.path().to_owned(), source })
}

/// Connects to the monitor, unless QEMU exits first.
async fn connect(path: &Path, states: &Arc<watch::Sender<State>>) -> Result<Qmp, StartError> {
    let handshake = async {
        let stream = socket::connect(path).await.map_err(QmpError::Connect)?;
        Qmp::over(stream).await
    };
    tokio::select! {
        biased;
        exit = exit_of(states) => Err(StartError::Exited(exit)),
        qmp = timeout(START_PATIENCE, handshake) => match qmp {
            Ok(Ok(qmp)) => Ok(qmp),
            // The monitor goes when QEMU does, and the reason for that is the better one.
            Ok(Err(error)) => match timeout(END_PATIENCE, exit_of(states)).await {
                Ok(exit) => Err(StartError::Exited(exit)),
                Err(_) => Err(StartError::Monitor(error)),
            },
            Err(_) => Err(StartError::Silent { after: START_PATIENCE }),
        },
    }
}

/// Removes what a start that fails half-way has made.
struct RemoveOnDrop {
    paths: Vec<PathBuf>,
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        for path in &self.paths {
            let _ = fs::remove_file(path);
        }
    }
}
