//! What freezing and restoring have in common: a machine's state, without its memory, goes through a socket.
//!
//! QEMU calls it a migration. Its `fd:` takes files as well, but warns that it will not for ever (since 9.1), and `file:`
//! there is from 8.2 only. A socket it takes in all versions. Nothing is spawned, which the sandbox would not allow.

use std::future::Future;
use std::io;

use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::timeout;

use crate::qmp::{Event, Qmp, QmpError};
use crate::start::END_PATIENCE;
use crate::{Exit, Vm};

/// QEMU's name for its end of the socket.
const NAME: &str = "state";

/// A migration that is prepared, or under way.
pub(crate) struct Migration<'a> {
    qmp: &'a Qmp,
    events: broadcast::Receiver<Event>,
}

/// Why a machine's state did not get through.
#[derive(Debug)]
pub(crate) enum Fault {
    /// QEMU is gone.
    Exited(Exit),
    /// QEMU says why.
    Failed(String),
    /// The monitor does not answer as it should.
    Monitor(QmpError),
    /// Our end of the socket or the state's file.
    State(io::Error),
}

impl From<QmpError> for Fault {
    fn from(error: QmpError) -> Self {
        match error {
            QmpError::Refused { description, .. } => Fault::Failed(description),
            error => Fault::Monitor(error),
        }
    }
}

/// Does something with a machine, unless QEMU exits.
pub(crate) async fn unless_exited<T>(vm: &Vm, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let worked = tokio::select! {
        biased;
        exit = vm.exited() => return Err(Fault::Exited(exit)),
        worked = work => worked,
    };
    match worked {
        // The monitor goes when QEMU does, and the reason for that is the better one.
        Err(Fault::Monitor(QmpError::Closed)) => match timeout(END_PATIENCE, vm.exited()).await {
            Ok(exit) => Err(Fault::Exited(exit)),
            Err(_) => Err(Fault::Monitor(QmpError::Closed)),
        },
        worked => worked,
    }
}

impl<'a> Migration<'a> {
    /// Prepares QEMU for a migration that leaves the memory where it is, and returns our end of the socket.
    pub(crate) async fn prepare(qmp: &'a Qmp) -> Result<(Self, UnixStream), Fault> {
        let on = |capability| json!({ "capability": capability, "state": true });
        let capabilities = json!({ "capabilities": [on("x-ignore-shared"), on("events")] });
        qmp.execute("migrate-set-capabilities", capabilities).await?;
        let (ours, theirs) = UnixStream::pair().map_err(Fault::State)?;
        let theirs = theirs.into_std().map_err(Fault::State)?;
        qmp.pass(NAME, theirs.into()).await?;
        Ok((Migration { qmp, events: qmp.events() }, ours))
    }

    /// Has QEMU write the state to the socket, or read it from there: `migrate` or `migrate-incoming`. Returns when QEMU
    /// says that it is done.
    pub(crate) async fn run(mut self, command: &str) -> Result<(), Fault> {
        self.qmp.execute(command, json!({ "uri": format!("fd:{NAME}") })).await?;
        loop {
            let status = match self.events.recv().await {
                Ok(Event::Other { name, data }) if name == "MIGRATION" => data,
                Ok(_) => continue,
                Err(RecvError::Lagged(_)) => self.qmp.execute("query-migrate", json!({})).await?,
                Err(RecvError::Closed) => return Err(Fault::Monitor(QmpError::Closed)),
            };
            match status["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => return Err(self.failure().await),
                _ => {}
            }
        }
    }

    async fn failure(&self) -> Fault {
        match self.qmp.execute("query-migrate", json!({})).await {
            Ok(answer) => Fault::Failed(answer["error-desc"].as_str().unwrap_or("it does not say why").to_owned()),
            Err(error) => Fault::from(error),
        }
    }
}
