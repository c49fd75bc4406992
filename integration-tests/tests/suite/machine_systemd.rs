//! The worker as a service of a real systemd, in a guest.

use anyhow::{Context, Result, ensure};
use integration_tests::{Master, Protocol, SystemdHost, WITH_GUESTS, contains_all, retried};
use serde_json::Value;

const UNIT: &str = "kvm-worker@ci.service";

/// What the tests of a unit need that is not for every day.
const QUICK: &str = "[Service]\nRestartSec=1\nWatchdogSec=20\n";

/// Says that it has begun, and ends when the file is there.
const WAITING: &str = r#"steps.ShellCommand(command="echo begun; until test -e ~/go; do sleep 0.2; done"),"#;

/// A master, the guest and its only worker.
struct Site {
    host: SystemdHost,
    master: Master,
}

impl Site {
    fn let_go(&self) -> Result<()> {
        self.host.run("touch /var/lib/kvm-worker/go").map(drop)
    }

    fn hold_up(&self) -> Result<()> {
        self.host.run("rm -f /var/lib/kvm-worker/go").map(drop)
    }

    fn main_pid(&self) -> Result<u32> {
        self.host.property(UNIT, "MainPID")?.parse().context("a process id")
    }

    fn restarts(&self) -> Result<u32> {
        self.host.property(UNIT, "NRestarts")?.parse().context("a number")
    }

    /// Checks that the unit ended well. One that is to be started again is activating until then.
    fn ended_well(&self) -> Result<()> {
        for (property, value) in [("ActiveState", "inactive"), ("Result", "success"), ("ExecMainStatus", "0")] {
            self.host.until(UNIT, property, value)?;
        }
        Ok(())
    }

    /// Has something happen to the main process that ends it while a build runs: systemd starts the worker again, and the
    /// master the build.
    fn survives(&self, command: &str) -> Result<()> {
        self.hold_up()?;
        let (pid, restarts) = (self.main_pid()?, self.restarts()?);
        let request = self.master.force("waiting")?;
        self.master.printed(request, "begun", WITH_GUESTS)?;
        let mark = self.master.transcript().mark();
        self.host.run(command)?;
        self.host.until(UNIT, "NRestarts", &(restarts + 1).to_string())?;
        self.let_go()?;
        self.master.attached(mark, Master::WORKER)?;
        retried(&self.master, request, WITH_GUESTS)?;
        ensure!(self.main_pid()? != pid, "it is the same process");
        Ok(())
    }
}

