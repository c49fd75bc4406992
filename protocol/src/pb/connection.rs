//! One connection to a master, from its first byte to its last.

mod calling;
mod serving;

use std::collections::{HashMap, VecDeque};
use std::fmt;

use super::banana::{Decoder, Encoder, Expression, TooLong};
use super::commands::Commands;
use super::exports::{Exported, Exports};
use super::failure::{Class, Failure};
use super::jelly::Jelly;
use super::login::{Credentials, Refusal};
use super::message::{self, Message, Remote};
use crate::message::{Call, CommandId, Incoming, Reply, SeqNumber};
use crate::value::Value;

/// How many requests of the master may be without an answer. It sends one for each builder at once.
const MAX_UNANSWERED: usize = 64 * 1024;

/// What has happened on a connection.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The master asks or answers. It asks while the login is pending, too.
    Incoming(Incoming),
    /// The login is complete: the master has everything it needs of the worker.
    LoggedIn,
    /// The master does not let the worker in. It leaves the connection open; close it.
    LoginRefused {
        /// What kind of refusal it is.
        refusal: Refusal,
        /// What the master says.
        message: String,
    },
    /// The master has taken note of [`Connection::ask_shutdown`], or refuses to.
    ShutdownNoted(Result<(), String>),
    /// Something was wrong and has been dealt with; for the log.
    Warning(String),
    /// The master broke the protocol: close the connection. No event follows.
    Violation(String),
}

/// The worker's side of a PB connection, without the socket: bytes go in by [`Connection::input`], what they mean comes
/// out of [`Connection::next_event`], and what is to be sent gathers until [`Connection::take_output`].
///
/// Objects and their numbers stay in here. Outside, a request is about a builder or a command by its name or id, as
/// over every other protocol.
pub struct Connection {
    decoder: Decoder,
    encoder: Encoder,
    credentials: Credentials,
    /// Whether the login is there to be tried and nothing else.
    trial: bool,
    stage: Stage,
    exports: Exports,
    /// The master's requests that wait for [`Connection::reply`].
    asked: HashMap<SeqNumber, Asked>,
    /// Our requests that wait for the master, by the number on the wire.
    asking: HashMap<u64, Purpose>,
    last_request: u64,
    /// Calls that took several requests, with how many are left and the first error.
    split: HashMap<SeqNumber, Split>,
    commands: Commands,
    keepalive_pending: bool,
    events: VecDeque<Event>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The master has not offered its dialects.
    Greeting,
    /// The login is under way.
    LoggingIn,
    LoggedIn {
        /// What the master is to this worker.
        perspective: u64,
    },
    Refused,
    Broken,
}

/// A request of the master.
struct Asked {
    answer_required: bool,
    about: About,
}

enum About {
    Builders(Vec<String>),
    Start(CommandId),
    Anything,
}

/// What a request of ours is for.
enum Purpose {
    Login,
    Respond,
    Keepalive,
    Shutdown,
    Call(SeqNumber),
    Read(SeqNumber),
    Complete(SeqNumber, CommandId),
}

struct Split {
    missing: usize,
    error: Option<String>,
}

impl fmt::Debug for Connection {
    /// Shows nothing of what was or will be sent: it may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("credentials", &self.credentials)
            .field("stage", &self.stage)
            .field("commands", &self.commands)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// A connection that has just been made, for the worker `name`.
    pub fn new(name: impl Into<Vec<u8>>, password: impl Into<Vec<u8>>) -> Self {
        Connection {
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            credentials: Credentials::new(name.into(), password.into()),
            trial: false,
            stage: Stage::Greeting,
            exports: Exports::default(),
            asked: HashMap::new(),
            asking: HashMap::new(),
            last_request: 0,
            split: HashMap::new(),
            commands: Commands::default(),
            keepalive_pending: false,
            events: VecDeque::new(),
        }
    }

