//! Child processes, each in its own process group: spawn, stream, signal, escalate, finish.
//!
//! A child is described by a [`Command`] and is from then on a [`Child`], whose owner asks it for one [`Event`] after
//! the other:
//!
//! ```text
//!            spawn()                exit                 output ends, or its grace is over
//!  Command ──────────▶ running ────────────▶ exited ──────────────────────────────────────▶ finished
//!                      Stdout, Stderr,       Exited(status), then what                      Finished, then None
//!                      Signalled, Unkilled   is left of Stdout and Stderr
//! ```
//!
//! - All IO happens in [`Child::next_event`]: whoever does not ask lets the pipes fill, and the child waits. Nothing is
//!   queued here.
//! - The exited child is not reaped before it is finished. Its process id, which is also its group's, therefore stays
//!   its own for as long as a signal can be sent.
//! - Dropping a [`Child`] that is not finished kills its whole group.
//!
//! Linux 5.4 and later (`pidfd_open`, `waitid(P_PIDFD)`). This crate knows nothing of Buildbot or QEMU, and has no policy
//! beyond what is said here: time-outs belong to its callers.

mod child;
mod command;
mod error;
mod escalation;
mod event;
mod group;
mod output;
mod pidfd;
mod pty;
mod setup;
mod spawner;
mod status;
mod stream;
mod tail;
mod watched;

pub use child::Child;
pub use command::Command;
pub use error::{OutputError, SignalError, SpawnError};
pub use escalation::Rung;
pub use event::{Event, Finish, Stream};
pub use nix::sys::signal::Signal;
pub use output::{Limits, Output};
pub use pidfd::Pidfd;
pub use status::ExitStatus;
pub use tail::Tail;