/// Steps of one test, because they share a guest that takes a while to boot.
#[test]
#[ignore = "long: boots a guest with systemd and waits for its time-outs"]
fn systemd_starts_reloads_drains_and_restarts_the_worker() -> Result<()> {
    let plan = Master::plan().speaking(Protocol::Pb);
    let mut master =
        plan.builder("env", r#"steps.ShellCommand(command="env; id; pwd"),"#).builder("waiting", WAITING).start()?;
    let host = SystemdHost::install()?;
    host.configure("ci", &master)?;
    host.write(&format!("/etc/systemd/system/{UNIT}.d/quick.conf"), QUICK)?;
    host.run("systemctl daemon-reload")?;

    starts_without_its_master(&host, &mut master)?;
    let site = Site { host, master };
    builds_run_as_its_user(&site)?;
    its_log_is_the_journals(&site)?;
    stops_and_starts(&site)?;
    reloads(&site)?;
    site.survives(&format!("systemctl kill --kill-who=main --signal KILL {UNIT}"))?;
    site.survives(&format!("systemctl kill --kill-who=main --signal STOP {UNIT}"))?;
    contains_all(&site.host.journal(UNIT)?, &["Watchdog timeout"])?;
    drains(&site)?;
    runs_nothing_of_builds_on_the_host(&site)?;
    is_left_alone_with_a_bad_configuration(&site)
}

/// `systemctl start` returns when the worker is ready, and it is without its master.
fn starts_without_its_master(host: &SystemdHost, master: &mut Master) -> Result<()> {
    master.stop_master()?;
    host.run(&format!("systemctl start {UNIT}"))?;
    ensure!(host.property(UNIT, "ActiveState")? == "active", "started, and not active");
    host.until(UNIT, "StatusText", "not connected to pb://10.0.2.2:")?;
    master.start_again()?;
    master.attached(0, Master::WORKER)?;
    host.until(UNIT, "StatusText", "connected to pb://10.0.2.2:").map(drop)
}

fn builds_run_as_its_user(site: &Site) -> Result<()> {
    let build = site.master.run("env")?;
    build.succeeded()?;
    let story = build.story();
    contains_all(&story, &["(kvm-worker)", "HOME=/var/lib/kvm-worker", "/var/lib/kvm-worker/ci/env/build"])?;
    for secret in ["NOTIFY_SOCKET", "WATCHDOG_", "CREDENTIALS_DIRECTORY", Master::PASSWORD] {
        ensure!(!story.contains(secret), "the build has {secret}: {story}");
    }
    ensure!(!site.host.journal(UNIT)?.contains(Master::PASSWORD), "the journal has the password");
    // Whoever may not look into a process is told that it is root's.
    let owner = site.host.run(&format!("stat --format %U /proc/{}/environ", site.main_pid()?))?;
    ensure!(owner.trim() == "root", "the worker's memory is open to {owner}");
    Ok(())
}

/// Lines of the log are entries of the journal, with fields to search by: those of the line, and those of the span it is in.
fn its_log_is_the_journals(site: &Site) -> Result<()> {
    let found =
        site.host.run(&format!("journalctl --no-pager --output json --unit {UNIT} WORKER=worker PROTOCOL=pb"))?;
    let first = found.lines().next().context("no entry has these fields")?;
    let entry: Value = serde_json::from_str(first).with_context(|| format!("read {first:?}"))?;
    let expected =
        [("MESSAGE", "connected"), ("PRIORITY", "6"), ("SYSLOG_IDENTIFIER", "kvm-worker"), ("_TRANSPORT", "journal")];
    for (field, expected) in expected {
        assert_eq!(entry[field], expected, "{field} in {first}");
    }
    ensure!(entry["PEER"].as_str().is_some_and(|peer| peer.starts_with("10.0.2.2:")), "PEER in {first}");
    Ok(())
}

fn stops_and_starts(site: &Site) -> Result<()> {
    site.host.run(&format!("systemctl stop {UNIT}"))?;
    site.ended_well()?;
    let mark = site.master.transcript().mark();
    site.host.run(&format!("systemctl start {UNIT}"))?;
    site.master.attached(mark, Master::WORKER)?;
    let (pid, mark) = (site.main_pid()?, site.master.transcript().mark());
    site.host.run(&format!("systemctl restart {UNIT}"))?;
    ensure!(site.main_pid()? != pid, "it is the same process");
    site.master.attached(mark, Master::WORKER)
}

/// The build that runs ends well, then the worker, and systemd does not start it again.
fn drains(site: &Site) -> Result<()> {
    site.hold_up()?;
    let request = site.master.force("waiting")?;
    site.master.printed(request, "begun", WITH_GUESTS)?;
    site.host.run("systemctl start --no-block kvm-worker-drain@ci")?;
    site.host.until(UNIT, "StatusText", "draining; connected to pb://10.0.2.2:")?;
    ensure!(site.host.property(UNIT, "ActiveState")? == "active", "it drains, and is not active");
    ensure!(site.host.property("kvm-worker-drain@ci", "ActiveState")? == "activating", "the drain is not waited for");
    site.let_go()?;
    site.master.complete(request, WITH_GUESTS)?.succeeded()?;
    ensure!(site.master.tries(request)?.len() == 1, "the build was tried again");
    // Returns when the worker has ended.
    site.host.run("systemctl start kvm-worker-drain@ci")?;
    site.ended_well()?;
    // Nothing is to be drained now.
    site.host.run("systemctl start kvm-worker-drain@ci")?;
    start(site)?;

    // One that has crashed and waits to be started again is not.
    // Drop-ins count in the order of their names, and this one is to count more than quick.conf.
    let patient = format!("/etc/systemd/system/{UNIT}.d/then-patient.conf");
    site.host.write(&patient, "[Service]\nRestartSec=1000\n")?;
    site.host.run(&format!("systemctl daemon-reload; systemctl kill --kill-who=main --signal KILL {UNIT}"))?;
    site.host.until(UNIT, "SubState", "auto-restart")?;
    site.host.run("systemctl start kvm-worker-drain@ci")?;
    ensure!(site.host.property(UNIT, "ActiveState")? == "inactive", "it is still to be started again");
    site.host.run(&format!("rm {patient}; systemctl daemon-reload"))?;
    start(site)
}

/// Starts the worker, and has it run a build.
fn start(site: &Site) -> Result<()> {
    let mark = site.master.transcript().mark();
    site.host.run(&format!("systemctl start {UNIT}"))?;
    site.master.attached(mark, Master::WORKER)?;
    let build = site.master.run("env")?;
    build.succeeded()
}

/// With `host_commands = false` and the drop-in for that, which closes more.
fn runs_nothing_of_builds_on_the_host(site: &Site) -> Result<()> {
    let drop_in = format!("/etc/systemd/system/{UNIT}.d/machines-only.conf");
    site.host.run(&format!("cp systemd/machines-only.conf {drop_in}; systemctl daemon-reload"))?;
    site.host.run("sed -i '/^basedir/a host_commands = false' /etc/kvm-worker/ci.toml")?;
    let mark = site.master.transcript().mark();
    site.host.run(&format!("systemctl restart {UNIT}"))?;
    site.master.attached(mark, Master::WORKER)?;
    site.host.until(UNIT, "StatusText", "connected to pb://10.0.2.2:")?;
    site.host.run(&format!("systemctl stop {UNIT}; rm {drop_in}"))?;
    site.ended_well()
}

/// Another start would not make it better.
fn is_left_alone_with_a_bad_configuration(site: &Site) -> Result<()> {
    let unit = "kvm-worker@bad.service";
    site.host.configure("bad", &site.master)?;
    site.host.write("/etc/kvm-worker/bad.toml", "[worker]\n")?;
    let started = site.host.try_run(&format!("systemctl start {unit}"))?;
    ensure!(!started.status.success(), "it started");
    for (property, value) in [("ActiveState", "failed"), ("ExecMainStatus", "2"), ("NRestarts", "0")] {
        site.host.until(unit, property, value)?;
    }
    contains_all(&site.host.journal(unit)?, &["worker.name: is missing"])
}

/// A build that runs does not notice, and a configuration that is wrong fails the reload alone.
fn reloads(site: &Site) -> Result<()> {
    site.hold_up()?;
    let (pid, request) = (site.main_pid()?, site.master.force("waiting")?);
    site.master.printed(request, "begun", WITH_GUESTS)?;
    site.host.run("printf '[log]\nfilter = \"debug\"\n' >>/etc/kvm-worker/ci.toml")?;
    site.host.run(&format!("systemctl reload {UNIT}"))?;
    contains_all(&site.host.journal(UNIT)?, &["log.filter"])?;
    site.host.run("echo 'no = toml =' >>/etc/kvm-worker/ci.toml")?;
    ensure!(site.host.run(&format!("systemctl reload {UNIT}")).is_err(), "a bad configuration was taken up");
    site.host.run(&format!("sed -i '/^no = toml/d' /etc/kvm-worker/ci.toml && systemctl reload {UNIT}"))?;
    site.let_go()?;
    site.master.complete(request, WITH_GUESTS)?.succeeded()?;
    ensure!(site.main_pid()? == pid, "it is another process");
    Ok(())
}
