//! A command that runs in the guest.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use russh::ChannelWriteHalf;
use russh::client::Msg;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::Instrument;

use crate::channel::{self, Opened, Purpose};
use crate::exec::{Exec, Pty};
use crate::launch::Launch;
use crate::output::{self, Receiver};
use crate::pump::{Progress, Pump};
use crate::session::{Session, Shared};
use crate::signal::{self, Signal, Signalled, Tree};
use crate::{ExecError, Lost, OutputError, SignalError, Stdin};

/// A command that was started in the guest.
///
/// Keep reading [`Process::next`]: output nobody takes is held back in the guest, and beyond [`Exec::buffer`] everything
/// else on the session waits with it, save signals. Dropping a process that has not exited kills its whole tree in the
/// background.
#[derive(Debug)]
pub struct Process {
    output: Receiver,
    stdin: Option<Stdin>,
    signaller: Signaller,
    pid: u32,
    /// Dropped with the process, which tells the pump.
    _owner: oneshot::Sender<()>,
}

/// What a process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It wrote to standard output; with a terminal, to either. Never empty, at most 64 KiB.
    Stdout(Bytes),
    /// It wrote to standard error. Never empty, at most 64 KiB.
    Stderr(Bytes),
    /// It ended. Comes once; output that it or its descendants left behind may still follow.
    Exited(Exit),
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// With this code, 0 to 255.
    Code(u32),
    /// By a signal.
    Signal {
        /// Its name without `SIG`.
        name: String,
        /// Whether the guest wrote a core file.
        core_dumped: bool,
    },
}

/// All that a process printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub exit: Exit,
}

/// Signals a process; can be had as often as needed and outlives it.
#[derive(Clone)]
pub struct Signaller {
    shared: Arc<Shared>,
    tree: Tree,
    /// The command's own channel, for as long as it is open.
    channel: Weak<ChannelWriteHalf<Msg>>,
}

/// Starts a command; see [`Session::exec`].
pub(crate) async fn start(session: &Session, exec: &Exec) -> Result<Process, ExecError> {
    let launch = Launch::new(exec, &session.shared.dialect)?;
    for _ in 0..channel::TRIES {
        if let Some(process) = start_on_channel(session, exec, launch.clone()).await? {
            return Ok(process);
        }
    }
    Err(ExecError::NotStarted { target: session.shared.target().to_owned(), why: channel::UNTAKEN.to_owned() })
}

/// Starts a command on a new channel; nothing, if the server closed that before it had taken the request.
async fn start_on_channel(session: &Session, exec: &Exec, launch: Launch) -> Result<Option<Process>, ExecError> {
    let Opened { channel, permit, shared } = channel::open(&session.shared, Purpose::Ordinary).await?;
    let shared = &shared;
    let (read, write) = channel.split();
    let write = Arc::new(write);
    let (sender, output) = output::queue(exec.buffer);
    let (progress, mut reported) = mpsc::channel(2);
    let (owner, owned) = oneshot::channel();
    let (closed, open) = watch::channel(());
    let pump = Pump::new(shared, exec, &launch.nonce, sender, progress, exec.dir.as_ref().map(|(dir, _)| dir.clone()));
    tokio::spawn(pump.run(read, Arc::clone(&write), owned, (permit, closed)).in_current_span());

    let limit = shared.timing.start;
    let launching = timeout(limit, launched(shared, exec, launch.clone(), &write, &mut reported));
    let launched = shared.unless_lost(launching).await?.map_err(|_| ExecError::NotStarted {
        target: shared.target().to_owned(),
        why: format!("no sign of life within {limit:?}"),
    })??;
    let Some((pid, start)) = launched else { return Ok(None) };
    let tree = Tree { leader: Some((pid, start)), nonce: launch.nonce };
    let signaller = Signaller { shared: Arc::clone(shared), tree, channel: Arc::downgrade(&write) };
    let stdin = Stdin::new(write, open, exec.pty.is_some());
    let stdin = match exec.stdin {
        true => Some(stdin),
        false => {
            stdin.close().await;
            None
        }
    };
    Ok(Some(Process { output, stdin, signaller, pid, _owner: owner }))
}

