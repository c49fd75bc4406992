//! What a person on the host is told of templates, and asks of them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::bail;
use protocol::command::Name;
use tokio::time::Instant;

use super::shelf::Sight;
use super::{Kept, Template};
use crate::config::Image;
use crate::pool::{Hypervisor, Pool, VmError, sentence};

/// What came of making a template because somebody asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Made {
    pub template: Listed,
    /// Whether it was there before.
    pub already: bool,
}

/// A template, for people.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Listed {
    pub key: String,
    pub generation: u32,
    /// When it was made, in seconds since the epoch.
    pub made: u64,
    /// How long that took, in seconds.
    pub took: f64,
    /// What it takes of the host's disk, about, in bytes.
    pub bytes: u64,
    /// How many machines stand on it.
    pub clones: usize,
}

/// How an image is off with templates, for people.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outlook {
    pub image: Name,
    pub state: State,
    /// Those that are not used any more, but for the clones that live.
    pub retired: Vec<Listed>,
}

/// Whether an image has a template.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum State {
    /// The image asks for none.
    Off,
    Ready(Listed),
    /// One is going to be made.
    Waiting,
    /// One is being made, for so long.
    Building(Duration),
    /// One is made after this, unless somebody asks before; the last time failed.
    Later(Duration, String),
    /// It failed too often.
    LeftAlone(String),
    /// It can't even be said what it would be made of.
    Unknown(String),
}

impl Listed {
    /// One, of which so many handles are not clones'.
    fn of(template: &Arc<Template>, others: usize) -> Self {
        Listed {
            key: template.key().to_string(),
            generation: template.manifest.generation,
            made: template.manifest.made,
            took: template.manifest.took,
            bytes: template.manifest.bytes(),
            clones: Arc::strong_count(template).saturating_sub(others),
        }
    }
}

impl Pool {
    /// How an image, or each, is off with templates.
    pub(crate) fn templates(&self, image: Option<&Name>) -> Result<Vec<Outlook>, VmError> {
        let images: Vec<_> = match image {
            Some(image) => {
                self.image(image)?;
                vec![image.clone()]
            }
            None => self.images().keys().cloned().collect(),
        };
        Ok(images.iter().map(|image| self.outlook(image)).collect())
    }

    pub(in crate::pool) fn outlook(&self, image: &Name) -> Outlook {
        let (Some((kept, now)), Some(hypervisor)) = (self.0.templates.kept(image), self.0.hypervisor.get()) else {
            return Outlook { image: image.clone(), state: State::Off, retired: Vec::new() };
        };
        let state = match self.0.templates.look(image, &kept, &now, &self.0.generations, hypervisor) {
            // The shelf has it, and so have we.
            Ok((Sight::Ready(template), ..)) => State::Ready(Listed::of(&template, 2)),
            Ok((Sight::Absent, ..)) => State::Waiting,
            Ok((Sight::Building(since), ..)) => State::Building(since.elapsed()),
            Ok((Sight::Later(until, why), ..)) => State::Later(until - Instant::now(), sentence(&why).to_owned()),
            Ok((Sight::LeftAlone(why), ..)) => State::LeftAlone(sentence(&why).to_owned()),
            Err(error) => State::Unknown(format!("{error:#}")),
        };
        let retired =
            kept.retired().iter().filter_map(Weak::upgrade).map(|template| Listed::of(&template, 1)).collect();
        Outlook { image: image.clone(), state, retired }
    }

    /// Has an image's template made now, even if it failed before, and waits for it.
    ///
    /// # Errors
    /// The image has no template, or it could not be made.
    pub(crate) async fn make_template(&self, image: &Name) -> anyhow::Result<Made> {
        let templates = &self.0.templates;
        let (kept, hypervisor, _) = self.templated(image)?;
        let mut changes = templates.changes.subscribe();
        kept.shelf().forgive();
        let before = kept.shelf().ended();
        let mut already = true;
        loop {
            changes.borrow_and_update();
            let (_, _, now) = self.templated(image)?;
            let (sight, ..) = templates.look(image, &kept, &now, &self.0.generations, hypervisor)?;
            if let Sight::Ready(template) = sight {
                return Ok(Made { template: Listed::of(&template, 2), already });
            }
            already = false;
            let (ended, last) = {
                let shelf = kept.shelf();
                (shelf.ended(), shelf.last())
            };
            if ended > before
                && !matches!(sight, Sight::Absent | Sight::Building(_))
                && let Some(Err(why)) = last
            {
                bail!("image '{image}': {why}");
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = templates.stop.cancelled() => bail!("the worker is stopping"),
            }
        }
    }

    /// What making an image's template takes.
    fn templated(&self, image: &Name) -> anyhow::Result<(Arc<Kept>, &Hypervisor, Arc<Image>)> {
        match (self.0.templates.kept(image), self.0.hypervisor.get()) {
            (Some((kept, now)), Some(hypervisor)) => Ok((kept, hypervisor, now)),
            _ => {
                self.image(image)?;
                bail!("image '{image}' has no template; set images.{image}.template = true")
            }
        }
    }
}
