//! What a connection does in conversations that were not recorded.

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::super::banana::SIZE_LIMIT;
use super::super::{Connection, Event, Refusal};
use super::{sent, shown, wire};
use crate::message::{Call, CommandId, Incoming, Lines, Request, SeqNumber, StartCommand, Stream, Update};
use crate::value::Value;

/// The number of the perspective at the master.
const PERSPECTIVE: u64 = 2;

fn events(connection: &mut Connection, message: &Json) -> Vec<Event> {
    connection.input(&wire(message));
    std::iter::from_fn(|| connection.next_event()).collect()
}

fn said(connection: &mut Connection) -> Vec<Json> {
    sent(connection).iter().map(shown).collect()
}

fn response(seq: u64, result: Result<Value, &str>) -> Event {
    Event::Incoming(Incoming::Response { seq: SeqNumber(seq), result: result.map_err(str::to_owned) })
}

fn call_of_master(request: u64, object: u64, method: &str, args: &[Json]) -> Json {
    let args: Vec<_> = [json!("tuple")].into_iter().chain(args.iter().cloned()).collect();
    json!(["message", request, object, method, 1, args, ["dictionary"]])
}

fn text(text: &str) -> Json {
    json!(["unicode", text])
}

/// A connection whose challenge has been answered.
fn challenged() -> Connection {
    let mut connection = Connection::new("w1", "pw");
    assert_eq!(events(&mut connection, &json!(["pb", "none"])), []);
    assert_eq!(events(&mut connection, &json!(["version", 6])), []);
    assert_eq!(events(&mut connection, &json!(["answer", 1, ["tuple", "x", ["remote", 1]]])), []);
    connection
}

/// A connection that is logged in and has the builders `a` and `b` as the objects 2 and 3.
fn logged_in() -> Connection {
    let mut connection = challenged();
    set_builders(&mut connection, 1, &["a", "b"]);
    assert_eq!(events(&mut connection, &json!(["answer", 2, ["remote", PERSPECTIVE]])), [Event::LoggedIn]);
    connection.take_output();
    connection
}

/// What the worker answers to a list of builders.
fn set_builders(connection: &mut Connection, request: u64, names: &[&str]) -> Vec<Json> {
    set_builders_of_which(connection, request, names, Value::Nil)
}

fn set_builders_of_which(connection: &mut Connection, request: u64, names: &[&str], served: Value) -> Vec<Json> {
    let pairs = names.iter().map(|name| json!(["tuple", text(name), text(name)]));
    let list: Vec<_> = [json!("list")].into_iter().chain(pairs).collect();
    let wanted = names.iter().map(|name| ((*name).to_owned(), (*name).to_owned())).collect();
    assert_eq!(
        events(connection, &call_of_master(request, 1, "setBuilderList", &[json!(list)])),
        [Event::Incoming(Incoming::Request { seq: SeqNumber(request), request: Request::BuilderList(wanted) })]
    );
    connection.take_output();
    connection.reply(SeqNumber(request), &Ok(served));
    said(connection)
}

/// Starts a command at builder `a` with the objects `number`, `number` + 1 and `number` + 2 of the master.
fn start(connection: &mut Connection, id: u64, number: u64) -> CommandId {
    start_at(connection, 2, id, number)
}

fn start_at(connection: &mut Connection, builder: u64, id: u64, number: u64) -> CommandId {
    let args = json!([
        "dictionary",
        [text("writer"), ["remote", number + 1]],
        [text("reader"), ["remote", number + 2]],
        [text("path"), text("x")]
    ]);
    let start = [json!(["remote", number]), text(&id.to_string()), text("shell"), args];
    let command_id = CommandId(id.to_string());
    assert_eq!(
        events(connection, &call_of_master(id, builder, "startCommand", &start)),
        [Event::Incoming(Incoming::Request {
            seq: SeqNumber(id),
            request: Request::StartCommand(StartCommand {
                command_id: command_id.clone(),
                builder: Some(if builder == 2 { "a" } else { "b" }.to_owned()),
                name: "shell".to_owned(),
                args: [("path", "x")].into_iter().collect(),
            }),
        })]
    );
    connection.reply(SeqNumber(id), &Ok(Value::Nil));
    assert_eq!(said(connection), [json!(["answer", id, ["None"]])]);
    command_id
}

