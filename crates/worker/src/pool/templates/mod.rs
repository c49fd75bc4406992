//! Templates: generations that were frozen just after they booted, which machines are cloned from.
//!
//! Each image that asks for one has one, made in the background of what its [inputs] are now. When one of these
//! changes the template is not used any more, and goes with the last clone of it.

mod builder;
mod inputs;
mod outlook;
mod shelf;
mod template;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use protocol::command::Name;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::generations::{Generations, Ground};
use super::published;
use crate::config::Image;
use crate::core_tasks::End;
use inputs::{Inputs, Processor};
pub(crate) use outlook::{Listed, Made, Outlook, State};
use shelf::{Failing, Shelf, Sight};
#[cfg(fuzzing)]
pub(in crate::pool) use template::Manifest as TemplateManifest;
pub(super) use template::Template;

/// The templates of all images that have one.
#[derive(Debug)]
pub(super) struct Templates {
    directory: PathBuf,
    /// The worker's base directory.
    basedir: PathBuf,
    /// Those that have a template, and those that had one.
    images: Mutex<BTreeMap<Name, Arc<Kept>>>,
    /// None if it does not matter, or is not known.
    processor: Option<Processor>,
    /// Tells the builder to look.
    wanted: Notify,
    /// Counts what changed, for those who wait for something.
    changes: watch::Sender<u64>,
    /// Ends the builder.
    stop: CancellationToken,
    /// The place beyond the last slot, where templates are made. Held by who makes one, or who adds slots there.
    place: tokio::sync::Mutex<()>,
    /// Whether somebody wants it who does not wait until a template is made.
    way_wanted: watch::Sender<bool>,
}

/// One image.
#[derive(Debug)]
struct Kept {
    /// None if it has no template any more.
    image: watch::Sender<Option<Arc<Image>>>,
    shelf: Mutex<Shelf<Template>>,
    /// Those that are not used any more, of which clones may live.
    retired: Mutex<Vec<Weak<Template>>>,
}

/// What there is for a machine of an image that has templates.
#[derive(Debug)]
pub(super) enum Offer {
    /// A template, and what a clone of it stands on.
    Clone(Arc<Template>, Ground),
    /// None; the sentence says why, after "booting, as".
    Boot(String),
}

impl Templates {
    /// Those of no image. `basedir` is the worker's.
    pub(super) fn new(state_dir: &Path, basedir: &Path) -> Self {
        let processor = Processor::of_host().inspect_err(|error| warn!("look at the host's processor: {error:#}"));
        Templates {
            directory: directory(state_dir),
            basedir: basedir.to_owned(),
            images: Mutex::default(),
            processor: processor.ok(),
            wanted: Notify::new(),
            changes: watch::Sender::new(0),
            stop: CancellationToken::new(),
            place: tokio::sync::Mutex::default(),
            way_wanted: watch::Sender::new(false),
        }
    }

    /// Takes up the images of a configuration for the first time: reads back what there is, and removes what is not of use
    /// any more.
    pub(super) async fn begin(
        &self,
        images: &BTreeMap<Name, Arc<Image>>,
        generations: &Generations,
        hypervisor: &super::Hypervisor,
    ) {
        let images = with_templates(images);
        self.remove_unwanted_images(&images);
        if !images.is_empty() {
            // Now, rather than by whoever needs it first. An error shows there.
            let _ = tokio::task::spawn_blocking(inputs::this_program).await;
        }
        for (name, image) in &images {
            let shelf = self.read(name, image, generations, hypervisor).await;
            self.images().insert((*name).clone(), Arc::new(Kept::new(image, shelf)));
        }
    }

    /// Takes up the images of another configuration. Nothing is read back: what there is of an image that comes back may go
    /// any moment, with the last clone of it.
    pub(super) fn follow(&self, images: &BTreeMap<Name, Arc<Image>>) {
        let images = with_templates(images);
        for (name, image) in &images {
            let mut all = self.images();
            let kept = all.entry((*name).clone()).or_insert_with(|| Arc::new(Kept::new(image, Shelf::new(None))));
            kept.image.send_replace(Some(Arc::clone(image)));
        }
        for (name, kept) in self.images().iter().filter(|(name, _)| !images.contains_key(*name)) {
            kept.image.send_replace(None);
            kept.retire(name);
        }
        self.wanted.notify_one();
        self.tell();
    }

