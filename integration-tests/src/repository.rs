//! A git repository that builds clone, served as `git://` on loopback.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::artefacts::repository;
use crate::scratch::Scratch;
use crate::{Daemon, Ports, SOON};

/// A `git daemon` with one repository, `hello`: the example project of this repository. Ends with the value.
#[derive(Debug)]
pub struct Repository {
    _daemon: Daemon,
    ports: Ports,
    _directory: Scratch,
}

impl Repository {
    /// Makes the repository, with one commit on the branch `main`, and serves it.
    pub fn serve() -> Result<Repository> {
        let directory = Scratch::new("repository")?;
        example(directory.path())?;
        let ports = Ports::reserve()?;
        // `git daemon` would be a process that starts another one, which outlives it.
        let programs = git(directory.path(), &["--exec-path"])?;
        let mut command = Command::new(Path::new(programs.trim()).join("git-daemon"));
        command.current_dir(directory.path()).env("HOME", directory.path());
        command.args(["--verbose", "--reuseaddr", "--export-all", "--listen=127.0.0.1"]);
        command.arg(format!("--port={}", ports.get(0)));
        command.arg(format!("--base-path={}", directory.path().display()));
        let daemon = Daemon::spawn("git", &mut command, Some(20))?;
        daemon.transcript().find("Ready to rumble", SOON).context("start git daemon")?;
        Ok(Repository { _daemon: daemon, ports, _directory: directory })
    }

    /// The port on loopback.
    pub fn port(&self) -> u16 {
        self.ports.get(0)
    }
}

/// Makes a working tree of the example project with one commit, `hello` in a directory.
pub(crate) fn example(directory: &Path) -> Result<PathBuf> {
    let work = directory.join("hello");
    let copied = Command::new("cp")
        .arg("-R")
        .arg(repository().join("contrib/examples/hello"))
        .arg(&work)
        .status()
        .context("copy the example project")?;
    ensure!(copied.success(), "copy the example project: cp ended with {copied}");
    git(&work, &["init", "--quiet", "--initial-branch=main"])?;
    git(&work, &["add", "."])?;
    git(&work, &["commit", "--quiet", "--message=first"])?;
    Ok(work)
}

/// Runs git without the configuration of the person who runs the tests, so that it makes the same commit each time.
pub(crate) fn git(directory: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    command.args(arguments).current_dir(directory).env("HOME", directory).env("GIT_CONFIG_NOSYSTEM", "1");
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "a test").env(format!("GIT_{who}_EMAIL"), "test@localhost");
        command.env(format!("GIT_{who}_DATE"), "2001-09-09T01:46:40Z");
    }
    let done = command.output().context("run git")?;
    ensure!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).context("read what git wrote")
}
