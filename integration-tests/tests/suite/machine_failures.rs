//! Machines that don't start, die, or are left behind: what the master is told, and that their slot is free again.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration_tests::{Build, Guest, Results, Rig, SOON, WITH_GUESTS, contains_all, retried};

/// A machine, and a command in it that only ends in a build's second try.
const TWO_TRIES: &str = r#"
    steps.SetPropertyFromCommand(command="test -e ../tried && echo second || { touch ../tried; echo first; }", property="try"),
    steps.StartVM(image="plain"),
    steps.VMShellCommand(command=util.Interpolate("echo working; test %(prop:try)s = second || sleep 1000")),
    steps.StopVM(),"#;

/// A guest whose kernel starts, but nothing that answers.
fn silent_guest() -> Result<Guest> {
    let append = Guest::plain()?.get("append").context("the guest has a kernel command line")?.to_owned();
    Ok(Guest::plain()?.with("append", format!("{append} init=/bin/cat")))
}

/// Runs a build whose machine can't be had, and checks what its step says and that nothing is left.
fn fails_to_start(guest: Guest, says: &[&str]) -> Result<Build> {
    let rig = Rig::with_guest(r#"steps.StartVM(image="plain"), steps.StopVM(),"#, guest)?;
    let build = rig.run()?;
    rig.host.slots_clean()?;
    build.ended(Results::Exception)?;
    let start = build.step("start-vm")?;
    contains_all(&start.stdio().text(), says)?;
    assert_eq!(build.step("stop-vm")?.results, Some(Results::Skipped));
    rig.finish()?;
    Ok(build)
}

#[test]
#[ignore = "long"]
fn guest_that_never_answers_shows_its_console() -> Result<()> {
    // Far longer than it takes to print what is looked for, which is all that its guest does.
    let build = fails_to_start(
        silent_guest()?.with("boot_timeout", 30),
        &["guest not ready after 30", "tries; the last one: ", "initrd: mounting /dev/vda"],
    )?;
    contains_all(&build.step("start-vm")?.state_string, &["plain"])
}

#[test]
#[ignore = "long"]
fn guest_that_turns_itself_off_is_not_waited_for() -> Result<()> {
    let append = "root=/dev/vdz console=ttyS0";
    let guest = Guest::plain()?.with("append", append).with("boot_timeout", 200);
    fails_to_start(guest, &["initrd: no disk /dev/vdz"]).map(drop)
}

#[test]
fn missing_disk_is_named() -> Result<()> {
    fails_to_start(Guest::plain()?.with("disk", "/nowhere/debian.qcow2"), &["/nowhere/debian.qcow2"]).map(drop)
}

#[test]
fn words_of_a_qemu_that_refuses_are_shown() -> Result<()> {
    let arguments = toml::Value::Array(vec!["-device".into(), "no-such-device".into()]);
    fails_to_start(Guest::plain()?.with("qemu_args", arguments), &["no-such-device", "not a valid device"]).map(drop)
}

#[test]
#[ignore = "long"]
fn guest_with_another_host_key_is_refused() -> Result<()> {
    let other = fs::read_to_string(format!("{}.pub", Guest::plain()?.get("key").context("the guest has a key")?))?;
    fails_to_start(Guest::plain()?.with("host_key", other.trim()), &["host key"]).map(drop)
}

#[test]
#[ignore = "long"]
fn login_that_the_guest_refuses_is_not_tried_until_the_time_is_up() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let key = directory.path().join("id_ed25519");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).output()?;
    ensure!(made.status.success(), "ssh-keygen failed: {made:?}");
    let guest = Guest::plain()?.with("key", key.display().to_string()).with("boot_timeout", 200);
    fails_to_start(guest, &["buildbot@127.0.0.1", "authorized_keys"]).map(drop)
}

