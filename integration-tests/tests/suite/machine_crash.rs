//! What the next start makes of what is left when a worker, its machines or the whole host went down.
//!
//! The number of moments at which the host goes down can be set, as with
//!
//! ```text
//! KVM_WORKER_TEST_POWER_FAILURES=30 cargo test -p integration-tests power_failure -- --ignored --nocapture
//! ```

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::{
    Build, Guest, KvmHost, Master, Protocol, Results, Rig, Running, SOON, Snapshot, WITH_GUESTS, Worker, contains_all,
    luck, retried, times,
};
use rustix::process::Signal;
use serde_json::json;

/// The variable with the number of power failures.
const POWER_FAILURES: &str = "KVM_WORKER_TEST_POWER_FAILURES";

/// How many there are if it says nothing.
const FEW: usize = 2;

/// A process that has nothing to do with machines. Ends with the value.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Result<Sleeper> {
        Ok(Sleeper(Command::new("sleep").arg("1000").spawn().context("start sleep")?))
    }

    fn runs(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }

    /// When it started, as the kernel counts (proc_pid_stat(5), field 22).
    fn start_time(&self) -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let (_, rest) = stat.rsplit_once(") ").context("the name is in parentheses")?;
        rest.split(' ').nth(22 - 3).and_then(|field| field.parse().ok()).context("there are 22 fields")
    }

    /// Writes a pidfile that names it, perhaps as a process that was started at another time.
    fn write_pidfile(&self, slot: &Path, later: u64) -> Result<()> {
        fs::create_dir_all(slot)?;
        let directory = fs::metadata(slot)?;
        let contents = json!({
            "pid": self.0.id(),
            "start_time": self.start_time()? + later,
            "boot_id": fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim(),
            "directory": { "device": directory.dev(), "inode": directory.ino() },
        });
        fs::write(slot.join("qemu.pid"), contents.to_string()).context("write a pidfile")
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Checks that exactly one line of the worker's log has all these parts.
fn says_once(worker: &Worker, parts: &[&str]) -> Result<()> {
    let lines = worker.transcript().lines(|line| parts.iter().all(|part| line.contains(part)));
    ensure!(lines.len() == 1, "not one line with {parts:?} but {lines:#?} in:\n{}", worker.transcript().text());
    Ok(())
}

#[test]
fn only_what_is_provably_left_of_an_earlier_run_is_ended_and_all_of_it_is_told() -> Result<()> {
    let mut host = KvmHost::at("pb://127.0.0.1:1")?;
    host.set("pool.slots", 4);
    host.image("plain", Guest::plain()?.with("template", true));
    let slot = |number: u16| host.state_dir().join(format!("slots/{number}"));
    let [mut ours, mut recycled, mut copied] = [Sleeper::new()?, Sleeper::new()?, Sleeper::new()?];
    ours.write_pidfile(&slot(0), 0)?;
    recycled.write_pidfile(&slot(1), 1)?;
    // The directory of slot 2 was copied from elsewhere, with what is in it.
    copied.write_pidfile(&host.path("elsewhere"), 0)?;
    fs::create_dir_all(slot(2))?;
    fs::rename(host.path("elsewhere/qemu.pid"), slot(2).join("qemu.pid"))?;
    // Slot 3 was being prepared; there is one less than before.
    for number in [3, 9] {
        fs::create_dir_all(slot(number))?;
        fs::write(slot(number).join("overlay.qcow2"), "")?;
    }
    for directory in ["generations/plain/new-0", "generations/plain/gone-2", "templates/plain/new-1"] {
        fs::create_dir_all(host.state_dir().join(directory))?;
    }

    let mut worker = host.start()?;
    worker.transcript().find("not connected", SOON)?;
    ensure!(!ours.runs()?, "a machine of an earlier run is left");
    ensure!(recycled.runs()?, "a process that got the number of a machine was ended");
    ensure!(copied.runs()?, "a process was ended whose pidfile was copied here");
    let pid = |sleeper: &Sleeper| format!("pid={}", sleeper.0.id());
    says_once(&worker, &["slot=0", "ended the qemu of an earlier run", &pid(&ours), "SIGTERM"])?;
    says_once(&worker, &["slot=1", "whose qemu is gone", &pid(&recycled)])?;
    says_once(&worker, &["slot=2", "copied", &pid(&copied)])?;
    says_once(&worker, &["slot=3", "removed the files of an earlier run"])?;
    says_once(&worker, &["slot=9", "removed the files of an earlier run"])?;
    says_once(&worker, &["removed a generation that an earlier run did not finish", "image=plain", "new-0"])?;
    says_once(&worker, &["removed a generation that an earlier run was removing", "image=plain", "gone-2"])?;
    says_once(&worker, &["removed a template that an earlier run did not finish", "image=plain", "new-1"])?;

    // A second one does not take the first one's machines for leftovers, and its own crash changes nothing.
    let (status, said) = host.start_in_vain()?;
    assert_eq!(status.code(), Some(1));
    contains_all(&said, &[&format!("another kvm-worker (process {})", worker.id()), "pool.state_dir"])?;

    worker.kill()?;
    let crashed = format!("pid={}", worker.id());
    let mut worker = host.start()?;
    worker.transcript().find("not connected", SOON)?;
    says_once(&worker, &["WARN", "the last run did not end in order", &crashed])?;
    ensure!(worker.stop()?.success(), "the worker did not end well");
    let mut worker = host.start()?;
    worker.transcript().find("not connected", SOON)?;
    let told = worker.transcript().lines(|line| line.contains("earlier run") || line.contains("last run"));
    ensure!(told.is_empty(), "something is told of a run that ended in order: {told:#?}");
    ensure!(worker.stop()?.success(), "the worker did not end well");
    host.nothing_left()
}

/// Writes a qemu-img that does not come to an end of saving a disk while there is no file `go-on` in the worker's home.
fn slow_qemu_img(host: &mut KvmHost) -> Result<()> {
    let (path, home) = (host.path("qemu-img"), host.home());
    let script = format!(
        "#!/bin/sh\ncd '{}'\nif [ \"$1\" = rebase ] && [ ! -e go-on ]; then touch saving; exec sleep 1000; fi\n\
         exec qemu-img \"$@\"\n",
        home.display()
    );
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    host.set("pool.qemu_img", path.display().to_string());
    Ok(())
}

/// Kills a machine and its worker, which can't notice that the machine has ended.
fn kill_both(rig: &mut Rig, machine: &Running) -> Result<()> {
    rig.worker.signal(Signal::STOP)?;
    rig.host.kill(machine)?;
    rig.worker.kill()
}

#[test]
#[ignore = "long: each moment of a crash takes a machine or two"]
fn whatever_goes_down_at_whatever_moment_the_next_run_serves() -> Result<()> {
    let machine = |image: &str, stop: &str| format!(r#"steps.StartVM(image="{image}"), steps.StopVM({stop}),"#);
    let master = Master::plan()
        .speaking(Protocol::Pb)
        .builder("boots", &machine("plain", ""))
        .builder("saves", &machine("plain", r#"save="plain""#))
        .builder("clones", &machine("cloned", ""))
        .start()?;
    let mut rig = Rig::of(master, |host| {
        slow_qemu_img(host)?;
        host.set("pool.slots", 1);
        host.image("plain", Guest::plain()?.booting());
        host.image("cloned", Guest::plain()?.with("template", true));
        Ok(())
    })?;

    // While a template is made.
    rig.host.machines_become(1)?;
    let maker = rig.host.machine()?;
    rig.worker.kill()?;
    rig.worker = rig.host.attach(&rig.master)?;
    says_once(&rig.worker, &["slot=1", &format!("pid={}", maker.pid)])?;
    says_once(&rig.worker, &["removed a template that an earlier run did not finish", "image=cloned"])?;
    let made = rig.host.ask(&["image", "template", "cloned"])?;
    ensure!(made.status.success(), "no template is made: {made:?}");

    // While a machine boots.
    let request = rig.master.force("boots")?;
    rig.master.printed(request, "qemu started", SOON)?;
    let booting = rig.host.machine()?;
    kill_both(&mut rig, &booting)?;
    rig.worker = rig.host.attach(&rig.master)?;
    says_once(&rig.worker, &["slot=0", "whose qemu is gone", &format!("pid={}", booting.pid)])?;
    says_once(&rig.worker, &["a template of an earlier run is of use"])?;
    retried(&rig.master, request, WITH_GUESTS)?;

    // The machine alone.
    let request = rig.master.force("boots")?;
    rig.master.printed(request, "qemu started", SOON)?;
    rig.host.kill(&rig.host.machine()?)?;
    let build = rig.master.complete(request, WITH_GUESTS)?;
    build.ended(Results::Exception)?;
    contains_all(&build.step("start-vm")?.stdio().text(), &["qemu exited", "signal 9"])?;
    rig.host.slots_clean()?;

    // While a clone is made.
    let request = rig.master.force("clones")?;
    rig.master.printed(request, "cloned from the template", SOON)?;
    rig.worker.kill()?;
    rig.worker = rig.host.attach(&rig.master)?;
    says_once(&rig.worker, &["slot=0", "earlier run"])?;
    retried(&rig.master, request, WITH_GUESTS)?;
    assert_eq!(rig.master.tries(request)?.last().context("a try")?.property("vm_how"), "clone");

    // While a generation is saved.
    let request = rig.master.force("saves")?;
    rig.master.printed(request, "saving its disk", WITH_GUESTS)?;
    rig.host.becomes("a disk is being saved", |host| {
        Ok(if host.home().join("saving").exists() { Vec::new() } else { vec!["qemu-img is not run".to_owned()] })
    })?;
    rig.worker.kill()?;
    fs::write(rig.host.home().join("go-on"), "")?;
    rig.worker = rig.host.attach(&rig.master)?;
    says_once(&rig.worker, &["slot=0", "earlier run"])?;
    says_once(&rig.worker, &["removed a generation that an earlier run did not finish", "image=plain"])?;
    retried(&rig.master, request, WITH_GUESTS)?;
    let build = rig.master.tries(request)?.pop().context("a try")?;
    assert_eq!(build.property("vm_saved_generation"), 2, "{}", build.story());
    rig.finish()
}

/// A machine in which each build adds to a file, from which the number of lines is told.
const HISTORY: &str = r#"
import buildbot_kvm

def history(builder, image, **kwargs):
    step = steps.ShellCommand(name="history", command="wc -l <~/history; echo line >>~/history; sync; sleep 1", logEnviron=False)
    add_builder(c, builder, buildbot_kvm.in_vm([step], image=image, **kwargs))

history("clones", "cloned")
history("persists", "plain", mode="persistent")
history("saves", "living", save="living")
"#;

/// The builders of these.
const BUILDERS: [&str; 3] = ["clones", "persists", "saves"];

/// How many lines a build found.
fn found(build: &Build) -> Result<u64> {
    build.succeeded()?;
    Ok(build.step("history")?.stdio().stdout.trim().parse().unwrap_or(0))
}

#[test]
#[ignore = "long: several power failures, with builds before and after each"]
fn power_failure_at_any_moment_leaves_what_the_next_run_cleans_up_and_serves_from() -> Result<()> {
    let failures = times(POWER_FAILURES, FEW)?;
    let mut rng = luck()?;
    let master = Master::plan().speaking(Protocol::Pb).python(HISTORY).start()?;
    let mut rig = Rig::of(master, |host| {
        host.set("pool.slots", 2);
        host.image("plain", Guest::plain()?.booting());
        host.image("cloned", Guest::plain()?.with("template", true));
        host.image("living", Guest::plain()?.booting().with("keep_generations", 2));
        Ok(())
    })?;
    let mut snapshots = Vec::new();
    for number in 0..failures {
        let requests = BUILDERS.map(|builder| rig.master.force(builder));
        // It is the moment that is to be random; there is no event to wait for.
        thread::sleep(Duration::from_millis(rng.u64(500..12_000)));
        snapshots.push(Snapshot::take(&rig.host, &format!("snapshot-{number}"))?);
        for request in requests {
            let request = request?;
            rig.master.complete(request, WITH_GUESTS)?.succeeded()?;
            ensure!(rig.master.tries(request)?.len() == 1, "a build was interrupted by being looked at");
        }
    }
    ensure!(rig.worker.stop()?.success(), "the worker did not end well");

    for (number, snapshot) in snapshots.iter().enumerate() {
        snapshot.lose_power()?;
        snapshot.put_back(&rig.host)?;
        rig.worker = rig.host.attach(&rig.master)?;
        let told = |parts: &[&str]| {
            says_once(&rig.worker, parts).with_context(|| format!("power failure {number}: see {snapshot:?}"))
        };
        told(&["WARN", "the host went down under the last run"])?;
        for slot in snapshot.entries("slots")? {
            let slot = slot.file_name().context("a name")?.to_string_lossy().into_owned();
            told(&[&format!("slot={slot}"), "removed the files of an earlier run"])?;
        }
        for (directory, what) in [("generations/living", "generation"), ("templates/cloned", "template")] {
            for entry in snapshot.entries(directory)? {
                let name = entry.file_name().context("a name")?.to_string_lossy().into_owned();
                if name.starts_with("new-") || name.starts_with("gone-") {
                    told(&[&format!("removed a {what} that an earlier run"), &name])?;
                }
            }
        }
        // The last one also saves, which the others would for a long time.
        let builders = if number + 1 == failures { &BUILDERS[..] } else { &BUILDERS[..2] };
        for builder in builders {
            let build = rig.master.run_within(builder, WITH_GUESTS)?;
            let lines = found(&build).with_context(|| format!("power failure {number}"))?;
            ensure!(*builder != "clones" || lines == 0, "a clone was used before: {}", build.story());
        }
        let odd = rig.worker.transcript().lines(|line| line.contains("damaged") || line.contains(" ERROR "));
        ensure!(odd.is_empty(), "power failure {number}: {odd:#?}");
        ensure!(rig.worker.stop()?.success(), "the worker did not end well");
        rig.host.nothing_left()?;
    }
    Ok(())
}
