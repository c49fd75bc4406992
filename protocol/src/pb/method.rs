//! What a master can call on the worker's objects, and with which arguments (Buildbot 4.3.0, `buildbot_worker.base`
//! and `buildbot_worker.pb`).

use super::exports::Exported;
use super::failure::{Class, Failure};
use super::jelly::Jelly;
use crate::message::{CommandId, Request, StartCommand};

/// What a call is about.
#[derive(Debug, PartialEq)]
pub(super) enum Wanted {
    /// Something that is the same over every protocol.
    Request(Request),
    /// A command is to be started.
    Start(Start),
    /// Whatever a builder runs is to be interrupted; the id is a hint.
    Interrupt { builder: String, command_id: CommandId, why: String },
    /// Nothing: the method is there for old masters.
    Nothing,
}

/// A command with the master's objects that belong to it.
#[derive(Debug, PartialEq)]
pub(super) struct Start {
    /// The command. Its arguments have neither `writer` nor `reader`.
    pub command: StartCommand,
    /// Hears of its progress.
    pub reference: u64,
    /// Takes what it uploads.
    pub writer: Option<u64>,
    /// Has what it downloads.
    pub reader: Option<u64>,
}

/// The arguments of a call.
pub(super) struct Arguments {
    positional: std::vec::IntoIter<Jelly>,
    named: Vec<(String, Jelly)>,
}

impl Arguments {
    /// Takes a tuple and a dictionary of them.
    pub(super) fn new(args: Jelly, kwargs: Jelly) -> Result<Self, Failure> {
        let (Jelly::Sequence(_, args), Jelly::Dictionary(kwargs)) = (args, kwargs) else {
            return Err(invalid("the arguments are not a tuple and a dictionary"));
        };
        let named = kwargs
            .into_iter()
            .map(|(key, value)| Some((key.into_text()?, value)))
            .collect::<Option<_>>()
            .ok_or_else(|| invalid("an argument's name is not text"))?;
        Ok(Arguments { positional: args.into_iter(), named })
    }

    /// The next argument, whether it came by place or by name.
    fn next(&mut self, name: &str) -> Result<Jelly, Failure> {
        if let Some(value) = self.positional.next() {
            return Ok(value);
        }
        match self.named.iter().position(|(key, _)| key == name) {
            Some(place) => Ok(self.named.swap_remove(place).1),
            None => Err(invalid(&format!("argument '{name}' is missing"))),
        }
    }

    fn text(&mut self, name: &str) -> Result<String, Failure> {
        self.next(name)?.into_text().ok_or_else(|| invalid(&format!("argument '{name}' is not text")))
    }
}

impl Wanted {
    /// Finds out what is wanted of `object`.
    ///
    /// # Errors
    /// The exception to answer with.
    pub(super) fn read(object: &Exported, method: &str, mut arguments: Arguments) -> Result<Self, Failure> {
        let arguments = &mut arguments;
        Ok(match (object, method) {
            (_, "print") => Wanted::Request(Request::Print { message: arguments.text("message")? }),
            (Exported::Mind, "getWorkerInfo") => Wanted::Request(Request::WorkerInfo),
            (Exported::Mind, "setBuilderList") => Wanted::Request(Request::BuilderList(builders(arguments)?)),
            (Exported::Mind, "shutdown") => Wanted::Request(Request::Shutdown),
            (Exported::Builder(builder), "startBuild") => {
                Wanted::Request(Request::StartBuild { builder: builder.clone() })
            }
            (Exported::Builder(builder), "startCommand") => Wanted::Start(start(builder, arguments)?),
            (Exported::Builder(builder), "interruptCommand") => Wanted::Interrupt {
                builder: builder.clone(),
                command_id: CommandId(arguments.text("command_id")?),
                why: arguments.text("why")?,
            },
            (Exported::Builder(_), "setMaster") => Wanted::Nothing,
            _ => return Err(Failure::new(Class::NoSuchMethod, format!("No such method: remote_{method}"))),
        })
    }
}

fn builders(arguments: &mut Arguments) -> Result<Vec<(String, String)>, Failure> {
    let malformed = || invalid("the builders are not a list of names and directories");
    let Jelly::Sequence(_, items) = arguments.next("wanted")? else { return Err(malformed()) };
    let pair = |item| match item {
        Jelly::Sequence(_, pair) => {
            let [name, directory] = <[_; 2]>::try_from(pair).ok()?;
            Some((name.into_text()?, directory.into_text()?))
        }
        _ => None,
    };
    items.into_iter().map(pair).collect::<Option<_>>().ok_or_else(malformed)
}

fn start(builder: &str, arguments: &mut Arguments) -> Result<Start, Failure> {
    let Jelly::Remote(reference) = arguments.next("command_ref")? else {
        return Err(invalid("argument 'command_ref' is not an object of the master"));
    };
    let command_id = CommandId(arguments.text("command_id")?);
    let name = arguments.text("command")?;
    let Jelly::Dictionary(mut args) = arguments.next("args")? else {
        return Err(invalid(&format!("the args of {name} are not a map")));
    };
    let writer = take_object(&mut args, "writer");
    let reader = take_object(&mut args, "reader");
    let args =
        Jelly::Dictionary(args).into_value().map_err(|error| invalid(&format!("the args of {name}: {error}")))?;
    let args = args.with_text_for_bytes().map_err(invalid)?;
    let command = StartCommand { command_id, builder: Some(builder.to_owned()), name, args };
    Ok(Start { command, reference, writer, reader })
}

/// Takes an object of the master out of a command's arguments, as they have none over msgpack.
fn take_object(args: &mut Vec<(Jelly, Jelly)>, name: &str) -> Option<u64> {
    let is_name = |key: &Jelly| match key {
        Jelly::Str(key) => key == name,
        Jelly::Bytes(key) => key == name.as_bytes(),
        _ => false,
    };
    let place = args.iter().position(|(key, value)| is_name(key) && matches!(value, Jelly::Remote(_)))?;
    match args.remove(place).1 {
        Jelly::Remote(number) => Some(number),
        _ => None,
    }
}

fn invalid(text: &str) -> Failure {
    Failure::new(Class::Value, text)
}
