//! How images are used, for people.

use std::path::PathBuf;
use std::sync::Arc;

use protocol::command::Name;

use super::Pool;
use super::templates::State;
use crate::config::Image;

/// What is done with an image.
#[derive(Debug)]
pub(crate) struct ImageUse {
    pub name: Name,
    pub image: Arc<Image>,
    pub template: State,
    /// How many machines are ready, and how many are wanted.
    pub warm: usize,
    pub warm_wanted: usize,
    /// How many machines builders and people have.
    pub machines: usize,
}

impl Pool {
    /// What is done with each image, by name.
    pub(crate) fn image_uses(&self) -> Vec<ImageUse> {
        let image_use = |(name, image): (&Name, &Arc<Image>)| {
            let (warm, warm_wanted) = (usize::from(self.0.warm.ready_of(name)), usize::from(image.warm));
            let machines = self.machines().up().filter(|machine| machine.facts.image_name == *name).count();
            let template = self.outlook(name).state;
            ImageUse { name: name.clone(), image: Arc::clone(image), template, warm, warm_wanted, machines }
        };
        self.images().iter().map(image_use).collect()
    }

    /// Where its files are.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.config().state_dir.clone()
    }
}
