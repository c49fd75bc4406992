//! The verbs that ask a running worker, and how they show what it says.

mod console;
mod exec;
mod screen;
mod ssh;
mod status;
mod style;
mod table;
mod watch;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

pub(crate) use self::console::{Form, console};
pub(crate) use self::exec::exec;
use self::screen::Screen;
pub(crate) use self::ssh::ssh;
use self::style::Style;
use crate::cli::{Look, Worker};
use crate::config::{Config, Overrides};
use crate::control::{self, Answer, Conversation, Request, Status};
use crate::{daemon, exit};

/// How much longer than the worker itself the command line waits for the worker's answer.
const SLACK: Duration = Duration::from_secs(15);

/// Has a running worker do something and says what came of it.
pub(crate) fn ask(worker: &Worker, request: &Request) -> ExitCode {
    let config = match load(worker) {
        Ok(config) => config,
        Err(status) => return status,
    };
    let screen = match request {
        Request::Template { image } => Screen::waiting(format!("waiting for the template of image '{}'", image.0)),
        _ => Screen::quiet(),
    };
    let answer = answer(&config, request, &mut |line| screen.tell(line));
    drop(screen);
    match answer {
        Ok(answer) => shown(&answer.to_string()),
        Err(error) => exit::failed(&error),
    }
}

/// Has a running worker take no more builds, and may wait until it has ended.
pub(crate) fn drain(worker: &Worker, wait: bool) -> ExitCode {
    if !wait {
        return ask(worker, &Request::Drain);
    }
    let config = match load(worker) {
        Ok(config) => config,
        Err(status) => return status,
    };
    // Nobody may be there to read it, and it is waited all the same.
    let say = |answer: Answer| drop(print(answer.to_string().as_bytes()));
    let patience = patience(&config, &Request::Drain);
    match control::ask_and_outlive(&config.control.socket, &Request::Drain, patience, say) {
        Ok(()) => exit::code(exit::DONE),
        Err(error) => exit::failed(&error),
    }
}

/// Shows how a running worker is.
pub(crate) fn status(worker: &Worker, look: Look) -> ExitCode {
    let config = match load(worker) {
        Ok(config) => config,
        Err(status) => return status,
    };
    if look.watch {
        return watch::watch(&config, look.json);
    }
    match look_at(&config).and_then(|status| page(&status, look.json)) {
        Ok(page) => shown(&page),
        Err(error) => exit::failed(&error),
    }
}

fn look_at(config: &Config) -> anyhow::Result<Status> {
    match answer(config, &Request::Status, &mut |_| {})? {
        Answer::Status(status) => Ok(*status),
        _ => Err(another_version()),
    }
}

fn page(status: &Status, json: bool) -> anyhow::Result<String> {
    Ok(if json { serde_json::to_string(status)? + "\n" } else { status::page(status, Style::of_stdout()) })
}

/// Does something with a configuration and a way to ask the worker that runs with it, if one does.
pub(crate) fn with_worker(
    worker: &Worker,
    act: impl FnOnce(&Config, &dyn Fn(&Request) -> anyhow::Result<Answer>) -> ExitCode,
) -> ExitCode {
    match load(worker) {
        Ok(config) => act(&config, &|request| answer(&config, request, &mut |_| {})),
        Err(status) => status,
    }
}

/// Waits for the worker's answer, and passes on how it goes on.
fn answer(config: &Config, request: &Request, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Answer> {
    control::ask(&config.control.socket, request, patience(config, request), progress)
}

fn begin(config: &Config, request: &Request) -> Result<Conversation, control::NoConversation> {
    Conversation::begin(&config.control.socket, request, patience(config, request))
}

fn patience(config: &Config, request: &Request) -> Duration {
    daemon::answer_within(config, request) + SLACK
}

fn another_version() -> anyhow::Error {
    anyhow::anyhow!("the worker answered something else; is it of another version?")
}

fn load(worker: &Worker) -> Result<Config, ExitCode> {
    // What it names is not opened: who may ask may not be allowed to read the password.
    Config::load(worker.config.as_deref(), &Overrides::default()).map_err(|problems| {
        eprintln!("kvm-worker: {problems}");
        exit::code(exit::UNUSABLE)
    })
}

/// Shows a text; whoever reads it may have read enough.
pub(crate) fn shown(text: &str) -> ExitCode {
    match print(text.as_bytes()) {
        Ok(()) => exit::code(exit::DONE),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit::code(exit::DONE),
        Err(error) => exit::failed(&anyhow::Error::new(error).context("write to standard output")),
    }
}

fn print(text: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    out.flush()
}
