use std::collections::VecDeque;

use tokio::time::{Duration, Instant};

/// How long a signal that is meant to kill has to do so (Buildbot 4.3.0, `BACKUP_TIMEOUT`).
const PATIENCE: Duration = Duration::from_secs(5);

/// How a program is killed: one signal after the other, until it is gone or nothing is left to try.
///
/// With a `sigtermTime` that is SIGTERM, and after that time the step's `interruptSignal`. Where Buildbot's worker would
/// then give up on a program that ignores a milder signal than SIGKILL, that follows as well.
#[derive(Debug)]
pub(super) struct Ladder {
    above: VecDeque<(String, Duration)>,
    signal: String,
    patience: Duration,
    deadline: Instant,
}

impl Ladder {
    /// Plans the ladder and steps onto the first rung, whose [`Ladder::signal`] is to be sent now.
    pub(super) fn begin(sigterm_time: Option<Duration>, interrupt_signal: &str) -> Self {
        let mut rungs: VecDeque<_> = sigterm_time.map(|time| ("TERM".to_owned(), time)).into_iter().collect();
        rungs.push_back((interrupt_signal.to_owned(), PATIENCE));
        if interrupt_signal != "KILL" {
            rungs.push_back(("KILL".to_owned(), PATIENCE));
        }
        let (signal, patience) = rungs.pop_front().unwrap_or_else(|| ("KILL".to_owned(), PATIENCE));
        Ladder { above: rungs, signal, patience, deadline: Instant::now() + patience }
    }

    /// The signal of this rung, without `SIG`.
    pub(super) fn signal(&self) -> &str {
        &self.signal
    }

    /// When the program has had its time.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Gives the program its time from now on, when the signal has been sent, which may have taken long.
    pub(super) fn sent(&mut self) {
        self.deadline = Instant::now() + self.patience;
    }

    /// Steps onto the next rung; false if this is the last.
    pub(super) fn climb(&mut self) -> bool {
        match self.above.pop_front() {
            Some((signal, patience)) => {
                self.signal = signal;
                self.patience = patience;
                self.sent();
                true
            }
            None => false,
        }
    }

    /// Gives up on all milder means.
    pub(super) fn climb_to_the_top(&mut self) {
        self.above.clear();
        self.signal = "KILL".to_owned();
        self.patience = PATIENCE;
        self.sent();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signals, each with the seconds it has.
    #[track_caller]
    fn check(sigterm_time: Option<u64>, interrupt_signal: &str, expected: &[(&str, u64)]) {
        let mut ladder = Ladder::begin(sigterm_time.map(Duration::from_secs), interrupt_signal);
        let mut rungs = Vec::new();
        loop {
            let patience = ladder.deadline() - Instant::now();
            rungs.push((ladder.signal().to_owned(), patience.as_secs()));
            if !ladder.climb() {
                break;
            }
        }
        let expected: Vec<_> = expected.iter().map(|(signal, patience)| ((*signal).to_owned(), *patience)).collect();
        assert_eq!(rungs, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn signals_follow_each_other_until_one_kills() {
        check(None, "KILL", &[("KILL", 5)]);
        check(None, "INT", &[("INT", 5), ("KILL", 5)]);
        check(Some(30), "KILL", &[("TERM", 30), ("KILL", 5)]);
        check(Some(3), "INT", &[("TERM", 3), ("INT", 5), ("KILL", 5)]);
    }
}
