//! What a child reads and writes.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Report, alive, line, next, report, run, sh, spawn};
use process::{Command, Event, ExitStatus, Finish, Signal, Stream};

const CLEAN: Finish = Finish { status: ExitStatus::Code(0), leaked: false };

#[track_caller]
fn check(report: Report, stdout: &str, stderr: &str, finish: Finish) {
    assert_eq!(report, Report { stdout: stdout.to_owned(), stderr: stderr.to_owned(), finish });
}

#[tokio::test]
async fn the_streams_and_the_exit_code_are_told_apart() {
    let finish = Finish { status: ExitStatus::Code(3), leaked: false };
    check(run(sh("echo out; echo err >&2; exit 3")).await, "out\n", "err\n", finish);
}

#[tokio::test]
async fn a_child_ended_by_a_signal_says_which() {
    let finish = Finish { status: ExitStatus::Signal(15), leaked: false };
    check(run(sh("kill -TERM $$")).await, "", "", finish);
}

#[tokio::test]
async fn stdin_is_written_and_closed() {
    check(run(sh("cat; echo end").stdin("some input")).await, "some inputend\n", "", CLEAN);
    check(run(sh("cat; echo end")).await, "end\n", "", CLEAN);
}

#[tokio::test]
async fn stdin_larger_than_any_pipe_goes_through_while_output_comes_back() {
    let input = Bytes::from(vec![b'x'; 3 << 20]);
    let report = run(sh("cat").stdin(input)).await;
    assert_eq!((report.stdout.len(), report.finish), (3 << 20, CLEAN));
}

#[tokio::test]
async fn a_child_that_does_not_want_its_stdin_is_no_trouble() {
    let input = Bytes::from(vec![b'x'; 3 << 20]);
    check(run(sh("exec <&-; echo fine").stdin(input)).await, "fine\n", "", CLEAN);
}

#[tokio::test]
async fn much_output_arrives_whole() {
    let report = run(sh("head -c 20000000 /dev/zero; head -c 1000000 /dev/zero >&2")).await;
    assert_eq!((report.stdout.len(), report.stderr.len(), report.finish), (20_000_000, 1_000_000, CLEAN));
}

#[tokio::test]
async fn a_child_whose_output_nobody_takes_waits() {
    let mut child = spawn(sh("head -c 1000000 /dev/zero; echo written >&2")).await;
    // The script can't get as far as its second command: a pipe holds 64 KiB, and one event is at most as much.
    let mut seen = 0;
    for _ in 0..4 {
        match next(&mut child).await {
            Some(Event::Stdout(bytes)) => seen += bytes.len(),
            other => panic!("expected output, got {other:?}"),
        }
    }
    assert!(seen <= 4 * 64 * 1024);
    let rest = report(&mut child).await;
    assert_eq!((rest.stdout.len() + seen, rest.stderr), (1_000_000, "written\n".to_owned()));
}

