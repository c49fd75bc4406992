//! One command in a fresh machine: of the worker that runs, or of a pool of our own if none does.

use std::io::{self, ErrorKind, Read, Write};
use std::process::ExitCode;

use anyhow::bail;
use nix::unistd::Uid;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::screen::{Screen, say};
use super::{begin, ssh};
use crate::check::owner_beside_root;
use crate::cli::Worker;
use crate::config::{Config, Log, LogFormat};
use crate::control::{
    Answer, BLOCK, Bytes, Conversation, Exec, Far, Input, Login, NoConversation, Ran, Request, Response, Talk,
};
use crate::core_tasks::CoreTasks;
use crate::exec::{Keeper, exec as exec_in};
use crate::pool::Pool;
use crate::{daemon, exit, log};

/// The exit status of a program whose reader went away, as a shell shows it (SIGPIPE).
const NOBODY_READS: u8 = exit::SIGNALLED + 13;

/// The exit status of a program that was interrupted from the keyboard, likewise (SIGINT).
const INTERRUPTED: u8 = exit::SIGNALLED + 2;

/// Runs a command, whose exit status is ours.
pub(crate) fn exec(worker: &Worker, wanted: Exec, quiet: bool) -> ExitCode {
    let config = match super::load(worker) {
        Ok(config) => config,
        // The command's own status may be any other.
        Err(_) => return exit::code(exit::NO_MACHINE),
    };
    let screen = if quiet { Screen::quiet() } else { Screen::talking() };
    let status = match begin(&config, &Request::Exec(wanted.clone())) {
        Ok(conversation) => by_worker(conversation, screen),
        Err(NoConversation::NoWorker(_)) => alone(&config, wanted, screen),
        Err(NoConversation::Other(error)) => Err(error),
    };
    exit::code(status.unwrap_or_else(|error| {
        say(&format!("{error:#}"));
        exit::NO_MACHINE
    }))
}

/// The worker does it. When this process ends, however it does, so does what it asked for.
fn by_worker(mut conversation: Conversation, screen: Screen) -> anyhow::Result<u8> {
    let mut show = Show { screen };
    loop {
        match show.take(conversation.next()?)? {
            Next::Nothing => {}
            Next::Stdin => {
                // The worker says meanwhile what else happens.
                let voice = conversation.voice()?;
                std::thread::spawn(move || voice.say(&Input::Stdin(Bytes(read()))));
            }
            Next::Enter(login) => return enter(&login),
            Next::End(status) => return Ok(status),
        }
    }
}

/// No worker runs, so this is done here, with the state directory to ourselves.
fn alone(config: &Config, wanted: Exec, screen: Screen) -> anyhow::Result<u8> {
    let state_dir = &config.pool.state_dir;
    if let Some(owner) = owner_beside_root(Uid::effective(), state_dir) {
        let state_dir = state_dir.display();
        bail!("no worker runs, and {state_dir} is {owner}'s: run it as that user: sudo -u {owner} kvm-worker exec");
    }
    log::start(&Log { filter: "warn".to_owned(), format: LogFormat::Text });
    let runtime = tokio::runtime::Runtime::new()?;
    let status = runtime.block_on(async {
        let mut interrupts = Interrupts::new()?;
        screen.tell("no worker runs; opening its pool of machines");
        let (core, mut broken) = CoreTasks::new();
        let pool = tokio::select! {
            pool = Pool::open_for_one(config, &core) => pool?,
            () = interrupts.next() => return Ok(INTERRUPTED),
        };
        let status = tokio::select! {
            status = run(&pool, wanted, screen) => status,
            () = interrupts.next() => Ok(INTERRUPTED),
            Some(broken) = broken.recv() => Err(anyhow::anyhow!("{broken}")),
        };
        tokio::select! {
            () = pool.close(daemon::pool_closes_within(config)) => {}
            // Their QEMUs end with this process; the next start cleans up.
            () = interrupts.next() => {}
        }
        status
    });
    // A thread may read standard input, and nothing is left to wait for.
    runtime.shutdown_background();
    status
}

