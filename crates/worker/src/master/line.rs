//! Keeps a line to the master: connects, serves, and connects again when the line is lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use protocol::{Incoming, Reply, Request, SeqNumber, Settings, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout, timeout_at};
use tracing::field::Empty;
use tracing::{Instrument, debug, error_span, info, warn};

use super::access::Access;
use super::backoff::Backoff;
use super::connect::{ConnectError, connect};
use super::contact::Contact;
use super::link::{MasterLink, Outgoing};
use super::wire::{Over, Received, Refused, Wire};
use crate::config::{self, MasterAddress};

/// How many calls may be without an answer. A master that is slow to take output slows the commands down.
const UNANSWERED: usize = 64;

/// How long the last answers and the goodbye may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the daemon is told of the line.
#[derive(Debug)]
pub(crate) enum LineEvent {
    /// There is a line; commands are started with this link, and with these settings unless the master sends others.
    Up { link: MasterLink, settings: Settings },
    /// The master wants something. A dropped `reply` answers with an exception.
    Request { request: Request, reply: oneshot::Sender<Reply> },
    /// The line is gone, and with it all that was asked over it.
    Down,
    /// No line could be made, or the one that was is gone. There will be another attempt.
    NotConnected { why: String },
}

/// The line's task, and all it has to know.
#[derive(Debug)]
pub(crate) struct Line {
    pub master: MasterAddress,
    pub name: String,
    /// How to get at the master from the next time on.
    pub access: watch::Receiver<Access>,
    /// Where it is noted how the line is.
    pub contact: Contact,
    /// How often the master is to be asked for no more builds.
    pub drain: watch::Receiver<u32>,
}

impl Line {
    /// Keeps the line until the daemon drops `events` or the task.
    pub(crate) async fn keep(mut self, events: mpsc::Sender<LineEvent>) {
        let mut backoff = None;
        while !events.is_closed() {
            if self.access.has_changed().unwrap_or(false) {
                // What made the attempts before fail may be put right.
                backoff = None;
            }
            let Access { password, ca_file, connection } = self.access.borrow_and_update().clone();
            let backoff = backoff.get_or_insert_with(|| Backoff::new(connection.retry_min, connection.retry_max));
            self.contact.connecting();
            let attempt = connect(&self.master, ca_file.as_deref(), &self.name, &password, connection.connect_timeout);
            let span = error_span!("line", protocol = %self.master.scheme, peer = Empty);
            let why = match attempt.instrument(span.clone()).await {
                Ok(wire) => {
                    let served = self.serve(wire, &connection, &events).instrument(span).await;
                    if served.attached {
                        backoff.reset();
                    }
                    served.why
                }
                Err(error) => error.to_string(),
            };
            if events.is_closed() {
                return;
            }
            let wait = backoff.next_wait();
            self.contact.waiting(&why, wait);
            warn!(master = %self.master, retry_in_s = wait.as_secs_f32(), "not connected: {why}");
            let _ = events.send(LineEvent::NotConnected { why }).await;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // At once: somebody has put right what was wrong, such as the password.
                () = another(&mut self.access) => {}
                () = events.closed() => {}
            }
        }
    }

    /// Serves one connection to its end.
    async fn serve(&self, wire: Wire, connection: &config::Connection, events: &mpsc::Sender<LineEvent>) -> Served {
        let (link, calls) = MasterLink::new();
        let mut conversation = Conversation::new(self, wire, connection, events, calls);
        let settings = conversation.wire.settings();
        let Over(why) = match events.send(LineEvent::Up { link, settings }).await {
            Ok(()) => conversation.hold().await,
            Err(_) => Over("the daemon ends".to_owned()),
        };
        let attached = conversation.attached;
        let (refused, heard) = (conversation.refused, conversation.heard);
        // Calls of commands fail from here on, because nobody takes them any more; the daemon ends the commands.
        drop(conversation);
        let _ = events.send(LineEvent::Down).await;
        if attached || refused {
            return Served { attached, why };
        }
        let (authority, name) = (self.master.authority(), &self.name);
        let why = if heard {
            format!(
                "{why} during the login; is another worker named '{name}' connected? The master's twistd.log says more"
            )
        } else {
            format!("{why}; does {authority} speak the protocol of worker.master, {}?", self.master.scheme)
        };
        Served { attached, why }
    }
}

/// How a connection ended.
struct Served {
    /// Whether the master took us for its worker.
    attached: bool,
    why: String,
}

