//! How children are ended.

mod common;

use std::io::Read;
use std::time::Duration;

use common::{DEADLINE, alive, gone, line, next, report, sh, spawn};
use process::{Command, Event, ExitStatus, Finish, Pidfd, Rung, Signal};
use tokio::time::timeout;

const LONG: Duration = DEADLINE;
const SHORT: Duration = Duration::from_millis(20);

fn ended_by(signal: Signal) -> Finish {
    Finish { status: ExitStatus::Signal(signal as i32), leaked: false }
}

#[tokio::test]
async fn a_signal_reaches_the_whole_group() {
    let mut child = spawn(sh("sleep 1000 & echo $!; wait")).await;
    let grandchild = line(&mut child).await;
    child.signal(Signal::SIGTERM).expect("it runs");
    assert_eq!(report(&mut child).await.finish, ended_by(Signal::SIGTERM));
    gone(&grandchild).await;
}

#[tokio::test]
async fn what_the_child_left_behind_can_be_signalled_after_its_exit() {
    let mut child = spawn(sh("sleep 1000 & echo $!").output_grace(LONG)).await;
    let grandchild = line(&mut child).await;
    gone(&child.id().to_string()).await;
    assert!(alive(&grandchild));
    child.signal(Signal::SIGTERM).expect("the group is still there");
    assert_eq!(report(&mut child).await.finish, Finish { status: ExitStatus::Code(0), leaked: false });
    gone(&grandchild).await;
}

#[tokio::test]
async fn a_program_that_left_its_group_is_signalled_itself() {
    // It joins the group of a child of its own, so that none of its former number is left.
    let script = r#"
        my $other = fork() // die;
        if (!$other) { setpgrp(0, 0); exec "sleep", "1000" }
        setpgrp($other, $other);
        setpgrp(0, $other) or die;
        $| = 1;
        print "$other\n";
        sleep 1000;"#;
    let mut child = spawn(Command::new("/usr/bin/perl").args(["-e", script])).await;
    let other = line(&mut child).await;
    child.escalate([Rung::new(Signal::SIGTERM, LONG)]).expect("it runs");
    gone(&child.id().to_string()).await;
    Pidfd::open(other.parse().expect("a process id")).expect("it runs").signal(Signal::SIGKILL).expect("it is ours");
    assert_eq!(report(&mut child).await.finish, ended_by(Signal::SIGTERM));
}

#[tokio::test]
async fn escalation_stops_at_the_rung_that_works() {
    let mut child = spawn(sh("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done")).await;
    assert_eq!(line(&mut child).await, "ready");
    child.escalate([Rung::new(Signal::SIGTERM, LONG), Rung::new(Signal::SIGKILL, LONG)]).expect("it runs");
    let end = report(&mut child).await;
    assert_eq!((end.stdout.as_str(), end.finish), ("bye\n", Finish { status: ExitStatus::Code(7), leaked: false }));
}

#[tokio::test]
async fn a_child_that_ignores_polite_signals_is_killed_and_its_output_kept() {
    let mut child = spawn(sh("trap 'echo no' INT TERM; echo ready; while :; do sleep 0.01; done")).await;
    assert_eq!(line(&mut child).await, "ready");
    let rungs = [Signal::SIGINT, Signal::SIGTERM].map(|signal| Rung::new(signal, Duration::from_millis(200)));
    child.escalate(rungs.into_iter().chain([Rung::new(Signal::SIGKILL, LONG)])).expect("it runs");
    let (mut signalled, mut output) = (Vec::new(), Vec::new());
    let finish = loop {
        match next(&mut child).await {
            Some(Event::Signalled(signal)) => signalled.push(signal),
            Some(Event::Stdout(bytes)) => output.extend(bytes),
            Some(Event::Finished(finish)) => break finish,
            _ => {}
        }
    };
    assert_eq!(signalled, [Signal::SIGTERM, Signal::SIGKILL]);
    assert_eq!(output, b"no\nno\n");
    assert_eq!(finish, ended_by(Signal::SIGKILL));
}

#[tokio::test]
async fn a_child_blocked_on_its_output_is_drained_while_it_dies() {
    let mut child =
        spawn(sh("trap 'head -c 1000000 /dev/zero; exit 5' TERM; echo ready; while :; do sleep 0.01; done")).await;
    assert_eq!(line(&mut child).await, "ready");
    child.escalate([Rung::new(Signal::SIGTERM, LONG)]).expect("it runs");
    let finish = timeout(DEADLINE, child.finish()).await.expect("it ends");
    assert_eq!(finish, Some(Finish { status: ExitStatus::Code(5), leaked: false }));
}

#[tokio::test]
async fn a_child_that_outlives_the_last_rung_is_reported_once() {
    let mut child = spawn(sh("trap '' TERM; echo ready; exec sleep 1000")).await;
    assert_eq!(line(&mut child).await, "ready");
    child.escalate([Rung::new(Signal::SIGTERM, SHORT)]).expect("it runs");
    assert_eq!(next(&mut child).await, Some(Event::Unkilled));
    child.escalate([Rung::new(Signal::SIGKILL, LONG)]).expect("it runs");
    assert_eq!(report(&mut child).await.finish, ended_by(Signal::SIGKILL));
}

