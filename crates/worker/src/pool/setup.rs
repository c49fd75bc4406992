//! What the configuration tells the pool. It may be told anew at any time, and machines that run do not notice: each has
//! what it was started with, and who starts one takes what holds at that moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use protocol::command::Name;
use tracing::warn;

use super::budget::{Limits, Need};
use super::machine::Shape;
use super::slot::Slot;
use super::{Hypervisor, Pool, SETTLING, VmError, slots};
use crate::config::{self, Config, Image};

/// How long the template that is being made may take to make way for new slots.
const MAKING_WAY: Duration = Duration::from_secs(60);

/// The images, by name. One that stays as it is stays the same value when the configuration is told anew.
pub(super) type Images = BTreeMap<Name, Arc<Image>>;

/// What holds for whatever begins now. Replaced as a whole.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub config: Arc<config::Pool>,
    pub images: Arc<Images>,
}

impl Setup {
    /// That of a pool that has no images yet.
    pub(super) fn empty(config: &config::Pool) -> Self {
        Setup { config: Arc::new(config.clone()), images: Arc::default() }
    }

    fn next(&self, config: &Config) -> Self {
        let same = |name: &Name, image: &Image| self.images.get(name).filter(|old| ***old == *image).cloned();
        let next = |(name, image): (&Name, &Image)| {
            (name.clone(), same(name, image).unwrap_or_else(|| Arc::new(image.clone())))
        };
        Setup { config: Arc::new(config.pool.clone()), images: Arc::new(config.images.iter().map(next).collect()) }
    }
}

impl Pool {
    /// Takes up a configuration: the first one, or another one while machines run. What says where the pool is (its state
    /// directory, its ports, QEMU) has to be as it was. Where there are images for the first time, all is done that the
    /// start of a worker with images does.
    ///
    /// # Errors
    /// QEMU can't be used, or there was no place for new slots. Then nothing has changed.
    pub(super) async fn take_up(&self, config: &Config) -> anyhow::Result<()> {
        let before = self.setup();
        let next = before.next(config);
        let first = match self.0.hypervisor.get() {
            None if next.images.is_empty() => {
                self.0.setup.send_replace(next);
                return Ok(());
            }
            None => {
                let claim = self.claim_state_dir(&config.pool)?;
                let hypervisor = Hypervisor::look(&config.pool).await?;
                claim.say_what_was_left();
                claim.begin();
                Some(hypervisor)
            }
            Some(_) => None,
        };
        self.have_slots(&config.pool, first.is_some()).await?;
        self.0.budget.set(Limits::of(&config.pool));
        self.warn_of(&before.images, &next.images);
        let images = Arc::clone(&next.images);
        self.0.generations.follow(&images);
        match first {
            Some(hypervisor) => {
                self.0.templates.begin(&images, &self.0.generations, &hypervisor).await;
                // Only who opened one comes here, and there is one such caller at a time.
                let _ = self.0.hypervisor.set(hypervisor);
                self.0.setup.send_replace(next);
            }
            None => {
                self.0.setup.send_replace(next);
                self.0.templates.follow(&images);
            }
        }
        Ok(())
    }

    /// Takes up another configuration while machines run, as [`take_up`](Self::take_up) does.
    pub(crate) async fn reload(&self, config: &Config) -> anyhow::Result<()> {
        let begins = self.0.hypervisor.get().is_none();
        self.take_up(config).await?;
        if begins {
            self.keep_up();
        }
        Ok(())
    }

    /// Begins to make in the background what is to be there for machines to come. To be called once there are images.
    pub(super) fn keep_up(&self) {
        if self.0.hypervisor.get().is_some() {
            self.keep_templates();
            self.keep_warm();
        }
    }

    /// Has so many slots be there as the configuration says.
    async fn have_slots(&self, config: &config::Pool, first: bool) -> anyhow::Result<()> {
        if first {
            slots::clean_beyond(&config.state_dir.join("slots"), config.slots, config.ssh_port_base).await;
        }
        let wanted = (0..config.slots).map(|number| slot_numbered(config, number)).collect();
        // A template is made where the next slot would be.
        let place = match config.slots > self.0.slots.census().beyond {
            true => Some(
                tokio::time::timeout(MAKING_WAY, self.0.templates.clear_place())
                    .await
                    .context("add slots: the template that is being made does not make way; try again later")?,
            ),
            false => None,
        };
        self.0.slots.set(wanted).await;
        drop(place);
        // Before anything of an earlier run is removed, what uses it has to be gone.
        if first && tokio::time::timeout(SETTLING, self.0.slots.settled()).await.is_err() {
            warn!("slots of an earlier run are still being cleaned");
        }
        Ok(())
    }

    /// Says what can be seen to be wrong with images, but for those that were there before.
    fn warn_of(&self, before: &Images, images: &Images) {
        let is_new = |name: &Name, image: &Arc<Image>| before.get(name).is_none_or(|old| !Arc::ptr_eq(old, image));
        for (name, image) in images.iter().filter(|(name, image)| is_new(name, image)) {
            if let Err(error) = std::fs::metadata(&image.disk) {
                warn!(image = %name, disk = %image.disk.display(), "an image's disk can't be read: {error}");
            }
            if let Some(excess) = self.0.budget.never(Need::of(image, Shape::fresh(image))) {
                warn!(image = %name, "no machine of the image will start: {excess}");
            }
        }
    }

    fn setup(&self) -> Setup {
        self.0.setup.borrow().clone()
    }

    /// What the configuration says of the pool now.
    pub(super) fn config(&self) -> Arc<config::Pool> {
        Arc::clone(&self.0.setup.borrow().config)
    }

    /// The images that there are now.
    pub(super) fn images(&self) -> Arc<Images> {
        Arc::clone(&self.0.setup.borrow().images)
    }

    /// An image as it is configured now.
    pub(super) fn image(&self, name: &Name) -> Result<Arc<Image>, VmError> {
        let images = self.images();
        let image = images.get(name).cloned();
        image.ok_or_else(|| VmError::NoSuchImage { image: name.clone(), known: images.keys().cloned().collect() })
    }

    /// The slot of a number, whether or not there is one.
    pub(super) fn slot_numbered(&self, number: u16) -> Slot {
        slot_numbered(&self.0.setup.borrow().config, number)
    }
}

fn slot_numbered(config: &config::Pool, number: u16) -> Slot {
    Slot::new(number, config.ssh_port_base, &config.state_dir.join("slots"))
}
