//! The line to the master: connecting, staying connected, and carrying messages both ways.
//!
//! ```text
//!            requests ┌────────┐ bytes
//!  daemon ◀───────────┤  line  ├──────── master
//!  commands ─────────▶└────────┘
//!            calls
//! ```
//!
//! What a request means is the daemon's business, and what a command says is the command's.

mod access;
mod backoff;
mod broker;
mod connect;
mod contact;
mod line;
mod link;
mod prompt;
mod trial;
mod websocket;
mod wire;

pub(crate) use access::Access;
pub(crate) use contact::{Contact, Phase, Reading};
pub(crate) use line::{Line, LineEvent};
#[cfg(test)]
pub(crate) use link::Outgoing;
pub(crate) use link::{Answer, AskError, LineLost, MasterLink};
pub(crate) use trial::try_login;
