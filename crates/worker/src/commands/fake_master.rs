//! A master for the tests of commands: it answers, and writes down what it is told.

use std::path::{Path, PathBuf};

use protocol::{Call, CommandId, Settings, Stream, Update, Value};
use serde_json::Value as Json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::scenery::{Scenery, Tools, Where};
use super::{Context, Failure, Interrupt, Interrupter, conclude};
use crate::master::{MasterLink, Outgoing};
use crate::output::Reporter;
use crate::place::Place;

/// What the master does when it is told something.
pub(super) enum Reply {
    /// It answers, if it is asked.
    Answer(Value),
    /// It raises an exception.
    Refuse(&'static str),
    /// It does not answer, and interrupts the command.
    Interrupt,
    /// It goes away.
    HangUp,
}

impl Reply {
    pub(super) fn nil() -> Self {
        Reply::Answer(Value::Nil)
    }

    pub(super) fn bytes(data: &[u8]) -> Self {
        Reply::Answer(Value::Bytes(data.to_vec()))
    }
}

/// A worker with a directory of its own, and the place where its commands run.
pub(super) struct Stage {
    pub root: tempfile::TempDir,
    pub environment: Vec<(&'static str, String)>,
    at: Where,
    _tools: Tools,
}

impl Stage {
    pub(super) fn new(at: Where) -> Self {
        let (root, tools) = (tempfile::tempdir().expect("a directory"), Tools::of(at));
        Stage { root, environment: vec![("PATH", tools.path.clone())], at, _tools: tools }
    }

    /// A stage with these files.
    pub(super) fn with(at: Where, files: &[(&str, &str)]) -> Self {
        let stage = Stage::new(at);
        for (name, content) in files {
            let path = stage.path(name);
            std::fs::create_dir_all(path.parent().expect("it has one")).expect("directories");
            std::fs::write(path, content).expect("a file");
        }
        stage
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(super) fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path(name)).ok()
    }

    /// The names in the directory, sorted.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.path()).expect("names");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("a name").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }

    /// What a command here knows; nothing interrupts it.
    pub(super) fn context(&self, link: MasterLink) -> Context {
        let (_, interrupt) = Interrupt::new();
        self.context_of(link, interrupt)
    }

    fn context_of(&self, link: MasterLink, interrupt: Interrupt) -> Context {
        let root = self.root.path().to_owned();
        Context { command_id: CommandId("7".to_owned()), link, basedir: root.clone(), builder_dir: root, interrupt }
    }

    /// Runs a command to its completion, and all that it left to the blocking threads. Returns a line for each thing
    /// the master is told; the stage's directory is `ROOT` in them, and times are left out.
    ///
    /// The builder's directory is `ROOT`, and so are the worker's and the user's home.
    pub(super) fn play<C>(&self, reply: impl FnMut(&Call) -> Reply + Send + 'static, command: C) -> Vec<String>
    where
        C: AsyncFnOnce(&Context, &dyn Place, &Reporter) -> Result<(), Failure>,
    {
        let root = self.root.path().to_owned();
        let environment: Vec<_> =
            self.environment.iter().map(|(name, value)| (name.into(), value.clone().into())).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let scenery = Scenery::build(self.at, environment, &root).await;
            let (link, calls) = MasterLink::new();
            let (interrupter, interrupt) = Interrupt::new();
            let master = tokio::spawn(listen(calls, reply, interrupter));
            let context = self.context_of(link.clone(), interrupt);
            let reporter = Reporter::new(context.command_id.clone(), link, &Settings::default());
            let outcome = command(&context, &*scenery.place, &reporter).await;
            conclude(&context, reporter, Instant::now(), Some(outcome)).await;
            drop(context);
            scenery.strike().await;
            let calls = master.await.expect("the master ends with the line");
            calls.iter().flat_map(|call| lines(call, &root)).collect()
        })
    }
}

/// Plays the master until the line is gone; returns what it was told.
pub(super) async fn listen(
    mut calls: mpsc::Receiver<Outgoing>,
    mut reply: impl FnMut(&Call) -> Reply,
    interrupter: Interrupter,
) -> Vec<Call> {
    let mut told = Vec::new();
    let mut unanswered = Vec::new();
    while let Some(outgoing) = calls.recv().await {
        let reply = reply(&outgoing.call);
        told.push(outgoing.call);
        match (reply, outgoing.answer) {
            (Reply::HangUp, _) => break,
            (Reply::Interrupt, answer) => {
                interrupter.interrupt("enough");
                unanswered.extend(answer);
            }
            // Nobody waits for an answer that can't be given any more.
            (Reply::Answer(value), Some(answer)) => drop(answer.send(Ok(value))),
            (Reply::Refuse(why), Some(answer)) => drop(answer.send(Err(why.to_owned()))),
            (Reply::Answer(_) | Reply::Refuse(_), None) => {}
        }
    }
    told
}

pub(super) fn lines(call: &Call, root: &Path) -> Vec<String> {
    let root = root.display().to_string();
    let line = match call {
        Call::Update { updates, .. } => {
            return updates.iter().map(|update| update_line(update).replace(&root, "ROOT")).collect();
        }
        Call::Complete { failure, .. } => format!("complete {failure:?}"),
        Call::UploadWrite { data, .. } => format!("write {}", String::from_utf8_lossy(data)),
        Call::UploadClose { .. } => "close".to_owned(),
        Call::UploadTimes { accessed, modified, .. } => format!("utime {accessed} {modified}"),
        Call::DirectoryWrite { .. } => "write archive".to_owned(),
        Call::DirectoryUnpack { .. } => "unpack".to_owned(),
        Call::Read { length, .. } => format!("read {length}"),
        Call::ReadClose { .. } => "close".to_owned(),
    };
    vec![line.replace(&root, "ROOT")]
}

fn update_line(update: &Update) -> String {
    match update {
        Update::Text(stream, lines) => {
            let stream = match stream {
                Stream::Header => "header",
                Stream::Log(name) => name,
                Stream::Stderr => "stderr",
                Stream::Stdout => "stdout",
            };
            format!("{stream} {}", without_time(&lines.text))
        }
        Update::Rc(rc) => format!("rc {rc}"),
        Update::Elapsed(_) => "elapsed".to_owned(),
        Update::FailureReason(reason) => format!("failure_reason {reason}"),
        Update::Files(files) => format!("files {files:?}"),
        Update::Stat(stat) => format!("stat {:o} {}", stat[0], stat[6]),
        Update::Other(key, value) => format!("{key} {value:?}"),
    }
}

/// The line `elapsedTime=…` without what follows.
fn without_time(text: &str) -> String {
    let line = |line: &str| match line.split_once("elapsedTime=") {
        Some((before, _)) => format!("{before}elapsedTime=T\n"),
        None => line.to_owned(),
    };
    text.split_inclusive('\n').map(line).collect()
}

/// A value of a recording.
pub(super) fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(truth) => Value::Bool(*truth),
        Json::Number(number) => {
            number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap_or(0.0)), Value::Int)
        }
        Json::String(text) => Value::Str(text.clone()),
        Json::Array(items) => Value::List(items.iter().map(value).collect()),
        Json::Object(pairs) => Value::Map(pairs.iter().map(|(key, item)| (key.clone(), value(item))).collect()),
    }
}