    /// The same to find out whether the master takes this password, without being its worker for a moment. It ends in an
    /// [`Event::LoginRefused`] that says so: see [`Refusal::Nobody`].
    ///
    /// The login comes without the object that the master calls. A master looks at the password first, and only then at
    /// who it is that logs in: there it finds nobody, so that it neither asks another worker of this name whether it is
    /// alive nor starts a build (Buildbot 0.9 to 4.3.0, `pb.Listener`).
    pub fn trial(name: impl Into<Vec<u8>>, password: impl Into<Vec<u8>>) -> Self {
        Connection { trial: true, ..Connection::new(name, password) }
    }

    /// Takes bytes from the master, split anywhere. They are held until [`Connection::next_event`] has read them.
    pub fn input(&mut self, bytes: &[u8]) {
        if self.stage != Stage::Broken {
            self.decoder.push(bytes);
        }
    }

    /// What happened next; nothing if it takes more input. Output may be due in either case.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if self.stage == Stage::Broken {
                return None;
            }
            let taken = match self.decoder.next_expression() {
                Ok(None) => return None,
                Ok(Some(expression)) => self.take(expression),
                Err(violation) => Err(violation.to_string()),
            };
            if let Err(why) = taken {
                self.stage = Stage::Broken;
                self.events.push_back(Event::Violation(why));
            }
        }
    }

    /// The bytes to send, in order, before anything that is written later.
    pub fn take_output(&mut self) -> Vec<u8> {
        self.encoder.take()
    }

    /// Whether there are bytes to send.
    pub fn has_output(&self) -> bool {
        !self.encoder.is_empty()
    }

    /// Answers a request of the master. A number that needs no answer, or had one, is ignored.
    ///
    /// On success a [`Request::BuilderList`](crate::Request::BuilderList) is answered with references to the builders,
    /// whatever the reply says; commands of builders that are not in the list can't call any more.
    pub fn reply(&mut self, seq: SeqNumber, reply: &Reply) {
        let Some(Asked { answer_required, about }) = self.asked.remove(&seq) else { return };
        match (reply, about) {
            (Ok(served), About::Builders(mut names)) => {
                if let Value::List(served) = served {
                    names.retain(|name| {
                        served.iter().any(|served| matches!(served, Value::Str(served) if served == name))
                    });
                }
                self.answer_builders(seq.0, answer_required, names);
            }
            (Ok(value), _) => self.answer(seq.0, answer_required, |encoder| encoder.value(value)),
            (Err(text), About::Start(command_id)) => {
                self.refuse(seq.0, answer_required, &Failure::of_start(text));
                self.forget(&command_id);
            }
            (Err(text), _) => self.refuse(seq.0, answer_required, &Failure::new(Class::Runtime, text.as_str())),
        }
    }

    /// Calls the master. There will be exactly one [`Incoming::Response`] of this number, which the caller chooses;
    /// one that says why if the call can't be made.
    pub fn call(&mut self, seq: SeqNumber, call: &Call) {
        if let Err(why) = self.try_call(seq, call) {
            self.events.push_back(Event::Incoming(Incoming::Response { seq, result: Err(why) }));
        }
    }

    /// Gives the master reason to say something. False if that is of no use: the login is pending, or the last
    /// keepalive has not been answered.
    pub fn keepalive(&mut self) -> bool {
        if self.keepalive_pending || !self.call_perspective("keepalive", Purpose::Keepalive) {
            return false;
        }
        self.keepalive_pending = true;
        true
    }

    /// Asks the master to give this worker no more builds and to shut it down when the last one has ended. What the
    /// master says to it is an [`Event::ShutdownNoted`]. False if the worker is not logged in.
    pub fn ask_shutdown(&mut self) -> bool {
        self.call_perspective("shutdown", Purpose::Shutdown)
    }

    fn call_perspective(&mut self, method: &str, purpose: Purpose) -> bool {
        let Stage::LoggedIn { perspective } = self.stage else { return false };
        self.request(Remote::Object(perspective), method, purpose, |encoder| encoder.tuple(0)).is_ok()
    }

    /// Takes one expression from the master; an error breaks the connection.
    fn take(&mut self, expression: Expression) -> Result<(), String> {
        if self.stage == Stage::Greeting {
            return self.greet(&expression);
        }
        match Message::read(expression)? {
            Message::Version(message::VERSION) => Ok(()),
            Message::Version(version) => Err(format!("the master speaks version {version} of PB")),
            Message::Call(call) => self.called(call),
            Message::Answer { request, value } => {
                let purpose = self.asking.remove(&request).ok_or("an answer to no request")?;
                self.answered(purpose, value)
            }
            Message::Error { request, failure } => {
                let purpose = self.asking.remove(&request).ok_or("an error in answer to no request")?;
                self.failed(purpose, failure)
            }
            Message::Decref(object) => {
                if !message::number(&object).is_some_and(|number| self.exports.decref(number)) {
                    self.warn("the master gave up a reference it did not have".to_owned());
                }
                Ok(())
            }
            Message::DidNotUnderstand => {
                self.warn("the master did not understand a message".to_owned());
                Ok(())
            }
            Message::Unknown(name) => {
                self.warn(format!("a message '{}', which PB does not have", name.escape_ascii()));
                self.write(|encoder| encoder.did_not_understand(&name)).map_err(|error| error.to_string())
            }
        }
    }

    /// Answers the dialects that the master offers, and begins the login.
    fn greet(&mut self, dialects: &Expression) -> Result<(), String> {
        let pb = Expression::Bytes(b"pb".to_vec());
        if !matches!(dialects, Expression::List(offered) if offered.contains(&pb)) {
            return Err("the other side is no PB server: it does not offer the dialect 'pb'".to_owned());
        }
        self.stage = Stage::LoggingIn;
        let name = self.credentials.name.clone();
        self.write(|encoder| {
            encoder.plain_bytes(b"pb")?;
            encoder.version()
        })
        .and_then(|()| {
            self.request(Remote::Root, "login", Purpose::Login, |encoder| {
                encoder.tuple(1)?;
                encoder.bytes(&name)
            })
        })
        .map_err(|error| format!("the worker's name: {error}"))
    }

    /// Answers the master's challenge, and shows it the worker.
    fn respond(&mut self, value: Jelly) -> Result<(), String> {
        let malformed = || "a malformed challenge".to_owned();
        let Jelly::Sequence(_, items) = value else { return Err(malformed()) };
        let [Jelly::Bytes(challenge), Jelly::Remote(challenger)] = items.as_slice() else { return Err(malformed()) };
        let response = self.credentials.respond(challenge);
        let mind = match self.trial {
            true => None,
            false => Some(self.exports.export(Exported::Mind).ok_or("too many objects")?),
        };
        self.request(Remote::Object(*challenger), "respond", Purpose::Respond, |encoder| {
            encoder.tuple(2)?;
            encoder.bytes(&response)?;
            match mind {
                Some(mind) => encoder.object("remote", mind),
                None => encoder.none(),
            }
        })
        .map_err(|error| error.to_string())
    }

    /// A command is over for the master: nothing will be said to its objects any more.
    fn forget(&mut self, command_id: &CommandId) {
        if let Some(command) = self.commands.remove(command_id) {
            self.decref(command.owed);
        }
    }

    fn decref(&mut self, objects: Vec<u64>) {
        for object in objects {
            self.write(|encoder| encoder.decref(object)).expect("two items and a word are never too long");
        }
    }

    fn write(&mut self, write: impl FnOnce(&mut Encoder) -> Result<(), TooLong>) -> Result<(), TooLong> {
        self.encoder.whole(write)
    }

    fn warn(&mut self, what: String) {
        self.events.push_back(Event::Warning(what));
    }
}
