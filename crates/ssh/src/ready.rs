//! Waiting for a guest that boots.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::{ConnectError, Exec, Exit, OutputError, Session, Target, Timing, connect};

/// The pause after a connection that no server answered. That costs the guest next to nothing.
const PAUSE: Duration = Duration::from_millis(50);

/// The longest pause after a login that failed; the first is [`PAUSE`]. A login takes a guest that boots time to boot in.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// How long to wait for a server's first byte before trying another connection beside the one that waits: one that
/// QEMU's user network accepted before the guest's network was up is answered late or never, while a new one is.
const BESIDE: Duration = Duration::from_secs(1);

/// How many connections may wait side by side; sshd refuses some from 10 on.
const BESIDE_MAX: usize = 8;

/// What the readiness command may print, in bytes.
const MAX_OUTPUT: usize = 64 * 1024;

/// When a guest counts as ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// How long to wait altogether.
    pub timeout: Duration,
    /// The command line that must succeed: an ssh server that answers during boot may be stopped again, or the guest
    /// may need longer than its server. None if a session is enough.
    pub command: Option<String>,
    /// How long it may take before it is asked anew, over another connection.
    pub command_timeout: Duration,
    /// How long the guest may refuse the key before that counts as its last word: during boot it may not have its
    /// users' directories yet, or let nobody in (systemd's `/run/nologin`).
    pub refusal_grace: Duration,
}

impl Readiness {
    /// Asks for `exit 0`, which every shell knows, to succeed within `timeout`, 30 s at a time, and puts up with refusals
    /// for 20 s.
    pub fn within(timeout: Duration) -> Self {
        Self {
            timeout,
            command: Some("exit 0".to_owned()),
            command_timeout: Duration::from_secs(30),
            refusal_grace: Duration::from_secs(20),
        }
    }

    /// A session within `timeout` is enough: for a guest that was ready before it was frozen.
    pub fn session_within(timeout: Duration) -> Self {
        Self { command: None, ..Self::within(timeout) }
    }
}

/// A guest that is ready.
#[derive(Debug)]
pub struct Ready {
    /// The session over which the readiness command succeeded.
    pub session: Session,
    /// How long it took.
    pub waited: Duration,
    /// How many connections were tried.
    pub tries: u32,
}

/// Why a guest did not become ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// It had its time.
    #[error("guest not ready after {waited:?} and {tries} tries; the last one: {last}")]
    TimedOut {
        /// How long we waited.
        waited: Duration,
        /// How many connections were tried.
        tries: u32,
        /// What the last complete try came to.
        last: String,
    },
    /// Trying again cannot help.
    #[error(transparent)]
    Refused(ConnectError),
}

/// Polls a booting guest until it lets us in and the readiness command succeeds.
///
/// Cancel-safe: select against the end of the machine, which nobody here can see.
pub async fn wait_until_ready(target: &Target, timing: &Timing, readiness: &Readiness) -> Result<Ready, NotReady> {
    let mut boot = Boot { start: Instant::now(), tries: 0, refused: None, last: "still under way".to_owned() };
    match timeout(readiness.timeout, boot.poll(target, timing, readiness)).await {
        Ok(Ok(session)) => Ok(Ready { session, waited: boot.start.elapsed(), tries: boot.tries }),
        Ok(Err(error)) => Err(NotReady::Refused(error)),
        Err(_) => Err(NotReady::TimedOut { waited: boot.start.elapsed(), tries: boot.tries, last: boot.last }),
    }
}

struct Boot {
    start: Instant,
    tries: u32,
    /// Since when the key has been refused.
    refused: Option<Instant>,
    last: String,
}

impl Boot {
    async fn poll(&mut self, target: &Target, timing: &Timing, readiness: &Readiness) -> Result<Session, ConnectError> {
        let mut pause = PAUSE;
        loop {
            let stream = match self.reach(target, timing).await {
                Ok(stream) => stream,
                Err(error) => {
                    self.put_up_with(error, readiness)?;
                    sleep(PAUSE).await;
                    continue;
                }
            };
            match Session::log_in(stream, target, timing).await {
                Ok(session) => {
                    let Some(command) = &readiness.command else { return Ok(session) };
                    match timeout(readiness.command_timeout, asked(&session, command)).await {
                        Ok(Ok(())) => return Ok(session),
                        Ok(Err(why)) => self.failed(why),
                        // Over a new connection it may not get stuck.
                        Err(_) => self.failed(format!("readiness command {command:?} did not end")),
                    }
                }
                Err(error) => self.put_up_with(error, readiness)?,
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Connects, more than once if the server is silent; the first that ends counts, however it does.
    async fn reach(&mut self, target: &Target, timing: &Timing) -> Result<TcpStream, ConnectError> {
        // Dropped, it aborts those that still wait.
        let mut waiting = JoinSet::new();
        loop {
            if waiting.len() < BESIDE_MAX {
                self.tries += 1;
                let (target, timing) = (target.clone(), timing.clone());
                waiting.spawn(async move { connect::reach(&target, &timing).await });
            }
            // No task of these panics or is aborted while the set lives.
            if let Ok(Some(Ok(reached))) = timeout(BESIDE, waiting.join_next()).await {
                return reached;
            }
        }
    }

    fn failed(&mut self, why: String) {
        if why != self.last {
            tracing::debug!(tries = self.tries, why, "guest not ready");
            self.last = why;
        }
    }

    /// Takes note of an error, or returns it if trying again can't help.
    fn put_up_with(&mut self, error: ConnectError, readiness: &Readiness) -> Result<(), ConnectError> {
        if self.is_final(&error, readiness) {
            return Err(error);
        }
        self.failed(error.to_string());
        Ok(())
    }

    fn is_final(&mut self, error: &ConnectError, readiness: &Readiness) -> bool {
        match error {
            ConnectError::NotReady { .. } => false,
            ConnectError::KeyRefused { .. } => {
                self.refused.get_or_insert_with(Instant::now).elapsed() >= readiness.refusal_grace
            }
            ConnectError::HostKeyMismatch { .. } | ConnectError::Incompatible { .. } => true,
        }
    }
}

/// Runs the readiness command.
async fn asked(session: &Session, command: &str) -> Result<(), String> {
    let process = session.exec(Exec::shell(command)).await.map_err(|error| error.to_string())?;
    match process.output(MAX_OUTPUT).await {
        Ok(output) if output.exit == Exit::Code(0) => Ok(()),
        Ok(output) => Err(format!("readiness command {command:?} ended with {}", output.exit)),
        Err(OutputError::TooLong { .. }) => Err(format!("readiness command {command:?} prints too much")),
        Err(error) => Err(error.to_string()),
    }
}
