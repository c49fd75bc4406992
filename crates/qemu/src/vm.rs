use std::fmt;
use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use process::{Child, Signal, SpawnError, Stream};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::arguments::Wiring;
use crate::owner::{Owner, apply};
use crate::qmp::{Qmp, QmpError};
use crate::shutdown::{Ended, Shutdown, Stuck, climb, rung_of};
use crate::state::{Change, Exit, State};
use crate::tool::tool;
use crate::{Files, Identity, Machine, Pidfile, PidfileError, Qemu, Rung, console, socket};

/// A machine that runs, or ran. QEMU is a child of this process, in a process group of its own so that a terminal's
/// Ctrl-C does not reach it, and dies with this process however that ends. Dropping the `Vm` kills it.
pub struct Vm {
    shared: Arc<Shared>,
    identity: Identity,
    files: Files,
    /// The lowest rung anybody who wants the machine shut down wants to be on.
    floor: watch::Sender<Option<Rung>>,
    climbing: Mutex<Option<tokio::task::AbortHandle>>,
}

/// What a machine shares with the task that shuts it down.
pub(crate) struct Shared {
    pub(crate) pid: u32,
    pub(crate) qmp: Qmp,
    pub(crate) states: Arc<watch::Sender<State>>,
    pub(crate) stuck: watch::Sender<bool>,
    signals: mpsc::Sender<Signal>,
}

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

/// Why a machine that had started was not ready in time.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BootError<E> {
    /// QEMU exited.
    #[error("qemu exited during boot with {0}")]
    Exited(Exit),
    /// The guest did not answer in time. QEMU still runs.
    #[error("the guest was not ready within {} s", after.as_secs_f32())]
    TimedOut {
        /// The time it had.
        after: Duration,
    },
    /// Whoever asked the guest has given up.
    #[error("{0}")]
    Probe(E),
}

/// How long QEMU may take to answer on its monitor. It takes some 50 ms; a host that is starting many may be slower.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How long a QEMU that has closed its monitor, or was killed, may take to be gone.
const END_PATIENCE: Duration = Duration::from_secs(5);

impl Vm {
    /// Starts a machine, and returns when QEMU answers on its monitor. The guest is booting then.
    pub async fn start(qemu: &Qemu, machine: &Machine, files: Files) -> Result<Self, StartError> {
        let begun = Instant::now();
        let pidfile = Pidfile::new(&files.pidfile);
        check_unoccupied(&pidfile)?;
        remove_stale(&files.qmp_socket)?;
        let monitor = socket::listen(&files.qmp_socket)
            .map_err(|source| StartError::File { path: files.qmp_socket.clone(), source })?;
        let mut guard = RemoveOnDrop { paths: vec![files.qmp_socket.clone()] };
        let child = spawn(qemu, machine, &files, monitor.into()).await?;
        let pid = child.id();
        guard.paths.push(files.pidfile.clone());
        let identity = identify(pid, &pidfile)?;
        pidfile.write(&identity)?;

        let states = Arc::new(watch::Sender::new(State::Starting));
        let (signals, signals_out) = mpsc::channel(4);
        let qmp_cell = Arc::new(OnceLock::new());
        let owner = Owner {
            child,
            files: files.clone(),
            begun,
            states: states.clone(),
            qmp: qmp_cell.clone(),
            signals: signals_out,
        };
        guard.paths.clear();
        tokio::spawn(owner.run());

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
        let stuck = watch::Sender::new(false);
        let shared = Arc::new(Shared { pid, qmp, states, stuck, signals });
        Ok(Vm { shared, identity, files, floor: watch::Sender::new(None), climbing: Mutex::new(None) })
    }

