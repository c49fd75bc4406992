//! Signals, by name, and the guest script that delivers one to a process tree.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Weak};

use bytes::BytesMut;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelWriteHalf, Sig};
use tokio::time::timeout;

use crate::channel::{self, Opened, Purpose};
use crate::dialect::{Dialect, Start};
use crate::session::Shared;
use crate::{ExecError, SignalError, launch};

/// What the guest may answer, in bytes.
const MAX_ANSWER: usize = 256 * 1024;

macro_rules! signals {
    ($($variant:ident $name:literal,)*) => {
        /// A POSIX signal. Numbers differ between systems, names do not.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Signal {
            $(#[doc = concat!("`SIG", $name, "`.")] $variant,)*
        }

        impl Signal {
            /// Returns the name without `SIG`, as `kill -s` takes it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Returns what the ssh protocol calls it (RFC 4254, 6.9).
            fn request(self) -> Sig {
                match self {
                    Self::Abrt => Sig::ABRT,
                    Self::Hup => Sig::HUP,
                    Self::Int => Sig::INT,
                    Self::Kill => Sig::KILL,
                    Self::Quit => Sig::QUIT,
                    Self::Term => Sig::TERM,
                    Self::Usr1 => Sig::USR1,
                    other => Sig::Custom(other.name().to_owned()),
                }
            }
        }

        impl FromStr for Signal {
            type Err = UnknownSignal;

            fn from_str(name: &str) -> Result<Self, UnknownSignal> {
                match name.strip_prefix("SIG").unwrap_or(name) {
                    $($name => Ok(Self::$variant),)*
                    _ => Err(UnknownSignal { name: name.to_owned() }),
                }
            }
        }
    };
}

signals! {
    Hup "HUP",
    Int "INT",
    Quit "QUIT",
    Abrt "ABRT",
    Kill "KILL",
    Usr1 "USR1",
    Usr2 "USR2",
    Term "TERM",
    Stop "STOP",
    Cont "CONT",
    Winch "WINCH",
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SIG{}", self.name())
    }
}

/// A name that is no signal's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown signal {name:?}: use a name such as TERM, INT or KILL")]
pub struct UnknownSignal {
    name: String,
}

/// What a signal reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signalled {
    /// How many processes got it; 0 when the tree was gone already.
    pub processes: u32,
    /// How it went, if not over the command's own connection.
    pub detour: Option<Detour>,
}

/// Another way for a signal than a channel beside the command's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detour {
    /// Over another connection.
    Connection {
        /// How many sessions the server allows on one.
        most: usize,
    },
    /// By the ssh protocol's own request, to the command's process group alone, and without a word of whether it arrived.
    Request {
        /// Why there was no other way.
        why: String,
    },
}

impl fmt::Display for Detour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection { most } => {
                let sessions = if *most == 1 { "session" } else { "sessions" };
                write!(
                    f,
                    "over another connection, as the guest's ssh server allows no more than {most} {sessions} on one \
                     (sshd_config's MaxSessions)"
                )
            }
            Self::Request { why } => {
                write!(f, "by a request of the ssh protocol, which reaches its process group alone, as {why}")
            }
        }
    }
}

/// A command's processes in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    /// The first process and its start time in the guest's clock ticks; unknown before the guest reported it.
    pub leader: Option<(u32, u64)>,
    /// The value of [`launch::MARK`] in their environment.
    pub nonce: String,
}

impl Tree {
    fn start(&self, dialect: &Dialect, signal: Signal, report: &str) -> Start {
        let (leader, start) = match self.leader {
            Some((pid, start)) => (pid.to_string(), start.to_string()),
            None => ("none".to_owned(), String::new()),
        };
        let mark = format!("{}={}", launch::MARK, self.nonce);
        dialect.run_signal(&[
            ("leader", &leader),
            ("start", &start),
            ("mark", &mark),
            ("signal", signal.name()),
            ("report", report),
        ])
    }
}

/// Signals a command's whole process tree, or its process group by a request on its own channel where the guest lets nothing
/// else in.
pub(crate) async fn deliver(
    shared: &Arc<Shared>,
    tree: &Tree,
    signal: Signal,
    own: &Weak<ChannelWriteHalf<Msg>>,
) -> Result<Signalled, SignalError> {
    if !shared.dialect.knows(signal) {
        return Err(SignalError::Unknown { signal: signal.name() });
    }
    // What is behind output that nobody reads has to get through on the way back.
    let _urgent = shared.urgent();
    let why = match by_script(shared, tree, signal).await {
        Err(SignalError::Exec(error @ (ExecError::Refused { .. } | ExecError::Busy { .. }))) => error,
        done => return done,
    };
    let Some(own) = own.upgrade() else { return Err(why.into()) };
    let asked = shared.unless_lost(timeout(shared.timing.start, own.signal(signal.request()))).await;
    match asked.map_err(ExecError::from)? {
        Ok(Ok(())) => {
            let detour = Some(Detour::Request { why: why.to_string() });
            Ok(Signalled { processes: 1, detour })
        }
        _ => Err(why.into()),
    }
}