#[test]
fn image_that_is_not_configured_is_told_with_those_that_are() -> Result<()> {
    let rig = Rig::with_machine(r#"steps.StartVM(image="debian-99"), steps.StopVM(),"#)?;
    let build = rig.run()?;
    build.ended(Results::Exception)?;
    contains_all(&build.step("start-vm")?.state_string, &["debian-99", "plain"])?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn host_key_that_was_learnt_is_checked_ever_after() -> Result<()> {
    let mut guest = Guest::plain()?;
    guest = guest.without("host_key");
    let mut rig = Rig::with_guest(r#"steps.StartVM(image="plain"), steps.StopVM(),"#, guest)?;
    rig.run()?.succeeded()?;
    rig.worker.stop()?;
    let other = fs::read_to_string(format!("{}.pub", Guest::plain()?.get("key").context("the guest has a key")?))?;
    let learnt: Vec<_> = fs::read_dir(rig.host.state_dir().join("host_keys"))?.collect::<Result<_, _>>()?;
    ensure!(learnt.len() == 1, "learnt: {learnt:?}");
    fs::write(learnt[0].path(), other)?;
    rig.worker = rig.host.attach(&rig.master)?;
    let build = rig.run()?;
    build.ended(Results::Exception)?;
    contains_all(&build.step("start-vm")?.stdio().text(), &["host key", &learnt[0].path().display().to_string()])?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn machine_that_is_killed_under_a_command_makes_the_master_try_again() -> Result<()> {
    let rig = Rig::with_machine(TWO_TRIES)?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "working", WITH_GUESTS)?;
    rig.host.kill(&rig.host.machine()?)?;
    retried(&rig.master, request, WITH_GUESTS)?;
    rig.host.slots_clean()?;
    let first = rig.master.tries(request)?.swap_remove(0);
    let shell = first.step("vm-shell")?;
    contains_all(&shell.state_string, &["signal 9", "(retry)"])?;
    assert_eq!(shell.stdio().stdout, "working\n");
    rig.finish()
}

#[test]
fn machine_is_stopped_after_a_failure() -> Result<()> {
    let rig = Rig::with_machine(
        r#"steps.StartVM(image="plain"), steps.VMShellCommand(command="exit 5", haltOnFailure=True), steps.StopVM(),"#,
    )?;
    let build = rig.run()?;
    rig.host.slots_clean()?;
    build.ended(Results::Failure)?;
    assert_eq!(build.step("stop-vm")?.results, Some(Results::Success));
    rig.finish()
}

#[test]
#[ignore = "long"]
fn machine_that_a_build_left_is_not_in_the_way_of_the_next() -> Result<()> {
    let rig = Rig::with_machine(r#"steps.StartVM(image="plain"), steps.VMShellCommand(command="true"),"#)?;
    rig.run()?.succeeded()?;
    let left = rig.host.machine()?;
    rig.run()?.succeeded()?;
    ensure!(rig.host.machine()? != left, "the second build got the machine of the first");
    // The second one's machine goes with the worker.
    rig.finish()
}

#[test]
fn stopping_a_build_while_its_machine_boots_frees_the_slot() -> Result<()> {
    let rig = Rig::with_guest(r#"steps.StartVM(image="plain"), steps.StopVM(),"#, silent_guest()?)?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "qemu started", SOON)?;
    rig.host.machine()?;
    let id = rig.master.begun(request)?;
    rig.master.stop(id)?;
    rig.master.ended(id, SOON)?.ended(Results::Cancelled)?;
    rig.host.slots_clean()?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn machines_go_with_the_connection() -> Result<()> {
    let mut rig = Rig::with(TWO_TRIES, |host| {
        host.image("plain", Guest::plain()?);
        host.set("connection.retry_max", 2);
        Ok(())
    })?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "working", WITH_GUESTS)?;
    rig.host.machine()?;
    rig.master.kill()?;
    rig.host.slots_clean()?;
    rig.master.start_again()?;
    retried(&rig.master, request, WITH_GUESTS)?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn machines_go_with_a_worker_that_is_told_to_stop() -> Result<()> {
    let mut rig = Rig::with_machine(TWO_TRIES)?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "working", WITH_GUESTS)?;
    let status = rig.worker.stop()?;
    ensure!(status.success(), "the worker ended with {status}");
    rig.host.nothing_left()
}

#[test]
#[ignore = "long"]
fn machines_of_a_worker_that_crashed_are_cleaned_up_by_the_next() -> Result<()> {
    let mut rig = Rig::with_machine(TWO_TRIES)?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "working", WITH_GUESTS)?;
    let orphan = rig.host.machine()?;
    rig.worker.kill()?;
    // Whether QEMU dies with its worker or not, nobody was there to clean up after it.
    let slot = rig.host.state_dir().join("slots/0");
    ensure!(slot.exists(), "{} went with the worker: nothing is left to be cleaned up", slot.display());
    rig.worker = rig.host.attach(&rig.master)?;
    rig.worker.transcript().find(&format!("pid={}", orphan.pid), SOON)?;
    ensure!(!rig.host.running()?.contains(&orphan), "{orphan:?} still runs");
    retried(&rig.master, request, WITH_GUESTS)?;
    rig.host.slots_clean()?;
    rig.finish()
}
