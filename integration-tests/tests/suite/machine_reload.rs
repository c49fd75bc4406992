//! A pool and images that are changed while builds run.

use anyhow::{Result, ensure};
use integration_tests::{
    CLONED, GATE, Guest, KvmHost, Master, MasterPlan, Request, Results, Rig, SOON, WITH_GUESTS, contains_all,
};

/// A machine that is used, then kept until its builder's gate is open, then used again.
fn gated() -> String {
    format!(
        r#"steps.StartVM(image="plain"),
           steps.VMShellCommand(command="touch ~/mine; echo in"),
           {GATE}
           steps.VMShellCommand(command="ls ~/mine"),
           steps.StopVM(),"#
    )
}

/// A machine of the image `plain` that is used.
const PLAIN: &str =
    r#"steps.StartVM(image="plain", max_retries=0), steps.VMShellCommand(command="echo in"), steps.StopVM(),"#;

/// What such builds have told when their machine has been used.
const IN: &str = "stdio: in\n";

fn two_builders() -> MasterPlan {
    Master::plan().builder("first", &gated()).builder("second", &gated())
}

fn slots(host: &mut KvmHost, count: i64) -> Result<()> {
    host.set("pool.slots", count);
    host.image("plain", Guest::plain()?);
    Ok(())
}

fn well(rig: &Rig, request: Request) -> Result<()> {
    rig.master.complete(request, WITH_GUESTS)?.succeeded()
}

#[test]
#[ignore = "long"]
fn a_slot_that_is_added_goes_to_the_build_that_waits() -> Result<()> {
    let mut rig = Rig::of(two_builders().start()?, |host| slots(host, 1))?;
    let first = rig.master.force("first")?;
    rig.master.printed(first, CLONED, WITH_GUESTS)?;
    let second = rig.master.force("second")?;
    rig.master.printed(second, "waiting for a slot: all 1 are in use", SOON)?;
    rig.host.set("pool.slots", 2);
    rig.reload("reloaded: pool.slots 1 → 2")?;
    rig.master.printed(second, IN, WITH_GUESTS)?;
    // The first still has its machine.
    rig.host.machines_become(2)?;
    rig.open("second")?;
    well(&rig, second)?;
    rig.open("first")?;
    well(&rig, first)?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn slots_that_are_too_many_go_with_the_builds_that_have_them() -> Result<()> {
    let mut rig = Rig::of(two_builders().start()?, |host| slots(host, 2))?;
    let builds = [rig.master.force("first")?, rig.master.force("second")?];
    for build in builds {
        rig.master.printed(build, IN, WITH_GUESTS)?;
    }
    rig.host.set("pool.slots", 1);
    rig.reload("reloaded: pool.slots 2 → 1")?;
    rig.host.machines_become(2)?;
    for (build, builder) in builds.into_iter().zip(["first", "second"]) {
        rig.open(builder)?;
        well(&rig, build)?;
        rig.shut(builder)?;
    }
    let first = rig.master.force("first")?;
    rig.master.printed(first, IN, WITH_GUESTS)?;
    let second = rig.master.force("second")?;
    rig.master.printed(second, "waiting for a slot: all 1 are in use", SOON)?;
    for (build, builder) in [(first, "first"), (second, "second")] {
        rig.open(builder)?;
        well(&rig, build)?;
    }
    rig.finish()
}

#[test]
#[ignore = "long"]
fn an_image_is_there_as_soon_as_it_is_configured() -> Result<()> {
    // Without images QEMU was not even looked for.
    let mut rig = Rig::building(PLAIN)?;
    rig.run()?.ended(Results::Exception)?;
    rig.host.image("plain", Guest::plain()?.booting());
    rig.reload("reloaded: images.plain added")?;
    rig.run()?.succeeded()?;
    let listed = rig.host.ask(&["image", "generations"])?;
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "plain 1 (current): the disk of the configuration\n");
    rig.finish()
}

