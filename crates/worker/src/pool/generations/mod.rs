//! Images that live: the generations of their disks, which machines start from and builds save.
//!
//! The first is the disk that the configuration names. Saved ones are overlays on such a disk, so that none stands on
//! another and each can go by itself.

mod files;
mod history;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use protocol::command::Name;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::disks;
use super::identity::DiskIdentity;
use super::published::{self, Unfinished};
use super::templates::Template;
use crate::config::Image;
use crate::core_tasks::{CoreTasks, End};
pub(crate) use files::Manifest;
pub(super) use files::{CURRENT, number};
pub(crate) use history::FIRST;
use history::History;

/// The generations of all images. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Generations {
    shared: Arc<Shared>,
    /// The images of which a generation may have become superfluous.
    idle: mpsc::UnboundedSender<Name>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    /// Where the disks are that persist, which stand on generations, too.
    disks: PathBuf,
    /// Those that the configuration has, and those that it had: machines may stand on generations of these.
    images: Mutex<BTreeMap<Name, Arc<Kept>>>,
}

/// One image.
#[derive(Debug)]
struct Kept {
    /// How many generations are kept. None if the configuration does not have the image any more; then all are.
    keep: Mutex<Option<usize>>,
    history: Mutex<History<Manifest>>,
    /// Held while a generation is saved, so that their numbers are in the order of saving.
    saving: tokio::sync::Mutex<()>,
}

/// What a machine stands on. It is kept until this is dropped.
#[derive(Debug)]
pub(super) struct Ground {
    image: Name,
    /// Which generation of the image.
    pub number: u32,
    /// What the machine's overlay lies over.
    pub base: qemu::Base,
    /// The disk of the configuration below that, and which it was when the machine started.
    root: qemu::Base,
    root_identity: DiskIdentity,
    /// The guest's own ssh key, if it is known to be another one than the image's.
    pub host_key: Option<String>,
    /// The template that a clone's overlay lies over, instead of the base.
    template: Option<Arc<Template>>,
    /// Whether it is a template that stands here, and no machine.
    is_template: bool,
    generations: Generations,
}

/// A generation, for people.
#[derive(Debug, Clone)]
pub(crate) struct Generation {
    pub number: u32,
    pub current: bool,
    /// How many machines stand on it, if it is a saved one.
    pub machines: usize,
    /// None for the first.
    pub manifest: Option<Result<Manifest, String>>,
}

/// What was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Published {
    pub number: u32,
    /// Whether machines start from it now.
    pub current: bool,
}

/// How much of a builder's name is written down, in characters.
const MAX_BUILDER: usize = 200;

/// Who saves.
#[derive(Debug)]
pub(super) struct Saver<'a> {
    pub builder: &'a str,
    pub build: Option<u64>,
    pub host_key: String,
}

/// What the files of an image's generations say.
#[derive(Debug)]
pub(crate) struct SavedGenerations {
    /// Which one machines start from.
    pub current: Result<u32, String>,
    /// All of them, oldest first, without a count of machines.
    pub generations: Vec<Generation>,
}

/// Looks at the generations of an image without a pool.
pub(crate) fn look(state_dir: &Path, image: &Name) -> SavedGenerations {
    let history = files::look(&directory(state_dir).join(image.as_str()));
    SavedGenerations { current: history.current(), generations: listed(&history) }
}

/// The directory of all generations.
pub(super) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("generations")
}

fn listed(history: &History<Manifest>) -> Vec<Generation> {
    let current = history.current().ok();
    let generation = |(number, manifest, machines): (u32, Option<&Result<Manifest, String>>, usize)| Generation {
        number,
        current: current == Some(number),
        machines,
        manifest: manifest.cloned(),
    };
    history.all().map(generation).collect()
}

impl Generations {
    /// Reads back what there is, and removes what was not finished.
    pub(super) fn open(state_dir: &Path, images: &BTreeMap<Name, Arc<Image>>, tasks: &CoreTasks) -> Self {
        let shared =
            Shared { disks: disks::directory(state_dir), directory: directory(state_dir), images: Mutex::default() };
        let shared = Arc::new(shared);
        let (idle, idlers) = mpsc::unbounded_channel();
        tokio::spawn(tasks.watch(
            "the task that removes old generations",
            End::Never,
            tidy(Arc::clone(&shared), idlers),
        ));
        let generations = Generations { shared, idle };
        generations.follow(images);
        generations
    }

