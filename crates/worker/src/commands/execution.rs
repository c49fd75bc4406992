use std::io;

use bytes::Bytes;
use protocol::Update;
use protocol::command::Shell;
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, sleep_until};

use super::ladder::Ladder;
use super::{Context, header};
use crate::output::{Reporter, Room};
use crate::place::{Ending, Event, Process};

/// How long a program's output may be silent once the program itself has exited.
///
/// Something that it started may hold the output open for ever, such as a daemon. Buildbot 4.3.0's worker waits for it
/// until the step times out; what is wanted is the end of the step. Output that still flows, as from `tee`, is waited
/// for.
const SILENCE_AFTER_EXIT: Duration = Duration::from_secs(5);

/// How long output is waited for at all once the program itself has exited.
const OUTPUT_AFTER_EXIT: Duration = Duration::from_secs(60);

/// A program that runs for a build: what it writes is reported, and what is not to go on is killed.
pub(super) struct Execution<'a> {
    context: &'a Context,
    shell: &'a Shell,
    reporter: &'a Reporter,
    process: Box<dyn Process>,
    /// When it has been silent for too long.
    silent_at: Option<Instant>,
    /// When it has run for too long.
    late_at: Option<Instant>,
    lines: u64,
    /// Set once it is being killed.
    ladder: Option<Ladder>,
    exited: Option<Exited>,
    interrupted: bool,
    over_max_lines: bool,
    /// Why the last signal was not sent, if it was not.
    unsent: Option<String>,
}

/// What is to be said of a signal.
#[derive(Default)]
struct Sent {
    /// Its name, if the place does not know it; SIGKILL was sent instead.
    unknown: Option<String>,
    /// How it went, or why it did not.
    note: Option<String>,
}

/// The program itself has ended, but maybe not its output.
struct Exited {
    silent_at: Instant,
    late_at: Instant,
}

/// How an execution ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It ended, whether or not because it was to be killed.
    Ended { ending: Ending, killed: bool },
    /// It could not be killed, and so its place was ended under it.
    PlaceEnded,
    /// It can't be killed.
    Unkilled,
}

enum Turn<'a> {
    Interrupted,
    Late,
    Silent,
    NextRung,
    Leave,
    Grown,
    Room(Room<'a>),
    Event(Event),
}

impl<'a> Execution<'a> {
    /// Takes over a process that has just been started.
    pub(super) fn new(
        context: &'a Context,
        shell: &'a Shell,
        reporter: &'a Reporter,
        process: Box<dyn Process>,
    ) -> Self {
        let now = Instant::now();
        Execution {
            context,
            shell,
            reporter,
            process,
            silent_at: shell.timeout.map(|timeout| now + timeout),
            late_at: shell.max_time.map(|max_time| now + max_time),
            lines: 0,
            ladder: None,
            exited: None,
            interrupted: false,
            over_max_lines: false,
            unsent: None,
        }
    }

    /// Reports what the process writes until it has ended. Each notification by `grown` counts as output.
    pub(super) async fn until_ended(&mut self, grown: &Notify) -> End {
        // Output is read only where there is room for it, so that a program waits for a slow master.
        let mut room = None;
        loop {
            match self.turn(&mut room, grown).await {
                Turn::Interrupted => self.interrupt().await,
                Turn::Late => {
                    let seconds = header::seconds(self.shell.max_time.unwrap_or_default());
                    self.time_out("timeout", format!("{seconds} seconds elapsed")).await;
                }
                Turn::Silent => {
                    let seconds = header::seconds(self.shell.timeout.unwrap_or_default());
                    self.time_out("timeout_without_output", format!("{seconds} seconds without output")).await;
                }
                Turn::NextRung => {
                    if !self.climb().await {
                        return self.end_place().await;
                    }
                }
                Turn::Leave => self.leave().await,
                Turn::Grown => self.reset_silence(),
                Turn::Room(free) => {
                    // While there was none, nobody listened whether it was silent.
                    self.reset_silence();
                    room = Some(free);
                }
                Turn::Event(Event::Exited) => self.exit(),
                Turn::Event(Event::Ended(ending)) => return End::Ended { ending, killed: self.ladder.is_some() },
                Turn::Event(Event::Stdout(bytes)) => {
                    let room = room.take().filter(|_| self.shell.want_stdout);
                    self.output(room, bytes, Room::stdout).await;
                }
                Turn::Event(Event::Stderr(bytes)) => {
                    let room = room.take().filter(|_| self.shell.want_stderr);
                    self.output(room, bytes, Room::stderr).await;
                }
            }
        }
    }

