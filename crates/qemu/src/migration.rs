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

/// How much of the state is moved at once, in bytes. It is about half a megabyte.
pub(crate) const CHUNK: usize = 256 << 10;

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

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    use super::*;

    /// What is made of a migration during which QEMU says this, and then answers this when it is asked.
    async fn check(says: &[Value], answer: Value, expected: Result<(), &str>) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let serve = async {
            let (input, mut output) = theirs.into_split();
            let mut requests = BufReader::new(input).lines();
            output.write_all(b"{\"QMP\": {}}\n").await.expect("the client reads");
            while let Ok(Some(line)) = requests.next_line().await {
                let request: Value = serde_json::from_str(&line).expect("JSON");
                let returned = if request["execute"] == "query-migrate" { &answer } else { &json!({}) };
                let mut text = format!("{}\n", json!({ "return": returned, "id": request["id"] }));
                if request["execute"] == "migrate" {
                    assert_eq!(request["arguments"], json!({ "uri": "fd:state" }));
                    for said in says {
                        text.push_str(&format!("{said}\n"));
                    }
                }
                output.write_all(text.as_bytes()).await.expect("the client reads");
            }
        };
        let migrate = async {
            let qmp = Qmp::over(ours).await.expect("the handshake succeeds");
            let (migration, _socket) = Migration::prepare(&qmp).await.expect("it is prepared");
            match migration.run("migrate").await {
                Ok(()) => Ok(()),
                Err(Fault::Failed(why)) => Err(why),
                Err(fault) => panic!("{fault:?}"),
            }
        };
        let ((), migrated) = tokio::join!(serve, migrate);
        assert_eq!(migrated, expected.map_err(str::to_owned));
    }

    fn status(status: &str) -> Value {
        json!({ "event": "MIGRATION", "data": { "status": status } })
    }

    #[tokio::test]
    async fn a_migration_is_over_when_qemu_says_so() {
        let stop = json!({ "event": "STOP" });
        check(&[status("setup"), stop, status("active"), status("completed")], json!({}), Ok(())).await;
        let why = json!({ "status": "failed", "error-desc": "no room" });
        check(&[status("active"), status("failed")], why, Err("no room")).await;
        let silent = json!({ "status": "cancelled" });
        check(&[status("cancelled")], silent, Err("it does not say why")).await;
    }

    #[tokio::test]
    async fn an_end_that_was_missed_among_other_events_is_asked_for() {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let (input, mut output) = theirs.into_split();
        let mut requests = BufReader::new(input).lines();
        output.write_all(b"{\"QMP\": {}}\n").await.expect("the client reads");
        let mut answer = async |expected: &str, returned: Value, then: &str| {
            let line = requests.next_line().await.expect("readable").expect("the client is there");
            let request: Value = serde_json::from_str(&line).expect("JSON");
            assert_eq!(request["execute"], expected);
            let text = format!("{}\n{then}", json!({ "return": returned, "id": request["id"] }));
            output.write_all(text.as_bytes()).await.expect("the client reads");
        };
        let (qmp, ()) = tokio::join!(Qmp::over(ours), answer("qmp_capabilities", json!({}), ""));
        let qmp = qmp.expect("the handshake succeeds");
        let prepared = async {
            answer("migrate-set-capabilities", json!({}), "").await;
            answer("getfd", json!({}), "").await;
        };
        let (migration, ()) = tokio::join!(Migration::prepare(&qmp), prepared);
        let (migration, _socket) = migration.expect("it is prepared");

        let mut running = std::pin::pin!(migration.run("migrate"));
        let others = format!("{}\n{}", status("completed"), "{\"event\": \"RTC_CHANGE\"}\n".repeat(1000));
        tokio::select! {
            ran = &mut running => panic!("it was not started: {ran:?}"),
            () = answer("migrate", json!({}), &others) => {}
        }
        // Once this is answered all that came before is with those who listen, of whom one does not get its turn.
        let (asked, ()) = tokio::join!(qmp.status(), answer("query-status", json!({ "status": "paused" }), ""));
        assert_eq!(asked.expect("it answers"), "paused");
        let (ran, ()) = tokio::join!(running, answer("query-migrate", json!({ "status": "completed" }), ""));
        ran.expect("it is over");
    }
}
