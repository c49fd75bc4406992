//! How long a machine may run.

use tokio::sync::watch;
use tokio::time::Instant;

use super::Status;

/// Until when a machine may run, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Term {
    pub until: Instant,
    /// How it is after that.
    pub then: Status,
}

/// Waits until a term is over, also if it changes meanwhile; says how the machine is then.
pub(super) async fn over(term: &watch::Sender<Term>) -> Status {
    let mut changes = term.subscribe();
    loop {
        let Term { until, then } = changes.borrow_and_update().clone();
        tokio::select! {
            () = tokio::time::sleep_until(until) => return then,
            // The sender is borrowed, so this succeeds.
            _ = changes.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn expired(reason: &str) -> Status {
        Status::Expired { reason: reason.to_owned() }
    }

    fn term(seconds: u64, reason: &str) -> Term {
        Term { until: Instant::now() + Duration::from_secs(seconds), then: expired(reason) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_term_is_over_in_time() {
        let begun = Instant::now();
        let lent = watch::Sender::new(term(86400, "lent"));
        assert_eq!(over(&lent).await, expired("lent"));
        assert_eq!(begun.elapsed().as_secs(), 86400);
    }

    #[tokio::test(start_paused = true)]
    async fn another_term_takes_the_place_of_the_first() {
        for (seconds, reason) in [(5, "shorter"), (50, "longer")] {
            let begun = Instant::now();
            let lent = watch::Sender::new(term(10, "lent"));
            let mut waiting = Box::pin(over(&lent));
            assert!(futures_util::poll!(&mut waiting).is_pending());
            lent.send_replace(term(seconds, reason));
            assert_eq!(waiting.await, expired(reason));
            assert_eq!(begun.elapsed().as_secs(), seconds);
        }
    }
}
