use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::Instrument;

use super::lines::Lines;
use super::message::{Event, Message, ShutdownCause};

/// A QMP connection. Cheap to clone; it closes when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Qmp {
    requests: mpsc::Sender<Request>,
    events: broadcast::Sender<Event>,
    shutdown: watch::Receiver<Option<ShutdownCause>>,
}

/// Why a QMP command has no result.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum QmpError {
    /// QEMU refused the command or could not carry it out.
    #[error("qemu refused {command}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// The class of the error, nearly always `GenericError`.
        class: String,
        /// What QEMU says about it.
        description: String,
    },
    /// QEMU did not answer in time. It may yet carry the command out.
    #[error("qemu did not answer {command} within {} s", after.as_secs_f32())]
    TimedOut {
        /// The command.
        command: String,
        /// The time it had.
        after: Duration,
    },
    /// The connection is closed: QEMU has exited, or is not behaving.
    #[error("the connection to qemu's monitor is closed")]
    Closed,
    /// The connection could not be made.
    #[error("connect to qemu's monitor: {0}")]
    Connect(#[source] io::Error),
}

/// How long a command may take where its caller does not say.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long QEMU may take to read what it is sent before it is given up.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// The longest line taken from QEMU. Its own schema, the longest there is, is about 200 KiB (10.0).
const MAX_LINE: usize = 4 << 20;

/// Events a subscriber may be behind before it loses the oldest.
const EVENTS: usize = 256;

struct Request {
    command: String,
    arguments: Value,
    /// What goes along with it.
    descriptor: Option<OwnedFd>,
    answer: oneshot::Sender<Result<Value, QmpError>>,
}

impl Qmp {
    /// Shakes hands over a connected socket: waits for QEMU's greeting and enters command mode. The caller sets the
    /// deadline.
    pub async fn over(stream: UnixStream) -> Result<Self, QmpError> {
        let (input, output) = stream.into_split();
        let mut lines = Lines::new(input, MAX_LINE);
        loop {
            let line = lines.next().await.map_err(QmpError::Connect)?.ok_or(QmpError::Closed)?;
            if Message::parse(&line) == Some(Message::Greeting) {
                break;
            }
        }
        let (requests, queue) = mpsc::channel(16);
        let events = broadcast::Sender::new(EVENTS);
        let (shutdown_in, shutdown) = watch::channel(None);
        let connection = Connection {
            lines,
            output,
            queue,
            events: events.clone(),
            shutdown: shutdown_in,
            waiting: HashMap::new(),
            last_id: 0,
        };
        tokio::spawn(connection.serve().in_current_span());
        let qmp = Qmp { requests, events, shutdown };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Executes a command and returns what QEMU returns. Waits up to 10 seconds.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_within(command, arguments, PATIENCE).await
    }

    /// Executes a command and returns what QEMU returns, or an error when the deadline is over.
    pub async fn execute_within(&self, command: &str, arguments: Value, deadline: Duration) -> Result<Value, QmpError> {
        self.exchange(command, arguments, None, deadline).await
    }

    /// Gives QEMU a descriptor, which the next command that mentions it by this name takes over. A name does not begin with
    /// a digit; one that is given again means the new descriptor.
    pub async fn pass(&self, name: &str, descriptor: OwnedFd) -> Result<(), QmpError> {
        self.exchange("getfd", json!({ "fdname": name }), Some(descriptor), PATIENCE).await.map(drop)
    }

    async fn exchange(
        &self,
        command: &str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let (answer, answered) = oneshot::channel();
        let request = Request { command: command.to_owned(), arguments, descriptor, answer };
        let exchange = async {
            self.requests.send(request).await.map_err(|_| QmpError::Closed)?;
            answered.await.map_err(|_| QmpError::Closed)?
        };
        let timed_out = QmpError::TimedOut { command: command.to_owned(), after: deadline };
        timeout(deadline, exchange).await.unwrap_or(Err(timed_out))
    }

    /// Presses the machine's reset button. [`Event::Reset`] follows.
    pub async fn system_reset(&self) -> Result<(), QmpError> {
        self.execute("system_reset", json!({})).await.map(drop)
    }

