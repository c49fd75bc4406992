//! What Buildbot 4.3.0's worker said to commands on files, and what this one says: whole recorded conversations, their
//! shell commands included, are played again on this host and in a guest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::{Call, CommandId, Invocation, Settings, StartCommand, Value};
use serde_json::Value as Json;

use super::fake_master::{lines, value};
use super::scenery::{Scenery, Where};
use super::{Context, Interrupt, run};
use crate::master::MasterLink;
use crate::output::Reporter;
use crate::place::Place;

/// One recorded command, and what the worker said of it.
struct Recorded {
    id: String,
    name: String,
    args: Json,
    said: Vec<String>,
}

fn recorded(scenario: &str) -> Vec<Recorded> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../protocol/golden");
    let text = std::fs::read_to_string(golden.join(format!("msgpack-{scenario}.jsonl"))).expect("the recording");
    let mut commands: Vec<Recorded> = Vec::new();
    for line in text.lines() {
        let line: Json = serde_json::from_str(line).expect("JSON");
        let message = &line["msg"];
        let id = message["command_id"].as_str().unwrap_or_default();
        match (message["op"].as_str(), commands.iter_mut().find(|command| command.id == id)) {
            (Some("start_command"), None) => commands.push(Recorded {
                id: id.to_owned(),
                name: message["command_name"].as_str().expect("a name").to_owned(),
                args: message["args"].clone(),
                said: Vec::new(),
            }),
            (Some(op), Some(command)) if line["dir"] == "W->M" => command.said.extend(said(op, message)),
            _ => {}
        }
    }
    commands
}

/// A message of the worker in the words of [`lines`].
fn said(op: &str, message: &Json) -> Vec<String> {
    let args = &message["args"];
    let one = |line: String| vec![line];
    match op {
        "update" => args.as_array().expect("a list").iter().map(update).collect(),
        "complete" => one(format!("complete {}", if args.is_null() { "None" } else { "Some" })),
        "update_upload_file_write" => {
            // Of long blocks only the length was recorded.
            one(format!("write {}", args["$bytes_len"]))
        }
        "update_upload_file_close" | "update_read_file_close" => one("close".to_owned()),
        "update_upload_file_utime" => one("utime".to_owned()),
        "update_upload_directory_write" => one("write archive".to_owned()),
        "update_upload_directory_unpack" => one("unpack".to_owned()),
        "update_read_file" => one(format!("read {}", message["length"])),
        _ => Vec::new(),
    }
}

fn update(update: &Json) -> String {
    let (key, value) = (update[0].as_str().expect("a key"), &update[1]);
    match key {
        "elapsed" => "elapsed".to_owned(),
        "rc" => format!("rc {value}"),
        "failure_reason" => format!("failure_reason {}", value.as_str().expect("text")),
        "files" => {
            let files: Vec<String> = serde_json::from_value(value.clone()).expect("names");
            format!("files {files:?}")
        }
        "stat" => format!("stat {:o} {}", value[0].as_u64().expect("a mode"), value[6]),
        _ => format!("{key} {}", value[0].as_str().expect("text")),
    }
}

/// Without what depends on the clock, the order in a directory or the size of a block, with text that was split put
/// together again, and with a word for each of the sentences that only this worker says.
fn comparable(said: Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for line in said {
        let line = match line.split_once(' ') {
            Some(("files", names)) => {
                let mut names: Vec<String> = serde_json::from_str(names).expect("names");
                names.sort();
                format!("files {names:?}")
            }
            Some(("utime", _)) => "utime".to_owned(),
            Some(("complete", outcome)) => format!("complete {}", &outcome[..4]),
            Some(("stderr", text)) if text.contains("the master answered with nil") => NIL.to_owned(),
            Some(("header", text)) => {
                let lines = text.split_inclusive('\n').filter(|line| !line.starts_with("elapsedTime="));
                let short = lines.map(|line| if line.starts_with("WARNING: ") { "WARNING\n" } else { line });
                format!("header {}", short.collect::<String>())
            }
            _ => line,
        };
        let written = |line: &str| line.strip_prefix("write ").and_then(|bytes| bytes.parse::<u64>().ok());
        if let (Some(more), Some(last)) = (written(&line), out.last_mut())
            && let Some(bytes) = written(last)
        {
            *last = format!("write {}", bytes + more);
            continue;
        }
        let kind = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        match out.last_mut() {
            Some(last) if line == "write archive" && *last == line => {}
            Some(last)
                if ["header", "stdout", "stderr"].contains(&kind(&line).as_str()) && kind(last) == kind(&line) =>
            {
                last.push_str(line.split_once(' ').map_or("", |(_, text)| text));
            }
            _ => out.push(line),
        }
    }
    out.retain(|line| line != "header ");
    out
}

