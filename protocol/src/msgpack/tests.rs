//! Every message of the recorded conversations, through the codec.
//!
//! `golden/` holds conversations of a 4.3.0 master with Buildbot's own worker: what the master sent must decode, and
//! what the worker sent must come out of our encoder.

use std::path::Path;

use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;
use crate::command::Command;
use crate::{ArgumentError, Invocation};

/// All messages that went in one direction, with the file and line they stand in.
fn recorded(direction: &str) -> Vec<(String, Json)> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut messages = Vec::new();
    for path in std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path()) {
        if path.extension().is_none_or(|extension| extension != "jsonl") {
            continue;
        }
        for (number, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
            let record: Json = serde_json::from_str(line).unwrap();
            if record["dir"] == direction && record["msg"].is_object() && record["msg"].get("op").is_some() {
                messages.push((format!("{}:{}", path.display(), number + 1), record["msg"].clone()));
            }
        }
    }
    messages.sort_by(|a, b| a.0.cmp(&b.0));
    messages
}

/// The commands of builds that a recording starts.
pub(crate) fn recorded_commands(file: &str) -> Vec<StartCommand> {
    let is_there = |place: &str| place.contains(&format!("/{file}:"));
    let messages = recorded("M->W").into_iter().filter(|(place, _)| is_there(place));
    let starts = messages.filter_map(|(_, json)| match decode(&wire(&json)) {
        Ok(Incoming::Request { request: Request::StartCommand(start), .. }) => Some(start),
        _ => None,
    });
    starts.filter(|start| start.builder.is_some()).collect()
}

fn raw(json: &Json) -> Raw {
    match json {
        Json::Object(map) if map.contains_key("$bytes_len") => Raw::Binary(bytes(json)),
        Json::Object(map) => Raw::Map(map.iter().map(|(k, v)| (k.as_str().into(), raw(v))).collect()),
        Json::Array(items) => Raw::Array(items.iter().map(raw).collect()),
        Json::Number(number) => match number.as_i64() {
            Some(number) => number.into(),
            None => number.as_f64().unwrap().into(),
        },
        Json::String(text) => text.as_str().into(),
        Json::Bool(truth) => (*truth).into(),
        Json::Null => Raw::Nil,
    }
}

