//! The files of saved generations.
//!
//! ```text
//! generations/IMAGE/3/disk.qcow2     an overlay on a disk of the configuration
//!                  /3/manifest.json
//!                  /current          a number, if somebody went back to it
//!                  /new-…            a generation in the making, and gone-… one being removed
//! ```
//!
//! A generation is there when its directory has its name, which is the last thing that happens to it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::history::{Current, FIRST, History};
use crate::pool::identity::DiskIdentity;
use crate::pool::state_dir::{make_private_directory, write_whole};

/// The largest file that is read here, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// What is written down of a saved generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Its number, again.
    pub generation: u32,
    /// The disk that it is an overlay on.
    pub(in crate::pool) base: DiskIdentity,
    pub(in crate::pool) base_format: Format,
    /// How long its own disk's file is, in bytes.
    pub size: u64,
    /// When it was saved, in seconds since the epoch.
    pub saved: u64,
    /// The builder whose build saved it.
    pub builder: String,
    /// That build's number, if the master has told it.
    pub build: Option<u64>,
    /// The image and generation that the build's machine was started from.
    pub from_image: String,
    pub from: u32,
    /// The guest's own ssh key.
    pub host_key: String,
}

/// The format of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::pool) enum Format {
    Qcow2,
    Raw,
}

impl From<qemu::Format> for Format {
    fn from(format: qemu::Format) -> Self {
        match format {
            qemu::Format::Qcow2 => Format::Qcow2,
            qemu::Format::Raw => Format::Raw,
        }
    }
}

impl From<Format> for qemu::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::Qcow2 => qemu::Format::Qcow2,
            Format::Raw => qemu::Format::Raw,
        }
    }
}

/// A generation in the making. Dropped before it is published, it is gone.
#[derive(Debug)]
pub(super) struct Unfinished {
    directory: PathBuf,
}

/// The disk of a saved generation.
pub(super) fn disk(image: &Path, number: u32) -> PathBuf {
    image.join(number.to_string()).join("disk.qcow2")
}

/// Reads back what there is of an image, removes what was not finished and tells of what is damaged.
pub(super) fn read(image: &Path) -> History<Manifest> {
    let mut saved = Vec::new();
    for entry in fs::read_dir(image).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        if name.starts_with("new-") || name.starts_with("gone-") {
            info!(directory = %path.display(), "removing a generation that an earlier run did not finish");
            remove(&path);
        } else if let Some(number) = number(&name) {
            let manifest = read_generation(image, number).map_err(|error| format!("{error:#}"));
            if let Err(why) = &manifest {
                warn!(generation = number, "a saved generation of {} is damaged: {why}", image.display());
            }
            saved.push((number, manifest));
        }
    }
    let current = read_current(image).unwrap_or_else(|error| Current::Unknown {
        why: format!("{error:#}; choose a generation with kvm-worker image rollback"),
    });
    if let Current::Unknown { why } = &current {
        warn!("{why}");
    }
    History::new(saved, current)
}

/// A generation's number, if a name is one.
fn number(name: &str) -> Option<u32> {
    name.parse().ok().filter(|number: &u32| *number > FIRST && number.to_string() == name)
}

fn read_generation(image: &Path, number: u32) -> anyhow::Result<Manifest> {
    let path = image.join(number.to_string()).join("manifest.json");
    let manifest: Manifest =
        serde_json::from_str(&read_small(&path)?).with_context(|| format!("understand {}", path.display()))?;
    if manifest.generation != number {
        bail!("{} is that of generation {}", path.display(), manifest.generation);
    }
    let disk = disk(image, number);
    let size = fs::metadata(&disk).with_context(|| format!("read {}", disk.display()))?.len();
    if size != manifest.size {
        bail!("{} has {size} bytes and not {}", disk.display(), manifest.size);
    }
    Ok(manifest)
}

fn read_current(image: &Path) -> anyhow::Result<Current> {
    let path = image.join("current");
    if !path.try_exists().with_context(|| format!("read {}", path.display()))? {
        return Ok(Current::Newest);
    }
    let text = read_small(&path)?;
    let chosen = text.trim().parse().ok().filter(|number| *number >= FIRST);
    Ok(Current::Chosen(chosen.with_context(|| format!("{} has no generation's number in it", path.display()))?))
}

fn read_small(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    read.with_context(|| format!("read {}", path.display()))?;
    Ok(text)
}

/// Writes down which generation is current.
pub(super) fn write_current(image: &Path, current: &Current) -> anyhow::Result<()> {
    let path = image.join("current");
    let written = match current {
        Current::Chosen(number) => write_whole(&path, format!("{number}\n")),
        // What can't be read is for a person to put right.
        Current::Unknown { .. } => return Ok(()),
        Current::Newest => match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed,
        },
    };
    written.and_then(|()| sync(image)).with_context(|| format!("write {}", path.display()))
}

/// Waits until the names in a directory are on the host's disk. Blocks.
pub(super) fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

impl Unfinished {
    /// Begins a generation of an image.
    pub(super) fn begin(image: &Path) -> anyhow::Result<Self> {
        static BEGUN: AtomicU64 = AtomicU64::new(0);
        let directory = image.join(format!("new-{}", BEGUN.fetch_add(1, Ordering::Relaxed)));
        make_private_directory(&directory)?;
        Ok(Unfinished { directory })
    }

    /// Where its disk is to be.
    pub(super) fn disk(&self) -> PathBuf {
        self.directory.join("disk.qcow2")
    }

    /// Writes its manifest, and waits until all of it is on the host's disk, where its own disk is already. Blocks.
    pub(super) fn seal(self, manifest: &Manifest) -> anyhow::Result<Self> {
        let path = self.directory.join("manifest.json");
        let seal = || {
            write_whole(&path, &serde_json::to_string_pretty(manifest)?)?;
            sync(&self.directory)
        };
        seal().with_context(|| format!("write {}", path.display()))?;
        Ok(self)
    }

    /// Makes what is sealed the generation of a number that is free.
    pub(super) fn publish(self, image: &Path, number: u32) -> anyhow::Result<()> {
        let place = image.join(number.to_string());
        fs::rename(&self.directory, &place).with_context(|| format!("put {} in place", place.display()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Published, it has another name. The files are large, and unlinking them may take a while.
        let directory = std::mem::take(&mut self.directory);
        let remove = move || {
            if directory.exists() {
                remove(&directory);
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// Removes a generation, so that no half of it is ever taken for one.
pub(super) fn remove_generation(image: &Path, number: u32) -> io::Result<()> {
    let gone = image.join(format!("gone-{number}"));
    fs::rename(image.join(number.to_string()), &gone)?;
    remove(&gone);
    Ok(())
}

fn remove(directory: &Path) {
    if let Err(error) = fs::remove_dir_all(directory) {
        warn!("remove {}: {error}; the next start tries again", directory.display());
    }
}

/// Now, in seconds since the epoch.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
