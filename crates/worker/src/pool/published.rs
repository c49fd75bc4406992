//! Directories that are either there as a whole or not at all, whatever happens meanwhile.
//!
//! ```text
//! PARENT/NAME/manifest.json   and other files: a directory that is there
//!       /new-…                one in the making
//!       /gone-…               one being removed
//! ```
//!
//! A directory is there when it has its name, which is the last thing that happens to it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{info, warn};

pub(super) use super::state_dir::sync;
use super::state_dir::{make_lasting_directory, make_private_directory, write_whole};

/// What describes what is in a directory.
const MANIFEST: &str = "manifest.json";

/// The largest file that is read here, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// What this process is making or removing at this moment.
static ALIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn alive_now() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    ALIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The directories that this process is making or removing at this moment.
pub(super) fn alive() -> BTreeSet<PathBuf> {
    alive_now().clone()
}

/// A directory in the making. Dropped before it is published, it is gone.
#[derive(Debug)]
pub(super) struct Unfinished {
    directory: PathBuf,
}

impl Unfinished {
    /// Begins a directory below another one, which is made if it is not there.
    pub(super) fn begin(parent: &Path) -> anyhow::Result<Self> {
        static BEGUN: AtomicU64 = AtomicU64::new(0);
        make_lasting_directory(parent)?;
        let directory = parent.join(format!("new-{}", BEGUN.fetch_add(1, Ordering::Relaxed)));
        alive_now().insert(directory.clone());
        let unfinished = Unfinished { directory };
        make_private_directory(&unfinished.directory)?;
        Ok(unfinished)
    }

    /// Where it is for now.
    pub(super) fn path(&self) -> &Path {
        &self.directory
    }

    /// Writes its manifest, and waits until it and the names in the directory are on the host's disk, where the other
    /// files' contents are already. Blocks.
    pub(super) fn seal(self, manifest: &impl Serialize) -> anyhow::Result<Self> {
        let path = self.directory.join(MANIFEST);
        let seal = || write_whole(&path, &serde_json::to_string_pretty(manifest)?);
        seal().with_context(|| format!("write {}", path.display()))?;
        Ok(self)
    }

    /// Removes it now.
    pub(super) async fn discard(mut self) {
        let directory = std::mem::take(&mut self.directory);
        // Fails only with the runtime.
        let _ = tokio::task::spawn_blocking(move || {
            remove_all(&directory);
            alive_now().remove(&directory);
        })
        .await;
    }

    /// Gives what is sealed a name that is free.
    pub(super) fn publish(self, place: &Path) -> anyhow::Result<()> {
        fs::rename(&self.directory, place).with_context(|| format!("put {} in place", place.display()))?;
        alive_now().remove(&self.directory);
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Published, it has another name. The files are large, and unlinking them may take a while.
        let directory = std::mem::take(&mut self.directory);
        if directory.as_os_str().is_empty() {
            return;
        }
        let remove = move || {
            if directory.exists() {
                remove_all(&directory);
            }
            alive_now().remove(&directory);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// The names of the directories that are there; what an earlier run did not finish is removed. `what` they are is for
/// people.
pub(super) fn read(parent: &Path, what: &str) -> Vec<String> {
    let (unfinished, names) = look(parent);
    let image = parent.file_name().unwrap_or_default().to_string_lossy();
    for name in unfinished {
        let path = parent.join(&name);
        let how = if name.starts_with("new-") { "did not finish" } else { "was removing" };
        remove_all(&path);
        info!(%image, directory = %path.display(), "removed a {what} that an earlier run {how}");
    }
    names
}

/// The names of the directories that are in the making or being removed, and of those that are there.
pub(super) fn look(parent: &Path) -> (Vec<String>, Vec<String>) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.partition(|name| name.starts_with("new-") || name.starts_with("gone-"))
}

/// Reads back the manifest of a directory.
pub(super) fn manifest<M: DeserializeOwned>(directory: &Path) -> anyhow::Result<M> {
    let path = directory.join(MANIFEST);
    serde_json::from_str(&read_small(&path)?).with_context(|| format!("understand {}", path.display()))
}

/// Removes a directory, so that no half of it is ever taken for one. Blocks.
pub(super) fn remove(parent: &Path, name: &str) -> io::Result<()> {
    let gone = parent.join(format!("gone-{name}"));
    alive_now().insert(gone.clone());
    // Waits for the disk, else a power failure might give what is left of it its name again.
    let renamed = fs::rename(parent.join(name), &gone).and_then(|()| sync(parent));
    if renamed.is_ok() {
        remove_all(&gone);
    }
    alive_now().remove(&gone);
    renamed
}

fn remove_all(directory: &Path) {
    if let Err(error) = fs::remove_dir_all(directory) {
        warn!("remove {}: {error}; the next start tries again", directory.display());
    }
}

/// Reads a file of ours, which is a small one.
pub(super) fn read_small(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    read.with_context(|| format!("read {}", path.display()))?;
    Ok(text)
}

/// Now, in seconds since the epoch.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
