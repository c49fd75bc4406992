//! Machines of a master that speaks Perspective Broker: their paths, and when they end.

use std::fs;

use anyhow::{Result, ensure};
use integration_tests::{Guest, Master, Protocol, Rig, contains_all};

/// A master of one builder, and a worker with one slot.
fn rig(steps: &str, guest: Guest) -> Result<Rig> {
    Rig::of(Master::building_over(Protocol::Pb, steps)?, |host| {
        host.image("plain", guest);
        Ok(())
    })
}

#[test]
fn commands_and_files_go_into_a_machine_and_out_again() -> Result<()> {
    let rig = rig(
        r#"steps.StringDownload("text\n", workerdest="in/sub/file"),
           steps.StartVM(image="plain", console_log="console"),
           steps.VMCopyIn(src="in", dest="in"),
           steps.VMShellCommand(command="pwd; cat in/sub/file; mkdir out; tr a-z A-Z < in/sub/file > out/file"),
           steps.VMCopyOut(src="out", dest="out"),
           steps.StopVM(),"#,
        Guest::plain()?.booting(),
    )?;
    let build = rig.run()?;
    rig.host.slots_clean()?;
    build.succeeded()?;
    let workdir = rig.host.basedir().join("build/build");
    assert_eq!(build.step("vm-shell")?.stdio().stdout, format!("{}\ntext\n", workdir.display()));
    contains_all(&build.step("start-vm")?.log("console").stdout, &["initrd: mounting /dev/vda"])?;
    assert_eq!(build.property("vm_ssh_port"), rig.host.ssh_port(0));
    assert_eq!(fs::read_to_string(rig.host.basedir().join("build/build/out/file"))?, "TEXT\n");
    rig.finish()
}

/// Only PB says that a build begins: over MessagePack a machine that nobody stopped stays until the next is started.
#[test]
fn machine_of_an_earlier_build_ends_when_the_next_begins() -> Result<()> {
    let rig = rig(
        r#"steps.StartVM(image="plain", doStepIf=lambda step: step.build.number == 1),
           steps.ShellCommand(command="echo hello"),"#,
        Guest::plain()?,
    )?;
    rig.run()?.succeeded()?;
    rig.host.machine()?;
    rig.run()?.succeeded()?;
    rig.host.slots_clean()?;
    ensure!(rig.worker.transcript().text().contains("the builder's next build begins"), "not for this reason");
    rig.finish()
}
