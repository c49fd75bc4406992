//! Removes what is to go. Blocks.

use std::fs;
use std::io;
use std::path::Path;

use tracing::info;

use super::plan::Plan;
use super::{Collected, Kind, Piece};
use crate::pool::{disks, generations, published};

/// Does what was planned, or only says what that is. What stands on others goes before them.
pub(super) fn sweep(state_dir: &Path, plan: Plan, dry_run: bool) -> Collected {
    let Plan { mut go, stay } = plan;
    let mut collected = Collected { kept: stay, ..Collected::default() };
    if dry_run {
        collected.removed = go;
        return collected;
    }
    go.sort_by_key(|(piece, _)| match piece.kind {
        Kind::Unfinished | Kind::HostKey => 0,
        Kind::Disk(_) => 1,
        Kind::Template(_) => 2,
        Kind::Generation(_) => 3,
    });
    for (piece, why) in go {
        match remove(&piece) {
            Ok(()) => {
                info!(image = %piece.image, path = %piece.path.display(), "removed: {why}");
                tidy(state_dir, &piece);
                collected.removed.push((piece, why));
            }
            Err(error) => collected.failed.push((piece, error.to_string())),
        }
    }
    collected
}

fn remove(piece: &Piece) -> io::Result<()> {
    let (parent, name) = (piece.path.parent(), piece.path.file_name().and_then(|name| name.to_str()));
    let (Some(parent), Some(name)) = (parent, name) else { return Err(io::ErrorKind::InvalidInput.into()) };
    let removed = match piece.kind {
        // Never half of one.
        Kind::Generation(_) | Kind::Template(_) => published::remove(parent, name),
        Kind::Unfinished => fs::remove_dir_all(&piece.path),
        Kind::HostKey => fs::remove_file(&piece.path),
        Kind::Disk(_) => fs::remove_file(&piece.path).and_then(|()| fs::remove_file(disks::note(&piece.path))),
    };
    match removed {
        // Somebody else was faster, or it had no note.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Removes what is left of an image that has nothing any more: an empty directory, after the note of which generation was
/// chosen. What is not ours keeps it.
fn tidy(state_dir: &Path, piece: &Piece) {
    let Some(directory) = piece.path.parent() else { return };
    if matches!(piece.kind, Kind::HostKey | Kind::Unfinished) {
        return;
    }
    if directory == generations::directory(state_dir).join(piece.image.as_str()) {
        let names: Vec<_> =
            fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
        if names.iter().all(|name| name == generations::CURRENT) {
            let _ = fs::remove_file(directory.join(generations::CURRENT));
        }
    }
    // Fails if there is something in it.
    let _ = fs::remove_dir(directory);
}
