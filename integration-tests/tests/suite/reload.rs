//! A configuration that is changed while the worker runs.

use std::process::Output;

use anyhow::{Result, ensure};
use integration_tests::{
    Guest, KvmHost, Master, Protocol, Results, Rig, SOON, ServiceManager, contains_all, over_both_protocols,
};
use rustix::process::Signal;

/// A step on the worker's host.
const HELLO: &str = r#"steps.ShellCommand(command="echo hello"),"#;

/// All that a program said, and its exit status.
fn said(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    (output.status.code(), text.concat())
}

#[test]
fn a_configuration_with_problems_changes_nothing_and_all_of_them_are_told() -> Result<()> {
    let mut rig = Rig::building(HELLO)?;
    let mark = rig.worker.transcript().mark();
    rig.host.set("pool.slots", 0);
    rig.host.set("connection.dead_after", "soon");
    rig.host.set("images.no-disk", toml::Table::new());
    rig.host.set("worker.host_commands", false);
    rig.reload("not reloaded, and nothing has changed: ")?;
    for problem in ["pool.slots = 0: ", "connection.dead_after = \"soon\": ", "images.no-disk.disk: is missing"] {
        let line = rig.worker.transcript().find_from(mark, problem, SOON)?;
        contains_all(&line, &["ERROR", "nothing has changed"])?;
    }
    rig.run()?.succeeded()?;
    let (status, text) = said(&rig.host.ask(&["reload"])?);
    assert_eq!(status, Some(2), "{text}");
    contains_all(&text, &["pool.slots = 0: ", "images.no-disk.disk: is missing"])?;
    // Put right, it is taken up.
    rig.host.set("pool.slots", 1);
    rig.host.unset("connection.dead_after");
    rig.host.unset("images.no-disk");
    rig.reload("reloaded: worker.host_commands true → false")?;
    let build = rig.run()?;
    build.ended(Results::Failure)?;
    contains_all(&build.step("shell")?.stdio().text(), &["worker.host_commands = false"])?;
    rig.finish()
}

#[test]
fn a_person_is_told_what_changes_and_what_needs_a_restart() -> Result<()> {
    let mut rig = Rig::with(HELLO, |host| {
        host.image("plain", Guest::plain()?);
        Ok(())
    })?;
    let (status, text) = said(&rig.host.ask(&["reload"])?);
    assert_eq!((status, text.as_str()), (Some(0), "nothing is different\n"));
    rig.host.set("pool.slots", 3);
    rig.host.set("pool.accel", "auto");
    let mark = rig.worker.transcript().mark();
    let (status, text) = said(&rig.host.ask(&["reload"])?);
    let expected = "reloaded: pool.slots 1 → 3\nneeds a restart: pool.accel \"tcg\" → \"auto\"\n";
    assert_eq!((status, text.as_str()), (Some(0), expected));
    rig.worker.transcript().find_from(mark, "reloaded: pool.slots 1 → 3", SOON)?;
    let restart = rig.worker.transcript().find_from(mark, "not reloaded: pool.accel", SOON)?;
    contains_all(&restart, &["WARN", "needs a restart"])?;
    // What the file alone does not show to be wrong.
    rig.host.write_password(Master::PASSWORD, 0o644)?;
    let (status, text) = said(&rig.host.ask(&["reload"])?);
    assert_eq!(status, Some(1), "{text}");
    contains_all(&text, &["chmod 600 "])?;
    rig.run()?.succeeded()?;
    rig.finish()
}

#[test]
fn signals_in_a_row_end_with_what_is_there_last() -> Result<()> {
    let mut rig = Rig::building(HELLO)?;
    let mark = rig.worker.transcript().mark();
    for seconds in 1..=20 {
        rig.host.set("pool.acquire_timeout", seconds);
        rig.host.write_configuration()?;
        rig.worker.signal(Signal::HUP)?;
    }
    let last = rig.worker.transcript().find_from(mark, "→ 20", SOON)?;
    contains_all(&last, &["reloaded: pool.acquire_timeout "])?;
    rig.run()?.succeeded()?;
    rig.finish()
}