    /// The same to look at it only: nothing is removed, now or later.
    pub(super) fn peek(state_dir: &Path, images: &BTreeMap<Name, Arc<Image>>) -> Self {
        let directory = directory(state_dir);
        let kept = |(name, image): (&Name, &Arc<Image>)| {
            let kept = Kept::new(files::look(&directory.join(name.as_str())));
            *kept.keep() = Some(image.keep_generations);
            (name.clone(), Arc::new(kept))
        };
        let images = Mutex::new(images.iter().map(kept).collect());
        // Nobody is there to tidy.
        let (idle, _) = mpsc::unbounded_channel();
        Generations { shared: Arc::new(Shared { disks: disks::directory(state_dir), directory, images }), idle }
    }

    /// Takes up the images of a configuration: reads back what there is of those that are new. Of those that are gone
    /// everything stays, as a machine may stand on it, and they may come back.
    pub(super) fn follow(&self, images: &BTreeMap<Name, Arc<Image>>) {
        for (name, kept) in self.shared.images().iter().filter(|(name, _)| !images.contains_key(*name)) {
            if kept.keep().take().is_some() {
                info!(image = %name, "the image is not configured any more; its generations stay");
            }
        }
        for (name, image) in images {
            let known = self.shared.images().get(name).cloned();
            let kept = known.unwrap_or_else(|| {
                let kept = Arc::new(Kept::new(files::read(&self.directory(name))));
                self.shared.images().insert(name.clone(), Arc::clone(&kept));
                kept
            });
            if kept.keep().replace(image.keep_generations).is_none() {
                // What nothing stands on may have been removed while it was not configured.
                kept.history().agree_with(&files::look(&self.directory(name)));
            }
            self.tidy(name);
        }
    }

    /// The directories of generations that something stands on.
    pub(super) fn in_use(&self) -> Vec<PathBuf> {
        let images = self.shared.images();
        let used = images.iter().flat_map(|(name, kept)| {
            let numbers = kept.history().in_use();
            numbers.into_iter().map(|number| self.directory(name).join(number.to_string()))
        });
        used.collect()
    }

    /// What a new machine of an image stands on: its current generation.
    pub(super) fn current(&self, name: &Name, image: &Image) -> anyhow::Result<Ground> {
        let number = self.kept(name)?.history().current().map_err(|why| anyhow!("image '{name}': {why}"))?;
        self.at(name, image, number)
    }

    /// A certain generation.
    ///
    /// # Errors
    /// It is not there or damaged, or the disk it was made on is another one now.
    pub(super) fn at(&self, name: &Name, image: &Image, number: u32) -> anyhow::Result<Ground> {
        let kept = self.kept(name)?;
        let remedy =
            || format!("go back with: kvm-worker image rollback {name} NUMBER, with {FIRST} for the image's own disk");
        let mut history = kept.history();
        let manifest = history.manifest(number);
        let manifest =
            manifest.map_err(|why| anyhow!("generation {number} of image '{name}': {why}; {}", remedy()))?.cloned();
        let (base, root, root_identity, host_key) = match manifest {
            None => {
                let base = super::machine::base(image);
                (base.clone(), base, DiskIdentity::of(&image.disk)?, None)
            }
            Some(manifest) => {
                let Manifest { base: identity, base_format, host_key, .. } = manifest;
                if !identity.still_holds().with_context(|| format!("generation {number} of image '{name}'"))? {
                    bail!(
                        "generation {number} of image '{name}' was saved on {}, which was replaced or changed since; put the \
                         old one back, or {}",
                        identity.file.display(),
                        remedy()
                    );
                }
                let base = qemu::Base { file: files::disk(&self.directory(name), number), format: qemu::Format::Qcow2 };
                let root = qemu::Base { file: identity.file.clone(), format: base_format.into() };
                (base, root, identity, Some(host_key))
            }
        };
        history.count(number, |users| users + 1);
        drop(history);
        Ok(Ground {
            image: name.clone(),
            number,
            base,
            root,
            root_identity,
            host_key,
            template: None,
            is_template: false,
            generations: self.clone(),
        })
    }

