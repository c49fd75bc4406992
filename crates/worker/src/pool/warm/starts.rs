//! The starts of machines that are under way, for those who are to wait until there are none.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How many starts are under way.
#[derive(Debug)]
pub(super) struct Starts(watch::Sender<Count>);

#[derive(Debug, Clone, Copy)]
pub(super) struct Count {
    under_way: usize,
    /// Those of them that no machine was ready for.
    unserved: usize,
    /// When the last one ended.
    ended: Option<Instant>,
}

impl Count {
    /// For how long none has been under way; none while one is.
    pub(super) fn quiet(&self) -> Option<Duration> {
        let since = self.ended.map_or(Duration::MAX, |ended| ended.elapsed());
        (self.under_way == 0).then_some(since)
    }

    /// Whether one is under way for which no machine was ready.
    pub(super) fn is_any_unserved(&self) -> bool {
        self.unserved > 0
    }
}

impl Default for Starts {
    fn default() -> Self {
        Starts(watch::Sender::new(Count { under_way: 0, unserved: 0, ended: None }))
    }
}

impl Starts {
    /// Counts one, until it is dropped.
    pub(super) fn begin(&self) -> Start {
        self.0.send_modify(|count| count.under_way += 1);
        Start { starts: self.0.clone(), unserved: false }
    }

    /// What changes with the count.
    pub(super) fn changes(&self) -> watch::Receiver<Count> {
        self.0.subscribe()
    }
}

/// The start of a machine for a build.
#[derive(Debug)]
pub(in crate::pool) struct Start {
    starts: watch::Sender<Count>,
    unserved: bool,
}

impl Start {
    /// Notes that no machine is ready for it.
    pub(in crate::pool) fn note_unserved(&mut self) {
        if !std::mem::replace(&mut self.unserved, true) {
            self.starts.send_modify(|count| count.unserved += 1);
        }
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        self.starts.send_modify(|count| {
            count.under_way -= 1;
            count.unserved -= usize::from(self.unserved);
            count.ended = Some(Instant::now());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_quiet_when_no_machine_is_being_started() {
        let starts = Starts::default();
        let count = starts.changes();
        let check = |quiet, unserved| {
            let count = *count.borrow();
            assert_eq!((count.quiet(), count.is_any_unserved()), (quiet, unserved));
        };
        check(Some(Duration::MAX), false);
        let first = starts.begin();
        let mut second = starts.begin();
        second.note_unserved();
        second.note_unserved();
        check(None, true);
        drop(second);
        check(None, false);
        drop(first);
        tokio::time::advance(Duration::from_secs(3)).await;
        check(Some(Duration::from_secs(3)), false);
    }
}
