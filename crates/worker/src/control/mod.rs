//! The control socket: how a person on the host asks a running worker for something, and how it answers.
//!
//! A connection for each question, lines of JSON both ways:
//!
//! ```text
//! client                          worker
//!   Request ───────────────────────▶
//!           ◀────────────────────── Progress, Stdout, Stderr   any number of them
//!           ◀────────────────────── Wants
//!   Input   ───────────────────────▶                           one for each Wants
//!           ◀────────────────────── Done or Refused            the last
//! ```
//!
//! Lines are bounded, and so is how many wait: who is slow to take them slows down what makes them. A client that goes away ends
//! what it asked for, as far as that has an end. `Wants` is why its going is always noticed: nothing else of it is ever on its
//! way while the worker has no use for it.
//!
//! A new verb is a variant of [`Request`] and one of [`Answer`], an arm of the daemon's, and one of the command line's.

mod client;
mod images;
mod message;
mod server;
mod status;
mod talk;

pub(crate) use client::{Conversation, NoConversation, ask, ask_and_outlive};
pub(crate) use images::{Garbage, GarbageLine, ImageLine, ImageTable, Running};
pub(crate) use message::{
    Answer, Exec, GenerationLine, ImageName, Origin, Printable, Ran, Request, Response, TemplateLine, TemplateState,
    TemplatesOf,
};
pub(crate) use server::Server;
pub(crate) use status::{
    CommandStatus, LineState, Login, LooseCommand, Machines, MasterStatus, RefusedBuilder, SlotStatus, SlotWord, Status,
};
pub(crate) use talk::{BLOCK, Bytes, Far, Gone, Input, Lines, Question, Talk};

/// The longest line of a client, in bytes.
const MAX_ASKED: u64 = 1 << 20;

/// The longest line of a worker, in bytes. It has a line for each slot in it, of which there may be a thousand.
const MAX_SAID: u64 = 16 << 20;

#[cfg(test)]
mod tests;
