//! The codec of Perspective Broker (Twisted 26.10.0), as Buildbot 4.3.0 and nearly every other master speak it.
//!
//! ```text
//! bytes ── banana ──▶ expressions ── messages ──▶ calls, answers ── jelly ──▶ Incoming, Event
//! ```
//!
//! PB calls methods of objects that live at the other side and are known by a number there, with counted references.
//! [`Connection`] keeps these and shows outside the same [`Incoming`](crate::Incoming) and takes the same
//! [`Reply`](crate::Reply)s and [`Call`](crate::Call)s as every protocol has. It needs no clock and no socket.

pub mod banana;
mod commands;
mod connection;
mod exports;
mod failure;
pub mod jelly;
mod login;
mod message;
mod method;
mod update;

pub use connection::{Connection, Event};
pub use login::Refusal;

#[cfg(test)]
mod tests;
