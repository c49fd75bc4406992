//! Which builds a master with `KVMWorker` begins, where their steps are, and what it makes of builds that wait for each other.

use anyhow::{Context, Result, ensure};
use integration_tests::{
    GATE, Guest, KvmHost, Master, MasterPlan, Protocol, Results, Rig, SOON, WITH_GUESTS, contains_all,
};
use serde_json::Value;

const KVM_WORKERS: &str = r#"
import buildbot_kvm as kvm
c["workers"] = [worker.KVMWorker(each.name, each.password, poll_interval=1) for each in c["workers"]]"#;

/// A builder `child` whose builds have a machine, and a scheduler of that name that triggers it.
const CHILD: &str = r#"
c["schedulers"].append(schedulers.Triggerable(name="child", builderNames=["child"]))
add_builder(c, "child", kvm.in_vm([steps.ShellCommand(command="true")], image="plain"))"#;

const TRIGGER: &str = r#"steps.Trigger(name="trigger", schedulerNames=["child"], waitForFinish=True)"#;

fn plan() -> MasterPlan {
    Master::plan().python(KVM_WORKERS)
}

fn one_slot(host: &mut KvmHost) -> Result<()> {
    host.image("plain", Guest::plain()?);
    Ok(())
}

/// What `kvm-worker status --json` says of a deadlock.
fn deadlock(rig: &Rig) -> Result<Value> {
    Ok(rig.host.status()?["machines"]["deadlock"].clone())
}

#[test]
fn a_coordinator_without_a_machine_leaves_the_only_slot_to_its_child() -> Result<()> {
    let rig = Rig::of(plan().python(CHILD).builder("parent", TRIGGER).start()?, one_slot)?;
    rig.master.run_within("parent", WITH_GUESTS)?.succeeded()?;
    assert_eq!(deadlock(&rig)?, Value::Null);
    rig.finish()
}

