mod captures;
mod fake_place;
mod real;

use std::sync::Arc;

use bytes::Bytes;
use protocol::{Command, CommandId, Settings};
use tokio::time::{Duration, sleep, timeout};

use self::fake_place::{FakePlace, FakeProcess, Script};
use super::*;
use crate::commands::fake_master::lines;
use crate::commands::{Interrupt, Interrupter};
use crate::master::MasterLink;
use crate::place::Event;

/// A command that is run at a place, and the master's side of it.
struct Scene {
    place: FakePlace,
    shell: Shell,
    /// When the master begins to listen.
    deaf: Duration,
    meanwhile: Meanwhile,
}

/// What happens while the command runs.
enum Meanwhile {
    Nothing,
    InterruptAt(Duration),
    AbandonAt(Duration),
    LineLostAt(Duration),
}

/// What the master was told, and what was done to the program.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    told: Vec<String>,
    done: Vec<String>,
}

impl Scene {
    fn new(process: FakeProcess) -> Self {
        Scene::with(Ok(process))
    }

    fn with(spawn: Result<FakeProcess, SpawnError>) -> Self {
        let mut shell = program(["prog"], Path::new("/w"));
        shell.log_environ = false;
        Scene { place: FakePlace::new(spawn), shell, deaf: Duration::ZERO, meanwhile: Meanwhile::Nothing }
    }

    fn shell(mut self, change: impl FnOnce(&mut Shell)) -> Self {
        change(&mut self.shell);
        self
    }

    async fn play(self) -> Outcome {
        let Scene { place, shell, deaf, meanwhile } = self;
        let done = place.done();
        let (link, mut calls) = MasterLink::new();
        let (interrupter, interrupt) = Interrupt::new();
        let context = Context {
            command_id: CommandId("1".to_owned()),
            link: link.clone(),
            basedir: "/".into(),
            builder_dir: "/".into(),
            interrupt,
        };
        let reporter = Reporter::new(context.command_id.clone(), link, &Settings::default());
        let command = Command::Shell(Box::new(shell));
        let running = tokio::spawn(crate::commands::run(context, command, Arc::new(place), reporter));
        let line_lost_at = match meanwhile {
            Meanwhile::LineLostAt(at) => Some(at),
            _ => None,
        };
        let meanwhile = tokio::spawn(happen(meanwhile, interrupter));
        let mut told = Vec::new();
        let listening = async {
            sleep(deaf).await;
            while let Some(outgoing) = calls.recv().await {
                lines(&outgoing.call, Path::new("/nowhere")).into_iter().for_each(|line| tell(&mut told, line));
            }
        };
        timeout(line_lost_at.unwrap_or(Duration::from_secs(100_000)), listening).await.ok();
        drop(calls);
        running.await.expect("it does not panic");
        meanwhile.abort();
        Outcome { told, done: done.all() }
    }
}

/// Adds to what was told; headers that follow each other are one, in however many messages they came.
fn tell(told: &mut Vec<String>, line: String) {
    match (told.last_mut(), line.strip_prefix("header ")) {
        (Some(last), Some(more)) if last.starts_with("header ") => last.push_str(more),
        _ => told.push(line),
    }
}

async fn happen(meanwhile: Meanwhile, interrupter: Interrupter) {
    match meanwhile {
        Meanwhile::InterruptAt(at) => {
            sleep(at).await;
            interrupter.interrupt("enough");
        }
        Meanwhile::AbandonAt(at) => {
            sleep(at).await;
            interrupter.abandon();
        }
        Meanwhile::Nothing | Meanwhile::LineLostAt(_) => {}
    }
    std::future::pending().await
}

const HEADER: &str = "header prog\n in dir /w\n watching logfiles {}\n argv: [b'prog']\n using PTY: False\n";

fn stdout(text: &'static str) -> Event {
    Event::Stdout(Bytes::from_static(text.as_bytes()))
}

fn exits(status: i32) -> Event {
    Event::Ended(Ending::Exited { status })
}

/// Compares all that the master was told; `HEADER` is what it begins with.
#[track_caller]
fn check(outcome: &Outcome, told: &[&str], done: &[&str]) {
    let told: Vec<String> = told.iter().map(|line| line.replace("HEADER", HEADER)).collect();
    let done: Vec<String> = done.iter().map(|line| (*line).to_owned()).collect();
    assert_eq!(*outcome, Outcome { told, done });
}

