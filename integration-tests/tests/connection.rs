//! The line to the master: how it is made, what is said when it can't be, and what happens to builds when it is lost.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration_tests::{Certificates, KvmHost, Line, Master, Rig, SOON, retried};

/// The first try prints `first` and takes for ever; the second ends.
const TWO_TRIES: &str =
    r#"steps.ShellCommand(command="test -e ../tried && exit; touch ../tried; echo first; sleep 1000 & wait"),"#;

#[test]
fn wrong_password_is_told_and_tried_again_with_patience() -> Result<()> {
    let master = Master::building("")?;
    let host = KvmHost::of(&master)?;
    host.write_password("wrong", 0o600)?;
    let begun = Instant::now();
    let mut worker = host.start()?;
    let mut mark = 0;
    for _ in 0..4 {
        worker.transcript().find_from(mark, "password", SOON)?;
        mark = worker.transcript().mark();
    }
    // With retry_min = 1 the fourth attempt is due after 1 + 1.5 + 2.25 s, less the jitter.
    ensure!(begun.elapsed() > Duration::from_secs(2), "4 attempts in {:?}", begun.elapsed());
    let attempts = master.transcript().lines(|line| line.contains("Client connecting")).len();
    ensure!(attempts <= 5, "{attempts} connections for 4 attempts");
    worker.stop()?;
    host.nothing_left()
}

#[test]
fn master_is_told_who_this_worker_is() -> Result<()> {
    let master = Master::building("")?;
    let host = KvmHost::of(&master)?;
    let info = host.basedir().join("info");
    fs::create_dir_all(&info)?;
    fs::write(info.join("admin"), "Ada <ada@example.org>\n")?;
    fs::write(info.join("host"), "a machine in the corner\n")?;
    let mut worker = host.attach(&master)?;
    let told = master.worker_info(Master::WORKER)?;
    assert_eq!(
        (&told["admin"], &told["host"]),
        (&"Ada <ada@example.org>\n".into(), &"a machine in the corner\n".into())
    );
    ensure!(told["version"].as_str().is_some_and(|version| !version.is_empty()), "no version in {told}");
    worker.stop()?;
    host.nothing_left()
}

#[test]
fn second_worker_of_a_name_is_told_and_the_first_works_on() -> Result<()> {
    let rig = Rig::building(r#"steps.ShellCommand(command="echo hello"),"#)?;
    let second = KvmHost::of(&rig.master)?;
    let mut worker = second.start()?;
    worker.transcript().find("another worker", SOON)?;
    rig.run()?.succeeded()?;
    ensure!(worker.stop()?.success(), "the second worker did not end well");
    second.nothing_left()?;
    rig.finish()
}

#[test]
fn master_that_appears_late_gets_its_worker() -> Result<()> {
    let mut master = Master::building(r#"steps.ShellCommand(command="echo hello"),"#)?;
    master.stop_master()?;
    let mut host = KvmHost::of(&master)?;
    host.set("connection.retry_max", 2);
    let mut worker = host.start()?;
    worker.transcript().find(&format!("127.0.0.1:{}", master.port()), SOON)?;
    master.start_again()?;
    master.attached(0, Master::WORKER)?;
    master.run("build")?.succeeded()?;
    worker.stop()?;
    host.nothing_left()
}

#[test]
fn build_is_retried_after_the_master_crashed() -> Result<()> {
    let mut rig = Rig::with(TWO_TRIES, |host| {
        host.set("connection.retry_max", 2);
        Ok(())
    })?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "first", SOON)?;
    rig.master.kill()?;
    rig.master.start_again()?;
    retried(&rig.master, request, SOON)?;
    rig.nothing_but_the_worker_runs()?;
    rig.finish()
}

#[test]
fn dead_line_is_noticed_and_the_build_retried() -> Result<()> {
    const DEAD_AFTER: u32 = 3;
    let master = Master::building(TWO_TRIES)?;
    let line = Line::to(master.port())?;
    let rig = Rig::of(master, |host| {
        host.set("worker.master", format!("ws://127.0.0.1:{}", line.port()));
        host.set("connection.dead_after", i64::from(DEAD_AFTER));
        host.set("connection.connect_timeout", 2);
        host.set("connection.retry_max", 2);
        Ok(())
    })?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "first", SOON)?;
    line.cut();
    let cut = Instant::now();
    rig.worker.transcript().find("silent", SOON)?;
    let noticed = cut.elapsed();
    ensure!(noticed < Duration::from_secs(10), "noticed after {noticed:?}, not {DEAD_AFTER} s");
    rig.nothing_but_the_worker_runs()?;
    line.mend();
    retried(&rig.master, request, SOON)?;
    rig.finish()
}

#[test]
fn quiet_line_is_not_taken_for_dead() -> Result<()> {
    let rig = Rig::with(r#"steps.ShellCommand(command="sleep 8"),"#, |host| {
        host.set("connection.dead_after", 3);
        Ok(())
    })?;
    rig.run()?.succeeded()?;
    rig.finish()
}

#[test]
fn tls_is_spoken_with_a_master_that_the_ca_vouches_for() -> Result<()> {
    let master = Master::building(r#"steps.ShellCommand(command="echo hello"),"#)?;
    let certificates = Certificates::new()?;
    let line = Line::tls_to(master.port(), &certificates)?;
    let rig = Rig::of(master, |host| {
        host.set("worker.master", format!("wss://localhost:{}", line.port()));
        host.set("worker.ca_file", certificates.write_ca(&host.path(""))?.display().to_string());
        Ok(())
    })?;
    rig.run()?.succeeded()?;
    rig.finish()
}

#[test]
fn master_that_nobody_vouches_for_gets_no_password() -> Result<()> {
    let master = Master::building("")?;
    let line = Line::tls_to(master.port(), &Certificates::new()?)?;
    let other = Certificates::new()?;
    let mut host = KvmHost::at(&format!("wss://localhost:{}", line.port()))?;
    host.set("worker.ca_file", other.write_ca(&host.path(""))?.display().to_string());
    let mut worker = host.start()?;
    worker.transcript().find("ca_file", SOON)?;
    worker.stop()?;
    let seen = master.transcript().lines(|line| line.contains("Client connecting"));
    ensure!(seen.is_empty(), "the worker went on to log in: {seen:?}");
    host.nothing_left()
}

#[test]
fn sigterm_ends_the_worker_and_its_commands() -> Result<()> {
    let mut rig = Rig::building(TWO_TRIES)?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "first", SOON)?;
    let status = rig.worker.stop()?;
    ensure!(status.success(), "the worker ended with {status}");
    rig.host.nothing_left()?;
    rig.worker = rig.host.attach(&rig.master)?;
    retried(&rig.master, request, SOON)?;
    rig.finish()
}

#[test]
fn build_is_retried_after_the_worker_crashed() -> Result<()> {
    let mut rig = Rig::building(TWO_TRIES)?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "first", SOON)?;
    rig.worker.kill()?;
    // Nobody is left to end a command of a worker that was killed, but systemd, which ends all of a unit.
    rig.host.kill_all()?;
    rig.worker = rig.host.attach(&rig.master)?;
    retried(&rig.master, request, SOON)?;
    rig.finish()
}

#[test]
fn master_can_shut_the_worker_down() -> Result<()> {
    let mut rig = Rig::building("")?;
    rig.master.shut_down(Master::WORKER)?;
    let status = rig.worker.wait(SOON)?;
    ensure!(status.success(), "the worker ended with {status}");
    rig.host.nothing_left()
}
