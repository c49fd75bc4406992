//! Machines that are restored from a template instead of being booted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use integration_tests::{Build, Guest, KvmHost, Master, MasterPlan, Results, Rig, SOON, WITH_GUESTS, contains_all};

fn two_slots(guest: Guest) -> impl FnOnce(&mut KvmHost) -> Result<()> {
    |host| {
        host.image("plain", guest);
        host.set("pool.slots", 2);
        Ok(())
    }
}

/// A guest whose first template is made by the test's worker.
fn templated() -> Result<Guest> {
    Ok(Guest::plain()?.with("template", true))
}

/// A builder that looks whether a file is there that tells all builds the guest's disk went through, and adds itself.
fn history(plan: MasterPlan, builder: &str, arguments: &str) -> MasterPlan {
    let command = format!("cat ~/history; echo {builder} >> ~/history");
    plan.python(&format!(
        "import buildbot_kvm\nstep = steps.ShellCommand(name='history', command='{command}', logEnviron=False)\n\
         add_builder(c, '{builder}', buildbot_kvm.in_vm([step], image='plain', {arguments}))"
    ))
}

fn ask(rig: &Rig, arguments: &[&str]) -> Result<String> {
    let Output { status, stdout, stderr } = rig.host.ask(arguments)?;
    ensure!(status.success(), "{arguments:?} ended with {status}: {}", String::from_utf8_lossy(&stderr));
    Ok(String::from_utf8(stdout)?)
}

/// Waits until there is a template, and returns its directory.
fn template(rig: &Rig) -> Result<PathBuf> {
    ask(rig, &["image", "template", "plain"])?;
    let mut there = templates(rig)?;
    ensure!(there.len() == 1, "not one template but {there:?}");
    there.pop().context("a template")
}

