use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep_until};

use crate::escalation::Escalation;
use crate::group::Group;
use crate::spawner::Spawned;
use crate::stream::{Read, Reader, Writer};
use crate::{Event, ExitStatus, Finish, Rung, SignalError, Stream};

/// A started command. Dropped before it is finished, it kills its process group, and is reaped in the background.
pub struct Child {
    group: Group,
    phase: Phase,
    stdin: Option<Writer>,
    stdout: Option<Reader>,
    stderr: Option<Reader>,
    escalation: Option<Escalation>,
    output_grace: Duration,
}

#[derive(Clone, Copy)]
enum Phase {
    Running,
    /// Unreaped; somebody may still write.
    Exited {
        status: ExitStatus,
        grace_ends: Instant,
        /// The grace was over, and what is left of the group was killed.
        swept: bool,
    },
    /// The grace is over; only what is in the pipes already is read.
    Draining {
        status: ExitStatus,
        leaked: bool,
    },
    Finished,
}

/// How long output is awaited after all of the group was killed: its pipes close at once, unless somebody outside of the
/// group holds them.
const SWEPT_GRACE: Duration = Duration::from_secs(1);

/// What there is to do.
enum Turn {
    Exit,
    Stdin,
    Read(Stream),
    Deadline,
}

impl Child {
    pub(crate) fn new(spawned: Spawned, input: Bytes, output_grace: Duration) -> io::Result<Self> {
        Ok(Child {
            group: spawned.group,
            phase: Phase::Running,
            stdin: spawned.stdin.map(|fd| Writer::new(fd, input)).transpose()?,
            stdout: spawned.stdout.map(Reader::new).transpose()?,
            stderr: spawned.stderr.map(Reader::new).transpose()?,
            escalation: None,
            output_grace,
        })
    }

    /// Returns the process id, which is also that of the group.
    pub fn id(&self) -> u32 {
        self.group.id()
    }