fn seconds(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

#[tokio::test(start_paused = true)]
async fn a_program_runs_to_its_end() {
    let script = vec![(1.0, stdout("out\n")), (2.0, Event::Stderr(Bytes::from("err\n"))), (3.5, exits(3))];
    let outcome = Scene::new(FakeProcess::new(script)).play().await;
    let told = ["HEADER", "stdout out\n", "stderr err\n", "rc 3", "header elapsedTime=T\n", "elapsed", "complete None"];
    check(&outcome, &told, &["4s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_program_is_killed() {
    let script = vec![(1.5, stdout("x\n"))];
    let outcome = Scene::new(FakeProcess::new(script)).shell(|shell| shell.timeout = seconds(2)).play().await;
    let header = HEADER.replace("/w\n", "/w (timeout 2 secs)\n");
    let why = "header \ncommand timed out: 2 seconds without output running [b'prog'], attempting to kill\nprocess killed by signal 9\n";
    let told = [
        &header,
        "stdout x\n",
        "failure_reason timeout_without_output",
        why,
        "rc -1",
        "header elapsedTime=T\n",
        "elapsed",
        "complete None",
    ];
    check(&outcome, &told, &["4s KILL", "4s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn unwanted_output_is_no_silence() {
    let script = vec![(1.5, stdout("x\n")), (3.0, stdout("y\n")), (4.5, exits(0))];
    let scene = Scene::new(FakeProcess::new(script)).shell(|shell| {
        shell.timeout = seconds(2);
        shell.want_stdout = false;
        shell.max_lines = Some(1);
    });
    let header = HEADER.replace("/w\n", "/w (timeout 2 secs)\n");
    let told = [&header, "rc 0", "header elapsedTime=T\n", "elapsed", "complete None"];
    check(&scene.play().await, &told, &["4s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_runs_too_long_is_killed() {
    let script = (1..).take(100).map(|second| (f64::from(second) - 0.5, stdout("x\n"))).collect();
    let outcome = Scene::new(FakeProcess::new(script)).shell(|shell| shell.max_time = seconds(1)).play().await;
    let header = HEADER.replace("/w\n", "/w (maxTime 1 sec)\n");
    let why = "header \ncommand timed out: 1 seconds elapsed running [b'prog'], attempting to kill\nprocess killed by signal 9\n";
    let told = [
        &header,
        "stdout x\n",
        "failure_reason timeout",
        why,
        "rc -1",
        "header elapsedTime=T\n",
        "elapsed",
        "complete None",
    ];
    check(&outcome, &told, &["1s KILL", "1s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_writes_too_many_lines_is_killed_and_no_more_of_it_is_shown() {
    let script = vec![(1.0, stdout("1\n2\n")), (2.0, stdout("3\n4\n"))];
    let dying = vec![(0.0, stdout("5\n")), (0.0, Event::Ended(Ending::Signalled { signal: 9 }))];
    let scene = Scene::new(FakeProcess::new(script).on("KILL", dying)).shell(|shell| shell.max_lines = Some(3));
    let told = [
        "HEADER",
        "stdout 1\n2\n",
        "failure_reason max_lines_failure",
        "header \ncommand exceeds max lines: 4/3 written/allowed running [b'prog'], attempting to kill\n",
        "stdout 3\n4\n",
        "header process killed by signal 9\n",
        "rc -1",
        "header elapsedTime=T\n",
        "elapsed",
        "complete None",
    ];
    check(&scene.play().await, &told, &["2s KILL", "2s dropped"]);
}

/// Times out after a second; from then on only the end is compared.
#[track_caller]
fn check_kill(outcome: &Outcome, told: &[&str], done: &[&str]) {
    let from = outcome.told.iter().position(|line| line.contains("attempting to kill")).expect("it is killed");
    let mut end: Vec<String> = outcome.told[from..].to_vec();
    end[0] = end[0].rsplit("attempting to kill\n").next().expect("the rest of it").to_owned();
    assert_eq!(
        (end, outcome.done.iter().map(String::as_str).collect::<Vec<_>>()),
        (told.iter().map(|line| (*line).to_owned()).collect(), done.to_vec(),)
    );
}

async fn killed(process: FakeProcess, change: impl FnOnce(&mut Shell)) -> Outcome {
    let scene = Scene::new(process).shell(|shell| shell.timeout = seconds(1));
    scene.shell(change).play().await
}

fn silent() -> FakeProcess {
    FakeProcess::new(Script::new())
}

#[tokio::test(start_paused = true)]
async fn sigterm_comes_first_and_a_program_that_obeys_keeps_its_status() {
    let obeys = silent().on("TERM", vec![(1.0, stdout("bye\n")), (1.0, exits(5))]);
    let outcome = killed(obeys, |shell| shell.sigterm_time = seconds(3)).await;
    let told = ["", "stdout bye\n", "rc 5", "header elapsedTime=T\n", "elapsed", "complete None"];
    check_kill(&outcome, &told, &["1s TERM", "2s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn the_interrupt_signal_follows_sigterm() {
    let outcome = killed(silent(), |shell| shell.sigterm_time = seconds(3)).await;
    let told = ["process killed by signal 9\n", "rc -1", "header elapsedTime=T\n", "elapsed", "complete None"];
    check_kill(&outcome, &told, &["1s TERM", "4s KILL", "4s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn a_killed_program_has_not_succeeded() {
    let outcome = killed(silent().on("KILL", vec![(0.0, exits(0))]), |_| ()).await;
    check_kill(
        &outcome,
        &["", "rc -1", "header elapsedTime=T\n", "elapsed", "complete None"],
        &["1s KILL", "1s dropped"],
    );
}

#[tokio::test(start_paused = true)]
async fn sigkill_follows_a_milder_interrupt_signal() {
    let outcome = killed(silent(), |shell| shell.interrupt_signal = "INT".to_owned()).await;
    let told = [
        "SIGINT failed to kill process, sending SIGKILL\nprocess killed by signal 9\n",
        "rc -1",
        "header elapsedTime=T\n",
        "elapsed",
        "complete None",
    ];
    check_kill(&outcome, &told, &["1s INT", "6s KILL", "6s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_interrupt_signal_is_sigkill() {
    let outcome = killed(silent(), |shell| shell.interrupt_signal = "FOO".to_owned()).await;
    let told = [
        "there is no signal SIGFOO, sending SIGKILL\nprocess killed by signal 9\n",
        "rc -1",
        "header elapsedTime=T\n",
        "elapsed",
        "complete None",
    ];
    check_kill(&outcome, &told, &["1s FOO", "1s KILL", "1s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_survives_sigkill_is_given_up_with_a_failure() {
    let outcome = killed(silent().immortal(), |_| ()).await;
    let told = [
        "SIGKILL failed to kill process\nusing fake rc=-1\n",
        "rc -1",
        "elapsed",
        "complete Some(\"SIGKILL failed to kill process\")",
    ];
    // The header may have been sent by the timer before the end.
    let told: Vec<&str> = if outcome.told.iter().any(|line| line.ends_with("attempting to kill\n")) {
        ["", "header SIGKILL failed to kill process\nusing fake rc=-1\n"]
            .into_iter()
            .chain(told.into_iter().skip(1))
            .collect()
    } else {
        told.to_vec()
    };
    check_kill(&outcome, &told, &["1s KILL", "6s dropped"]);
}

/// What was told from the kill on, as one text.
fn told_of_kill(outcome: &Outcome) -> String {
    let from = outcome.told.iter().position(|line| line.contains("attempting to kill")).expect("it is killed");
    outcome.told[from..].join("|").replace("|header ", "")
}

#[tokio::test(start_paused = true)]
async fn a_program_has_its_time_from_when_a_signal_was_sent() {
    let outcome = killed(silent().slow(20), |shell| shell.interrupt_signal = "INT".to_owned()).await;
    assert_eq!(outcome.done, ["1s INT", "26s KILL", "46s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn a_signal_that_went_another_way_says_so() {
    let outcome = killed(silent().by_detour("SIGKILL went over the mountains"), |_| ()).await;
    let told = told_of_kill(&outcome);
    assert!(
        told.contains("attempting to kill\nSIGKILL went over the mountains\nprocess killed by signal 9\n"),
        "{told}"
    );
    assert!(told.ends_with("complete None"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_is_ended_with_a_program_that_nothing_else_ends() {
    let check = async |process: FakeProcess, expected: &str| {
        let outcome = killed(process.in_guest(), |_| ()).await;
        let told = told_of_kill(&outcome);
        assert!(told.contains(expected), "{told}");
        assert!(told.contains("rc -1") && told.ends_with("complete None"), "{told}");
        assert_eq!(outcome.done, ["1s KILL", "6s place ended", "6s dropped"]);
    };
    check(silent().immortal(), "SIGKILL failed to kill process: the vm was ended: it survived\n").await;
    check(
        silent().unreachable(),
        "SIGKILL could not be sent: nobody listens\nSIGKILL failed to kill process: the vm was ended: nobody listens\n",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_escaped_a_killed_program_is_not_waited_for() {
    let escaped = silent().on("KILL", vec![(0.0, Event::Exited)]);
    let outcome = killed(escaped, |_| ()).await;
    check_kill(
        &outcome,
        &["", "rc -1", "header elapsedTime=T\n", "elapsed", "complete None"],
        &["1s KILL", "1s left", "1s dropped"],
    );
}

#[tokio::test(start_paused = true)]
async fn what_ignores_sigterm_after_its_parent_obeyed_is_killed() {
    let outcome = killed(silent().immortal().on("TERM", vec![(0.0, Event::Exited)]), |shell| {
        shell.sigterm_time = seconds(3);
    })
    .await;
    check_kill(
        &outcome,
        &["", "rc -1", "header elapsedTime=T\n", "elapsed", "complete None"],
        &["1s TERM", "4s KILL", "4s left", "4s dropped"],
    );
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_program_is_killed_and_what_it_wrote_is_sent_before() {
    let mut scene = Scene::new(FakeProcess::new(vec![(0.5, stdout("start\n"))]));
    scene.meanwhile = Meanwhile::InterruptAt(Duration::from_secs(1));
    let told = [
        "HEADER",
        "stdout start\n",
        "header \ncommand interrupted, attempting to kill\nprocess killed by signal 9\n",
        "rc -1",
        "header elapsedTime=T\n",
        "complete None",
    ];
    check(&scene.play().await, &told, &["1s KILL", "1s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn a_command_can_be_interrupted_before_its_program_runs() {
    let place = FakePlace::new(Ok(silent()));
    let mut scene = Scene { place, ..Scene::new(silent()) };
    let _ = scene.place.spawn(program_of(&scene.shell, Path::new("/w"), &[], false)).await;
    scene.meanwhile = Meanwhile::InterruptAt(Duration::from_secs(1));
    let outcome = scene.play().await;
    let told = [
        &format!("{HEADER}\ncommand interrupted, attempting to kill\n"),
        "rc -1",
        "header elapsedTime=T\n",
        "complete None",
    ];
    check(&outcome, &told, &["0s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_command_is_dropped_in_silence() {
    let mut scene = Scene::new(silent());
    scene.meanwhile = Meanwhile::AbandonAt(Duration::from_secs(3));
    check(&scene.play().await, &[], &["3s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn a_command_does_not_outlive_its_line() {
    let mut scene = Scene::new(silent());
    scene.meanwhile = Meanwhile::LineLostAt(Duration::from_secs(3));
    check(&scene.play().await, &[], &["3s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_place_is_a_failure_of_the_infrastructure() {
    let lost = Event::Ended(Ending::Lost { reason: "the VM has stopped".to_owned() });
    let outcome = Scene::new(FakeProcess::new(vec![(1.0, lost)])).play().await;
    let told = [
        "HEADER",
        "stderr the VM has stopped\n",
        "failure_reason vm_lost",
        "vm_error Str(\"the VM has stopped\")",
        "rc -1",
        "header elapsedTime=T\n",
        "elapsed",
        "complete None",
    ];
    check(&outcome, &told, &["1s dropped"]);

    let outcome = Scene::with(Err(SpawnError::Lost("the VM has stopped".to_owned()))).play().await;
    check(&outcome, &told, &[]);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_can_not_be_executed_fails() {
    let source = std::io::Error::from_raw_os_error(nix::libc::ENOENT);
    let outcome = Scene::with(Err(SpawnError::Program { program: "prog".into(), source })).play().await;
    let told = [
        "HEADER",
        "stderr can't execute prog: No such file or directory (os error 2)\n",
        "rc 1",
        "header elapsedTime=T\n",
        "elapsed",
        "complete None",
    ];
    check(&outcome, &told, &[]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_can_not_start_a_program_says_so_with_a_failure() {
    let outcome = Scene::with(Err(SpawnError::Other(std::io::Error::other("out of processes")))).play().await;
    let told = [
        "HEADER",
        "stderr can't start the program: out of processes\n",
        "rc -1",
        "header elapsedTime=T\n",
        "elapsed",
        "complete Some(\"can't start the program: out of processes\")",
    ];
    check(&outcome, &told, &[]);

    let source = std::io::Error::from_raw_os_error(nix::libc::ENOENT);
    let outcome = Scene::with(Err(SpawnError::NoWorkdir { workdir: "/proc/no".into(), source })).play().await;
    let told = [
        "HEADER",
        "stderr can't make the workdir /proc/no: No such file or directory\n",
        "rc -1",
        "header elapsedTime=T\n",
        "elapsed",
        "complete Some(\"can't make the workdir /proc/no: No such file or directory\")",
    ];
    check(&outcome, &told, &[]);
}

/// What the log ends with for a program that exits after a second and leaves something behind.
#[track_caller]
fn check_left_behind(outcome: &Outcome, done: &[&str]) {
    let told: String = outcome.told.concat();
    let note = told.contains("something it started holds its output open");
    let left = done.len() == 2;
    assert_eq!((note, told.ends_with("rc 0header elapsedTime=T\nelapsedcomplete None")), (left, true), "{told}");
    assert_eq!(outcome.done, done);
}

#[tokio::test(start_paused = true)]
async fn output_that_flows_after_the_exit_is_waited_for() {
    let script = vec![(1.0, Event::Exited), (5.0, stdout("x")), (9.0, stdout("y\n")), (12.0, exits(0))];
    let outcome = Scene::new(FakeProcess::new(script)).play().await;
    check_left_behind(&outcome, &["12s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn silence_after_the_exit_is_the_end() {
    let outcome = Scene::new(FakeProcess::new(vec![(1.0, Event::Exited)])).play().await;
    check_left_behind(&outcome, &["6s left", "6s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn output_after_the_exit_is_not_waited_for_for_ever() {
    let chatter = (2..1000).map(|second| (f64::from(second), stdout("x\n")));
    let script = [(1.0, Event::Exited)].into_iter().chain(chatter).collect();
    let outcome = Scene::new(FakeProcess::new(script)).play().await;
    check_left_behind(&outcome, &["61s left", "61s dropped"]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_master_does_not_make_a_program_silent() {
    let block = Bytes::from(("x".repeat(79) + "\n").repeat(800));
    let script = (0..100).map(|_| (0.0, Event::Stdout(block.clone()))).chain([(0.0, exits(0))]).collect();
    let mut scene = Scene::new(FakeProcess::new(script)).shell(|shell| shell.timeout = seconds(2));
    scene.deaf = Duration::from_secs(1000);
    let outcome = scene.play().await;
    assert_eq!(outcome.done, ["1000s dropped"]);
    assert_eq!(outcome.told[outcome.told.len() - 4..][0], "rc 0");
    assert_eq!(
        outcome.told.iter().filter(|line| line.starts_with("stdout")).map(|line| line.len() - 7).sum::<usize>(),
        6_400_000
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_master_does_not_save_a_program_from_being_killed() {
    let block = Bytes::from(("x".repeat(79) + "\n").repeat(800));
    let script = (0..100).map(|_| (0.0, Event::Stdout(block.clone()))).collect();
    let mut scene = Scene::new(FakeProcess::new(script));
    scene.deaf = Duration::from_secs(1000);
    scene.meanwhile = Meanwhile::InterruptAt(Duration::from_secs(7));
    assert_eq!(scene.play().await.done, ["7s KILL", "1000s dropped"]);
}
