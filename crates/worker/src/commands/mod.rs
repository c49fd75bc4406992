//! The commands, each written once against [`Place`].

mod context;
mod interrupt;

pub(crate) use context::Context;
pub(crate) use interrupt::{Interrupt, Interrupter};

use protocol::Update;
use thiserror::Error;
use tokio::time::Instant;

use crate::output::Reporter;

/// Why a command could not be carried out. It makes the build an exception, and the master avoids the worker for a while:
/// what is the build's own fault is an `rc` instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub(crate) struct Failure(pub String);

/// Reports the end of a command that was `started` then, by what [`Context::until_abandoned`] said of its work: exactly
/// one completion, or nothing at all for an abandoned command.
pub(crate) async fn conclude(
    context: &Context,
    reporter: Reporter,
    started: Instant,
    outcome: Option<Result<(), Failure>>,
) {
    let Some(outcome) = outcome else {
        return reporter.abandon().await;
    };
    // Buildbot's worker does not send it for an interrupted command either.
    if context.interrupt.reason().is_none() {
        reporter.update(Update::Elapsed(started.elapsed().as_secs_f64())).await;
    }
    reporter.complete(outcome.err().map(|failure| failure.0)).await;
}
