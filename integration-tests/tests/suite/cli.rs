//! The command line where no guest is needed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use integration_tests::{Guest, KvmHost, SOON, Terminal, contains_all};
use rustix::process::Signal;
use serde_json::Value;

/// A URL where no master is.
const NOWHERE: &str = "pb://127.0.0.1:9";

/// A host with an image, of which no machine is started.
fn host() -> Result<KvmHost> {
    let mut host = KvmHost::at(NOWHERE)?;
    host.image("plain", Guest::plain()?.booting());
    host.set("pool.slots", 2);
    // What is waited for is seen for a while.
    host.set("connection.retry_min", 30);
    Ok(host)
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |stream: &[u8]| String::from_utf8_lossy(stream).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn status_tells_of_a_master_that_is_not_there_and_of_free_slots() -> Result<()> {
    let host = host()?;
    let (status, _, error) = said(&host.ask(&["status"])?);
    assert_eq!(status, Some(1));
    contains_all(&error, &["kvm-worker: no worker runs on ", "control.sock"])?;

    let mut worker = host.start()?;
    worker.transcript().find("not connected", SOON)?;
    // Nothing of what people ask for needs the password.
    fs::remove_file(host.path("password"))?;
    let (status, page, error) = said(&host.ask(&["status"])?);
    assert_eq!((status, error.as_str()), (Some(0), ""));
    let lines: Vec<&str> = page.lines().collect();
    contains_all(lines[0], &["worker: running, up for ", &format!("process {}", worker.id())])?;
    contains_all(lines[1], &["master pb://127.0.0.1:9 (pb): not connected for ", "again in ", "refused"])?;
    assert_eq!(lines[2..4], ["2 slots: 2 free", ""]);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(lines[4]), ["SLOT", "STATE", "FOR", "PORT"]);
    let slot = words(lines[6]);
    assert_eq!([&slot[0], &slot[1], &slot[4]], ["1", "free", &host.ssh_port(1).to_string()]);
    assert_eq!(lines.len(), 7, "{page}");

    let status = host.status()?;
    assert_eq!(status["master"]["state"], "waiting");
    assert_eq!(status["pid"], worker.id());
    assert_eq!(status["state"], "running");
    assert_eq!(status["slots"][0]["state"], "free");
    assert_eq!(status["slots"][0]["builder"], Value::Null);
    worker.stop()?;
    host.nothing_left()
}

#[test]
fn status_tells_of_a_pause_in_which_nobody_gets_a_machine() -> Result<()> {
    let host = host()?;
    let mut worker = host.start()?;
    worker.transcript().find("not connected", SOON)?;
    assert_eq!(host.ask(&["pause"])?.status.code(), Some(0));
    contains_all(&said(&host.ask(&["status"])?).1, &["worker: paused, up for "])?;
    let (status, _, error) = said(&host.ask(&["exec", "plain", "--", "true"])?);
    assert_eq!(status, Some(125));
    contains_all(&error, &["the worker is paused; no machine is started"])?;
    assert_eq!(host.ask(&["resume"])?.status.code(), Some(0));
    assert_eq!(host.status()?["state"], "running");
    worker.stop()?;
    host.nothing_left()
}

#[test]
fn worker_without_images_tells_of_its_line() -> Result<()> {
    let host = KvmHost::at(NOWHERE)?;
    let mut worker = host.start()?;
    worker.transcript().find("not connected", SOON)?;
    let (status, page, error) = said(&host.ask(&["status"])?);
    assert_eq!(status, Some(0), "{error}");
    assert_eq!(page.lines().count(), 2, "{page}");
    assert_eq!(host.status()?["slots"], serde_json::json!([]));
    worker.stop()?;
    host.nothing_left()
}

#[test]
fn watching_goes_on_until_it_is_interrupted() -> Result<()> {
    let host = host()?;
    let mut worker = host.start()?;
    worker.transcript().find("not connected", SOON)?;
    let mut watching = host.begin(&["status", "--watch", "--json"])?;
    let first = watching.transcript().find("\"uptime_seconds\"", SOON)?;
    let mark = watching.transcript().mark();
    let second = watching.transcript().find_from(mark, "\"uptime_seconds\"", SOON)?;
    let uptime = |line: &str| -> Result<f64> {
        let status: Value = serde_json::from_str(line)?;
        status["uptime_seconds"].as_f64().context("a number")
    };
    ensure!(uptime(&second)? > uptime(&first)?, "{first}\n{second}");
    watching.signal(Signal::INT)?;
    assert_eq!(watching.wait(SOON)?.code(), Some(0));

    // Where it goes to no terminal it ends with the worker.
    let mut watching = host.begin(&["status", "--watch"])?;
    watching.transcript().find("2 slots: 2 free", SOON)?;
    worker.stop()?;
    assert_eq!(watching.wait(SOON)?.code(), Some(1));
    watching.transcript().find("kvm-worker: ", SOON)?;
    host.nothing_left()
}

