//! One template and its files.
//!
//! ```text
//! templates/IMAGE/KEY/memory          the guest's memory, which clones map
//!                    /state           its processor and devices
//!                    /disk.qcow2      what it had written when it was frozen, over a generation
//!                    /overlay.qcow2   an empty overlay on that, which clones get a copy of
//!                    /manifest.json
//!                    /bad             why it is not used any more, if a clone of it failed
//! ```

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use protocol::command::Name;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::inputs::{Inputs, Key};
use crate::pool::generations::Ground;
use crate::pool::guest_basedir::GuestBasedir;
use crate::pool::published::{self, Unfinished};
use crate::pool::state_dir::write_whole;

/// The files of a template that clones stand on.
pub(super) const MEMORY: &str = "memory";
pub(super) const STATE: &str = "state";
pub(super) const DISK: &str = "disk.qcow2";

const OVERLAY: &str = "overlay.qcow2";
const BAD: &str = "bad";

/// A generation that was frozen just after it booted. Its files do not change. It lives as long as somebody has it, and
/// its files longer unless it was [retired](Self::retire).
#[derive(Debug)]
pub(in crate::pool) struct Template {
    image: Name,
    /// The name of its directory, and the one that is in.
    name: String,
    parent: PathBuf,
    pub(in crate::pool) manifest: Manifest,
    /// What its disk lies over, kept for as long.
    _ground: Ground,
    retired: AtomicBool,
}

/// What is written down of a template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::pool) struct Manifest {
    pub key: Key,
    pub inputs: Inputs,
    /// The generation that was frozen.
    pub generation: u32,
    /// When it was, in seconds since the epoch.
    pub made: u64,
    /// How long that took, in seconds.
    pub took: f64,
    /// How long the files are, in bytes.
    pub memory: u64,
    pub state: u64,
    pub disk: u64,
    /// How much of the memory is in use, in bytes.
    pub memory_used: u64,
    /// The guest's own ssh key.
    pub host_key: String,
    /// What the worker's base directory is called in it.
    pub basedir: GuestBasedir,
}

impl Manifest {
    /// How much its files take of the host's disk, about, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.memory_used + self.state + self.disk
    }
}

/// What is to be told of a template's guest when its files are made.
#[derive(Debug)]
pub(super) struct Frozen {
    pub inputs: Inputs,
    pub generation: u32,
    pub took: f64,
    pub host_key: String,
    pub basedir: GuestBasedir,
    /// The rights of the memory's file.
    pub memory_mode: u32,
}

/// Makes the files of a machine that was frozen read-only, waits until they are on the host's disk, and gives their
/// directory its name. Blocks. Returns the name.
pub(super) fn publish(unfinished: Unfinished, parent: &Path, frozen: Frozen) -> anyhow::Result<(String, Manifest)> {
    let path = |name| unfinished.path().join(name);
    for (name, mode) in [(MEMORY, frozen.memory_mode), (STATE, 0o400), (DISK, 0o400)] {
        let path = path(name);
        let finish = || {
            published::sync(&path)?;
            fs::set_permissions(&path, Permissions::from_mode(mode))
        };
        finish().with_context(|| format!("finish {}", path.display()))?;
    }
    let metadata = |name| fs::metadata(path(name)).with_context(|| format!("look at {}", path(name).display()));
    let memory = metadata(MEMORY)?;
    let key = frozen.inputs.key();
    let manifest = Manifest {
        key: key.clone(),
        inputs: frozen.inputs,
        generation: frozen.generation,
        made: published::now(),
        took: frozen.took,
        memory: memory.len(),
        state: metadata(STATE)?.len(),
        disk: metadata(DISK)?.len(),
        memory_used: memory.blocks().saturating_mul(512),
        host_key: frozen.host_key,
        basedir: frozen.basedir,
    };
    let unfinished = unfinished.seal(&manifest)?;
    // One of the same key that is bad may still have clones.
    let names =
        std::iter::once(key.as_str().to_owned()).chain((2..).map(|number| format!("{}.{number}", key.as_str())));
    let free = names.take(100).find(|name| !parent.join(name).exists());
    let name = free.with_context(|| format!("there are too many templates in {}", parent.display()))?;
    unfinished.publish(&parent.join(&name))?;
    published::sync(parent).with_context(|| format!("write {}", parent.display()))?;
    Ok((name, manifest))
}

