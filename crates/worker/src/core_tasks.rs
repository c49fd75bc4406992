//! The tasks that the worker can't do without.
//!
//! Nobody would miss one that is gone: it would only never be done what it does, a slot never be clean again, a template
//! never be made. So whoever starts such a task has it watched. An end that nobody asked for is an event of the main loop,
//! which stops the worker in order; it exits with a failure, and who started it, such as systemd, starts it again.
//!
//! A command is no such task. It has the main loop for an owner, and one that breaks down fails alone.

use std::any::Any;
use std::fmt;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Watches tasks. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct CoreTasks {
    ended: mpsc::Sender<Ended>,
}

/// When a task may end.
#[derive(Debug)]
pub(crate) enum End {
    /// Not before the worker does.
    Never,
    /// Once this is cancelled.
    Cancelled(CancellationToken),
    /// When its work is done.
    Done,
}

/// A task that ended and should not have.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    task: &'static str,
    /// What it said when it broke down; none if it just ended.
    panic: Option<String>,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.panic {
            Some(panic) => write!(f, "{} broke down: {panic}", self.task),
            None => write!(f, "{} ended, which it should not", self.task),
        }
    }
}

impl CoreTasks {
    /// Watches no task yet. What is received is for the main loop.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Ended>) {
        // The first is enough to stop the worker.
        let (ended, first) = mpsc::channel(1);
        (CoreTasks { ended }, first)
    }

    /// Wraps a task's work. To be spawned; dropping it is no end.
    pub(crate) fn watch<W>(&self, task: &'static str, end: End, work: W) -> impl Future<Output = ()> + Send + use<W>
    where
        W: Future<Output = ()> + Send,
    {
        let ended = self.ended.clone();
        async move {
            // What the task left half done is seen by nobody any more: the worker stops.
            let panic = AssertUnwindSafe(work).catch_unwind().await.err();
            let expected = match &end {
                End::Never => false,
                End::Cancelled(token) => token.is_cancelled(),
                End::Done => true,
            };
            if panic.is_some() || !expected {
                let _ = ended.try_send(Ended { task, panic: panic.map(said) });
            }
        }
    }
}

/// What a panic says, which is a text.
fn said(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => {
            panic.downcast::<&str>().map_or_else(|_| "it does not say why".to_owned(), |text| text.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks what becomes of a task's end, or of its panic.
    async fn check(end: End, panics: bool, expected: Option<&str>) {
        let (tasks, mut ended) = CoreTasks::new();
        let work = async move { assert!(!panics, "out of {}", "order") };
        tokio::spawn(tasks.watch("the baker", end, work)).await.expect("the panic is caught");
        drop(tasks);
        assert_eq!(ended.recv().await.map(|ended| ended.to_string()).as_deref(), expected);
    }

    #[tokio::test]
    async fn end_that_nobody_asked_for_is_told() {
        const ENDED: Option<&str> = Some("the baker ended, which it should not");
        const BROKE_DOWN: Option<&str> = Some("the baker broke down: out of order");
        let (asked, not_asked) = (CancellationToken::new(), CancellationToken::new());
        asked.cancel();
        check(End::Never, false, ENDED).await;
        check(End::Never, true, BROKE_DOWN).await;
        check(End::Done, false, None).await;
        check(End::Done, true, BROKE_DOWN).await;
        check(End::Cancelled(not_asked), false, ENDED).await;
        check(End::Cancelled(asked.clone()), false, None).await;
        check(End::Cancelled(asked), true, BROKE_DOWN).await;
    }

    #[tokio::test]
    async fn task_that_is_dropped_has_not_ended() {
        let (tasks, mut ended) = CoreTasks::new();
        let task = tokio::spawn(tasks.watch("the baker", End::Never, std::future::pending()));
        drop(tasks);
        task.abort();
        assert_eq!(ended.recv().await, None);
    }
}
