//! What is said between a question and its answer: output, progress, and input.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{Answer, Request, Response};

/// How many lines may wait for a client that is slow to take them.
const LINES: usize = 16;

/// The most bytes of output or input in one line.
pub(crate) const BLOCK: usize = 64 * 1024;

/// Bytes, as base64 in a line.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Bytes(pub Vec<u8>);

impl TryFrom<String> for Bytes {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        STANDARD.decode(text).map(Bytes)
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        STANDARD.encode(bytes.0)
    }
}

impl fmt::Debug for Bytes {
    /// They are data, and none of a log's business.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.0.len())
    }
}

/// What a client says after its question: only once it was asked to, and once each time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Input {
    /// Bytes for the standard input of what was asked for; none at its end.
    Stdin(Bytes),
}

/// The worker's end of the talk about one question. The client has gone when [`Lines::gone`] says so.
#[derive(Debug)]
pub(crate) struct Talk {
    lines: Lines,
    input: mpsc::Receiver<Input>,
}

/// What says something to the client. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Lines(mpsc::Sender<Response>);

impl Lines {
    /// Says something, as soon as the client takes it.
    pub(crate) async fn say(&self, line: Response) -> Result<(), Gone> {
        self.0.send(line).await.map_err(|_| Gone)
    }

    /// Waits until who asked has gone.
    pub(crate) async fn gone(&self) {
        self.0.closed().await;
    }
}

/// The client's end of it, as whoever passes the lines on has it.
#[derive(Debug)]
pub(crate) struct Far {
    pub lines: mpsc::Receiver<Response>,
    /// Has room for one, as one at a time is asked for.
    pub input: mpsc::Sender<Input>,
}

/// Who asked has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody listens any more")]
pub(crate) struct Gone;

impl Talk {
    /// Makes both ends.
    pub(crate) fn new() -> (Talk, Far) {
        let (lines, far_lines) = mpsc::channel(LINES);
        let (far_input, input) = mpsc::channel(1);
        (Talk { lines: Lines(lines), input }, Far { lines: far_lines, input: far_input })
    }

    /// What says something to the client.
    pub(crate) fn lines(&self) -> Lines {
        self.lines.clone()
    }

    /// Asks for input and waits for it; nothing at its end.
    pub(crate) async fn stdin(&mut self) -> Result<Option<Vec<u8>>, Gone> {
        self.lines.say(Response::Wants).await?;
        match self.input.recv().await {
            Some(Input::Stdin(Bytes(bytes))) => Ok(Some(bytes).filter(|bytes| !bytes.is_empty())),
            None => Err(Gone),
        }
    }

    /// Gives the answer, which ends the talk.
    pub(crate) async fn answer(self, answer: anyhow::Result<Answer>) {
        let last = match answer {
            Ok(answer) => Response::Done(answer),
            Err(error) => Response::Refused(format!("{error:#}")),
        };
        // Who asked may have gone.
        let _ = self.lines.say(last).await;
    }
}

impl Response {
    /// Whether it is the last line.
    pub(crate) fn is_last(&self) -> bool {
        matches!(self, Response::Done(_) | Response::Refused(_))
    }
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(crate) struct Question {
    pub request: Request,
    pub talk: Talk,
}

/// How long the answer to a request is waited for.
pub(super) type Patience = std::sync::Arc<dyn Fn(&Request) -> Duration + Send + Sync>;
