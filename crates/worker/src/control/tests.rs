use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::config::Control;
use crate::core_tasks::CoreTasks;

const SOON: Duration = Duration::from_secs(20);

fn socket(directory: &Path) -> PathBuf {
    directory.join("control.sock")
}

async fn listen(directory: &Path, patience: Duration) -> Server {
    let control = Control { socket: socket(directory), group: None };
    Server::listen(&control, move |_| patience, &CoreTasks::new().0).await.expect("it listens")
}

/// What a worker that answers with its slot's number says to a request, which is made on another thread.
async fn asked(directory: &Path, request: Request) -> Result<Answer, String> {
    let socket = socket(directory);
    let ask = move || ask(&socket, &request, SOON, &mut |_| {}).map_err(|error| format!("{error:#}"));
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
    let mut server = listen(directory.path(), SOON).await;
    let mode = std::fs::metadata(socket(directory.path())).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let answer = async {
        for _ in 0..2 {
            let Question { request, talk } = server.next().await;
            let Request::Release { slot } = request else { panic!("not {request:?}") };
            talk.answer(match slot {
                1 => Ok(Answer::Released { slot, how: "quit".to_owned() }),
                _ => Err(anyhow::anyhow!("no machine runs in slot {slot}")),
            })
            .await;
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
async fn who_was_answered_hears_it_though_the_worker_ends_and_others_that_it_does() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut server = listen(directory.path(), SOON).await;
    let end = async {
        let Question { talk, .. } = server.next().await;
        server.close();
        let late = asked(directory.path(), Request::Release { slot: 2 }).await;
        assert_eq!(late, Err("the worker is stopping".to_owned()));
        talk.answer(Ok(Answer::Released { slot: 1, how: "quit".to_owned() })).await;
        server.finish().await;
    };
    let (answer, ()) = tokio::join!(asked(directory.path(), Request::Release { slot: 1 }), end);
    assert_eq!(answer, Ok(Answer::Released { slot: 1, how: "quit".to_owned() }));
    assert!(!socket(directory.path()).exists());
}

#[tokio::test]
async fn nonsense_is_refused_and_reaches_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut server = listen(directory.path(), SOON).await;
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
    let mut server = listen(directory.path(), Duration::ZERO).await;
    let late = asked(directory.path(), Request::Release { slot: 1 }).await;
    assert_eq!(late, Err("there was no answer within 0 s; it may still happen".to_owned()));
    drop(server.next().await);
    drop(server);
    let mut server = listen(directory.path(), SOON).await;
    let (stopping, ()) =
        tokio::join!(asked(directory.path(), Request::Release { slot: 1 }), async { drop(server.next().await) });
    assert_eq!(stopping, Err("the worker is stopping".to_owned()));
}

fn exec() -> Request {
    Request::Exec(Exec {
        image: "debian".parse().expect("a name"),
        cpus: None,
        memory_mib: None,
        timeout: None,
        keep: None,
        stdin: true,
        command: vec!["cat".to_owned()],
    })
}

/// What a client begins that wants a command to run.
async fn begun(directory: &Path) -> Conversation {
    let path = socket(directory);
    let begin = move || Conversation::begin(&path, &exec(), SOON);
    tokio::task::spawn_blocking(begin).await.expect("it does not panic").expect("somebody listens")
}

#[tokio::test]
async fn output_comes_before_the_answer_and_input_when_it_is_asked_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut server = listen(directory.path(), SOON).await;
    let path = socket(directory.path());
    let client = tokio::task::spawn_blocking(move || {
        let mut conversation = Conversation::begin(&path, &exec(), SOON).expect("somebody listens");
        let mut said = Vec::new();
        let mut input = vec![Vec::new(), b"two".to_vec(), b"one".to_vec()];
        loop {
            let next = conversation.next().expect("it goes on");
            if let Response::Wants = next {
                let part = input.pop().expect("there is more");
                conversation.voice().expect("it can speak").say(&Input::Stdin(Bytes(part))).expect("said");
                continue;
            }
            let is_last = next.is_last();
            said.push(next);
            if is_last {
                return said;
            }
        }
    });
    let Question { request, mut talk } = server.next().await;
    assert_eq!(request, exec());
    let lines = talk.lines();
    lines.say(Response::Progress("starting".to_owned())).await.expect("it is heard");
    while let Some(bytes) = talk.stdin().await.expect("it is said") {
        lines.say(Response::Stdout(Bytes(bytes))).await.expect("it is heard");
    }
    talk.answer(Ok(Answer::Ran(Ran::Exited { status: 3 }))).await;
    assert_eq!(
        client.await.expect("it does not panic"),
        [
            Response::Progress("starting".to_owned()),
            Response::Stdout(Bytes(b"one".to_vec())),
            Response::Stdout(Bytes(b"two".to_vec())),
            Response::Done(Answer::Ran(Ran::Exited { status: 3 })),
        ]
    );
}

