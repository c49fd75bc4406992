//! A bounded queue of what a process prints, between the task that takes it off the connection and its reader.
//!
//! russh hands a channel's data over in its connection task and opens the window again at once, so a full queue makes
//! that task, and with it every channel, wait. Therefore the queue is bounded in bytes with room for a good burst, and
//! while something urgent (a signal) must get through it takes more than its bound.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::Lost;
use crate::process::Event;
use crate::session::State;

/// How many bytes beyond its bound a queue takes while something urgent is under way.
const URGENT_ROOM: usize = 64 << 20;

/// What small events cost beside their bytes, so that a million empty lines are bounded too.
const EVENT_COST: usize = 64;

#[derive(Default)]
struct Inner {
    events: VecDeque<Event>,
    size: usize,
    end: Option<Result<(), Lost>>,
}

struct Shared {
    inner: Mutex<Inner>,
    filled: Notify,
    drained: Notify,
    bound: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns both ends of a queue of about `bound` bytes.
pub(crate) fn queue(bound: usize) -> (Sender, Receiver) {
    let shared = Arc::new(Shared {
        inner: Mutex::default(),
        filled: Notify::new(),
        drained: Notify::new(),
        bound: bound.max(1),
    });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

/// The pump's end.
pub(crate) struct Sender(Arc<Shared>);

impl Sender {
    /// Appends an event. Never waits: see [`Sender::room`].
    pub(crate) fn push(&self, event: Event) {
        let mut inner = self.0.lock();
        inner.size += event.size() + EVENT_COST;
        inner.events.push_back(event);
        drop(inner);
        self.0.filled.notify_one();
    }

    /// Waits until there is room for more. Cancel-safe.
    pub(crate) async fn room(&self, state: &mut watch::Receiver<State>) {
        loop {
            let drained = self.0.drained.notified();
            let size = self.0.lock().size;
            let (urgent, ended) = {
                let state = state.borrow_and_update();
                (state.urgent > 0, state.ended.is_some())
            };
            // Of an ended connection only what has arrived already is left.
            if ended || size < self.0.bound || (urgent && size < self.0.bound + URGENT_ROOM) {
                return;
            }
            tokio::select! {
                () = drained => {}
                changed = state.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Says that nothing more will come, and whether all has come.
    pub(crate) fn end(&self, how: Result<(), Lost>) {
        self.0.lock().end.get_or_insert(how);
        self.0.filled.notify_one();
    }
}

/// The reader's end.
pub(crate) struct Receiver(Arc<Shared>);

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("size", &self.0.lock().size).finish_non_exhaustive()
    }
}

impl Receiver {
    /// Takes the next event; `None` when all have been taken and the pump has ended. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Lost> {
        loop {
            let filled = self.0.filled.notified();
            {
                let mut inner = self.0.lock();
                if let Some(event) = inner.events.pop_front() {
                    inner.size -= event.size() + EVENT_COST;
                    drop(inner);
                    self.0.drained.notify_one();
                    return Ok(Some(event));
                }
                if let Some(end) = &inner.end {
                    return end.clone().map(|()| None);
                }
            }
            filled.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use bytes::Bytes;

    use super::*;

    fn poll<F: Future>(future: F) -> Poll<F::Output> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    fn text(text: &'static str) -> Event {
        Event::Stdout(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn events_come_out_in_order_and_then_the_end() {
        let (sender, mut receiver) = queue(100);
        assert_eq!(poll(receiver.next()), Poll::Pending);
        sender.push(text("a"));
        sender.push(text("b"));
        sender.end(Ok(()));
        assert_eq!(poll(receiver.next()), Poll::Ready(Ok(Some(text("a")))));
        assert_eq!(poll(receiver.next()), Poll::Ready(Ok(Some(text("b")))));
        assert_eq!(poll(receiver.next()), Poll::Ready(Ok(None)));
        assert_eq!(poll(receiver.next()), Poll::Ready(Ok(None)));
    }

    #[test]
    fn a_full_queue_has_room_again_when_read_or_when_something_is_urgent() {
        let (sender, mut receiver) = queue(100);
        let states = watch::Sender::new(State::default());
        let mut state = states.subscribe();
        sender.push(text("a"));
        assert_eq!(poll(sender.room(&mut state)), Poll::Ready(()));
        sender.push(text("b"));
        assert_eq!(poll(sender.room(&mut state)), Poll::Pending);
        states.send_modify(|state| state.urgent += 1);
        assert_eq!(poll(sender.room(&mut state)), Poll::Ready(()));
        states.send_modify(|state| state.urgent -= 1);
        assert_eq!(poll(sender.room(&mut state)), Poll::Pending);
        assert_eq!(poll(receiver.next()), Poll::Ready(Ok(Some(text("a")))));
        assert_eq!(poll(sender.room(&mut state)), Poll::Ready(()));
    }

    #[test]
    fn urgency_is_bounded_too() {
        let (sender, _receiver) = queue(100);
        let states = watch::Sender::new(State { ended: None, urgent: 1 });
        let mut state = states.subscribe();
        sender.push(Event::Stderr(Bytes::from(vec![0; 100 + URGENT_ROOM])));
        assert_eq!(poll(sender.room(&mut state)), Poll::Pending);
    }
}