fn complete(connection: &mut Connection, seq: u64, command_id: CommandId) -> u64 {
    connection.call(SeqNumber(seq), &Call::Complete { command_id, failure: None });
    said(connection)[0][1].as_u64().unwrap()
}

#[test]
fn a_login_that_fails_is_told_by_its_reason() {
    let failure = |class: &str, value: &str| {
        json!([
            "error",
            2,
            ["twisted.spread.pb.CopyableFailure", ["dictionary", [text("type"), class], [text("value"), text(value)]]]
        ])
    };
    let check = |class: &str, value: &str, refusal, message: &str| {
        let expected = Event::LoginRefused { refusal, message: message.to_owned() };
        assert_eq!(events(&mut challenged(), &failure(class, value)), [expected]);
    };
    check("twisted.cred.error.UnauthorizedLogin", "", Refusal::Unauthorized, "twisted.cred.error.UnauthorizedLogin");
    check("builtins.RuntimeError", "rejecting duplicate worker", Refusal::Duplicate, "rejecting duplicate worker");
    check("builtins.KeyError", "'x'", Refusal::Other, "'x'");
    let nobody = "'NoneType' object has no attribute 'broker'";
    check("builtins.AttributeError", nobody, Refusal::Nobody, nobody);
    check("builtins.AttributeError", "no attribute 'users'", Refusal::Other, "no attribute 'users'");
    let unreadable = Event::LoginRefused {
        refusal: Refusal::Other,
        message: "an unreadable exception: a value of type 'instance', which is not accepted".to_owned(),
    };
    assert_eq!(events(&mut challenged(), &json!(["error", 2, ["instance", 1]])), [unreadable]);
}

#[test]
fn nothing_secret_is_shown() {
    let mut connection = Connection::new("w1", "Sesame");
    connection.input(b"Sesame");
    assert_eq!(
        format!("{connection:?}"),
        "Connection { credentials: Credentials(w1), stage: Greeting, commands: [], .. }"
    );
}

fn check_violation(mut connection: Connection, message: &Json, expected: &str) {
    assert_eq!(events(&mut connection, message), [Event::Violation(expected.to_owned())]);
    assert_eq!(events(&mut connection, &call_of_master(9, 1, "print", &[text("x")])), []);
}

#[test]
fn what_breaks_the_protocol_ends_it() {
    let violation = |message: &Json, expected: &str| check_violation(logged_in(), message, expected);
    check_violation(
        Connection::new("w1", "pw"),
        &json!(["none"]),
        "the other side is no PB server: it does not offer the dialect 'pb'",
    );
    check_violation(challenged(), &json!(["answer", 2, 5]), "a malformed answer to the login");
    violation(&json!("pb"), "a message that is not a list");
    violation(&json!([]), "a message without a name");
    violation(&json!(["version", 5]), "the master speaks version 5 of PB");
    violation(&json!(["answer", 99, 0]), "an answer to no request");
    violation(&json!(["error", 99, 0]), "an error in answer to no request");
    violation(&json!(["answer", 3]), "a malformed message 'answer'");
    violation(&json!(["message", 1, 1, "print", 1, ["tuple"]]), "a malformed message 'message'");
    let mut connection = logged_in();
    connection.input(&[0xff]);
    assert_eq!(connection.next_event(), Some(Event::Violation("type byte 0xff".to_owned())));
}

#[test]
fn a_request_that_can_not_be_served_is_answered_with_the_reason() {
    let check = |message: &Json, class: &str, text: &str| {
        let mut connection = logged_in();
        let expected = Event::Warning(format!("refused a request of the master: {text}"));
        assert_eq!(events(&mut connection, message), [expected]);
        let said = said(&mut connection);
        assert_eq!((&said[0][0], &said[0][1]), (&json!("error"), &json!(7)));
        let state = &said[0][2][1];
        assert_eq!((&state[1][1], &state[2][1][1]), (&json!(class), &json!(text)));
    };
    let value_error = "builtins.ValueError";
    let no_method = "twisted.spread.flavors.NoSuchMethod";
    check(&call_of_master(7, 1, "getCommands", &[]), no_method, "No such method: remote_getCommands");
    check(&call_of_master(7, 2, "shutdown", &[]), no_method, "No such method: remote_shutdown");
    check(&call_of_master(7, 9, "print", &[]), "twisted.spread.pb.Error", "Invalid Object ID");
    check(&call_of_master(7, 1, "print", &[]), value_error, "argument 'message' is missing");
    check(&call_of_master(7, 1, "print", &[json!(5)]), value_error, "argument 'message' is not text");
    check(
        &call_of_master(7, 1, "print", &[json!(["module", "os"])]),
        value_error,
        "an argument of print: a value of type 'module', which is not accepted",
    );
    check(
        &call_of_master(7, 1, "setBuilderList", &[json!(["list", 5])]),
        value_error,
        "the builders are not a list of names and directories",
    );
    check(
        &call_of_master(7, 2, "startCommand", &[json!(["remote", 5]), text("1"), text("shell"), json!(["list"])]),
        value_error,
        "the args of shell are not a map",
    );
    let with_object = json!(["dictionary", [text("other"), ["remote", 6]]]);
    check(
        &call_of_master(7, 2, "startCommand", &[json!(["remote", 5]), text("1"), text("shell"), with_object]),
        value_error,
        "the args of shell: a value of type 'remote' where only plain values may be",
    );
}