    async fn turn(&mut self, room: &mut Option<Room<'a>>, grown: &Notify) -> Turn<'a> {
        let next_rung = self.ladder.as_ref().map(Ladder::deadline);
        let leave_at = match &self.exited {
            Some(exited) if self.ladder.is_none() => Some(exited.silent_at.min(exited.late_at)),
            _ => None,
        };
        tokio::select! {
            biased;
            _ = self.context.interrupt.requested(), if !self.interrupted => Turn::Interrupted,
            () = until(self.late_at) => Turn::Late,
            () = until(next_rung) => Turn::NextRung,
            free = self.reporter.room(), if room.is_none() => Turn::Room(free),
            event = self.process.event(), if room.is_some() => Turn::Event(event),
            () = grown.notified() => Turn::Grown,
            () = until(self.silent_at), if room.is_some() => Turn::Silent,
            () = until(leave_at), if room.is_some() => Turn::Leave,
        }
    }

    fn reset_silence(&mut self) {
        let now = Instant::now();
        if let (Some(silent_at), Some(timeout)) = (&mut self.silent_at, self.shell.timeout) {
            *silent_at = now + timeout;
        }
        if let Some(exited) = &mut self.exited {
            exited.silent_at = now + SILENCE_AFTER_EXIT;
        }
    }

    /// Reports output, if there is room because it is wanted.
    async fn output(&mut self, room: Option<Room<'a>>, bytes: Bytes, report: impl FnOnce(Room<'a>, Bytes)) {
        self.reset_silence();
        let Some(room) = room.filter(|_| !self.over_max_lines) else { return };
        if let Some(max_lines) = self.shell.max_lines {
            self.lines += lines(&bytes);
            if self.lines > max_lines {
                self.over_max_lines = true;
                let argv = header::argv_repr(&self.shell.command);
                let message =
                    format!("command exceeds max lines: {}/{max_lines} written/allowed running {argv}", self.lines);
                self.kill(Some("max_lines_failure"), &message).await;
            }
        }
        report(room, bytes);
    }

    async fn interrupt(&mut self) {
        self.interrupted = true;
        self.kill(None, "command interrupted").await;
    }

    async fn time_out(&mut self, reason: &str, what: String) {
        let argv = header::argv_repr(&self.shell.command);
        self.kill(Some(reason), &format!("command timed out: {what} running {argv}")).await;
    }

    /// Begins to kill, unless that has begun, and says why: to steps by a `reason`, unless it is the master's interrupt,
    /// and to people by a message.
    async fn kill(&mut self, reason: Option<&str>, message: &str) {
        (self.silent_at, self.late_at) = (None, None);
        // The signal first: a slow master must not hold it up.
        let sent = match &self.ladder {
            Some(_) => Sent::default(),
            None => {
                let ladder = Ladder::begin(self.shell.sigterm_time, &self.shell.interrupt_signal);
                self.ladder = Some(ladder);
                self.signal().await
            }
        };
        match reason {
            Some(reason) => self.reporter.update(Update::FailureReason(reason.to_owned())).await,
            None => self.reporter.hasten().await,
        }
        self.reporter.header(format!("\n{message}, attempting to kill\n")).await;
        self.mention(sent).await;
    }

