//! A place whose one program follows a script, on tokio's paused clock.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use protocol::command::Compression;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Duration, Instant, sleep, sleep_until};

use crate::place::{Ending, Event, Held, Place, Process, Program, SpawnError};

/// What a program does, and when: seconds after its start, or after the signal that it reacts to.
pub(super) type Script = Vec<(f64, Event)>;

/// A place with one program to start.
pub(super) struct FakePlace {
    spawn: Mutex<Option<Result<FakeProcess, SpawnError>>>,
    /// What was done to the program, such as `2s TERM`.
    done: Done,
}

#[derive(Clone)]
pub(super) struct Done {
    started: Instant,
    list: Arc<Mutex<Vec<String>>>,
}

pub(super) struct FakeProcess {
    script: Script,
    queue: VecDeque<(Instant, Event)>,
    reactions: Vec<(&'static str, Script)>,
    done: Option<Done>,
    /// How long it takes to signal it.
    slow: Duration,
    /// Whether signals can't be sent.
    unreachable: bool,
    /// What is said of a signal that was sent.
    detour: Option<String>,
    /// Whether its place can be ended.
    guest: bool,
}

impl FakeProcess {
    /// A program that follows a script and dies of SIGKILL alone.
    pub(super) fn new(script: Script) -> Self {
        let killed = vec![(0.0, Event::Ended(Ending::Signalled { signal: 9 }))];
        FakeProcess {
            script,
            queue: VecDeque::new(),
            reactions: vec![("KILL", killed)],
            done: None,
            slow: Duration::ZERO,
            unreachable: false,
            detour: None,
            guest: false,
        }
    }

    /// Has each signal take so many seconds.
    pub(super) fn slow(mut self, seconds: u64) -> Self {
        self.slow = Duration::from_secs(seconds);
        self
    }

    /// Has no signal reach it.
    pub(super) fn unreachable(mut self) -> Self {
        self.unreachable = true;
        self
    }

    /// Has signals go another way.
    pub(super) fn by_detour(mut self, detour: &str) -> Self {
        self.detour = Some(detour.to_owned());
        self
    }

    /// Has it run in a place that can be ended.
    pub(super) fn in_guest(mut self) -> Self {
        self.guest = true;
        self
    }

    /// What it does when it is signalled, instead of all that it would have done.
    pub(super) fn on(mut self, signal: &'static str, script: Script) -> Self {
        self.reactions.retain(|(known, _)| *known != signal);
        self.reactions.push((signal, script));
        self
    }

    /// Has it ignore all signals.
    pub(super) fn immortal(mut self) -> Self {
        self.reactions.clear();
        self
    }

    fn follow(&mut self, script: Script) {
        let now = Instant::now();
        self.queue = script.into_iter().map(|(after, event)| (now + Duration::from_secs_f64(after), event)).collect();
    }

    fn note(&self, what: &str) {
        self.done.as_ref().expect("it was started").note(what);
    }
}

impl Done {
    fn note(&self, what: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.list.lock().expect("no panic").push(format!("{seconds:.0}s {what}"));
    }

    pub(super) fn all(&self) -> Vec<String> {
        self.list.lock().expect("no panic").clone()
    }
}

impl FakePlace {
    pub(super) fn new(spawn: Result<FakeProcess, SpawnError>) -> Self {
        let done = Done { started: Instant::now(), list: Arc::default() };
        FakePlace { spawn: Mutex::new(Some(spawn)), done }
    }

    pub(super) fn done(&self) -> Done {
        self.done.clone()
    }
}

#[async_trait]
impl Process for FakeProcess {
    async fn event(&mut self) -> Event {
        let Some((at, _)) = self.queue.front() else { return std::future::pending().await };
        sleep_until(*at).await;
        self.queue.pop_front().expect("it is there").1
    }

    async fn signal(&mut self, signal: &str) -> io::Result<Option<String>> {
        self.note(signal);
        sleep(self.slow).await;
        if self.unreachable {
            return Err(io::Error::other("nobody listens"));
        }
        if signal == "FOO" {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let reaction = self.reactions.iter().find(|(known, _)| *known == signal);
        if let Some((_, script)) = reaction {
            let script = script.clone();
            self.follow(script);
        }
        Ok(self.detour.clone())
    }

    async fn end_place(&mut self, failed: Option<&str>) -> Option<String> {
        let guest = self.guest.then(|| format!("the vm was ended: {}", failed.unwrap_or("it survived")));
        if guest.is_some() {
            self.note("place ended");
        }
        guest
    }

    fn leave(&mut self) {
        self.note("left");
        self.follow(vec![(0.0, Event::Ended(Ending::Exited { status: 0 }))]);
    }
}

impl Drop for FakeProcess {
    fn drop(&mut self) {
        if self.done.is_some() {
            self.note("dropped");
        }
    }
}

#[async_trait]
impl Place for FakePlace {
    fn environment(&self) -> Vec<(OsString, OsString)> {
        vec![("PATH".into(), "/bin".into())]
    }

    fn home(&self) -> PathBuf {
        "/root".into()
    }

    async fn spawn(&self, _: Program) -> Result<Box<dyn Process>, SpawnError> {
        let spawned = self.spawn.lock().expect("no panic").take();
        let Some(spawned) = spawned else { return std::future::pending().await };
        let mut process = spawned?;
        process.done = Some(self.done.clone());
        let script = std::mem::take(&mut process.script);
        process.follow(script);
        Ok(Box::new(process))
    }

    async fn stat(&self, _: &Path) -> io::Result<[i64; 10]> {
        Err(io::ErrorKind::NotFound.into())
    }

    async fn times(&self, _: &Path) -> io::Result<(f64, f64)> {
        Err(io::ErrorKind::NotFound.into())
    }

    async fn list(&self, _: &Path) -> io::Result<Vec<OsString>> {
        Err(io::ErrorKind::NotFound.into())
    }

    async fn glob(&self, _: &str) -> io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }

    async fn make_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    async fn remove_file(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    async fn read(&self, _: &Path, _: u64) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        Err(io::ErrorKind::NotFound.into())
    }

    async fn hold(&self, _: &Path) -> io::Result<Held> {
        Err(io::ErrorKind::NotFound.into())
    }

    async fn write(&self, _: &Path, _: Option<u32>) -> io::Result<Box<dyn AsyncWrite + Send + Unpin>> {
        Err(io::ErrorKind::NotFound.into())
    }

    async fn pack(&self, _: &Path, _: Compression) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        Err(io::ErrorKind::NotFound.into())
    }
}
