//! The line to the master.

mod link;

pub(crate) use link::{AskError, LineLost, MasterLink, Outgoing};
