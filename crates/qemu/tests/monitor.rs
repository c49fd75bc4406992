//! The QMP client against a server that does as it is told.

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::time::Duration;

use qemu::qmp::{Event, Halt, Qmp, ShutdownCause};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(20);

/// Our side of the connection, in QEMU's place.
struct Server {
    requests: Lines<BufReader<OwnedReadHalf>>,
    output: OwnedWriteHalf,
}

impl Server {
    async fn send(&mut self, text: &str) {
        self.output.write_all(text.as_bytes()).await.expect("the client reads");
    }

    async fn request(&mut self) -> Value {
        let line = timeout(DEADLINE, self.requests.next_line()).await.expect("in time").expect("readable");
        serde_json::from_str(&line.expect("the client is there")).expect("JSON")
    }

    async fn answer(&mut self, request: &Value, value: Value) {
        self.send(&format!("{}\r\n", json!({ "return": value, "id": request["id"] }))).await;
    }
}

/// Connects a client after the handshake, which may be preceded by this.
async fn connected(before: &str) -> (Qmp, Server) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let (input, output) = theirs.into_split();
    let mut server = Server { requests: BufReader::new(input).lines(), output };
    let serve = async {
        server.send(before).await;
        server.send("{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").await;
        let request = server.request().await;
        assert_eq!(request["execute"], "qmp_capabilities");
        server.answer(&request, json!({})).await;
    };
    let (qmp, ()) = tokio::join!(Qmp::over(ours), serve);
    (qmp.expect("the handshake succeeds"), server)
}

#[tokio::test]
async fn answers_find_those_who_asked_whatever_their_order() {
    let (qmp, mut server) = connected("").await;
    let serve = async {
        let (first, second) = (server.request().await, server.request().await);
        assert_eq!((&first["execute"], &first["arguments"]), (&json!("one"), &json!({"a": 1})));
        server.answer(&second, json!("second")).await;
        server.send("{\"event\": \"STOP\"}\n").await;
        server.answer(&first, json!("first")).await;
    };
    let (one, two, ()) = tokio::join!(qmp.execute("one", json!({"a": 1})), qmp.execute("two", json!({})), serve);
    assert_eq!((one.expect("answered"), two.expect("answered")), (json!("first"), json!("second")));
}

#[tokio::test]
async fn an_answer_that_comes_too_late_goes_to_nobody() {
    let (qmp, mut server) = connected("").await;
    let error = qmp.execute_within("slow", json!({}), Duration::ZERO).await.expect_err("nobody answered");
    assert_eq!(error.to_string(), "qemu did not answer slow within 0 s");
    let serve = async {
        let mut request = server.request().await;
        if request["execute"] == "slow" {
            server.answer(&request, json!("late")).await;
            request = server.request().await;
        }
        server.answer(&request, json!("prompt")).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute("next", json!({})), serve);
    assert_eq!(answer.expect("answered"), json!("prompt"));
}

#[tokio::test]
async fn what_it_does_not_understand_does_it_no_harm() {
    let (qmp, mut server) = connected("banner of a wrapper\n{\"event\": \"EARLY\"}\n").await;
    let mut events = qmp.events();
    let serve = async {
        let request = server.request().await;
        server
            .send(
                "no json\r\n[]\n\n{\"news\": true}\n{\"return\": 1, \"id\": 4711}\n{\"return\": 1}\n{\"id\": \"x\"}\n",
            )
            .await;
        server.send("{\"event\": \"NEW_EVENT\", \"data\": {\"x\": 1}}\n").await;
        server.answer(&request, json!(true)).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute("ask", json!({})), serve);
    assert_eq!(answer.expect("answered"), json!(true));
    let other = Event::Other { name: "NEW_EVENT".to_owned(), data: json!({"x": 1}) };
    assert_eq!(events.recv().await, Ok(other));
}

#[tokio::test]
async fn a_refusal_is_told_with_qemus_reason() {
    let (qmp, mut server) = connected("").await;
    let serve = async {
        let request = server.request().await;
        let error = json!({ "error": { "class": "GenericError", "desc": "not now" }, "id": request["id"] });
        server.send(&format!("{error}\n")).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute("migrate", json!({})), serve);
    assert_eq!(answer.expect_err("refused").to_string(), "qemu refused migrate: not now");
}

