//! What a process says, line by line, to be waited for.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How many lines an error shows.
const SHOWN: usize = 30;

/// The lines of one or more streams, in the order of their arrival.
#[derive(Debug, Clone, Default)]
pub struct Transcript {
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    streams: usize,
}

impl Transcript {
    /// Takes in a stream until its end, in a thread of its own.
    pub(crate) fn follow(&self, stream: impl Read + Send + 'static) {
        self.state().streams += 1;
        let transcript = self.clone();
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                transcript.state().lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
                transcript.shared.1.notify_all();
                line.clear();
            }
            transcript.state().streams -= 1;
            transcript.shared.1.notify_all();
        });
    }

    /// How many lines there are, for [`Transcript::find_from`].
    pub fn mark(&self) -> usize {
        self.state().lines.len()
    }

    /// The first line of all that has a part in it, waiting for it if it is still to come.
    pub fn find(&self, part: &str, within: Duration) -> Result<String> {
        self.find_from(0, part, within)
    }

    /// The first line from a mark on that has a part in it, waiting for it if it is still to come.
    pub fn find_from(&self, mark: usize, part: &str, within: Duration) -> Result<String> {
        self.pick_from(mark, &format!("a line with {part:?}"), within, |line| {
            line.contains(part).then(|| line.to_owned())
        })
    }

    /// What `pick` makes of the first line from a mark on that it takes.
    pub(crate) fn pick_from<T>(
        &self,
        mark: usize,
        what: &str,
        within: Duration,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + within;
        let mut state = self.state();
        let mut seen = mark;
        loop {
            while let Some(line) = state.lines.get(seen) {
                seen += 1;
                if let Some(found) = pick(line) {
                    return Ok(found);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.streams == 0 || left.is_zero() {
                let why = if state.streams == 0 { "the process ended" } else { "time ran out" };
                bail!("{why} before {what}; it ends with:\n{}", tail(&state.lines, SHOWN));
            }
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until all streams have ended.
    pub(crate) fn wait_for_end(&self, within: Duration) {
        let state = self.state();
        drop(self.shared.1.wait_timeout_while(state, within, |state| state.streams > 0));
    }

    /// The lines so far that a test holds for.
    pub fn lines(&self, mut wanted: impl FnMut(&str) -> bool) -> Vec<String> {
        self.state().lines.iter().filter(|line| wanted(line)).cloned().collect()
    }

    /// All lines so far.
    pub fn text(&self) -> String {
        self.state().lines.join("\n")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tail(lines: &[String], count: usize) -> String {
    lines[lines.len().saturating_sub(count)..].join("\n")
}
