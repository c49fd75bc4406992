//! Machines that the host has no memory or no disk for: they wait with a reason, and start when there is.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use integration_tests::{CLONED, GATE, Guest, KvmHost, Master, Results, Rig, SOON, WITH_GUESTS, contains_all};
use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// What a machine of the image takes, QEMU's part included, in MiB.
const MACHINE: i64 = 384 + 128;

fn two_slots(host: &mut KvmHost) -> Result<()> {
    host.set("pool.slots", 2);
    host.image("plain", Guest::plain()?);
    Ok(())
}

#[test]
#[ignore = "long"]
fn second_machine_waits_for_the_memory_of_the_first() -> Result<()> {
    let holding = format!(r#"steps.StartVM(image="plain"), {GATE} steps.StopVM(),"#);
    let master = Master::plan().builder("first", &holding).builder("second", &holding).start()?;
    let rig = Rig::of(master, |host| {
        host.set("pool.memory_budget_mib", 2 * MACHINE - 1);
        two_slots(host)
    })?;
    let first = rig.master.force("first")?;
    rig.master.printed(first, CLONED, SOON)?;
    let second = rig.master.force("second")?;
    let why = "waiting for memory: 512 of 1023 MiB are promised to 1 machine, this one needs 512";
    rig.master.printed(second, why, SOON)?;
    rig.open("first")?;
    rig.open("second")?;
    rig.master.complete(first, WITH_GUESTS)?.succeeded()?;
    rig.master.complete(second, WITH_GUESTS)?.succeeded()?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn wait_for_memory_ends_in_time() -> Result<()> {
    let holding = r#"steps.StartVM(image="plain"), steps.VMShellCommand(command="echo holding; sleep 1000"),"#;
    let master = Master::plan()
        .builder("first", holding)
        .builder("second", r#"steps.StartVM(image="plain", max_retries=0),"#)
        .start()?;
    let rig = Rig::of(master, |host| {
        host.set("pool.memory_budget_mib", MACHINE);
        host.set("pool.acquire_timeout", 2);
        two_slots(host)
    })?;
    let first = rig.master.force("first")?;
    rig.master.printed(first, "holding", WITH_GUESTS)?;
    let second = rig.master.run("second")?;
    second.ended(Results::Exception)?;
    contains_all(&second.step("start-vm")?.state_string, &["waited 2 s for memory", "pool.memory_budget_mib"])?;
    rig.finish()
}

#[test]
fn machine_that_never_fits_is_not_waited_for() -> Result<()> {
    let rig = Rig::with(r#"steps.StartVM(image="plain"), steps.StopVM(),"#, |host| {
        host.set("pool.memory_budget_mib", MACHINE - 1);
        two_slots(host)
    })?;
    rig.worker.transcript().find("no machine of the image will start", SOON)?;
    let build = rig.run()?;
    build.ended(Results::Exception)?;
    contains_all(&build.step("start-vm")?.state_string, &["needs 512 MiB", "pool.memory_budget_mib"])?;
    rig.host.slots_clean()?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn low_disk_pauses_leasing_until_there_is_space() -> Result<()> {
    let mib = |path: &Path| -> Result<u64> {
        let space = statvfs(path).context("look at the file system")?;
        Ok((space.f_bavail * space.f_frsize) >> 20)
    };
    // Others write to this disk, too: less than this during the test.
    let margin = 1024;
    let rig = Rig::with(r#"steps.StartVM(image="plain"), steps.StopVM(),"#, |host| {
        let free = mib(&host.home())?;
        ensure!(free > 3 * margin, "the test wants {} MiB of free space, and there are {free}", 3 * margin);
        host.set("pool.disk_low_water_mib", i64::try_from(free - margin)?);
        two_slots(host)
    })?;
    let filler = rig.host.path("filler");
    let file = File::create(&filler).context("make a large file")?;
    fallocate(&file, FallocateFlags::empty(), 0, (2 * margin) << 20).context("make a large file")?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "waiting for disk space", SOON)?;
    rig.worker.transcript().find("no machine is started until there is more space", SOON)?;
    ensure!(rig.host.machines()?.is_empty(), "a machine was started");
    std::fs::remove_file(&filler).context("remove the large file")?;
    drop(file);
    rig.worker.transcript().find("machines are started again", SOON)?;
    rig.master.complete(request, WITH_GUESTS)?.succeeded()?;
    let warnings = rig.worker.transcript().text().matches("no machine is started until").count();
    assert_eq!(warnings, 1, "the pause was not told once");
    rig.finish()
}

#[test]
#[ignore = "long"]
fn machine_that_writes_too_much_is_ended_alone() -> Result<()> {
    let writes = |mib: u32| {
        format!(
            r#"steps.StartVM(image="plain"),
               steps.VMShellCommand(command="dd if=/dev/zero of=large bs=1M count={mib} && sync && echo written"),
               steps.StopVM(),"#
        )
    };
    let master = Master::plan().builder("little", &writes(16)).builder("much", &writes(500)).start()?;
    let rig = Rig::of(master, |host| {
        host.set("pool.slots", 2);
        host.image("plain", Guest::plain()?.with("overlay_limit_mib", 64));
        Ok(())
    })?;
    let (little, much) = (rig.master.force("little")?, rig.master.force("much")?);
    let much = rig.master.complete(much, WITH_GUESTS)?;
    much.ended(Results::Exception)?;
    contains_all(&much.step("vm-shell")?.state_string, &["64 MiB", "overlay_limit_mib"])?;
    ensure!(!much.step("vm-shell")?.stdio().stdout.contains("written"), "it wrote all: {}", much.story());
    let little = rig.master.complete(little, WITH_GUESTS)?;
    little.succeeded()?;
    assert_eq!(little.step("vm-shell")?.stdio().stdout, "written\n");
    rig.host.slots_clean()?;
    rig.finish()
}
