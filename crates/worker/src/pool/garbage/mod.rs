//! What is kept in a state directory and nothing will use any more.
//!
//! ```text
//! scan ─▶ Seen ─▶ plan ─▶ what goes and what stays, with the reason ─▶ sweep
//! ```
//!
//! What a machine, a template or a persistent disk stands on stays, whatever the configuration says: that is read from the
//! disks themselves. Symbolic links are never followed, and what has not a name of ours is left alone.

mod backing;
mod offline;
mod plan;
mod scan;
mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::Context;
use protocol::command::Name;

use super::{Pool, published};
pub(crate) use offline::collect as collect_offline;

/// Something of ours in the state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub kind: Kind,
    /// Whose it is.
    pub image: Name,
    pub path: PathBuf,
    /// What it takes of the host's disk.
    pub bytes: u64,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// What was not finished, or not removed, when a worker ended.
    Unfinished,
    /// A generation that a build saved.
    Generation(u32),
    /// A template, by the name of its directory.
    Template(String),
    /// A disk that persists, of the VM of this name.
    Disk(Name),
    /// The ssh key that guests of the image showed at their first boot.
    HostKey,
}

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Whether nothing is removed, and only said what would be.
    pub dry_run: bool,
    /// Whether persistent disks go, too. They have somebody's data.
    pub disks: bool,
}

/// What came of it: each piece with the reason.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Collected {
    /// What went, or would go.
    pub removed: Vec<(Piece, String)>,
    /// What could not be removed.
    pub failed: Vec<(Piece, String)>,
    /// What nothing in the configuration uses, and stays.
    pub kept: Vec<(Piece, String)>,
}

/// What is known beside what is on the disk.
#[derive(Debug, Default)]
struct World {
    /// The images of the configuration, and whether they have templates.
    images: BTreeMap<Name, bool>,
    /// What is being made or removed at this moment, or used by a machine.
    busy: BTreeSet<PathBuf>,
    /// Directories of templates that are of no use, and why.
    useless: BTreeMap<PathBuf, String>,
}

impl Pool {
    /// Removes what nothing will use any more, while machines run.
    ///
    /// # Errors
    /// It can't be seen what is in use.
    pub(crate) async fn collect_garbage(&self, wish: Wish) -> anyhow::Result<Collected> {
        let pool = self.clone();
        // Reads directories and removes large files.
        let collected = tokio::task::spawn_blocking(move || {
            let state_dir = &pool.config().state_dir;
            let seen = scan::scan(state_dir)?;
            let world = pool.world(&seen);
            anyhow::Ok(sweep::sweep(state_dir, plan::plan(&seen, &world, wish.disks), wish.dry_run))
        });
        collected.await.context("collect garbage")?
    }

    fn world(&self, seen: &scan::Seen) -> World {
        let images = self.images();
        let images = images.iter().map(|(name, image)| (name.clone(), image.template));
        let templates = seen.pieces.iter().filter_map(|piece| match &piece.kind {
            Kind::Template(name) => Some((piece, self.0.templates.is_useless(&piece.image, name)?)),
            _ => None,
        });
        let disks = seen.pieces.iter().filter(|piece| match &piece.kind {
            Kind::Disk(vm) => self.0.disks.is_locked(&piece.image, vm),
            _ => false,
        });
        // A machine that is about to start stands on what its disk does not tell yet.
        let used = self.0.generations.in_use();
        World {
            images: images.collect(),
            busy: published::alive().into_iter().chain(disks.map(|piece| piece.path.clone())).chain(used).collect(),
            useless: templates.map(|(piece, why)| (piece.path.clone(), why)).collect(),
        }
    }
}
