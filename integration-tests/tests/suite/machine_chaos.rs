//! Builds over both protocols while random signals come: to the worker those that a person or systemd sends it, to the worker and
//! to machines those that nobody should send. All builds succeed at last, and nothing is left.
//!
//! The short form is part of `./test`. A long one is
//!
//! ```text
//! KVM_WORKER_TEST_SIGNALS=100 cargo test -p integration-tests machine_chaos -- --ignored --nocapture --test-threads=1
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use integration_tests::{
    Build, Guest, Master, Protocol, Request, Rig, SOON, WITH_GUESTS, luck, over_both_protocols, succeeded_at_last,
    times,
};
use rustix::process::Signal;

/// The variable with the number of signals over each protocol.
const SIGNALS: &str = "KVM_WORKER_TEST_SIGNALS";

/// How many there are if it says nothing.
const FEW: usize = 8;

const SLOTS: u16 = 3;

/// How many generations an image keeps.
const GENERATIONS: usize = 2;

/// How many builds there are at a time: one more than there are slots.
const BUILDS: usize = 4;

/// The builders, by turns.
const BUILDERS: [&str; 5] = ["clones", "boots", "persists", "saves", "host"];

/// What builds do. That of `host` has a grandchild, which is not to outlive it either.
const STEPS: &str = r#"
import buildbot_kvm
from buildbot.process.results import RETRY

# Whoever kills a machine as it boots or is saved makes it look like an image that is no good. Here it is the killing.
for reason in ("vm_boot_failed", "vm_save_failed"):
    buildbot_kvm.RESULTS[reason] = RETRY

def chaotic(image, **kwargs):
    work = "! ls ~ | grep mark-" if "mode" not in kwargs else "true"
    step = steps.ShellCommand(name="work", command=f"{work} && touch ~/mark-1 && sleep 1 && echo done", logEnviron=False)
    return buildbot_kvm.in_vm([step], image=image, max_retries=1000, **kwargs)

add_builder(c, "clones", chaotic("cloned"))
add_builder(c, "boots", chaotic("plain"))
add_builder(c, "persists", chaotic("plain", mode="persistent"))
# What is saved is found again.
add_builder(c, "saves", buildbot_kvm.in_vm(
    [steps.ShellCommand(name="work", command="date >>~/saved && echo done", logEnviron=False)],
    image="living", save="living", max_retries=1000))
add_builder(c, "host", [steps.ShellCommand(name="work", command="sleep 3 & wait; echo done", logEnviron=False)])

c["workers"] = [worker.KVMWorker(each.name, each.password, max_builds=4, poll_interval=2) for each in c["workers"]]
"#;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    /// A machine is killed.
    MachineKilled,
    /// A machine stands still for a moment.
    MachineHalted,
    /// The worker is killed.
    Killed,
    /// The worker stands still for a moment.
    Halted,
    /// The worker is told to stop, as by systemd.
    Stopped,
    /// The same by a person at a terminal, who does not wait.
    StoppedTwice,
    /// The worker is to end after the builds that run.
    Drained,
    /// The worker gives out no machines for a moment.
    Paused,
    /// The worker reads its configuration again, which has another number of slots.
    Reloaded,
}

/// Each as often as it should come, relative to the others.
const BLOWS: [Blow; 16] = [
    Blow::MachineKilled,
    Blow::MachineKilled,
    Blow::MachineKilled,
    Blow::MachineHalted,
    Blow::MachineHalted,
    Blow::Halted,
    Blow::Halted,
    Blow::Killed,
    Blow::Killed,
    Blow::Stopped,
    Blow::StoppedTwice,
    Blow::Drained,
    Blow::Paused,
    Blow::Paused,
    Blow::Reloaded,
    Blow::Reloaded,
];

over_both_protocols! {
    #[ignore = "long: two minutes of builds under signals"]
    every_build_succeeds_at_last_whatever_signals_come
}

fn every_build_succeeds_at_last_whatever_signals_come(protocol: Protocol) -> Result<()> {
    let signals = times(SIGNALS, FEW)?;
    let rng = luck()?;
    let rig = Rig::of(Master::plan().speaking(protocol).python(STEPS).start()?, |host| {
        host.set("pool.slots", i64::from(SLOTS));
        host.image("plain", Guest::plain()?.booting());
        host.image("cloned", Guest::plain()?.with("template", true));
        host.image("living", Guest::plain()?.booting().with("keep_generations", i64::try_from(GENERATIONS)?));
        Ok(())
    })?;
    let mut chaos = Chaos { rig, rng, deck: Vec::new(), blows: BTreeMap::new(), builds: Builds::default() };
    for _ in 0..signals {
        chaos.builds.keep_up(&chaos.rig.master)?;
        chaos.blow_once()?;
    }
    let Chaos { mut rig, blows, mut builds, .. } = chaos;
    builds.complete(&rig.master)?;
    eprintln!("{blows:?}; {} builds, {} tried again", builds.succeeded, builds.retried);

    // Nothing is counted as in use any more.
    rig.host.machines_become(0)?;
    rig.host.becomes("nothing stands on a template or generation", |host| {
        let mut users = Vec::new();
        for what in ["templates", "generations"] {
            let listed = host.ask(&["image", what])?;
            ensure!(listed.status.success(), "{listed:?}");
            let text = String::from_utf8_lossy(&listed.stdout).into_owned();
            let used = |line: &&str| [" clone", " machine", "not used any more"].iter().any(|word| line.contains(word));
            users.extend(text.lines().filter(used).map(str::to_owned));
        }
        Ok(users)
    })?;
    rig.nothing_but_the_worker_runs()?;
    ended(rig.worker.stop()?)?;
    rig.host.nothing_left()?;
    for image in ["plain", "cloned", "living"] {
        rig.host.keeps(image, if image == "living" { GENERATIONS } else { 0 })?;
    }
    Ok(())
}

