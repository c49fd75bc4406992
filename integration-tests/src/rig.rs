//! A master, a host and its worker.

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::{Build, Guest, KvmHost, Master, Protocol, Running, SOON, WITH_GUESTS, Worker};

/// A step that waits until [`Rig::open`] lets its builder go on.
pub const GATE: &str = r#"steps.ShellCommand(name="gate", command="until test -e ../go; do sleep 0.2; done"),"#;

/// What most tests need: a master whose builder is called `build`, and a worker that is connected to it.
#[derive(Debug)]
pub struct Rig {
    /// The worker's process; before the others, so that it ends first.
    pub worker: Worker,
    /// The worker's host.
    pub host: KvmHost,
    /// The master.
    pub master: Master,
}

impl Rig {
    /// Starts all three, for a builder with these steps.
    pub fn building(steps: &str) -> Result<Rig> {
        Rig::with(steps, |_| Ok(()))
    }

    /// The same over a protocol.
    pub fn building_over(protocol: Protocol, steps: &str) -> Result<Rig> {
        Rig::of(Master::building_over(protocol, steps)?, |_| Ok(()))
    }

    /// The same with a change to the worker's configuration.
    pub fn with(steps: &str, configure: impl FnOnce(&mut KvmHost) -> Result<()>) -> Result<Rig> {
        Rig::of(Master::building(steps)?, configure)
    }

    /// The same with one slot for a machine of the image `plain`.
    pub fn with_machine(steps: &str) -> Result<Rig> {
        Rig::with_guest(steps, Guest::plain()?)
    }

    /// The same with another guest as the image `plain`.
    pub fn with_guest(steps: &str, guest: Guest) -> Result<Rig> {
        Rig::with(steps, |host| {
            host.image("plain", guest);
            Ok(())
        })
    }

    /// The same for a master of one's own.
    pub fn of(master: Master, configure: impl FnOnce(&mut KvmHost) -> Result<()>) -> Result<Rig> {
        let mut host = KvmHost::of(&master)?;
        configure(&mut host)?;
        let worker = host.attach(&master)?;
        Ok(Rig { worker, host, master })
    }

    /// Starts the builder `build` and waits for its end.
    pub fn run(&self) -> Result<Build> {
        self.master.run_within("build", WITH_GUESTS)
    }

    /// Lets builds of a builder pass its [`GATE`], from now on.
    pub fn open(&self, builder: &str) -> Result<()> {
        let directory = self.host.basedir().join(builder);
        // Its first build may not have begun.
        fs::create_dir_all(&directory).and_then(|()| fs::write(directory.join("go"), "")).context("open a gate")
    }

    /// Has builds of a builder wait at its gate again.
    pub fn shut(&self, builder: &str) -> Result<()> {
        fs::remove_file(self.host.basedir().join(builder).join("go")).context("shut a gate")
    }

    /// Has the worker read the configuration as it is set now, by SIGHUP, and waits until it says this.
    pub fn reload(&self, says: &str) -> Result<()> {
        let mark = self.worker.transcript().mark();
        self.host.write_configuration()?;
        self.worker.signal(Signal::HUP)?;
        self.worker.transcript().find_from(mark, says, SOON).map(drop)
    }

    /// Checks that the worker alone runs on its host: all that it started has ended, or does so soon.
    pub fn nothing_but_the_worker_runs(&self) -> Result<()> {
        let worker = i32::try_from(self.worker.id()).context("a process id fits")?;
        self.host.becomes("nothing runs but the worker", |host| {
            let others = host.running()?.into_iter().filter(|process| process.pid != worker);
            Ok(others.map(|process| format!("{process:?}")).collect())
        })
    }

    /// Checks that nothing runs in a builder's directory, or soon does not.
    pub fn nothing_of(&self, builder: &str) -> Result<()> {
        let directory = self.host.basedir().join(builder);
        self.host.becomes("nothing of the builder runs", |_| {
            Ok(Running::under(&directory)?.iter().map(|process| format!("{process:?}")).collect())
        })
    }

    /// Stops the worker, and checks that it ended well, with nothing left behind.
    pub fn finish(mut self) -> Result<()> {
        let status = self.worker.stop()?;
        ensure!(status.code() == Some(0), "the worker ended with {status}");
        self.host.nothing_left()
    }
}