    /// Waits for the place where templates are made. The one that is being made is given up for that, and made anew later.
    pub(super) async fn clear_place(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.way_wanted.send_replace(true);
        let _wanting = Wanting(&self.way_wanted);
        self.place.lock().await
    }

    /// Those of images that have some, without any that is there already.
    pub(super) fn peek(state_dir: &Path, basedir: &Path, images: &BTreeMap<Name, Arc<Image>>) -> Self {
        let templates = Templates::new(state_dir, basedir);
        for (name, image) in with_templates(images) {
            templates.images().insert(name.clone(), Arc::new(Kept::new(image, Shelf::new(None))));
        }
        templates
    }

    /// The directories of an image's templates that are of no use to a worker that starts now, each with the reason. None
    /// if it is not known what one would be made of.
    pub(super) fn useless(
        &self,
        name: &Name,
        generations: &Generations,
        hypervisor: &super::Hypervisor,
    ) -> Vec<(PathBuf, String)> {
        let Some((_, image)) = self.kept(name) else { return Vec::new() };
        let Ok((_ground, inputs)) = self.inputs(name, &image, generations, hypervisor) else { return Vec::new() };
        let parent = self.parent(name);
        let names = published::look(&parent).1.into_iter().filter(|name| is_name(name));
        let Sorted { useless, .. } = sort(&parent, names, &inputs);
        useless.into_iter().map(|(name, why)| (parent.join(name), why)).collect()
    }

    /// Why a directory of an image's templates is of no use to this worker; none if it is, or may be soon.
    pub(super) fn is_useless(&self, image: &Name, name: &str) -> Option<String> {
        let (kept, _) = self.kept(image)?;
        let shelf = kept.shelf();
        let used = shelf.is_building() || shelf.ready().is_some_and(|template| template.name() == name);
        let retired = || kept.retired().iter().any(|template| template.upgrade().is_some_and(|it| it.name() == name));
        (!used && !retired()).then(|| "the worker does not use it".to_owned())
    }

