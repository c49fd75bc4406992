//! Looks what there is in a state directory. Removes nothing, and follows no symbolic link.

use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use protocol::command::Name;

use super::backing::backing;
use super::{Kind, Piece};
use crate::pool::{disks, generations, host_keys, slots, templates};

/// What there is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub pieces: Vec<Piece>,
    /// Which disk lies over which.
    pub stands: Vec<(PathBuf, PathBuf)>,
}

/// Looks at everything.
///
/// # Errors
/// Something can't be read, so that it is not known what is needed.
pub(super) fn scan(state_dir: &Path) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    for (image, directory) in of_images(&generations::directory(state_dir))? {
        for entry in entries(&directory)? {
            let name = text(&entry);
            match generations::number(&name) {
                _ if is_unfinished(&name) => seen.add(Kind::Unfinished, &image, &entry),
                Some(number) if is_directory(&entry) => seen.add(Kind::Generation(number), &image, &entry),
                _ => {}
            }
            seen.look_below(&entry)?;
        }
    }
    for (image, directory) in of_images(&templates::directory(state_dir))? {
        for entry in entries(&directory)? {
            let name = text(&entry);
            if is_unfinished(&name) {
                seen.add(Kind::Unfinished, &image, &entry);
            } else if templates::is_name(&name) && is_directory(&entry) {
                seen.add(Kind::Template(name), &image, &entry);
            }
            seen.look_below(&entry)?;
        }
    }
    for (image, directory) in of_images(&disks::directory(state_dir))? {
        for entry in entries(&directory)? {
            let name = text(&entry);
            let vm = name.strip_suffix(".qcow2").and_then(Name::new);
            if let Some(vm) = vm.filter(|_| is_file(&entry)) {
                seen.add(Kind::Disk(vm), &image, &entry);
            }
            seen.look_at(&entry.path())?;
        }
    }
    for entry in entries(&host_keys::directory(state_dir))? {
        let name = text(&entry);
        if let Some(image) = name.strip_suffix(".pub").and_then(Name::new).filter(|_| is_file(&entry)) {
            seen.add(Kind::HostKey, &image, &entry);
        }
    }
    for slot in entries(&slots::directory(state_dir))? {
        seen.look_below(&slot)?;
    }
    Ok(seen)
}

impl Seen {
    fn add(&mut self, kind: Kind, image: &Name, entry: &DirEntry) {
        let path = entry.path();
        self.pieces.push(Piece { kind, image: image.clone(), bytes: size(&path), path });
    }

    /// Notes what the disks in a directory lie over.
    fn look_below(&mut self, directory: &DirEntry) -> anyhow::Result<()> {
        if is_directory(directory) {
            for entry in entries(&directory.path())? {
                self.look_at(&entry.path())?;
            }
        }
        Ok(())
    }

    fn look_at(&mut self, file: &Path) -> anyhow::Result<()> {
        // Also what is called `overlay.qcow2.new` while it is made.
        let is_disk = file.file_name().is_some_and(|name| name.to_string_lossy().contains(".qcow2"));
        if !is_disk || !fs::symlink_metadata(file).is_ok_and(|metadata| metadata.is_file()) {
            return Ok(());
        }
        match backing(file) {
            Ok(below) => self.stands.extend(below.map(|below| (file.to_owned(), below))),
            // Its machine has just ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "find out what {} lies over; nothing is removed as long as that is not known",
                        file.display()
                    )
                });
            }
        }
        Ok(())
    }
}

/// The directories of images below one.
fn of_images(parent: &Path) -> anyhow::Result<Vec<(Name, PathBuf)>> {
    let images = entries(parent)?.into_iter().filter(is_directory);
    Ok(images.filter_map(|entry| Some((Name::new(&text(&entry))?, entry.path()))).collect())
}

/// What is in a directory, by name; nothing if there is none, or it is a symbolic link.
fn entries(directory: &Path) -> anyhow::Result<Vec<DirEntry>> {
    if !fs::symlink_metadata(directory).is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(Vec::new());
    }
    let read = || fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>();
    match read() {
        Ok(mut entries) => {
            entries.sort_by_key(DirEntry::file_name);
            Ok(entries)
        }
        // Gone since it was seen.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => {
            Err(error).with_context(|| format!("read {}; run this as the worker's user", directory.display()))
        }
    }
}

fn text(entry: &DirEntry) -> String {
    entry.file_name().to_string_lossy().into_owned()
}

fn is_unfinished(name: &str) -> bool {
    name.starts_with("new-") || name.starts_with("gone-")
}

fn is_directory(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

fn is_file(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_file())
}

/// What a file, or all below a directory, takes of the host's disk.
fn size(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let below = if metadata.is_dir() { fs::read_dir(path).ok() } else { None };
    let below: u64 = below.into_iter().flatten().flatten().map(|entry| size(&entry.path())).sum();
    metadata.blocks() * 512 + below
}
