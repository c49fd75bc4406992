//! `golden/pb-*.jsonl`: conversations of a 4.3.0 master with Buildbot's own worker. What the master sent must be
//! understood, and what the worker sent must come out, but for the numbers of requests and the moment of a `decref`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::super::banana::Expression;
use super::super::jelly::Jelly;
use super::super::{Connection, Event, Refusal};
use super::{expression, sent, shown, wire};
use crate::message::{Call, CommandId, Incoming, Lines, Request, SeqNumber, StartCommand, Stream, Update};
use crate::msgpack::tests::recorded_commands;
use crate::{Command, Invocation, Value};

fn recordings() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let paths = std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path());
    let is_pb = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("pb-") && name.ends_with(".jsonl")
    };
    let mut paths: Vec<_> = paths.filter(is_pb).collect();
    paths.sort();
    paths
}

/// The connections in a recording, each with its lines.
fn connections(path: &Path) -> BTreeMap<u64, Vec<Json>> {
    let mut connections: BTreeMap<u64, Vec<Json>> = BTreeMap::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let record: Json = serde_json::from_str(line).unwrap();
        if let Some(conn) = record["conn"].as_u64() {
            connections.entry(conn).or_default().push(record);
        }
    }
    connections
}

/// One recorded connection, with our worker in the place of the recorded one.
struct Replay {
    place: String,
    connection: Connection,
    chunk: usize,
    /// What we sent and the recorded worker has not sent yet.
    ahead: VecDeque<Expression>,
    /// What a number of the recorded worker's is with us.
    requests: HashMap<u64, u64>,
    /// The command that each object of the master belongs to.
    objects: HashMap<u64, CommandId>,
    next_seq: u64,
    /// The commands that requests of the master are to start.
    starts: HashMap<u64, CommandId>,
    complete: HashMap<SeqNumber, CommandId>,
    outcome: Outcome,
}

#[derive(Default)]
struct Outcome {
    events: Vec<Event>,
    compared: usize,
    /// Objects of the master whose commands are complete, and the references that were given up.
    done_with: Vec<u64>,
    given_up: Vec<u64>,
    /// Failures that are not the recorded ones: ours, and what was recorded.
    other_failures: Vec<(String, String)>,
    refused: Vec<String>,
}

fn replay(path: &Path, lines: &[Json], password: &str, chunk: usize) -> Outcome {
    let name = lines.iter().find_map(|line| {
        let message = &line["banana"];
        (message[3] == "login").then(|| message[5][1].as_str().unwrap().to_owned())
    });
    let mut replay = Replay {
        place: String::new(),
        connection: Connection::new(name.clone().unwrap_or_else(|| "w1".to_owned()), password),
        chunk,
        ahead: VecDeque::new(),
        requests: HashMap::new(),
        objects: HashMap::new(),
        next_seq: 0,
        starts: HashMap::new(),
        complete: HashMap::new(),
        outcome: Outcome::default(),
    };
    if name.is_none() {
        replay.log_in();
    }
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| !line["banana"].is_null()) {
        replay.place = format!("{}, message {}", path.display(), number + 1);
        if line["dir"] == "M->W" {
            replay.master_says(&line["banana"]);
        } else {
            replay.worker_says(&line["banana"]);
        }
    }
    assert_eq!(replay.ahead, [], "{}: sent and not recorded", replay.place);
    replay.outcome
}

impl Replay {
    /// Comes to where a recording begins that is the middle of a connection.
    fn log_in(&mut self) {
        for message in [
            json!(["pb", "none"]),
            json!(["version", 6]),
            json!(["answer", 1, ["tuple", "challenge", ["remote", 1]]]),
            json!([
                "message",
                0,
                1,
                "setBuilderList",
                1,
                [
                    "tuple",
                    [
                        "list",
                        ["tuple", ["unicode", "cap"], ["unicode", "cap"]],
                        ["tuple", ["unicode", "other builder"], ["unicode", "other_builder"]],
                        ["tuple", ["unicode", "third"], ["unicode", "third-dir"]]
                    ]
                ],
                ["dictionary"]
            ]),
        ] {
            self.connection.input(&wire(&message));
            while self.connection.next_event().is_some() {}
        }
        self.connection.reply(SeqNumber(0), &Ok(Value::Nil));
        self.connection.input(&wire(&json!(["answer", 2, ["remote", 2]])));
        assert_eq!(self.connection.next_event(), Some(Event::LoggedIn));
        self.connection.take_output();
    }