/// One connection in use.
struct Conversation<'a> {
    line: &'a Line,
    wire: Wire,
    connection: &'a config::Connection,
    events: &'a mpsc::Sender<LineEvent>,
    calls: mpsc::Receiver<Outgoing>,
    /// Room for calls without an answer.
    room: Arc<Semaphore>,
    next_seq: u64,
    answers: HashMap<SeqNumber, Waiting>,
    /// The answers to the master that are being made.
    replies: FuturesUnordered<BoxFuture<'static, (SeqNumber, Reply)>>,
    attached: bool,
    /// Whether the master has let us in.
    logged_in: bool,
    drain: watch::Receiver<u32>,
    /// How often the master has been asked for no more builds, or would have been.
    drained: u32,
    /// Whether the master said that it does not let us in.
    refused: bool,
    /// Whether the master said anything that makes sense.
    heard: bool,
}

/// A call that waits for the master's answer.
struct Waiting {
    answer: Option<oneshot::Sender<Result<Value, String>>>,
    _room: OwnedSemaphorePermit,
}

/// What there is to do next.
enum Turn {
    Take(Received),
    Reply(SeqNumber, Reply),
    Call(OwnedSemaphorePermit, Outgoing),
    AskForLife,
    Drain,
    Goodbye,
}

impl<'a> Conversation<'a> {
    fn new(
        line: &'a Line,
        wire: Wire,
        connection: &'a config::Connection,
        events: &'a mpsc::Sender<LineEvent>,
        calls: mpsc::Receiver<Outgoing>,
    ) -> Self {
        // Over WebSocket the login is part of the handshake.
        let logged_in = matches!(wire, Wire::WebSocket(_));
        Conversation {
            line,
            logged_in,
            wire,
            connection,
            events,
            calls,
            room: Arc::new(Semaphore::new(UNANSWERED)),
            next_seq: 0,
            answers: HashMap::new(),
            replies: FuturesUnordered::new(),
            attached: false,
            drain: line.drain.clone(),
            drained: 0,
            refused: false,
            heard: logged_in,
        }
    }