#[test]
fn objects_of_a_refused_request_are_given_up() {
    let mut connection = logged_in();
    let args = json!(["dictionary", [text("other"), ["remote", 6]]]);
    events(
        &mut connection,
        &call_of_master(7, 2, "startCommand", &[json!(["remote", 5]), text("1"), text("shell"), args]),
    );
    assert_eq!(said(&mut connection)[1..], [json!(["decref", 5]), json!(["decref", 6])]);
    // A legacy call, whose reference nobody wants.
    assert_eq!(events(&mut connection, &call_of_master(8, 2, "setMaster", &[json!(["remote", 7])])), []);
    assert_eq!(said(&mut connection), [json!(["answer", 8, ["None"]]), json!(["decref", 7])]);
}

#[test]
fn a_command_that_runs_already_is_not_started_again() {
    let mut connection = logged_in();
    start(&mut connection, 5, 10);
    let again = [json!(["remote", 20]), text("5"), text("shell"), json!(["dictionary"])];
    assert_eq!(
        events(&mut connection, &call_of_master(6, 2, "startCommand", &again)),
        [Event::Warning("refused a request of the master: command 5 is running already".to_owned())]
    );
    assert_eq!(said(&mut connection)[1], json!(["decref", 20]));
}

#[test]
fn oddities_are_survived() {
    let mut connection = logged_in();
    let warning = |text: &str| [Event::Warning(text.to_owned())];
    let events = |connection: &mut Connection, message| events(connection, &message);
    assert_eq!(events(&mut connection, json!(["uncache", 1])), warning("a message 'uncache', which PB does not have"));
    assert_eq!(said(&mut connection), [json!(["didNotUnderstand", "uncache"])]);
    assert_eq!(
        events(&mut connection, json!(["didNotUnderstand", "x"])),
        warning("the master did not understand a message")
    );
    assert_eq!(
        events(&mut connection, json!(["decref", 99])),
        warning("the master gave up a reference it did not have")
    );
    assert_eq!(said(&mut connection), [] as [Json; 0]);
}

#[test]
fn no_answer_is_given_where_none_is_wanted() {
    let mut connection = logged_in();
    for (request, method) in [(7, "print"), (8, "dance")] {
        let args = json!(["tuple", ["unicode", "x"]]);
        events(&mut connection, &json!(["message", request, 1, method, 0, args, ["dictionary"]]));
        connection.reply(SeqNumber(request), &Ok(Value::Nil));
    }
    assert_eq!(said(&mut connection), [] as [Json; 0]);
}

#[test]
fn builders_keep_their_numbers_until_the_master_has_given_them_up() {
    let mut connection = logged_in();
    let builders = |pairs: &[(&str, u64)]| {
        let pairs = pairs.iter().map(|(name, number)| json!([text(name), ["remote", number]]));
        [json!("dictionary")].into_iter().chain(pairs).collect::<Vec<_>>()
    };
    assert_eq!(set_builders(&mut connection, 2, &["a", "c"]), [json!(["answer", 2, builders(&[("a", 2), ("c", 4)])])]);
    // `a` was sent twice, `b` once.
    for number in [2, 3] {
        assert_eq!(events(&mut connection, &json!(["decref", number])), []);
    }
    let starts = |connection: &mut Connection, request, number| {
        let events = events(connection, &call_of_master(request, number, "startBuild", &[]));
        connection.reply(SeqNumber(request), &Ok(Value::Nil));
        events
    };
    let request = Request::StartBuild { builder: "a".to_owned() };
    assert_eq!(starts(&mut connection, 3, 2), [Event::Incoming(Incoming::Request { seq: SeqNumber(3), request })]);
    assert_eq!(
        starts(&mut connection, 4, 3),
        [Event::Warning("refused a request of the master: Invalid Object ID".to_owned())]
    );
    connection.take_output();
    assert_eq!(set_builders(&mut connection, 5, &["b"]), [json!(["answer", 5, builders(&[("b", 5)])])]);
}

