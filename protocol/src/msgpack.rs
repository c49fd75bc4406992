//! The codec of `msgpack_experimental_v7` (Buildbot 4.3.0): each binary WebSocket message is one msgpack map.
//!
//! What a malformed message does to the conversation is part of the protocol, so [`DecodeError`] is sorted by it.

use rmp::Marker;
use rmpv::Value as Raw;
use serde::Serialize;
use thiserror::Error;

use crate::message::{
    Call, CommandId, Incoming, Lines, Reply, Request, SeqNumber, Settings, StartCommand, Stream, Update,
};
use crate::value::Value;

/// The largest message that is accepted, in bytes. A 4.3.0 master sets no limit of its own; its largest messages are
/// command arguments (patches, environments) and blocks of downloads, and these stay far below.
pub const MAX_MESSAGE_SIZE: usize = 64 << 20;

/// How deep lists and maps may be nested in a message.
const MAX_DEPTH: usize = 64;

/// How much the values of a message may take in memory beside its bytes, in bytes: one that is a single byte of a message is
/// held as so many. The largest that a master has reason to send is a list of paths.
const MAX_MEMORY: usize = MAX_MESSAGE_SIZE;

/// What is wrong with a message from the master, by what is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// It can't be answered and does no harm: log it and go on.
    #[error("ignored a message from the master: {0}")]
    Ignored(String),
    /// It is answered with this text as an exception.
    #[error("refused request {seq} of the master: {message}")]
    Refused {
        /// The number to answer under.
        seq: SeqNumber,
        /// The text.
        message: String,
    },
    /// The conversation makes no sense any more: close the connection.
    #[error("protocol violation by the master: {0}")]
    Violation(String),
}

/// Reads one message.
///
/// # Errors
/// See [`DecodeError`]; a message longer than [`MAX_MESSAGE_SIZE`], or of which too much would have to be held, is a violation.
pub fn decode(message: &[u8]) -> Result<Incoming, DecodeError> {
    let violation = |what: &str| DecodeError::Violation(what.to_owned());
    if message.len() > MAX_MESSAGE_SIZE {
        return Err(violation("the message is too long"));
    }
    if count_values(message) > (MAX_MEMORY / size_of::<Raw>()) as u64 {
        return Err(violation("the message has too many values"));
    }
    let mut rest = message;
    let raw = rmpv::decode::read_value_with_max_depth(&mut rest, MAX_DEPTH)
        .map_err(|error| DecodeError::Violation(format!("not msgpack: {error}")))?;
    if !rest.is_empty() {
        return Err(violation("bytes after the end of the map"));
    }
    let Raw::Map(pairs) = raw else {
        return Err(DecodeError::Ignored("it is not a map".to_owned()));
    };
    let mut fields = Fields { pairs, seq: SeqNumber(0) };
    let Some(op) = fields.take("op").and_then(|op| op.as_str().map(str::to_owned)) else {
        return Err(DecodeError::Ignored("it has no op".to_owned()));
    };
    let Some(seq) = fields.take("seq_number").and_then(|seq| seq.as_u64()) else {
        return Err(DecodeError::Ignored("it has no seq_number".to_owned()));
    };
    fields.seq = SeqNumber(seq);
    if op == "response" {
        return fields.response();
    }
    let request = fields.request(&op)?;
    Ok(Incoming::Request { seq: fields.seq, request })
}

