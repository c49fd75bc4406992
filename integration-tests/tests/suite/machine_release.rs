//! However a build ends, its machine is given back: the slot is free and clean, and nothing ran on the host instead.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration_tests::{
    Guest, KvmHost, Line, Master, MasterPlan, Protocol, Results, Rig, SOON, WITH_GUESTS, contains_all,
    over_both_protocols, retried,
};

over_both_protocols!(
    #[ignore = "long"]
    builds_that_never_stop_their_machines_leave_none,
    machine_goes_with_a_line_that_is_dead,
    #[ignore = "long"]
    machine_that_dies_under_a_stock_step_makes_the_master_try_again,
);

/// Has all workers be KVMWorkers, which tell the worker when a build is over.
const KVM_WORKERS: &str = "c['workers'] = [worker.KVMWorker(each.name, each.password) for each in c['workers']]";

/// A step that breaks.
const EXPLODE: &str = "
from buildbot.process.buildstep import BuildStep

class Explode(BuildStep):
    name = 'explode'

    def run(self):
        raise RuntimeError('boom')
";

/// Leaves a mark on the worker's host, if it should run there.
const MARK_HOST: &str = "test -d /usr/local/lib/guest || touch ../../on-the-host";

/// A command that never ends in the builder's first build.
const FIRST_ENDS_NEVER: &str = "echo working; test %(prop:buildnumber)s != 1 || sleep 1000";

fn one_slot(host: &mut KvmHost) -> Result<()> {
    host.image("plain", Guest::plain()?);
    Ok(())
}

fn nothing_ran_on_the_host(rig: &Rig) -> Result<()> {
    let mark = rig.host.basedir().join("on-the-host");
    ensure!(!mark.exists(), "a command that belongs into the machine ran on the host");
    Ok(())
}

/// A master whose builders run their steps in a machine by `in_vm`.
fn in_vm(plan: MasterPlan, builder: &str, steps: &str) -> MasterPlan {
    plan.python(&format!(
        "import buildbot_kvm\nadd_builder(c, {builder:?}, buildbot_kvm.in_vm([{steps}], image='plain'))"
    ))
}

#[test]
fn build_that_is_stopped_while_it_copies_gives_its_machine_back() -> Result<()> {
    // Within the worker's limit for a copy, and far more than is copied before the build is stopped.
    let rig = Rig::with_machine(
        r#"steps.StartVM(image="plain"),
           steps.VMShellCommand(command="truncate -s 50G endless"),
           steps.VMCopyOut(src="endless", dest="endless"),
           steps.StopVM(),"#,
    )?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "copying", WITH_GUESTS)?;
    let build = rig.master.begun(request)?;
    rig.master.stop(build)?;
    let build = rig.master.ended(build, SOON)?;
    rig.host.slots_clean()?;
    build.ended(Results::Cancelled)?;
    assert_eq!(build.step("stop-vm")?.results, Some(Results::Success));
    rig.finish()
}

