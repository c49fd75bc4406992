//! A master whose configuration changes at random while builds begin, run, wait and end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fastrand::Rng;
use integration_tests::{
    Guest, Master, MasterPlan, Protocol, Request, Rig, WITH_GUESTS, luck, over_both_protocols, times,
};

/// The variable with the number of reconfigurations over each protocol.
const RECONFIGURATIONS: &str = "KVM_WORKER_TEST_RECONFIGURATIONS";

/// How many there are without it.
const FEW: usize = 12;

/// The most builders at a time.
const MOST: usize = 5;

over_both_protocols! {
    #[ignore = "long: a dozen reconfigurations with builds between them"]
    no_build_is_lost_or_left_whatever_the_configuration_becomes
}

/// What the master has, of which each reconfiguration changes something.
#[derive(Debug, Clone)]
struct Configuration {
    /// What each builder's builds do: for so many tenths of a second, and in a machine or on the host.
    builders: BTreeMap<String, (u32, bool)>,
    max_builds: Option<u32>,
    poll_interval: u32,
    /// How many builders there have been.
    named: u32,
}

impl Configuration {
    fn plan(&self) -> MasterPlan {
        let max_builds = self.max_builds.map_or("None".to_owned(), |most| most.to_string());
        let mut lines = format!(
            "import buildbot_kvm as kvm\n\
             c['workers'] = [worker.KVMWorker(each.name, each.password, max_builds={max_builds}, \
             poll_interval={}) for each in c['workers']]\n",
            self.poll_interval
        );
        for (name, (tenths, in_machine)) in &self.builders {
            let steps = format!("[steps.ShellCommand(command='sleep {}.{}; echo done')]", tenths / 10, tenths % 10);
            let factory = if *in_machine { format!("kvm.in_vm({steps}, image='plain')") } else { steps };
            // Writing to a String does not fail.
            let _ = writeln!(lines, "add_builder(c, '{name}', {factory})");
        }
        Master::plan().python(&lines)
    }

    fn add(&mut self, rng: &mut Rng) {
        self.named += 1;
        self.builders.insert(format!("b{}", self.named), (rng.u32(0..30), rng.bool()));
    }

    /// Gives the name of one of the builders.
    fn any(&self, rng: &mut Rng) -> String {
        let names: Vec<_> = self.builders.keys().collect();
        names[rng.usize(..names.len())].clone()
    }

    /// Changes something.
    fn change(&mut self, rng: &mut Rng) {
        match rng.u32(0..6) {
            0 if self.builders.len() < MOST => self.add(rng),
            1 if self.builders.len() > 1 => drop(self.builders.remove(&self.any(rng))),
            2 => {
                // Under another name it is another builder.
                let gone = self.any(rng);
                self.builders.remove(&gone);
                self.add(rng);
            }
            3 => self.max_builds = rng.bool().then(|| rng.u32(1..4)),
            4 => self.poll_interval = rng.u32(1..4),
            _ => drop(self.builders.insert(self.any(rng), (rng.u32(0..30), rng.bool()))),
        }
    }
}

fn no_build_is_lost_or_left_whatever_the_configuration_becomes(protocol: Protocol) -> Result<()> {
    let count = times(RECONFIGURATIONS, FEW)?;
    let mut rng = luck()?;
    let mut configuration = Configuration { builders: BTreeMap::new(), max_builds: None, poll_interval: 1, named: 0 };
    for _ in 0..3 {
        configuration.add(&mut rng);
    }
    let rig = Rig::of(configuration.plan().speaking(protocol).start()?, |host| {
        host.set("pool.slots", 2);
        host.image("plain", Guest::plain()?);
        Ok(())
    })?;
    // Those of builders that have been there ever since.
    let mut asked: Vec<(String, Request)> = Vec::new();
    for _ in 0..count {
        for name in configuration.builders.keys() {
            if rng.bool() {
                asked.push((name.clone(), rig.master.force(name)?));
            }
        }
        thread::sleep(Duration::from_millis(rng.u64(..1500)));
        configuration.change(&mut rng);
        eprintln!("{configuration:?}");
        rig.master.reconfigure(configuration.plan())?;
        asked.retain(|(name, _)| configuration.builders.contains_key(name));
    }

    for (name, request) in &asked {
        let build = rig.master.complete(*request, WITH_GUESTS)?;
        ensure!(build.succeeded().is_ok(), "a build of {name}, which was always there: {}", build.story());
    }
    // A builder that was removed has none that goes on for ever.
    let deadline = Instant::now() + WITH_GUESTS;
    loop {
        let running = rig.master.running()?;
        if running.is_empty() {
            break;
        }
        let stories: Vec<_> = running.iter().map(integration_tests::Build::story).collect();
        ensure!(Instant::now() < deadline, "builds that do not end: {stories:?}");
        thread::sleep(Duration::from_millis(200));
    }
    // The worker takes builds of all builders as ever.
    for name in configuration.builders.keys() {
        rig.master.run_within(name, WITH_GUESTS)?.succeeded()?;
    }
    rig.host.machines_become(0)?;
    rig.finish()
}
