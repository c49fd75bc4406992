//! The line to the master: how it is made, what is said when it can't be, and what happens to builds when it is lost.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration_tests::{
    Certificates, KvmHost, Line, Master, Protocol, Rig, SOON, contains_all, over_both_protocols, retried,
};

/// The first try prints `first` and takes for ever; the second ends.
const TWO_TRIES: &str =
    r#"steps.ShellCommand(command="test -e ../tried && exit; touch ../tried; echo first; sleep 1000 & wait"),"#;

/// The master's lines about logins: over MessagePack there is one for each, over PB one for each that it refused, and
/// over both one more for each that it took.
fn logins(master: &Master) -> Vec<String> {
    let signs = ["Client connecting", "invalid login", "Got workerinfo"];
    master.transcript().lines(|line| signs.iter().any(|sign| line.contains(sign)))
}

over_both_protocols! {
    wrong_password_is_told_and_tried_again_with_patience,
    master_is_told_who_this_worker_is,
    second_worker_of_a_name_is_told_and_the_first_works_on,
    master_that_appears_late_gets_its_worker,
    build_is_retried_after_the_master_crashed,
    dead_line_is_noticed_and_the_build_retried,
    quiet_line_is_not_taken_for_dead,
    tls_is_spoken_with_a_master_that_the_ca_vouches_for,
    master_that_nobody_vouches_for_gets_no_password,
    sigterm_ends_the_worker_and_its_commands,
    build_is_retried_after_the_worker_crashed,
    master_can_shut_the_worker_down,
}

fn wrong_password_is_told_and_tried_again_with_patience(protocol: Protocol) -> Result<()> {
    let master = Master::building_over(protocol, "")?;
    let host = KvmHost::of(&master)?;
    host.write_password("wrong", 0o600)?;
    let begun = Instant::now();
    let mut worker = host.start()?;
    let mut mark = 0;
    for _ in 0..4 {
        let line = worker.transcript().find_from(mark, "refused the login of worker 'worker'", SOON)?;
        contains_all(&line, &["no worker of that name in its configuration, or another password", "retry_in_s="])?;
        mark = worker.transcript().mark();
    }
    // With retry_min = 1 the fourth attempt is due after 1 + 1.5 + 2.25 s, less the jitter.
    ensure!(begun.elapsed() > Duration::from_secs(2), "4 attempts in {:?}", begun.elapsed());
    let attempts = logins(&master).len();
    ensure!(attempts <= 5, "{attempts} connections for 4 attempts");
    worker.stop()?;
    host.nothing_left()
}

fn master_is_told_who_this_worker_is(protocol: Protocol) -> Result<()> {
    let master = Master::building_over(protocol, "")?;
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

fn second_worker_of_a_name_is_told_and_the_first_works_on(protocol: Protocol) -> Result<()> {
    let rig = Rig::building_over(protocol, r#"steps.ShellCommand(command="echo hello"),"#)?;
    let second = KvmHost::of(&rig.master)?;
    let mut worker = second.start()?;
    let told = match protocol {
        // The master says no more than that it ends the login.
        Protocol::Msgpack => "is another worker named 'worker' connected?",
        Protocol::Pb => "the master has a worker named 'worker' already; stop that one",
    };
    worker.transcript().find(told, SOON)?;
    rig.run()?.succeeded()?;
    ensure!(worker.stop()?.success(), "the second worker did not end well");
    second.nothing_left()?;
    rig.finish()
}

fn master_that_appears_late_gets_its_worker(protocol: Protocol) -> Result<()> {
    let mut master = Master::building_over(protocol, r#"steps.ShellCommand(command="echo hello"),"#)?;
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

fn build_is_retried_after_the_master_crashed(protocol: Protocol) -> Result<()> {
    let mut rig = Rig::of(Master::building_over(protocol, TWO_TRIES)?, |host| {
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

fn dead_line_is_noticed_and_the_build_retried(protocol: Protocol) -> Result<()> {
    const DEAD_AFTER: u32 = 3;
    let master = Master::building_over(protocol, TWO_TRIES)?;
    let line = Line::to(master.port())?;
    let url = master.url_by(line.port());
    let rig = Rig::of(master, |host| {
        host.set("worker.master", url);
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

fn quiet_line_is_not_taken_for_dead(protocol: Protocol) -> Result<()> {
    let rig = Rig::of(Master::building_over(protocol, r#"steps.ShellCommand(command="sleep 8"),"#)?, |host| {
        host.set("connection.dead_after", 3);
        Ok(())
    })?;
    rig.run()?.succeeded()?;
    rig.finish()
}

fn tls_is_spoken_with_a_master_that_the_ca_vouches_for(protocol: Protocol) -> Result<()> {
    let master = Master::building_over(protocol, r#"steps.ShellCommand(command="echo hello"),"#)?;
    let certificates = Certificates::new()?;
    let line = Line::tls_to(master.port(), &certificates)?;
    let url = master.url_by_tls(line.port());
    let rig = Rig::of(master, |host| {
        host.set("worker.master", url);
        host.set("worker.ca_file", certificates.write_ca(&host.path(""))?.display().to_string());
        Ok(())
    })?;
    rig.run()?.succeeded()?;
    rig.finish()
}

fn master_that_nobody_vouches_for_gets_no_password(protocol: Protocol) -> Result<()> {
    let master = Master::building_over(protocol, "")?;
    let line = Line::tls_to(master.port(), &Certificates::new()?)?;
    let other = Certificates::new()?;
    let mut host = KvmHost::at(&master.url_by_tls(line.port()))?;
    host.set("worker.ca_file", other.write_ca(&host.path(""))?.display().to_string());
    let mut worker = host.start()?;
    worker.transcript().find("ca_file", SOON)?;
    worker.stop()?;
    let seen = logins(&master);
    ensure!(seen.is_empty(), "the worker went on to log in: {seen:?}");
    host.nothing_left()
}

fn sigterm_ends_the_worker_and_its_commands(protocol: Protocol) -> Result<()> {
    let mut rig = Rig::building_over(protocol, TWO_TRIES)?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "first", SOON)?;
    let status = rig.worker.stop()?;
    ensure!(status.success(), "the worker ended with {status}");
    rig.host.nothing_left()?;
    rig.worker = rig.host.attach(&rig.master)?;
    retried(&rig.master, request, SOON)?;
    rig.finish()
}

fn build_is_retried_after_the_worker_crashed(protocol: Protocol) -> Result<()> {
    let mut rig = Rig::building_over(protocol, TWO_TRIES)?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "first", SOON)?;
    rig.worker.kill()?;
    // Nobody is left to end a command of a worker that was killed, but systemd, which ends all of a unit.
    rig.host.kill_all()?;
    rig.worker = rig.host.attach(&rig.master)?;
    retried(&rig.master, request, SOON)?;
    rig.finish()
}

fn master_can_shut_the_worker_down(protocol: Protocol) -> Result<()> {
    let mut rig = Rig::building_over(protocol, "")?;
    rig.master.shut_down(Master::WORKER)?;
    let status = rig.worker.wait(SOON)?;
    ensure!(status.success(), "the worker ended with {status}");
    rig.host.nothing_left()
}
