//! Machines that are ready before a build asks for one.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration_tests::{Build, Guest, KvmHost, Master, Rig, Running, SOON, WITH_GUESTS, contains_all};
use rustix::process::Signal;

/// A machine of the image `plain` that nobody has used before.
const UNUSED: &str = r#"
    steps.StartVM(image="plain"),
    steps.VMShellCommand(command="test ! -e ~/used && touch ~/used && echo unused"),
    steps.StopVM(),"#;

/// A machine of the image `other`.
const OTHER: &str = r#"
    steps.StartVM(image="other"), steps.VMShellCommand(command="echo working"), steps.StopVM(),"#;

/// What a machine takes, QEMU's part included, in MiB.
const MACHINE: i64 = 384 + 128;

/// So many slots, one warm machine of the image `plain`, and an image `other` without a template.
fn one_warm(host: &mut KvmHost, slots: i64) -> Result<()> {
    host.set("pool.slots", slots);
    // These tests' own load is no reason to make none.
    host.set("pool.warm_max_load", 1000.0);
    host.image("plain", Guest::plain()?.with("warm", 1));
    host.image("other", Guest::plain()?.booting());
    Ok(())
}

/// Waits until a machine is ready that was not at a mark of the worker's transcript; returns a mark after it.
fn ready_since(rig: &Rig, mark: usize) -> Result<usize> {
    rig.worker.transcript().find_from(mark, "warm machine ready", WITH_GUESTS)?;
    Ok(rig.worker.transcript().mark())
}

/// Checks that a build's machine was unused, and how it came to be.
fn unused(build: &Build, how: &str) -> Result<()> {
    build.succeeded()?;
    assert_eq!(build.property("vm_how"), how, "{}", build.story());
    assert_eq!(build.step("vm-shell")?.stdio().stdout, "unused\n");
    Ok(())
}

