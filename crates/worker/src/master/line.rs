//! Keeps a line to the master: connects, serves, and connects again when the line is lost.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use protocol::msgpack::{self, DecodeError};
use protocol::{Incoming, Reply, Request, SeqNumber, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tracing::{debug, info, trace, warn};

use super::backoff::Backoff;
use super::connect::{Socket, connect, describe};
use super::link::{MasterLink, Outgoing};
use crate::config::{self, MasterAddress, Password};

/// How many calls may be without an answer. A master that is slow to take output slows the commands down.
const UNANSWERED: usize = 64;

/// How long the last answers and the goodbye may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the daemon is told of the line.
#[derive(Debug)]
pub(crate) enum LineEvent {
    /// There is a line; commands are started with this link.
    Up(MasterLink),
    /// The master wants something. A dropped `reply` answers with an exception.
    Request { request: Request, reply: oneshot::Sender<Reply> },
    /// The line is gone, and with it all that was asked over it.
    Down,
}

/// The line's task, and all it has to know.
#[derive(Debug)]
pub(crate) struct Line {
    pub master: MasterAddress,
    pub name: String,
    pub password: Password,
    pub ca_file: Option<PathBuf>,
    pub connection: config::Connection,
}

impl Line {
    /// Keeps the line until the daemon drops `events` or the task.
    pub(crate) async fn keep(self, events: mpsc::Sender<LineEvent>) {
        let mut backoff = Backoff::new(self.connection.retry_min, self.connection.retry_max);
        while !events.is_closed() {
            let attempt = connect(
                &self.master,
                self.ca_file.as_deref(),
                &self.name,
                &self.password,
                self.connection.connect_timeout,
            );
            let why = match attempt.await {
                Ok(socket) => {
                    let (attached, why) = self.serve(socket, &events).await;
                    if attached {
                        backoff.reset();
                    }
                    why
                }
                Err(error) => error.to_string(),
            };
            if events.is_closed() {
                return;
            }
            let wait = backoff.next_wait();
            warn!(master = %self.master, retry_in_s = wait.as_secs_f32(), "not connected: {why}");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = events.closed() => {}
            }
        }
    }

    /// Serves one connection to its end. Says whether the master took us for its worker, and why it ended.
    async fn serve(&self, socket: Socket, events: &mpsc::Sender<LineEvent>) -> (bool, String) {
        let (link, calls) = MasterLink::new();
        if events.send(LineEvent::Up(link)).await.is_err() {
            return (true, "the daemon ends".to_owned());
        }
        let (sink, stream) = socket.split();
        let answers = Answers::default();
        let (replies, reply_queue) = mpsc::channel(UNANSWERED);
        let mut reader = Reader { line: self, events, answers: &answers, replies, attached: false };
        let ping_every = self.connection.dead_after / 3;
        let why = tokio::select! {
            why = reader.read(stream) => why,
            why = write(sink, calls, reply_queue, &answers, ping_every) => why,
        };
        let attached = reader.attached;
        // The daemon ends the commands; their calls fail from here on, because the queue is gone.
        let _ = events.send(LineEvent::Down).await;
        if attached {
            (true, why)
        } else {
            let remedy = format!(
                "{why} right after the login; is another worker named '{}' connected? The master's twistd.log says more",
                self.name
            );
            (false, remedy)
        }
    }
}

/// The calls that wait for the master's answer.
#[derive(Default)]
struct Answers(Mutex<HashMap<SeqNumber, Waiting>>);

struct Waiting {
    answer: Option<oneshot::Sender<Result<Value, String>>>,
    /// Room for one more call, once this one is answered.
    _room: OwnedSemaphorePermit,
}

impl Answers {
    fn expect(&self, seq: SeqNumber, waiting: Waiting) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(seq, waiting);
    }

    fn take(&self, seq: SeqNumber) -> Option<Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&seq)
    }
}

/// An answer that is being made.
struct PendingReply {
    seq: SeqNumber,
    reply: oneshot::Receiver<Reply>,
}

struct Reader<'a> {
    line: &'a Line,
    events: &'a mpsc::Sender<LineEvent>,
    answers: &'a Answers,
    replies: mpsc::Sender<PendingReply>,
    attached: bool,
}