#[tokio::test]
async fn output_that_is_still_in_the_pipe_when_the_grace_is_over_is_not_lost() {
    let mut child = spawn(sh("head -c 60000 /dev/zero").output_grace(Duration::ZERO)).await;
    let mut exited = false;
    let mut seen = 0;
    while let Some(event) = next(&mut child).await {
        match event {
            Event::Exited(status) => exited = status.success(),
            Event::Stdout(bytes) => seen += bytes.len(),
            Event::Finished(finish) => assert_eq!(finish, CLEAN),
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!((exited, seen), (true, 60_000));
}

#[tokio::test]
async fn discarded_output_is_not_reported_and_does_not_block_the_child() {
    let mut child = spawn(sh("head -c 1000000 /dev/zero; echo written >&2")).await;
    child.discard(Stream::Stdout);
    check(report(&mut child).await, "", "written\n", CLEAN);
}

#[tokio::test]
async fn a_stream_may_go_to_dev_null() {
    let script = "stdout=$(readlink /proc/$$/fd/1); echo $stdout >&2";
    check(run(sh(script).null(Stream::Stdout)).await, "", "/dev/null\n", CLEAN);
}

#[tokio::test]
async fn bytes_that_are_no_utf8_pass_in_both_directions() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let command = Command::new("/usr/bin/printf").arg("%s").arg(OsStr::from_bytes(b"a\xff\xfeb"));
    let mut child = spawn(command).await;
    let mut output = Vec::new();
    while let Some(event) = next(&mut child).await {
        if let Event::Stdout(bytes) = event {
            output.extend(bytes);
        }
    }
    assert_eq!(output, b"a\xff\xfeb");
}

#[tokio::test]
async fn a_grandchild_that_holds_the_output_is_reported_after_the_grace() {
    let mut child = spawn(sh("sleep 1000 & echo $!").output_grace(Duration::from_millis(50))).await;
    let grandchild = line(&mut child).await;
    assert_eq!(report(&mut child).await.finish, Finish { status: ExitStatus::Code(0), leaked: true });
    assert!(alive(&grandchild), "what a command leaves behind on purpose lives on");
    end(&grandchild);
}

#[tokio::test]
async fn the_grace_can_be_ended_early_and_what_is_written_already_still_comes() {
    let mut child = spawn(sh("sleep 1000 & echo $!").output_grace(Duration::from_secs(3600))).await;
    child.end_grace(); // It runs still, so this is of no effect.
    let mut written = Vec::new();
    let finish = loop {
        match next(&mut child).await {
            Some(Event::Stdout(bytes)) => written.extend(bytes),
            Some(Event::Exited(_)) => child.end_grace(),
            Some(Event::Finished(finish)) => break finish,
            other => panic!("unexpected {other:?}"),
        }
    };
    let grandchild = String::from_utf8(written).expect("a process id").trim().to_owned();
    assert_eq!(finish, Finish { status: ExitStatus::Code(0), leaked: true });
    assert!(alive(&grandchild));
    end(&grandchild);
}

#[tokio::test]
async fn a_grandchild_that_lets_go_of_the_output_is_no_leak() {
    let mut child = spawn(sh("sleep 1000 >/dev/null 2>&1 & echo $!")).await;
    let grandchild = line(&mut child).await;
    assert_eq!(report(&mut child).await.finish, CLEAN);
    assert!(alive(&grandchild));
    end(&grandchild);
}

#[tokio::test]
async fn output_of_a_grandchild_within_the_grace_is_reported() {
    // The grandchild writes only after it was orphaned.
    let script = "(while [ -d /proc/$$ ] && ! grep -q ') Z' /proc/$$/stat; do :; done; echo late) & exit 0";
    check(run(sh(script)).await, "late\n", "", CLEAN);
}

#[tokio::test]
async fn nothing_follows_the_end() {
    let mut child = spawn(sh("exit 0")).await;
    report(&mut child).await;
    assert_eq!(next(&mut child).await, None);
    assert_eq!(child.finish().await, None);
    assert_eq!(
        child.signal(Signal::SIGTERM).map_err(|error| error.to_string()),
        Err("the process is already finished".to_owned())
    );
}

#[tokio::test]
async fn a_terminal_merges_the_streams_and_ends_its_input() {
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size && cat && echo out && echo err >&2";
    check(run(sh(script).pty()).await, "24 80\r\nout\r\nerr\r\n", "", CLEAN);
}

#[tokio::test]
async fn a_terminal_is_the_one_of_its_session() {
    let report = run(sh("echo via /dev/tty >/dev/tty; ps -o sid= -p $$ | tr -d ' '; echo $$").pty()).await;
    let lines: Vec<_> = report.stdout.lines().collect();
    assert_eq!((lines[0], lines[1]), ("via /dev/tty", lines[2]));
}

#[tokio::test]
async fn much_output_through_a_terminal_arrives_whole() {
    let report = run(sh("head -c 500000 /dev/zero | tr '\\0' x").pty()).await;
    assert_eq!((report.stdout.len(), report.finish), (500_000, CLEAN));
}

#[tokio::test]
async fn many_children_at_once_all_finish() {
    let children = (0..300).map(|n| tokio::spawn(run(sh(&format!("echo {n}; cat")).stdin("x"))));
    for (n, child) in children.collect::<Vec<_>>().into_iter().enumerate() {
        check(child.await.expect("no panic"), &format!("{n}\nx"), "", CLEAN);
    }
}

fn end(pid: &str) {
    let process = process::Pidfd::open(pid.parse().expect("a process id")).expect("it is alive");
    process.signal(Signal::SIGKILL).expect("it is ours");
}
