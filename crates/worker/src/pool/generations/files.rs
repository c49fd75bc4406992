//! The files of saved generations.
//!
//! ```text
//! generations/IMAGE/3/disk.qcow2     an overlay on a disk of the configuration
//!                  /3/manifest.json
//!                  /current          a number, if somebody went back to it
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::history::{Current, FIRST, History};
use crate::pool::identity::DiskIdentity;
use crate::pool::published;
use crate::pool::state_dir::write_whole;

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

impl Manifest {
    /// Whether the disk that it is an overlay on is still the one it was.
    ///
    /// # Errors
    /// It is not; the text says so.
    pub(crate) fn base_holds(&self) -> anyhow::Result<()> {
        if self.base.still_holds()? {
            return Ok(());
        }
        bail!("it was saved on {}, which was replaced or changed since; put the old one back", self.base.file.display())
    }
}

/// The file that says which generation somebody went back to.
pub(in crate::pool) const CURRENT: &str = "current";

/// The name of a generation's disk in its directory.
pub(super) const DISK: &str = "disk.qcow2";

/// The disk of a saved generation.
pub(super) fn disk(image: &Path, number: u32) -> PathBuf {
    image.join(number.to_string()).join(DISK)
}

/// Reads back what there is of an image, removes what was not finished and tells of what is damaged.
pub(super) fn read(image: &Path) -> History<Manifest> {
    understand(image, &published::read(image, "generation"))
}

/// The same without removing anything.
pub(super) fn look(image: &Path) -> History<Manifest> {
    understand(image, &published::look(image).1)
}

fn understand(image: &Path, names: &[String]) -> History<Manifest> {
    let mut saved = Vec::new();
    for number in names.iter().filter_map(|name| number(name)) {
        let manifest = read_generation(image, number).map_err(|error| format!("{error:#}"));
        if let Err(why) = &manifest {
            warn!(generation = number, "a saved generation of {} is damaged: {why}", image.display());
        }
        saved.push((number, manifest));
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
pub(in crate::pool) fn number(name: &str) -> Option<u32> {
    name.parse().ok().filter(|number: &u32| *number > FIRST && number.to_string() == name)
}

fn read_generation(image: &Path, number: u32) -> anyhow::Result<Manifest> {
    let directory = image.join(number.to_string());
    let manifest: Manifest = published::manifest(&directory)?;
    if manifest.generation != number {
        bail!("the manifest in {} is that of generation {}", directory.display(), manifest.generation);
    }
    let disk = disk(image, number);
    let size = fs::metadata(&disk).with_context(|| format!("read {}", disk.display()))?.len();
    if size != manifest.size {
        bail!("{} has {size} bytes and not {}", disk.display(), manifest.size);
    }
    Ok(manifest)
}

fn read_current(image: &Path) -> anyhow::Result<Current> {
    let path = image.join(CURRENT);
    if !path.try_exists().with_context(|| format!("read {}", path.display()))? {
        return Ok(Current::Newest);
    }
    let text = published::read_small(&path)?;
    let chosen = text.trim().parse().ok().filter(|number| *number >= FIRST);
    Ok(Current::Chosen(chosen.with_context(|| format!("{} has no generation's number in it", path.display()))?))
}

/// Writes down which generation is current.
pub(super) fn write_current(image: &Path, current: &Current) -> anyhow::Result<()> {
    let path = image.join(CURRENT);
    let written = match current {
        Current::Chosen(number) => write_whole(&path, format!("{number}\n")),
        // What can't be read is for a person to put right.
        Current::Unknown { .. } => return Ok(()),
        Current::Newest => match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed,
        },
    };
    written.and_then(|()| published::sync(image)).with_context(|| format!("write {}", path.display()))
}
