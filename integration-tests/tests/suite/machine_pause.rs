//! Machines while their worker is paused or ends, and signals at any time of its life.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration_tests::{Guest, KvmHost, Master, Results, Rig, SOON, ServiceManager, WITH_GUESTS, contains_all};
use rustix::process::Signal;

const STEPS: &str = r#"
    steps.StartVM(image="plain"),
    steps.VMShellCommand(command="echo is inside; until test -e ~/go-on; do sleep 0.1; done"),
    steps.StopVM(),"#;

#[test]
#[ignore = "long"]
fn machines_that_builds_have_go_on_in_a_pause_and_others_wait_for_its_end() -> Result<()> {
    let goes_on = r#"
        steps.StartVM(image="plain"), steps.VMShellCommand(command="echo is inside; sleep 3"), steps.StopVM(),"#;
    let waits = r#"steps.StartVM(image="plain"), steps.VMShellCommand(command="true"), steps.StopVM(),"#;
    let master = Master::plan().builder("goes-on", goes_on).builder("waits", waits).start()?;
    let rig = Rig::of(master, |host| {
        host.set("pool.slots", 2);
        host.image("plain", Guest::plain()?);
        Ok(())
    })?;
    let goes_on = rig.master.force("goes-on")?;
    rig.master.printed(goes_on, "is inside", WITH_GUESTS)?;
    let paused = rig.host.ask(&["pause"])?;
    ensure!(paused.status.success(), "{}", String::from_utf8_lossy(&paused.stderr));
    let waits = rig.master.force("waits")?;
    rig.master.printed(waits, "waiting: the worker is paused", SOON)?;
    rig.master.complete(goes_on, WITH_GUESTS)?.succeeded()?;
    rig.host.machines_become(0)?;
    let resumed = rig.host.ask(&["resume"])?;
    ensure!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    rig.master.complete(waits, WITH_GUESTS)?.succeeded()?;
    rig.finish()
}

#[test]
fn a_wait_for_the_end_of_a_pause_is_bounded_and_ends_with_a_drain() -> Result<()> {
    let mut rig = Rig::with(STEPS, |host| {
        host.set("pool.acquire_timeout", 6);
        host.image("plain", Guest::plain()?);
        Ok(())
    })?;
    rig.worker.signal(Signal::USR2)?;
    rig.worker.transcript().find("paused: SIGUSR2", SOON)?;
    let request = rig.master.force("build")?;
    let first = rig.master.begun(request)?;
    let build = rig.master.ended(first, SOON)?;
    build.ended(Results::Retry)?;
    contains_all(&build.story(), &["waiting: the worker is paused", "the worker stayed paused for 6 s"])?;
    // Its second try waits, too, until the worker is to end after it.
    rig.worker.transcript().find("paused", SOON)?;
    rig.host.becomes("the second try waits", |_| {
        let waits = rig.master.transcript().text().matches("waiting: the worker is paused").count() >= 2;
        Ok(if waits { Vec::new() } else { vec!["one that waits".to_owned()] })
    })?;
    rig.worker.signal(Signal::USR1)?;
    rig.worker.transcript().find("draining: SIGUSR1", SOON)?;
    rig.host.machines_become(1)?;
    rig.worker.signal(Signal::TERM)?;
    let status = rig.worker.wait(SOON)?;
    ensure!(status.code() == Some(0), "the worker ended with {status}");
    rig.host.nothing_left()
}

/// Over MessagePack a plain `Worker` does not say that a build goes on, but its machine does.
#[test]
fn a_builder_that_has_a_machine_is_not_done_however_quiet_it_is() -> Result<()> {
    let steps = r#"
        steps.StartVM(image="plain"),
        steps.MasterShellCommand(name="elsewhere", command="until test -e go-on; do sleep 0.1; done"),
        steps.VMShellCommand(command="echo is inside"),
        steps.StopVM(),"#;
    let mut rig = Rig::with(steps, |host| {
        host.set("worker.drain_quiet", 1);
        host.image("plain", Guest::plain()?);
        Ok(())
    })?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "VM plain ready", WITH_GUESTS)?;
    rig.worker.signal(Signal::USR1)?;
    rig.worker.transcript().find("draining: waiting for a machine of 'build'", SOON)?;
    // It is quiet for longer than it may be without a machine.
    ensure!(rig.worker.wait(Duration::from_secs(3)).is_err(), "the worker ended under a build");
    fs::write(rig.master.path("go-on"), "")?;
    rig.master.complete(request, WITH_GUESTS)?.succeeded()?;
    let status = rig.worker.wait(SOON)?;
    ensure!(status.code() == Some(0), "the worker ended with {status}");
    rig.host.nothing_left()
}

