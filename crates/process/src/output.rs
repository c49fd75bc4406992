use std::ffi::OsString;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, timeout_at};

use crate::{Child, Event, ExitStatus, Finish, OutputError, Rung, Tail};

/// How much of stderr is kept.
const STDERR_MAX_BYTES: usize = 8 * 1024;

/// How long a tool that is out of time has between SIGTERM and SIGKILL, and after that.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a tool may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time from its start to its end.
    pub deadline: Duration,
    /// Bytes on stdout. Of stderr the last 8 KiB are kept.
    pub max_bytes: usize,
}

/// What a tool that ended within its limits has left.
#[derive(Clone, Debug)]
pub struct Output {
    /// The program as it was asked for.
    pub program: OsString,
    /// How it ended.
    pub status: ExitStatus,
    /// All it wrote to stdout.
    pub stdout: Vec<u8>,
    /// The end of what it wrote to stderr, undecodable bytes replaced.
    pub stderr: String,
}

impl Output {
    /// Returns stdout if the tool succeeded, and [`OutputError::Failed`] if it did not.
    pub fn into_success(self) -> Result<Vec<u8>, OutputError> {
        let Output { program, status, stdout, stderr } = self;
        if status.success() { Ok(stdout) } else { Err(OutputError::Failed { program, status, stderr }) }
    }
}

pub(crate) async fn collect(program: OsString, mut child: Child, limits: &Limits) -> Result<Output, OutputError> {
    let &Limits { deadline, max_bytes } = limits;
    let ends = Instant::now() + deadline;
    let mut stdout = Vec::new();
    let mut stderr = Tail::new(STDERR_MAX_BYTES);
    let status = loop {
        match timeout_at(ends, child.next_event()).await {
            Ok(Some(Event::Stdout(bytes))) if stdout.len() + bytes.len() > max_bytes => {
                stop(child).await;
                return Err(OutputError::TooMuch { program, max_bytes });
            }
            Ok(Some(Event::Stdout(bytes))) => stdout.extend_from_slice(&bytes),
            Ok(Some(Event::Stderr(bytes))) => stderr.push(&bytes),
            Ok(Some(Event::Finished(Finish { status, .. }))) => break status,
            Ok(Some(Event::Exited(_) | Event::Signalled(_) | Event::Unkilled)) => {}
            // Nothing comes after the end, and the end leaves the loop.
            Ok(None) => break ExitStatus::Code(255),
            Err(_) => {
                stop(child).await;
                return Err(OutputError::TimedOut { program, deadline, stderr: stderr.text() });
            }
        }
    };
    Ok(Output { program, status, stdout, stderr: stderr.text() })
}

/// Ends a child that has used up a limit. One that even SIGKILL does not end is left to be reaped in the background.
async fn stop(mut child: Child) {
    if child.escalate([Rung::new(Signal::SIGTERM, PATIENCE), Rung::new(Signal::SIGKILL, PATIENCE)]).is_ok() {
        while !matches!(child.next_event().await, None | Some(Event::Unkilled | Event::Finished(_))) {}
    }
}
