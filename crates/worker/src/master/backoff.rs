//! How long to wait before another attempt.

use std::time::Duration;

use rand::Rng;

/// How much longer each wait is than the one before.
const GROWTH: f64 = 1.5;

/// Waits that grow from `min` to `max`, each lengthened by up to half of itself at random, so that many workers of one
/// master do not return in step.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    attempts: u32,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Backoff { min, max: max.max(min), attempts: 0 }
    }

    /// The next wait.
    pub(crate) fn next_wait(&mut self) -> Duration {
        let wait = self.base();
        self.attempts = self.attempts.saturating_add(1);
        wait.mul_f64(rand::rng().random_range(1.0..1.5))
    }

    /// Starts over, after an attempt that succeeded.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }

    fn base(&self) -> Duration {
        let grown = self.min.as_secs_f64() * GROWTH.powi(self.attempts.min(100) as i32);
        Duration::from_secs_f64(grown.min(self.max.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(3));
        for base in [1.0, 1.5, 2.25, 3.0, 3.0] {
            let wait = backoff.next_wait().as_secs_f64();
            assert!((base..base * 1.5).contains(&wait), "{wait} after a base of {base}");
        }
        backoff.reset();
        assert!(backoff.next_wait().as_secs_f64() < 1.5);
    }

    #[test]
    fn any_number_of_attempts_is_fine() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(60));
        backoff.attempts = u32::MAX;
        assert!(backoff.next_wait() <= Duration::from_secs(90));
    }
}