    /// Waits for the next thing to happen; `None` after [`Event::Finished`]. Stdin is written, output is read and signals
    /// are escalated in here only. Cancel safe: nothing is lost when the future is dropped.
    pub async fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Phase::Finished = self.phase {
                return None;
            }
            if let Some(finish) = self.finish_if_done() {
                return Some(Event::Finished(finish));
            }
            let event = match self.turn().await {
                Turn::Exit => self.take_exit(),
                Turn::Stdin => self.feed(),
                Turn::Read(stream) => self.read(stream),
                Turn::Deadline => self.pass_deadline(),
            };
            if event.is_some() {
                return event;
            }
        }
    }

    /// Drops all further output and waits until the child is finished. Waits for ever if it does not exit: see
    /// [`Child::escalate`]. Cancel safe.
    pub async fn finish(&mut self) -> Option<Finish> {
        self.discard(Stream::Stdout);
        self.discard(Stream::Stderr);
        while let Some(event) = self.next_event().await {
            if let Event::Finished(finish) = event {
                return Some(finish);
            }
        }
        None
    }

    /// Sends a signal to every process of the child's group. Also reaches those that are left after the child itself has
    /// exited, until [`Event::Finished`].
    pub fn signal(&self, signal: Signal) -> Result<(), SignalError> {
        self.group.signal(signal)
    }

    /// Signals the group with the first rung now, and has [`Child::next_event`] go on with the others while the child
    /// runs, or what it left behind holds its output. When it is finished, whatever is left of the group is killed. A
    /// second call replaces what is still to come of the first.
    pub fn escalate(&mut self, rungs: impl IntoIterator<Item = Rung>) -> Result<(), SignalError> {
        let mut escalation = Escalation::new(rungs);
        let first = escalation.step(Instant::now());
        self.escalation = Some(escalation);
        first.map_or(Ok(()), |signal| self.signal(signal))
    }

    /// Ends the grace for output now, if the child has exited: what is in the pipes already is still reported, then the
    /// child is finished. Before [`Event::Exited`] this does nothing.
    pub fn end_grace(&mut self) {
        if let Phase::Exited { grace_ends, .. } = &mut self.phase {
            *grace_ends = Instant::now();
        }
    }

    /// From now on reads what arrives on a stream without reporting it.
    pub fn discard(&mut self, stream: Stream) {
        if let Some(reader) = self.reader(stream) {
            reader.discarded = true;
        }
    }

    async fn turn(&self) -> Turn {
        if let Phase::Draining { .. } = self.phase {
            // What is there already needs no waiting.
            return Turn::Read(if self.stdout.is_some() { Stream::Stdout } else { Stream::Stderr });
        }
        let running = matches!(self.phase, Phase::Running);
        tokio::select! {
            () = self.group.exited(), if running => Turn::Exit,
            () = ready_to_write(&self.stdin), if self.stdin.is_some() => Turn::Stdin,
            () = ready_to_read(&self.stdout), if self.stdout.is_some() => Turn::Read(Stream::Stdout),
            () = ready_to_read(&self.stderr), if self.stderr.is_some() => Turn::Read(Stream::Stderr),
            () = until(self.deadline()) => Turn::Deadline,
        }
    }

    fn take_exit(&mut self) -> Option<Event> {
        let status = self.group.status()?;
        self.phase = Phase::Exited { status, grace_ends: Instant::now() + self.output_grace, swept: false };
        Some(Event::Exited(status))
    }

    fn feed(&mut self) -> Option<Event> {
        if !self.stdin.as_mut().is_some_and(Writer::write) {
            self.stdin = None;
        }
        None
    }

    fn read(&mut self, stream: Stream) -> Option<Event> {
        let reader = self.reader(stream).as_mut()?;
        match reader.read() {
            Read::Bytes(_) if reader.discarded => None,
            Read::Bytes(bytes) => Some(match stream {
                Stream::Stdout => Event::Stdout(bytes),
                Stream::Stderr => Event::Stderr(bytes),
            }),
            Read::Pending => {
                if let Phase::Draining { leaked, .. } = &mut self.phase {
                    *leaked = true;
                    *self.reader(stream) = None;
                }
                None
            }
            Read::End => {
                *self.reader(stream) = None;
                None
            }
        }
    }

    fn pass_deadline(&mut self) -> Option<Event> {
        let now = Instant::now();
        if let Phase::Exited { status, grace_ends, swept } = self.phase
            && grace_ends <= now
        {
            self.stop_waiting(status, swept, now);
            return None;
        }
        let escalation = self.escalation.as_mut()?;
        escalation.patience_ends.filter(|&end| end <= now)?;
        match escalation.step(now) {
            Some(signal) => {
                let sent = self.group.signal(signal);
                sent.inspect_err(|error| tracing::warn!(%error, "escalation is stuck")).ok()?;
                Some(Event::Signalled(signal))
            }
            None => matches!(self.phase, Phase::Running).then_some(Event::Unkilled),
        }
    }

    fn stop_waiting(&mut self, status: ExitStatus, swept: bool, now: Instant) {
        if self.escalation.is_some() && !swept {
            let _ = self.group.signal(Signal::SIGKILL);
            self.phase = Phase::Exited { status, grace_ends: now + self.output_grace.min(SWEPT_GRACE), swept: true };
            return;
        }
        for reader in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            reader.stop_after_what_is_there();
        }
        self.phase = Phase::Draining { status, leaked: false };
    }

    fn finish_if_done(&mut self) -> Option<Finish> {
        if self.stdout.is_some() || self.stderr.is_some() {
            return None;
        }
        let finish = match self.phase {
            Phase::Exited { status, .. } => Finish { status, leaked: false },
            Phase::Draining { status, leaked } => Finish { status, leaked },
            Phase::Running | Phase::Finished => return None,
        };
        if self.escalation.is_some() {
            let _ = self.group.signal(Signal::SIGKILL);
        }
        self.stdin = None;
        self.group.reap();
        self.phase = Phase::Finished;
        Some(finish)
    }

    /// The next moment at which something is to be done though nothing happens.
    fn deadline(&self) -> Option<Instant> {
        let grace_ends = match self.phase {
            Phase::Exited { grace_ends, .. } => Some(grace_ends),
            _ => None,
        };
        let patience_ends = self.escalation.as_ref().and_then(|escalation| escalation.patience_ends);
        [grace_ends, patience_ends].into_iter().flatten().min()
    }

    fn reader(&mut self, stream: Stream) -> &mut Option<Reader> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child").field("id", &self.id()).finish_non_exhaustive()
    }
}

async fn ready_to_read(reader: &Option<Reader>) {
    if let Some(reader) = reader {
        reader.ready().await;
    }
}

async fn ready_to_write(writer: &Option<Writer>) {
    if let Some(writer) = writer {
        writer.ready().await;
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