#[test]
fn watching_gives_the_terminal_back_as_it_was() -> Result<()> {
    let host = host()?;
    let mut worker = host.start()?;
    worker.transcript().find("not connected", SOON)?;
    // q, and Ctrl-C as a terminal sends it.
    for key in ["q", "\u{3}"] {
        let mut terminal = host.on_terminal(&["status", "--watch"])?;
        terminal.screen().find("2 slots: 2 free", SOON)?;
        let mark = terminal.screen().mark();
        terminal.screen().find_from(mark, "2 slots: 2 free", SOON)?;
        terminal.press(key)?;
        assert_eq!(terminal.wait(SOON)?.code(), Some(0));
        terminal.is_as_before()?;
        let screen = terminal.screen().text();
        ensure!(screen.starts_with("\u{1b}[?1049h") && screen.ends_with("\u{1b}[?1049l"), "{screen:?}");
        contains_all(&screen, &["\u{1b}[32mrunning\u{1b}[0m"])?;
    }
    // Who wants no colours gets none, and nothing is left of what turned meanwhile.
    let mut command = host.asking(&["status"])?;
    let mut terminal = Terminal::start(command.env("NO_COLOR", "1"))?;
    assert_eq!(terminal.wait(SOON)?.code(), Some(0));
    let page = terminal.screen().text();
    contains_all(&page, &["worker: running, up for "])?;
    ensure!(!page.contains('\u{1b}'), "{page:?}");
    worker.stop()?;
    host.nothing_left()
}

#[test]
fn slots_without_a_machine_have_nothing_to_show() -> Result<()> {
    let host = host()?;
    let mut worker = host.start()?;
    worker.transcript().find("started", SOON)?;
    let check = |arguments: &[&str], expected: &str| -> Result<()> {
        let (status, out, error) = said(&host.ask(arguments)?);
        assert_eq!((status, out.as_str()), (Some(1), ""), "{error}");
        assert_eq!(error, format!("kvm-worker: {expected}\n"));
        Ok(())
    };
    check(&["console", "0"], "there is no machine in slot 0, and so no console")?;
    check(&["console", "7", "-f"], "there is no slot 7; see kvm-worker status")?;
    check(&["ssh", "0"], "there is no machine to log in to in slot 0: it is free")?;
    check(&["ssh", "7"], "there is no slot 7; see kvm-worker status")?;
    check(&["release", "1"], "no machine runs in slot 1")?;
    let (status, _, error) = said(&host.ask(&["exec", "other", "--", "true"])?);
    assert_eq!(status, Some(125), "{error}");
    contains_all(&error, &["no image is named 'other'", "it has plain"])?;
    worker.stop()?;
    host.nothing_left()
}

#[test]
fn socket_can_be_where_a_group_reaches_it() -> Result<()> {
    let mut host = host()?;
    host.set("control.group", "root");
    let (status, _, error) = said(&host.ask(&["status"])?);
    assert_eq!(status, Some(2));
    contains_all(&error, &["control.group = \"root\": set control.socket, too"])?;

    let group = nix::unistd::Group::from_gid(nix::unistd::getgid())?.context("the group has a name")?;
    host.set("control.group", group.name);
    let socket = host.path("run/control.sock");
    host.set("control.socket", socket.display().to_string());
    let (status, text) = host.start_in_vain()?;
    ensure!(!status.success(), "{text}");
    contains_all(&text, &["there is no directory ", "RuntimeDirectory="])?;

    fs::create_dir(host.path("run"))?;
    let mut worker = host.start()?;
    worker.transcript().find("started", SOON)?;
    let metadata = fs::metadata(&socket)?;
    assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, group.gid.as_raw()));
    host.status()?;
    worker.stop()?;
    ensure!(!socket.exists(), "the socket is left");
    host.nothing_left()
}

#[test]
fn program_describes_itself() -> Result<()> {
    let host = host()?;
    // None of it needs a configuration.
    let run = |arguments: &[&str]| -> Result<String> {
        let mut command = host.asking(&[])?;
        let program = command.get_program().to_owned();
        command = std::process::Command::new(program);
        let output = command.args(arguments).output()?;
        ensure!(output.status.success(), "{arguments:?} ended with {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    for (shell, part) in
        [("bash", "complete -F _kvm"), ("zsh", "#compdef kvm-worker"), ("fish", "complete -c kvm-worker")]
    {
        contains_all(&run(&["completions", shell])?, &[part, "status", "exec"])?;
    }
    let version = run(&["version"])?;
    contains_all(&version, &["kvm-worker ", "protocols: pb, msgpack", "qemu: "])?;
    let version: Value = serde_json::from_str(&run(&["version", "--json"])?)?;
    assert_eq!(version["protocols"], serde_json::json!(["pb", "msgpack"]));

    contains_all(&run(&["man"])?, &[".TH kvm-worker 1", "Exit status"])?;
    let pages = host.path("man/man1");
    run(&["man", pages.to_str().context("a text")?])?;
    for page in ["kvm-worker", "kvm-worker-run", "kvm-worker-status", "kvm-worker-exec", "kvm-worker-image-rollback"] {
        let page = pages.join(format!("{page}.1"));
        ensure!(page.exists(), "there is no {}", page.display());
    }
    contains_all(&run(&["help"])?, &["status", "console", "ssh", "exec"])?;
    contains_all(&run(&["--help"])?, &["Exit status:", "125"])
}
