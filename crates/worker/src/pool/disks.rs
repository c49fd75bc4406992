//! Disks that outlive their machines: one for each image and VM name, used by one machine at a time.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use protocol::command::Name;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;

use super::generations::{FIRST, Generations, Ground};
use super::identity::DiskIdentity;
use super::state_dir::{make_lasting_directory, write_whole};
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
    image: Name,
    _guard: OwnedMutexGuard<()>,
}

/// What is noted of a disk: what its overlay was made on.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    #[serde(flatten)]
    base: DiskIdentity,
    /// The generation of the image that this is.
    #[serde(default = "first")]
    generation: u32,
}

fn first() -> u32 {
    FIRST
}

impl Disks {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Disks { directory, locks: Mutex::default() }
    }

    /// Whether somebody uses the disk of this image and name.
    pub(super) fn is_locked(&self, image: &Name, vm: &Name) -> bool {
        let locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.get(&self.path(image, vm)).is_some_and(|lock| lock.try_lock().is_err())
    }

    fn path(&self, image: &Name, vm: &Name) -> PathBuf {
        self.directory.join(image.as_str()).join(format!("{vm}.qcow2"))
    }

    /// Waits until nobody else uses the disk of this image and name.
    pub(crate) async fn lock(&self, image: &Name, vm: &Name) -> DiskLock {
        let path = self.path(image, vm);
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(path.clone()).or_default())
        };
        DiskLock { path, image: image.clone(), _guard: lock.lock_owned().await }
    }
}

impl DiskLock {
    /// Where the disk is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the disk on the image's current generation if it is not there yet, and returns what it stands on.
    ///
    /// # Errors
    /// What the disk was made on is another one now, or a file can't be made.
    pub(super) async fn open(
        &self,
        qemu: &qemu::Qemu,
        generations: &Generations,
        image: &Image,
    ) -> anyhow::Result<Ground> {
        let note = note(&self.path);
        if self.path.exists() {
            let Note { base, generation } = read_note(&note)?;
            let ground = generations.at(&self.image, image, generation).with_context(|| {
                format!("the persistent disk {} stands on an older generation", self.path.display())
            })?;
            if base != DiskIdentity::of(&ground.base.file)? {
                bail!(
                    "{} was replaced or changed since the persistent disk {} was made on it; put the old one back, or \
                     remove the persistent disk to begin anew",
                    base.file.display(),
                    self.path.display()
                );
            }
            return Ok(ground);
        }
        let ground = generations.current(&self.image, image)?;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        make_lasting_directory(directory)?;
        // The note first: an overlay without one could not be trusted.
        let text = Note { base: DiskIdentity::of(&ground.base.file)?, generation: ground.number };
        write_whole(&note, serde_json::to_vec(&text)?).with_context(|| format!("write {}", note.display()))?;
        qemu.create_lasting_overlay(&ground.base, &self.path).await?;
        Ok(ground)
    }
}

/// What is noted of a disk.
pub(super) fn note(disk: &Path) -> PathBuf {
    disk.with_extension(NOTE)
}

/// What the name of a disk's note ends in.
const NOTE: &str = "base.json";

/// The directory of the disks that persist.
pub(super) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("disks")
}

/// What the persistent disks of an image stand on.
///
/// # Errors
/// A note can't be read, so that it is not known what its disk stands on.
pub(super) fn bases(disks: &Path, image: &Name) -> anyhow::Result<BTreeSet<PathBuf>> {
    let directory = disks.join(image.as_str());
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", directory.display())),
    };
    let mut bases = BTreeSet::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", directory.display()))?.path();
        if path.to_string_lossy().ends_with(NOTE) {
            bases.insert(read_note(&path)?.base.file);
        }
    }
    Ok(bases)
}

fn read_note(path: &Path) -> anyhow::Result<Note> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_NOTE).read_to_string(&mut text));
    read.with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| {
        format!("understand {}; remove it and the persistent disk beside it to begin anew", path.display())
    })
}

/// The largest note that is read, in bytes.
const MAX_NOTE: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_say_what_disks_stand_on() {
        let directory = tempfile::tempdir().expect("a directory");
        let image = Name::new("debian").expect("a name");
        let of_image = directory.path().join("debian");
        assert_eq!(bases(directory.path(), &image).expect("nothing is no error"), BTreeSet::new());
        std::fs::create_dir(&of_image).expect("made");
        let write = |name: &str, text: &str| std::fs::write(of_image.join(name), text).expect("written");
        // As it was written before there were generations.
        write("old.base.json", r#"{"file":"/a.qcow2","size":1,"modified_s":2,"modified_ns":3}"#);
        write("new.base.json", r#"{"file":"/b.qcow2","size":1,"modified_s":2,"modified_ns":3,"generation":4}"#);
        write("new.qcow2", "not a note");
        let expected = ["/a.qcow2", "/b.qcow2"].map(PathBuf::from).into();
        assert_eq!(bases(directory.path(), &image).expect("understood"), expected);
        assert_eq!(read_note(&of_image.join("old.base.json")).expect("understood").generation, 1);
        assert_eq!(read_note(&of_image.join("new.base.json")).expect("understood").generation, 4);
        write("broken.base.json", "{");
        assert!(bases(directory.path(), &image).is_err());
    }
}