#[test]
fn a_builder_that_is_not_served_gets_no_reference() {
    let mut connection = logged_in();
    let served = Value::List(vec!["b".into()]);
    let answer = json!(["answer", 3, ["dictionary", [text("b"), ["remote", 3]]]]);
    assert_eq!(set_builders_of_which(&mut connection, 3, &["c", "b"], served), [answer]);
}

#[test]
fn an_interrupt_means_what_runs_at_that_builder() {
    let mut connection = logged_in();
    let check = |connection: &mut Connection, request, builder, id: &str, expected: &str| {
        let expected = Request::Interrupt { command_id: CommandId(expected.to_owned()), why: "stop".to_owned() };
        assert_eq!(
            events(connection, &call_of_master(request, builder, "interruptCommand", &[text(id), text("stop")])),
            [Event::Incoming(Incoming::Request { seq: SeqNumber(request), request: expected })]
        );
    };
    check(&mut connection, 100, 2, "9", "9");
    start_at(&mut connection, 2, 5, 10);
    start_at(&mut connection, 2, 6, 20);
    start_at(&mut connection, 3, 7, 30);
    check(&mut connection, 101, 2, "5", "5");
    check(&mut connection, 102, 2, "9", "6");
    check(&mut connection, 103, 2, "7", "6");
    check(&mut connection, 104, 3, "5", "7");
    complete(&mut connection, 1, CommandId("6".to_owned()));
    check(&mut connection, 105, 2, "6", "5");
}

#[test]
fn objects_are_given_up_when_complete_is_answered_and_not_before() {
    let mut connection = logged_in();
    let id = start(&mut connection, 5, 10);
    let request = complete(&mut connection, 1, id.clone());
    assert!(!connection.has_output());
    assert_eq!(events(&mut connection, &json!(["answer", request, ["None"]])), [response(1, Ok(Value::Nil))]);
    assert_eq!(said(&mut connection), [10, 11, 12].map(|number| json!(["decref", number])));
    connection.call(SeqNumber(2), &Call::UploadClose { command_id: id });
    assert_eq!(connection.next_event(), Some(response(2, Err("command 5 is not running"))));
}

#[test]
fn commands_of_a_builder_that_is_gone_can_still_be_completed() {
    let mut connection = logged_in();
    let gone = start_at(&mut connection, 3, 5, 10);
    let stays = start_at(&mut connection, 2, 7, 30);
    set_builders(&mut connection, 8, &["a"]);
    complete(&mut connection, 2, gone);
    complete(&mut connection, 3, stays);
}

#[test]
fn thousands_of_commands_leave_nothing_behind() {
    let mut connection = logged_in();
    let mut held: HashMap<u64, i64> = HashMap::new();
    for id in 10..3010 {
        let number = id % 500 * 3 + 1;
        for object in number..number + 3 {
            *held.entry(object).or_default() += 1;
        }
        let command = start(&mut connection, id, number);
        let request = complete(&mut connection, id, command);
        // What becomes of it makes no difference.
        let answer = if id % 2 == 0 { json!(["answer", request, ["None"]]) } else { json!(["error", request, 0]) };
        assert_eq!(events(&mut connection, &answer).len(), 1);
        for decref in said(&mut connection) {
            *held.entry(decref[1].as_u64().unwrap()).or_default() -= 1;
        }
    }
    assert!(held.values().all(|count| *count == 0), "{held:?}");
    assert!(format!("{connection:?}").contains("commands: []"));
}

