//! A process that a test starts and that ends with the test.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Transcript;

/// A running process and what it says.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    child: Child,
    pidfd: OwnedFd,
    transcript: Transcript,
    shown: Option<usize>,
}

impl Daemon {
    /// Starts a process with its output in a transcript. At its end, up to `shown` lines of that are printed.
    pub(crate) fn spawn(name: &'static str, command: &mut Command, shown: Option<usize>) -> Result<Daemon> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name} ({command:?})"))?;
        let transcript = Transcript::default();
        if let Some(stdout) = child.stdout.take() {
            transcript.follow(stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            transcript.follow(stderr);
        }
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("open a pidfd of {name}"))?;
        Ok(Daemon { name, child, pidfd, transcript, shown })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it said so far.
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// Sends a signal to the process alone, not to what it started.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        pidfd_send_signal(&self.pidfd, signal).with_context(|| format!("send {signal:?} to {}", self.name))
    }

    /// Waits until the process has ended.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        ensure!(has_ended(&self.pidfd, within)?, "{} still runs after {within:?}", self.name);
        let status = self.child.wait()?;
        // What it said last may still be in the pipes; something it left behind may hold them open for ever.
        self.transcript.wait_for_end(Duration::from_secs(2));
        Ok(status)
    }

    /// Kills the process with SIGKILL, as a crash would end it: what it started lives on.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait(Duration::from_secs(10)).map(drop)
    }
}

/// Whether the process behind a pidfd ends within a time.
pub(crate) fn has_ended(pidfd: &OwnedFd, within: Duration) -> Result<bool> {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&Timespec::try_from(left)?)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the end of a process"),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A failure means that the process has ended already.
        if pidfd_send_signal(&self.pidfd, Signal::KILL).is_ok() {
            drop(self.wait(Duration::from_secs(10)));
        }
        let text = self.transcript.text();
        let skip = self.shown.map_or(0, |shown| text.lines().count().saturating_sub(shown));
        for line in text.lines().skip(skip) {
            eprintln!("{} | {line}", self.name);
        }
    }
}
