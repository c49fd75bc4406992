//! More builds than slots, and disks that several builders want.

use anyhow::{Result, ensure};
use integration_tests::{CLONED, GATE, Guest, KvmHost, Master, Results, Rig, SOON, WITH_GUESTS, contains_all};

fn one_slot(host: &mut KvmHost) -> Result<()> {
    host.image("plain", Guest::plain()?);
    Ok(())
}

#[test]
fn second_builder_waits_for_the_only_slot_and_gets_it() -> Result<()> {
    let steps = format!(r#"steps.StartVM(image="plain"), {GATE} steps.StopVM(),"#);
    let master = Master::plan().builder("first", &steps).builder("second", &steps).start()?;
    let rig = Rig::of(master, one_slot)?;
    let first = rig.master.force("first")?;
    rig.master.printed(first, CLONED, SOON)?;
    let second = rig.master.force("second")?;
    rig.master.printed(second, "waiting for a slot", SOON)?;
    rig.host.machine()?;
    rig.open("first")?;
    rig.open("second")?;
    rig.master.complete(first, WITH_GUESTS)?.succeeded()?;
    rig.master.complete(second, WITH_GUESTS)?.succeeded()?;
    rig.host.slots_clean()?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn full_pool_fails_the_second_builder_in_time() -> Result<()> {
    let master = Master::plan()
        .builder(
            "first",
            r#"steps.StartVM(image="plain"), steps.VMShellCommand(command="echo holding; sleep 1000"), steps.StopVM(),"#,
        )
        .builder("second", r#"steps.StartVM(image="plain", max_retries=0), steps.StopVM(),"#)
        .start()?;
    let rig = Rig::of(master, |host| {
        host.set("pool.acquire_timeout", 2);
        one_slot(host)
    })?;
    let first = rig.master.force("first")?;
    rig.master.printed(first, "holding", WITH_GUESTS)?;
    let second = rig.master.run("second")?;
    second.ended(Results::Exception)?;
    contains_all(&second.step("start-vm")?.state_string, &["in use for 2 s", "pool.slots"])?;
    assert_eq!(second.step("stop-vm")?.results, Some(Results::Skipped));
    // That the second one failed is nothing to the first one's machine.
    rig.host.machine()?;
    let id = rig.master.begun(first)?;
    rig.master.stop(id)?;
    rig.master.ended(id, SOON)?.ended(Results::Cancelled)?;
    rig.host.slots_clean()?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn two_builders_take_turns_with_a_persistent_disk() -> Result<()> {
    let steps = |name: &str| {
        format!(
            r#"steps.StartVM(image="plain", vm="shared", mode="persistent"),
               steps.VMShellCommand(vm="shared", command="echo {name} in >> ~/log; sleep 2; echo {name} out >> ~/log; cat ~/log"),
               steps.StopVM(vm="shared"),"#
        )
    };
    let master = Master::plan().builder("a", &steps("a")).builder("b", &steps("b")).start()?;
    let rig = Rig::of(master, |host| {
        host.set("pool.slots", 2);
        one_slot(host)
    })?;
    let requests = [rig.master.force("a")?, rig.master.force("b")?];
    let mut logs = Vec::new();
    for request in requests {
        let build = rig.master.complete(request, WITH_GUESTS)?;
        build.succeeded()?;
        logs.push(build.step("vm-shell")?.stdio().stdout);
    }
    logs.sort_by_key(String::len);
    let turns = [("a in\na out\n", "b in\nb out\n"), ("b in\nb out\n", "a in\na out\n")];
    let expected = turns.map(|(first, second)| [first.to_owned(), format!("{first}{second}")]);
    ensure!(expected.iter().any(|turns| logs == *turns), "the builders did not take turns: {logs:#?}");
    rig.finish()
}

#[test]
fn builder_may_have_several_machines_at_once() -> Result<()> {
    let rig = Rig::with(
        r#"steps.StartVM(image="plain", vm="one"),
           steps.StartVM(image="plain", vm="two"),
           steps.VMShellCommand(vm="one", command="echo one > ~/name"),
           steps.VMShellCommand(vm="two", command="cat ~/name || echo none"),
           steps.StopVM(vm="one"),
           steps.StopVM(vm="two"),"#,
        |host| {
            host.set("pool.slots", 2);
            one_slot(host)
        },
    )?;
    let build = rig.run()?;
    rig.host.slots_clean()?;
    build.succeeded()?;
    assert_eq!(build.steps[4].stdio().stdout, "none\n");
    rig.finish()
}
