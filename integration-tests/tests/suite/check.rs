//! What is found before a worker starts, and that looking disturbs nobody.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use integration_tests::{Guest, KvmHost, Master, Protocol, Rig, SOON, contains_all, over_both_protocols};

/// A URL where no master is.
const NOWHERE: &str = "pb://127.0.0.1:9";

/// What `kvm-worker check` prints, and its exit status.
fn checked(host: &KvmHost, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let Output { status, stdout, stderr } = host.ask(arguments)?;
    ensure!(stderr.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
    Ok((status.code(), String::from_utf8(stdout)?))
}

/// Checks that a line has a verdict, a subject and some words.
#[track_caller]
fn has(text: &str, verdict: &str, subject: &str, words: &str) {
    let is_it = |line: &str| {
        let mut parts = line.split_whitespace();
        parts.next() == Some(verdict) && parts.next() == Some(subject) && line.contains(words)
    };
    assert!(text.lines().any(is_it), "no line is {verdict} {subject} ... {words}:\n{text}");
}

fn with_image(host: &mut KvmHost, guest: Guest) {
    host.image("plain", guest);
}

over_both_protocols! {
    the_master_looks_at_the_password_and_starts_nothing,
    a_password_that_the_master_does_not_take_is_found,
    a_worker_of_the_same_name_is_not_asked_whether_it_lives,
}

fn the_master_looks_at_the_password_and_starts_nothing(protocol: Protocol) -> Result<()> {
    let master = Master::building_over(protocol, r#"steps.ShellCommand(command="true"),"#)?;
    let mut host = KvmHost::of(&master)?;
    with_image(&mut host, Guest::plain()?.booting());
    // Waits for the worker, and would start on anything that logs in as it.
    let request = master.force("build")?;
    let (status, text) = checked(&host, &["check"])?;
    has(&text, "ok", "login", "takes worker 'worker' and its password");
    for subject in ["file", "password", "basedir", "state_dir", "running", "qemu", "qemu-img", "accelerator", "ports"] {
        has(&text, "ok", subject, "");
    }
    for subject in ["memory", "disk", "kernel", "initrd", "key", "host_key", "generation"] {
        has(&text, "ok", subject, "");
    }
    ensure!(text.contains(", 0 failed, "), "{text}");
    assert_eq!(status, Some(0), "{text}");
    ensure!(!text.contains('\u{1b}'), "colours where there is no terminal: {text:?}");
    ensure!(!host.basedir().exists() && !host.state_dir().exists(), "looking made a directory");

    let seen = master.transcript().text();
    ensure!(!seen.contains("attached to") && !seen.contains("bot attached"), "it was attached:\n{seen}");
    let mut worker = host.attach(&master)?;
    master.complete(request, SOON)?.succeeded()?;
    assert_eq!(master.tries(request)?.len(), 1);
    worker.stop()?;
    host.nothing_left()
}

fn a_password_that_the_master_does_not_take_is_found(protocol: Protocol) -> Result<()> {
    let master = Master::building_over(protocol, r#"steps.ShellCommand(command="true"),"#)?;
    let mut host = KvmHost::of(&master)?;
    host.write_password("another one", 0o600)?;
    let refused = "refused the login of worker 'worker'";
    let (status, text) = checked(&host, &["check"])?;
    has(&text, "failed", "login", refused);
    assert_eq!(status, Some(1), "{text}");
    ensure!(!text.contains("another one"), "the password is shown: {text}");
    host.write_password(Master::PASSWORD, 0o600)?;
    host.set("worker.name", "stranger");
    has(&checked(&host, &["check"])?.1, "failed", "login", "refused the login of worker 'stranger'");
    let (status, text) = checked(&host, &["check", "--offline"])?;
    has(&text, "skipped", "login", "--offline");
    assert_eq!(status, Some(0), "{text}");

    // The other protocol is not spoken there.
    let other = match protocol {
        Protocol::Msgpack => master.url().replace("ws://", "pb://"),
        Protocol::Pb => master.url().replace("pb://", "ws://"),
    };
    host.set("worker.name", Master::WORKER);
    host.set("worker.master", other);
    host.set("connection.connect_timeout", 5);
    let (status, text) = checked(&host, &["check"])?;
    has(&text, "failed", "login", "");
    assert_eq!(status, Some(1), "{text}");
    Ok(())
}

fn a_worker_of_the_same_name_is_not_asked_whether_it_lives(protocol: Protocol) -> Result<()> {
    let rig = Rig::building_over(protocol, r#"steps.ShellCommand(command="echo begun; sleep 30 & wait"),"#)?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "begun", SOON)?;
    let elsewhere = KvmHost::of(&rig.master)?;
    let (status, text) = checked(&elsewhere, &["check"])?;
    has(&text, "ok", "login", "takes worker 'worker'");
    assert_eq!(status, Some(0), "{text}");
    let seen = rig.master.transcript().text();
    ensure!(!seen.contains("duplicat"), "the other worker was asked:\n{seen}");
    let build = rig.master.begun(request)?;
    rig.master.stop(build)?;
    rig.finish()
}

#[test]
fn a_worker_that_runs_is_left_alone() -> Result<()> {
    let mut rig = Rig::with_machine(r#"steps.ShellCommand(command="true"),"#)?;
    let (status, text) = checked(&rig.host, &["check"])?;
    let process = format!("process {}", rig.worker.id());
    has(&text, "ok", "running", &process);
    has(&text, "skipped", "ports", &process);
    has(&text, "skipped", "login", &process);
    assert_eq!(status, Some(0), "{text}");
    rig.master.run("build")?.succeeded()?;
    // What a worker left that was killed is nobody's.
    rig.worker.kill()?;
    has(&checked(&rig.host, &["check", "--no-login"])?.1, "ok", "running", "no worker has this state directory");
    Ok(())
}

#[test]
fn all_that_is_wrong_on_the_host_is_found_at_once() -> Result<()> {
    let mut host = KvmHost::at(NOWHERE)?;
    with_image(&mut host, Guest::plain()?.with("memory_mib", 4096));
    host.set("pool.qemu", "/nowhere/qemu-system-x86_64");
    host.set("pool.memory_budget_mib", 1024);
    host.set("pool.disk_low_water_mib", 1_000_000_000);
    host.write_password(Master::PASSWORD, 0o644)?;
    fs::write(host.basedir(), "").context("put a file where the basedir is to be")?;
    let _taken = TcpListener::bind(("127.0.0.1", host.ssh_port(0)))?;
    let (status, text) = checked(&host, &["check"])?;
    assert_eq!(status, Some(1), "{text}");
    has(&text, "failed", "password", "chmod 600");
    has(&text, "failed", "basedir", "is not a directory");
    has(&text, "failed", "qemu", "/nowhere/qemu-system-x86_64");
    has(&text, "skipped", "accelerator", "no qemu");
    has(&text, "ok", "qemu-img", "version");
    has(&text, "failed", "ports", &format!("127.0.0.1:{}: another program uses it", host.ssh_port(0)));
    has(&text, "failed", "memory", "it needs 4224 MiB of memory");
    has(&text, "failed", "disk", "pool.disk_low_water_mib");
    // Of the image all is well, and found without qemu.
    has(&text, "ok", "disk", "debian-plain.qcow2");
    has(&text, "skipped", "login", "no password");
    host.write_password(Master::PASSWORD, 0o600)?;
    has(&checked(&host, &["check"])?.1, "failed", "login", "Connection refused");
    Ok(())
}

#[test]
fn an_images_files_are_looked_at_down_to_the_last_disk() -> Result<()> {
    let mut host = KvmHost::at(NOWHERE)?;
    let home = host.home();
    let make = |arguments: &[&str]| -> Result<()> {
        let made = Command::new("qemu-img").args(arguments).current_dir(&home).output()?;
        ensure!(made.status.success(), "{made:?}");
        Ok(())
    };
    make(&["create", "-q", "-f", "raw", "base.raw", "1M"])?;
    make(&["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "middle.qcow2"])?;
    make(&["create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", "top.qcow2"])?;
    let disk = |name: &str| home.join(name).display().to_string();
    let key = disk("key");
    fs::copy(Guest::plain()?.get("key").context("a guest has a key")?, &key)?;
    fs::set_permissions(&key, Permissions::from_mode(0o640))?;
    let images = [
        ("chain", Guest::plain()?.with("disk", disk("top.qcow2"))),
        ("format", Guest::plain()?.with("disk", disk("base.raw")).with("format", "qcow2")),
        ("gone", Guest::plain()?.with("disk", "/nowhere/debian.qcow2").with("kernel", "/nowhere/vmlinuz")),
        ("key", Guest::plain()?.with("key", key)),
    ];
    for (name, guest) in images {
        host.image(name, guest);
    }
    let check = |image: &str, status: i32| -> Result<String> {
        let (code, text) = checked(&host, &["image", "check", image])?;
        assert_eq!(code, Some(status), "{text}");
        contains_all(&text, &[&format!("image {image}\n")])?;
        Ok(text)
    };
    let whole = check("chain", 0)?;
    has(&whole, "ok", "disk", "over 2 other disks");
    contains_all(&whole, &["kvm-worker exec chain -- true"])?;
    has(
        &check("format", 1)?,
        "failed",
        "disk",
        "is raw, and the image's format says qcow2; correct the image's format",
    );
    let gone = check("gone", 1)?;
    has(&gone, "failed", "disk", "/nowhere/debian.qcow2");
    has(&gone, "failed", "kernel", "/nowhere/vmlinuz");
    has(&check("key", 1)?, "failed", "key", "chmod 600");
    fs::remove_file(disk("base.raw"))?;
    has(&check("chain", 1)?, "failed", "disk", "middle.qcow2 lies over");
    // A key that was learnt and then spoilt.
    let learnt = host.state_dir().join("host_keys/key.pub");
    fs::create_dir_all(learnt.parent().context("it has one")?)?;
    fs::write(learnt, "nonsense\n")?;
    let key = Guest::plain()?.without("host_key");
    host.image("key", key);
    let (_, text) = checked(&host, &["image", "check", "key"])?;
    has(&text, "failed", "host_key", "remove the file");
    let none = host.ask(&["image", "check", "other"])?;
    assert_eq!(none.status.code(), Some(1));
    contains_all(&String::from_utf8_lossy(&none.stderr), &["no image is named 'other'", "chain, format, gone, key"])?;
    Ok(())
}

#[test]
fn programs_get_json_and_a_configuration_that_is_wrong_has_its_own_status() -> Result<()> {
    let mut host = KvmHost::at(NOWHERE)?;
    let (status, text) = checked(&host, &["check", "--json", "--offline"])?;
    let report: serde_json::Value = serde_json::from_str(&text)?;
    assert_eq!((status, &report["failed"]), (Some(0), &0.into()), "{text}");
    // Without images builds run on the host, and QEMU is not needed.
    has(&checked(&host, &["check", "--offline"])?.1, "skipped", "all", "no images");
    host.set("pool.slots", 0);
    host.set("worker.nmae", "x");
    let (status, text) = checked(&host, &["check"])?;
    assert_eq!(status, Some(2), "{text}");
    has(&text, "failed", "key", "pool.slots = 0");
    has(&text, "failed", "key", "worker.nmae");
    let (status, text) = checked(&host, &["check", "--json"])?;
    let report: serde_json::Value = serde_json::from_str(&text)?;
    assert_eq!((status, &report["failed"]), (Some(2), &2.into()), "{text}");
    Ok(())
}
