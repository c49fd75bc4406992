use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use process::Signal;
use thiserror::Error;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use crate::owner::{apply, exit_of};
use crate::qmp::{Event, Halt, Qmp};
use crate::shutdown::{Ended, Shutdown, Stuck, climb, rung_of};
use crate::start::{StartError, Started, start};
use crate::state::{Change, Exit, State};
use crate::{Cable, Files, Identity, Machine, Memory, Panic, Panics, Qemu, Rung, console};

/// A machine that runs, or ran. QEMU is a child of this process, in a process group of its own so that a terminal's
/// Ctrl-C does not reach it, and dies with this process however that ends. Dropping the `Vm` kills it.
pub struct Vm {
    shared: Arc<Shared>,
    identity: Identity,
    files: Files,
    memory: Memory,
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

/// Why a machine that had started was not ready in time.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BootError<E> {
    /// QEMU exited.
    #[error("qemu exited during boot with {0}")]
    Exited(Exit),
    /// QEMU has stopped the guest for good. QEMU still runs.
    #[error("qemu stopped the guest during boot: {0}")]
    Halted(Halt),
    /// The guest's kernel has panicked. QEMU still runs.
    #[error("{0}")]
    Panicked(Panic),
    /// The guest restarts again and again. QEMU still runs.
    #[error("the guest restarted {times} times during boot and was not ready in between")]
    Restarting {
        /// How often it was seen to.
        times: u32,
    },
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

/// How often a guest may restart while it boots. Firmware, boot loaders and the first starts of installed systems do it once
/// or twice.
const MOST_RESTARTS: u32 = 4;

/// How long it may take until the end of a QEMU is seen.
const UNSEEN: Duration = Duration::from_millis(500);

impl Vm {
    /// Starts a machine, and returns when QEMU answers on its monitor. The guest is booting then. If this future is dropped
    /// before, QEMU is killed.
    pub async fn start(qemu: &Qemu, machine: &Machine, files: Files) -> Result<Self, StartError> {
        Self::start_on(qemu, machine, files, None).await
    }

    /// Starts a machine with a second card on a private network, if there is a cable.
    pub async fn start_on(
        qemu: &Qemu,
        machine: &Machine,
        files: Files,
        cable: Option<Cable>,
    ) -> Result<Self, StartError> {
        match machine.memory {
            Memory::Own | Memory::Shared { .. } => Self::launch(qemu, machine, files, cable).await,
            Memory::Private { .. } => Err(StartError::NotBootable),
        }
    }

    pub(crate) async fn launch(
        qemu: &Qemu,
        machine: &Machine,
        files: Files,
        cable: Option<Cable>,
    ) -> Result<Self, StartError> {
        let Started { identity, qmp, states, signals } = start(qemu, machine, &files, cable).await?;
        let shared = Arc::new(Shared { pid: identity.pid, qmp, states, stuck: watch::Sender::new(false), signals });
        let memory = machine.memory.clone();
        Ok(Vm { shared, identity, files, memory, floor: watch::Sender::new(None), climbing: Mutex::new(None) })
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

    /// Returns where the machine's memory is.
    pub fn memory(&self) -> &Memory {
        &self.memory
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
    pub fn exited(&self) -> impl Future<Output = Exit> + Send + use<> {
        exit_of(&self.shared.states)
    }

    /// Waits until QEMU has stopped the guest of its own accord, which it does when the host's disk is full, the guest has
    /// panicked, or KVM has failed. Nothing the guest was asked will then be answered any more. The future is independent
    /// of the `Vm`.
    pub fn halted(&self) -> impl Future<Output = Halt> + Send + use<> {
        let qmp = self.shared.qmp.clone();
        async move { qmp.halted().await }
    }

    /// How much the guest has printed on its console so far, in bytes.
    pub fn printed(&self) -> u64 {
        std::fs::metadata(&self.files.console_log).map_or(0, |log| log.len())
    }

    /// What kernels that panic say, in what the guest prints from this byte of its console on.
    pub fn panics(&self, from: u64) -> Panics {
        Panics::new(self.files.console_log.clone(), from)
    }

    /// What a kernel that has panicked said, in what it printed from this byte of the console on.
    pub async fn last_words(&self, from: u64) -> Option<Panic> {
        self.panics(from).said().await
    }

    /// Waits until the guest has restarted more often than one does that boots.
    async fn restarting(&self) -> u32 {
        let mut events = self.qmp().events();
        let mut times = 0;
        while times <= MOST_RESTARTS {
            match events.recv().await {
                Ok(Event::Reset(_)) => times += 1,
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
        times
    }

    /// Waits for the guest to be ready, which `probe` tells by becoming ready itself, and at the same time for QEMU to exit or
    /// to stop the guest, for the guest to panic or to restart again and again, and for the deadline.
    pub async fn boot<T, E>(
        &self,
        probe: impl Future<Output = Result<T, E>>,
        deadline: Duration,
    ) -> Result<T, BootError<E>> {
        // What it printed before concerns an earlier boot.
        let from = match self.state() {
            State::Starting | State::Booting => 0,
            _ => self.printed(),
        };
        let mut panics = self.panics(from);
        let answer = tokio::select! {
            biased;
            exit = self.exited() => return Err(BootError::Exited(exit)),
            halt = self.halted() => {
                let panic = if halt.is_panic() { self.last_words(from).await } else { None };
                return Err(panic.map_or(BootError::Halted(halt), BootError::Panicked));
            }
            panic = panics.next() => return Err(BootError::Panicked(panic)),
            times = self.restarting() => return Err(BootError::Restarting { times }),
            answer = timeout(deadline, probe) => answer,
        };
        let answer = match answer.map_err(|_| BootError::TimedOut { after: deadline })? {
            Ok(answer) => answer,
            // What was asked notices QEMU's end a moment before it is seen here.
            Err(error) => match timeout(UNSEEN, self.exited()).await {
                Ok(exit) => return Err(BootError::Exited(exit)),
                Err(_) => return Err(BootError::Probe(error)),
            },
        };
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
            let task = tokio::spawn(climb(self.shared.clone(), shutdown, self.floor.subscribe()).in_current_span());
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