#[test]
fn a_call_that_can_not_be_made_is_answered_at_once() {
    let mut connection = logged_in();
    let id = CommandId("5".to_owned());
    let args = [json!(["remote", 10]), text("5"), text("shell"), json!(["dictionary"])];
    events(&mut connection, &call_of_master(5, 2, "startCommand", &args));
    let mut check = |call: Call, expected: &str| {
        connection.call(SeqNumber(9), &call);
        assert_eq!(connection.next_event(), Some(response(9, Err(expected))));
        assert!(!connection.has_output());
    };
    check(Call::UploadClose { command_id: id.clone() }, "command 5 has no writer");
    check(Call::Read { command_id: id.clone(), length: 1 }, "command 5 has no reader");
    check(Call::ReadClose { command_id: CommandId("6".to_owned()) }, "command 6 is not running");
    let long = Update::Other("x".to_owned(), Value::Bytes(vec![0; SIZE_LIMIT + 1]));
    check(
        Call::Update { command_id: id, updates: vec![Update::Rc(0), long] },
        "655361 bytes or items at once are more than the 655360 that PB carries",
    );
}

#[test]
fn an_answer_that_can_not_be_sent_becomes_an_error() {
    let mut connection = logged_in();
    events(&mut connection, &call_of_master(5, 1, "getWorkerInfo", &[]));
    connection.reply(SeqNumber(5), &Ok(Value::Str("x".repeat(SIZE_LIMIT + 1))));
    assert_eq!(said(&mut connection)[0][0], "error");
    events(&mut connection, &call_of_master(6, 1, "getWorkerInfo", &[]));
    connection.reply(SeqNumber(6), &Err("ü".repeat(SIZE_LIMIT)));
    assert_eq!(said(&mut connection)[0][0], "error");
}

#[test]
fn a_large_block_is_sent_in_pieces_and_answered_once() {
    let check = |answers: [Json; 3], expected: Result<Value, &str>| {
        let mut connection = logged_in();
        let command_id = start(&mut connection, 5, 10);
        let data = vec![b'x'; 2 * SIZE_LIMIT + 5];
        connection.call(SeqNumber(1), &Call::UploadWrite { command_id, data });
        let writes = said(&mut connection);
        let lengths: Vec<_> = writes.iter().map(|write| write[5][1].as_str().unwrap().len()).collect();
        assert_eq!(lengths, [SIZE_LIMIT, SIZE_LIMIT, 5]);
        let mut heard = Vec::new();
        for (write, mut answer) in writes.iter().zip(answers) {
            assert_eq!((&write[2], &write[3]), (&json!(11), &json!("write")));
            answer[1] = write[1].clone();
            assert_eq!(heard, []);
            heard = events(&mut connection, &answer);
        }
        assert_eq!(heard, [response(1, expected)]);
    };
    let fine = || json!(["answer", 0, ["None"]]);
    let error = |text: &str| json!(["error", 0, ["a.B", ["dictionary", ["value", text]]]]);
    check([fine(), fine(), fine()], Ok(Value::Nil));
    check([fine(), error("disk full"), error("again")], Err("disk full"));
}

#[test]
fn long_text_goes_in_several_elements() {
    let mut connection = logged_in();
    let command_id = start(&mut connection, 5, 10);
    let line = "x".repeat(SIZE_LIMIT / 2 + 1) + "\n";
    let lines = Lines { text: line.repeat(2), newlines: Vec::new(), times: Vec::new() };
    let updates = vec![Update::Rc(0), Update::Text(Stream::Stdout, lines)];
    connection.call(SeqNumber(1), &Call::Update { command_id, updates });
    let said = said(&mut connection);
    let element = |pair: Json| json!(["list", ["dictionary", pair], 0]);
    let stdout = || element(json!([text("stdout"), text(&line)]));
    assert_eq!(said[0][5], json!(["tuple", ["list", element(json!([text("rc"), 0])), stdout(), stdout()]]));
}

#[test]
fn what_is_read_is_bytes() {
    let check = |answer: Json, expected: Value| {
        let mut connection = logged_in();
        let command_id = start(&mut connection, 5, 10);
        connection.call(SeqNumber(1), &Call::Read { command_id, length: 1 << 30 });
        let read = said(&mut connection).remove(0);
        assert_eq!((&read[2], &read[5]), (&json!(12), &json!(["tuple", SIZE_LIMIT])));
        assert_eq!(events(&mut connection, &json!(["answer", read[1], answer])), [response(1, Ok(expected))]);
    };
    check(json!("dictionary"), Value::Bytes(b"dictionary".to_vec()));
    check(json!(""), Value::Bytes(Vec::new()));
    check(json!(["unicode", ""]), Value::Bytes(Vec::new()));
    check(json!(["None"]), Value::Nil);
}