    fn master_says(&mut self, message: &Json) {
        let mut message = message.clone();
        if message[0] == "answer" || message[0] == "error" {
            let Some(ours) = self.requests.get(&message[1].as_u64().unwrap()) else {
                // The question was asked before the recording began.
                return;
            };
            message[1] = json!(ours);
        }
        if message[3] == "startCommand" {
            let args = &message[5];
            let id = CommandId(args[2][1].as_str().unwrap().to_owned());
            self.starts.insert(message[1].as_u64().unwrap(), id.clone());
            let of_args = args[4].as_array().unwrap().iter().map(|pair| &pair[1]);
            for object in [&args[1]].into_iter().chain(of_args).filter(|value| value[0] == "remote") {
                self.objects.insert(object[1].as_u64().unwrap(), id.clone());
            }
        }
        for piece in wire(&message).chunks(self.chunk) {
            self.connection.input(piece);
            while let Some(event) = self.connection.next_event() {
                self.happened(event);
            }
        }
        self.collect();
    }

    fn happened(&mut self, event: Event) {
        match &event {
            Event::Incoming(Incoming::Request { request: Request::StartCommand(start), .. }) => {
                self.outcome.refused.extend(Invocation::parse(start).err().map(|error| error.to_string()));
            }
            Event::Incoming(Incoming::Response { seq, .. }) => {
                if let Some(command) = self.complete.remove(seq) {
                    self.is_over(&command);
                }
            }
            Event::Violation(why) => panic!("{}: {why}", self.place),
            _ => {}
        }
        self.outcome.events.push(event);
    }

    fn is_over(&mut self, command: &CommandId) {
        let objects = self.objects.iter().filter(|(_, id)| *id == command).map(|(object, _)| *object);
        self.outcome.done_with.extend(objects);
    }

    /// Takes what we sent; references may be given up at any time.
    fn collect(&mut self) {
        for message in sent(&mut self.connection) {
            match shown(&message) {
                decref if decref[0] == "decref" => self.outcome.given_up.push(decref[1].as_u64().unwrap()),
                _ => self.ahead.push_back(message),
            }
        }
    }

    fn worker_says(&mut self, message: &Json) {
        match message[0].as_str() {
            Some("decref") => return,
            Some("answer") => {
                let value = Jelly::read(expression(&message[2]), &mut Vec::new()).unwrap().into_value();
                // The builders have no plain value: our connection makes the references itself.
                self.connection.reply(SeqNumber(message[1].as_u64().unwrap()), &Ok(value.unwrap_or(Value::Nil)));
            }
            Some("error") => {
                let request = message[1].as_u64().unwrap();
                self.connection.reply(SeqNumber(request), &Err(failure_state(&message[2], "value")));
                let command = self.starts[&request].clone();
                self.is_over(&command);
            }
            Some("message") if message[3] == "shutdown" => assert!(self.connection.ask_shutdown()),
            Some("message") if message[3] != "login" && message[3] != "respond" => self.call(message),
            _ => {}
        }
        self.collect();
        let ours = self.ahead.pop_front().unwrap_or_else(|| panic!("{}: {message} is not sent", self.place));
        self.compare(shown(&ours), shown(&expression(message)));
        self.outcome.compared += 1;
    }

    fn call(&mut self, message: &Json) {
        let command_id = self.objects[&message[2].as_u64().unwrap()].clone();
        self.next_seq += 1;
        let seq = SeqNumber(self.next_seq);
        let argument = &message[5][1];
        let call = match message[3].as_str().unwrap() {
            "update" => Call::Update { command_id, updates: updates(argument) },
            "complete" => {
                self.complete.insert(seq, command_id.clone());
                let failure = (argument[0] != "None").then(|| failure_state(argument, "value"));
                Call::Complete { command_id, failure }
            }
            "write" => {
                let Expression::Bytes(data) = expression(argument) else { panic!("{argument} is not bytes") };
                Call::UploadWrite { command_id, data }
            }
            "close" => Call::UploadClose { command_id },
            "unpack" => Call::DirectoryUnpack { command_id },
            "utime" => Call::UploadTimes {
                command_id,
                accessed: argument[1].as_f64().unwrap(),
                modified: argument[2].as_f64().unwrap(),
            },
            "read" => Call::Read { command_id, length: usize::try_from(argument.as_u64().unwrap()).unwrap() },
            other => panic!("{}: nobody calls {other}", self.place),
        };
        // An uploaded and a downloaded file are closed in the same way.
        let call = match call {
            Call::UploadClose { command_id } if self.is_reader(&command_id, message) => Call::ReadClose { command_id },
            other => other,
        };
        self.connection.call(seq, &call);
    }

