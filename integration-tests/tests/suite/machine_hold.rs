//! The machine of a failed build is kept for a person, out of the way of builds, until its time is over or it is released.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use integration_tests::{Build, Guest, KvmHost, Master, Results, Rig, SOON, WITH_GUESTS, contains_all};

/// A builder whose builds leave something in the guest and fail if their number is odd.
fn odd_builds_fail(keep: u32) -> Result<Master> {
    Master::plan()
        .python(&format!(
            "import buildbot_kvm\n\
             odd = steps.ShellCommand(command=util.Interpolate('echo %(prop:buildnumber)s > ~/evidence; \
                 test $((%(prop:buildnumber)s %% 2)) = 0'))\n\
             add_builder(c, 'build', buildbot_kvm.in_vm([odd], image='plain', keep_on_failure={keep}))\n\
             busy = steps.ShellCommand(command='echo working; sleep 1000')\n\
             add_builder(c, 'busy', buildbot_kvm.in_vm([busy], image='plain'))"
        ))
        .start()
}

fn two_slots(host: &mut KvmHost) -> Result<()> {
    host.image("plain", Guest::plain()?);
    host.set("pool.slots", 2);
    host.set("connection.retry_max", 2);
    Ok(())
}

/// What a person at the worker's host does with the line that the step shows.
fn log_in(rig: &Rig, build: &Build, command: &str) -> Result<Output> {
    let said = build.step("stop-vm")?.stdio().text();
    let line = said.lines().find(|line| line.trim_start().starts_with("ssh -p "));
    let line = line.with_context(|| format!("the step does not say how to get in:\n{said}"))?;
    Command::new("sh")
        .arg("-c")
        .arg(format!("{line} {command}"))
        .env("HOME", rig.host.home())
        .output()
        .context("log in")
}

fn found(rig: &Rig, build: &Build) -> Result<String> {
    let output = log_in(rig, build, "cat evidence")?;
    ensure!(output.status.success(), "the login ended with {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn slot(build: &Build) -> Result<String> {
    Ok(build.property("vm_slot").as_u64().context("the build has no vm_slot")?.to_string())
}

fn said(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout, &output.stderr].map(|stream| String::from_utf8_lossy(stream).into_owned()).concat();
    (output.status.code(), text)
}

#[test]
fn machine_of_a_failed_build_is_kept_until_it_is_released() -> Result<()> {
    let mut rig = Rig::of(odd_builds_fail(600)?, two_slots)?;
    let (status, text) = said(&rig.host.ask(&["release", "0"])?);
    assert_eq!(status, Some(1), "{text}");

    let first = rig.run()?;
    first.ended(Results::Failure)?;
    contains_all(&first.step("stop-vm")?.state_string, &["kept"])?;
    assert_eq!(found(&rig, &first)?, "1\n");

    // The builder's next build has a machine of its own, which is not kept, as all went well.
    let second = rig.run()?;
    second.succeeded()?;
    ensure!(slot(&second)? != slot(&first)?, "both builds had slot {}", slot(&first)?);
    rig.host.machine()?;
    assert_eq!(found(&rig, &first)?, "1\n");

    // Only so many are held: another one takes the place of the first.
    let third = rig.run()?;
    third.ended(Results::Failure)?;
    rig.host.machines_become(1)?;
    assert_eq!(found(&rig, &third)?, "3\n");
    ensure!(!log_in(&rig, &first, "true")?.status.success(), "the first machine is still there");

    // Builds are over with the line, but this is no build's.
    rig.master.kill()?;
    rig.worker.transcript().find("not connected", SOON)?;
    assert_eq!(found(&rig, &third)?, "3\n");
    rig.master.start_again()?;
    rig.master.attached(0, Master::WORKER)?;

    let number = slot(&third)?;
    let (status, text) = said(&rig.host.ask(&["release", &number])?);
    assert_eq!(status, Some(0), "{text}");
    rig.host.slots_clean()?;
    let (status, text) = said(&rig.host.ask(&["release", &number])?);
    assert_eq!(status, Some(1), "{text}");
    contains_all(&text, &["no machine runs in slot"])?;
    rig.finish()
}

#[test]
fn machine_that_is_kept_ends_by_itself() -> Result<()> {
    let rig = Rig::of(odd_builds_fail(3)?, two_slots)?;
    rig.run()?.ended(Results::Failure)?;
    rig.host.machine()?;
    rig.host.slots_clean()?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn only_what_is_kept_is_released_and_all_of_it_goes_with_the_worker() -> Result<()> {
    let rig = Rig::of(odd_builds_fail(600)?, two_slots)?;
    let kept = rig.run()?;
    kept.ended(Results::Failure)?;
    let request = rig.master.force("busy")?;
    rig.master.printed(request, "working", WITH_GUESTS)?;
    rig.host.machines_become(2)?;
    let busy = if slot(&kept)? == "0" { "1" } else { "0" };
    let (status, text) = said(&rig.host.ask(&["release", busy])?);
    assert_eq!(status, Some(1), "{text}");
    contains_all(&text, &["'busy'", "build runs"])?;
    rig.finish()
}
