//! What the worker is told, and what it says about it.

use std::fs;

use anyhow::{Result, ensure};
use integration_tests::{Guest, KvmHost, Master, Protocol, SOON, contains_all, over_both_protocols};

/// A URL where no master is: what is wrong with a configuration is told before any connection is made.
const NOWHERE: &str = "ws://127.0.0.1:9";

/// Checks that a worker refuses to start and says these things.
fn refused(host: &KvmHost, says: &[&str]) -> Result<()> {
    let (status, text) = host.start_in_vain()?;
    ensure!(status.code().is_some_and(|code| code != 0), "the worker ended with {status}:\n{text}");
    contains_all(&text, says)
}

#[test]
fn all_problems_are_told_at_once() -> Result<()> {
    let mut host = KvmHost::at("http://127.0.0.1:9")?;
    host.set("pool.slots", 0);
    host.set("pool.slot_ports", 1);
    host.set("connection.dead_after", "soon");
    host.set("images.no-disk", toml::Table::new());
    refused(
        &host,
        &[
            "worker.toml: worker.master = \"http://127.0.0.1:9\": ",
            "pool.slots = 0: ",
            "pool.slot_ports: is not a key",
            "connection.dead_after = \"soon\": ",
            "images.no-disk.disk: is missing",
        ],
    )
}

#[test]
fn password_file_that_everybody_may_read_is_refused() -> Result<()> {
    let host = KvmHost::at(NOWHERE)?;
    host.write_password(Master::PASSWORD, 0o644)?;
    let file = host.path("password").display().to_string();
    refused(&host, &[&file, &format!("chmod 600 {file}")])
}

#[test]
fn password_file_that_is_missing_or_empty_is_named() -> Result<()> {
    let host = KvmHost::at(NOWHERE)?;
    let file = host.path("password").display().to_string();
    host.write_password("", 0o600)?;
    refused(&host, &[&file, "empty"])?;
    fs::remove_file(&file)?;
    refused(&host, &[&file])
}

#[test]
fn image_whose_disk_is_missing_is_told_at_the_start() -> Result<()> {
    let mut host = KvmHost::at(NOWHERE)?;
    host.image("gone", Guest::plain()?.with("disk", "/nowhere/debian.qcow2"));
    let mut worker = host.start()?;
    worker.transcript().find("/nowhere/debian.qcow2", SOON)?;
    worker.stop()?;
    host.nothing_left()
}

#[test]
fn worker_without_images_runs_without_its_state_directory_and_one_with_images_does_not() -> Result<()> {
    let mut host = KvmHost::at(NOWHERE)?;
    fs::write(host.path("file"), "")?;
    host.set("pool.state_dir", host.path("file/state").display().to_string());
    let mut worker = host.start()?;
    worker.transcript().find("the commands for a running worker can't reach this one", SOON)?;
    worker.transcript().find("not connected", SOON)?;
    ensure!(worker.stop()?.success(), "the worker did not end well");
    host.image("plain", Guest::plain()?.booting());
    let (status, said) = host.start_in_vain()?;
    ensure!(status.code() == Some(1), "the worker ended with {status}");
    contains_all(&said, &["file/state"])
}

#[test]
fn second_worker_on_a_state_directory_is_refused_without_images_too() -> Result<()> {
    let host = KvmHost::at(NOWHERE)?;
    let mut worker = host.start()?;
    worker.transcript().find("not connected", SOON)?;
    let (status, said) = host.start_in_vain()?;
    ensure!(status.code() == Some(1), "the second worker ended with {status}");
    contains_all(&said, &[&format!("another kvm-worker (process {}) uses", worker.id())])?;
    ensure!(worker.stop()?.success(), "the worker did not end well");
    host.nothing_left()
}

#[test]
fn flags_are_enough_to_run() -> Result<()> {
    let master = Master::building(r#"steps.ShellCommand(command="echo hello"),"#)?;
    let host = KvmHost::of(&master)?;
    let mut worker = host.start_by_flags()?;
    master.attached(0, Master::WORKER)?;
    master.run("build")?.succeeded()?;
    ensure!(worker.stop()?.success(), "the worker did not end well");
    host.nothing_left()
}

over_both_protocols! { password_is_in_no_argument_variable_or_log }

fn password_is_in_no_argument_variable_or_log(protocol: Protocol) -> Result<()> {
    let master = Master::building_over(protocol, r#"steps.ShellCommand(command=["env"]),"#)?;
    let mut host = KvmHost::of(&master)?;
    host.set("log.filter", "trace");
    let mut worker = host.attach(&master)?;
    let build = master.run("build")?;
    build.succeeded()?;
    let process = format!("/proc/{}", worker.id());
    let arguments = fs::read(format!("{process}/cmdline"))?;
    let variables = fs::read(format!("{process}/environ"))?;
    worker.stop()?;
    // Over MessagePack the login is `name:password` in base64; that of the password alone has the same middle only by
    // chance.
    let login = "d29ya2VyOmNvcnJlY3QgaG9yc2UgYmF0dGVyeSBzdGFwbGU";
    let places = [
        ("arguments", String::from_utf8_lossy(&arguments).into_owned()),
        ("environment", String::from_utf8_lossy(&variables).into_owned()),
        ("log", worker.transcript().text()),
        ("commands' environment", build.story()),
    ];
    for (place, text) in places {
        ensure!(!text.contains(Master::PASSWORD) && !text.contains(login), "the {place} has the password:\n{text}");
    }
    host.nothing_left()
}