    /// Returns QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.shared.pid
    }

    /// Returns which process QEMU is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the machine's files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Returns QEMU's monitor.
    pub fn qmp(&self) -> &Qmp {
        &self.shared.qmp
    }

    /// Returns where the machine is in its life.
    pub fn state(&self) -> State {
        self.shared.states.borrow().clone()
    }

    /// Follows where the machine is in its life.
    pub fn states(&self) -> watch::Receiver<State> {
        self.shared.states.subscribe()
    }

    /// Waits until QEMU has exited and was reaped. The future is independent of the `Vm`.
    pub fn exited(&self) -> impl Future<Output = Exit> + Send + 'static {
        exit_of(&self.shared.states)
    }

    /// Waits for the guest to be ready, which `probe` tells by becoming ready itself, and at the same time for QEMU to exit
    /// and for the deadline.
    pub async fn boot<T, E>(
        &self,
        probe: impl Future<Output = Result<T, E>>,
        deadline: Duration,
    ) -> Result<T, BootError<E>> {
        let answer = tokio::select! {
            biased;
            exit = self.exited() => return Err(BootError::Exited(exit)),
            answer = timeout(deadline, probe) => answer,
        };
        let answer = answer.map_err(|_| BootError::TimedOut { after: deadline })?.map_err(BootError::Probe)?;
        apply(&self.shared.states, Change::GuestAnswers);
        Ok(answer)
    }

    /// Reads the end of the console log: see [`console::tail`].
    pub fn console_tail(&self, max_bytes: usize) -> io::Result<String> {
        console::tail(&self.files.console_log, max_bytes)
    }

    /// Shuts the machine down and returns when it has ended. The shutdown goes on if this future is dropped. A second
    /// call while the first is under way has the machine on its own first rung at least, so that a person in a hurry is
    /// not kept waiting; its patience and command are not used.
    pub async fn shutdown(&self, shutdown: Shutdown) -> Result<Ended, Stuck> {
        let begun = Instant::now();
        self.begin(shutdown);
        let mut states = self.states();
        let mut stuck = self.shared.stuck.subscribe();
        let mut rung = rung_of(&states.borrow());
        loop {
            if let State::Exited(exit) = &*states.borrow_and_update() {
                return Ok(Ended { rung, exit: exit.clone(), after: begun.elapsed() });
            }
            rung = rung_of(&states.borrow()).or(rung);
            tokio::select! {
                biased;
                changed = states.changed() => if changed.is_err() { std::future::pending::<()>().await },
                () = async { drop(stuck.wait_for(|stuck| *stuck).await) } => return Err(Stuck { pid: self.shared.pid }),
            }
        }
    }

    fn begin(&self, shutdown: Shutdown) {
        let mut climbing = self.climbing.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = climbing.as_ref().is_some_and(|task| !task.is_finished());
        if under_way {
            self.floor.send_if_modified(|floor| {
                let higher = Some(shutdown.first()) > *floor;
                if higher {
                    *floor = Some(shutdown.first());
                }
                higher
            });
        } else {
            self.shared.stuck.send_replace(false);
            let task = tokio::spawn(climb(self.shared.clone(), shutdown, self.floor.subscribe()));
            *climbing = Some(task.abort_handle());
        }
    }
}

impl Shared {
    pub(crate) fn change(&self, change: Change) {
        apply(&self.states, change);
    }

    pub(crate) fn exited(&self) -> impl Future<Output = Exit> + Send + 'static {
        exit_of(&self.states)
    }

    /// Sends QEMU a signal, through the task that owns it.
    pub(crate) async fn signal(&self, signal: Signal) -> Result<(), String> {
        // A task that is gone has seen QEMU exit, and whoever signals learns that elsewhere.
        let _ = self.signals.send(signal).await;
        Ok(())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // With the last sender of signals gone, the owner of the process kills it.
        if let Some(task) = &*self.climbing.lock().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm").field("pid", &self.pid()).field("state", &self.state()).finish_non_exhaustive()
    }
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

async fn spawn(qemu: &Qemu, machine: &Machine, files: &Files, monitor: OwnedFd) -> Result<Child, StartError> {
    let wiring = Wiring { qmp: monitor.as_raw_fd(), console_log: &files.console_log };
    let command = tool(qemu.system())
        .args(machine.arguments(qemu.features(), wiring))
        .null(Stream::Stdout)
        .inherit_fd(monitor)
        .umask(0o077)
        .dies_with_parent();
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

fn exit_of(states: &Arc<watch::Sender<State>>) -> impl Future<Output = Exit> + Send + 'static {
    let mut states = states.subscribe();
    async move {
        loop {
            if let State::Exited(exit) = &*states.borrow_and_update() {
                return exit.clone();
            }
            if states.changed().await.is_err() {
                // The owner of the process always says that it has exited; only a runtime that is going down drops it.
                std::future::pending::<()>().await;
            }
        }
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