/// Sends the request, the script once that is taken, and waits for the report; nothing, if it was not taken.
async fn launched(
    shared: &Arc<Shared>,
    exec: &Exec,
    launch: Launch,
    write: &ChannelWriteHalf<Msg>,
    reported: &mut mpsc::Receiver<Result<Progress, ExecError>>,
) -> Result<Option<(u32, u64)>, ExecError> {
    let sent = async {
        if let Some(Pty { term, columns, rows }) = &exec.pty {
            write.request_pty(false, term, *columns, *rows, 0, 0, &[]).await?;
        }
        write.exec(true, launch.request).await
    };
    if sent.await.is_err() {
        return Err(ExecError::Lost(shared.lost().await));
    }
    while let Some(progress) = reported.recv().await {
        match progress? {
            Progress::Untaken => return Ok(None),
            Progress::Ready => {
                if write.data_bytes(launch.script.clone()).await.is_err() {
                    return Err(ExecError::Lost(shared.lost().await));
                }
            }
            Progress::Run { pid, start } => return Ok(Some((pid, start))),
        }
    }
    Err(ExecError::Lost(shared.lost().await))
}

impl Process {
    /// Returns the process id in the guest.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for what happens next; `None` once it has exited and nothing holds its output open any more.
    ///
    /// A grandchild in the background can hold it open for ever: bound the wait after [`Event::Exited`]. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Event>, Lost> {
        self.output.next().await
    }

    /// Takes the standard input, once, if [`Exec::stdin`] asked for it.
    pub fn take_stdin(&mut self) -> Option<Stdin> {
        self.stdin.take()
    }

    /// Returns a handle for signalling the process from elsewhere.
    pub fn signaller(&self) -> Signaller {
        self.signaller.clone()
    }

    /// Signals the whole process tree; see [`Signaller::signal`].
    pub async fn signal(&self, signal: Signal) -> Result<Signalled, SignalError> {
        self.signaller.signal(signal).await
    }

    /// Collects what the process prints until it ends, up to `limit` bytes.
    pub async fn output(mut self, limit: usize) -> Result<Output, OutputError> {
        drop(self.stdin.take());
        let (mut stdout, mut stderr, mut exit) = (Vec::new(), Vec::new(), None);
        while let Some(event) = self.next().await? {
            match event {
                Event::Stdout(data) => stdout.extend_from_slice(&data),
                Event::Stderr(data) => stderr.extend_from_slice(&data),
                Event::Exited(how) => exit = Some(how),
            }
            if stdout.len() + stderr.len() > limit {
                return Err(OutputError::TooLong { limit });
            }
        }
        match exit {
            Some(exit) => Ok(Output { stdout, stderr, exit }),
            None => Err(OutputError::Lost(self.signaller.shared.lost().await)),
        }
    }
}

impl Signaller {
    /// Sends a signal to the process and everything it started: its session and process group, its descendants, and
    /// daemons that left the session but kept its environment. Those of other users get it through `sudo -n`, if allowed.
    ///
    /// The ssh protocol's own signal request would reach the first process and its group alone. It is made where the server
    /// lets in nothing else, neither another channel nor another connection; what came of it shows in the process's end.
    /// `KILL` is repeated until no new
    /// process shows up; others are sent once, as what a process forks on `TERM` may be its cleaning up. To be sure that
    /// nothing is left, send `KILL` in the end, also after the process itself has exited. Waits for a channel up to [`Timing::channel`](crate::Timing::channel) and for the answer up to
    /// [`Timing::start`](crate::Timing::start).
    pub async fn signal(&self, signal: Signal) -> Result<Signalled, SignalError> {
        signal::deliver(&self.shared, &self.tree, signal, &self.channel).await
    }
}

impl std::fmt::Debug for Signaller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signaller").field("target", &self.shared.target()).field("tree", &self.tree).finish()
    }
}

impl Event {
    /// Returns how many bytes of output it holds.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Stdout(data) | Self::Stderr(data) => data.len(),
            Self::Exited(_) => 0,
        }
    }
}

impl Exit {
    /// Tells whether the command succeeded.
    pub fn is_success(&self) -> bool {
        *self == Self::Code(0)
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal { name, core_dumped: false } => write!(f, "signal {name}"),
            Self::Signal { name, core_dumped: true } => write!(f, "signal {name}, core dumped"),
        }
    }
}
