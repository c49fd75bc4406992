//! Four builders at once on four slots, build after build: each finds its machine new and itself alone in it.

use std::collections::BTreeSet;
use std::env;
use std::fs;

use anyhow::{Context, Result, ensure};
use integration_tests::{Build, Guest, Master, Protocol, Rig, WITH_GUESTS};

/// The variable with the number of builds of each builder. Each takes some ten seconds of a core under TCG.
const BUILDS: &str = "KVM_WORKER_TEST_BUILDS";

/// How many there are of each builder if the variable says nothing.
const FEW_BUILDS: usize = 2;

const BUILDERS: [&str; 4] = ["north", "east", "south", "west"];

/// All that a build does leaves its name in the guest, and looks for those of others.
const STEPS: &str = r#"
import buildbot_kvm

NAME = util.Interpolate("%(prop:buildername)s-%(prop:buildnumber)s")

def shell(name, command):
    return steps.ShellCommand(name=name, command=command, env={"NAME": NAME}, logEnviron=False, haltOnFailure=True)

crowd = buildbot_kvm.in_vm([
    shell("look", "! { ls -A ~ /tmp; ps -eo args; } | grep -e '[m]ark-' && uname -n"),
    shell("mark", 'touch ~/mark-$NAME /tmp/mark-$NAME; mkdir out; echo $NAME > out/$NAME'),
    shell("leave a process", 'setsid sh -c "while sleep 1; do :; done" mark-$NAME > /dev/null 2>&1 < /dev/null &'),
    shell("talk", 'for line in $(seq 300); do echo $NAME $line; done'),
    shell("work", 'for round in 1 2 3; do head -c 2M /dev/urandom | sha256sum > /dev/null; ls ~/mark-* /tmp/mark-*; sleep 0.5; done'),
    steps.DirectoryUpload(workersrc="out", masterdest=util.Interpolate("out/%(prop:buildername)s-%(prop:buildnumber)s")),
], image="plain")

c["workers"] = [worker.KVMWorker(each.name, each.password) for each in c["workers"]]
"#;

#[test]
#[ignore = "long: twelve machines, four at a time"]
fn four_builders_on_four_slots_do_not_notice_each_other() -> Result<()> {
    let builds: usize = match env::var(BUILDS) {
        Ok(number) => number.parse().with_context(|| format!("{BUILDS} is {number:?} and must be a number"))?,
        Err(_) => FEW_BUILDS,
    };
    let mut plan = Master::plan().speaking(Protocol::Pb).python(STEPS);
    for builder in BUILDERS {
        // Each has the same directory for all its builds, which is in their machines, and none of it on the host.
        plan = plan.python(&format!("add_builder(c, {builder:?}, crowd)"));
    }
    let rig = Rig::of(plan.start()?, |host| {
        host.image("plain", Guest::plain()?);
        host.set("pool.slots", 4);
        host.set("worker.host_commands", false);
        Ok(())
    })?;
    let mut requests = Vec::new();
    for _ in 0..builds {
        for builder in BUILDERS {
            requests.push(rig.master.force(builder)?);
        }
    }
    let within = WITH_GUESTS * u32::try_from(builds).context("a number of builds")?;
    let mut slots = BTreeSet::new();
    for request in requests {
        let build = rig.master.complete(request, within)?;
        build.succeeded()?;
        saw_only_itself(&rig, &build)?;
        let tries = rig.master.tries(request)?.len();
        ensure!(tries == 1, "build {} took {tries} tries", build.id);
        slots.insert(build.property("vm_slot").as_u64().context("the build has no property vm_slot")?);
    }
    assert_eq!(slots, BTreeSet::from([0, 1, 2, 3]));
    rig.host.slots_clean()?;
    rig.nothing_but_the_worker_runs()?;
    rig.finish()
}

/// Checks what a build printed and uploaded.
fn saw_only_itself(rig: &Rig, build: &Build) -> Result<()> {
    let name =
        format!("{}-{}", build.property("buildername").as_str().unwrap_or_default(), build.property("buildnumber"));
    let talk: String = (1..=300).map(|line| format!("{name} {line}\n")).collect();
    let marks = format!("/home/buildbot/mark-{name}\n/tmp/mark-{name}\n").repeat(3);
    for (step, expected) in
        [("look", "guest\n"), ("mark", ""), ("leave a process", ""), ("talk", talk.as_str()), ("work", marks.as_str())]
    {
        let printed = build.step(step)?.stdio().stdout;
        ensure!(printed == expected, "{step} of {name} printed {printed:?} instead of {expected:?}");
    }
    let directory = rig.master.path("out").join(&name);
    let files: Vec<_> = fs::read_dir(&directory)
        .with_context(|| format!("list {}", directory.display()))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    assert_eq!(files, [name.as_str()]);
    assert_eq!(fs::read_to_string(directory.join(&name))?, format!("{name}\n"));
    Ok(())
}