#[test]
fn a_build_keeps_its_machine_when_the_image_goes() -> Result<()> {
    let steps = format!(
        r#"steps.StartVM(image="plain", max_retries=0),
           steps.VMShellCommand(command="echo in"),
           {GATE}
           steps.VMShellCommand(name="after", command="echo after"),
           steps.StopVM(),"#
    );
    let mut rig = Rig::with(&steps, |host| {
        host.image("other", Guest::plain()?);
        slots(host, 1)
    })?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, IN, WITH_GUESTS)?;
    rig.host.unset("images.plain");
    rig.reload("reloaded: images.plain removed")?;
    rig.open("build")?;
    let build = rig.master.complete(request, WITH_GUESTS)?;
    build.succeeded()?;
    assert_eq!(build.step("after")?.stdio().stdout, "after\n");
    let build = rig.run()?;
    build.ended(Results::Exception)?;
    contains_all(&build.step("start-vm")?.state_string, &["no image is named 'plain'", "it has other"])?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn a_start_that_waits_gets_a_machine_of_the_image_as_it_is_then() -> Result<()> {
    let memory =
        r#"steps.StartVM(image="plain"), steps.VMShellCommand(command="grep MemTotal /proc/meminfo"), steps.StopVM(),"#;
    let gone = r#"steps.StartVM(image="other", max_retries=0), steps.StopVM(),"#;
    let master = Master::plan().builder("first", &gated()).builder("second", memory).builder("third", gone).start()?;
    let mut rig = Rig::of(master, |host| {
        host.image("other", Guest::plain()?);
        slots(host, 1)
    })?;
    let first = rig.master.force("first")?;
    rig.master.printed(first, IN, WITH_GUESTS)?;
    let (second, third) = (rig.master.force("second")?, rig.master.force("third")?);
    rig.master.printed(second, "waiting for a slot", SOON)?;
    rig.master.printed(third, "waiting for a slot", SOON)?;
    rig.host.image("plain", Guest::plain()?.with("memory_mib", 512));
    rig.host.unset("images.other");
    rig.reload("reloaded: images.plain.memory_mib 384 → 512")?;
    rig.open("first")?;
    well(&rig, first)?;
    let build = rig.master.complete(second, WITH_GUESTS)?;
    build.succeeded()?;
    let total = build.step("vm-shell")?.stdio().stdout;
    let kib = total.split_whitespace().nth(1).and_then(|word| word.parse::<u32>().ok());
    ensure!(kib.is_some_and(|kib| kib > 400 << 10), "{total}");
    contains_all(&build.step("start-vm")?.stdio().text(), &["image 'plain' was changed"])?;
    let build = rig.master.complete(third, WITH_GUESTS)?;
    build.ended(Results::Exception)?;
    contains_all(&build.step("start-vm")?.state_string, &["no image is named 'other'"])?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn a_template_that_is_being_made_makes_way_for_a_slot() -> Result<()> {
    let master = two_builders().start()?;
    let mut rig = Rig::of(master, |host| {
        host.set("pool.slots", 1);
        host.image("plain", Guest::plain()?.with("template", true));
        Ok(())
    })?;
    rig.worker.transcript().find("making a template", SOON)?;
    rig.host.set("pool.slots", 2);
    rig.reload("reloaded: pool.slots 1 → 2")?;
    rig.worker.transcript().find("slots are added where it was being made", SOON)?;
    rig.worker.transcript().find("template made", WITH_GUESTS)?;
    let builds = [rig.master.force("first")?, rig.master.force("second")?];
    for build in builds {
        rig.master.printed(build, IN, WITH_GUESTS)?;
    }
    for (build, builder) in builds.into_iter().zip(["first", "second"]) {
        rig.open(builder)?;
        let build = rig.master.complete(build, WITH_GUESTS)?;
        build.succeeded()?;
        assert_eq!(build.property("vm_how"), "clone", "{}", build.story());
    }
    rig.finish()
}

#[test]
#[ignore = "long"]
fn what_is_kept_ready_follows() -> Result<()> {
    let image = |warm: i64| -> Result<Guest> { Ok(Guest::plain()?.with("template", true).with("warm", warm)) };
    let mut rig = Rig::with(PLAIN, |host| {
        host.set("pool.slots", 3);
        host.set("pool.warm_max_load", 1000.0);
        host.image("plain", image(1)?);
        Ok(())
    })?;
    let transcript = rig.worker.transcript().clone();
    transcript.find("warm machine ready", WITH_GUESTS)?;
    let mut mark = transcript.mark();
    // Those of before are not quite of the image any more.
    rig.host.image("plain", image(2)?);
    rig.reload("reloaded: images.plain.warm 1 → 2")?;
    transcript.find("warm machine ended: the configuration of its image was changed", SOON)?;
    for _ in 0..2 {
        transcript.find_from(mark, "warm machine ready", WITH_GUESTS)?;
        mark = transcript.mark();
    }
    let build = rig.run()?;
    build.succeeded()?;
    assert_eq!(build.property("vm_how"), "warm", "{}", build.story());
    // What they are made of stays.
    assert_eq!(transcript.lines(|line| line.contains("template made")).len(), 1);
    rig.host.image("plain", Guest::plain()?.booting());
    rig.reload("reloaded: images.plain.template true → false")?;
    rig.host.machines_become(0)?;
    transcript.find("removed a template that is not used any more", SOON)?;
    let build = rig.run()?;
    build.succeeded()?;
    assert_eq!(build.property("vm_how"), "boot", "{}", build.story());
    rig.finish()
}
