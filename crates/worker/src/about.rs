//! What the program says of itself: its version, its manual pages, its completions.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use serde::Serialize;

use crate::cli::{Cli, Worker};
use crate::config::{Config, Overrides};
use crate::exit;

/// Where QEMU is looked for unless a configuration says otherwise.
const QEMU: [&str; 2] = ["qemu-system-x86_64", "qemu-img"];

/// What this program is, and what it works with. The names are documented in the manual.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Version {
    version: &'static str,
    /// How it was built: `release` or `debug`.
    build: &'static str,
    target: String,
    /// What it speaks with a master.
    protocols: [&'static str; 2],
    /// The release of Buildbot it stands in for.
    buildbot: &'static str,
    qemu: Option<Qemu>,
}

/// The QEMU that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Qemu {
    program: String,
    version: String,
}

/// Says which version this is.
pub(crate) fn version(worker: &Worker, json: bool) -> ExitCode {
    let config = worker.config.as_ref().map(|file| Config::load(Some(file), &Overrides::default()));
    let programs = match config {
        None => QEMU.map(Into::into),
        Some(Ok(config)) => [config.pool.qemu, config.pool.qemu_img],
        Some(Err(problems)) => {
            eprintln!("kvm-worker: {problems}");
            return exit::code(exit::UNUSABLE);
        }
    };
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        protocols: ["pb", "msgpack"],
        buildbot: crate::info::BUILDBOT_VERSION,
        qemu: qemu(programs),
    };
    if json {
        return match serde_json::to_string(&version) {
            Ok(json) => crate::ask::shown(&(json + "\n")),
            Err(error) => exit::failed(&error.into()),
        };
    }
    crate::ask::shown(&version.to_string())
}

fn qemu([system, img]: [std::path::PathBuf; 2]) -> Option<Qemu> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let program = system.display().to_string();
    let found = runtime.block_on(qemu::Qemu::probe(system, img)).ok()?;
    Some(Qemu { program, version: found.version().to_owned() })
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Version { version, build, target, protocols, buildbot, qemu } = self;
        writeln!(f, "kvm-worker {version} ({build} build for {target})")?;
        writeln!(f, "protocols: {} (as the worker of Buildbot {buildbot})", protocols.join(", "))?;
        match qemu {
            Some(Qemu { program, version }) => writeln!(f, "qemu: {version} ({program})"),
            None => writeln!(f, "qemu: none that works; install qemu-system-x86 and qemu-utils"),
        }
    }
}

/// Prints what has a shell complete our command lines.
pub(crate) fn completions(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kvm-worker", &mut script);
    crate::ask::shown(&String::from_utf8_lossy(&script))
}

/// Writes a manual page for each verb into a directory, or prints the first one.
pub(crate) fn manual(directory: Option<&Path>) -> ExitCode {
    let written = match directory {
        Some(directory) => write_pages(directory),
        None => page(Cli::command()).map(|page| crate::ask::shown(&String::from_utf8_lossy(&page))).map_err(Into::into),
    };
    written.unwrap_or_else(|error| exit::failed(&error))
}

fn write_pages(directory: &Path) -> anyhow::Result<ExitCode> {
    let doing = || format!("write manual pages to {}", directory.display());
    std::fs::create_dir_all(directory).with_context(doing)?;
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), directory).with_context(doing)?;
    Ok(exit::code(exit::DONE))
}

fn page(command: clap::Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_whole() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_version_is_three_lines() {
        let version = Version {
            version: "0.1.0",
            build: "release",
            target: "x86_64-linux".to_owned(),
            protocols: ["pb", "msgpack"],
            buildbot: "4.3.0",
            qemu: Some(Qemu { program: "qemu-system-x86_64".to_owned(), version: "10.0.2".to_owned() }),
        };
        assert_eq!(
            version.to_string(),
            "kvm-worker 0.1.0 (release build for x86_64-linux)\n\
             protocols: pb, msgpack (as the worker of Buildbot 4.3.0)\n\
             qemu: 10.0.2 (qemu-system-x86_64)\n"
        );
        let without = Version { qemu: None, ..version };
        assert!(without.to_string().ends_with("qemu: none that works; install qemu-system-x86 and qemu-utils\n"));
    }
}
