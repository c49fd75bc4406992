//! Images that live: what a build saves is what later machines start from, until somebody goes back.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use integration_tests::{Build, Guest, KvmHost, Master, Results, Rig, WITH_GUESTS, contains_all};

/// Adds the build's number to a file of the guest that tells all builds it went through. The third fails.
const HISTORY: &str = r#"
import buildbot_kvm

def history(builder, **kwargs):
    step = steps.ShellCommand(
        name="history",
        command=util.Interpolate(
            "cat ~/history; echo %(prop:buildername)s %(prop:buildnumber)s >> ~/history; test %(prop:buildnumber)s != 3"
        ),
        logEnviron=False,
    )
    add_builder(c, builder, buildbot_kvm.in_vm([step], image="living", **kwargs))
"#;

fn living(host: &mut KvmHost) -> Result<()> {
    // Else a template would be made of each generation.
    let kept = Guest::plain()?.booting().with("keep_generations", 1);
    host.image("living", kept);
    host.set("pool.slots", 2);
    Ok(())
}

/// The generation a build's machine had, and what it found in it.
fn found(build: &Build) -> Result<(u64, Vec<String>)> {
    let generation = build.property("vm_generation").as_u64().with_context(|| build.story())?;
    let stdout = build.step("history")?.stdio().stdout;
    Ok((generation, stdout.lines().map(str::to_owned).collect()))
}

/// Runs a builder, and compares what its machine had, and what generation became of it.
fn check(rig: &Rig, builder: &str, generation: u64, history: &[&str], saved: Option<u64>) -> Result<Build> {
    let build = rig.master.run_within(builder, WITH_GUESTS)?;
    build.step("history").with_context(|| build.story())?;
    assert_eq!(found(&build)?, (generation, history.iter().map(|line| (*line).to_owned()).collect()), "{builder}");
    assert_eq!(build.property("vm_saved_generation").as_u64(), saved, "{}", build.story());
    Ok(build)
}

fn ask(rig: &Rig, arguments: &[&str]) -> Result<String> {
    let Output { status, stdout, stderr } = rig.host.ask(arguments)?;
    ensure!(status.success(), "{arguments:?} ended with {status}: {}", String::from_utf8_lossy(&stderr));
    Ok(String::from_utf8(stdout)?)
}

#[test]
#[ignore = "long"]
fn saved_disk_is_the_next_generation_until_somebody_goes_back() -> Result<()> {
    let plan = Master::plan().python(HISTORY).python("history('save', save='living')\nhistory('look')");
    let mut rig = Rig::of(plan.start()?, living)?;
    check(&rig, "save", 1, &[], Some(2))?.succeeded()?;
    check(&rig, "save", 2, &["save 1"], Some(3))?.succeeded()?;
    let failed = check(&rig, "save", 3, &["save 1", "save 2"], None)?;
    failed.ended(Results::Failure)?;
    contains_all(&failed.step("stop-vm")?.state_string, &["not saved"])?;

    // They outlive the worker, and all but so many of them are removed.
    rig.worker.stop()?;
    rig.worker = rig.host.attach(&rig.master)?;
    check(&rig, "look", 3, &["save 1", "save 2"], None)?.succeeded()?;
    let listed = ask(&rig, &["image", "generations", "living"])?;
    let generations: Vec<_> = listed.lines().filter_map(|line| line.split(':').next()).collect();
    assert_eq!(generations, ["living 1", "living 3 (current)"], "{listed}");
    contains_all(&listed, &["by save (build 2) from generation 2"])?;
    let refused = rig.host.ask(&["image", "rollback", "living", "2"])?;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    contains_all(&String::from_utf8_lossy(&refused.stderr), &["2"])?;

    ask(&rig, &["image", "rollback", "living"])?;
    check(&rig, "look", 1, &[], None)?.succeeded()?;
    rig.host.slots_clean()?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn builders_that_save_at_once_make_a_generation_each() -> Result<()> {
    let plan = Master::plan().python(HISTORY).python("history('a', save='living')\nhistory('b', save='living')");
    let rig = Rig::of(plan.start()?, living)?;
    let requests = [rig.master.force("a")?, rig.master.force("b")?];
    let mut generations = Vec::new();
    for request in requests {
        let build = rig.master.complete(request, WITH_GUESTS)?;
        build.succeeded()?;
        assert_eq!(found(&build)?, (1, Vec::new()));
        generations.push(build.property("vm_saved_generation").as_u64());
    }
    generations.sort_unstable();
    assert_eq!(generations, [Some(2), Some(3)]);
    let build = rig.master.run_within("a", WITH_GUESTS)?;
    let (generation, history) = found(&build)?;
    ensure!((generation, history.len()) == (3, 1), "generation {generation} has {history:?}");
    rig.host.slots_clean()?;
    rig.finish()
}
