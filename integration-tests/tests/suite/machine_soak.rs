//! Builds through four slots, by every way to a machine, while machines, the one a template is made of, and the worker itself
//! are killed: no build is given a used machine, all end well, and nothing is left.
//!
//! The short form is part of `./test`. The long one, of some twenty minutes:
//!
//! ```text
//! KVM_WORKER_TEST_BUILDS=300 cargo test -p integration-tests machine_soak -- --ignored --nocapture
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use fastrand::Rng;
use integration_tests::{
    Build, Guest, KvmHost, Master, Protocol, Request, Rig, Running, SOON, WITH_GUESTS, Worker, luck, succeeded_at_last,
    times,
};

/// The variable with the number of builds.
const BUILDS: &str = "KVM_WORKER_TEST_BUILDS";

/// How many there are if it says nothing.
const FEW_BUILDS: usize = 16;

const SLOTS: u16 = 4;

/// How many machines are kept ready: one more than there is place for beside the builds, so that they give way, too.
const WARM: u16 = 2;

/// How many generations an image keeps, beside those that machines stand on.
const GENERATIONS: usize = 2;

/// The builders, how many builds of a hundred each gets, and the ways to a machine that it may have.
const BUILDERS: [(&str, u32, &[&str]); 8] = [
    ("clones", 18, &["clone", "boot"]),
    ("clones-too", 18, &["clone", "boot"]),
    ("warm", 18, &["warm", "clone", "boot"]),
    ("warm-too", 18, &["warm", "clone", "boot"]),
    ("boots", 10, &["boot"]),
    // More memory than the template has.
    ("larger", 6, &["boot"]),
    ("persists", 6, &["boot"]),
    // Makes the next generation of the image of `warm`, and so an end to its template.
    ("saves", 6, &["warm", "clone", "boot"]),
];

/// What a build does in its machine: looks for what others left on disk and in memory, and leaves its own.
const STEPS: &str = r#"
import buildbot_kvm
from buildbot.process.results import RETRY

# Whoever kills a machine as it boots or is saved makes it look like an image that is no good. Here it is the killing.
for reason in ("vm_boot_failed", "vm_save_failed"):
    buildbot_kvm.RESULTS[reason] = RETRY

NAME = util.Interpolate("%(prop:buildername)s-%(prop:buildnumber)s")

def shell(name, command):
    return steps.ShellCommand(name=name, command=command, env={"NAME": NAME}, logEnviron=False, haltOnFailure=True)

def soaked(image, disk="~", **kwargs):
    return buildbot_kvm.in_vm([
        shell("random", "head -c 16 /dev/urandom | od -An -tx1"),
        # What is found is printed.
        shell("look", f"! ls {disk} /dev/shm | grep mark-"),
        shell("mark", "touch ~/mark-$NAME /dev/shm/mark-$NAME"),
        shell("work", "head -c 2M /dev/urandom | sha256sum >/dev/null; sleep 1; ls -d /dev/shm/mark-*"),
        # What is saved is new to all that come after it.
        *([shell("unmark", "rm ~/mark-$NAME")] if "save" in kwargs else []),
    ], image=image, max_retries=1000, **kwargs)

FACTORIES = {
    "clones": soaked("cloned"),
    "clones-too": soaked("cloned"),
    "warm": soaked("warm"),
    "warm-too": soaked("warm"),
    "boots": soaked("plain"),
    "larger": soaked("cloned", memory=400),
    "persists": soaked("plain", disk="", mode="persistent"),
    "saves": soaked("warm", save="warm"),
}

# One slot is left for machines that are kept ready.
c["workers"] = [worker.KVMWorker(each.name, each.password, max_builds=3, poll_interval=2) for each in c["workers"]]
"#;