impl Reader<'_> {
    /// Reads messages until the line ends; says why it did.
    async fn read(&mut self, stream: impl Stream<Item = Result<Message, WsError>>) -> String {
        let mut stream = pin!(stream);
        let dead_after = self.line.connection.dead_after;
        loop {
            let message = match tokio::time::timeout(dead_after, stream.next()).await {
                Err(_) => return format!("the master was silent for {} s", dead_after.as_secs()),
                Ok(None) => return "the master closed the connection".to_owned(),
                Ok(Some(Err(error))) => return format!("the line to the master broke: {}", describe(&error)),
                Ok(Some(Ok(message))) => message,
            };
            match message {
                Message::Binary(bytes) => {
                    if let Err(why) = self.take(&bytes).await {
                        return why;
                    }
                }
                Message::Close(_) => return "the master closed the connection".to_owned(),
                Message::Text(_) => debug!("ignored a text message from the master"),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Takes one message; an error ends the line.
    async fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        trace!(bytes = bytes.len(), "message from the master");
        match msgpack::decode(bytes) {
            Ok(Incoming::Response { seq, result }) => {
                match self.answers.take(seq) {
                    Some(Waiting { answer: Some(answer), .. }) => drop(answer.send(result)),
                    Some(Waiting { answer: None, .. }) => {
                        if let Err(text) = result {
                            warn!(%seq, "the master refused what a command said: {text}");
                        }
                    }
                    None => debug!(%seq, "the master answered what nobody asked"),
                }
                Ok(())
            }
            Ok(Incoming::Request { seq, request }) => {
                self.log(&request);
                let (answer, reply) = oneshot::channel();
                let daemon_ends = |_| "the daemon ends".to_owned();
                self.events.send(LineEvent::Request { request, reply: answer }).await.map_err(daemon_ends)?;
                self.reply(PendingReply { seq, reply }).await
            }
            Err(DecodeError::Ignored(why)) => {
                warn!("ignored a message from the master: {why}");
                Ok(())
            }
            Err(DecodeError::Refused { seq, message }) => {
                warn!(%seq, "refused a request of the master: {message}");
                let (answer, reply) = oneshot::channel();
                let _ = answer.send(Err(message));
                self.reply(PendingReply { seq, reply }).await
            }
            Err(violation @ DecodeError::Violation(_)) => Err(violation.to_string()),
        }
    }

    async fn reply(&self, pending: PendingReply) -> Result<(), String> {
        self.replies.send(pending).await.map_err(|_| "the line to the master broke".to_owned())
    }

    fn log(&mut self, request: &Request) {
        match request {
            Request::WorkerInfo => {
                self.attached = true;
                info!(master = %self.line.master, worker = self.line.name, "connected");
            }
            Request::Print { message } if message.contains("duplicate connection") => {
                warn!("another worker logs in with this one's name, '{}'; the master lets it wait", self.line.name);
            }
            Request::Print { message } => debug!(message, "print"),
            Request::StartCommand(start) => {
                debug!(command_id = %start.command_id, command = start.name, builder = start.builder, "start command");
            }
            Request::Interrupt { command_id, .. } => debug!(%command_id, "interrupt command"),
            Request::Keepalive
            | Request::Settings(_)
            | Request::BuilderList(_)
            | Request::StartBuild { .. }
            | Request::Shutdown => debug!(?request, "request"),
        }
    }
}

/// Writes calls, answers and signs of life until the line ends; says why it did.
async fn write(
    sink: impl Sink<Message, Error = WsError>,
    mut calls: mpsc::Receiver<Outgoing>,
    mut replies: mpsc::Receiver<PendingReply>,
    answers: &Answers,
    ping_every: Duration,
) -> String {
    let mut sink = pin!(sink);
    let mut ping = tokio::time::interval_at(Instant::now() + ping_every, ping_every);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let room = Arc::new(Semaphore::new(UNANSWERED));
    let mut making = FuturesUnordered::new();
    let mut next_seq = 0;
    loop {
        let message = tokio::select! {
            biased;
            _ = ping.tick() => Message::Ping(Default::default()),
            Some((seq, reply)) = making.next(), if !making.is_empty() => {
                Message::Binary(msgpack::encode_reply(seq, &reply).into())
            }
            pending = replies.recv() => match pending {
                Some(PendingReply { seq, reply }) => {
                    making.push(async move {
                        (seq, reply.await.unwrap_or_else(|_| Err("the worker is stopping".to_owned())))
                    });
                    continue;
                }
                None => return "the line to the master broke".to_owned(),
            },
            (room, outgoing) = next_call(&room, &mut calls) => match outgoing {
                Some(Outgoing { call, answer }) => {
                    let seq = SeqNumber(next_seq);
                    next_seq += 1;
                    answers.expect(seq, Waiting { answer, _room: room });
                    Message::Binary(msgpack::encode_call(seq, &call).into())
                }
                None => {
                    last_words(sink, making).await;
                    return "the daemon ends".to_owned();
                }
            },
        };
        if let Err(error) = sink.send(message).await {
            return format!("the line to the master broke: {}", describe(&error));
        }
    }
}

/// Every link is gone, so the daemon ends: sends the answers that are ready, or are in a moment, and says goodbye.
async fn last_words<S, R>(mut sink: Pin<&mut S>, mut making: FuturesUnordered<R>)
where
    S: Sink<Message, Error = WsError>,
    R: Future<Output = (SeqNumber, Reply)>,
{
    let words = async {
        while let Some((seq, reply)) = making.next().await {
            sink.send(Message::Binary(msgpack::encode_reply(seq, &reply).into())).await?;
        }
        sink.close().await
    };
    let _ = tokio::time::timeout(LAST_WORDS, words).await;
}

/// The next call, once there is room for its answer. Cancel-safe: a call is only taken when it is returned.
async fn next_call(
    room: &Arc<Semaphore>,
    calls: &mut mpsc::Receiver<Outgoing>,
) -> (OwnedSemaphorePermit, Option<Outgoing>) {
    let permit = Arc::clone(room).acquire_owned().await.expect("nobody closes this semaphore");
    (permit, calls.recv().await)
}
