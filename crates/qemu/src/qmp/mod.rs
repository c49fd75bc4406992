//! QEMU's machine protocol: commands with answers, and events, as one JSON object a line.
//!
//! Follows QEMU's docs/interop/qmp-spec. One connection serves any number of callers; a task of its own reads and writes.

mod client;
mod halt;
mod lines;
mod message;
mod threshold;

pub use client::{Qmp, QmpError};
pub use halt::Halt;
pub use message::{Event, ShutdownCause};