    /// Publishes a disk as the next generation of an image. Dropping the future publishes nothing. Nobody may write to the
    /// disk, of which `ground` tells what it stands on.
    pub(super) async fn save(
        &self,
        qemu: &qemu::Qemu,
        image: &Name,
        disk: &Path,
        ground: &Ground,
        saver: Saver<'_>,
        patience: Duration,
    ) -> anyhow::Result<Published> {
        let kept = self.kept(image)?;
        let _turn = tokio::time::timeout(patience, kept.saving.lock())
            .await
            .with_context(|| format!("other builds were saving image '{image}' for {} s", patience.as_secs()))?;
        if !ground.root_identity.still_holds()? {
            bail!("{} was replaced or changed while the vm ran", ground.root.file.display());
        }
        let directory = self.directory(image);
        let unfinished = Unfinished::begin(&directory)?;
        // A fresh machine's guest flushes to nowhere (`cache.no-flush`), yet the overlay is whole once QEMU has exited by
        // itself: with that setting QEMU leaves out fdatasync alone, while everything it caches, the tables of qcow2
        // included, is written when the disk is closed (QEMU 7.2 to 10.0, block/io.c, bdrv_co_flush: "Write back cached data
        // to the OS even with cache=unsafe"). What was written is in the page cache, which is what qemu-img reads. What
        // survives a crash of the host is the copy, which is on the disk before it gets its name.
        let copy = unfinished.path().join(files::DISK);
        qemu.copy_overlay(disk, &ground.root, &copy).await?;
        let size = std::fs::metadata(&copy).context("look at the copy")?.len();
        // Only who saves takes a number, and that is us.
        let number = kept.history().next();
        let manifest = Manifest {
            generation: number,
            base: ground.root_identity.clone(),
            base_format: ground.root.format.into(),
            size,
            saved: published::now(),
            builder: saver.builder.chars().take(MAX_BUILDER).collect(),
            build: saver.build,
            from_image: ground.image.to_string(),
            from: ground.number,
            host_key: saver.host_key,
        };
        let sealing = manifest.clone();
        let unfinished = tokio::task::spawn_blocking(move || unfinished.seal(&sealing)).await??;
        // Nothing is waited for in between, so that it is published and known, or neither.
        unfinished.publish(&directory.join(number.to_string()))?;
        let from = (ground.image == *image).then_some(ground.number);
        let current = kept.history().add(number, manifest, from);
        info!(%image, generation = number, builder = saver.builder, current, "image saved");
        let (generations, name) = (self.clone(), image.clone());
        // What follows is done even if nobody waits for it any more.
        let settled = tokio::task::spawn_blocking(move || generations.settle(&name)).await;
        if let Err(error) = settled.map_err(anyhow::Error::from).flatten() {
            warn!(%image, generation = number, "what was saved may not be there, or not be current, after a crash: {error:#}");
        }
        self.tidy(image);
        Ok(Published { number, current })
    }

    /// Sees to it that what was published, and is current, is so after a crash, too. Blocks.
    fn settle(&self, image: &Name) -> anyhow::Result<()> {
        let (kept, directory) = (self.kept(image)?, self.directory(image));
        published::sync(&directory).with_context(|| format!("write {}", directory.display()))?;
        // Under the lock, so that of two who write the later one writes what holds.
        let history = kept.history();
        files::write_current(&directory, history.chosen())
    }

    /// Has machines start from an earlier generation of an image, or from one that was rolled back; from the one before the
    /// current one, if none is said. Returns its number.
    pub(super) fn roll_back(&self, image: &Name, wanted: Option<u32>) -> anyhow::Result<u32> {
        let kept = self.kept(image)?;
        let mut history = kept.history();
        let (number, current) = history.target(wanted).map_err(|why| anyhow!("image '{image}': {why}"))?;
        files::write_current(&self.directory(image), &current)?;
        history.set_current(current);
        drop(history);
        info!(%image, generation = number, "machines start from this generation now");
        self.tidy(image);
        Ok(number)
    }