/// The directories of the image's templates, whatever is in them.
fn templates(rig: &Rig) -> Result<Vec<PathBuf>> {
    let directory = rig.host.state_dir().join("templates/plain");
    let entries = fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// What the files of a template are, less the empty overlay that is copied.
fn digests(template: &Path) -> Result<BTreeMap<String, String>> {
    let digest = |name: &str| {
        let output = Command::new("sha256sum").arg(template.join(name)).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok((name.to_owned(), String::from_utf8(output.stdout)?))
    };
    ["memory", "state", "disk.qcow2", "manifest.json"].into_iter().map(digest).collect()
}

/// Runs a builder, and checks how its machine came to be.
fn run(rig: &Rig, builder: &str, how: &str) -> Result<Build> {
    let build = rig.master.run_within(builder, WITH_GUESTS)?;
    build.succeeded()?;
    assert_eq!(build.property("vm_how"), how, "{}", build.story());
    Ok(build)
}

/// The same, and what its machine's disk went through before.
fn found(rig: &Rig, builder: &str, how: &str, before: &[&str]) -> Result<Build> {
    let build = run(rig, builder, how)?;
    assert_eq!(build.step("history")?.stdio().stdout.lines().collect::<Vec<_>>(), before, "{}", build.story());
    Ok(build)
}

#[test]
fn clones_have_nothing_in_common_but_their_beginning() -> Result<()> {
    let look = "cat ~/file /tmp/file 2>/dev/null; cat /proc/sys/kernel/random/boot_id";
    let master = Master::plan()
        .builder(
            "pair",
            &format!(
                r#"steps.StartVM(image="plain"),
                   steps.VMShellCommand(command="echo one | tee ~/file > /tmp/file; sync"),
                   steps.StartVM(image="plain", vm="two"),
                   steps.VMShellCommand(name="look", vm="two", command="{look}", logEnviron=False),
                   steps.VMShellCommand(vm="two", command="echo two > ~/file"),
                   steps.RebootVM(vm="two"),
                   steps.VMShellCommand(name="again", vm="two", command="{look}", logEnviron=False),
                   steps.StopVM(), steps.StopVM(vm="two"),"#
            ),
        )
        .builder("more", r#"steps.StartVM(image="plain", memory=400), steps.StopVM(),"#)
        .builder("one", r#"steps.StartVM(image="plain"), steps.StopVM(),"#)
        .start()?;
    let mut rig = Rig::of(master, two_slots(Guest::plain()?))?;
    let directory = template(&rig)?;
    let before = digests(&directory)?;
    let build = run(&rig, "pair", "clone")?;
    contains_all(&build.step("start-vm")?.stdio().text(), &["cloned from the template of generation 1"])?;
    let [look, again] = ["look", "again"].map(|name| build.step(name).map(|step| step.stdio().stdout));
    let (look, again) = (look?, again?);
    ensure!(look.lines().count() == 1, "the second clone found what the first one wrote: {look}");
    let file = again.strip_prefix("two\n").with_context(|| format!("its disk did not outlast the reboot: {again}"))?;
    ensure!(file != look, "the clone did not restart: {}", build.story());
    assert_eq!(digests(&directory)?, before);

    // What is not like the template boots.
    let build = run(&rig, "more", "boot")?;
    contains_all(&build.step("start-vm")?.stdio().text(), &["booting, as it is to have 1 cpus and 400 MiB"])?;

    // It outlives the worker.
    rig.worker.stop()?;
    rig.worker = rig.host.attach(&rig.master)?;
    run(&rig, "one", "clone")?;
    assert_eq!((template(&rig)?, digests(&directory)?), (directory, before));
    ensure!(rig.worker.transcript().lines(|line| line.contains("making a template")).is_empty(), "it was made anew");
    rig.host.slots_clean()?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn template_follows_its_generation_and_stays_while_a_clone_lives() -> Result<()> {
    let plan = history(history(Master::plan(), "save", "save='plain'"), "look", "");
    let held =
        r#"steps.StartVM(image="plain"), steps.VMShellCommand(command="false"), steps.StopVM(keep_on_failure=600),"#;
    let rig = Rig::of(plan.builder("hold", held).start()?, two_slots(Guest::plain()?))?;
    let first = template(&rig)?;
    // A clone's disk lies on its template's, and what is saved does not.
    assert_eq!(found(&rig, "save", "clone", &[])?.property("vm_saved_generation").as_u64(), Some(2));
    let second = template(&rig)?;
    ensure!(first != second, "the template is the old one");
    contains_all(
        &rig.worker.transcript().find("a template is not used any more", SOON)?,
        &["generation (was 1, is 2)", "disk (was "],
    )?;
    let build = found(&rig, "look", "clone", &["save"])?;
    assert_eq!(build.property("vm_generation").as_u64(), Some(2));
    let disk = rig.host.state_dir().join("generations/plain/2/disk.qcow2");
    let chain = Command::new("qemu-img").args(["info", "--backing-chain"]).arg(&disk).output()?;
    let chain = String::from_utf8(chain.stdout)?;
    ensure!(!chain.contains("templates"), "what was saved stands on a template: {chain}");

    // A clone of the second lives on, and so does that.
    let held = rig.master.run_within("hold", WITH_GUESTS)?;
    assert_eq!((held.results, held.property("vm_how")), (Some(Results::Failure), &"clone".into()), "{}", held.story());
    ask(&rig, &["image", "rollback", "plain"])?;
    ask(&rig, &["image", "template", "plain"])?;
    let listed = ask(&rig, &["image", "templates", "plain"])?;
    contains_all(&listed, &["plain: ready, template ", " of generation 1", "plain: not used any more, ", "1 clone"])?;
    ensure!(second.exists(), "the template of a clone that lives is gone: {listed}");
    found(&rig, "look", "clone", &[])?;
    ask(&rig, &["release", "0"])?;
    rig.host
        .becomes("the old template is gone", |_| Ok(second.exists().then(|| listed.clone()).into_iter().collect()))?;
    rig.host.slots_clean()?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn clone_that_fails_is_booted_and_its_template_made_anew() -> Result<()> {
    let steps = r#"steps.StartVM(image="plain", console_log="console"), steps.StopVM(),"#;
    let rig = Rig::of(Master::building(steps)?, two_slots(Guest::plain()?))?;
    let check = |file: &str, kept: usize, says: &str| -> Result<()> {
        let bad = template(&rig)?;
        let path = bad.join(file);
        let (beginning, size) = (fs::read(&path)?[..kept].to_vec(), fs::metadata(&path)?.len());
        // As long as it was, which is all that could be looked at beforehand.
        fs::remove_file(&path)?;
        fs::write(&path, beginning)?;
        fs::File::options().write(true).open(&path)?.set_len(size)?;
        let build = run(&rig, "build", "boot")?;
        let step = build.step("start-vm")?;
        contains_all(&step.stdio().text(), &["booting, as its clone failed: ", says])?;
        // What the machine that is booted instead prints is seen as that of any other.
        contains_all(&step.log("console").text(), &["initrd: mounting /dev/vda"])?;
        let good = template(&rig)?;
        ensure!(!good.join("bad").exists(), "the bad one is used");
        run(&rig, "build", "clone")?;
        Ok(())
    };
    check("state", 0, "Not a migration stream")?;
    // What QEMU itself looks at is there, and nothing of the guest.
    check("memory", 1 << 20, "the guest restarted instead of going on")?;
    rig.worker.transcript().find("a clone failed, and its template is not used any more", SOON)?;
    rig.host.slots_clean()?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn template_in_the_making_is_in_nobodys_way() -> Result<()> {
    let master = Master::building(r#"steps.StartVM(image="plain"), steps.StopVM(),"#)?;
    let guest = templated()?.with("warm_up", "sleep 1000").with("boot_timeout", 300);
    let mut rig = Rig::of(master, |host| {
        host.image("plain", guest);
        Ok(())
    })?;
    rig.host.machines_become(1)?;
    let builder = rig.host.machine()?;
    let build = run(&rig, "build", "boot")?;
    contains_all(&build.step("start-vm")?.stdio().text(), &["booting, as its template is being built"])?;
    contains_all(&ask(&rig, &["image", "templates"])?, &["plain: being made for "])?;

    rig.host.kill(&builder)?;
    let line = rig.worker.transcript().find("a template could not be made now", SOON)?;
    contains_all(&line, &["the host is to blame", "qemu exited", "signal 9"])?;

    // The next try is under way when the worker stops.
    let asking = rig.host.begin(&["image", "template", "plain"])?;
    rig.host.machines_become(1)?;
    ensure!(!templates(&rig)?.is_empty(), "nothing is being made");
    let status = rig.worker.stop()?;
    assert_eq!(status.code(), Some(0));
    drop(asking);
    assert_eq!(templates(&rig)?, Vec::<PathBuf>::new());
    rig.host.nothing_left()
}

#[test]
#[ignore = "long"]
fn template_in_the_making_gives_a_build_its_memory() -> Result<()> {
    let master = Master::building(r#"steps.StartVM(image="plain"), steps.StopVM(),"#)?;
    let guest = templated()?.with("memory_mib", 256).with("warm_up", "sleep 1000").with("boot_timeout", 300);
    let mut rig = Rig::of(master, |host| {
        host.image("plain", guest);
        // One machine, and what QEMU takes.
        host.set("pool.memory_budget_mib", 400);
        Ok(())
    })?;
    rig.host.machines_become(1)?;
    run(&rig, "build", "boot")?;
    rig.worker.transcript().find("a build waits for memory, and goes first", SOON)?;
    rig.worker.stop()?;
    rig.host.nothing_left()
}

#[test]
#[ignore = "long"]
fn template_that_can_not_be_made_says_why_and_builds_boot() -> Result<()> {
    let master = Master::building(r#"steps.StartVM(image="plain"), steps.StopVM(),"#)?;
    let rig = Rig::of(master, two_slots(templated()?.with("warm_up", "echo no such tool >&2; exit 3")))?;
    let Output { status, stderr, .. } = rig.host.ask(&["image", "template", "plain"])?;
    assert_eq!(status.code(), Some(1));
    contains_all(&String::from_utf8_lossy(&stderr), &["image 'plain'", "warm_up", "no such tool"])?;
    contains_all(&ask(&rig, &["image", "templates"])?, &["plain: "])?;
    run(&rig, "build", "boot")?;
    rig.finish()
}