    /// Goes on until it is over, and says why it is.
    async fn hold(&mut self) -> Over {
        let dead_after = self.connection.dead_after;
        let mut life = interval_at(Instant::now() + dead_after / 3, dead_after / 3);
        life.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            // Over PB the master speaks first, and at once; over the others it has spoken already.
            let patience = if self.heard { dead_after } else { self.connection.connect_timeout };
            let turn = match self.turn(&mut life, heard + patience).await {
                Ok(turn) => turn,
                Err(over) => return over,
            };
            if let Turn::Take(_) = turn {
                heard = Instant::now();
                self.heard = true;
            }
            // A master that takes nothing for this long is as good as dead, too.
            match timeout(dead_after, self.act(turn)).await {
                Ok(Ok(())) => {}
                Ok(Err(over)) => return over,
                Err(_) => return Over(format!("the master took nothing for {} s", dead_after.as_secs())),
            }
        }
    }

    async fn turn(&mut self, life: &mut Interval, dead_at: Instant) -> Result<Turn, Over> {
        tokio::select! {
            biased;
            _ = life.tick() => Ok(Turn::AskForLife),
            Some((seq, reply)) = self.replies.next(), if !self.replies.is_empty() => Ok(Turn::Reply(seq, reply)),
            // After the answers that were given before it was wanted.
            () = wanted(&mut self.drain, self.drained), if self.logged_in => Ok(Turn::Drain),
            received = timeout_at(dead_at, self.wire.receive()) => match received {
                Ok(received) => received.map(Turn::Take),
                Err(_) if self.heard => {
                    let silence = self.connection.dead_after.as_secs();
                    Err(Over(format!("the master was silent for {silence} s")))
                }
                Err(_) => {
                    let silence = self.connection.connect_timeout.as_secs();
                    Err(Over(format!("nothing was said for {silence} s after the connection was made")))
                }
            },
            call = next_call(&self.room, &mut self.calls) => Ok(match call {
                Some((room, outgoing)) => Turn::Call(room, outgoing),
                // Every link is gone, so the daemon is about to be.
                None => Turn::Goodbye,
            }),
        }
    }

    async fn act(&mut self, turn: Turn) -> Result<(), Over> {
        match turn {
            Turn::Take(received) => self.take(received).await,
            Turn::Reply(seq, reply) => self.wire.reply(seq, &reply).await,
            Turn::AskForLife => self.wire.ask_for_life().await,
            Turn::Drain => self.drain().await,
            Turn::Call(room, Outgoing { call, answer }) => {
                let seq = SeqNumber(self.next_seq);
                self.next_seq += 1;
                self.answers.insert(seq, Waiting { answer, _room: room });
                self.wire.call(seq, &call).await
            }
            Turn::Goodbye => {
                let _ = timeout(LAST_WORDS, self.last_words()).await;
                Err(Over("the daemon ends".to_owned()))
            }
        }
    }

    /// Asks the master, which can be asked over PB alone.
    async fn drain(&mut self) -> Result<(), Over> {
        self.drained = *self.drain.borrow_and_update();
        if self.wire.ask_shutdown().await? {
            info!("asked the master for no more builds, and to be shut down after the last one");
        }
        Ok(())
    }

    async fn take(&mut self, received: Received) -> Result<(), Over> {
        match received {
            Received::Incoming(Incoming::Response { seq, result }) => {
                self.answered(seq, result);
                Ok(())
            }
            Received::Incoming(Incoming::Request { seq, request }) => {
                self.note(&request);
                let (reply, made) = oneshot::channel();
                let event = LineEvent::Request { request, reply };
                self.events.send(event).await.map_err(|_| Over("the daemon ends".to_owned()))?;
                self.replies.push(Box::pin(async move {
                    (seq, made.await.unwrap_or_else(|_| Err("the worker is stopping".to_owned())))
                }));
                Ok(())
            }
            Received::Senseless { seq, message } => {
                warn!(%seq, "refused a request of the master: {message}");
                self.wire.reply(seq, &Err(message)).await
            }
            Received::Refused(refused) => {
                self.refused = true;
                Err(Over(self.refusal(refused)))
            }
            Received::LoggedIn => {
                self.logged_in = true;
                Ok(())
            }
            Received::SignOfLife => Ok(()),
        }
    }

    fn answered(&mut self, seq: SeqNumber, result: Result<Value, String>) {
        match self.answers.remove(&seq) {
            Some(Waiting { answer: Some(answer), .. }) => drop(answer.send(result)),
            Some(Waiting { answer: None, .. }) => {
                if let Err(text) = result {
                    warn!(%seq, "the master refused what a command said: {text}");
                }
            }
            None => debug!(%seq, "the master answered what nobody asked"),
        }
    }

    fn note(&mut self, request: &Request) {
        match request {
            // A master may ask again at any time, to see how many machines are free.
            Request::WorkerInfo if self.attached => debug!("worker info"),
            Request::WorkerInfo => {
                self.attached = true;
                self.line.contact.connected();
                info!(master = %self.line.master, worker = self.line.name, "connected");
            }
            Request::Print { message } if message.contains("duplicate connection") => {
                warn!("another worker logs in with this one's name, '{}'; the master lets it wait", self.line.name);
            }
            Request::Print { message } => debug!(bytes = message.len(), "print"),
            Request::StartCommand(start) => {
                debug!(command_id = %start.command_id, command = start.name, builder = start.builder, "start command");
            }
            Request::StartBuild { builder } => debug!(builder, "start build"),
            Request::BuilderList(builders) => debug!(builders = builders.len(), "builder list"),
            Request::Interrupt { command_id, .. } => debug!(%command_id, "interrupt command"),
            Request::Keepalive | Request::Settings(_) | Request::Shutdown => debug!(?request, "request"),
        }
    }

    fn refusal(&self, refused: Refused) -> String {
        let name = &self.line.name;
        match refused {
            Refused::Login => {
                ConnectError::Login { authority: self.line.master.authority(), name: name.clone() }.to_string()
            }
            Refused::Duplicate => {
                format!("the master has a worker named '{name}' already; stop that one, or give this one another name")
            }
            Refused::Other(text) => format!("the master refused the login of worker '{name}': {text}"),
        }
    }

    /// Sends the answers that are ready, and says goodbye. One that is held until the end is never given.
    async fn last_words(&mut self) -> Result<(), Over> {
        while let Some(Some((seq, reply))) = self.replies.next().now_or_never() {
            self.wire.reply(seq, &reply).await?;
        }
        self.wire.close().await
    }
}

/// Waits until the master is to be got at in another way. Cancel-safe.
async fn another(access: &mut watch::Receiver<Access>) {
    if access.changed().await.is_err() {
        // The daemon is gone.
        std::future::pending().await
    }
    // For the next attempt to see.
    access.mark_changed();
}

/// Waits until draining is wanted more often than this. Cancel-safe.
async fn wanted(drain: &mut watch::Receiver<u32>, drained: u32) {
    let ended = drain.wait_for(|drain| *drain > drained).await.is_err();
    if ended {
        // The daemon is gone, and this conversation soon is.
        std::future::pending().await
    }
}

/// The next call, once there is room for its answer. Cancel-safe: a call is only taken when it is returned.
async fn next_call(
    room: &Arc<Semaphore>,
    calls: &mut mpsc::Receiver<Outgoing>,
) -> Option<(OwnedSemaphorePermit, Outgoing)> {
    let permit = Arc::clone(room).acquire_owned().await.ok()?;
    Some((permit, calls.recv().await?))
}