    fn is_reader(&self, command_id: &CommandId, message: &Json) -> bool {
        let downloads = self.outcome.events.iter().any(|event| match event {
            Event::Incoming(Incoming::Request { request: Request::StartCommand(start), .. }) => {
                start.command_id == *command_id && start.name == "downloadFile"
            }
            _ => false,
        });
        downloads && message[3] == "close"
    }

    fn compare(&mut self, mut ours: Json, mut theirs: Json) {
        if theirs[0] == "message" {
            let (ours, theirs) = (ours[1].take(), theirs[1].take());
            self.requests.insert(theirs.as_u64().unwrap(), ours.as_u64().unwrap());
        }
        let failure = match theirs[0].as_str() {
            Some("error") => Some("/2"),
            Some("message") if theirs[3] == "complete" && theirs[5][1][0] != "None" => Some("/5/1"),
            _ => None,
        };
        if let Some(place) = failure {
            let take = |message: &mut Json| {
                let failure = message.pointer_mut(place).unwrap().take();
                format!("{}: {}", failure_state(&failure, "type"), failure_state(&failure, "value"))
            };
            let (ours, theirs) = (take(&mut ours), take(&mut theirs));
            if ours != theirs {
                self.outcome.other_failures.push((ours, theirs));
            }
        }
        assert_eq!(ours, theirs, "{}", self.place);
    }
}

/// What a failure says under `key`.
fn failure_state(failure: &Json, key: &str) -> String {
    assert_eq!(failure[0], "twisted.spread.pb.CopyableFailure");
    let pairs = failure[1].as_array().unwrap().iter().skip(1);
    let value = &pairs.clone().find(|pair| pair[0][1] == key).unwrap()[1];
    value.as_str().or(value[1].as_str()).unwrap().to_owned()
}

fn updates(argument: &Json) -> Vec<Update> {
    argument.as_array().unwrap().iter().skip(1).map(|element| update(&element[1][1])).collect()
}

fn update(pair: &Json) -> Update {
    let text = |json: &Json| match expression(&json[1]) {
        Expression::Bytes(text) => String::from_utf8(text).unwrap(),
        other => panic!("{other:?} is not text"),
    };
    let lines = |json: &Json| Lines { text: text(json), newlines: Vec::new(), times: Vec::new() };
    let items = |json: &Json| json.as_array().unwrap()[1..].to_vec();
    let value = &pair[1];
    match pair[0][1].as_str().unwrap() {
        "header" => Update::Text(Stream::Header, lines(value)),
        "stdout" => Update::Text(Stream::Stdout, lines(value)),
        "stderr" => Update::Text(Stream::Stderr, lines(value)),
        "log" => Update::Text(Stream::Log(text(&value[1])), lines(&value[2])),
        "rc" => Update::Rc(i32::try_from(value.as_i64().unwrap()).unwrap()),
        "elapsed" => Update::Elapsed(value.as_f64().unwrap()),
        "failure_reason" => Update::FailureReason(text(value)),
        "files" => Update::Files(items(value).iter().map(text).collect()),
        "stat" => Update::Stat(
            items(value).iter().map(|number| number.as_i64().unwrap()).collect::<Vec<_>>().try_into().unwrap(),
        ),
        other => panic!("nobody updates {other}"),
    }
}

/// The outcomes of all recorded connections.
fn all(chunk: usize) -> Vec<(String, Outcome)> {
    let mut outcomes = Vec::new();
    for path in recordings() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let password = if name == "pb-wrong-password" { "bad" } else { "pw" };
        for lines in connections(&path).values() {
            outcomes.push((name.clone(), replay(&path, lines, password, chunk)));
        }
    }
    outcomes
}

#[test]
fn every_recorded_conversation_is_spoken_as_recorded() {
    let outcomes = all(4096);
    let compared: usize = outcomes.iter().map(|(_, outcome)| outcome.compared).sum();
    assert!(compared > 600, "only {compared} messages");

    let mut refused: Vec<_> = outcomes.iter().flat_map(|(_, outcome)| outcome.refused.clone()).collect();
    refused.sort();
    // It was sent to see it refused.
    assert_eq!(refused, ["WorkerShellCommand is missing args: command"]);
    let mut failures: Vec<_> = outcomes.iter().flat_map(|(_, outcome)| &outcome.other_failures).collect();
    failures.sort();
    // Python's classes are not for us to have. A block of 1,000,000 bytes is none of our failures any more.
    let pair = |ours: &str, recorded: &str| (ours.to_owned(), recorded.to_owned());
    assert_eq!(
        failures,
        [
            &pair(
                "builtins.RuntimeError: [Errno 2] No such file or directory: '/proc/nope'",
                "builtins.FileNotFoundError: [Errno 2] No such file or directory: '/proc/nope'",
            ),
            &pair(
                "builtins.RuntimeError: byte string is too long to send (1000000)",
                "twisted.spread.banana.BananaError: byte string is too long to send (1000000)",
            ),
            &pair(
                "builtins.ValueError: an argument is not UTF-8 text",
                "builtins.UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 1: invalid start byte",
            ),
        ]
    );
}

