//! What a power failure at some moment leaves of the pool's files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::{KvmHost, Running};

/// How long processes may take to stand still.
const STOPPING: Duration = Duration::from_secs(10);

/// The state directory of a host as it was at a moment.
#[derive(Debug)]
pub struct Snapshot {
    directory: PathBuf,
}

impl Snapshot {
    /// Copies the state directory of a host, on which nothing moves meanwhile, so that the files go together.
    pub fn take(host: &KvmHost, name: &str) -> Result<Snapshot> {
        let directory = host.path(name);
        let stopped = Stopped::all(host)?;
        copy(&host.state_dir(), &directory)?;
        drop(stopped);
        Ok(Snapshot { directory })
    }

    /// A path in it.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.directory.join(relative)
    }

    /// Makes it what a host would find after it was switched off and on again, with nothing in the files that nobody waits
    /// for to be on the disk.
    pub fn lose_power(&self) -> Result<()> {
        let lock = self.path("lock");
        let record = fs::read_to_string(&lock).context("read who had the state directory")?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read this boot's name")?;
        ensure!(record.contains(boot_id.trim()), "the boot is not in {record:?}");
        fs::write(&lock, record.replace(boot_id.trim(), "another")).context("change the boot")?;
        for slot in self.entries("slots")? {
            let pidfile = slot.join("qemu.pid");
            if pidfile.exists() {
                fs::write(&pidfile, "").context("empty a pidfile")?;
            }
        }
        Ok(())
    }

    /// Puts it where the host's state directory is.
    pub fn put_back(&self, host: &KvmHost) -> Result<()> {
        fs::remove_dir_all(host.state_dir()).context("remove the state directory")?;
        copy(&self.directory, &host.state_dir())
    }

    /// What is in a directory of it, which may be missing.
    pub fn entries(&self, relative: &str) -> Result<Vec<PathBuf>> {
        let directory = self.path(relative);
        if !directory.exists() {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
        entries.map(|entry| Ok(entry?.path())).collect()
    }
}

/// Processes that go on when this is dropped.
struct Stopped<'a> {
    host: &'a KvmHost,
    processes: Vec<Running>,
}

impl<'a> Stopped<'a> {
    /// Stops all processes of a host, those too that others start meanwhile.
    fn all(host: &'a KvmHost) -> Result<Self> {
        let mut stopped = Stopped { host, processes: Vec::new() };
        let deadline = Instant::now() + STOPPING;
        loop {
            let moving: Vec<_> = host.running()?.into_iter().filter(|process| !process.stands_still()).collect();
            if moving.is_empty() {
                return Ok(stopped);
            }
            ensure!(Instant::now() < deadline, "these do not stop within {STOPPING:?}: {moving:#?}");
            for process in moving {
                // It may just have ended.
                if host.signal(&process, Signal::STOP).is_ok() {
                    stopped.processes.push(process);
                }
            }
            // A thread stops when it leaves the kernel. Nothing tells when that is.
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        for process in &self.processes {
            // One that was stopped can't end by itself; one that was killed needs nothing.
            let _ = self.host.signal(process, Signal::CONT);
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.args(["--archive", "--reflink=auto", "--sparse=always", "--no-target-directory"]).arg(from).arg(to);
    let done = command.output().context("run cp")?;
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}
