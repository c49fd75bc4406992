//! What Buildbot 4.3.0's worker said, and what this one says to the same commands: the recorded conversations are played
//! again with real programs, on this host and in a guest.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::{Command, CommandId, Invocation, Settings, StartCommand};
use serde_json::Value as Json;

use crate::commands::fake_master::{lines, value};
use crate::commands::scenery::{Scenery, Where};
use crate::commands::{Context, Interrupt, Interrupter, run};
use crate::master::MasterLink;
use crate::output::Reporter;

/// What a worker said of one command: the whole text of each stream of output, and everything else in order. How output
/// and the rest are interleaved is up to the kernel and the clock.
#[derive(Debug, Default, PartialEq)]
struct Said {
    output: BTreeMap<String, String>,
    other: Vec<String>,
}

impl Said {
    fn add(&mut self, line: String) {
        let (kind, text) = line.split_once(' ').unwrap_or((&line, ""));
        match kind {
            "rc" | "failure_reason" | "elapsed" | "complete" => self.other.push(line),
            "header" => match self.other.last_mut() {
                Some(last) if last.starts_with("header ") => last.push_str(text),
                _ => self.other.push(line),
            },
            _ => self.output.entry(kind.to_owned()).or_default().push_str(text),
        }
    }

    /// With another text on a stream.
    fn with(mut self, stream: &str, change: fn(&str) -> &str) -> Self {
        self.output.entry(stream.to_owned()).and_modify(|text| *text = change(text).to_owned());
        self
    }

    /// Without a stream whose text depends on more than the program.
    fn without(mut self, stream: &str) -> Self {
        self.output.remove(stream);
        self
    }
}

/// One recorded command.
struct Recorded {
    id: String,
    args: Json,
    interrupted: bool,
    said: Said,
}

fn recorded(scenario: &str) -> Vec<Recorded> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../protocol/golden");
    let text = std::fs::read_to_string(golden.join(format!("msgpack-shell-{scenario}.jsonl"))).expect("the recording");
    let mut commands: Vec<Recorded> = Vec::new();
    for line in text.lines() {
        let line: Json = serde_json::from_str(line).expect("JSON");
        let message = &line["msg"];
        let id = message["command_id"].as_str().unwrap_or_default();
        let command = commands.iter_mut().find(|command| command.id == id);
        match (message["op"].as_str(), command) {
            (Some("start_command"), None) if message["command_name"] == "shell" => commands.push(Recorded {
                id: id.to_owned(),
                args: message["args"].clone(),
                interrupted: false,
                said: Said::default(),
            }),
            (Some("interrupt_command"), Some(command)) => command.interrupted = true,
            (Some("update"), Some(command)) => {
                let updates = message["args"].as_array().expect("a list");
                updates.iter().for_each(|update| command.said.add(update_line(update)));
            }
            (Some("complete"), Some(command)) => command.said.add(match message["args"].as_str() {
                None => "complete None".to_owned(),
                Some(_) => "complete Some".to_owned(),
            }),
            _ => {}
        }
    }
    assert!(!commands.is_empty(), "nothing was recorded");
    commands
}

fn update_line(update: &Json) -> String {
    let (key, value) = (update[0].as_str().expect("a key"), &update[1]);
    match key {
        "elapsed" => "elapsed".to_owned(),
        "rc" => format!("rc {value}"),
        "failure_reason" => format!("failure_reason {}", value.as_str().expect("text")),
        "log" => format!("{} {}", value[0].as_str().expect("a name"), value[1][0].as_str().expect("text")),
        _ => format!("{key} {}", value[0].as_str().expect("text")),
    }
}

/// What differs between the recording's machine and this one.
struct Here {
    root: tempfile::TempDir,
    python: String,
}

impl Here {
    async fn new() -> Self {
        let command = process::Command::new("python3").args(["-c", "import sys; sys.stdout.write(sys.executable)"]);
        let limits = process::Limits { deadline: Duration::from_secs(60), max_bytes: 4096 };
        let output = command.inherit_env(["PATH", "HOME"]).output(&limits).await.expect("python3 runs");
        let python = String::from_utf8(output.into_success().expect("python3 runs")).expect("a path");
        Here { root: tempfile::tempdir().expect("a directory"), python }
    }

    fn path(&self) -> PathBuf {
        self.root.path().join("worker")
    }

    fn localised(&self, text: &str) -> String {
        text.replace("/srv/worker", &self.path().display().to_string()).replace("/usr/bin/python", &self.python)
    }

    fn generalised(&self, text: &str) -> String {
        text.replace(&self.path().display().to_string(), "/srv/worker").replace(&self.python, "/usr/bin/python")
    }
}

