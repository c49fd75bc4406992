//! A build's programs in a guest.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::environment::changed;
use super::refusal::refusal;
use super::{Guest, cause};
use crate::place::{Ending, Event, NO_PROGRAM, Process, Program, SpawnError};
use crate::pool::Fate;

/// How long output that is on its way may take to arrive once nobody waits for more.
const LAST_OUTPUT: Duration = Duration::from_millis(500);

impl Guest {
    /// See [`super::super::Place::spawn`].
    pub(super) async fn run(&self, program: Program) -> Result<GuestProcess, SpawnError> {
        let mut exec = begin(&program, self.login.session.dialect());
        for (name, value) in changed(&self.login.environment, &program.environment)? {
            exec = match value {
                Some(value) => exec.env(name, value.as_bytes()),
                None => exec.env_remove(name),
            };
        }
        if program.pty {
            let term = program.environment.iter().find(|(name, _)| name == "TERM");
            exec = match term.and_then(|(_, term)| term.to_str()) {
                Some(term) => exec.pty(ssh::Pty { term: term.to_owned(), ..ssh::Pty::default() }),
                // Set by the server, as a terminal was asked for.
                None => exec.pty(ssh::Pty::default()).env_remove("TERM"),
            };
        }
        if !program.stdin.is_empty() {
            exec = exec.stdin();
        }
        let mut process = match self.login.session.exec(exec).await {
            Ok(process) => process,
            Err(error) => return Err(self.spawn_error(&program, error).await),
        };
        if let Some(mut stdin) = process.take_stdin() {
            // Ends when all is written or the program, its only reader, is gone.
            tokio::spawn(async move {
                if stdin.write(program.stdin).await.is_ok() {
                    stdin.close().await;
                }
            });
        }
        Ok(GuestProcess { fate: self.fate.clone(), process, exited: None, left: None, lost: None })
    }

    async fn spawn_error(&self, program: &Program, error: ssh::ExecError) -> SpawnError {
        match error {
            ssh::ExecError::MakeDir { why, .. } => {
                SpawnError::NoWorkdir { workdir: program.workdir.clone(), source: refusal(&why) }
            }
            ssh::ExecError::EnterDir { .. } => {
                SpawnError::Workdir { workdir: program.workdir.clone(), source: io::Error::other(error) }
            }
            ssh::ExecError::NoProgram { program } => SpawnError::Program {
                program: program.into(),
                source: io::Error::new(io::ErrorKind::NotFound, NO_PROGRAM),
            },
            ssh::ExecError::NotExecutable { program } => {
                SpawnError::Program { program: program.into(), source: io::Error::from_raw_os_error(nix::libc::EACCES) }
            }
            ssh::ExecError::Bad(bad) => SpawnError::Program {
                program: program.argv.first().cloned().unwrap_or_default().into(),
                source: io::Error::new(io::ErrorKind::InvalidInput, bad),
            },
            ssh::ExecError::Lost(lost) => SpawnError::Lost(cause(&self.fate, &lost).await),
            other => SpawnError::Other(io::Error::other(other)),
        }
    }
}

/// The command, and where it runs. A command line that is for a shell is for the guest's own where that is not `sh`.
fn begin(program: &Program, dialect: &ssh::Dialect) -> ssh::Exec {
    let exec = match &program.argv[..] {
        [sh, c, line] if !dialect.is_posix() && sh == "/bin/sh" && c == "-c" => ssh::Exec::shell(line.as_bytes()),
        argv => ssh::Exec::argv(argv.iter().map(|word| word.as_bytes())),
    };
    exec.dir(program.workdir.as_os_str().as_bytes(), ssh::Missing::Make)
}

/// A program of a build, and all that it starts.
pub(super) struct GuestProcess {
    fate: Fate,
    process: ssh::Process,
    /// How it ended, while its output is still awaited.
    exited: Option<Ending>,
    /// Until when its output is awaited, once nobody waits for more.
    left: Option<Instant>,
    lost: Option<ssh::Lost>,
}

