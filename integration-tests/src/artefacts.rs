//! Where the things are that `scripts/setup` and cargo make, each missing one with the command that makes it.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail};

/// The directory of downloaded and built things, `.cache` in the repository unless `KVM_WORKER_CACHE` says otherwise.
pub(crate) fn cache() -> PathBuf {
    env::var_os("KVM_WORKER_CACHE").map_or_else(|| repository().join(".cache"), PathBuf::from)
}

/// The repository's root.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// A program of the Python environment that has the Buildbot master.
pub(crate) fn in_venv(program: &str) -> Result<PathBuf> {
    existing(cache().join("venv/bin").join(program), "scripts/setup venv")
}

/// A file of the guests.
pub(crate) fn image_file(name: &str) -> Result<PathBuf> {
    existing(cache().join("images").join(name), "scripts/setup image")
}

/// A file of the guest with the clients of version control systems.
pub(crate) fn sources_image_file(name: &str) -> Result<PathBuf> {
    existing(cache().join("images-sources").join(name), "scripts/setup sources")
}

/// A file of the guest with systemd.
pub(crate) fn systemd_image_file(name: &str) -> Result<PathBuf> {
    existing(cache().join("images-systemd").join(name), "scripts/setup image-systemd")
}

/// The worker's binary: `KVM_WORKER_BIN`, else the one cargo built for the profile this test was built for.
pub(crate) fn worker_binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("KVM_WORKER_BIN") {
        return existing(PathBuf::from(path), "unset KVM_WORKER_BIN");
    }
    // A test is target/PROFILE/deps/NAME-HASH.
    let this = env::current_exe().context("find the directory of this test's binary")?;
    let profile = this.parent().and_then(Path::parent).context("find the directory of this test's profile")?;
    existing(profile.join("kvm-worker"), "cargo build -p kvm-worker (with --release for tests in release)")
}

/// A program in one of the directories of `PATH`.
pub(crate) fn in_path(program: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file());
    found.with_context(|| format!("there is no {program} in PATH; to install it, run: scripts/setup packages"))
}

fn existing(path: PathBuf, remedy: &str) -> Result<PathBuf> {
    match fs::metadata(&path) {
        Ok(_) => Ok(path),
        Err(error) => bail!("{}: {error}; to make it, run: {remedy}", path.display()),
    }
}