#[tokio::test]
async fn a_second_escalation_replaces_the_first() {
    let mut child = spawn(sh("trap '' TERM; echo ready; exec sleep 1000")).await;
    assert_eq!(line(&mut child).await, "ready");
    child.escalate([Rung::new(Signal::SIGTERM, LONG), Rung::new(Signal::SIGKILL, LONG)]).expect("it runs");
    child.escalate([Rung::new(Signal::SIGKILL, LONG)]).expect("it runs");
    assert_eq!(report(&mut child).await.finish, ended_by(Signal::SIGKILL));
}

#[tokio::test]
async fn escalation_ends_with_the_group_and_not_with_its_leader() {
    // The leader obeys; the grandchild neither does nor holds the output.
    let script = "(trap '' TERM; exec sleep 1000 >/dev/null 2>&1) & echo $!; wait";
    let mut child = spawn(sh(script)).await;
    let grandchild = line(&mut child).await;
    child.escalate([Rung::new(Signal::SIGTERM, LONG), Rung::new(Signal::SIGKILL, LONG)]).expect("it runs");
    assert_eq!(report(&mut child).await.finish, ended_by(Signal::SIGTERM));
    gone(&grandchild).await;
}

#[tokio::test]
async fn a_grandchild_that_ignores_the_signal_and_holds_the_output_is_killed_by_the_next() {
    let script = "(trap '' TERM; echo ready; exec sleep 1000) & echo $!; wait";
    let mut child = spawn(sh(script).output_grace(LONG)).await;
    let grandchild = both_lines(&mut child).await;
    child.escalate([Rung::new(Signal::SIGTERM, SHORT), Rung::new(Signal::SIGKILL, LONG)]).expect("it runs");
    assert_eq!(report(&mut child).await.finish, ended_by(Signal::SIGTERM));
    gone(&grandchild).await;
}

#[tokio::test]
async fn the_end_of_the_grace_kills_what_an_escalation_has_not_yet() {
    let script = "(trap '' TERM; echo ready; exec sleep 1000) & echo $!; wait";
    let mut child = spawn(sh(script).output_grace(Duration::from_millis(200))).await;
    let grandchild = both_lines(&mut child).await;
    child.escalate([Rung::new(Signal::SIGTERM, LONG)]).expect("it runs");
    assert_eq!(report(&mut child).await.finish, ended_by(Signal::SIGTERM));
    gone(&grandchild).await;
}

#[tokio::test]
async fn a_process_that_left_the_group_does_not_keep_an_escalation_from_its_end() {
    let script = "setsid sh -c 'echo $$; exec sleep 1000' & wait";
    let mut child = spawn(sh(script).output_grace(Duration::from_secs(3600))).await;
    let escaped = line(&mut child).await;
    child.escalate([Rung::new(Signal::SIGKILL, LONG)]).expect("it runs");
    let finish = loop {
        match next(&mut child).await {
            Some(Event::Exited(_)) => child.end_grace(),
            Some(Event::Finished(finish)) => break finish,
            other => assert!(other.is_some(), "an end without a finish"),
        }
    };
    assert_eq!(finish, Finish { leaked: true, ..ended_by(Signal::SIGKILL) });
    assert!(alive(&escaped));
    Pidfd::open(escaped.parse().expect("a process id"))
        .expect("it is alive")
        .signal(Signal::SIGKILL)
        .expect("it is ours");
}

#[tokio::test]
async fn dropping_a_child_kills_its_group_and_reaps_it() {
    let mut child = spawn(sh("trap '' TERM; sleep 1000 & echo $!; wait")).await;
    let grandchild = line(&mut child).await;
    let leader = child.id().to_string();
    drop(child);
    gone(&grandchild).await;
    timeout(DEADLINE, async {
        while std::fs::exists(format!("/proc/{leader}")).expect("proc is there") {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("no zombie stays");
}

#[tokio::test]
async fn dropping_a_finished_child_leaves_its_daemons_alone() {
    let mut child = spawn(sh("sleep 1000 >/dev/null 2>&1 & echo $!")).await;
    let daemon = line(&mut child).await;
    report(&mut child).await;
    drop(child);
    assert!(alive(&daemon));
    process::Pidfd::open(daemon.parse().expect("a process id"))
        .expect("it is alive")
        .signal(Signal::SIGKILL)
        .expect("it is ours");
}

#[tokio::test]
async fn a_spawn_nobody_waits_for_leaves_nothing_behind() {
    // Whoever holds the writing end of this pipe is alive.
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let polled = timeout(Duration::ZERO, sh("exec sleep 1000").inherit_fd(writer.into()).spawn()).await;
    drop(polled);
    let end = tokio::task::spawn_blocking(move || reader.read(&mut [0]).expect("it can be read"));
    assert_eq!(timeout(DEADLINE, end).await.expect("the child ends").expect("no panic"), 0);
}

async fn both_lines(child: &mut process::Child) -> String {
    let mut text = String::new();
    while text.lines().count() < 2 || !text.ends_with('\n') {
        text += &line(child).await;
        text.push('\n');
    }
    text.lines().find(|line| *line != "ready").expect("two lines").to_owned()
}
