//! `shell`: runs a program for a step (Buildbot 4.3.0, `runprocess.py`).

use std::ffi::OsString;
use std::path::Path;

use protocol::Update;
use protocol::Value;
use protocol::command::{CommandLine, Shell, Word};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::execution::{End, Execution};
use super::logfiles::Logfiles;
use super::{Context, Failure, environment, header, os_error};
use crate::output::Reporter;
use crate::place::{Ending, Place, Process, Program, SpawnError};

/// What steps get for a program that was killed, or might as well have been.
const KILLED: i32 = -1;

/// What a program that can't be executed has for an exit status.
const NOT_EXECUTED: i32 = 1;

/// What happens to a program's exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// It is the command's, and the master is told.
    Reported,
    /// It is only returned.
    Returned,
}

/// Runs a program and reports how it ended.
pub(super) async fn run(
    context: &Context,
    shell: &Shell,
    place: &dyn Place,
    reporter: &Reporter,
) -> Result<(), Failure> {
    execute(context, shell, place, reporter, Status::Reported).await.map(drop)
}

/// Runs a program with all that a shell command has: header, output, log files, limits. Returns its exit status; -1 if it
/// was killed, or its place is lost.
///
/// # Errors
/// It can't be started for reasons that are not the step's, or can't be killed.
pub(super) async fn execute(
    context: &Context,
    shell: &Shell,
    place: &dyn Place,
    reporter: &Reporter,
    status: Status,
) -> Result<i32, Failure> {
    let workdir = context.resolve(&shell.workdir);
    let mut environment = environment::compose(place.environment(), &shell.env, &workdir)?;
    let pty = shell.use_pty && shell.initial_stdin.is_none();
    if pty {
        environment::name_terminal(&mut environment, &shell.env);
    }
    let report = Report { reporter, status, started: Instant::now() };
    let start = async {
        let logfiles = Logfiles::before(place, reporter, &shell.logfiles, &workdir).await;
        reporter.header(header::header(shell, &workdir, &environment, pty)).await;
        match place.spawn(program_of(shell, &workdir, &environment, pty)).await {
            Ok(process) => Ok((process, logfiles)),
            Err(error) => Err(report.not_started(error).await),
        }
    };
    let started = tokio::select! {
        biased;
        _ = context.interrupt.requested() => Err(Ok(report.not_begun().await)),
        started = start => started,
    };
    let (process, mut logfiles) = match started {
        Ok(started) => started,
        Err(ended) => return ended,
    };
    let report = Report { started: Instant::now(), ..report };
    let end = watch(context, shell, reporter, process, &mut logfiles).await;
    if !matches!(end, End::Ended { ending: Ending::Lost { .. }, .. } | End::PlaceEnded) {
        logfiles.show(|| ()).await;
        logfiles.say_impossible().await;
    }
    report.end(end).await
}

/// A program of the worker's own, with the words to run it; limits and the rest are for the caller to fill in.
pub(super) fn program<const N: usize>(words: [&str; N], workdir: &Path) -> Shell {
    Shell {
        command: CommandLine::Words(words.map(|word| Word { real: word.to_owned(), shown: None }).to_vec()),
        workdir: workdir.to_owned(),
        env: Vec::new(),
        initial_stdin: None,
        want_stdout: true,
        want_stderr: true,
        logfiles: Vec::new(),
        logfiles_shown: Value::Map(Vec::new()),
        timeout: None,
        max_time: None,
        max_lines: None,
        sigterm_time: None,
        interrupt_signal: "KILL".to_owned(),
        use_pty: false,
        log_environ: true,
    }
}

fn program_of(shell: &Shell, workdir: &Path, environment: &[(OsString, OsString)], pty: bool) -> Program {
    let argv = match &shell.command {
        CommandLine::Line(line) => vec!["/bin/sh".into(), "-c".into(), line.into()],
        CommandLine::Words(words) => words.iter().map(|word| OsString::from(&word.real)).collect(),
    };
    Program {
        argv,
        workdir: workdir.to_owned(),
        environment: environment.to_vec(),
        stdin: shell.initial_stdin.clone().unwrap_or_default().into(),
        pty,
    }
}

/// Sees a process to its end, and log files meanwhile. Whatever is left of it is killed after that.
async fn watch(
    context: &Context,
    shell: &Shell,
    reporter: &Reporter,
    process: Box<dyn Process>,
    logfiles: &mut Logfiles<'_>,
) -> End {
    let grown = Notify::new();
    let mut execution = Execution::new(context, shell, reporter, process);
    tokio::select! {
        end = execution.until_ended(&grown) => end,
        never = logfiles.watch(&grown) => match never {},
    }
}

/// Says how a program ended.
struct Report<'a> {
    reporter: &'a Reporter,
    status: Status,
    started: Instant,
}

impl Report<'_> {
    async fn end(&self, end: End) -> Result<i32, Failure> {
        let (ending, killed) = match end {
            End::Ended { ending, killed } => (ending, killed),
            // As if it had been killed, which it was together with all else.
            End::PlaceEnded => return Ok(self.rc(KILLED).await),
            End::Unkilled => {
                self.reporter.header("SIGKILL failed to kill process\n").await;
                if self.status == Status::Reported {
                    self.reporter.header("using fake rc=-1\n").await;
                    self.reporter.update(Update::Rc(KILLED)).await;
                }
                return Err(Failure("SIGKILL failed to kill process".to_owned()));
            }
        };
        let rc = match ending {
            Ending::Exited { status: 0 } if killed => KILLED,
            Ending::Exited { status } => status,
            Ending::Signalled { signal } => {
                if self.status == Status::Reported {
                    self.reporter.header(format!("process killed by signal {signal}\n")).await;
                }
                KILLED
            }
            Ending::Lost { reason } => return Ok(self.lost(reason).await),
        };
        Ok(self.rc(rc).await)
    }

    /// The master's interrupt came before there was a program to kill.
    async fn not_begun(&self) -> i32 {
        self.reporter.header("\ncommand interrupted, attempting to kill\n").await;
        self.rc(KILLED).await
    }

    async fn not_started(&self, error: SpawnError) -> Result<i32, Failure> {
        match error {
            SpawnError::Program { .. } | SpawnError::Workdir { .. } => {
                self.reporter.stderr(format!("can't execute {error}\n")).await;
                Ok(self.rc(NOT_EXECUTED).await)
            }
            SpawnError::Lost(reason) => Ok(self.lost(reason).await),
            SpawnError::NoWorkdir { workdir, source } => {
                self.impossible(format!("can't make the workdir {}: {}", workdir.display(), os_error::text(&source)))
                    .await
            }
            SpawnError::Other(error) => self.impossible(format!("can't start the program: {error}")).await,
        }
    }

    /// It is not the step's fault that there is no program.
    async fn impossible(&self, why: String) -> Result<i32, Failure> {
        self.reporter.stderr(format!("{why}\n")).await;
        self.rc(KILLED).await;
        Err(Failure(why))
    }

    async fn lost(&self, reason: String) -> i32 {
        os_error::report_lost(self.reporter, reason).await;
        self.elapsed().await;
        KILLED
    }

    async fn rc(&self, rc: i32) -> i32 {
        if self.status == Status::Reported {
            self.reporter.update(Update::Rc(rc)).await;
        }
        self.elapsed().await;
        rc
    }

    async fn elapsed(&self) {
        self.reporter.header(format!("elapsedTime={:.6}\n", self.started.elapsed().as_secs_f64())).await;
    }
}

#[cfg(test)]
mod tests;
