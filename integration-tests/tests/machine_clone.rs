//! Machines that are restored from a template instead of being booted.

use std::process::Output;

use anyhow::{Result, ensure};
use integration_tests::{Build, Guest, KvmHost, Master, Rig, WITH_GUESTS, contains_all};

fn cloned(host: &mut KvmHost) -> Result<()> {
    host.image("plain", Guest::plain()?.with("template", true));
    host.set("pool.slots", 2);
    Ok(())
}

fn ask(rig: &Rig, arguments: &[&str]) -> Result<String> {
    let Output { status, stdout, stderr } = rig.host.ask(arguments)?;
    ensure!(status.success(), "{arguments:?} ended with {status}: {}", String::from_utf8_lossy(&stderr));
    Ok(String::from_utf8(stdout)?)
}

/// Runs a builder, and checks how its machine came to be.
fn run(rig: &Rig, builder: &str, how: &str) -> Result<Build> {
    let build = rig.master.run_within(builder, WITH_GUESTS)?;
    build.succeeded()?;
    assert_eq!(build.property("vm_how"), how, "{}", build.story());
    Ok(build)
}

#[test]
fn builds_get_clones() -> Result<()> {
    let master = Master::plan()
        .builder(
            "b",
            r#"steps.StartVM(image="plain"), steps.VMShellCommand(command="cat /proc/uptime; date"), steps.StopVM(),"#,
        )
        .start()?;
    let rig = Rig::of(master, cloned)?;
    contains_all(&ask(&rig, &["image", "template", "plain"])?, &["of generation 1"])?;
    contains_all(&ask(&rig, &["image", "templates"])?, &["plain: ready"])?;
    let build = run(&rig, "b", "clone")?;
    contains_all(&build.step("start-vm")?.stdio().text(), &["cloned from the template of generation 1"])?;
    rig.host.slots_clean()?;
    rig.finish()
}
