//! The command line on a host with machines.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use integration_tests::{CLONED, Guest, KvmHost, Master, Rig, SOON, WITH_GUESTS, contains_all};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A URL where no master is.
const NOWHERE: &str = "pb://127.0.0.1:9";

fn alone(slots: i64) -> Result<KvmHost> {
    let mut host = KvmHost::at(NOWHERE)?;
    host.image("plain", Guest::plain()?);
    host.set("pool.slots", slots);
    Ok(host)
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |stream: &[u8]| String::from_utf8_lossy(stream).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
#[ignore = "long"]
fn status_tells_why_each_slot_is_as_it_is() -> Result<()> {
    let steps =
        r#"steps.StartVM(image="plain"), steps.VMShellCommand(name="compile", command="echo at work; sleep 1000"),"#;
    let master = Master::plan()
        .builder("busy", steps)
        .builder("stuck", r#"steps.StartVM(image="stuck", vm="server"),"#)
        .builder("host", r#"steps.ShellCommand(command="echo at work; sleep 1000"),"#)
        .start()?;
    let mut taken = None;
    let rig = Rig::of(master, |host| {
        host.set("pool.slots", 3);
        host.image("plain", Guest::plain()?);
        // Its ssh server is elsewhere, so it never answers.
        host.image("stuck", Guest::plain()?.with("ssh_port", 23));
        taken = Some(TcpListener::bind(("127.0.0.1", host.ssh_port(0))).context("take the first slot's port")?);
        Ok(())
    })?;
    let busy = rig.master.force("busy")?;
    rig.master.printed(busy, "at work", WITH_GUESTS)?;
    let stuck = rig.master.force("stuck")?;
    rig.master.printed(stuck, "qemu started", WITH_GUESTS)?;
    let host = rig.master.force("host")?;
    rig.master.printed(host, "at work", SOON)?;

    let starting = rig.host.slot_becomes(2, "waiting for ssh, with a console", |slot| slot["console"].is_string())?;
    assert_eq!(starting["state"], "starting");
    assert_eq!(starting["doing"], "booting: waiting for ssh");
    assert_eq!([&starting["builder"], &starting["vm"], &starting["image"]], ["stuck", "server", "stuck"]);
    assert_eq!(starting["commands"][0]["step"], "start-vm");

    let status = rig.host.status()?;
    let machine = &status["slots"][1];
    assert_eq!(machine["state"], "up");
    assert_eq!(
        [&machine["builder"], &machine["vm"], &machine["image"], &machine["how"]],
        ["busy", "default", "plain", "clone"]
    );
    assert_eq!([&machine["build"], &machine["generation"], &machine["ssh_port"]], [1, 1, rig.host.ssh_port(1)]);
    assert_eq!([&machine["commands"][0]["command"], &machine["commands"][0]["step"]], ["shell", "compile"]);
    let memory = machine["memory_bytes"].as_u64().context("a number")?;
    ensure!((20 << 20..2 << 30).contains(&memory), "{memory}");
    let pid = machine["pid"].as_u64().context("a number")?;
    ensure!(rig.host.machines()?.iter().any(|machine| machine.pid.unsigned_abs() == pid as u32), "{pid}");
    let broken = &status["slots"][0];
    assert_eq!(broken["state"], "quarantined");
    contains_all(broken["why"].as_str().context("a reason")?, &["another program uses it"])?;
    assert_eq!(status["master"]["state"], "connected");
    assert_eq!(status["machines"]["free"], 0);
    assert_eq!([&status["commands"][0]["builder"], &status["commands"][0]["command"]], ["host", "shell"]);
    assert_eq!(status["commands"][0]["vm"], Value::Null);

    // The command lines, which may have secrets in them, are nowhere.
    let (code, page, _) = said(&rig.host.ask(&["status"])?);
    assert_eq!(code, Some(0));
    ensure!(!page.contains("sleep") && !status.to_string().contains("sleep"), "{page}");
    contains_all(&page, &["connected for", "quarantined", "another program uses it", "compile", "slot 2: console: "])?;

    // One more waits, and is told of with its reason.
    let waiting = rig.host.begin(&["exec", "plain", "--", "true"])?;
    waiting.transcript().find("waiting for a slot", SOON)?;
    let status = rig.host.status()?;
    assert_eq!(status["machines"]["waiting"], 1);
    contains_all(status["machines"]["waits_for"].as_str().context("a reason")?, &["waiting for a slot"])?;
    drop(waiting);
    drop(taken);
    rig.finish()
}

#[test]
#[ignore = "long"]
fn people_get_into_a_running_builds_machine_and_see_its_console() -> Result<()> {
    let steps = r#"
        steps.StartVM(image="plain"),
        steps.VMShellCommand(command="echo evidence > ~/evidence; echo at work; until test -e ~/done; do sleep 0.2; done"),
        steps.StopVM(),"#;
    // A clone prints nothing of its own when it begins.
    let rig = Rig::with_guest(steps, Guest::plain()?.booting())?;
    let build = rig.master.force("build")?;
    rig.master.printed(build, "at work", WITH_GUESTS)?;

    let (status, out, error) = said(&rig.host.ask(&["ssh", "0", "--", "cat", "evidence"])?);
    assert_eq!((status, out.as_str()), (Some(0), "evidence\n"), "{error}");
    // Words stay words, a single one is a line, and the status is the command's.
    let (status, out, _) = said(&rig.host.ask(&["ssh", "0", "--", "echo", "a  b", "$HOME"])?);
    assert_eq!((status, out.as_str()), (Some(0), "a  b $HOME\n"));
    let (status, _, _) = said(&rig.host.ask(&["ssh", "0", "--", "exit 7"])?);
    assert_eq!(status, Some(7));

    let (status, console, _) = said(&rig.host.ask(&["console", "0"])?);
    assert_eq!(status, Some(0));
    contains_all(&console, &["Linux version"])?;
    ensure!(!console.contains(['\r', '\u{1b}']), "{console:?}");
    let raw = rig.host.ask(&["console", "0", "--raw"])?.stdout;
    ensure!(raw.contains(&b'\r'), "it is not as it was printed");

    let mut following = rig.host.begin(&["console", "0", "-f"])?;
    following.transcript().find("Linux version", SOON)?;
    rig.host.ask(&["ssh", "0", "--", "echo last words | sudo tee /dev/console; sleep 1; touch done"])?;
    following.transcript().find("last words", SOON)?;
    rig.master.complete(build, WITH_GUESTS)?.succeeded()?;
    assert_eq!(following.wait(SOON)?.code(), Some(0));
    rig.finish()
}

#[test]
#[ignore = "long"]
fn a_command_runs_in_a_machine_without_any_worker() -> Result<()> {
    let host = alone(1)?;
    let line = "echo out; echo err >&2; id -un; exit 7";
    let (status, out, error) = said(&host.ask(&["exec", "plain", "--cpus", "2", "--", "sh", "-c", line])?);
    assert_eq!((status, out.as_str()), (Some(7), "out\nbuildbot\n"), "{error}");
    contains_all(&error, &["kvm-worker: slot 0: qemu started", "kvm-worker: slot 0: ready after", "\nerr\n"])?;
    host.nothing_left()?;

    // Nothing but the command's own words, and its input.
    let mut command = host.asking(&["exec", "-q", "-i", "plain", "--", "wc", "-c"])?;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("it has one")?;
    let writing = std::thread::spawn(move || stdin.write_all(&vec![b'x'; 300_000]));
    let (status, out, error) = said(&child.wait_with_output()?);
    writing.join().expect("it does not panic")?;
    assert_eq!((status, out.as_str(), error.as_str()), (Some(0), "300000\n", ""));
    host.nothing_left()
}

#[test]
#[ignore = "long"]
fn what_becomes_of_a_command_is_the_exit_status() -> Result<()> {
    let host = alone(1)?;
    let mut worker = host.start()?;
    worker.transcript().find("started", SOON)?;
    let check = |arguments: &[&str], expected: i32, says: &str| -> Result<()> {
        let (status, _, error) = said(&host.ask(arguments)?);
        assert_eq!(status, Some(expected), "{arguments:?} {error}");
        contains_all(&error, &[says])
    };
    check(&["exec", "plain", "--", "no-such-program"], 127, "no-such-program: no such program in the guest")?;
    check(&["exec", "plain", "--", "sh", "-c", "kill -9 $$"], 137, "")?;
    check(&["exec", "--timeout", "1", "plain", "--", "sleep", "1000"], 124, "did not end within 1 s")?;
    host.slots_clean()?;
    check(&["exec", "--memory-mib", "100000000", "plain", "--", "true"], 125, "memory")?;
    assert_eq!(host.status()?["slots"][0]["state"], "free");
    worker.stop()?;
    host.nothing_left()
}

#[test]
#[ignore = "long"]
fn a_persons_machine_is_one_of_the_pool_and_ends_with_who_asked() -> Result<()> {
    let mut host = alone(1)?;
    host.set("pool.acquire_timeout", 1);
    let mut worker = host.start()?;
    worker.transcript().find("started", SOON)?;
    let mut first = host.begin(&["exec", "plain", "--", "sh", "-c", "echo at work; sleep 1000"])?;
    first.transcript().find("at work", WITH_GUESTS)?;
    let slot = host.status()?["slots"][0].clone();
    assert_eq!([&slot["state"], &slot["vm"], &slot["image"]], ["up", "exec", "plain"]);
    assert_eq!(slot["builder"], Value::Null);
    let (status, _, error) = said(&host.ask(&["exec", "plain", "--", "true"])?);
    assert_eq!(status, Some(125));
    contains_all(&error, &["pool.slots"])?;
    let (status, _, error) = said(&host.ask(&["release", "0"])?);
    assert_eq!(status, Some(1));
    contains_all(&error, &["kvm-worker exec that runs"])?;

    first.signal(Signal::INT)?;
    first.wait(SOON)?;
    host.slots_clean()?;
    // While it starts, too; and a client that is killed says nothing at all.
    let mut second = host.begin(&["exec", "plain", "--", "true"])?;
    second.transcript().find(CLONED, SOON)?;
    second.kill()?;
    host.slots_clean()?;

    // It is kept as one of a build is.
    let (status, _, error) = said(&host.ask(&["exec", "--keep", "600", "plain", "--", "touch", "evidence"])?);
    assert_eq!(status, Some(0), "{error}");
    contains_all(&error, &["kept in slot 0 for 600 s", "kvm-worker release 0"])?;
    let slot = host.status()?["slots"][0].clone();
    assert_eq!(slot["state"], "held");
    ensure!(slot["held_seconds"].as_f64().is_some_and(|left| (500.0..=600.0).contains(&left)), "{slot}");
    let (status, _, error) = said(&host.ask(&["ssh", "0", "--", "test", "-e", "evidence"])?);
    assert_eq!(status, Some(0), "{error}");
    assert_eq!(host.ask(&["release", "0"])?.status.code(), Some(0));
    host.slots_clean()?;

    // The worker's end is its end.
    let mut third = host.begin(&["exec", "plain", "--", "sh", "-c", "echo at work; sleep 1000"])?;
    third.transcript().find("at work", WITH_GUESTS)?;
    ensure!(worker.stop()?.success(), "the worker did not end well");
    assert_eq!(third.wait(SOON)?.code(), Some(125));
    host.nothing_left()
}

#[test]
fn an_interrupt_leaves_nothing_where_no_worker_runs() -> Result<()> {
    let host = alone(1)?;
    let mut running = host.begin(&["exec", "plain", "--", "sh", "-c", "echo at work; sleep 1000"])?;
    running.transcript().find("at work", WITH_GUESTS)?;
    // The state directory is taken.
    let (status, text) = host.start_in_vain()?;
    ensure!(!status.success(), "{text}");
    contains_all(&text, &[&format!("process {}", running.id())])?;
    running.signal(Signal::INT)?;
    assert_eq!(running.wait(SOON)?.code(), Some(130));
    host.nothing_left()?;

    let mut kept = host.begin(&["exec", "--keep", "600", "plain", "--", "true"])?;
    kept.transcript().find("Ctrl-C", WITH_GUESTS)?;
    host.machine()?;
    kept.signal(Signal::TERM)?;
    kept.wait(SOON)?;
    host.nothing_left()
}

#[test]
#[ignore = "long"]
fn a_person_is_let_in_where_there_is_no_command() -> Result<()> {
    let host = alone(1)?;
    let mut worker = None;
    for _ in 0..2 {
        let mut terminal = host.on_terminal(&["exec", "plain"])?;
        // Once it is there the shell finds what was typed before.
        terminal.press("id -un; echo $((6 * 7)); exit 5\n")?;
        assert_eq!(terminal.wait(WITH_GUESTS)?.code(), Some(5), "{}", terminal.screen().text());
        contains_all(&terminal.screen().text(), &[CLONED, "buildbot", "42"])?;
        terminal.is_as_before()?;
        host.slots_clean()?;
        // The same with a worker.
        if worker.is_none() {
            let started = host.start()?;
            started.transcript().find("started", SOON)?;
            worker = Some(started);
        }
    }
    worker.context("it runs")?.stop()?;
    host.nothing_left()
}

#[test]
#[ignore = "long"]
fn warm_machines_and_templates_show() -> Result<()> {
    let mut host = alone(1)?;
    host.set("pool.warm_max_load", 1000.0);
    host.image("plain", Guest::plain()?.with("template", true).with("warm", 1));
    let mut worker = host.start()?;
    worker.transcript().find("started", SOON)?;
    let template = host.slot_becomes(1, "where a template is made", |slot| slot["state"] == "template")?;
    assert_eq!(template["image"], "plain");
    let warm = host.slot_becomes(0, "warm", |slot| slot["state"] == "warm")?;
    assert_eq!([&warm["image"], &warm["builder"]], [&json!("plain"), &Value::Null]);
    let (status, _, error) = said(&host.ask(&["ssh", "0"])?);
    assert_eq!(status, Some(1));
    contains_all(&error, &["warm, for a build that is to get it unused"])?;
    let (status, out, error) = said(&host.ask(&["exec", "plain", "--", "echo", "hello"])?);
    assert_eq!((status, out.as_str()), (Some(0), "hello\n"), "{error}");
    contains_all(&error, &["(warm)"])?;
    worker.stop()?;
    // Where no worker runs the template is of use, too.
    let (status, out, error) = said(&host.ask(&["exec", "plain", "--", "echo", "hello"])?);
    assert_eq!((status, out.as_str()), (Some(0), "hello\n"), "{error}");
    contains_all(&error, &["(clone)"])?;
    host.nothing_left()
}
