//! The task that owns QEMU's process, from its start until it was reaped.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use process::{Child, Event, ExitStatus, Rung as Escalate, Signal, Tail};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, timeout};

use crate::console::{plain, trim};
use crate::qmp::Qmp;
use crate::state::{Change, Exit, State};
use crate::{Files, Identity, Pidfile};

/// How much of stderr is kept.
const STDERR_MAX_BYTES: usize = 8 * 1024;

/// How much of a guest's console is kept on the host at least, and half of what it occupies at most: a guest may print without
/// end.
const CONSOLE_KEPT: u64 = 16 << 20;

/// How often that is looked after. QEMU tells nobody what it writes, and an emulated serial line takes a minute or more for
/// what is kept.
const CONSOLE_TRIM: Duration = Duration::from_secs(5);

/// How long QEMU's last words on its monitor are waited for once it has exited. They are in the socket already.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long the kernel may take to end QEMU before that is said.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Owner {
    pub(crate) child: Child,
    pub(crate) identity: Identity,
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
        let mut trimming = tokio::time::interval(CONSOLE_TRIM);
        trimming.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut trimmable = true;
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
                _ = trimming.tick(), if trimmable => match trim(&self.files.console_log, CONSOLE_KEPT) {
                    Ok(false) => {}
                    Ok(true) => tracing::info!(pid = self.child.id(), "the guest prints much; the beginning of its console's log is gone"),
                    Err(error) => {
                        trimmable = false;
                        tracing::warn!(%error, "a console's log can't be kept short");
                    }
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
        remove_files(&self.identity, &self.files);
        let cause = match self.qmp.get() {
            Some(qmp) => timeout(LAST_WORDS, qmp.closed()).await.ok().flatten(),
            None => None,
        };
        publish.exit = Some(Exit { status, stderr: plain(&stderr.text()), cause, lived: self.begun.elapsed() });
    }
}

/// Removes the files by which others find QEMU, unless somebody has done so before: whoever saw that QEMU has exited, which
/// is to be seen before it is reaped, may have cleared its directory and started the next machine there.
fn remove_files(identity: &Identity, files: &Files) {
    let pidfile = Pidfile::new(&files.pidfile);
    match pidfile.read() {
        Ok(Some(named)) if named == *identity => {}
        Ok(_) => return,
        Err(error) => return tracing::warn!(%error, "a machine's files stay behind"),
    }
    // The socket is of no use without its QEMU; what can't be removed now the next start removes, or says why not.
    let _ = std::fs::remove_file(&files.qmp_socket);
    if let Err(error) = pidfile.remove() {
        tracing::warn!(%error, "a pidfile stays behind");
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
pub(crate) fn exit_of(states: &Arc<watch::Sender<State>>) -> impl Future<Output = Exit> + Send + use<> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Which files are left after the end of a machine whose place has this pidfile.
    #[track_caller]
    fn check(named: Option<u32>, expected: &[&str]) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        let files = Files { pidfile: path("pid"), qmp_socket: path("qmp"), console_log: path("console") };
        let identity = |pid| Identity { pid, start_time: 7, boot_id: "this".to_owned() };
        std::fs::write(&files.qmp_socket, "").expect("written");
        if let Some(pid) = named {
            Pidfile::new(&files.pidfile).write(&identity(pid)).expect("written");
        }
        remove_files(&identity(42), &files);
        let names = std::fs::read_dir(directory.path()).expect("it is there");
        let mut names: Vec<_> = names.map(|entry| entry.expect("readable").file_name()).collect();
        names.sort();
        assert_eq!(names, expected);
    }

    #[test]
    fn the_end_of_a_machine_does_not_concern_the_next_one_in_its_place() {
        check(Some(42), &[]);
        check(Some(43), &["pid", "qmp"]);
        check(None, &["qmp"]);
    }
}
