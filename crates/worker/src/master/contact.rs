//! How the line to the master is, for people who ask.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How the line is; the line's task notes it, and whoever has a clone of this can read it.
#[derive(Debug, Clone)]
pub(crate) struct Contact(Arc<Mutex<Reading>>);

/// How the line is at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reading {
    pub phase: Phase,
    /// Since when there is a line, or none.
    pub since: Instant,
    /// Why the last attempt or line came to an end, as long as there is no other line.
    pub failure: Option<String>,
}

/// What is done about the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The master is being connected to, or it has not let us in yet.
    Connecting,
    Connected,
    /// Nothing before this moment.
    Waiting {
        until: Instant,
    },
}

impl Contact {
    pub(crate) fn new() -> Self {
        Contact(Arc::new(Mutex::new(Reading { phase: Phase::Connecting, since: Instant::now(), failure: None })))
    }

    /// How it is.
    pub(crate) fn read(&self) -> Reading {
        self.reading().clone()
    }

    /// Notes that the master is being connected to.
    pub(super) fn connecting(&self) {
        self.reading().phase = Phase::Connecting;
    }

    /// Notes that the master has taken us for its worker.
    pub(super) fn connected(&self) {
        *self.reading() = Reading { phase: Phase::Connected, since: Instant::now(), failure: None };
    }

    /// Notes why there is no line, and that for so long nothing is done about it.
    pub(super) fn waiting(&self, why: &str, wait: Duration) {
        let mut reading = self.reading();
        if reading.phase == Phase::Connected {
            reading.since = Instant::now();
        }
        reading.phase = Phase::Waiting { until: Instant::now() + wait };
        reading.failure = Some(why.to_owned());
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn without_a_line_it_counts_from_when_there_was_one() {
        let contact = Contact::new();
        let advance = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        let check = |phase: Phase, since: u64, failure: Option<&str>| {
            let reading = contact.read();
            assert_eq!((reading.phase, reading.since.elapsed().as_secs()), (phase, since));
            assert_eq!(reading.failure.as_deref(), failure);
        };
        let wait = Duration::from_secs(10);
        advance(3).await;
        check(Phase::Connecting, 3, None);
        contact.waiting("refused", wait);
        check(Phase::Waiting { until: Instant::now() + wait }, 3, Some("refused"));
        advance(10).await;
        contact.connecting();
        check(Phase::Connecting, 13, Some("refused"));
        contact.connected();
        advance(5).await;
        check(Phase::Connected, 5, None);
        contact.waiting("cut", wait);
        advance(10).await;
        contact.connecting();
        check(Phase::Connecting, 10, Some("cut"));
    }
}
