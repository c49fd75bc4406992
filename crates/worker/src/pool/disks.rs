//! Disks that outlive their machines: one for each image and VM name, used by one machine at a time.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use protocol::command::Name;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;

use crate::config::Image;

/// The disks that persist, below one directory.
#[derive(Debug)]
pub(crate) struct Disks {
    directory: PathBuf,
    locks: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
}

/// The exclusive use of a disk, until it is dropped.
#[derive(Debug)]
pub(crate) struct DiskLock {
    path: PathBuf,
    _guard: OwnedMutexGuard<()>,
}

/// What an overlay was made on. An overlay on another disk of the same name is not the same disk but a corrupt one.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Base {
    file: PathBuf,
    size: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl Disks {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Disks { directory, locks: Mutex::default() }
    }

    /// Waits until nobody else uses the disk of this image and name.
    pub(crate) async fn lock(&self, image: &Name, vm: &Name) -> DiskLock {
        let path = self.directory.join(image.as_str()).join(format!("{vm}.qcow2"));
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(path.clone()).or_default())
        };
        DiskLock { path, _guard: lock.lock_owned().await }
    }
}

impl DiskLock {
    /// The disk, made on the image's if it is not there yet.
    ///
    /// # Errors
    /// The image's disk is another one than the overlay was made on, or a file can't be made.
    pub(crate) async fn open(&self, qemu: &qemu::Qemu, image: &Image) -> anyhow::Result<&Path> {
        let base = Base::of(&image.disk)?;
        let note = self.path.with_extension("base.json");
        if self.path.exists() {
            let text = std::fs::read(&note).with_context(|| format!("read {}", note.display()))?;
            let noted: Base = serde_json::from_slice(&text).with_context(|| format!("read {}", note.display()))?;
            if noted != base {
                bail!(
                    "{} was replaced or changed since the persistent disk {} was made on it; put the old one back, or \
                     remove the persistent disk to begin anew",
                    base.file.display(),
                    self.path.display()
                );
            }
            return Ok(&self.path);
        }
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        // The note first: an overlay without one could not be trusted.
        std::fs::write(&note, serde_json::to_vec(&base)?).with_context(|| format!("write {}", note.display()))?;
        qemu.create_overlay(&super::machine::base(image), &self.path).await?;
        Ok(&self.path)
    }
}

impl Base {
    fn of(file: &Path) -> anyhow::Result<Self> {
        let metadata = std::fs::metadata(file).with_context(|| format!("read the image's disk {}", file.display()))?;
        Ok(Base {
            file: file.to_owned(),
            size: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        })
    }
}