#[test]
#[ignore = "long: two minutes of builds while machines and workers are killed"]
fn builds_get_unused_machines_whatever_is_killed_around_them() -> Result<()> {
    let builds = times(BUILDS, FEW_BUILDS)?;
    let mut rng = luck()?;
    let mut plan = Master::plan().speaking(Protocol::Pb).python(STEPS);
    for (builder, ..) in BUILDERS {
        plan = plan.python(&format!("add_builder(c, {builder:?}, FACTORIES[{builder:?}])"));
    }
    let mut rig = Rig::of(plan.start()?, |host| {
        host.set("pool.slots", i64::from(SLOTS));
        host.set("worker.host_commands", false);
        // Four machines are more than this host's processors can do, and others may be at work.
        host.set("pool.warm_max_load", 1000.0);
        host.image("plain", Guest::plain()?.booting());
        host.image("cloned", Guest::plain()?.with("template", true));
        let warm = Guest::plain()?.with("template", true).with("warm", i64::from(WARM));
        host.image("warm", warm.with("keep_generations", i64::try_from(GENERATIONS)?));
        Ok(())
    })?;
    let mut requests = Vec::new();
    for build in 0..builds {
        // Each at least once.
        let builder = BUILDERS.get(build).map_or_else(|| draw(&mut rng), |(builder, ..)| *builder);
        requests.push((builder, rig.master.force(builder)?));
    }

    let done = AtomicUsize::new(0);
    let (over, is_over) = mpsc::channel();
    let (seen, killed) = thread::scope(|scope| {
        let Rig { worker, host, master } = &mut rig;
        let (host, master) = (&*host, &*master);
        let mut killer = Killer { host, master, worker, done: &done, builds, rng, killed: Killed::default() };
        let killer = scope.spawn(move || killer.go_on(&is_over).map(|()| killer.killed));
        let seen = watch(master, &requests, &done);
        drop(over);
        let killed = killer.join().map_err(|_| anyhow!("the killer panicked"))?;
        anyhow::Ok((seen?, killed?))
    })?;
    eprintln!("{:?}, {} tried again; {killed:?}", seen.how, seen.retried);
    ensure!(killed.machines > 0 && killed.workers > 0 && killed.template_makers > 0, "not all was killed: {killed:?}");
    ensure!(seen.how.contains_key("boot"), "no build had a machine that booted: {:?}", seen.how);
    for (image, builder, how) in [("cloned", "clones", "clone"), ("warm", "warm", "warm")] {
        comes_back(&rig, image, builder, how)?;
    }

    rig.host.becomes("no machine runs but those kept ready", |host| {
        let machines = host.machines()?;
        let wrong = machines.len() > usize::from(WARM);
        Ok(machines.iter().filter(|_| wrong).map(|machine| format!("{machine:?}")).collect())
    })?;
    let status = rig.worker.stop()?;
    ensure!(status.code() == Some(0), "the worker ended with {status}");
    rig.host.nothing_left()?;
    rig.host.keeps("cloned", 0)?;
    rig.host.keeps("warm", GENERATIONS)
}

/// Checks that a builder gets its machines in the way that its image has, now that nothing is killed any more.
fn comes_back(rig: &Rig, image: &str, builder: &str, how: &str) -> Result<()> {
    let made = rig.host.ask(&["image", "template", image])?;
    ensure!(made.status.success(), "no template of {image} is made: {}", String::from_utf8_lossy(&made.stderr));
    let mut hows = Vec::new();
    // The first ones may be quicker than the machine that is to be ready for them.
    while hows.len() < 5 {
        let build = rig.master.run_within(builder, WITH_GUESTS)?;
        build.succeeded()?;
        if build.property("vm_how") == how {
            return Ok(());
        }
        hows.push(build.property("vm_how").clone());
    }
    Err(anyhow!("the machines of {builder} are not made by {how} but by {hows:?}"))
}

/// One of the builders, by their shares.
fn draw(rng: &mut Rng) -> &'static str {
    let mut point = rng.u32(0..BUILDERS.iter().map(|(_, share, _)| share).sum());
    for (builder, share, _) in BUILDERS {
        if point < share {
            return builder;
        }
        point -= share;
    }
    unreachable!("the point is below the sum of the shares")
}

/// What the builds had.
#[derive(Debug, Default)]
struct Seen {
    /// How many builds that ended well had their machine by each way.
    how: BTreeMap<String, usize>,
    /// How many builds were tried again.
    retried: usize,
    /// The random bytes of all machines.
    random: BTreeSet<String>,
}