#[test]
fn every_reference_is_given_up_once_its_command_is_complete() {
    for (name, mut outcome) in all(4096) {
        let logged_in_here = outcome.events.contains(&Event::LoggedIn);
        let refused_here = outcome.events.iter().any(|event| matches!(event, Event::LoginRefused { .. }));
        if logged_in_here || refused_here {
            // The challenger of the login.
            outcome.done_with.push(1);
        }
        outcome.done_with.sort();
        outcome.given_up.sort();
        assert_eq!(outcome.given_up, outcome.done_with, "{name}");
    }
}

#[test]
fn it_does_not_matter_how_the_bytes_are_split() {
    let outcome = |chunk| {
        let outcomes = all(chunk).into_iter();
        outcomes.map(|(name, outcome)| (name, outcome.events, outcome.given_up)).collect::<Vec<_>>()
    };
    assert_eq!(outcome(1), outcome(1000));
}

#[test]
fn calls_are_served_while_the_login_is_pending() {
    let (_, outcome) = all(4096).into_iter().find(|(name, _)| name == "pb-connect").unwrap();
    let request = |seq, request| Event::Incoming(Incoming::Request { seq: SeqNumber(seq), request });
    let attached = || Request::Print { message: "attached".to_owned() };
    let builder = |name: &str, directory: &str| (name.to_owned(), directory.to_owned());
    assert_eq!(
        outcome.events,
        [
            request(1, attached()),
            request(2, Request::WorkerInfo),
            request(3, Request::BuilderList(vec![builder("cap", "cap"), builder("other builder", "other_builder")])),
            request(4, attached()),
            request(5, attached()),
            Event::LoggedIn,
        ]
    );
}

#[test]
fn a_refused_login_says_why() {
    let outcomes = all(4096);
    let refusals = |wanted: &str| -> Vec<_> {
        let events = outcomes.iter().filter(|(name, _)| name == wanted).flat_map(|(_, outcome)| &outcome.events);
        events.filter(|event| matches!(event, Event::LoginRefused { .. })).cloned().collect()
    };
    let refused = |refusal, message: &str| vec![Event::LoginRefused { refusal, message: message.to_owned() }];
    let unauthorized = || refused(Refusal::Unauthorized, "twisted.cred.error.UnauthorizedLogin");
    assert_eq!(refusals("pb-wrong-password"), unauthorized());
    assert_eq!(refusals("pb-unknown-worker"), unauthorized());
    assert_eq!(refusals("pb-duplicate"), refused(Refusal::Duplicate, "rejecting duplicate worker"));
}

/// What the master wants in a scenario: in any order, every path in its plainest form.
fn wanted(starts: &[StartCommand]) -> Vec<String> {
    let mut wanted = Vec::new();
    for mut invocation in starts.iter().filter_map(|start| Invocation::parse(start).ok()) {
        invocation.command.map_paths(|path| {
            let absolute = Path::new("/srv/worker/cap").join(path);
            // Some workers were recorded in a directory of their own.
            match absolute.strip_prefix("/srv") {
                Ok(below) => Path::new("/srv/worker").join(below.components().skip(1).collect::<PathBuf>()),
                Err(_) => absolute,
            }
        });
        if let Command::Shell(shell) = &mut invocation.command {
            shell.env.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        wanted.push(format!("{invocation:?}"));
    }
    wanted.sort();
    wanted
}

#[test]
fn both_protocols_ask_for_the_same() {
    let mut compared = 0;
    for (name, outcome) in all(4096) {
        let scenario = name.strip_prefix("pb-").unwrap();
        // Its command is another one over each protocol.
        if scenario == "lost-mid-command" {
            continue;
        }
        let starts = outcome.events.into_iter().filter_map(|event| match event {
            Event::Incoming(Incoming::Request { request: Request::StartCommand(start), .. }) => Some(start),
            _ => None,
        });
        let over_pb = wanted(&starts.collect::<Vec<_>>());
        compared += over_pb.len();
        assert_eq!(over_pb, wanted(&recorded_commands(&format!("msgpack-{scenario}.jsonl"))), "{scenario}");
    }
    assert!(compared > 60, "only {compared} commands");
}
