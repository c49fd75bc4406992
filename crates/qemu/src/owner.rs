//! The task that owns QEMU's process, from its start until it was reaped.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use process::{Child, Event, ExitStatus, Rung as Escalate, Signal, Tail};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::console::plain;
use crate::qmp::Qmp;
use crate::state::{Change, Exit, State};
use crate::{Files, Pidfile};

/// How much of stderr is kept.
const STDERR_MAX_BYTES: usize = 8 * 1024;

/// How long QEMU's last words on its monitor are waited for once it has exited. They are in the socket already.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long the kernel may take to end QEMU before that is said.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Owner {
    pub(crate) child: Child,
    pub(crate) files: Files,
    pub(crate) begun: Instant,
    pub(crate) states: Arc<watch::Sender<State>>,
    pub(crate) qmp: Arc<OnceLock<Qmp>>,
    /// Closed when nobody wants the machine any more.
    pub(crate) signals: mpsc::Receiver<Signal>,
}

impl Owner {
    /// Runs until QEMU has exited and was reaped, and says so.
    pub(crate) async fn run(mut self) {
        // Should the runtime stop this task, its child is killed.
        let mut publish = Publish { states: self.states.clone(), exit: None };
        let mut stderr = Tail::new(STDERR_MAX_BYTES);
        let mut wanted = true;
        let status = loop {
            tokio::select! {
                event = self.child.next_event() => match event {
                    Some(Event::Stderr(bytes)) => {
                        tracing::trace!(bytes = bytes.len(), "qemu wrote to stderr");
                        stderr.push(&bytes);
                    }
                    Some(Event::Finished(finish)) => break finish.status,
                    Some(Event::Unkilled) => tracing::error!(pid = self.child.id(), "qemu does not end even when killed"),
                    Some(_) => {}
                    None => break ExitStatus::Signal(Signal::SIGKILL as i32),
                },
                signal = self.signals.recv(), if wanted => {
                    wanted = signal.is_some();
                    let sent = match signal {
                        Some(signal) => self.child.signal(signal),
                        None => self.child.escalate([Escalate::new(Signal::SIGKILL, KILL_PATIENCE)]),
                    };
                    if let Err(error) = sent {
                        tracing::warn!(%error, "qemu could not be signalled");
                    }
                }
            }
        };
        let cause = match self.qmp.get() {
            Some(qmp) => timeout(LAST_WORDS, qmp.closed()).await.ok().flatten(),
            None => None,
        };
        self.remove_files();
        publish.exit = Some(Exit { status, stderr: plain(&stderr.text()), cause, lived: self.begun.elapsed() });
    }

    fn remove_files(&self) {
        if let Err(error) = Pidfile::new(&self.files.pidfile).remove() {
            tracing::warn!(%error, "a pidfile stays behind");
        }
        // The socket is of no use without its QEMU; the next start removes what can't be removed now, or says why not.
        let _ = std::fs::remove_file(&self.files.qmp_socket);
    }
}

/// Says that the machine has exited, however the task that knows ends.
struct Publish {
    states: Arc<watch::Sender<State>>,
    exit: Option<Exit>,
}

impl Drop for Publish {
    fn drop(&mut self) {
        let exit = self.exit.take().unwrap_or_else(|| Exit {
            status: ExitStatus::Signal(Signal::SIGKILL as i32),
            stderr: String::new(),
            cause: None,
            lived: Duration::ZERO,
        });
        apply(&self.states, Change::Exit(exit));
    }
}

/// Moves a machine's state on, if the change still matters.
pub(crate) fn apply(states: &watch::Sender<State>, change: Change) {
    states.send_if_modified(|state| match state.after(change) {
        Some(next) => {
            *state = next;
            true
        }
        None => false,
    });
}

/// Waits until a machine has exited.
pub(crate) fn exit_of(states: &Arc<watch::Sender<State>>) -> impl Future<Output = Exit> + Send + 'static {
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
