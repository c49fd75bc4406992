//! A real Buildbot master, real QEMU and real ssh around the worker's binary, so that tests read as behaviour.
//!
//! ```text
//! Master    a Buildbot master in a directory of its own; builds are forced and read through its REST interface
//! KvmHost   a worker's directories, ports and configuration; what is left when the worker is gone is found here
//! Worker    the worker's process
//! Rig       one of each, for the tests that need no more
//! PrivateRepository   a git repository behind a key or a password
//! Line      a TCP proxy between the two, to cut or to wrap in TLS
//! Terminal  a terminal, and a program that runs on it
//! ServiceManager   what a worker is told to tell how it is
//! SystemdHost   a guest with a real systemd, where the worker is a service
//! Guest     the disks and keys made by `scripts/setup image`
//! Snapshot  what a host's disk had at some moment
//! ```
//!
//! A machine of a guest is a clone of a template that is made once for all tests. A test that is about booting boots, and
//! says so.
//!
//! Nothing is skipped: a missing artefact fails the test, with the command that makes it. Nothing sleeps: a wait ends
//! with a line of a log, an event of the master, the end of a process, or its deadline.
//!
//! Set `KVM_WORKER_TEST_KEEP` to anything to keep the directories of the masters and workers.

mod artefacts;
mod build;
mod daemon;
mod guest;
mod host;
mod line;
mod luck;
mod machine_times;
mod master;
mod port;
mod private;
mod repository;
mod rest;
mod rig;
mod running;
mod scratch;
mod service_manager;
mod snapshot;
mod stuck;
mod systemd_host;
mod template_store;
mod terminal;
mod transcript;
mod worker;

pub use build::{Build, Log, Results, Step};
pub use daemon::Daemon;
pub use guest::Guest;
pub use host::KvmHost;
pub use line::{Certificates, Line};
pub use luck::{luck, times};
pub use master::{Master, MasterPlan, Protocol, Request};
pub use port::Ports;
pub use private::PrivateRepository;
pub use repository::Repository;
pub use rig::{GATE, Rig};
pub use running::Running;
pub use service_manager::ServiceManager;
pub use snapshot::Snapshot;
pub use stuck::Stuck;
pub use systemd_host::SystemdHost;
pub use terminal::Terminal;
pub use transcript::Transcript;
pub use worker::Worker;

use std::time::Duration;

/// How long anything without a guest in it may take, on a loaded machine.
pub const SOON: Duration = Duration::from_secs(40);

/// How long a build with guests in it may take under TCG, on a loaded machine.
pub const WITH_GUESTS: Duration = Duration::from_secs(240);

/// What a step says when the QEMU of a clone runs; of a machine that boots it says "qemu started".
pub const CLONED: &str = "cloned from the template";

/// Makes two tests of each function that takes a protocol: `msgpack::NAME` and `pb::NAME`. Attributes go to both.
#[macro_export]
macro_rules! over_both_protocols {
    ($($(#[$attribute:meta])* $name:ident),+ $(,)?) => {
        mod msgpack {
            $($(#[$attribute])* #[test] fn $name() -> anyhow::Result<()> { super::$name($crate::Protocol::Msgpack) })+
        }
        mod pb {
            $($(#[$attribute])* #[test] fn $name() -> anyhow::Result<()> { super::$name($crate::Protocol::Pb) })+
        }
    };
}

/// Checks that a request was tried until it succeeded, and that each try before was one that the master is to repeat. Gives
/// all of them.
pub fn succeeded_at_last(master: &Master, request: Request, within: Duration) -> anyhow::Result<Vec<Build>> {
    master.complete(request, within)?.succeeded()?;
    let tries = master.tries(request)?;
    for build in &tries[..tries.len().saturating_sub(1)] {
        build.ended(Results::Retry)?;
    }
    Ok(tries)
}

/// Checks that a request's first build ended as RETRY and the second one well.
pub fn retried(master: &Master, request: Request, within: Duration) -> anyhow::Result<()> {
    master.complete(request, within)?.succeeded()?;
    let results: Vec<_> = master.tries(request)?.iter().map(|build| build.results).collect();
    anyhow::ensure!(results == [Some(Results::Retry), Some(Results::Success)], "the tries ended as {results:?}");
    Ok(())
}

/// Checks that a text has all of several parts, naming the first that is missing together with the text.
pub fn contains_all(text: &str, parts: &[&str]) -> anyhow::Result<()> {
    for part in parts {
        anyhow::ensure!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    Ok(())
}
