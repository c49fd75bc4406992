//! What the worker calls on the master's objects, and what the master answers.

use super::super::banana::{Encoder, Expression, SIZE_LIMIT, TooLong};
use super::super::failure::{Class, Failure, RemoteFailure};
use super::super::jelly::{Jelly, JellyError};
use super::super::login::Refusal;
use super::super::message::Remote;
use super::super::update;
use super::{Connection, Event, Purpose, Split, Stage};
use crate::message::{Call, Incoming, SeqNumber, Update};
use crate::value::Value;

impl Connection {
    /// The master has answered a request of ours.
    pub(super) fn answered(&mut self, purpose: Purpose, value: Expression) -> Result<(), String> {
        let mut remotes = Vec::new();
        let value = Jelly::read(value, &mut remotes);
        match purpose {
            Purpose::Login => self.respond(value.map_err(|error| error.to_string())?)?,
            Purpose::Respond => {
                let Ok(Jelly::Remote(perspective)) = value else {
                    return Err("a malformed answer to the login".to_owned());
                };
                // Held as long as the connection, so nothing is given back.
                remotes.clear();
                self.stage = Stage::LoggedIn { perspective };
                self.events.push_back(Event::LoggedIn);
            }
            Purpose::Keepalive => self.keepalive_pending = false,
            Purpose::Shutdown => self.events.push_back(Event::ShutdownNoted(Ok(()))),
            Purpose::Call(seq) => self.finish_part(seq, plain(value)),
            // At the end of a file an old master's answer is text.
            Purpose::Read(seq) => self.finish_part(
                seq,
                plain(value).map(|value| match value {
                    Value::Str(text) => Value::Bytes(text.into_bytes()),
                    other => other,
                }),
            ),
            Purpose::Complete(seq, command_id) => {
                self.finish_part(seq, plain(value));
                self.forget(&command_id);
            }
        }
        self.decref(remotes);
        Ok(())
    }

    /// A request of ours raised an exception at the master.
    pub(super) fn failed(&mut self, purpose: Purpose, failure: Expression) -> Result<(), String> {
        let mut remotes = Vec::new();
        let failure = RemoteFailure::read(failure, &mut remotes);
        match purpose {
            Purpose::Login | Purpose::Respond => {
                self.stage = Stage::Refused;
                let refusal = Refusal::of(&failure);
                self.events.push_back(Event::LoginRefused { refusal, message: failure.text });
            }
            Purpose::Keepalive => {
                self.keepalive_pending = false;
                self.warn(format!("the master refused a keepalive: {}", failure.text));
            }
            Purpose::Shutdown => self.events.push_back(Event::ShutdownNoted(Err(failure.text))),
            Purpose::Call(seq) | Purpose::Read(seq) => self.finish_part(seq, Err(failure.text)),
            Purpose::Complete(seq, command_id) => {
                self.finish_part(seq, Err(failure.text));
                self.forget(&command_id);
            }
        }
        self.decref(remotes);
        Ok(())
    }

    /// One request of a call has been answered: the call is, if it was the last.
    fn finish_part(&mut self, seq: SeqNumber, mut result: Result<Value, String>) {
        if let Some(split) = self.split.get_mut(&seq) {
            split.missing -= 1;
            if let Err(error) = result {
                split.error.get_or_insert(error);
            }
            if split.missing > 0 {
                return;
            }
            result = self.split.remove(&seq).and_then(|split| split.error).map_or(Ok(Value::Nil), Err);
        }
        self.events.push_back(Event::Incoming(Incoming::Response { seq, result }));
    }

    pub(super) fn try_call(&mut self, seq: SeqNumber, call: &Call) -> Result<(), String> {
        let id = call.command_id();
        let command = self.commands.talking(id).ok_or_else(|| format!("command {id} is not running"))?;
        let reference = Remote::Object(command.reference);
        let writer = command.writer.map(Remote::Object).ok_or_else(|| format!("command {id} has no writer"));
        let reader = command.reader.map(Remote::Object).ok_or_else(|| format!("command {id} has no reader"));
        let nothing = |encoder: &mut Encoder| encoder.tuple(0);
        let sent = match call {
            Call::Update { updates, .. } => self.update(seq, reference, updates),
            Call::Complete { failure, .. } => {
                command.complete = true;
                let failure = failure.as_deref().map(|text| Failure::new(Class::Runtime, text));
                self.request(reference, "complete", Purpose::Complete(seq, id.clone()), |encoder| {
                    encoder.tuple(1)?;
                    match failure {
                        None => encoder.none(),
                        Some(failure) => failure.write(encoder),
                    }
                })
            }
            Call::UploadWrite { data, .. } | Call::DirectoryWrite { data, .. } => self.upload(seq, writer?, data),
            Call::UploadClose { .. } => self.request(writer?, "close", Purpose::Call(seq), nothing),
            Call::DirectoryUnpack { .. } => self.request(writer?, "unpack", Purpose::Call(seq), nothing),
            Call::UploadTimes { accessed, modified, .. } => {
                self.request(writer?, "utime", Purpose::Call(seq), |encoder| {
                    encoder.tuple(1)?;
                    encoder.tuple(2)?;
                    encoder.float(*accessed);
                    encoder.float(*modified);
                    Ok(())
                })
            }
            Call::Read { length, .. } => self.request(reader?, "read", Purpose::Read(seq), |encoder| {
                encoder.tuple(1)?;
                encoder.int((*length).min(SIZE_LIMIT) as i64);
                Ok(())
            }),
            Call::ReadClose { .. } => self.request(reader?, "close", Purpose::Call(seq), nothing),
        };
        sent.map_err(|error| error.to_string())
    }

    fn update(&mut self, seq: SeqNumber, command: Remote, updates: &[Update]) -> Result<(), TooLong> {
        self.request(command, "update", Purpose::Call(seq), |encoder| {
            encoder.tuple(1)?;
            update::write(encoder, updates)
        })
    }

    /// Sends a block of a file, as several if it is larger than one byte string may be.
    fn upload(&mut self, seq: SeqNumber, writer: Remote, data: &[u8]) -> Result<(), TooLong> {
        let mut write = |block: &[u8]| {
            self.request(writer, "write", Purpose::Call(seq), |encoder| {
                encoder.tuple(1)?;
                encoder.bytes(block)
            })
        };
        if data.len() <= SIZE_LIMIT {
            return write(data);
        }
        data.chunks(SIZE_LIMIT).try_for_each(&mut write)?;
        self.split.insert(seq, Split { missing: data.len().div_ceil(SIZE_LIMIT), error: None });
        Ok(())
    }

    /// Sends a request whose answer is for `purpose`.
    pub(super) fn request(
        &mut self,
        object: Remote,
        method: &str,
        purpose: Purpose,
        args: impl FnOnce(&mut Encoder) -> Result<(), TooLong>,
    ) -> Result<(), TooLong> {
        let number = self.last_request + 1;
        self.write(|encoder| encoder.call(number, object, method, args))?;
        self.last_request = number;
        self.asking.insert(number, purpose);
        Ok(())
    }
}

/// A result that both protocols know.
fn plain(value: Result<Jelly, JellyError>) -> Result<Value, String> {
    value.and_then(Jelly::into_value).map_err(|error| format!("the master's answer: {error}"))
}