    /// Removes the templates of images that have none any more.
    fn remove_unwanted_images(&self, images: &BTreeMap<&Name, &Arc<Image>>) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let wanted = |name: &&Name| entry.file_name().to_str() == Some(name.as_str());
            if images.keys().any(wanted) {
                continue;
            }
            let path = entry.path();
            match fs::remove_dir_all(&path) {
                Ok(()) => info!(directory = %path.display(), "removed templates of an image that has none any more"),
                Err(error) => warn!("remove {}: {error}; the next start tries again", path.display()),
            }
        }
    }

    /// Finds the template of an image that an earlier run made, if it is still of use; the others are removed.
    async fn read(
        &self,
        name: &Name,
        image: &Image,
        generations: &Generations,
        hypervisor: &super::Hypervisor,
    ) -> Shelf<Template> {
        let parent = self.parent(name);
        let names = published::read(&parent, "template");
        let now = self.inputs(name, image, generations, hypervisor);
        let (ground, inputs) = match now {
            Ok(now) => now,
            Err(error) => {
                warn!(image = %name, "what the image's template is to be made of is not known: {error:#}");
                return Shelf::new(None);
            }
        };
        let key = inputs.key();
        let mut ready = None;
        let Sorted { good, useless } = sort(&parent, names.into_iter(), &inputs);
        if let Some((directory, manifest)) = good {
            match Template::open(name, &parent, directory, manifest, ground, &hypervisor.qemu).await {
                Ok(template) => {
                    info!(image = %name, template = %key, "a template of an earlier run is of use");
                    ready = Some((key, Arc::new(template)));
                }
                // It was retired, and is gone with this.
                Err(error) => warn!(image = %name, "open a template: {error:#}"),
            }
        }
        for (directory, why) in useless {
            info!(image = %name, template = directory, "removing a template of an earlier run: {why}");
            if let Err(error) = published::remove(&parent, &directory) {
                warn!(image = %name, "remove a template: {error}; the next start tries again");
            }
        }
        Shelf::new(ready)
    }

    /// What a template of an image would stand on and be made of now.
    fn inputs(
        &self,
        name: &Name,
        image: &Image,
        generations: &Generations,
        hypervisor: &super::Hypervisor,
    ) -> anyhow::Result<(Ground, Inputs)> {
        let ground = generations.current(name, image)?;
        let processor = self.processor.as_ref();
        let inputs = Inputs::of(image, &ground, &self.basedir, &hypervisor.qemu, hypervisor.accelerator, processor)?;
        Ok((ground, inputs))
    }

    /// Looks what there is for an image's inputs as they are now.
    fn look(
        &self,
        name: &Name,
        kept: &Kept,
        image: &Image,
        generations: &Generations,
        hypervisor: &super::Hypervisor,
    ) -> anyhow::Result<(Sight<Template>, Ground, Inputs)> {
        let (ground, inputs) = self.inputs(name, image, generations, hypervisor)?;
        let (sight, superseded) = kept.shelf().look(&inputs.key(), Instant::now());
        if let Some(superseded) = superseded {
            let changed = inputs.changes_since(&superseded.manifest.inputs);
            info!(image = %name, template = %superseded.key(), "a template is not used any more; changed: {changed}");
            superseded.retire();
            kept.retired().push(Arc::downgrade(&superseded));
            self.tell();
        }
        if matches!(sight, Sight::Absent) {
            self.wanted.notify_one();
        }
        Ok((sight, ground, inputs))
    }

    /// What there is for a machine of an image; none if the image has no templates.
    pub(super) fn offer(
        &self,
        name: &Name,
        image: &Arc<Image>,
        generations: &Generations,
        hypervisor: &super::Hypervisor,
    ) -> Option<Offer> {
        let (kept, now) = self.kept(name)?;
        if !Arc::ptr_eq(&now, image) {
            // What it is to be made of may not go with the machine that is being made.
            return Some(Offer::Boot("the configuration of its image changes at this moment".to_owned()));
        }
        let offer = match self.look(name, &kept, image, generations, hypervisor) {
            Ok((Sight::Ready(template), ground, _)) => Offer::Clone(template, ground),
            Ok((sight, ground, _)) => {
                let generation = ground.number;
                Offer::Boot(match sight {
                    Sight::Ready(_) | Sight::Absent => {
                        format!("there is no template of generation {generation} yet; one is going to be made")
                    }
                    Sight::Building(since) => {
                        format!("its template is being built, for {:.0} s so far", since.elapsed().as_secs_f64())
                    }
                    Sight::Later(until, why) => format!(
                        "its template failed and is made again in {:.0} s: {}",
                        (until - Instant::now()).as_secs_f64(),
                        super::sentence(&why)
                    ),
                    Sight::LeftAlone(why) => format!(
                        "its template failed too often, until somebody says kvm-worker image template {name}: {}",
                        super::sentence(&why)
                    ),
                })
            }
            Err(error) => Offer::Boot(format!("there is no template: {error:#}")),
        };
        Some(offer)
    }

    /// Whether a template is the one that machines of its image are cloned from.
    pub(super) fn is_current(&self, template: &Arc<Template>) -> bool {
        let kept = self.kept(template.image());
        kept.is_some_and(|(kept, _)| kept.shelf().ready().is_some_and(|ready| Arc::ptr_eq(ready, template)))
    }

    /// Whether there is a template of an image, as far as was looked.
    pub(super) fn has(&self, image: &Name) -> bool {
        self.kept(image).is_some_and(|(kept, _)| kept.shelf().ready().is_some())
    }

    /// Notes that a clone runs.
    pub(super) fn worked(&self, template: &Arc<Template>) {
        if let Some((kept, _)) = self.kept(template.image()) {
            kept.shelf().worked(template);
        }
    }

    /// Notes that a clone failed, for which the template is to blame: it is not used any more, and another is made. Blocks.
    pub(super) fn failed(&self, template: &Arc<Template>, why: &str) {
        let Some((kept, _)) = self.kept(template.image()) else { return };
        let failing = kept.shelf().bad(template, why.to_owned(), Instant::now(), jitter());
        if let Some(failing) = failing {
            template.condemn(super::sentence(why));
            kept.retired().push(Arc::downgrade(template));
            warn!(image = %template.image(), template = %template.key(), "a clone failed, and its template is not used any more: {}", super::sentence(why));
            self.say_what_follows(template.image(), failing);
            self.wanted.notify_one();
            self.tell();
        }
    }

    fn say_what_follows(&self, image: &Name, failing: Failing) {
        match failing {
            Failing::Again(pause) => {
                info!(%image, "another template is made in {:.0} s", pause.as_secs_f64());
            }
            Failing::LeftAlone(times) => warn!(
                %image,
                "the image's template failed {times} times in a row; its machines boot until something that it is made of \
                 changes, or somebody says: kvm-worker image template {image}"
            ),
        }
    }

    /// Has the builder look whether an image's template is still of use.
    pub(super) fn look_again(&self) {
        self.wanted.notify_one();
    }

    /// Changes whenever a template was made or is not used any more.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Ends the builder, and what it is making.
    pub(super) fn close(&self) {
        self.stop.cancel();
    }

    fn tell(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn parent(&self, image: &Name) -> PathBuf {
        self.directory.join(image.as_str())
    }

    /// What is known of an image that has a template, and how it is configured.
    fn kept(&self, image: &Name) -> Option<(Arc<Kept>, Arc<Image>)> {
        let kept = self.images().get(image).cloned()?;
        let image = kept.image()?;
        Some((kept, image))
    }

    /// The images that have a template now.
    fn names(&self) -> Vec<Name> {
        self.images().iter().filter(|(_, kept)| kept.image().is_some()).map(|(name, _)| name.clone()).collect()
    }

    fn images(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<Kept>>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody wants the place where templates are made, until this is dropped.
struct Wanting<'a>(&'a watch::Sender<bool>);

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

/// The images that are to have a template.
fn with_templates(images: &BTreeMap<Name, Arc<Image>>) -> BTreeMap<&Name, &Arc<Image>> {
    images.iter().filter(|(_, image)| image.template).collect()
}

impl Kept {
    fn new(image: &Arc<Image>, shelf: Shelf<Template>) -> Self {
        Kept { image: watch::Sender::new(Some(Arc::clone(image))), shelf: Mutex::new(shelf), retired: Mutex::default() }
    }

    /// How the image is configured; none if it has no template any more.
    fn image(&self) -> Option<Arc<Image>> {
        self.image.borrow().clone()
    }

    /// Has the template not be used any more, as its image has none.
    fn retire(&self, name: &Name) {
        let cleared = self.shelf().clear();
        if let Some(template) = cleared {
            info!(image = %name, template = %template.key(), "a template is not used any more: its image has none now");
            template.retire();
            self.retired().push(Arc::downgrade(&template));
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf<Template>> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that are not used any more and still there.
    fn retired(&self) -> MutexGuard<'_, Vec<Weak<Template>>> {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|template| template.strong_count() > 0);
        retired
    }
}

/// An image's templates, by the names of their directories.
struct Sorted {
    /// The one that is of use.
    good: Option<(String, template::Manifest)>,
    /// Those that are not, and why.
    useless: Vec<(String, String)>,
}

/// Finds out which of an image's templates is of use.
fn sort(parent: &Path, names: impl Iterator<Item = String>, inputs: &Inputs) -> Sorted {
    let key = inputs.key();
    let (mut good, mut useless) = (None, Vec::new());
    for name in names {
        let why = match template::read(&parent.join(&name)) {
            Ok(manifest) if manifest.key == key && good.is_none() => {
                good = Some((name, manifest));
                continue;
            }
            Ok(manifest) if manifest.key == key => "there is another one".to_owned(),
            Ok(manifest) => format!("changed since: {}", inputs.changes_since(&manifest.inputs)),
            Err(error) => format!("{error:#}"),
        };
        useless.push((name, why));
    }
    Sorted { good, useless }
}

/// The directory of all templates.
pub(super) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("templates")
}

/// Whether a directory has the name of a template: its key, and a number if that was taken.
pub(super) fn is_name(name: &str) -> bool {
    let (key, number) = name.split_once('.').unwrap_or((name, "2"));
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    key.len() == 64
        && key.bytes().all(is_digit)
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// What pauses are lengthened or shortened by, so that they don't fall together with what failed.
fn jitter() -> f64 {
    rand::Rng::random_range(&mut rand::rng(), 0.75..1.25)
}

impl super::Pool {
    /// Begins to make templates in the background.
    pub(super) fn keep_templates(&self) {
        let end = End::Cancelled(self.0.templates.stop.clone());
        let building = builder::keep(self.clone());
        self.0.tasks.spawn(self.0.core.watch("the task that makes templates", end, building));
    }
}

#[cfg(test)]
mod tests;
