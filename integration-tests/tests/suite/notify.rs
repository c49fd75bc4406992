//! What a service manager hears from the worker: that it is ready, what it does, and that it is alive.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration_tests::{KvmHost, Master, Protocol, SOON, ServiceManager, Stuck, contains_all};
use rustix::process::Signal;

#[test]
fn worker_is_ready_without_a_master_and_says_what_it_does() -> Result<()> {
    let steps = r#"steps.ShellCommand(command="env; echo begun; while ! test -e ../go; do sleep 0.1; done"),"#;
    let mut master = Master::building_over(Protocol::Pb, steps)?;
    master.stop_master()?;
    let mut host = KvmHost::of(&master)?;
    host.set("connection.retry_max", 2);
    let manager = ServiceManager::of(&mut host)?;
    let mut worker = host.start()?;
    let told = manager.told();
    told.find("READY=1", SOON)?;
    let url = master.url();
    let status = told.find(&format!("STATUS=not connected to {url}: "), SOON)?;
    contains_all(&status, &["refused"])?;

    master.start_again()?;
    told.find(&format!("STATUS=connected to {url}"), SOON)?;
    let request = master.force("build")?;
    told.find(&format!("STATUS=connected to {url}; 1 command runs"), SOON)?;
    master.printed(request, "begun", SOON)?;

    worker.signal(Signal::USR1)?;
    told.find(&format!("STATUS=draining; connected to {url}; 1 command runs"), SOON)?;
    // A service manager that has a command for stopping the unit, which drains it, is to wait for it.
    told.find("EXTEND_TIMEOUT_USEC=", SOON)?;
    std::fs::write(host.basedir().join("build/go"), "")?;
    let build = master.complete(request, SOON)?;
    build.succeeded()?;
    ensure!(!build.story().contains("NOTIFY_SOCKET"), "builds are told of the socket: {}", build.story());

    let status = worker.wait(SOON)?;
    ensure!(status.success(), "the worker ended with {status}");
    told.find("STATUS=stopping: ", SOON)?;
    let text = told.text();
    contains_all(&text, &["STOPPING=1"])?;
    ensure!(text.matches("READY=1").count() == 1, "ready more than once:\n{text}");
    ensure!(!text.contains("WATCHDOG=1"), "nobody asked for signs of life:\n{text}");
    host.nothing_left()
}

#[test]
fn slots_in_use_are_told() -> Result<()> {
    let mut host = KvmHost::at("pb://127.0.0.1:9")?;
    host.set("pool.slots", 3);
    host.image("plain", integration_tests::Guest::plain()?);
    let manager = ServiceManager::of(&mut host)?;
    let mut worker = host.start()?;
    manager.told().find("; 0 of 3 slots in use", SOON)?;
    worker.stop()?;
    host.nothing_left()
}

#[test]
fn worker_that_can_not_start_is_never_ready() -> Result<()> {
    let mut host = KvmHost::at("pb://127.0.0.1:9")?;
    host.write_password("", 0o600)?;
    let manager = ServiceManager::of(&mut host)?;
    let (status, _) = host.start_in_vain()?;
    ensure!(status.code() == Some(1), "the worker ended with {status}");
    ensure!(!manager.told().text().contains("READY=1"), "it said that it was ready");
    Ok(())
}

/// The main loop runs on the process's first thread, and while that hangs the others, with their timers, go on.
#[test]
fn main_loop_that_hangs_is_not_alive() -> Result<()> {
    const PERIOD: Duration = Duration::from_secs(2);
    let mut host = KvmHost::at("pb://127.0.0.1:9")?;
    let manager = ServiceManager::watching(&mut host, PERIOD)?;
    let mut worker = host.start()?;
    let told = manager.told();
    let mut mark = 0;
    for _ in 0..3 {
        told.find_from(mark, "WATCHDOG=1", SOON)?;
        mark = told.mark();
    }
    let stuck = Stuck::main_thread_of(worker.id())?;
    let mark = told.mark();
    let alive = told.find_from(mark, "WATCHDOG=1", PERIOD * 2);
    ensure!(alive.is_err(), "a worker that hangs says that it is alive");
    drop(stuck);
    told.find_from(mark, "WATCHDOG=1", SOON)?;
    worker.stop()?;
    host.nothing_left()
}