/// How many values a message has, as far as it is well-formed, without holding any of them.
fn count_values(message: &[u8]) -> u64 {
    let (mut rest, mut wanted, mut count) = (message, 1_u64, 0);
    while wanted > 0 {
        let Some((first, after)) = rest.split_first() else { break };
        let marker = Marker::from_u8(*first);
        let number =
            |bytes: usize| after.get(..bytes).map(|bytes| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)));
        // How many bytes follow the marker, and how many values are in it.
        let size = match marker {
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False | Marker::Reserved => {
                Some((0, 0))
            }
            Marker::U8 | Marker::I8 => Some((1, 0)),
            Marker::U16 | Marker::I16 => Some((2, 0)),
            Marker::U32 | Marker::I32 | Marker::F32 => Some((4, 0)),
            Marker::U64 | Marker::I64 | Marker::F64 => Some((8, 0)),
            Marker::FixStr(bytes) => Some((bytes.into(), 0)),
            Marker::Str8 | Marker::Bin8 => number(1).map(|bytes| (1 + bytes, 0)),
            Marker::Str16 | Marker::Bin16 => number(2).map(|bytes| (2 + bytes, 0)),
            Marker::Str32 | Marker::Bin32 => number(4).map(|bytes| (4 + bytes, 0)),
            // They have a type, too.
            Marker::FixExt1 => Some((2, 0)),
            Marker::FixExt2 => Some((3, 0)),
            Marker::FixExt4 => Some((5, 0)),
            Marker::FixExt8 => Some((9, 0)),
            Marker::FixExt16 => Some((17, 0)),
            Marker::Ext8 => number(1).map(|bytes| (2 + bytes, 0)),
            Marker::Ext16 => number(2).map(|bytes| (3 + bytes, 0)),
            Marker::Ext32 => number(4).map(|bytes| (5 + bytes, 0)),
            Marker::FixArray(items) => Some((0, items.into())),
            Marker::Array16 => number(2).map(|items| (2, items)),
            Marker::Array32 => number(4).map(|items| (4, items)),
            Marker::FixMap(pairs) => Some((0, 2 * u64::from(pairs))),
            Marker::Map16 => number(2).map(|pairs| (2, 2 * pairs)),
            Marker::Map32 => number(4).map(|pairs| (4, 2 * pairs)),
        };
        let Some((bytes, items)) = size else { break };
        let Some(next) = usize::try_from(bytes).ok().and_then(|bytes| after.get(bytes..)) else { break };
        (rest, count, wanted) = (next, count + 1, wanted - 1 + items);
    }
    count
}

/// The keys of a message that have not been looked at yet.
struct Fields {
    pairs: Vec<(Raw, Raw)>,
    seq: SeqNumber,
}

impl Fields {
    fn take(&mut self, key: &str) -> Option<Raw> {
        let at = self.pairs.iter().position(|(k, _)| k.as_str() == Some(key))?;
        Some(self.pairs.swap_remove(at).1)
    }

    fn refuse(&self, message: String) -> DecodeError {
        DecodeError::Refused { seq: self.seq, message }
    }

    /// The value under `key`, or the refusal a Buildbot worker answers with when it is missing (quotes included).
    fn obligatory(&mut self, key: &str) -> Result<Raw, DecodeError> {
        self.take(key).ok_or_else(|| self.refuse(format!("'message did not contain obligatory \"{key}\" key'")))
    }

    fn text(&mut self, key: &str) -> Result<String, DecodeError> {
        match self.obligatory(key)? {
            Raw::String(text) => text.into_str().ok_or_else(|| self.refuse(format!("'{key}' is not UTF-8"))),
            other => Err(self.refuse(format!("'{key}' is not text: {other:.100}"))),
        }
    }

    fn optional_text(&mut self, key: &str) -> Option<String> {
        self.take(key).and_then(|value| value.as_str().map(str::to_owned))
    }

    fn response(mut self) -> Result<Incoming, DecodeError> {
        // What counts is that the key is there, whatever its value.
        let exception = self.take("is_exception").is_some();
        let result = match self.take("result") {
            Some(raw) => from_raw(raw).map_err(DecodeError::Violation)?,
            None => return Err(DecodeError::Violation("a response without a result".to_owned())),
        };
        let result = match (exception, result) {
            (false, value) => Ok(value),
            (true, Value::Str(text)) => Err(text),
            (true, other) => Err(format!("{other:?}")),
        };
        Ok(Incoming::Response { seq: self.seq, result })
    }

