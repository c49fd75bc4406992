use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::*;
use crate::core_tasks::CoreTasks;

const SOON: Duration = Duration::from_secs(20);

/// What a worker that answers with its slot's number says to a request, which is made on another thread.
async fn asked(directory: &Path, request: Request) -> Result<Answer, String> {
    let directory = directory.to_owned();
    let ask = move || ask(&directory, &request, SOON).map_err(|error| format!("{error:#}"));
    tokio::task::spawn_blocking(ask).await.expect("it does not panic")
}

/// Sends bytes as they are and returns all that comes back.
async fn sent(directory: &Path, bytes: &'static [u8]) -> String {
    let path = socket(directory);
    let talk = move || {
        let mut stream = UnixStream::connect(path).expect("somebody listens");
        stream.set_read_timeout(Some(SOON)).expect("set");
        // The worker may have heard enough before the end.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    };
    tokio::task::spawn_blocking(talk).await.expect("it does not panic")
}

#[tokio::test]
async fn a_question_gets_its_answer_and_only_who_may_ask_asks() {
    let directory = tempfile::tempdir().expect("a directory");
    // A socket that a worker left which was killed.
    drop(std::os::unix::net::UnixListener::bind(socket(directory.path())).expect("bound"));
    assert!(asked(directory.path(), Request::Release { slot: 1 }).await.unwrap_err().starts_with("no worker runs on "));
    let mut server = Server::listen(directory.path(), |_| SOON, &CoreTasks::new().0).expect("it listens");
    let mode = std::fs::metadata(socket(directory.path())).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let answer = async {
        for _ in 0..2 {
            let Question { request, answer } = server.next().await;
            let Request::Release { slot } = request else { panic!("not {request:?}") };
            let response = match slot {
                1 => Response::Done(Answer::Released { slot, how: "quit".to_owned() }),
                _ => Response::Refused(format!("no machine runs in slot {slot}")),
            };
            answer.send(response).expect("it is waited for");
        }
    };
    let ask = async {
        let released = asked(directory.path(), Request::Release { slot: 1 }).await;
        assert_eq!(released, Ok(Answer::Released { slot: 1, how: "quit".to_owned() }));
        let refused = asked(directory.path(), Request::Release { slot: 2 }).await;
        assert_eq!(refused, Err("no machine runs in slot 2".to_owned()));
    };
    tokio::join!(answer, ask);
    drop(server);
    assert!(!socket(directory.path()).exists());
    assert!(asked(directory.path(), Request::Release { slot: 1 }).await.unwrap_err().starts_with("no worker runs on "));
}

#[tokio::test]
async fn nonsense_is_refused_and_reaches_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut server = Server::listen(directory.path(), |_| SOON, &CoreTasks::new().0).expect("it listens");
    let check = async |bytes: &'static [u8], expected: &str| {
        let response = sent(directory.path(), bytes).await;
        assert!(response.contains(expected) && response.is_empty() == expected.is_empty(), "{response}");
    };
    check(b"\n", "refused").await;
    check(b"{\"verb\":\"dance\"}\n", "unknown variant").await;
    check(b"{\"verb\":\"release\"}\n", "missing field").await;
    check(b"{\"verb\":\"release\",\"slot\":70000}\n", "invalid value").await;
    check(b"{\"verb\":\"release\",\"slot\":1,\"force\":true}\n", "unknown field").await;
    check(b"{\"verb\":\"release\",\"slot\":1}", "").await;
    static ENDLESS: [u8; 2 << 20] = [b' '; 2 << 20];
    check(&ENDLESS, "").await;
    assert!(futures_util::poll!(Box::pin(server.next())).is_pending());
}

#[tokio::test]
async fn who_is_not_answered_is_told_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut server = Server::listen(directory.path(), |_| Duration::ZERO, &CoreTasks::new().0).expect("it listens");
    let late = asked(directory.path(), Request::Release { slot: 1 }).await;
    assert_eq!(late, Err("there was no answer within 0 s; it may still happen".to_owned()));
    drop(server.next().await);
    drop(server);
    let mut server = Server::listen(directory.path(), |_| SOON, &CoreTasks::new().0).expect("it listens");
    let (stopping, ()) =
        tokio::join!(asked(directory.path(), Request::Release { slot: 1 }), async { drop(server.next().await) });
    assert_eq!(stopping, Err("the worker is stopping".to_owned()));
}
