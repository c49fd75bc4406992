//! What a running command holds of the connection: a way to say things to the master.

use protocol::{Call, Value};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

/// How many calls may wait for the connection; a command that is faster than the line waits for it here.
const QUEUE: usize = 32;

/// A call on its way to the connection's task.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// What to say.
    pub call: Call,
    /// Where the master's answer goes, if anybody waits for it.
    pub answer: Option<oneshot::Sender<Result<Value, String>>>,
}

/// Says things to the master over the connection that a command was started on.
///
/// Calls of one command arrive in the order they were made. When the connection ends every call fails with
/// [`LineLost`]: a command never outlives its line.
#[derive(Debug, Clone)]
pub(crate) struct MasterLink {
    calls: mpsc::Sender<Outgoing>,
}

/// The master's answer to a call that was made. Dropped, the answer is not waited for.
#[derive(Debug)]
pub(crate) struct Answer(oneshot::Receiver<Result<Value, String>>);

impl Answer {
    /// Waits for it.
    pub(crate) async fn get(self) -> Result<Value, AskError> {
        self.0.await.map_err(|_| LineLost)?.map_err(AskError::Refused)
    }
}

/// The connection to the master has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the connection to the master was lost")]
pub(crate) struct LineLost;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum AskError {
    /// The connection has ended.
    #[error(transparent)]
    Lost(#[from] LineLost),
    /// The master raised an exception.
    #[error("the master refused: {0}")]
    Refused(String),
}

impl MasterLink {
    /// Makes a link and the queue that a connection serves.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Outgoing>) {
        let (calls, queue) = mpsc::channel(QUEUE);
        (MasterLink { calls }, queue)
    }

    /// Says something and does not wait for the answer, only for room in the queue.
    pub(crate) async fn tell(&self, call: Call) -> Result<(), LineLost> {
        self.calls.send(Outgoing { call, answer: None }).await.map_err(|_| LineLost)
    }

    /// Says something and returns the answer to come, so that more can be said meanwhile.
    pub(crate) async fn ask(&self, call: Call) -> Result<Answer, LineLost> {
        let (answer, answered) = oneshot::channel();
        self.calls.send(Outgoing { call, answer: Some(answer) }).await.map_err(|_| LineLost)?;
        Ok(Answer(answered))
    }

    /// Ends when the connection has.
    pub(crate) async fn lost(&self) {
        self.calls.closed().await;
    }
}
