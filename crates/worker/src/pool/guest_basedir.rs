//! What the worker's basedir is called in a guest.
//!
//! A master makes paths out of the basedir that the worker tells it, in places where nobody can find and change them: a key's in
//! a command line, a cache's in a variable. They are right in a guest that has a directory of the very same name, which is made
//! for it when it booted. Where that can't be, builds are somewhere else, and the master is told where.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use ssh::Session;
use tracing::warn;

use super::greeting::Environment;
use super::guest_command;
use crate::config::{Image, is_ambiguous};

/// Where builds' directories are in guests that tell of no home, as those with another system than Unix may not.
const WITHOUT_HOME: &str = "/home/buildbot";

/// What the worker's basedir is called in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuestBasedir {
    /// Its path there.
    pub path: PathBuf,
    /// How it came to be that.
    pub origin: Origin,
}

/// How a guest's path came to be what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Origin {
    /// It is the host's.
    Host,
    /// The image's `guest_basedir` says so.
    Image,
    /// It can't be the host's in this guest; why, as a clause.
    Instead(String),
}

/// What a guest is to have, before anybody asked it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// What its image says, or the basedir of the host.
    First(&'a Path),
    /// What it had before it restarted.
    Again(&'a GuestBasedir),
}

impl GuestBasedir {
    /// One that is the host's.
    pub(crate) fn of_host(path: &Path) -> Self {
        GuestBasedir { path: path.to_owned(), origin: Origin::Host }
    }

    /// A sentence for who has paths of the host in mind; nothing if they are right in the guest.
    pub(crate) fn notice(&self, host: &Path) -> Option<String> {
        let (here, there) = (host.display(), self.path.display());
        match &self.origin {
            _ if self.path == host => None,
            Origin::Host => None,
            Origin::Image => Some(format!(
                "the worker's basedir {here} is {there} in this guest, as guest_basedir of its image says"
            )),
            Origin::Instead(why) => Some(format!(
                "the worker's basedir {here} is {there} in this guest, where it can't be made as on the host: {why}"
            )),
        }
    }
}

/// What a guest would have if all goes well: a text that differs when that does.
pub(super) fn intended(image: &Image, host: &Path) -> String {
    let (path, whose) = match &image.guest_basedir {
        Some(path) => (path.as_path(), "as the image says"),
        None => (host, "as on the host"),
    };
    format!("{}, {whose}", path.display())
}

/// Finds out what the worker's basedir is called in a guest that has booted, and makes it there.
///
/// # Errors
/// The guest can't have what its image says, or not what it had before; or there is no place for builds in it.
pub(super) async fn settle(
    session: &Session,
    image: &Image,
    wanted: Wanted<'_>,
    environment: &Environment,
) -> anyhow::Result<GuestBasedir> {
    match (wanted, &image.guest_basedir) {
        (Wanted::Again(before), _) => {
            if !matches!(before.origin, Origin::Instead(_)) {
                make(session, image, &before.path).await.with_context(|| doing(&before.path))?;
            }
            Ok(before.clone())
        }
        (Wanted::First(_), Some(path)) => {
            make(session, image, path).await.with_context(|| format!("{}, its guest_basedir", doing(path)))?;
            Ok(GuestBasedir { path: path.clone(), origin: Origin::Image })
        }
        (Wanted::First(host), None) => {
            let why = match make(session, image, host).await {
                Ok(Made::Yes) => return Ok(GuestBasedir::of_host(host)),
                Ok(Made::CannotTell) => "its profile has no basedir command".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            let basedir = instead(host, environment, why)?;
            warn!("{}", basedir.notice(host).unwrap_or_default());
            Ok(basedir)
        }
    }
}

/// Where builds are if not where they are on the host: in the home of the image's user.
fn instead(host: &Path, environment: &Environment, why: String) -> anyhow::Result<GuestBasedir> {
    let home = environment.iter().find(|(name, value)| name == "HOME" && value.starts_with('/'));
    let path = PathBuf::from(home.map_or(WITHOUT_HOME, |(_, home)| home.as_str()));
    if path == *host || is_ambiguous(&path, host) {
        bail!("{}: {why}; set guest_basedir of the image to a directory that its user may have", doing(host));
    }
    Ok(GuestBasedir { path, origin: Origin::Instead(why) })
}

fn doing(path: &Path) -> String {
    format!("make {} in the guest for its builds", path.display())
}

/// Whether a directory was made.
enum Made {
    Yes,
    /// Nobody said how to, and it may be there.
    CannotTell,
}

async fn make(session: &Session, image: &Image, path: &Path) -> anyhow::Result<Made> {
    // What is configured is text.
    let directory = path.to_string_lossy();
    match image.profile.fill(&image.profile.basedir, &[("directory", &directory)]) {
        Some(command) => guest_command::run(session, &command).await.map(|_| Made::Yes),
        None => Ok(Made::CannotTell),
    }
}

#[cfg(test)]
mod tests;
