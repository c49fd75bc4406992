//! The commands, each written once against [`Place`].

mod console;
mod context;
mod environment;
mod execution;
#[cfg(test)]
mod fake_master;
mod files;
pub(crate) mod foreign_paths;
mod header;
mod interrupt;
mod ladder;
mod logfiles;
mod os_error;
#[cfg(test)]
mod recordings;
#[cfg(test)]
pub(crate) mod scenery;
#[cfg(test)]
#[path = "../../../ssh/tests/servers/server.rs"]
#[allow(dead_code, reason = "the tests of the ssh crate need more of it")]
pub(crate) mod server;
mod shell;
mod transfer;
pub(crate) mod vm;

pub(crate) use context::Context;
pub(crate) use interrupt::{Interrupt, Interrupter};

use std::sync::Arc;

use protocol::{Command, Update};
use thiserror::Error;
use tokio::time::Instant;

use crate::output::Reporter;
use crate::place::Place;
use crate::pool::VmError;

/// Why a command could not be carried out. It makes the build an exception, and the master avoids the worker for a while:
/// what is the build's own fault is an `rc` instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub(crate) struct Failure(pub String);

/// Runs a standard command to its end, and completes it. The `vm_…` commands are not for a place to run.
pub(crate) async fn run(context: Context, command: Command, place: Arc<dyn Place>, reporter: Reporter) {
    run_until(context, command, place, std::future::pending(), reporter).await;
}

/// Does the same, unless the place is taken away before the end: the command fails with what `taken` says.
pub(crate) async fn run_until(
    context: Context,
    command: Command,
    place: Arc<dyn Place>,
    taken: impl Future<Output = VmError>,
    reporter: Reporter,
) {
    let started = Instant::now();
    let work = async {
        tokio::select! {
            biased;
            why = taken => {
                vm::fail(&reporter, why.reason(), &why.to_string(), vm::KILLED).await;
                Ok(())
            }
            outcome = carry_out(&context, &command, &*place, &reporter) => outcome,
        }
    };
    let outcome = context.until_abandoned(work).await;
    conclude(&context, reporter, started, outcome).await;
}

/// Completes a command that is done.
pub(crate) async fn confirm(context: Context, reporter: Reporter) {
    let started = Instant::now();
    let outcome = context.until_abandoned(async {
        reporter.update(Update::Rc(0)).await;
        Ok(())
    });
    let outcome = outcome.await;
    conclude(&context, reporter, started, outcome).await;
}

async fn carry_out(
    context: &Context,
    command: &Command,
    place: &dyn Place,
    reporter: &Reporter,
) -> Result<(), Failure> {
    match command {
        Command::Shell(shell) => shell::run(context, shell, place, reporter).await,
        Command::UploadFile(upload) => transfer::upload_file(context, upload, place, reporter).await,
        Command::UploadDirectory(upload) => transfer::upload_directory(context, upload, place, reporter).await,
        Command::DownloadFile(download) => transfer::download_file(context, download, place, reporter).await,
        Command::Mkdir(mkdir) => files::mkdir(context, mkdir, place, reporter).await,
        Command::Rmdir(rmdir) => files::rmdir(context, rmdir, place, reporter).await,
        Command::Cpdir(cpdir) => files::cpdir(context, cpdir, place, reporter).await,
        Command::Stat(stat) => files::stat(context, stat, place, reporter).await,
        Command::Glob(glob) => files::glob(context, glob, place, reporter).await,
        Command::Listdir(listdir) => files::listdir(context, listdir, place, reporter).await,
        Command::Rmfile(rmfile) => files::rmfile(context, rmfile, place, reporter).await,
        Command::VmStart(_) | Command::VmCopy(_) | Command::VmReboot(_) | Command::VmStop(_) | Command::VmInfo(_) => {
            Err(Failure("a command about a VM came to a place that runs commands: this is a bug".to_owned()))
        }
    }
}

/// Reports the end of a command that was `started` then, by what [`Context::until_abandoned`] said of its work: exactly
/// one completion, or nothing at all for an abandoned command that is not to be a failure.
pub(crate) async fn conclude(
    context: &Context,
    reporter: Reporter,
    started: Instant,
    outcome: Option<Result<(), Failure>>,
) {
    let Some(outcome) = outcome else {
        return match context.interrupt.failure() {
            Some(why) => reporter.complete(Some(why)).await,
            None => reporter.abandon().await,
        };
    };
    // Buildbot's worker does not send it for an interrupted command either.
    if context.interrupt.reason().is_none() {
        reporter.update(Update::Elapsed(started.elapsed().as_secs_f64())).await;
    }
    reporter.complete(outcome.err().map(|failure| failure.0)).await;
}