    /// An image's generations, oldest first.
    pub(super) fn list(&self, image: &Name) -> anyhow::Result<Vec<Generation>> {
        Ok(listed(&self.kept(image)?.history()))
    }

    fn kept(&self, image: &Name) -> anyhow::Result<Arc<Kept>> {
        self.shared.images().get(image).cloned().with_context(|| format!("there is no image '{image}'"))
    }

    fn directory(&self, image: &Name) -> PathBuf {
        self.shared.directory.join(image.as_str())
    }

    fn tidy(&self, image: &Name) {
        // Fails only if the task has ended, with the runtime.
        let _ = self.idle.send(image.clone());
    }
}

impl Kept {
    fn new(history: History<Manifest>) -> Self {
        Kept { keep: Mutex::default(), history: Mutex::new(history), saving: tokio::sync::Mutex::default() }
    }

    fn keep(&self) -> MutexGuard<'_, Option<usize>> {
        self.keep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn history(&self) -> MutexGuard<'_, History<Manifest>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ground {
    /// That of a clone, which keeps the template as well.
    pub(super) fn below(mut self, template: Arc<Template>) -> Self {
        self.template = Some(template);
        self
    }

    /// That of a template, which is no machine.
    pub(super) fn of_template(mut self) -> Self {
        if !std::mem::replace(&mut self.is_template, true)
            && let Ok(kept) = self.generations.kept(&self.image)
        {
            let mut history = kept.history();
            history.count_templates(self.number, |templates| templates + 1);
            history.count(self.number, |users| users.saturating_sub(1));
        }
        self
    }

    /// The template that a clone stands on.
    pub(super) fn template(&self) -> Option<&Arc<Template>> {
        self.template.as_ref()
    }

    /// Which disk of the configuration there is below everything.
    pub(super) fn root_identity(&self) -> &DiskIdentity {
        &self.root_identity
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Ok(kept) = self.generations.kept(&self.image) {
            let mut history = kept.history();
            let fewer = |count: usize| count.saturating_sub(1);
            match self.is_template {
                true => history.count_templates(self.number, fewer),
                false => history.count(self.number, fewer),
            }
            drop(history);
            self.generations.tidy(&self.image);
        }
    }
}

/// Removes generations that are not needed any more. Ends with the last handle on them.
async fn tidy(shared: Arc<Shared>, mut idle: mpsc::UnboundedReceiver<Name>) {
    while let Some(image) = idle.recv().await {
        let shared = Arc::clone(&shared);
        // Removing large files takes a while.
        let tidied = tokio::task::spawn_blocking(move || shared.remove_superfluous(&image)).await;
        // When the worker ends the last machine of a generation may just have gone: the next start tidies.
        if let Err(error) = tidied.or_else(|error| if error.is_cancelled() { Ok(()) } else { Err(error) }) {
            warn!("remove old generations: {error}");
        }
    }
}

impl Shared {
    fn images(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<Kept>>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_superfluous(&self, image: &Name) {
        let Some(kept) = self.images().get(image).cloned() else { return };
        let Some(keep) = *kept.keep() else { return };
        let directory = self.directory.join(image.as_str());
        let superfluous = {
            let mut history = kept.history();
            // Under the same lock that a machine takes to stand on one: a disk that persists is noted while its first machine
            // stands there.
            let stood_on = match disks::bases(&self.disks, image) {
                Ok(bases) => bases,
                Err(error) => return warn!(%image, "old generations are kept: {error:#}"),
            };
            let numbers = history.all().map(|(number, ..)| number);
            let used: BTreeSet<u32> =
                numbers.filter(|number| stood_on.contains(&files::disk(&directory, *number))).collect();
            let superfluous = history.superfluous(keep, &used);
            superfluous.iter().for_each(|number| history.remove(*number));
            superfluous
        };
        for number in superfluous {
            match published::remove(&directory, &number.to_string()) {
                Ok(()) => info!(%image, generation = number, "removed an old generation"),
                Err(error) => warn!(%image, generation = number, "remove an old generation: {error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests;
