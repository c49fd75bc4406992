//! The task that takes a command's messages off its channel: it cuts out our own lines and fills the output queue.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::channel::Permit;
use crate::exec::{Command, Exec};
use crate::launch::{Report, Scanner};
use crate::output::Sender;
use crate::process::{Event, Exit};
use crate::session::Shared;
use crate::signal::{self, Signal, Tree};
use crate::{ExecError, Lost, SignalError, said};

/// How long an abandoned command may take to die, its last output included.
const ABANDON_WAIT: Duration = Duration::from_secs(20);

/// How long to wait for the reason after russh dropped a channel.
const REASON_WAIT: Duration = Duration::from_secs(5);

/// How much of a failed start's explanation is kept, in bytes.
const MAX_WHY: usize = 4096;

/// How far the guest has got with starting a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It closed the channel before it had taken the request: nothing runs; see [`channel::TRIES`](crate::channel::TRIES).
    Untaken,
    /// It waits for the script.
    Ready,
    /// The command runs.
    Run { pid: u32, start: u64 },
}

pub(crate) struct Pump {
    shared: Arc<Shared>,
    dir: Vec<u8>,
    program: Vec<u8>,
    queue: Sender,
    progress: mpsc::Sender<Result<Progress, ExecError>>,
    tree: Tree,
    stdout: Stream,
    stderr: Stream,
    exit: Option<Exit>,
    /// What the server answered to the request, if it did.
    taken: Option<bool>,
    failed_step: Option<String>,
    abandoned_by: Signal,
    terminal: bool,
}

/// How to take one of the two streams.
enum Stream {
    /// Everything up to our line is noise; if it is the one that reports, our line is the report.
    Noise { scanner: Scanner, reports: bool },
    /// The script explains why it failed.
    Why(Vec<u8>),
    /// The command's own.
    Command,
}

