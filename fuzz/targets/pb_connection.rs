//! A master may send anything: the connection survives it, and what it sends itself is Banana.
//!
//! The first byte of the input says how the others are split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::pb::banana::Decoder;
use protocol::pb::{Connection, Event};
use protocol::{Call, CommandId, Incoming, Invocation, Lines, Request, SeqNumber, Stream, Update, Value};

fuzz_target!(|input: &[u8]| {
    let Some((split, bytes)) = input.split_first() else { return };
    let mut connection = Connection::new("w1", "pw");
    let mut seq = 0;
    for piece in bytes.chunks(usize::from(*split) + 1) {
        connection.input(piece);
        while let Some(event) = connection.next_event() {
            match event {
                Event::Incoming(Incoming::Request { seq: asked, request }) => {
                    serve(&mut connection, asked, request, &mut seq);
                }
                Event::LoggedIn => {
                    connection.keepalive();
                    connection.ask_shutdown();
                }
                Event::Violation(_) => assert_eq!(connection.next_event(), None),
                _ => {}
            }
        }
    }
    let mut decoder = Decoder::default();
    decoder.push(&connection.take_output());
    while decoder.next_expression().expect("we send nothing but Banana").is_some() {}
});

/// Does with a request what a worker may do.
fn serve(connection: &mut Connection, asked: SeqNumber, request: Request, seq: &mut u64) {
    let Request::StartCommand(start) = request else {
        return connection.reply(asked, &Ok(Value::Nil));
    };
    if let Err(error) = Invocation::parse(&start) {
        return connection.reply(asked, &Err(error.to_string()));
    }
    connection.reply(asked, &Ok(Value::Nil));
    for call in calls(&start.command_id) {
        *seq += 1;
        connection.call(SeqNumber(*seq), &call);
    }
}

fn calls(command_id: &CommandId) -> [Call; 5] {
    let id = || command_id.clone();
    let lines = Lines { text: "x\n".to_owned(), newlines: vec![1], times: vec![0.0] };
    [
        Call::Update { command_id: id(), updates: vec![Update::Text(Stream::Stdout, lines), Update::Rc(0)] },
        Call::UploadWrite { command_id: id(), data: b"list".to_vec() },
        Call::UploadClose { command_id: id() },
        Call::Read { command_id: id(), length: 100 },
        Call::Complete { command_id: id(), failure: None },
    ]
}
