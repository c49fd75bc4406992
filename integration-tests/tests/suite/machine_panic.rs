//! Guests whose kernel panics, or that restart again and again: nobody waits for them, and what the kernel said is shown.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration_tests::{Build, Guest, Results, Rig, WITH_GUESTS, contains_all, retried};

/// Far longer than any of these tests should take.
const BOOT_TIMEOUT: i64 = 3000;

/// A guest with more on its kernel's command line.
fn guest_with(append: &str) -> Result<Guest> {
    let known = Guest::plain()?.get("append").context("the guest has a kernel command line")?.to_owned();
    Ok(Guest::plain()?.with("append", format!("{known} {append}")).with("boot_timeout", BOOT_TIMEOUT))
}

/// Runs a build whose machine does not come up, long before its time to boot is over, and checks what its step says.
fn fails_to_start(guest: Guest, says: &[&str]) -> Result<Build> {
    let rig = Rig::with_guest(r#"steps.StartVM(image="plain"), steps.StopVM(),"#, guest)?;
    let begun = Instant::now();
    let build = rig.run()?;
    build.ended(Results::Exception)?;
    ensure!(begun.elapsed() < WITH_GUESTS, "it took {:?}", begun.elapsed());
    contains_all(&build.step("start-vm")?.stdio().text(), says)?;
    rig.host.slots_clean()?;
    rig.finish()?;
    Ok(build)
}

/// What is said of any kernel that panics, before what it said itself.
const PANICKED: &str = "the guest's kernel panicked; its console's last lines:";

/// The words of a kernel that finds neither a program in its initrd nor a root filesystem.
const NO_ROOT: &str = "Kernel panic - not syncing: VFS: Unable to mount root fs";

#[test]
fn kernel_that_panics_while_it_boots_is_not_waited_for() -> Result<()> {
    // What the kernel prints before and after it says so.
    let says = [PANICKED, NO_ROOT, "VFS: Cannot open root device", "Call Trace:"];
    let build = fails_to_start(guest_with("rdinit=/no-such-init root=/dev/no-such-disk")?, &says)?;
    contains_all(&build.step("start-vm")?.state_string, &["panicked"])
}

#[test]
#[ignore = "long"]
fn panic_of_a_kernel_that_restarts_at_once_is_shown() -> Result<()> {
    let guest = guest_with("rdinit=/no-such-init root=/dev/no-such-disk panic=-1")?;
    fails_to_start(guest, &[PANICKED, NO_ROOT, "Call Trace:"]).map(drop)
}

#[test]
#[ignore = "long"]
fn guest_that_restarts_again_and_again_is_given_up() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let guest = Guest::plain()?;
    // A second archive, whose init takes the place of the first one's.
    fs::write(directory.path().join("init"), "#!/bin/busybox sh\n/bin/busybox reboot -f\n")?;
    let chmod = Command::new("chmod").arg("755").arg(directory.path().join("init")).status()?;
    ensure!(chmod.success(), "it can't be made executable");
    let mut pack = Command::new("sh");
    pack.arg("-c").arg("echo init | cpio --quiet -o -H newc").current_dir(directory.path()).stderr(Stdio::inherit());
    let archive = pack.output().context("run cpio")?;
    ensure!(archive.status.success(), "cpio failed");
    let mut initrd = fs::read(guest.get("initrd").context("the guest has an initrd")?)?;
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend(archive.stdout);
    let file = directory.path().join("initrd.img");
    fs::write(&file, initrd)?;
    let guest = guest.with("initrd", file.display().to_string()).with("boot_timeout", BOOT_TIMEOUT);
    fails_to_start(guest, &["the guest restarted 5 times during boot", "its console's last lines:"]).map(drop)
}

/// A build whose first try has its guest's kernel panic, after this was done in it.
fn panics_under_a_build(before: &str) -> Result<()> {
    let rig = Rig::with_guest(
        &format!(
            r#"steps.SetPropertyFromCommand(command="test -e ../tried && echo second || {{ touch ../tried; echo first; }}", property="try"),
               steps.StartVM(image="plain"),
               steps.VMShellCommand(name="break", command=util.Interpolate("echo working; test %(prop:try)s = second || {{ {before} echo c | sudo tee /proc/sysrq-trigger; sleep 1000; }}")),
               steps.StopVM(),"#
        ),
        Guest::plain()?,
    )?;
    let request = rig.master.force("build")?;
    retried(&rig.master, request, WITH_GUESTS)?;
    let first = rig.master.tries(request)?.swap_remove(0);
    let step = first.step("break")?;
    let said = "Kernel panic - not syncing: sysrq triggered crash";
    contains_all(
        &step.stdio().text(),
        &["working", "ended by itself", PANICKED, said, "Call Trace:", "sysrq_handle_crash"],
    )
    .with_context(|| first.story())?;
    rig.host.slots_clean()?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn kernel_that_panics_under_a_build_ends_its_machine() -> Result<()> {
    // As if the guest had no driver for the panic device.
    panics_under_a_build("sudo modprobe -r pvpanic_mmio || true;")
}

#[test]
#[ignore = "long"]
fn kernel_that_panics_under_a_build_and_restarts_at_once_ends_its_machine() -> Result<()> {
    panics_under_a_build("sudo modprobe -r pvpanic_mmio || true; echo -1 | sudo tee /proc/sys/kernel/panic;")
}

#[test]
#[ignore = "long"]
fn kernel_that_tells_its_panic_device_ends_its_machine() -> Result<()> {
    panics_under_a_build("sudo modprobe pvpanic_mmio;")
}

#[test]
#[ignore = "long"]
fn printing_a_kernels_last_words_ends_no_machine() -> Result<()> {
    let rig = Rig::with_machine(
        r#"steps.StartVM(image="plain"),
           steps.VMShellCommand(name="say", command="echo 'Kernel panic - not syncing: not at all' | sudo tee /dev/console; sleep 8; echo alive"),
           steps.StopVM(),"#,
    )?;
    let build = rig.run()?;
    build.succeeded()?;
    contains_all(&build.step("say")?.stdio().stdout, &["alive"])?;
    rig.worker.transcript().find("something in the guest printed a kernel's last words", Duration::from_secs(1))?;
    rig.finish()
}