impl Pump {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        exec: &Exec,
        nonce: &str,
        queue: Sender,
        progress: mpsc::Sender<Result<Progress, ExecError>>,
        dir: Option<Vec<u8>>,
    ) -> Self {
        let terminal = exec.pty.is_some();
        let noise = |reports| Stream::Noise { scanner: Scanner::new(nonce), reports };
        Self {
            shared: Arc::clone(shared),
            dir: dir.unwrap_or_default(),
            program: match &exec.command {
                Command::Argv(argv) => argv.first().cloned().unwrap_or_default(),
                Command::Shell(_) => Vec::new(),
            },
            queue,
            progress,
            tree: Tree { leader: None, nonce: nonce.to_owned() },
            stdout: noise(terminal),
            stderr: noise(!terminal),
            exit: None,
            taken: None,
            failed_step: None,
            abandoned_by: exec.abandoned_by,
            terminal,
        }
    }

    /// Runs until the channel is closed, or the owner is gone and his command killed. `_held` is let go at the end.
    pub(crate) async fn run(
        mut self,
        mut read: ChannelReadHalf,
        write: Arc<ChannelWriteHalf<Msg>>,
        mut owner: oneshot::Receiver<()>,
        _held: (Permit, watch::Sender<()>),
    ) {
        let mut state = self.shared.state.subscribe();
        let closed = loop {
            let message = tokio::select! {
                biased;
                _ = &mut owner => return self.abandon(read, write).await,
                message = async { self.queue.room(&mut state).await; read.wait().await } => message,
            };
            match message {
                Some(ChannelMsg::Close) => break true,
                Some(message) => self.take(message),
                None => break false,
            }
        };
        let end = match (closed, &self.exit) {
            (true, Some(_)) => Ok(()),
            (true, None) => Err(self.lost("the server closed the channel without an exit status")),
            (false, _) => Err(match timeout(REASON_WAIT, self.shared.lost()).await {
                Ok(lost) => lost,
                Err(_) => self.lost("the channel was dropped"),
            }),
        };
        match closed && self.taken.is_none() && self.exit.is_none() {
            true => self.report(Ok(Progress::Untaken)),
            false => self.report_failure(&end),
        }
        self.queue.end(end);
    }

    fn lost(&self, why: &str) -> Lost {
        Lost { target: self.shared.target().to_owned(), why: why.to_owned() }
    }

    fn take(&mut self, message: ChannelMsg) {
        match message {
            ChannelMsg::Data { data } => self.output(data, Event::Stdout),
            ChannelMsg::ExtendedData { data, ext: 1 } => self.output(data, Event::Stderr),
            ChannelMsg::ExitStatus { exit_status } => self.exited(Exit::Code(exit_status)),
            ChannelMsg::ExitSignal { signal_name, core_dumped, .. } => {
                self.exited(Exit::Signal { name: name(signal_name), core_dumped });
            }
            ChannelMsg::Success if self.taken.is_none() => {
                self.taken = Some(true);
                // On a terminal the script has to wait until that is raw.
                if !self.terminal {
                    self.report(Ok(Progress::Ready));
                }
            }
            ChannelMsg::Failure => self.taken = Some(false),
            _ => {}
        }
    }

    fn exited(&mut self, exit: Exit) {
        if self.exit.is_none() {
            self.exit = Some(exit.clone());
            if self.tree.leader.is_some() {
                self.queue.push(Event::Exited(exit));
            }
        }
    }

    fn output(&mut self, data: Bytes, event: fn(Bytes) -> Event) {
        let stream = match event(Bytes::new()) {
            Event::Stdout(_) => &mut self.stdout,
            _ => &mut self.stderr,
        };
        match stream {
            Stream::Command if data.is_empty() => {}
            Stream::Command => self.queue.push(event(data)),
            Stream::Why(text) => text.extend(data.iter().take(MAX_WHY.saturating_sub(text.len()))),
            Stream::Noise { scanner, reports } => {
                let Some(line) = scanner.feed(&data) else { return };
                let report = match reports {
                    true => Report::parse(&line),
                    false => None,
                };
                if report == Some(Report::Ready) {
                    self.report(Ok(Progress::Ready));
                    return;
                }
                let rest = scanner.rest();
                *stream = match &report {
                    Some(Report::Fail { .. }) => Stream::Why(rest.to_vec()),
                    _ => Stream::Command,
                };
                match report {
                    Some(Report::Run { pid, start }) => self.started(pid, start),
                    Some(Report::Fail { step }) => self.failed_step = Some(step),
                    _ => {}
                }
                if !rest.is_empty() && self.failed_step.is_none() {
                    self.queue.push(event(rest));
                }
            }
        }
    }

    fn started(&mut self, pid: u32, start: u64) {
        self.tree.leader = Some((pid, start));
        self.report(Ok(Progress::Run { pid, start }));
        // OpenSSH tells of an exit at once, even if the report is still in the pipe.
        if let Some(exit) = &self.exit {
            self.queue.push(Event::Exited(exit.clone()));
        }
    }

    /// Tells whoever waits for the start why there will be none.
    fn report_failure(&mut self, end: &Result<(), Lost>) {
        if self.tree.leader.is_some() {
            return;
        }
        let why = self.why();
        let dir = String::from_utf8_lossy(&self.dir).into_owned();
        let program = String::from_utf8_lossy(&self.program).into_owned();
        let error = match (self.failed_step.as_deref(), end) {
            (Some("mkdir"), _) => ExecError::MakeDir { dir, why },
            (Some("missing"), _) => ExecError::NoProgram { program },
            (Some("denied"), _) => ExecError::NotExecutable { program },
            (Some(_), _) => ExecError::EnterDir { dir, why },
            (None, Err(lost)) if self.exit.is_none() && self.taken != Some(false) => ExecError::Lost(lost.clone()),
            (None, _) => ExecError::NotStarted { target: self.shared.target().to_owned(), why },
        };
        self.report(Err(error));
    }

    fn report(&self, progress: Result<Progress, ExecError>) {
        // Fails only if nobody waits for the start any more; then the owner is gone too.
        let _ = self.progress.try_send(progress);
    }

    /// Puts together what the guest said instead of starting the command.
    fn why(&mut self) -> String {
        let mut text = Vec::new();
        for stream in [&mut self.stderr, &mut self.stdout] {
            match mem::replace(stream, Stream::Command) {
                Stream::Noise { mut scanner, .. } => text.extend_from_slice(&scanner.rest()),
                Stream::Why(why) => text.extend(why),
                Stream::Command => {}
            }
        }
        text.truncate(MAX_WHY);
        let text = said::text(&String::from_utf8_lossy(&text));
        match (&self.exit, text.is_empty()) {
            (_, false) => text,
            (Some(exit), true) => format!("the login shell ended with {exit} and said nothing"),
            (None, true) => "the server refused to run commands".to_owned(),
        }
    }

    /// Ends what the owner left running, throwing its output away meanwhile, and closes the channel.
    async fn abandon(mut self, mut read: ChannelReadHalf, write: Arc<ChannelWriteHalf<Msg>>) {
        if self.tree.leader.is_none() && self.ends_unstarted(&mut read, &write).await {
            return;
        }
        for signal in [self.abandoned_by, Signal::Kill] {
            if self.exit.is_some() {
                break;
            }
            let own = Arc::downgrade(&write);
            let kill = signal::deliver(&self.shared, &self.tree, signal, &own);
            let drain = async { while !matches!(read.wait().await, Some(ChannelMsg::Close) | None) {} };
            if let Ok((killed, ())) = timeout(ABANDON_WAIT, async { tokio::join!(kill, drain) }).await {
                // The channel is closed, so that the command has ended, whatever became of the signal; but for what the guest says is
                // somebody else's.
                if let Err(error @ SignalError::NotPermitted { .. }) = killed {
                    tracing::warn!(%error, "processes of an abandoned command still run in the guest");
                }
                return;
            }
        }
        // Something outlived its command, or cannot be killed.
        if !self.shared.is_lost() && self.exit.is_none() {
            tracing::warn!(
                "an abandoned command may still run in the guest: it was killed, and its channel does not close"
            );
        }
        drop(read);
        let _ = timeout(ABANDON_WAIT, write.close()).await;
    }

    /// Sees to it that a command which has not begun does not, or says who it is: true if it has ended.
    async fn ends_unstarted(&mut self, read: &mut ChannelReadHalf, write: &ChannelWriteHalf<Msg>) -> bool {
        // It may wait for a script that will not come, and cannot be found then: it does not bear its mark yet.
        if self.terminal {
            // One knows no end of input, but ends what runs on it when it goes.
            let _ = timeout(ABANDON_WAIT, write.close()).await;
            return true;
        }
        let _ = timeout(ABANDON_WAIT, write.eof()).await;
        let known = async {
            while self.tree.leader.is_none() {
                match read.wait().await {
                    Some(ChannelMsg::Close) | None => return true,
                    Some(message) => self.take(message),
                }
            }
            false
        };
        timeout(ABANDON_WAIT, known).await.unwrap_or(false)
    }
}

fn name(signal: Sig) -> String {
    match signal {
        Sig::Custom(name) => said::line(&name),
        Sig::ABRT => "ABRT".to_owned(),
        Sig::ALRM => "ALRM".to_owned(),
        Sig::FPE => "FPE".to_owned(),
        Sig::HUP => "HUP".to_owned(),
        Sig::ILL => "ILL".to_owned(),
        Sig::INT => "INT".to_owned(),
        Sig::KILL => "KILL".to_owned(),
        Sig::PIPE => "PIPE".to_owned(),
        Sig::QUIT => "QUIT".to_owned(),
        Sig::SEGV => "SEGV".to_owned(),
        Sig::TERM => "TERM".to_owned(),
        Sig::USR1 => "USR1".to_owned(),
    }
}
