//! Any message is decoded or refused, its command parsed or refused, and its result survives the wire.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::msgpack::{decode, encode_reply};
use protocol::{Incoming, Invocation, Request};

fuzz_target!(|bytes: &[u8]| match decode(bytes) {
    Ok(Incoming::Request { request: Request::StartCommand(start), .. }) => drop(Invocation::parse(&start)),
    Ok(Incoming::Response { seq, result }) => {
        let written = encode_reply(seq, &result);
        let Ok(Incoming::Response { seq, result }) = decode(&written) else { panic!("what was written is a response") };
        // Bytes are compared, because NaN does not equal itself.
        assert_eq!(written, encode_reply(seq, &result));
    }
    Ok(_) | Err(_) => {}
});
