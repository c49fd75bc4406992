//! The control socket: how a person on the host asks a running worker for something, and how it answers.
//!
//! One line of JSON each way, a connection for each question. `pool.state_dir` proves who listens: its lock is held by one
//! worker at most. A new verb is a variant of [`Request`] and one of [`Answer`], an arm of the daemon's, and one of the
//! command line's.

mod client;
mod images;
mod message;
mod server;

use std::path::{Path, PathBuf};

pub(crate) use client::ask;
pub(crate) use images::{Garbage, GarbageLine, ImageLine, ImageTable, Running};
pub(crate) use message::{
    Answer, GenerationLine, ImageName, Origin, Request, Response, TemplateLine, TemplateState, TemplatesOf,
};
pub(crate) use server::{Question, Server};

/// Where the worker that has this state directory listens.
fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("control.sock")
}

/// The longest line of either side, in bytes.
const MAX_LINE: u64 = 1 << 20;

#[cfg(test)]
mod tests;