    fn request(&mut self, op: &str) -> Result<Request, DecodeError> {
        Ok(match op {
            "print" => Request::Print { message: self.text("message")? },
            "keepalive" => Request::Keepalive,
            "get_worker_info" => Request::WorkerInfo,
            "set_worker_settings" => Request::Settings(self.settings()?),
            "start_command" => {
                let command_id = CommandId(self.text("command_id")?);
                let name = self.text("command_name")?;
                let args = self.obligatory("args")?;
                let args = from_raw(args).map_err(|why| self.refuse(why))?;
                let args = args.with_text_for_bytes().map_err(|why| self.refuse(why.to_owned()))?;
                if !matches!(args, Value::Map(_)) {
                    return Err(self.refuse(format!("the args of {name} are not a map")));
                }
                let builder = self.optional_text("builder_name");
                Request::StartCommand(StartCommand { command_id, builder, name, args })
            }
            "interrupt_command" => {
                Request::Interrupt { command_id: CommandId(self.text("command_id")?), why: self.text("why")? }
            }
            "shutdown" => Request::Shutdown,
            _ => return Err(self.refuse(format!("Command {op} does not exist."))),
        })
    }

    fn settings(&mut self) -> Result<Settings, DecodeError> {
        let args = from_raw(self.obligatory("args")?).map_err(|why| self.refuse(why))?;
        let size = |key| match args.get(key) {
            Some(Value::Int(number)) => {
                usize::try_from(*number).ok().filter(|size| (1..=MAX_MESSAGE_SIZE).contains(size))
            }
            _ => None,
        };
        let seconds = match args.get("buffer_timeout") {
            Some(Value::Int(number)) => Some(*number as f64),
            Some(Value::Float(number)) => Some(*number),
            _ => None,
        };
        let settings = (|| {
            Some(Settings {
                buffer_size: size("buffer_size")?,
                buffer_timeout: std::time::Duration::try_from_secs_f64(seconds?.min(86_400.0)).ok()?,
                newline_re: args.get("newline_re")?.as_str()?.to_owned(),
                max_line_length: size("max_line_length")?,
            })
        })();
        settings.ok_or_else(|| self.refuse("'message did not contain obligatory settings for worker'".to_owned()))
    }
}

/// Turns msgpack's value into ours.
fn from_raw(raw: Raw) -> Result<Value, String> {
    Ok(match raw {
        Raw::Nil => Value::Nil,
        Raw::Boolean(truth) => Value::Bool(truth),
        Raw::Integer(number) => Value::Int(number.as_i64().ok_or_else(|| format!("the number {number} is too large"))?),
        Raw::F32(number) => Value::Float(number.into()),
        Raw::F64(number) => Value::Float(number),
        Raw::String(text) => Value::Str(text.into_str().ok_or("text that is not UTF-8")?),
        Raw::Binary(bytes) => Value::Bytes(bytes),
        Raw::Array(items) => Value::List(items.into_iter().map(from_raw).collect::<Result<_, _>>()?),
        Raw::Map(pairs) => Value::Map(
            pairs
                .into_iter()
                .map(|(key, value)| match key {
                    Raw::String(key) => Ok((key.into_str().ok_or("a key that is not UTF-8")?, from_raw(value)?)),
                    other => Err(format!("a key that is not text: {other:.100}")),
                })
                .collect::<Result<_, String>>()?,
        ),
        Raw::Ext(kind, _) => return Err(format!("an extension value of type {kind}")),
    })
}

/// Writes an answer to a request of the master.
pub fn encode_reply(seq: SeqNumber, reply: &Reply) -> Vec<u8> {
    #[derive(Serialize)]
    struct Success<'a> {
        op: &'static str,
        seq_number: u64,
        result: &'a Value,
    }
    #[derive(Serialize)]
    struct Exception<'a> {
        op: &'static str,
        seq_number: u64,
        result: &'a str,
        is_exception: bool,
    }
    match reply {
        Ok(result) => pack(&Success { op: "response", seq_number: seq.0, result }),
        Err(text) => pack(&Exception { op: "response", seq_number: seq.0, result: text, is_exception: true }),
    }
}