/// Reads back what a template's directory says it is.
///
/// # Errors
/// It is bad or damaged.
pub(super) fn read(directory: &Path) -> anyhow::Result<Manifest> {
    if directory.join(BAD).exists() {
        bail!("a clone of it failed: {}", published::read_small(&directory.join(BAD))?.trim());
    }
    let manifest: Manifest = published::manifest(directory)?;
    for (name, expected) in [(MEMORY, manifest.memory), (STATE, manifest.state), (DISK, manifest.disk)] {
        let path = directory.join(name);
        let size = fs::metadata(&path).with_context(|| format!("read {}", path.display()))?.len();
        if size != expected {
            bail!("{} has {size} bytes and not {expected}", path.display());
        }
    }
    Ok(manifest)
}

impl Template {
    /// Makes ready for clones what is published under a name and stands on this ground.
    pub(super) async fn open(
        image: &Name,
        parent: &Path,
        name: String,
        manifest: Manifest,
        ground: Ground,
        qemu: &qemu::Qemu,
    ) -> anyhow::Result<Self> {
        let template = Template {
            image: image.clone(),
            name,
            parent: parent.to_owned(),
            manifest,
            _ground: ground.of_template(),
            retired: AtomicBool::new(false),
        };
        let overlay = template.directory().join(OVERLAY);
        if !overlay.exists() {
            let base = qemu::Base { file: template.disk(), format: qemu::Format::Qcow2 };
            if let Err(error) = qemu.create_lasting_overlay(&base, &overlay).await {
                template.retire();
                return Err(error.into());
            }
        }
        Ok(template)
    }

    /// The file that clones map their memory from.
    pub(in crate::pool) fn memory(&self) -> PathBuf {
        self.directory().join(MEMORY)
    }

    /// Its processor's and devices' state, from the beginning.
    pub(in crate::pool) fn state(&self) -> anyhow::Result<File> {
        let path = self.directory().join(STATE);
        File::open(&path).with_context(|| format!("open {}", path.display()))
    }

    /// The disk that clones' overlays lie over.
    pub(in crate::pool) fn disk(&self) -> PathBuf {
        self.directory().join(DISK)
    }

    /// Makes a clone's disk. A copy of an empty overlay is the same as one that qemu-img makes, without the 20 ms that it
    /// takes to start. Blocks.
    pub(in crate::pool) fn overlay(&self, place: &Path) -> anyhow::Result<()> {
        let blank = self.directory().join(OVERLAY);
        let copy = || {
            let mut from = File::open(&blank)?;
            // Not fs::copy, which copies the rights as well.
            let mut to = File::options().write(true).create_new(true).mode(0o600).open(place)?;
            std::io::copy(&mut from, &mut to)
        };
        copy().with_context(|| format!("make {} from {}", place.display(), blank.display()))?;
        Ok(())
    }

    /// The image that it is of.
    pub(in crate::pool) fn image(&self) -> &Name {
        &self.image
    }

    /// Which one it is.
    pub(super) fn key(&self) -> &Key {
        &self.manifest.key
    }

    /// The name of its directory.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Has its files removed when the last clone of it is gone.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Has it not be used by a later run either, because of this. Blocks.
    pub(super) fn condemn(&self, why: &str) {
        self.retire();
        let path = self.directory().join(BAD);
        if let Err(error) = write_whole(&path, why) {
            warn!(image = %self.image, "write {}: {error}", path.display());
        }
    }

    fn directory(&self) -> PathBuf {
        self.parent.join(&self.name)
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        if !*self.retired.get_mut() {
            return;
        }
        let (parent, name, image) =
            (std::mem::take(&mut self.parent), std::mem::take(&mut self.name), self.image.clone());
        let remove = move || match published::remove(&parent, &name) {
            Ok(()) => info!(%image, template = name, "removed a template that is not used any more"),
            Err(error) => warn!(%image, template = name, "remove a template: {error}; the next start tries again"),
        };
        // The files are large.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}