/// The environment of the recording's worker: what the header shows, but for what the step added.
fn environment(command: &Recorded) -> Vec<(OsString, OsString)> {
    let shown = command.said.other[0].split(" environment:\n").nth(1).unwrap_or_default();
    let shown = shown.lines().filter_map(|line| line.strip_prefix("  ")?.split_once('='));
    let mut environment: BTreeMap<String, String> = BTreeMap::from([("HOME".to_owned(), "/root".to_owned())]);
    environment.insert("PATH".to_owned(), std::env::var("PATH").expect("a PATH"));
    environment.extend(shown.map(|(name, value)| (name.to_owned(), value.to_owned())));
    environment.retain(|name, _| command.args["env"].get(name).is_none());
    environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

async fn play(at: Where, command: &Recorded, here: &Here) -> Said {
    let args: Json = serde_json::from_str(&here.localised(&command.args.to_string())).expect("JSON");
    let start = StartCommand {
        command_id: CommandId(command.id.clone()),
        builder: Some("cap".to_owned()),
        name: "shell".to_owned(),
        args: value(&args),
    };
    let command_of = |start| -> Command { Invocation::parse(start).expect("its arguments are fine").command };
    let (link, mut calls) = MasterLink::new();
    let (interrupter, interrupt) = Interrupt::new();
    let context = Context {
        command_id: start.command_id.clone(),
        link: link.clone(),
        basedir: here.path(),
        builder_dir: here.path(),
        interrupt,
    };
    // Output is to be seen at once, to interrupt at the right moment.
    let settings = Settings { buffer_timeout: Duration::ZERO, ..Settings::default() };
    let reporter = Reporter::new(context.command_id.clone(), link, &settings);
    let scenery = Scenery::build(at, environment(command), &here.path()).await;
    let running = tokio::spawn(run(context, command_of(&start), Arc::clone(&scenery.place), reporter));
    let mut said = Said::default();
    while let Some(outgoing) = calls.recv().await {
        for line in lines(&outgoing.call, Path::new("/nowhere")) {
            interrupt_at_output(command, &interrupter, &line);
            said.add(here.generalised(&line));
        }
    }
    running.await.expect("it does not panic");
    scenery.strike().await;
    said
}

fn interrupt_at_output(command: &Recorded, interrupter: &Interrupter, line: &str) {
    if command.interrupted && line.starts_with("stdout start") {
        interrupter.interrupt("rig interrupt");
    }
}

fn comparable(said: Said) -> Said {
    let without_numbers = |text: String| {
        let Some((before, after)) = text.split_once("elapsedTime=") else { return text };
        let rest = after.trim_start_matches(|c: char| c == 'T' || c == '.' || c.is_ascii_digit());
        format!("{before}elapsedTime=T{rest}")
    };
    let other = said.other.into_iter().map(without_numbers);
    let other = other.map(|line| if line.starts_with("complete Some") { "complete Some".to_owned() } else { line });
    Said { output: said.output, other: other.collect() }
}

async fn check(at: Where, scenario: &str, adapt: impl Fn(Said) -> Said) {
    let here = Here::new().await;
    for command in recorded(scenario) {
        let said = adapt(comparable(play(at, &command, &here).await));
        assert_eq!(said, adapt(comparable(command.said)), "command {} of {scenario}", command.id);
    }
}

macro_rules! replay {
    ($($name:ident: $scenario:literal, $adapt:expr;)*) => {$(
        mod $name {
            use super::*;

            #[tokio::test]
            async fn host() {
                check(Where::Host, $scenario, $adapt).await;
            }

            #[tokio::test]
            async fn guest() {
                check(Where::Guest, $scenario, $adapt).await;
            }
        }
    )*};
}

replay! {
    basic: "basic", |said| said;
    defaults: "defaults", |said| said;
    environment_in_the_header: "logenviron", |said| said;
    standard_input: "stdin", |said| said;
    standard_input_instead_of_a_terminal: "pty-stdin", |said| said;
    terminal: "pty", |said| said.with("stdout", |text| text.trim_start_matches("/dev/pts/").trim_start_matches(char::is_numeric));
    lines_of_all_kinds: "lines", |said| said;
    unwanted_output: "nostdout", |said| said;
    secrets: "obfuscated", |said| said;
    log_files: "logfiles", |said| said;
    too_many_lines: "maxlines", |said| said;
    silence: "timeout", |said| said;
    // Whether the shell complains of its killed `sleep` is a matter of luck.
    sigterm_first: "sigterm", |said| said.without("stderr");
    death_by_signal: "signal", |said| said;
    interrupt: "interrupt", |said| said;
    // Buildbot's worker stops listening once it has sent the signal.
    interrupt_by_a_milder_signal: "interrupt-int", |said| said.with("stdout", |text| text.trim_end_matches("got int\n"));
    escaped_grandchild: "stubborn", |said| said;
    output_held_by_a_grandchild: "fdheld", |said| said;
    // Python's traceback is not for us to say.
    no_such_program: "noexec", |said| said.without("stderr");
    unusable_environment: "badenv", |said| said;
}
