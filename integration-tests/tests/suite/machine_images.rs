//! The guests that `contrib/images/build` makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration_tests::{Guest, KvmHost, contains_all};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is in the repository")
}

/// Where a release's guests are kept from one run to the next.
fn made_before(suite: &str) -> PathBuf {
    let cache = std::env::var_os("KVM_WORKER_CACHE").map_or_else(|| repository().join(".cache"), PathBuf::from);
    cache.join(format!("images-{suite}"))
}

/// Installs variants of a release, unless an earlier run did, and boots each. `version` is what its `/etc/debian_version` begins
/// with. Those of Debian 12 are what all other tests boot, and `sources` is `build` with more packages.
fn check_boot(suite: &str, version: &str, variants: &[&str]) -> Result<()> {
    let directory = made_before(suite);
    let built = Command::new(repository().join("contrib/images/build"))
        .args(["--suite", suite])
        .arg(&directory)
        .args(variants)
        .output()
        .context("run contrib/images/build")?;
    ensure!(built.status.success(), "{suite}: {}", String::from_utf8_lossy(&built.stderr));
    for &variant in variants {
        let mut host = KvmHost::at("pb://127.0.0.1:9")?;
        // One with systemd takes a minute or two on an emulated processor.
        let guest = Guest::made_in(&directory, variant)?.with("memory_mib", 512).with("boot_timeout", 600);
        host.image("guest", guest);
        let said = host.ask(&["exec", "guest", "--", "cat", "/etc/debian_version", "/proc/1/comm"])?;
        let (stdout, stderr) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        ensure!(said.status.success(), "{suite}, {variant}: {stderr}");
        let expected = if variant == "systemd" { "systemd" } else { "init" };
        let lines: Vec<_> = stdout.lines().collect();
        ensure!(lines[0].starts_with(version) && lines[1..] == [expected], "{suite}, {variant}: {stdout}");
    }
    Ok(())
}

#[test]
#[ignore = "long: installs a Debian the first time"]
fn a_guest_of_debian_11_boots() -> Result<()> {
    check_boot("bullseye", "11.", &["plain"])
}

#[test]
#[ignore = "long: installs two Debians the first time, and boots them"]
fn guests_of_debian_13_boot() -> Result<()> {
    // All of `plain` is in either.
    check_boot("trixie", "13.", &["build", "systemd"])
}

#[test]
#[ignore = "long: installs a Debian"]
fn a_guest_that_nothing_would_start_is_not_published() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (recipe, out) = (directory.path().join("recipe"), directory.path().join("out"));
    let copied = Command::new("cp").arg("-R").arg(repository().join("contrib/images")).arg(&recipe).status()?;
    ensure!(copied.success(), "the recipe can't be copied");
    // Nothing that takes long is installed: it would not be looked at.
    fs::write(recipe.join("variants/plain"), "")?;
    fs::write(recipe.join("configure-guest"), "#!/bin/sh\nln -sf /bin/no-such-init /sbin/init\n")?;
    let built = Command::new(recipe.join("build")).arg(&out).arg("plain").output()?;
    let said = String::from_utf8_lossy(&built.stderr);
    ensure!(!built.status.success(), "it is published: {said}");
    contains_all(&said, &["plain: making the disk", "nothing would start the guest: /sbin/init"])?;
    let published = fs::read_dir(&out)?.collect::<Result<Vec<_>, _>>()?;
    let published: Vec<_> = published.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    ensure!(!published.iter().any(|name| name.ends_with(".qcow2") || name == "vmlinuz"), "{published:?}");
    Ok(())
}