/// Signals a command's whole process tree, over a channel of its own.
async fn by_script(shared: &Arc<Shared>, tree: &Tree, signal: Signal) -> Result<Signalled, SignalError> {
    for _ in 0..channel::TRIES {
        if let Some(signalled) = on_channel(shared, tree, signal).await? {
            return Ok(signalled);
        }
    }
    Err(not_started(shared, channel::UNTAKEN.to_owned()))
}

/// Signals over a new channel; nothing, if the server closed that before it had taken the request.
async fn on_channel(shared: &Arc<Shared>, tree: &Tree, signal: Signal) -> Result<Option<Signalled>, SignalError> {
    let Opened { channel, permit: _permit, shared: used } = channel::open(shared, Purpose::Control).await?;
    let detour =
        (!Arc::ptr_eq(shared, &used)).then(|| Detour::Connection { most: shared.channels.limit().unwrap_or_default() });
    let shared = &used;
    let report = launch::nonce();
    let limit = shared.timing.start;
    let answering = async {
        let (mut read, write) = channel.split();
        let Start { request, script } = tree.start(&shared.dialect, signal, &report);
        write.exec(true, request).await?;
        let (mut taken, mut answer) = (false, BytesMut::new());
        while let Some(message) = read.wait().await {
            match message {
                ChannelMsg::Success if !taken => {
                    taken = true;
                    write.data_bytes(script.clone()).await?;
                    write.eof().await?;
                }
                ChannelMsg::Failure => taken = true,
                ChannelMsg::Data { data } if answer.len() < MAX_ANSWER => answer.extend_from_slice(&data),
                ChannelMsg::Close => return Ok(Some(taken.then_some(answer))),
                _ => {}
            }
        }
        Ok::<_, russh::Error>(None)
    };
    let answered = shared.unless_lost(timeout(limit, answering)).await.map_err(ExecError::from)?;
    let answered = answered.map_err(|_| not_started(shared, format!("no answer within {limit:?}")))?;
    let Ok(Some(answer)) = answered else {
        return Err(SignalError::Exec(shared.lost().await.into()));
    };
    let Some(answer) = answer else { return Ok(None) };
    let answer = String::from_utf8_lossy(&answer);
    let signalled = parse(&answer, &report, signal)
        .unwrap_or_else(|| Err(not_started(shared, format!("unexpected answer {answer:.200?}"))))?;
    Ok(Some(Signalled { detour, ..signalled }))
}

fn not_started(shared: &Shared, why: String) -> SignalError {
    SignalError::Exec(ExecError::NotStarted { target: shared.target().to_owned(), why })
}

/// Parses `REPORT COUNT [DENIED…]`; login shells may have printed something before it.
fn parse(answer: &str, report: &str, signal: Signal) -> Option<Result<Signalled, SignalError>> {
    let (_, line) = answer.rsplit_once(report)?;
    let mut numbers = line.split_whitespace().map(str::parse::<u32>);
    let processes = numbers.next()?.ok()?;
    let pids: Vec<u32> = numbers.collect::<Result<_, _>>().ok()?;
    Some(match pids.is_empty() {
        true => Ok(Signalled { processes, detour: None }),
        false => Err(SignalError::NotPermitted { signal: signal.name(), pids }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_and_without_their_prefix() {
        assert_eq!("TERM".parse(), Ok(Signal::Term));
        assert_eq!("SIGKILL".parse(), Ok(Signal::Kill));
        assert_eq!("term".parse::<Signal>(), Err(UnknownSignal { name: "term".into() }));
        assert_eq!(Signal::Usr1.to_string(), "SIGUSR1");
    }

    #[test]
    fn answers_are_parsed_and_anything_else_is_refused() {
        let check = |answer: &str, expected| assert_eq!(parse(answer, "x1", Signal::Term), expected, "{answer:?}");
        check("x1 0\n", Some(Ok(Signalled { processes: 0, detour: None })));
        check("motd\nx1 12\n", Some(Ok(Signalled { processes: 12, detour: None })));
        check("x1 1 77 78\n", Some(Err(SignalError::NotPermitted { signal: "TERM", pids: vec![77, 78] })));
        check("", None);
        check("x1\n", None);
        check("x1 many\n", None);
        check("x1 1 -5\n", None);
    }
}