    /// Tries the next signal; false if nothing is left to try.
    async fn climb(&mut self) -> bool {
        let Some(ladder) = &mut self.ladder else { return true };
        if self.exited.is_some() && ladder.signal() != "KILL" {
            // It went as it was told to. What is left of it had its time as well.
            ladder.climb_to_the_top();
            let sent = self.signal().await;
            self.mention(sent).await;
            return true;
        }
        let failed = (ladder.signal() == self.shell.interrupt_signal).then(|| ladder.signal().to_owned());
        if !ladder.climb() {
            return false;
        }
        let sent = self.signal().await;
        if let Some(failed) = failed {
            self.reporter.header(format!("SIG{failed} failed to kill process, sending SIGKILL\n")).await;
        }
        self.mention(sent).await;
        true
    }

    /// Sends the signal of this rung, or SIGKILL if the place does not know it.
    async fn signal(&mut self) -> Sent {
        let mut sent = Sent::default();
        let Some(ladder) = self.ladder.as_mut() else { return sent };
        let mut result = self.process.signal(ladder.signal()).await;
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput) {
            sent.unknown = Some(ladder.signal().to_owned());
            ladder.climb_to_the_top();
            result = self.process.signal(ladder.signal()).await;
        }
        ladder.sent();
        (sent.note, self.unsent) = match result {
            Ok(detour) => (detour, None),
            Err(error) => {
                tracing::warn!(signal = ladder.signal(), %error, "can't signal a program");
                (Some(format!("SIG{} could not be sent: {error}", ladder.signal())), Some(error.to_string()))
            }
        };
        if self.exited.is_some() && ladder.signal() == "KILL" {
            self.process.leave();
        }
        sent
    }

    async fn mention(&self, Sent { unknown, note }: Sent) {
        if let Some(unknown) = unknown {
            self.reporter.header(format!("there is no signal SIG{unknown}, sending SIGKILL\n")).await;
        }
        if let Some(note) = note {
            self.reporter.header(format!("{note}\n")).await;
        }
    }

    /// Ends the place under a program that nothing has ended.
    async fn end_place(&mut self) -> End {
        match self.process.end_place(self.unsent.as_deref()).await {
            Some(sentence) => {
                self.reporter.header(format!("SIGKILL failed to kill process: {sentence}\n")).await;
                End::PlaceEnded
            }
            None => End::Unkilled,
        }
    }

    /// Takes note that the program itself is gone.
    fn exit(&mut self) {
        let now = Instant::now();
        self.exited = Some(Exited { silent_at: now + SILENCE_AFTER_EXIT, late_at: now + OUTPUT_AFTER_EXIT });
        // Who survives SIGKILL is out of the program's process group.
        if self.ladder.as_ref().is_some_and(|ladder| ladder.signal() == "KILL") {
            self.process.leave();
        }
    }

    async fn leave(&mut self) {
        self.process.leave();
        if let Some(exited) = &mut self.exited {
            exited.silent_at = Instant::now() + SILENCE_AFTER_EXIT;
            exited.late_at = exited.silent_at;
        }
        let note =
            "the program has exited, but something it started holds its output open: no longer waiting for that\n";
        self.reporter.header(note).await;
    }
}

/// Counts newlines as Buildbot's worker does for `max_lines`: CR LF, CR and LF each are one, within one piece of output.
fn lines(bytes: &[u8]) -> u64 {
    let ends = memchr::memchr2_iter(b'\r', b'\n', bytes);
    ends.filter(|&at| bytes[at] == b'\n' || bytes.get(at + 1) != Some(&b'\n')).count() as u64
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::lines;

    #[track_caller]
    fn check(bytes: &str, expected: u64) {
        assert_eq!(lines(bytes.as_bytes()), expected);
    }

    #[test]
    fn each_kind_of_newline_counts_once() {
        check("", 0);
        check("a\nb\r\nc\rd", 3);
        check("\r\r\n\n", 3);
        check("\r", 1);
    }
}