/// Writes a call on the master, numbered `seq`.
pub fn encode_call(seq: SeqNumber, call: &Call) -> Vec<u8> {
    #[derive(Serialize)]
    struct Plain<'a> {
        op: &'static str,
        seq_number: u64,
        command_id: &'a str,
    }
    #[derive(Serialize)]
    struct WithArgs<'a, T> {
        op: &'static str,
        seq_number: u64,
        command_id: &'a str,
        args: T,
    }
    #[derive(Serialize)]
    struct WithTimes<'a> {
        op: &'static str,
        seq_number: u64,
        command_id: &'a str,
        access_time: f64,
        modified_time: f64,
    }
    #[derive(Serialize)]
    struct WithLength<'a> {
        op: &'static str,
        seq_number: u64,
        command_id: &'a str,
        length: usize,
    }
    let (seq_number, command_id) = (seq.0, call.command_id().0.as_str());
    match call {
        Call::Update { updates, .. } => {
            let args: Vec<Pair<'_>> = updates.iter().map(Pair).collect();
            pack(&WithArgs { op: "update", seq_number, command_id, args })
        }
        Call::Complete { failure, .. } => pack(&WithArgs { op: "complete", seq_number, command_id, args: failure }),
        Call::UploadWrite { data, .. } => {
            pack(&WithArgs { op: "update_upload_file_write", seq_number, command_id, args: Blob(data) })
        }
        Call::UploadClose { .. } => pack(&Plain { op: "update_upload_file_close", seq_number, command_id }),
        Call::UploadTimes { accessed, modified, .. } => pack(&WithTimes {
            op: "update_upload_file_utime",
            seq_number,
            command_id,
            access_time: *accessed,
            modified_time: *modified,
        }),
        Call::DirectoryWrite { data, .. } => {
            pack(&WithArgs { op: "update_upload_directory_write", seq_number, command_id, args: Blob(data) })
        }
        Call::DirectoryUnpack { .. } => pack(&Plain { op: "update_upload_directory_unpack", seq_number, command_id }),
        Call::Read { length, .. } => {
            pack(&WithLength { op: "update_read_file", seq_number, command_id, length: *length })
        }
        Call::ReadClose { .. } => pack(&Plain { op: "update_read_file_close", seq_number, command_id }),
    }
}

fn pack<T: Serialize>(message: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(message).expect("maps of text, numbers and bytes always encode into memory")
}

/// Bytes that serialize as msgpack `bin`.
struct Blob<'a>(&'a [u8]);

impl Serialize for Blob<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// An update as its `[key, value]` pair.
struct Pair<'a>(&'a Update);

impl Serialize for Pair<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Update::Text(Stream::Log(name), lines) => ("log", (name, triple(lines))).serialize(serializer),
            Update::Text(Stream::Header, lines) => ("header", triple(lines)).serialize(serializer),
            Update::Text(Stream::Stdout, lines) => ("stdout", triple(lines)).serialize(serializer),
            Update::Text(Stream::Stderr, lines) => ("stderr", triple(lines)).serialize(serializer),
            Update::Rc(rc) => ("rc", rc).serialize(serializer),
            Update::Elapsed(seconds) => ("elapsed", seconds).serialize(serializer),
            Update::FailureReason(reason) => ("failure_reason", reason).serialize(serializer),
            Update::Files(names) => ("files", names).serialize(serializer),
            Update::Stat(numbers) => ("stat", numbers).serialize(serializer),
            Update::Other(key, value) => (key, value).serialize(serializer),
        }
    }
}

/// Lines as the master takes them: `[text, positions, times]`.
fn triple(lines: &Lines) -> (&str, &[u32], &[f64]) {
    (&lines.text, &lines.newlines, &lines.times)
}

#[cfg(test)]
pub(crate) mod tests;