#[test]
#[ignore = "long"]
fn each_build_gets_another_one_that_was_ready() -> Result<()> {
    let rig = Rig::with(UNUSED, |host| one_warm(host, 2))?;
    let mut mark = ready_since(&rig, 0)?;
    for _ in 0..2 {
        let build = rig.run()?;
        unused(&build, "warm")?;
        contains_all(&build.step("start-vm")?.stdio().text(), &["a machine was ready for"])?;
        mark = ready_since(&rig, mark)?;
    }
    // The one that is ready goes with the worker.
    rig.host.machines_become(1)?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn of_two_builds_at_once_one_gets_it() -> Result<()> {
    let master = Master::plan().builder("one", UNUSED).builder("two", UNUSED).start()?;
    let rig = Rig::of(master, |host| one_warm(host, 2))?;
    ready_since(&rig, 0)?;
    let requests = [rig.master.force("one")?, rig.master.force("two")?];
    let mut hows = Vec::new();
    for request in requests {
        let build = rig.master.complete(request, WITH_GUESTS)?;
        build.succeeded()?;
        assert_eq!(build.step("vm-shell")?.stdio().stdout, "unused\n");
        hows.push(build.property("vm_how").as_str().unwrap_or_default().to_owned());
    }
    hows.sort();
    assert_eq!(hows, ["clone", "warm"]);
    rig.finish()
}

#[test]
#[ignore = "long"]
fn it_gives_its_slot_to_a_build_that_needs_another() -> Result<()> {
    // The master does not take the worker for full because of it.
    let counting = r#"c["workers"] = [worker.KVMWorker(each.name, each.password) for each in c["workers"]]"#;
    let master = Master::plan().builder("build", OTHER).python(counting).start()?;
    let rig = Rig::of(master, |host| one_warm(host, 1))?;
    let mark = ready_since(&rig, 0)?;
    let build = rig.run()?;
    build.succeeded()?;
    assert_eq!(build.property("vm_how"), "boot");
    rig.worker.transcript().find_from(mark, "a build needs its slot", SOON)?;
    ready_since(&rig, mark)?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn it_gives_its_memory_to_a_build_that_needs_it() -> Result<()> {
    let rig = Rig::with(OTHER, |host| {
        host.set("pool.memory_budget_mib", 2 * MACHINE - 1);
        one_warm(host, 2)
    })?;
    let mark = ready_since(&rig, 0)?;
    rig.run()?.succeeded()?;
    rig.worker.transcript().find_from(mark, "a build or a template needs its memory", SOON)?;
    ready_since(&rig, mark)?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn it_gives_its_memory_to_a_template_that_is_made() -> Result<()> {
    let rig = Rig::with(UNUSED, |host| {
        host.set("pool.memory_budget_mib", 2 * MACHINE - 1);
        one_warm(host, 2)?;
        host.image("second", Guest::plain()?.with("template", true));
        Ok(())
    })?;
    // It would be made before any machine is, but for a mishap.
    let transcript = rig.worker.transcript();
    transcript.find("image=second", WITH_GUESTS)?;
    // A warm machine may just have been given up for it.
    let of_template = |machine: &Running| machine.command.contains("templates/second");
    rig.host.becomes("the template is being made", |host| {
        let machines = host.machines()?;
        Ok(if machines.iter().any(of_template) { Vec::new() } else { vec![format!("{machines:#?}")] })
    })?;
    let machine = rig.host.machines()?.into_iter().find(of_template).context("its machine is gone already")?;
    rig.host.kill(&machine)?;
    let mark = ready_since(&rig, 0)?;
    transcript.find_from(mark, "warm machine ended: a build or a template needs its memory", WITH_GUESTS)?;
    transcript.find_from(mark, "template made", WITH_GUESTS)?;
    ready_since(&rig, mark)?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn another_takes_the_place_of_one_that_is_too_old_or_killed() -> Result<()> {
    let rig = Rig::with(UNUSED, |host| {
        host.set("pool.warm_max_age", 15);
        one_warm(host, 1)
    })?;
    let mark = ready_since(&rig, 0)?;
    rig.host.kill(&rig.host.machine()?)?;
    rig.worker.transcript().find_from(mark, "warm machine ended: qemu exited with signal 9", SOON)?;
    let mark = ready_since(&rig, mark)?;
    rig.worker.transcript().find_from(mark, "it is older than pool.warm_max_age", SOON)?;
    ready_since(&rig, mark)?;
    unused(&rig.run()?, "warm")?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn it_goes_with_the_template_that_it_was_made_of() -> Result<()> {
    let master = Master::plan()
        .builder(
            "saver",
            r#"steps.StartVM(image="plain"), steps.VMShellCommand(command="echo 2 > ~/version"), steps.StopVM(save="plain"),"#,
        )
        .builder(
            "user",
            r#"steps.StartVM(image="plain"), steps.VMShellCommand(command="cat ~/version"), steps.StopVM(),"#,
        )
        .start()?;
    let rig = Rig::of(master, |host| one_warm(host, 2))?;
    let mark = ready_since(&rig, 0)?;
    rig.master.run_within("saver", WITH_GUESTS)?.succeeded()?;
    let transcript = rig.worker.transcript();
    let made = transcript.find_from(mark, "template made", WITH_GUESTS)?;
    ensure!(made.contains("generation=2"), "another template: {made}");
    let after = transcript.text().lines().position(|line| line == made).unwrap_or(mark);
    ready_since(&rig, after)?;
    let build = rig.master.run_within("user", WITH_GUESTS)?;
    build.succeeded()?;
    assert_eq!(build.property("vm_how"), "warm", "{}", build.story());
    assert_eq!(build.step("vm-shell")?.stdio().stdout, "2\n");
    rig.finish()
}

#[test]
#[ignore = "long"]
fn a_worker_that_drains_keeps_none() -> Result<()> {
    let waits = r#"steps.ShellCommand(command="echo begun; until test -e ../go-on; do sleep 0.1; done"),"#;
    let mut rig = Rig::with(waits, |host| {
        host.set("worker.drain_quiet", 1);
        one_warm(host, 1)
    })?;
    ready_since(&rig, 0)?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "begun", SOON)?;
    rig.worker.signal(Signal::USR1)?;
    rig.worker.transcript().find("warm machine ended: no more builds are taken", SOON)?;
    rig.host.machines_become(0)?;
    fs::write(rig.host.basedir().join("build/go-on"), "")?;
    rig.master.complete(request, SOON)?.succeeded()?;
    let status = rig.worker.wait(SOON)?;
    ensure!(status.code() == Some(0), "the worker ended with {status}");
    rig.host.nothing_left()
}

#[test]
fn a_worker_that_is_paused_keeps_them_for_builds_that_wait() -> Result<()> {
    let rig = Rig::with(UNUSED, |host| one_warm(host, 2))?;
    ready_since(&rig, 0)?;
    let ready = rig.host.machine()?;
    rig.worker.signal(Signal::USR2)?;
    rig.worker.transcript().find("paused: SIGUSR2", SOON)?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "waiting: the worker is paused", SOON)?;
    ensure!(rig.host.machine()? == ready, "{ready:?} is gone, or is not alone");
    rig.worker.signal(Signal::USR2)?;
    unused(&rig.master.complete(request, WITH_GUESTS)?, "warm")?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn those_of_a_worker_that_was_killed_are_cleaned_up_by_the_next() -> Result<()> {
    let mut rig = Rig::with(UNUSED, |host| one_warm(host, 2))?;
    ready_since(&rig, 0)?;
    let orphan = rig.host.machine()?;
    rig.worker.kill()?;
    rig.worker = rig.host.attach(&rig.master)?;
    ready_since(&rig, 0)?;
    ensure!(rig.host.machine()? != orphan, "{orphan:?} still runs");
    unused(&rig.run()?, "warm")?;
    rig.finish()
}