/// Checks that a worker ended as one that was told to.
fn ended(status: ExitStatus) -> Result<()> {
    ensure!(status.code() == Some(0), "the worker ended with {status}");
    Ok(())
}

/// The builds that were asked for.
#[derive(Default)]
struct Builds {
    asked: usize,
    running: VecDeque<Request>,
    succeeded: usize,
    retried: usize,
}

impl Builds {
    /// Looks at those that are complete, and asks for others in their place.
    fn keep_up(&mut self, master: &Master) -> Result<()> {
        for request in std::mem::take(&mut self.running) {
            if master.is_complete(request)? {
                self.look_at(&succeeded_at_last(master, request, SOON)?)?;
            } else {
                self.running.push_back(request);
            }
        }
        while self.running.len() < BUILDS {
            self.running.push_back(master.force(BUILDERS[self.asked % BUILDERS.len()])?);
            self.asked += 1;
        }
        Ok(())
    }

    /// Waits for all of them, now that no more signals come.
    fn complete(&mut self, master: &Master) -> Result<()> {
        for request in std::mem::take(&mut self.running) {
            self.look_at(&succeeded_at_last(master, request, WITH_GUESTS)?)?;
        }
        Ok(())
    }

    fn look_at(&mut self, tries: &[Build]) -> Result<()> {
        let build = tries.last().context("a request without a build")?;
        ensure!(build.step("work")?.stdio().stdout.contains("done"), "it did nothing: {}", build.story());
        self.succeeded += 1;
        self.retried += tries.len() - 1;
        Ok(())
    }
}

struct Chaos {
    rig: Rig,
    rng: Rng,
    /// What is going to happen, the last one first.
    deck: Vec<Blow>,
    /// What has happened, and how often.
    blows: BTreeMap<Blow, usize>,
    builds: Builds,
}

impl Chaos {
    /// Does something to a process at a random moment.
    fn blow_once(&mut self) -> Result<()> {
        if self.deck.is_empty() {
            self.deck.extend(BLOWS);
            self.rng.shuffle(&mut self.deck);
        }
        let blow = self.deck.pop().context("the deck is full")?;
        let ends_all = matches!(blow, Blow::Killed | Blow::Stopped | Blow::StoppedTwice | Blow::Drained);
        // It is the moment that is to be random; there is no event to wait for. Builds come to something in between.
        self.wait(if ends_all { 3000..12_000 } else { 300..4000 });
        eprintln!("{blow:?}");
        *self.blows.entry(blow).or_default() += 1;
        match blow {
            Blow::MachineKilled | Blow::MachineHalted => {
                let machines = self.rig.host.machines()?;
                let Some(machine) = self.rng.choice(machines.iter()) else { return Ok(()) };
                // Each may have ended by itself just now.
                if blow == Blow::MachineKilled {
                    let _ = self.rig.host.kill(machine);
                } else if self.rig.host.signal(machine, Signal::STOP).is_ok() {
                    self.wait(200..3000);
                    let _ = self.rig.host.signal(machine, Signal::CONT);
                }
            }
            Blow::Halted => {
                self.rig.worker.signal(Signal::STOP)?;
                self.wait(200..3000);
                self.rig.worker.signal(Signal::CONT)?;
            }
            Blow::Paused => {
                self.rig.worker.signal(Signal::USR2)?;
                self.wait(200..3000);
                self.rig.worker.signal(Signal::USR2)?;
            }
            Blow::Reloaded => {
                self.rig.host.set("pool.slots", self.rng.i64(i64::from(SLOTS) - 1..=i64::from(SLOTS)));
                self.rig.host.write_configuration()?;
                self.rig.worker.signal(Signal::HUP)?;
            }
            Blow::Drained => {
                self.rig.worker.signal(Signal::USR1)?;
                // The builds that run end first.
                ended(self.rig.worker.wait(WITH_GUESTS)?)?;
                self.rig.worker = self.rig.host.attach(&self.rig.master)?;
            }
            Blow::Killed | Blow::Stopped | Blow::StoppedTwice => self.end_worker(blow)?,
        }
        Ok(())
    }

    /// Ends the worker under its builds, and starts it again.
    fn end_worker(&mut self, blow: Blow) -> Result<()> {
        let Rig { worker, host, master } = &mut self.rig;
        // A 4.3.0 master never ends a build whose worker is lost while the build is prepared: it wants to put that worker
        // in quarantine, and there is none.
        master.pause(Master::WORKER, SOON)?;
        let signal = match blow {
            Blow::Killed => Signal::KILL,
            _ if self.rng.bool() => Signal::TERM,
            _ => Signal::INT,
        };
        worker.signal(signal)?;
        if blow == Blow::StoppedTwice {
            // It may have ended already.
            let _ = worker.signal(signal);
        }
        let status = worker.wait(SOON)?;
        if blow == Blow::Killed {
            ensure!(status.signal() == Some(Signal::KILL.as_raw()), "a worker that was killed ended with {status}");
        } else {
            ended(status)?;
        }
        *worker = host.attach(master)?;
        master.unpause(Master::WORKER)
    }

    fn wait(&mut self, milliseconds: std::ops::Range<u64>) {
        thread::sleep(Duration::from_millis(self.rng.u64(milliseconds)));
    }
}
