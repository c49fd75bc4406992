//! The host itself.

/// The host the worker runs on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host;