impl GuestProcess {
    /// The next thing the session says of it; nothing if all was said or is waited for no longer.
    async fn next(&mut self) -> Result<Option<ssh::Event>, ssh::Lost> {
        match self.left {
            None => self.process.next().await,
            Some(until) => tokio::time::timeout_at(until, self.process.next()).await.unwrap_or(Ok(None)),
        }
    }
}

#[async_trait]
impl Process for GuestProcess {
    async fn event(&mut self) -> Event {
        if self.lost.is_none() {
            match self.next().await {
                Ok(Some(ssh::Event::Stdout(bytes))) => return Event::Stdout(bytes),
                Ok(Some(ssh::Event::Stderr(bytes))) => return Event::Stderr(bytes),
                Ok(Some(ssh::Event::Exited(exit))) => {
                    self.exited = Some(ending(&exit));
                    return Event::Exited;
                }
                Ok(None) => {
                    let nothing = || Ending::Lost { reason: "the guest did not say how the program ended".to_owned() };
                    return Event::Ended(self.exited.take().unwrap_or_else(nothing));
                }
                Err(lost) => self.lost = Some(lost),
            }
        }
        let reason = match &self.lost {
            Some(lost) => cause(&self.fate, lost).await,
            None => self.fate.gone().await,
        };
        Event::Ended(Ending::Lost { reason })
    }

    async fn signal(&mut self, signal: &str) -> io::Result<Option<String>> {
        let signal =
            ssh::Signal::from_str(signal).map_err(|unknown| io::Error::new(io::ErrorKind::InvalidInput, unknown))?;
        match self.process.signal(signal).await {
            Ok(signalled) => Ok(signalled.detour.map(|detour| format!("{signal} went {detour}"))),
            Err(error @ ssh::SignalError::Unknown { .. }) => Err(io::Error::new(io::ErrorKind::InvalidInput, error)),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    async fn end_place(&mut self, failed: Option<&str>) -> Option<String> {
        let why = match failed {
            Some(failed) => format!("a command in it could not be ended: {failed}"),
            None => "a command in it survived SIGKILL".to_owned(),
        };
        self.fate.condemn(&why).await
    }

    fn leave(&mut self) {
        self.left.get_or_insert(Instant::now() + LAST_OUTPUT);
    }
}

fn ending(exit: &ssh::Exit) -> Ending {
    match exit {
        ssh::Exit::Code(code) => Ending::Exited { status: i32::try_from(*code).unwrap_or(-1) },
        ssh::Exit::Signal { name, .. } => Ending::Signalled {
            // Numbers as on Linux, where this runs; a name that Linux lacks is as good as a kill.
            signal: nix::sys::signal::Signal::from_str(&format!("SIG{name}"))
                .map_or(nix::libc::SIGKILL, |signal| signal as i32),
        },
    }
}

#[cfg(test)]
mod tests {
    use ssh::{Dialect, Exec, Missing};

    use super::*;

    #[test]
    fn a_command_line_is_for_the_guests_own_shell() {
        let check = |argv: &[&str], dialect: Dialect, expected: Exec| {
            let program = Program {
                argv: argv.iter().map(Into::into).collect(),
                workdir: "/b".into(),
                environment: Vec::new(),
                stdin: bytes::Bytes::new(),
                pty: false,
            };
            assert_eq!(begin(&program, &dialect), expected, "{argv:?}");
        };
        let line = ["/bin/sh", "-c", "make all"];
        check(&line, Dialect::LINUX, Exec::argv(line).dir("/b", Missing::Make));
        check(&line, Dialect::BSD, Exec::argv(line).dir("/b", Missing::Make));
        check(&line, Dialect::WINDOWS, Exec::shell("make all").dir("/b", Missing::Make));
        check(&["nmake"], Dialect::WINDOWS, Exec::argv(["nmake"]).dir("/b", Missing::Make));
    }
}