#[test]
fn shared_arguments_are_read_as_what_they_are() {
    let mut connection = logged_in();
    let shared = json!(["reference", 1, ["list", text("x")]]);
    let args = json!(["dictionary", [text("a"), shared], [text("b"), ["tuple", ["dereference", 1]]]]);
    let start = [json!(["remote", 5]), text("1"), text("shell"), args];
    let heard = events(&mut connection, &call_of_master(7, 2, "startCommand", &start));
    let [Event::Incoming(Incoming::Request { request: Request::StartCommand(start), .. })] = heard.as_slice() else {
        panic!("{heard:?}");
    };
    let x = || Value::List(vec!["x".into()]);
    assert_eq!(start.args, [("a", x()), ("b", Value::List(vec![x()]))].into_iter().collect());
}

#[test]
fn one_keepalive_is_under_way_at_a_time() {
    let mut connection = challenged();
    assert!(!connection.keepalive());
    connection = logged_in();
    assert!(connection.keepalive());
    assert!(!connection.keepalive());
    assert_eq!(said(&mut connection), [json!(["message", 3, PERSPECTIVE, "keepalive", 1, ["tuple"], ["dictionary"]])]);
    assert_eq!(events(&mut connection, &json!(["answer", 3, ["None"]])), []);
    assert!(connection.keepalive());
}

#[test]
fn the_master_takes_note_of_a_shutdown() {
    assert!(!challenged().ask_shutdown());
    let mut connection = logged_in();
    assert!(connection.ask_shutdown());
    assert_eq!(events(&mut connection, &json!(["answer", 3, ["None"]])), [Event::ShutdownNoted(Ok(()))]);
}

/// Expressions that look like messages more often than chance would have it.
fn any_message() -> impl Strategy<Value = Json> {
    let number = 0..8_u64;
    let method = prop::sample::select(
        &["print", "setBuilderList", "startBuild", "startCommand", "interruptCommand", "setMaster", "shutdown"][..],
    );
    let value = prop_oneof![
        number.clone().prop_map(|number| json!(number)),
        number.clone().prop_map(|number| json!(["remote", number])),
        "[a-z]{0,3}".prop_map(|letters| text(&letters)),
        Just(json!(["dictionary", [["unicode", "writer"], ["remote", 3]]])),
        Just(json!(["list", ["tuple", ["unicode", "a"], ["unicode", "b"]]])),
    ];
    prop_oneof![
        (number.clone(), 1..4_u64, method, prop::collection::vec(value.clone(), 0..5))
            .prop_map(|(request, object, method, args)| call_of_master(request, object, method, &args)),
        (number.clone(), value.clone()).prop_map(|(request, value)| json!(["answer", request, value])),
        (number.clone(), value).prop_map(|(request, value)| json!(["error", request, value])),
        number.prop_map(|object| json!(["decref", object])),
    ]
}

/// Gives the connection bytes, and does with what comes out what a worker might do.
fn converse(connection: &mut Connection, bytes: &[u8], chunk: usize) -> Vec<Event> {
    let mut heard = Vec::new();
    for piece in bytes.chunks(chunk) {
        connection.input(piece);
        while let Some(event) = connection.next_event() {
            if let Event::Incoming(Incoming::Request { seq, request }) = &event {
                connection.reply(*seq, &Ok(Value::Nil));
                if let Request::StartCommand(start) = request {
                    let command_id = start.command_id.clone();
                    connection.call(SeqNumber(1), &Call::UploadWrite { command_id: command_id.clone(), data: vec![1] });
                    connection.call(SeqNumber(2), &Call::Complete { command_id, failure: None });
                }
            }
            heard.push(event);
        }
    }
    heard
}

proptest! {
    #[test]
    fn any_messages_are_survived_and_mean_the_same_however_they_are_split(
        messages in prop::collection::vec(any_message(), 0..12),
        chunk in 1..30_usize,
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(wire).collect();
        let (mut one, mut other) = (logged_in(), logged_in());
        prop_assert_eq!(converse(&mut one, &bytes, chunk), converse(&mut other, &bytes, 1 << 20));
        prop_assert_eq!(one.take_output(), other.take_output());
    }

    #[test]
    fn any_bytes_are_survived(bytes in any::<Vec<u8>>()) {
        converse(&mut Connection::new("w1", "pw"), &bytes, 7);
        converse(&mut logged_in(), &bytes, 7);
    }
}
