//! The units in `contrib/systemd`, as systemd's own tools see them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What `systemd-analyze security` may find against the units, of 100; systemd calls up to 50 "OK". What is open, and why,
/// is said in the units.
const EXPOSURE: u32 = 35;

/// The same for a worker that runs nothing of builds on the host.
const MACHINES_ONLY_EXPOSURE: u32 = 20;

const UNITS: [&str; 3] = ["kvm-worker.service", "kvm-worker@.service", "kvm-worker-drain@.service"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/systemd")
}

/// The units in a directory of their own, with a program that is there.
fn units() -> Result<tempfile::TempDir> {
    let directory = tempfile::tempdir()?;
    for unit in UNITS {
        let text = fs::read_to_string(source().join(unit)).with_context(|| format!("read {unit}"))?;
        fs::write(directory.path().join(unit), text.replace("=kvm-worker ", "=/bin/true "))?;
    }
    Ok(directory)
}

/// Runs systemd-analyze, which has to succeed; gives what it says.
fn analyze(arguments: &[&str], unit: &Path) -> Result<String> {
    let output = Command::new("systemd-analyze").args(arguments).arg(unit).env("SYSTEMD_COLORS", "0").output();
    let output = output.context("run systemd-analyze; to install it, run: scripts/setup packages")?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "systemd-analyze {arguments:?} {}: {}\n{text}", unit.display(), output.status);
    Ok(text)
}

#[test]
fn systemd_understands_every_line_of_the_units() -> Result<()> {
    let units = units()?;
    for unit in UNITS {
        // What it does not know it only mentions.
        let says = analyze(&["verify", "--man=no"], &units.path().join(unit))?;
        ensure!(says.is_empty(), "about {unit}: {says}");
    }
    Ok(())
}

#[test]
fn units_are_closed_as_far_as_builds_let_them_be() -> Result<()> {
    let units = units()?;
    let threshold = |most: u32| format!("--threshold={most}");
    for unit in &UNITS[..2] {
        analyze(&["security", "--offline=true", &threshold(EXPOSURE)], &units.path().join(unit))?;
    }
    let drop_ins = units.path().join("kvm-worker.service.d");
    fs::create_dir(&drop_ins)?;
    fs::copy(source().join("machines-only.conf"), drop_ins.join("machines-only.conf"))?;
    let unit = units.path().join(UNITS[0]);
    analyze(&["security", "--offline=true", &threshold(MACHINES_ONLY_EXPOSURE)], &unit)?;
    analyze(&["verify", "--man=no"], &unit).map(drop)
}

/// There are two because a host with one worker should not have to name it.
#[test]
fn unit_of_the_only_worker_is_that_of_several_with_other_names() -> Result<()> {
    let directives = |unit: &str| -> Result<Vec<String>> {
        let text = fs::read_to_string(source().join(unit))?;
        Ok(text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect())
    };
    let several: Vec<String> = directives(UNITS[1])?
        .into_iter()
        .map(|line| line.replace("%i.toml", "config.toml").replace("%i.password", "password"))
        .map(|line| line.replace("kvm-worker/%i", "kvm-worker").replace(" (%i)", ""))
        .collect();
    assert_eq!(directives(UNITS[0])?, several);
    Ok(())
}