/// A host whose QEMU begins when a file is there.
fn slow_to_start() -> Result<KvmHost> {
    let mut host = KvmHost::at("ws://127.0.0.1:1")?;
    host.image("plain", Guest::plain()?);
    let program = host.path("qemu-later");
    fs::write(
        &program,
        format!(
            "#!/bin/sh\ntouch {0}/began\nuntil test -e {0}/go-on; do sleep 0.1; done\nexec qemu-system-x86_64 \"$@\"\n",
            host.path("").display()
        ),
    )?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    host.set("pool.qemu", program.display().to_string());
    Ok(host)
}

fn began(host: &KvmHost) -> Result<()> {
    let file = host.path("began");
    host.becomes("the pool is being opened", |_| {
        Ok(if file.exists() { Vec::new() } else { vec![file.display().to_string()] })
    })
}

#[test]
fn signals_during_the_start_have_their_effect_after_it() -> Result<()> {
    let host = slow_to_start()?;
    let mut worker = host.start()?;
    began(&host)?;
    worker.signal(Signal::USR2)?;
    worker.signal(Signal::HUP)?;
    fs::write(host.path("go-on"), "")?;
    worker.transcript().find("paused: SIGUSR2", SOON)?;
    worker.transcript().find("reload", SOON)?;
    worker.stop()?;
    host.nothing_left()
}

#[test]
fn signals_that_end_a_worker_end_its_start() -> Result<()> {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT"), (Signal::USR1, "SIGUSR1")] {
        let mut host = slow_to_start()?;
        let manager = ServiceManager::of(&mut host)?;
        let mut worker = host.start()?;
        began(&host)?;
        ensure!(!manager.told().text().contains("READY=1"), "it was ready during the start");
        worker.signal(signal)?;
        let status = worker.wait(SOON)?;
        ensure!(status.code() == Some(0), "the worker ended with {status}");
        worker.transcript().find(&format!("stopped during the start: {name}"), SOON)?;
        // systemd starts a service again that ended without having been ready.
        manager.told().find("STOPPING=1", SOON)?;
        contains_all(&manager.told().text(), &["READY=1"])?;
        host.kill_all()?;
    }
    Ok(())
}

#[test]
#[ignore = "long"]
fn signals_during_the_stop_do_not_disturb_it_but_for_a_second_one_to_stop() -> Result<()> {
    let steps = r#"
        steps.StartVM(image="plain", mode="persistent"),
        steps.VMShellCommand(command="echo is inside; sleep 1000"),
        steps.StopVM(),"#;
    for (signals, said) in [
        (
            &[Signal::HUP, Signal::USR1, Signal::USR2][..],
            &["SIGHUP has no effect", "SIGUSR1 has no effect", "SIGUSR2 has no effect", "stopped"][..],
        ),
        (&[Signal::INT], &["stopped at once: SIGINT"]),
    ] {
        let mut rig = Rig::with(steps, |host| {
            // Its polite end takes until it is given up.
            host.set("pool.shutdown_timeout", 3);
            host.image("plain", Guest::plain()?.with("shutdown", "sleep 1000"));
            Ok(())
        })?;
        let request = rig.master.force("build")?;
        rig.master.printed(request, "is inside", WITH_GUESTS)?;
        rig.worker.signal(Signal::TERM)?;
        rig.worker.transcript().find("stopping: SIGTERM", SOON)?;
        for signal in signals {
            rig.worker.signal(*signal)?;
        }
        let status = rig.worker.wait(SOON)?;
        ensure!(status.code() == Some(0), "the worker ended with {status} after {signals:?}");
        contains_all(&rig.worker.transcript().text(), said)?;
    }
    Ok(())
}
