//! The Buildbot wire protocols, as messages and codecs: bytes in, typed messages out, and back.
//!
//! [`message`] is one set of types for every protocol; [`pb`] is the codec of Perspective Broker, [`msgpack`] that of
//! `msgpack_experimental_v7` (Buildbot 4.3.0). [`command`] parses the arguments of a command into types before anything acts on them.
//!
//! This crate does no IO, keeps no time and starts no task. It answers "what does this message say", never
//! "what is to be done about it".

pub mod args;
pub mod command;
pub mod message;
pub mod msgpack;
pub mod pb;
pub mod value;

pub use args::{Args, ArgumentError};
pub use command::{Command, Invocation, Placement};
pub use message::{
    Call, CommandId, Incoming, Lines, Reply, Request, SeqNumber, Settings, StartCommand, Stream, Update, WorkerInfo,
};
pub use value::Value;
