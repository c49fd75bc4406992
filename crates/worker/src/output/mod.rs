//! From bytes to what a master wants: decoding, splitting into lines, batching, and exactly one completion.
//!
//! ```text
//! bytes ─▶ Decoder ─▶ Newlines ─▶ LineSplitter ─▶ Buffer ─▶ MasterLink
//!          one of each per stream                 one per command
//! ```
//!
//! A command talks to its [`Reporter`] only. What passes through here is data of the build: it is never logged.

mod buffer;
mod decoder;
mod lines;
mod newlines;
mod reporter;

pub(crate) use reporter::{LogWriter, Reporter, Room};