fn bytes(json: &Json) -> Vec<u8> {
    json["$latin1"].as_str().unwrap().chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

fn wire(json: &Json) -> Vec<u8> {
    let mut out = Vec::new();
    rmpv::encode::write_value(&mut out, &raw(json)).unwrap();
    out
}

/// Key order is free in a map.
fn sorted(value: Raw) -> Raw {
    match value {
        Raw::Map(pairs) => {
            let mut pairs: Vec<_> = pairs.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            pairs.sort_by_key(|(k, _)| k.as_str().map(str::to_owned));
            Raw::Map(pairs)
        }
        Raw::Array(items) => Raw::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

fn call(json: &Json) -> Call {
    let command_id = CommandId(json["command_id"].as_str().unwrap().to_owned());
    let data = || bytes(&json["args"]);
    match json["op"].as_str().unwrap() {
        "update" => Call::Update { command_id, updates: json["args"].as_array().unwrap().iter().map(update).collect() },
        "complete" => Call::Complete { command_id, failure: json["args"].as_str().map(str::to_owned) },
        "update_upload_file_write" => Call::UploadWrite { command_id, data: data() },
        "update_upload_file_close" => Call::UploadClose { command_id },
        "update_upload_file_utime" => Call::UploadTimes {
            command_id,
            accessed: json["access_time"].as_f64().unwrap(),
            modified: json["modified_time"].as_f64().unwrap(),
        },
        "update_upload_directory_write" => Call::DirectoryWrite { command_id, data: data() },
        "update_upload_directory_unpack" => Call::DirectoryUnpack { command_id },
        "update_read_file" => {
            Call::Read { command_id, length: usize::try_from(json["length"].as_u64().unwrap()).unwrap() }
        }
        "update_read_file_close" => Call::ReadClose { command_id },
        other => panic!("no call is named {other}"),
    }
}

fn update(pair: &Json) -> Update {
    let text = |json: &Json| json.as_str().unwrap().to_owned();
    let lines = |json: &Json| Lines {
        text: text(&json[0]),
        newlines: serde_json::from_value(json[1].clone()).unwrap(),
        times: serde_json::from_value(json[2].clone()).unwrap(),
    };
    let value = &pair[1];
    match pair[0].as_str().unwrap() {
        "header" => Update::Text(Stream::Header, lines(value)),
        "stdout" => Update::Text(Stream::Stdout, lines(value)),
        "stderr" => Update::Text(Stream::Stderr, lines(value)),
        "log" => Update::Text(Stream::Log(text(&value[0])), lines(&value[1])),
        "rc" => Update::Rc(i32::try_from(value.as_i64().unwrap()).unwrap()),
        "elapsed" => Update::Elapsed(value.as_f64().unwrap()),
        "failure_reason" => Update::FailureReason(text(value)),
        "files" => Update::Files(serde_json::from_value(value.clone()).unwrap()),
        "stat" => Update::Stat(serde_json::from_value(value.clone()).unwrap()),
        other => Update::Other(other.to_owned(), from_raw(raw(value)).unwrap()),
    }
}

#[test]
fn what_a_master_sends_is_understood() {
    let messages = recorded("M->W");
    assert!(messages.len() > 300, "only {} messages", messages.len());
    let mut refused = Vec::new();
    for (place, json) in messages {
        let refusal = match decode(&wire(&json)) {
            Ok(Incoming::Request { request: Request::StartCommand(start), .. }) => {
                Invocation::parse(&start).err().map(|error| error.to_string())
            }
            Ok(_) => None,
            Err(DecodeError::Refused { message, .. }) => Some(message),
            Err(error) => panic!("{place}: {error}"),
        };
        refused.extend(refusal);
    }
    refused.sort();
    // Two of the recorded commands were sent to see them refused.
    assert_eq!(refused, ["WorkerShellCommand is missing args: command", "an argument is not UTF-8 text"]);
}

#[test]
fn what_a_worker_says_is_encoded_as_recorded() {
    let messages = recorded("W->M");
    assert!(messages.len() > 300, "only {} messages", messages.len());
    for (place, json) in messages {
        let seq = SeqNumber(json["seq_number"].as_u64().unwrap());
        let ours = if json["op"] == "response" {
            let result = from_raw(raw(&json["result"])).unwrap();
            let reply = match (json.get("is_exception"), result) {
                (Some(_), Value::Str(text)) => Err(text),
                (_, value) => Ok(value),
            };
            encode_reply(seq, &reply)
        } else {
            encode_call(seq, &call(&json))
        };
        let ours = rmpv::decode::read_value(&mut ours.as_slice()).unwrap();
        assert_eq!(sorted(ours), sorted(raw(&json)), "{place}");
    }
}

fn check(json: Json, expected: Result<Incoming, DecodeError>) {
    assert_eq!(decode(&wire(&json)), expected, "{json}");
}

fn ignored(why: &str) -> Result<Incoming, DecodeError> {
    Err(DecodeError::Ignored(why.to_owned()))
}

fn refused(seq: u64, message: &str) -> Result<Incoming, DecodeError> {
    Err(DecodeError::Refused { seq: SeqNumber(seq), message: message.to_owned() })
}

#[test]
fn a_malformed_message_does_what_it_does_to_buildbots_own_worker() {
    use serde_json::json;
    check(json!([1, 2]), ignored("it is not a map"));
    check(json!({"seq_number": 1}), ignored("it has no op"));
    check(json!({"op": "print", "message": "x"}), ignored("it has no seq_number"));
    check(json!({"op": "dance", "seq_number": 3}), refused(3, "Command dance does not exist."));
    check(json!({"op": "print", "seq_number": 4}), refused(4, "'message did not contain obligatory \"message\" key'"));
    check(
        json!({"op": "set_worker_settings", "seq_number": 5, "args": {"buffer_size": 1}}),
        refused(5, "'message did not contain obligatory settings for worker'"),
    );
    check(
        json!({"op": "start_command", "seq_number": 6, "command_id": "1", "command_name": "shell", "args": []}),
        refused(6, "the args of shell are not a map"),
    );
}

#[test]
fn bytes_in_arguments_are_text_and_other_bytes_are_refused() {
    use serde_json::json;
    let start = |bytes: &str| {
        json!({"op": "start_command", "seq_number": 1, "command_id": "1", "command_name": "shell",
               "args": {"command": [{"$bytes_len": 2, "$latin1": bytes}]}})
    };
    let Ok(Incoming::Request { request: Request::StartCommand(command), .. }) = decode(&wire(&start("ab"))) else {
        panic!("not a start_command");
    };
    assert_eq!(command.args.get("command"), Some(&Value::List(vec!["ab".into()])));
    check(start("\u{ff}\u{fe}"), refused(1, "an argument is not UTF-8 text"));
}

#[test]
fn trailing_bytes_depth_and_garbage_are_violations() {
    let violation = |bytes: &[u8]| matches!(decode(bytes), Err(DecodeError::Violation(_)));
    let mut message = wire(&serde_json::json!({"op": "keepalive", "seq_number": 0}));
    assert!(decode(&message).is_ok());
    message.push(0);
    assert!(violation(&message));
    assert!(violation(&[0x91; 1000]));
    assert!(violation(&[0xdf, 0xff, 0xff, 0xff, 0xff]));
    assert!(violation(&[]));
}

#[test]
fn a_response_is_an_exception_if_the_key_is_there() {
    use serde_json::json;
    let response = |result| Ok(Incoming::Response { seq: SeqNumber(7), result });
    check(json!({"op": "response", "seq_number": 7, "result": null}), response(Ok(Value::Nil)));
    check(
        json!({"op": "response", "seq_number": 7, "result": "no", "is_exception": false}),
        response(Err("no".to_owned())),
    );
}

#[test]
fn vm_arguments_are_parsed_into_names_and_ranges() {
    let parse = |name: &str, args: &[(&'static str, Value)]| {
        let start = StartCommand {
            command_id: CommandId("1".to_owned()),
            builder: None,
            name: name.to_owned(),
            args: args.iter().cloned().collect(),
        };
        Invocation::parse(&start)
    };
    let started = parse("vm_start", &[("image", "debian-12".into()), ("cpus", 4.into())]).unwrap();
    let Command::VmStart(start) = started.command else { panic!("not a vm_start") };
    assert_eq!((start.image.as_str(), start.vm.as_str(), start.cpus), ("debian-12", "default", Some(4)));
    for (key, value) in [
        ("image", Value::from("../etc")),
        ("vm", "host".into()),
        ("vm", "".into()),
        ("cpus", 0.into()),
        ("memory_mib", Value::from(1 << 40)),
        ("mode", "fast".into()),
        ("timeout", (-1).into()),
        ("timeout", f64::NAN.into()),
    ] {
        let result = parse("vm_start", &[(key, value.clone()), ("image", "x".into())]);
        assert!(matches!(result, Err(ArgumentError::Invalid { .. })), "{key}={value:?}: {result:?}");
    }
}

#[test]
fn a_step_s_name_is_bounded_and_never_refused() {
    let check = |step: Option<Value>, expected: Option<String>| {
        let step = step.map(|step| ("step", step));
        let start = StartCommand {
            command_id: CommandId("1".to_owned()),
            builder: None,
            name: "vm_info".to_owned(),
            args: step.into_iter().collect(),
        };
        assert_eq!(Invocation::parse(&start).map(|invocation| invocation.step), Ok(expected));
    };
    check(None, None);
    check(Some("compile".into()), Some("compile".to_owned()));
    check(Some("ü".repeat(101).as_str().into()), Some("ü".repeat(100)));
    check(Some(7.into()), None);
    check(Some(Value::Bytes(vec![0xff])), None);
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        any::<f64>().prop_filter("equal to itself", |f| !f.is_nan()).prop_map(Value::Float),
        ".*".prop_map(Value::Str),
        any::<Vec<u8>>().prop_map(Value::Bytes),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::List),
            prop::collection::vec((".*", inner), 0..8).prop_map(Value::Map),
        ]
    })
}