async fn run(pool: &Pool, wanted: Exec, screen: Screen) -> anyhow::Result<u8> {
    let keep = wanted.keep;
    let (mut talk, Far { mut lines, input }) = Talk::new();
    let work = async {
        let ran = Box::pin(exec_in(pool, wanted, Keeper::CommandLine, &mut talk)).await;
        talk.answer(ran.map(Answer::Ran)).await;
        std::future::pending::<std::convert::Infallible>().await
    };
    let show = async {
        let mut show = Show { screen };
        while let Some(line) = lines.recv().await {
            // Little is written at a time, and nothing else is to go on while it can't be.
            match show.take(line)? {
                Next::Nothing => {}
                Next::Stdin => {
                    let input = input.clone();
                    tokio::task::spawn_blocking(move || input.try_send(Input::Stdin(Bytes(read()))));
                }
                Next::Enter(login) => return tokio::task::spawn_blocking(move || enter(&login)).await?,
                Next::End(status) => return Ok(status),
            }
        }
        anyhow::bail!("it ended without an answer")
    };
    let status = tokio::select! {
        never = work => match never {},
        status = show => status,
    };
    if keep.is_some() {
        pool.none_held().await;
    }
    status
}

/// What follows from what was said.
enum Next {
    Nothing,
    /// A part of standard input is wanted.
    Stdin,
    Enter(Login),
    End(u8),
}

/// Shows what is said.
struct Show {
    screen: Screen,
}

impl Show {
    fn take(&mut self, line: Response) -> anyhow::Result<Next> {
        let written = match line {
            Response::Progress(line) => {
                self.screen.tell(&line);
                return Ok(Next::Nothing);
            }
            Response::Started => {
                self.screen.clear();
                return Ok(Next::Nothing);
            }
            Response::Stdout(bytes) => super::print(&bytes.0),
            Response::Stderr(bytes) => io::stderr().write_all(&bytes.0),
            Response::Wants => return Ok(Next::Stdin),
            Response::Enter(login) => {
                self.screen.clear();
                return Ok(Next::Enter(login));
            }
            Response::Done(answer) => {
                self.screen.clear();
                return match answer {
                    Answer::Ran(ran) => Ok(Next::End(status(&ran))),
                    _ => Err(super::another_version()),
                };
            }
            Response::Refused(why) => {
                self.screen.clear();
                anyhow::bail!("{why}");
            }
        };
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Next::End(NOBODY_READS)),
            written => Ok(written.map(|()| Next::Nothing)?),
        }
    }
}

/// What a command's end is as an exit status; what has no words of its own gets some.
fn status(ran: &Ran) -> u8 {
    match ran {
        Ran::Exited { status } => u8::try_from(*status).unwrap_or(u8::MAX),
        Ran::Signalled { signal } => exit::signalled(signal),
        Ran::NotFound { program } => {
            say(&format!("{program}: no such program in the guest"));
            exit::NOT_FOUND
        }
        Ran::NotExecutable { program } => {
            say(&format!("{program}: it can't be executed in the guest"));
            exit::NOT_EXECUTABLE
        }
        Ran::TimedOut { seconds } => {
            say(&format!("the command did not end within {seconds} s"));
            exit::TIMED_OUT
        }
    }
}

/// Has a person log in, and returns when that is over.
fn enter(login: &Login) -> anyhow::Result<u8> {
    let status = ssh::client(login, &[])?.status()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::NO_MACHINE))
}

/// The next part of standard input; nothing at its end.
fn read() -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let bytes = io::stdin().lock().read(&mut block).unwrap_or(0);
    block.truncate(bytes);
    block
}

/// What ends it from outside.
struct Interrupts([Signal; 3]);

impl Interrupts {
    fn new() -> io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(signal);
        Ok(Interrupts([interrupt?, terminate?, hangup?]))
    }

    /// The next one. Cancel-safe.
    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
