use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use process::Signal;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::ladder::{Happening, Step, step};
use crate::state::{Change, Exit, State};
use crate::vm::Shared;
use crate::{Patience, Rung};

/// How a machine is to be shut down.
pub struct Shutdown {
    from: Rung,
    patience: Patience,
    guest: Option<GuestCommand>,
}

type GuestCommand = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

impl Shutdown {
    /// Starts with a command in the guest. Whether it was given is known when the future is ready; the guest then has
    /// what is left of its time. The future is dropped when that is over, or the machine is.
    pub fn by_guest<E: fmt::Display>(command: impl Future<Output = Result<(), E>> + Send + 'static) -> Self {
        let command = async { command.await.map_err(|error| error.to_string()) };
        Shutdown { from: Rung::Guest, patience: Patience::default(), guest: Some(Box::pin(command)) }
    }

    /// Starts with this rung. [`Rung::Guest`] is passed over, as there is no command.
    pub fn from(rung: Rung) -> Self {
        Shutdown { from: rung, patience: Patience::default(), guest: None }
    }

    /// Sets how long each rung has.
    pub fn patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    pub(crate) fn first(&self) -> Rung {
        self.from
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown").field("from", &self.from).field("patience", &self.patience).finish_non_exhaustive()
    }
}

/// How a machine came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The rung that was tried when it ended; `None` if it had ended before any was.
    pub rung: Option<Rung>,
    /// How QEMU ended.
    pub exit: Exit,
    /// How long the shutdown took.
    pub after: Duration,
}

/// QEMU outlived a SIGKILL, which means that the kernel is not done with it. Its files must not be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("qemu (process {pid}) does not end even when killed; look for a hung disk or network mount")]
pub struct Stuck {
    /// Its process id.
    pub pid: u32,
}

/// Climbs the ladder until QEMU has exited or there is nothing left to try. `floor` is the lowest rung anybody wants to be
/// on.
pub(crate) async fn climb(shared: Arc<Shared>, shutdown: Shutdown, mut floor: watch::Receiver<Option<Rung>>) {
    let Shutdown { from, patience, mut guest } = shutdown;
    let mut rung = from;
    loop {
        shared.change(Change::Climb(rung));
        tracing::debug!(pid = shared.pid, %rung, "shutting a machine down");
        let ends = Instant::now() + patience.with(rung);
        let happening = tokio::select! {
            biased;
            _ = shared.exited() => return,
            happening = stand_on(rung, &shared, &mut guest, ends) => happening,
            to = above(rung, &mut floor) => Happening::Hurried(to),
        };
        match step(rung, happening) {
            Step::Stay => {}
            Step::Climb(next) => rung = next,
            Step::GiveUp => {
                shared.stuck.send_replace(true);
                return;
            }
        }
    }
}

/// Tries one rung, and returns when it has failed or its time is over.
async fn stand_on(rung: Rung, shared: &Shared, guest: &mut Option<GuestCommand>, ends: Instant) -> Happening {
    let attempt = async {
        match rung {
            Rung::Guest => match guest.take() {
                Some(command) => command.await,
                None => Err("no command is known".to_owned()),
            },
            Rung::Powerdown => shared.qmp.system_powerdown().await.map_err(|error| error.to_string()),
            Rung::Quit => shared.qmp.quit().await.map_err(|error| error.to_string()),
            Rung::Terminate => shared.signal(Signal::SIGTERM).await,
            Rung::Kill => shared.signal(Signal::SIGKILL).await,
        }
    };
    let tried = tokio::select! {
        result = attempt => result,
        () = sleep_until(ends) => return Happening::PatienceOver,
    };
    match tried {
        Ok(()) => {
            sleep_until(ends).await;
            Happening::PatienceOver
        }
        Err(reason) => {
            tracing::debug!(pid = shared.pid, %rung, reason, "can't shut the machine down this way");
            Happening::Impossible
        }
    }
}

/// Waits until somebody wants to be above a rung.
async fn above(rung: Rung, floor: &mut watch::Receiver<Option<Rung>>) -> Rung {
    let higher = floor.wait_for(|floor| floor.is_some_and(|floor| floor > rung)).await.ok().and_then(|floor| *floor);
    match higher {
        Some(rung) => rung,
        None => std::future::pending().await,
    }
}

pub(crate) fn rung_of(state: &State) -> Option<Rung> {
    match state {
        State::ShuttingDown { rung } => Some(*rung),
        _ => None,
    }
}