#[test]
fn build_that_is_stopped_while_it_waits_for_a_slot_takes_none() -> Result<()> {
    let steps = |command: &str| {
        format!(r#"steps.StartVM(image="plain"), steps.VMShellCommand(command="{command}"), steps.StopVM(),"#)
    };
    let plan = Master::plan().builder("first", &steps("echo in; sleep 1000")).builder("second", &steps("true"));
    let rig = Rig::of(plan.start()?, one_slot)?;
    let first = rig.master.force("first")?;
    rig.master.printed(first, "in\n", WITH_GUESTS)?;
    let machine = rig.host.machine()?;
    let second = rig.master.force("second")?;
    rig.master.printed(second, "waiting for a slot", SOON)?;
    let stop = |request| {
        let build = rig.master.begun(request)?;
        rig.master.stop(build)?;
        rig.master.ended(build, SOON)?.ended(Results::Cancelled)
    };
    stop(second)?;
    assert_eq!(rig.host.machine()?, machine);
    stop(first)?;
    rig.host.slots_clean()?;
    rig.finish()
}

#[test]
fn step_that_breaks_leaves_no_machine() -> Result<()> {
    let steps = r#"steps.StartVM(image="plain", bind=True), Explode(), steps.StopVM(),"#;
    let rig = Rig::of(Master::plan().python(EXPLODE).builder("build", steps).start()?, one_slot)?;
    let build = rig.run()?;
    rig.host.slots_clean()?;
    build.ended(Results::Exception)?;
    assert_eq!(build.step("stop-vm")?.results, Some(Results::Success));
    rig.finish()
}

#[test]
fn worker_that_is_told_to_stop_while_a_machine_starts_leaves_none() -> Result<()> {
    let mut rig = Rig::with_guest(r#"steps.StartVM(image="plain"), steps.StopVM(),"#, Guest::plain()?.booting())?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "qemu started", SOON)?;
    rig.host.machine()?;
    let status = rig.worker.stop()?;
    ensure!(status.success(), "the worker ended with {status}");
    rig.host.nothing_left()
}

/// Over MessagePack a master tells a worker nothing of this; a KVMWorker's machines are gone by then.
#[test]
fn machine_goes_with_its_builder() -> Result<()> {
    let plan = || Master::plan().speaking(Protocol::Pb).builder("stays", r#"steps.ShellCommand(command="true"),"#);
    let rig = Rig::of(plan().builder("goes", r#"steps.StartVM(image="plain"),"#).start()?, one_slot)?;
    rig.master.run_within("goes", WITH_GUESTS)?.succeeded()?;
    rig.host.machine()?;
    rig.master.reconfigure(plan())?;
    rig.worker.transcript().find("the builder is gone", SOON)?;
    rig.host.slots_clean()?;
    rig.finish()
}

fn builds_that_never_stop_their_machines_leave_none(protocol: Protocol) -> Result<()> {
    let start = r#"steps.StartVM(image="plain", bind=True),"#;
    let master = Master::plan()
        .speaking(protocol)
        .python(KVM_WORKERS)
        .python(EXPLODE)
        .builder("well", start)
        .builder("breaks", &format!("{start} Explode(),"))
        .builder("stopped", &format!(r#"{start} steps.ShellCommand(command="echo working; sleep 1000"),"#))
        .start()?;
    let rig = Rig::of(master, one_slot)?;
    rig.master.run_within("well", WITH_GUESTS)?.succeeded()?;
    rig.host.slots_clean()?;
    let request = rig.master.force("stopped")?;
    rig.master.printed(request, "working", WITH_GUESTS)?;
    let build = rig.master.begun(request)?;
    rig.master.stop(build)?;
    rig.master.ended(build, SOON)?.ended(Results::Cancelled)?;
    rig.host.slots_clean()?;
    // The last one, as a master gives a worker nothing to do for a while after an exception.
    rig.master.run_within("breaks", WITH_GUESTS)?.ended(Results::Exception)?;
    rig.host.slots_clean()?;
    rig.finish()
}

fn machine_goes_with_a_line_that_is_dead(protocol: Protocol) -> Result<()> {
    let steps = format!(
        r#"steps.StartVM(image="plain", bind=True),
           steps.ShellCommand(command=util.Interpolate("{MARK_HOST}; {FIRST_ENDS_NEVER}")),
           steps.ShellCommand(command="{MARK_HOST}"),
           steps.StopVM(),"#
    );
    let master = Master::building_over(protocol, &steps)?;
    let line = Line::to(master.port())?;
    let url = master.url_by(line.port());
    let rig = Rig::of(master, |host| {
        host.set("worker.master", url);
        host.set("connection.dead_after", 3);
        host.set("connection.connect_timeout", 2);
        host.set("connection.retry_max", 2);
        one_slot(host)
    })?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "working", WITH_GUESTS)?;
    rig.host.machine()?;
    line.cut();
    rig.worker.transcript().find("silent", SOON)?;
    rig.host.slots_clean()?;
    line.mend();
    retried(&rig.master, request, WITH_GUESTS)?;
    rig.host.slots_clean()?;
    nothing_ran_on_the_host(&rig)?;
    rig.finish()
}

fn machine_that_dies_under_a_stock_step_makes_the_master_try_again(protocol: Protocol) -> Result<()> {
    let steps = format!(
        r#"steps.ShellCommand(name="work", command=util.Interpolate("{FIRST_ENDS_NEVER}")),
           steps.ShellCommand(name="after", command="{MARK_HOST}", alwaysRun=True),
           steps.MakeDirectory(dir="on-the-host", alwaysRun=True),"#
    );
    let rig = Rig::of(in_vm(Master::plan().speaking(protocol), "build", &steps).start()?, one_slot)?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "working", WITH_GUESTS)?;
    rig.host.kill(&rig.host.machine()?)?;
    retried(&rig.master, request, WITH_GUESTS)?;
    rig.host.slots_clean()?;
    nothing_ran_on_the_host(&rig)?;
    let first = rig.master.tries(request)?.swap_remove(0);
    let work = first.step("work")?;
    assert_eq!((work.results, work.stdio().stdout.as_str()), (Some(Results::Retry), "working\n"));
    contains_all(&work.state_string, &["signal 9", "(retry)"])?;
    for after in ["after", "MakeDirectory"] {
        let after = first.step(after)?;
        ensure!(
            !matches!(after.results, Some(Results::Success | Results::Failure)),
            "{} ran without its machine: {}",
            after.name,
            first.story()
        );
    }
    rig.finish()
}

#[test]
#[ignore = "long"]
fn machine_whose_time_is_over_is_ended() -> Result<()> {
    let start = r#"steps.StartVM(image="plain", bind=True, ttl=4),"#;
    let plan = Master::plan()
        .speaking(Protocol::Pb)
        .builder("left", start)
        .builder("idle", &format!(r#"{start} steps.MasterShellCommand(command="sleep 8"), steps.ShellCommand(command="{MARK_HOST}", alwaysRun=True),"#))
        .builder("busy", &format!(r#"{start} steps.VMShellCommand(command="echo working; sleep 1000"), steps.StopVM(),"#));
    let rig = Rig::of(plan.start()?, one_slot)?;
    rig.master.run_within("left", WITH_GUESTS)?.succeeded()?;
    rig.host.slots_clean()?;
    let busy = rig.master.run_within("busy", WITH_GUESTS)?;
    busy.ended(Results::Exception)?;
    rig.host.slots_clean()?;
    contains_all(&busy.step("vm-shell")?.state_string, &["4 s"])?;
    let idle = rig.master.run_within("idle", WITH_GUESTS)?;
    ensure!(idle.step("shell")?.results != Some(Results::Success), "a step ran without its machine: {}", idle.story());
    nothing_ran_on_the_host(&rig)?;
    rig.host.slots_clean()?;
    let entries = fs::read_dir(rig.host.basedir()).context("list the basedir")?.count();
    ensure!(entries > 0, "the basedir has no builder's directory: the test looks in the wrong place");
    rig.finish()
}