#[tokio::test]
async fn a_closed_connection_ends_all_waiting_and_keeps_the_reason() {
    let (qmp, mut server) = connected("").await;
    let serve = async {
        server.request().await;
        server.send("{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-panic\"}}\n").await;
        drop(server);
    };
    let (answer, ()) = tokio::join!(qmp.execute("ask", json!({})), serve);
    assert_eq!(answer.expect_err("closed").to_string(), "the connection to qemu's monitor is closed");
    let cause = ShutdownCause { guest: true, reason: "guest-panic".to_owned() };
    assert_eq!(timeout(DEADLINE, qmp.closed()).await, Ok(Some(cause)));
    let error = qmp.execute("ask", json!({})).await.expect_err("closed");
    assert_eq!(error.to_string(), "the connection to qemu's monitor is closed");
}

#[tokio::test]
async fn a_descriptor_goes_along_with_the_command_that_names_it() {
    let (qmp, server) = connected("").await;
    let input = server.requests.into_inner().into_inner();
    let receive = async {
        let mut line = [0; 200];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let stream = input.as_ref();
        let received = stream.async_io(Interest::READABLE, || {
            Ok(recvmsg(stream, &mut [IoSliceMut::new(&mut line)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?)
        });
        let bytes = timeout(DEADLINE, received).await.expect("in time").expect("received").bytes;
        let request: Value = serde_json::from_slice(&line[..bytes]).expect("JSON");
        let descriptors = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        (request, descriptors.collect::<Vec<_>>())
    };
    let (mut ours, theirs) = std::io::pipe().expect("a pipe");
    let pass = async {
        let mut passed = std::pin::pin!(qmp.pass("state", theirs.into()));
        tokio::select! {
            passed = &mut passed => panic!("nobody has answered: {passed:?}"),
            received = receive => received,
        }
    };
    let (request, descriptors) = pass.await;
    assert_eq!((&request["execute"], &request["arguments"]), (&json!("getfd"), &json!({ "fdname": "state" })));
    let [descriptor] = descriptors.try_into().expect("one descriptor");
    std::fs::File::from(descriptor).write_all(b"through").expect("written");
    // What we had of it is closed, or this would not end.
    let mut text = String::new();
    ours.read_to_string(&mut text).expect("readable");
    assert_eq!(text, "through");
}

#[tokio::test]
async fn quitting_succeeds_even_if_qemu_is_gone_before_it_answers() {
    let (qmp, mut server) = connected("").await;
    let serve = async {
        assert_eq!(server.request().await["execute"], "quit");
        drop(server);
    };
    let (quit, ()) = tokio::join!(qmp.quit(), serve);
    quit.expect("it has quit");
}

#[tokio::test]
async fn a_line_without_end_closes_the_connection() {
    let (qmp, mut server) = connected("").await;
    let flood = async {
        // The client may close before it has read all of this.
        let _ = server.output.write_all(&vec![b'x'; 5 << 20]).await;
    };
    let (cause, ()) = timeout(DEADLINE, async { tokio::join!(qmp.closed(), flood) }).await.expect("it closes");
    assert_eq!(cause, None);
}

#[tokio::test]
async fn a_server_that_hangs_up_during_the_handshake_is_an_error() {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    drop(theirs);
    let error = Qmp::over(ours).await.expect_err("nobody is there");
    assert_eq!(error.to_string(), "the connection to qemu's monitor is closed");
}

/// What is made of a machine in this state that then sends this event and is in that state.
async fn check(before: &str, event: Option<(&str, &str)>, expected: Halt) {
    let (qmp, mut server) = connected("").await;
    let serve = async {
        let request = server.request().await;
        server.answer(&request, json!({ "status": before })).await;
        if let Some((events, after)) = event {
            server.send(events).await;
            let request = server.request().await;
            server.answer(&request, json!({ "status": after })).await;
        }
    };
    let (halt, ()) = timeout(DEADLINE, async { tokio::join!(qmp.halted(), serve) }).await.expect("it is noticed");
    assert_eq!(halt, expected);
}

#[tokio::test]
async fn a_guest_that_qemu_has_stopped_is_noticed_with_the_reason() {
    let halt =
        |status: &str, reason: Option<&str>| Halt { status: status.to_owned(), reason: reason.map(str::to_owned) };
    check("internal-error", None, halt("internal-error", None)).await;
    let full = concat!(
        "{\"event\": \"BLOCK_IO_ERROR\", \"data\": {\"reason\": \"No space left on device\", \"action\": \"stop\"}}\n",
        "{\"event\": \"STOP\"}\n",
    );
    check("running", Some((full, "io-error")), halt("io-error", Some("No space left on device"))).await;
    check("paused", Some(("{\"event\": \"STOP\"}\n", "guest-panicked")), halt("guest-panicked", None)).await;
}

#[tokio::test]
async fn a_guest_that_was_asked_to_stop_is_not_halted() {
    let (qmp, mut server) = connected("").await;
    let serve = async {
        for status in ["running", "paused", "paused", "internal-error"] {
            let request = server.request().await;
            server.answer(&request, json!({ "status": status })).await;
            server.send("{\"event\": \"RESUME\"}\n{\"event\": \"STOP\"}\n").await;
        }
    };
    let (halt, ()) = timeout(DEADLINE, async { tokio::join!(qmp.halted(), serve) }).await.expect("it is noticed");
    assert_eq!(halt.to_string(), "internal-error");
}

/// An event that says that a node was written to beyond its limit.
fn reached(node: &str) -> String {
    let data = json!({ "node-name": node, "amount-exceeded": 512, "write-threshold": 4096 });
    format!("{}\n", json!({ "event": "BLOCK_WRITE_THRESHOLD", "data": data }))
}

#[tokio::test]
async fn a_limit_counts_for_its_own_node_and_is_set_anew_when_events_were_lost() {
    let (qmp, mut server) = connected("").await;
    let mut reaching = std::pin::pin!(qmp.written_beyond("disk", 4096));
    for then in [reached("other") + &"{\"event\": \"RTC_CHANGE\"}\n".repeat(1000), reached("other") + &reached("disk")]
    {
        let request = tokio::select! {
            reached = &mut reaching => panic!("it is not: {reached:?}"),
            request = server.request() => request,
        };
        let expected = json!({ "node-name": "disk", "write-threshold": 4096 });
        assert_eq!((&request["execute"], &request["arguments"]), (&json!("block-set-write-threshold"), &expected));
        server.answer(&request, json!({})).await;
        server.send(&then).await;
        // Once this is answered all that came before is with those who listen, of whom one does not get its turn.
        let asked = async {
            let request = server.request().await;
            server.answer(&request, json!({ "status": "running" })).await;
        };
        let (status, ()) = timeout(DEADLINE, async { tokio::join!(qmp.status(), asked) }).await.expect("in time");
        assert_eq!(status.expect("it answers"), "running");
    }
    timeout(DEADLINE, reaching).await.expect("it is noticed").expect("it is set");
}

#[tokio::test]
async fn a_limit_that_is_not_confirmed_in_time_is_set_again() {
    let (qmp, mut server) = connected("").await;
    let mut reaching = std::pin::pin!(qmp.written_beyond("disk", 4096));
    tokio::time::pause();
    for is_slow in [true, false] {
        let request = tokio::select! {
            reached = &mut reaching => panic!("it is not: {reached:?}"),
            request = server.request() => request,
        };
        assert_eq!(request["execute"], "block-set-write-threshold");
        if !is_slow {
            tokio::time::resume();
            server.answer(&request, json!({})).await;
        }
    }
    server.send(&reached("disk")).await;
    timeout(DEADLINE, reaching).await.expect("it is noticed").expect("it is set");
}

#[tokio::test]
async fn a_limit_that_can_not_be_set_is_an_error() {
    let (qmp, mut server) = connected("").await;
    let serve = async {
        let id = server.request().await["id"].clone();
        let refusal = json!({ "class": "GenericError", "desc": "Device 'disk' not found" });
        server.send(&format!("{}\n", json!({ "id": id, "error": refusal }))).await;
    };
    let (refused, ()) = tokio::join!(qmp.written_beyond("disk", 4096), serve);
    let error = refused.expect_err("it is refused").to_string();
    assert_eq!(error, "qemu refused block-set-write-threshold: Device 'disk' not found");
}
