//! The signals that mean something to the worker, and what they mean.

use nix::sys::signal::{SigSet, Signal as Number};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::life::Input;

/// What this process does something about.
const ALL: [Number; 5] = [Number::SIGTERM, Number::SIGINT, Number::SIGHUP, Number::SIGUSR1, Number::SIGUSR2];

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard {
    /// Its name.
    pub name: &'static str,
    /// What it means.
    pub input: Input,
}

/// Keeps the signals back until [`Signals::listen`], instead of letting the system end the process by them. For the main
/// thread before there is another one: these inherit it, and children do not.
pub(crate) fn keep_back() {
    // Fails only for arguments that make no sense.
    let _ = set().thread_block();
}

fn set() -> SigSet {
    ALL.into_iter().collect()
}

/// Listens for the signals. One that comes while nobody looks is kept until somebody does; of the same one several times it
/// may be once.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user_1: Signal,
    user_2: Signal,
}

impl Signals {
    /// Begins to listen, with those that were kept back. On the main thread: the others go on to keep them back.
    pub(super) fn listen() -> std::io::Result<Self> {
        let signals = Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user_1: signal(SignalKind::user_defined1())?,
            user_2: signal(SignalKind::user_defined2())?,
        };
        set().thread_unblock()?;
        Ok(signals)
    }

    /// The next one; of several that have come, one that stops. Cancel-safe.
    pub(super) async fn next(&mut self) -> Heard {
        let (name, input) = tokio::select! {
            biased;
            _ = self.terminate.recv() => ("SIGTERM", Input::Stop),
            _ = self.interrupt.recv() => ("SIGINT", Input::Stop),
            _ = self.user_1.recv() => ("SIGUSR1", Input::Drain),
            _ = self.hang_up.recv() => ("SIGHUP", Input::Reload),
            _ = self.user_2.recv() => ("SIGUSR2", Input::TogglePause),
        };
        Heard { name, input }
    }

    /// The next one that ends a worker which has no builds. The others wait until somebody asks for them. Cancel-safe.
    pub(super) async fn ending(&mut self) -> Heard {
        let (name, input) = tokio::select! {
            biased;
            _ = self.terminate.recv() => ("SIGTERM", Input::Stop),
            _ = self.interrupt.recv() => ("SIGINT", Input::Stop),
            _ = self.user_1.recv() => ("SIGUSR1", Input::Drain),
        };
        Heard { name, input }
    }
}
