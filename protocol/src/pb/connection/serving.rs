//! What a master calls on the worker's objects, and how it is answered.

use super::super::banana::{Encoder, TooLong};
use super::super::commands::Running;
use super::super::exports::Exported;
use super::super::failure::{Class, Failure};
use super::super::jelly::Jelly;
use super::super::message::{self, RemoteCall};
use super::super::method::{Arguments, Start, Wanted};
use super::{About, Asked, Connection, Event, MAX_UNANSWERED};
use crate::message::{Incoming, Request, SeqNumber};

impl Connection {
    /// The master calls one of our objects.
    pub(super) fn called(&mut self, call: RemoteCall) -> Result<(), String> {
        let RemoteCall { request, answer_required, .. } = call;
        if self.asked.contains_key(&SeqNumber(request)) || self.asked.len() >= MAX_UNANSWERED {
            return Err(format!("request {request} while it, or too many others, are not answered"));
        }
        let mut remotes = Vec::new();
        match self.wanted(call, &mut remotes) {
            Ok(Wanted::Request(wanted)) => {
                let about = match &wanted {
                    Request::BuilderList(builders) => {
                        About::Builders(builders.iter().map(|(name, _)| name.clone()).collect())
                    }
                    _ => About::Anything,
                };
                self.ask(request, Asked { answer_required, about }, wanted);
            }
            Ok(Wanted::Start(start)) => {
                let owed = std::mem::take(&mut remotes);
                self.start(request, answer_required, start, owed);
            }
            Ok(Wanted::Interrupt { builder, command_id, why }) => {
                let command_id = self.commands.meant(&builder, command_id);
                let asked = Asked { answer_required, about: About::Anything };
                self.ask(request, asked, Request::Interrupt { command_id, why });
            }
            Ok(Wanted::Nothing) => self.answer(request, answer_required, Encoder::none),
            Err(failure) => self.refuse_oddity(request, answer_required, &failure),
        }
        self.decref(remotes);
        Ok(())
    }

    fn wanted(&self, call: RemoteCall, remotes: &mut Vec<u64>) -> Result<Wanted, Failure> {
        let unreadable = |error| Failure::new(Class::Value, format!("an argument of {}: {error}", call.method));
        let args = Jelly::read(call.args, remotes);
        let kwargs = Jelly::read(call.kwargs, remotes);
        let object = message::number(&call.object).and_then(|number| self.exports.get(number));
        let object = object.ok_or_else(|| Failure::new(Class::InvalidObject, "Invalid Object ID"))?;
        let arguments = Arguments::new(args.map_err(unreadable)?, kwargs.map_err(unreadable)?)?;
        Wanted::read(object, &call.method, arguments)
    }

    fn ask(&mut self, request: u64, asked: Asked, wanted: Request) {
        let seq = SeqNumber(request);
        self.asked.insert(seq, asked);
        self.events.push_back(Event::Incoming(Incoming::Request { seq, request: wanted }));
    }

    fn start(&mut self, request: u64, answer_required: bool, start: Start, owed: Vec<u64>) {
        let Start { command, reference, writer, reader } = start;
        let id = command.command_id.clone();
        if self.commands.contains(&id) {
            let failure = Failure::new(Class::Value, format!("command {id} is running already"));
            self.refuse_oddity(request, answer_required, &failure);
            self.decref(owed);
            return;
        }
        let builder = command.builder.clone().unwrap_or_default();
        let running = Running { builder, reference, writer, reader, owed, complete: false };
        self.commands.start(id.clone(), running);
        self.ask(request, Asked { answer_required, about: About::Start(id) }, Request::StartCommand(command));
    }

    /// Answers a list of builders with references to them. What still runs at others goes on until it is completed, for which
    /// its build waits.
    pub(super) fn answer_builders(&mut self, request: u64, answer_required: bool, names: Vec<String>) {
        if !answer_required {
            return;
        }
        let mut references = Vec::new();
        for name in names {
            match self.exports.export(Exported::Builder(name.clone())) {
                Some(number) => references.push((name, number)),
                None => {
                    let failure = Failure::new(Class::Runtime, "more builders than this worker can keep references to");
                    return self.refuse(request, answer_required, &failure);
                }
            }
        }
        self.answer(request, answer_required, |encoder| {
            encoder.dictionary(references.len())?;
            references.iter().try_for_each(|(name, number)| {
                encoder.key(name)?;
                encoder.object("remote", *number)
            })
        });
    }

    pub(super) fn answer(
        &mut self,
        request: u64,
        answer_required: bool,
        result: impl FnOnce(&mut Encoder) -> Result<(), TooLong>,
    ) {
        if !answer_required {
            return;
        }
        if let Err(error) = self.write(|encoder| encoder.answer(request, result)) {
            self.warn(format!("an answer to the master: {error}"));
            self.refuse(request, answer_required, &Failure::new(Class::Runtime, error.to_string()));
        }
    }

    /// Answers with an exception that nobody else hears of.
    fn refuse_oddity(&mut self, request: u64, answer_required: bool, failure: &Failure) {
        self.warn(format!("refused a request of the master: {failure}"));
        self.refuse(request, answer_required, failure);
    }

    pub(super) fn refuse(&mut self, request: u64, answer_required: bool, failure: &Failure) {
        if answer_required && let Err(error) = self.write(|encoder| encoder.error(request, failure)) {
            self.warn(format!("an error for the master: {error}"));
        }
    }
}