/// Runs one command in `worker`, with a master that answers as a 4.3.0 master does over MessagePack.
async fn play(command: &Recorded, worker: &Path, place: &Arc<dyn Place>) -> Vec<String> {
    let here = worker.display().to_string();
    let args: Json = serde_json::from_str(&command.args.to_string().replace("/srv/worker", &here)).expect("JSON");
    let start = StartCommand {
        command_id: CommandId(command.id.clone()),
        builder: Some("cap".to_owned()),
        name: command.name.clone(),
        args: value(&args),
    };
    let (link, mut calls) = MasterLink::new();
    let (_interrupter, interrupt) = Interrupt::new();
    let basedir: PathBuf = worker.to_owned();
    let context = Context {
        command_id: start.command_id.clone(),
        link: link.clone(),
        basedir: basedir.clone(),
        builder_dir: basedir.clone(),
        interrupt,
    };
    let reporter = Reporter::new(context.command_id.clone(), link, &Settings::default());
    let command = Invocation::parse(&start).expect("its arguments are fine").command;
    let running = tokio::spawn(run(context, command, Arc::clone(place), reporter));
    let mut said = Vec::new();
    while let Some(outgoing) = calls.recv().await {
        let told = match &outgoing.call {
            Call::UploadWrite { data, .. } => vec![format!("write {}", data.len())],
            call => lines(call, Path::new("/nowhere")),
        };
        said.extend(told.into_iter().map(|line| line.replace(&here, "/srv/worker")));
        if let Some(answer) = outgoing.answer {
            let refused = matches!(outgoing.call, Call::UploadTimes { .. });
            let _ = answer.send(if refused { Err("a bug of 4.3.0".to_owned()) } else { Ok(Value::Nil) });
        }
    }
    running.await.expect("it does not panic");
    said
}

/// The same with the lines of each output in order: GNU's cp tells of a directory's files by their inodes, which are as it happens.
fn in_order(said: Vec<String>) -> Vec<String> {
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.split_inclusive('\n').collect();
        lines.sort_unstable();
        format!("stdout {}", lines.concat())
    };
    said.into_iter().map(|line| line.strip_prefix("stdout ").map(sorted).unwrap_or(line)).collect()
}

/// Plays a conversation and compares what is said of each command that is not a shell command. `meant` changes what
/// Buildbot's worker said into what we mean to say; the manual has the reasons.
async fn check(at: Where, scenario: &str, meant: impl Fn(&str, Vec<String>) -> Vec<String>) {
    let root = tempfile::tempdir().expect("a directory");
    let environment = vec![("PATH".into(), std::env::var_os("PATH").expect("a PATH"))];
    let scenery = Scenery::build(at, environment, &root.path().join("worker")).await;
    let worker = root.path().join("worker");
    std::fs::create_dir_all(worker.join("cap/build")).expect("a directory");
    let mut compared = 0;
    for command in recorded(scenario) {
        let ours = play(&command, &worker, &scenery.place).await;
        if command.name != "shell" {
            let theirs = meant(&command.name, comparable(command.said));
            assert_eq!(in_order(comparable(ours)), in_order(theirs), "{} {} of {scenario}", command.name, command.id);
            compared += 1;
        }
    }
    scenery.strike().await;
    assert!(compared > 0, "nothing was compared in {scenario}");
}

/// What stands for the sentence about a master that answers a read with nothing.
const NIL: &str = "stderr NIL";

/// The answer with nothing is an error here, and not an empty file.
fn refused(_: &str, said: Vec<String>) -> Vec<String> {
    let (mut out, read) = (Vec::new(), said.iter().any(|line| line.starts_with("read ")));
    for line in said {
        let over = read && line == "elapsed";
        out.push(if read && line == "rc 0" { "rc 1".to_owned() } else { line });
        out.extend(over.then(|| NIL.to_owned()));
    }
    out
}

macro_rules! replay {
    ($($name:ident: $scenario:literal, $meant:expr;)*) => {$(
        mod $name {
            use super::*;

            #[tokio::test]
            async fn host() {
                check(Where::Host, $scenario, $meant).await;
            }

            #[tokio::test]
            async fn guest() {
                check(Where::Guest, $scenario, $meant).await;
            }
        }
    )*};
}

replay! {
    mkdir: "mkdir", |_, said| said;
    rmdir: "rmdir", |_, said| said;
    cpdir: "cpdir", |_, said| said;
    stat: "stat", |_, said| said;
    glob: "glob", |_, said| said;
    // The recording's directory had more in it.
    listdir: "listdir", |_, said| said.into_iter().map(|line| line.replace(r#", "d1", "file1", "sub""#, "")).collect();
    rmfile: "rmfile", |_, said| said;
    upload: "upload", |_, said| said;
    upload_of_what_is_missing: "upload-missing", |_, said| said;
    upload_in_large_blocks: "upload-blocksize-1MB", |_, said| said;
    // The times are a warning, and not an exception.
    upload_that_keeps_its_times: "upload-keepstamp", |_, said| {
        let said = said.into_iter().map(|line| line.replace("ks.txt\n", "ks.txt\nWARNING\n"));
        said.map(|line| line.replace("complete Some", "complete None")).collect()
    };
    upload_of_a_directory: "upload-dir", |_, said| said;
    download: "download", refused;
    download_that_is_too_large: "download-maxsize", refused;
    // A directory that can't be made is the step's failure, and not an exception.
    download_to_where_nothing_can_be_written: "download-unwritable", |_, said| {
        let failure = ["close", "rc 1", "elapsed", "stderr Cannot open file '/proc/nope/x' for download\n", "complete None"];
        if said.contains(&"complete Some".to_owned()) { failure.map(str::to_owned).to_vec() } else { said }
    };
}