proptest! {
    #[test]
    fn a_value_survives_the_wire(value in any_value(), seq in any::<u64>()) {
        let bytes = encode_reply(SeqNumber(seq), &Ok(value.clone()));
        prop_assert_eq!(decode(&bytes), Ok(Incoming::Response { seq: SeqNumber(seq), result: Ok(value) }));
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in any::<Vec<u8>>()) {
        let _ = decode(&bytes);
    }
}

#[test]
fn many_small_values_are_not_held() {
    // Each is one byte of the message.
    let message = |items: u32| {
        let mut message = vec![0x81, 0xa1, b'x', 0xdd];
        message.extend(items.to_be_bytes());
        message.resize(message.len() + items as usize, 0xc0);
        message
    };
    let most = (MAX_MEMORY / size_of::<Raw>()) as u32;
    let refused =
        |items| matches!(decode(&message(items)), Err(DecodeError::Violation(why)) if why.contains("too many values"));
    assert!(refused(most));
    assert!(refused(MAX_MESSAGE_SIZE as u32 - 100));
    assert!(!refused(most - 10));
}

#[test]
fn more_is_claimed_than_is_there() {
    // Maps and arrays that say they have four thousand million items, in each other.
    for marker in [0xdd, 0xdf] {
        let message = [marker, 0xff, 0xff, 0xff, 0xff].repeat(60);
        assert!(matches!(decode(&message), Err(DecodeError::Violation(_))));
    }
}

fn any_raw() -> impl Strategy<Value = Raw> {
    let leaf = prop_oneof![
        Just(Raw::Nil),
        any::<bool>().prop_map(Raw::from),
        any::<i64>().prop_map(Raw::from),
        any::<u64>().prop_map(Raw::from),
        any::<f32>().prop_map(Raw::from),
        any::<f64>().prop_map(Raw::from),
        ".{0,300}".prop_map(Raw::from),
        prop::collection::vec(any::<u8>(), 0..70_000).prop_map(Raw::Binary),
        (any::<i8>(), prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(kind, data)| Raw::Ext(kind, data)),
    ];
    leaf.prop_recursive(3, 100, 40, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..40).prop_map(Raw::Array),
            prop::collection::vec((inner.clone(), inner), 0..40).prop_map(Raw::Map),
        ]
    })
}

fn values_in(raw: &Raw) -> u64 {
    1 + match raw {
        Raw::Array(items) => items.iter().map(values_in).sum(),
        Raw::Map(pairs) => pairs.iter().map(|(key, value)| values_in(key) + values_in(value)).sum(),
        _ => 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn values_are_counted_as_they_are_read(raw in any_raw()) {
        let mut message = Vec::new();
        rmpv::encode::write_value(&mut message, &raw).unwrap();
        prop_assert_eq!(count_values(&message), values_in(&raw));
    }
}