#[test]
#[ignore = "long: a machine's time to live has to run out"]
fn a_build_that_keeps_the_only_machine_while_it_waits_for_one_is_told_and_ends() -> Result<()> {
    let parent = format!(r#"add_builder(c, "parent", kvm.in_vm([{TRIGGER}], image="plain", ttl=30))"#);
    let rig = Rig::of(plan().python(CHILD).python(&parent).start()?, one_slot)?;
    let parent = rig.master.force("parent")?;
    let said = "a build has all machines of worker worker and waits for builds that need one there";
    rig.worker.transcript().find(said, SOON)?;
    rig.master.transcript().find(said, SOON)?;
    contains_all(deadlock(&rig)?.as_str().context("status says nothing")?, &[said, "pool.slots"])?;
    let page = String::from_utf8(rig.host.ask(&["status"])?.stdout)?;
    contains_all(&page, &["\ndeadlock: a build has all machines"])?;
    // Its time is over, and the child has the slot.
    let build = rig.master.complete(parent, WITH_GUESTS)?;
    let step = build.step("trigger")?;
    assert_eq!(step.results, Some(Results::Success), "{}", build.story());
    contains_all(&step.log("deadlock").text(), &[said])?;
    assert_eq!(deadlock(&rig)?, Value::Null);
    rig.finish()
}

#[test]
#[ignore = "long"]
fn a_build_is_begun_where_its_image_is() -> Result<()> {
    let master = plan()
        .worker("other")
        .python(
            r#"
for image in ("plain", "other"):
    steps_ = [steps.SetProperty(property="here", value=util.Interpolate("%(prop:workername)s"))]
    add_builder(c, image, kvm.in_vm(steps_, image=util.Interpolate("%(kw:image)s", image=image)), ["worker", "other"])
c["select_next_worker"] = kvm.next_worker"#,
        )
        .start()?;
    let mut others = KvmHost::of(&master)?;
    others.set("worker.name", "other");
    others.image("other", Guest::plain()?);
    let mark = master.transcript().mark();
    let mut other = others.start()?;
    master.attached(mark, "other")?;
    let rig = Rig::of(master, one_slot)?;
    for (builder, worker) in [("plain", "worker"), ("other", "other"), ("other", "other"), ("plain", "worker")] {
        let build = rig.master.run_within(builder, WITH_GUESTS)?;
        build.succeeded()?;
        assert_eq!(build.property("here"), worker, "{}", build.story());
    }
    let status = other.stop()?;
    ensure!(status.success(), "the other worker ended with {status}");
    rig.finish()
}

#[test]
fn a_machine_that_did_not_start_is_no_reason_to_try_again() -> Result<()> {
    for protocol in [Protocol::Msgpack, Protocol::Pb] {
        let steps = r#"[steps.ShellCommand(name="always", command="true", alwaysRun=True)]"#;
        let builder = format!(r#"add_builder(c, "build", kvm.in_vm({steps}, image="plain", memory=1 << 20))"#);
        let rig = Rig::of(plan().speaking(protocol).python(&builder).start()?, |host| {
            host.set("pool.memory_budget_mib", 1000);
            one_slot(host)
        })?;
        let request = rig.master.force("build")?;
        let build = rig.master.complete(request, SOON)?;
        build.ended(Results::Exception)?;
        assert_eq!(rig.master.tries(request)?.len(), 1, "{}", build.story());
        contains_all(&build.step("always")?.stdio().text(), &["vm 'default' is not running, as it did not start: "])?;
        rig.finish()?;
    }
    Ok(())
}

#[test]
fn a_slot_that_a_full_worker_gets_is_used_at_once() -> Result<()> {
    let gate = GATE.trim_end_matches(',');
    let builder = |name: &str| format!(r#"add_builder(c, "{name}", kvm.in_vm([kvm.on_host({gate})], image="plain"))"#);
    let plan = plan().python(&builder("first")).python(&builder("second"));
    let mut rig = Rig::of(plan.start()?, one_slot)?;
    let first = rig.master.force("first")?;
    rig.master.begun(first)?;
    let second = rig.master.force("second")?;
    rig.open("second")?;
    ensure!(!rig.master.has_begun(second)?, "there is no slot for it");
    rig.host.set("pool.slots", 2);
    rig.reload("reloaded: pool.slots 1 → 2")?;
    rig.master.complete(second, WITH_GUESTS)?.succeeded()?;
    rig.open("first")?;
    rig.master.complete(first, WITH_GUESTS)?.succeeded()?;
    rig.finish()
}

/// Steps whose commands or whose added steps were for the host once, on a worker that runs nothing there.
const PLACED: &str = r#"
from buildbot.process.buildstep import BuildStep
from buildbot.process.results import SUCCESS

class Compile(kvm.VMShellMixin, steps.Compile):
    """Uploads a file before its command."""

class Adding(BuildStep):
    name = "adding"
    def run(self):
        self.build.addStepsAfterCurrentStep([steps.ShellCommand(name="added", command="true")])
        return SUCCESS

class Choosing(util.BuildFactory):
    def newBuild(self, *args):
        build = super().newBuild(*args)
        build.setStepFactories([steps.ShellCommand(name="chosen", command="true").get_step_factory()])
        return build

add_builder(c, "plain", [
    steps.StartVM("plain"),
    steps.VMShellCommand(command="touch suppressions"),
    Compile(command="true", suppressionFile="suppressions"),
    kvm.step_in_vm(Adding()),
    steps.StopVM(),
])
add_builder(c, "chosen", kvm.in_vm(Choosing(), image="plain"))
add_builder(c, "unset", [kvm.step_in_vm(steps.ShellCommand(command="true"), vm=util.Property("unset"))])"#;

#[test]
fn what_is_to_be_in_a_machine_is_there_or_nowhere() -> Result<()> {
    let rig = Rig::of(plan().python(PLACED).start()?, |host| {
        host.set("worker.host_commands", false);
        one_slot(host)
    })?;
    for (builder, step) in [("plain", "added"), ("chosen", "chosen")] {
        let build = rig.master.run_within(builder, WITH_GUESTS)?;
        build.succeeded()?;
        build.step(step)?;
    }
    let build = rig.master.run("unset")?;
    build.ended(Results::Exception)?;
    contains_all(&build.story(), &["vm is None in this build, and must be the name of a machine"])?;
    rig.finish()
}