    /// Waits until the machine is reset, by whomever, from when on this was called. One who waits too long without being
    /// polled may miss it.
    pub fn reset(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut events = self.events();
        async move {
            loop {
                match events.recv().await {
                    Ok(Event::Reset(_)) => return,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        }
    }

    /// Presses the machine's power button. The guest may or may not react.
    pub async fn system_powerdown(&self) -> Result<(), QmpError> {
        self.execute("system_powerdown", json!({})).await.map(drop)
    }

    /// Has QEMU exit at once, as if the machine's plug were pulled. QEMU may be gone before it has answered.
    pub async fn quit(&self) -> Result<(), QmpError> {
        match self.execute("quit", json!({})).await {
            Ok(_) | Err(QmpError::Closed) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks for the machine's run state: `running`, `paused`, `internal-error`, …
    pub async fn status(&self) -> Result<String, QmpError> {
        let answer = self.execute("query-status", json!({})).await?;
        Ok(answer["status"].as_str().unwrap_or("unknown").to_owned())
    }

    /// Subscribes to the events from now on. A subscriber more than 256 behind loses the oldest and is told so.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Waits until the connection is closed, and returns why QEMU shut down if it has said so.
    pub async fn closed(&self) -> Option<ShutdownCause> {
        let mut shutdown = self.shutdown.clone();
        // The sender goes with the connection.
        while shutdown.changed().await.is_ok() {}
        shutdown.borrow().clone()
    }
}

/// The task that owns the socket.
struct Connection {
    lines: Lines<OwnedReadHalf>,
    output: OwnedWriteHalf,
    queue: mpsc::Receiver<Request>,
    events: broadcast::Sender<Event>,
    shutdown: watch::Sender<Option<ShutdownCause>>,
    /// Who waits for which id, and for what.
    waiting: HashMap<u64, (String, oneshot::Sender<Result<Value, QmpError>>)>,
    last_id: u64,
}

impl Connection {
    /// Serves until either side closes. Whoever then still waits is told so by the end of its channel.
    async fn serve(mut self) {
        loop {
            let served = tokio::select! {
                line = self.lines.next() => match line {
                    Ok(Some(line)) => {
                        self.take(&line);
                        Ok(())
                    }
                    Ok(None) => return,
                    Err(error) => Err(error),
                },
                request = self.queue.recv() => match request {
                    Some(request) => self.send(request).await,
                    None => return,
                },
            };
            match served {
                Ok(()) => {}
                // How a QEMU that exits ends it. Whoever watches QEMU learns that elsewhere.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
                Err(error) => {
                    tracing::warn!(%error, "the connection to qemu's monitor is broken");
                    return;
                }
            }
        }
    }

    async fn send(&mut self, Request { command, arguments, descriptor, answer }: Request) -> io::Result<()> {
        // Those who gave up waiting need no entry any more.
        self.waiting.retain(|_, (_, answer)| !answer.is_closed());
        self.last_id += 1;
        tracing::debug!(command, id = self.last_id, "qmp command");
        let mut line = json!({ "execute": &command, "arguments": arguments, "id": self.last_id }).to_string();
        line.push('\n');
        self.waiting.insert(self.last_id, (command, answer));
        let write = async {
            let sent = match descriptor {
                Some(descriptor) => send_with(self.output.as_ref(), line.as_bytes(), descriptor).await?,
                None => 0,
            };
            self.output.write_all(&line.as_bytes()[sent..]).await
        };
        timeout(WRITE_PATIENCE, write).await?
    }

    fn take(&mut self, line: &[u8]) {
        match Message::parse(line) {
            Some(Message::Return { id, value }) => self.answer(id, |_| Ok(value)),
            Some(Message::Error { id, class, description }) => {
                self.answer(id, |command| Err(QmpError::Refused { command, class, description }));
            }
            Some(Message::Event(event)) => {
                tracing::debug!(?event, "qmp event");
                if let Event::Shutdown(cause) = &event {
                    self.shutdown.send_replace(Some(cause.clone()));
                }
                // That nobody listens is no error.
                let _ = self.events.send(event);
            }
            Some(Message::Greeting | Message::Unknown) => {}
            None => tracing::warn!(bytes = line.len(), "qemu's monitor sent something that is no message"),
        }
    }

    /// Answers whoever waits for this id; nobody does any more if it took too long.
    fn answer(&mut self, id: Option<u64>, result: impl FnOnce(String) -> Result<Value, QmpError>) {
        if let Some((command, answer)) = id.and_then(|id| self.waiting.remove(&id)) {
            let _ = answer.send(result(command));
        }
    }
}

/// Sends the beginning of a line together with a descriptor (unix(7), `SCM_RIGHTS`), and returns how much of it.
async fn send_with(stream: &UnixStream, line: &[u8], descriptor: OwnedFd) -> io::Result<usize> {
    let send = || {
        let descriptors = [descriptor.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        Ok(sendmsg(stream, &[IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL)?)
    };
    stream.async_io(Interest::WRITABLE, send).await
}