/// Waits for the end of all builds and checks what they saw.
fn watch(master: &Master, requests: &[(&str, Request)], done: &AtomicUsize) -> Result<Seen> {
    let mut seen = Seen::default();
    for (builder, request) in requests {
        // The last one of a builder waits for all others of it.
        let all = WITH_GUESTS * u32::try_from(requests.len())?;
        let tries = succeeded_at_last(master, *request, all)?;
        for build in &tries {
            seen.look_at(build)?;
        }
        let (last, earlier) = tries.split_last().context("a request without a build")?;
        seen.retried += earlier.len();
        let how = last.property("vm_how").as_str().context("the build has no property vm_how")?.to_owned();
        let ways = BUILDERS.iter().find(|(name, ..)| name == builder).map_or(&[][..], |(.., ways)| ways);
        ensure!(ways.contains(&how.as_str()), "a build of {builder} had a machine by {how}: {}", last.story());
        *seen.how.entry(how).or_default() += 1;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(seen)
}

impl Seen {
    /// Checks a build, one that was cut off too.
    fn look_at(&mut self, build: &Build) -> Result<()> {
        let printed = |step: &str| build.step(step).map(|step| step.stdio().stdout).unwrap_or_default();
        let found = printed("look");
        ensure!(found.is_empty(), "a machine was used before, by {found}: {}", build.story());
        let marks = printed("work");
        ensure!(marks.lines().count() <= 1, "a machine has two builds: {}", build.story());
        let random = printed("random");
        // Cut off, it may be anything.
        if random.split_whitespace().count() == 16 {
            ensure!(self.random.insert(random), "two machines had the same random bytes: {}", build.story());
        }
        Ok(())
    }
}

/// How often what was killed.
#[derive(Debug, Default, Clone)]
struct Killed {
    machines: usize,
    template_makers: usize,
    workers: usize,
}

/// Kills processes at random moments.
struct Killer<'a> {
    host: &'a KvmHost,
    master: &'a Master,
    worker: &'a mut Worker,
    done: &'a AtomicUsize,
    builds: usize,
    rng: Rng,
    killed: Killed,
}

impl Killer<'_> {
    /// Goes on until the builds are over.
    fn go_on(&mut self, over: &Receiver<()>) -> Result<()> {
        loop {
            // It is the moment that is to be random; there is no event to wait for.
            let pause = Duration::from_millis(self.rng.u64(500..5000));
            match over.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => self.kill_once()?,
                _ => return Ok(()),
            }
        }
    }

    fn kill_once(&mut self) -> Result<()> {
        let maker = format!("tcp:127.0.0.1:{}-", self.host.ssh_port(SLOTS));
        let (makers, machines): (Vec<_>, Vec<_>) =
            self.host.machines()?.into_iter().partition(|machine| machine.command.contains(&maker));
        let done = self.done.load(Ordering::Relaxed);
        // One of each in a short run, too, and early: of builds that run at the same time many may end at once.
        let due = |killed: usize, quarters: usize| killed == 0 && done * 4 >= self.builds * quarters;
        // One in so many builds, as each is work for them to do again.
        let may = |killed: usize, builds: usize| killed * builds <= done;
        let Killed { machines: some, template_makers: makers_killed, workers } = self.killed;
        let chance = self.rng.u32(0..100);
        if let (Some(maker), true) = (makers.first(), may(makers_killed, 10) && (makers_killed == 0 || chance < 10)) {
            self.killed.template_makers += usize::from(self.kill(maker));
        } else if may(workers, 20) && (due(workers, 1) || chance < 4) {
            // A 4.3.0 master never ends a build whose worker is lost while the build is prepared: it wants to put that worker
            // in quarantine, and there is none.
            self.master.pause(Master::WORKER, SOON)?;
            self.worker.kill()?;
            self.killed.workers += 1;
            *self.worker = self.host.attach(self.master)?;
            self.master.unpause(Master::WORKER)?;
        } else if may(some, 4) && (due(some, 0) || chance < 40) {
            // One that runs alone is killed no more often than one of many.
            if let Some(machine) = machines.get(self.rng.usize(..usize::from(SLOTS))) {
                self.killed.machines += usize::from(self.kill(machine));
            }
        }
        Ok(())
    }

    /// Kills a process, unless it ended by itself just now.
    fn kill(&self, process: &Running) -> bool {
        self.host.kill(process).is_ok()
    }
}