#[test]
fn the_log_tells_more_when_it_is_asked_to() -> Result<()> {
    let mut rig = Rig::building(HELLO)?;
    rig.run()?.succeeded()?;
    let detail = "start command";
    ensure!(rig.worker.transcript().lines(|line| line.contains(detail)).is_empty(), "it tells {detail} anyway");
    rig.host.set("log.filter", "debug");
    rig.reload("reloaded: log.filter \"info\" → \"debug\"")?;
    rig.run()?.succeeded()?;
    rig.worker.transcript().find(detail, SOON)?;
    rig.host.set("log.filter", "info");
    rig.reload("reloaded: log.filter")?;
    let mark = rig.worker.transcript().mark();
    rig.run()?.succeeded()?;
    let text = rig.worker.transcript().text();
    ensure!(!text.lines().skip(mark).any(|line| line.contains(detail)), "it still tells {detail}:\n{text}");
    rig.finish()
}

#[test]
fn service_manager_hears_of_a_reload_and_of_its_end() -> Result<()> {
    let mut host = KvmHost::at("pb://127.0.0.1:9")?;
    let manager = ServiceManager::of(&mut host)?;
    let mut worker = host.start()?;
    let told = manager.told();
    told.find("READY=1", SOON)?;
    for slots in [2, 0] {
        let mark = told.mark();
        host.set("pool.slots", slots);
        host.write_configuration()?;
        worker.signal(Signal::HUP)?;
        told.find_from(mark, "RELOADING=1", SOON)?;
        told.find_from(mark, "READY=1", SOON)?;
    }
    for line in ["reloaded: pool.slots 1 → 2", "nothing has changed: "] {
        worker.transcript().find(line, SOON)?;
    }
    worker.stop()?;
    host.nothing_left()
}

over_both_protocols! { a_password_that_is_put_right_is_tried_at_once, a_line_that_stands_does_not_notice }

fn a_password_that_is_put_right_is_tried_at_once(protocol: Protocol) -> Result<()> {
    let master = Master::building_over(protocol, HELLO)?;
    let mut host = KvmHost::of(&master)?;
    // Longer than anybody here waits.
    host.set("connection.retry_min", 60);
    host.write_password("wrong", 0o600)?;
    let mut worker = host.start()?;
    worker.transcript().find("refused the login of worker 'worker'", SOON)?;
    host.write_password(Master::PASSWORD, 0o600)?;
    worker.signal(Signal::HUP)?;
    master.attached(0, Master::WORKER)?;
    worker.transcript().find("reloaded: the worker's password changed", SOON)?;
    master.run("build")?.succeeded()?;
    let text = worker.transcript().text();
    ensure!(!text.contains(Master::PASSWORD) && !text.contains("wrong"), "a password is told:\n{text}");
    worker.stop()?;
    host.nothing_left()
}

fn a_line_that_stands_does_not_notice(protocol: Protocol) -> Result<()> {
    let steps = r#"steps.ShellCommand(command="echo first; until test -e ../go; do sleep 0.2; done; echo last"),"#;
    let mut rig = Rig::of(Master::building_over(protocol, steps)?, |_| Ok(()))?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "first", SOON)?;
    let mark = rig.master.transcript().mark();
    rig.host.set("connection.dead_after", 60);
    rig.host.set("worker.delete_leftover_dirs", true);
    rig.host.write_password("another", 0o600)?;
    rig.reload("reloaded: the worker's password changed")?;
    std::fs::write(rig.host.basedir().join("build/go"), "")?;
    let build = rig.master.complete(request, SOON)?;
    build.succeeded()?;
    contains_all(&build.step("shell")?.stdio().stdout, &["first\n", "last\n"])?;
    let detached = rig.master.transcript().lines(|line| line.contains("Worker.detached"));
    ensure!(detached.is_empty(), "it was detached after {mark}: {detached:?}");
    rig.finish()
}