#[tokio::test]
async fn a_client_that_goes_or_says_what_it_was_not_asked_for_is_noticed() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut server = listen(directory.path(), SOON).await;
    for talkative in [false, true] {
        let conversation = begun(directory.path()).await;
        let Question { talk, .. } = server.next().await;
        if talkative {
            let voice = conversation.voice().expect("it can speak");
            for _ in 0..2 {
                voice.say(&Input::Stdin(Bytes(b"unasked".to_vec()))).expect("said");
            }
            talk.lines().gone().await;
        }
        drop(conversation);
        tokio::time::timeout(SOON, talk.lines().gone()).await.expect("it is noticed");
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_holds_up_who_talks_to_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut server = listen(directory.path(), SOON).await;
    let conversation = begun(directory.path()).await;
    let Question { talk, .. } = server.next().await;
    let lines = talk.lines();
    let talking = async {
        for _ in 0..1000 {
            lines.say(Response::Stdout(Bytes(vec![0; BLOCK]))).await?;
        }
        Ok::<_, Gone>(())
    };
    let mut talking = Box::pin(talking);
    let held_up = tokio::time::timeout(Duration::from_millis(300), &mut talking).await;
    assert!(held_up.is_err(), "64 MB went nowhere");
    drop(conversation);
    assert_eq!(tokio::time::timeout(SOON, talking).await.expect("it ends"), Err(Gone));
}

/// The command has ended, but what it wrote is still on its way, when input comes that it asked for.
#[tokio::test]
async fn input_that_comes_too_late_costs_no_output() {
    const LINES: usize = 10;
    let directory = tempfile::tempdir().expect("a directory");
    let mut server = listen(directory.path(), SOON).await;
    let mut conversation = begun(directory.path()).await;
    let Question { mut talk, .. } = server.next().await;
    let lines = talk.lines();
    let wants = tokio::time::timeout(Duration::from_millis(100), talk.stdin()).await;
    assert!(wants.is_err(), "there was input");
    for _ in 0..LINES {
        lines.say(Response::Stdout(Bytes(vec![0; BLOCK]))).await.expect("the client is there");
    }
    talk.answer(Ok(Answer::Ran(Ran::Exited { status: 3 }))).await;
    let reading = tokio::task::spawn_blocking(move || {
        let voice = conversation.voice().expect("it can speak");
        for _ in 0..2 {
            voice.say(&Input::Stdin(Bytes(b"late".to_vec()))).expect("said");
        }
        // Until it has been heard.
        std::thread::sleep(Duration::from_millis(200));
        let mut heard = Vec::new();
        loop {
            let line = conversation.next().expect("nothing is lost");
            let is_last = line.is_last();
            heard.push(line);
            if is_last {
                return heard;
            }
        }
    });
    let heard = reading.await.expect("it does not panic");
    let output = heard.iter().filter(|line| matches!(line, Response::Stdout(_))).count();
    assert_eq!(output, LINES);
}

#[tokio::test]
async fn the_socket_of_another_worker_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = listen(directory.path(), SOON).await;
    let control = Control { socket: socket(directory.path()), group: None };
    let second = Server::listen(&control, |_| SOON, &CoreTasks::new().0).await.expect_err("somebody listens");
    assert!(format!("{second:#}").contains("another worker listens there"), "{second:#}");
    drop(first);
    let nowhere = Control { socket: directory.path().join("missing/control.sock"), group: None };
    let error = Server::listen(&nowhere, |_| SOON, &CoreTasks::new().0).await.expect_err("there is no directory");
    assert!(format!("{error:#}").contains("there is no directory"), "{error:#}");
    let file = directory.path().join("notes");
    std::fs::write(&file, "dear to somebody").expect("written");
    let mistaken = Control { socket: file.clone(), group: None };
    let error = Server::listen(&mistaken, |_| SOON, &CoreTasks::new().0).await.expect_err("there is a file");
    assert!(format!("{error:#}").contains("something else than a socket"), "{error:#}");
    assert_eq!(std::fs::read_to_string(&file).expect("it is still there"), "dear to somebody");
    let unknown = Control { group: Some("no such group".to_owned()), ..control };
    let error = Server::listen(&unknown, |_| SOON, &CoreTasks::new().0).await.expect_err("there is no group");
    assert!(format!("{error:#}").contains("there is no such group"), "{error:#}");
}

/// Who is root can give a socket to any group; others to one of their own.
#[tokio::test]
async fn the_socket_is_the_groups() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().expect("a directory");
    let group = nix::unistd::Group::from_gid(nix::unistd::getgid()).expect("it is known").expect("it has a name");
    let control = Control { socket: socket(directory.path()), group: Some(group.name) };
    let _server = Server::listen(&control, |_| SOON, &CoreTasks::new().0).await.expect("it listens");
    let metadata = std::fs::metadata(socket(directory.path())).expect("it is there");
    assert_eq!((metadata.gid(), metadata.mode() & 0o777), (group.gid.as_raw(), 0o660));
}
