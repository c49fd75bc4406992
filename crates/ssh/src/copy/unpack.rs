//! The host's end of a copy out: a tar stream from a guest that may be hostile becomes files below one directory.
//!
//! Every name is resolved from that directory's file descriptor, one component at a time and without following links,
//! so that no link in the stream, nor one that was there before, leads outside.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cap_std::fs::Dir;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::archive::{self, BLOCK, Entry, Kind};
use super::error::{CopyError, Side};
use super::{Copied, Tally};
use crate::launch;
use crate::tar_time::TarTime;

/// How much is written at once, in bytes.
const WRITE: usize = 256 * 1024;

/// What may follow the end of an archive, in bytes: tar fills its last record, of 10 KiB unless told otherwise.
const MAX_TRAILER: u64 = 1 << 20;

/// The longest path that is taken, in bytes: Linux's PATH_MAX.
const MAX_PATH: usize = 4096;

/// After how much of a file it is looked how much space is left, in bytes: others write to the disk, too.
const LOOK: u64 = 64 << 20;

/// Where and how to unpack.
#[derive(Debug)]
pub(super) struct Destination {
    /// An existing directory.
    pub root: Dir,
    /// What it is, or will be, called.
    pub shown: PathBuf,
    /// Whether somebody may be looking at it, so that files must appear there only when complete.
    pub live: bool,
    /// Whether modes and times are kept.
    pub preserve: bool,
    /// What the archive has to hold.
    pub what: What,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// A directory's contents.
    Tree,
    /// One regular file of this name, and nothing else: a link would be followed by who reads what arrives.
    File { name: PathBuf },
}

/// Unpacks a stream, and returns what was in it.
pub(super) fn unpack(mut from: impl Read, destination: Destination, tally: Tally) -> Result<Copied, CopyError> {
    let (root, again) = (opened(&destination)?, opened(&destination)?);
    let mut unpack = Unpack {
        destination: &destination,
        temporary: format!(".{}.part", launch::nonce()).into(),
        parent: (PathBuf::new(), again),
        root,
        open: Vec::new(),
        tally,
        buffer: vec![0; WRITE],
    };
    while let Some(entry) = archive::read(&mut from)? {
        unpack.entry(&entry, &mut from)?;
    }
    trailer(&mut from)?;
    unpack.leave(None)?;
    Ok(unpack.tally.copied)
}

/// Opens the directory again, so that its mode and time can be set: cap-std's own descriptors are no good for that.
fn opened(destination: &Destination) -> Result<OwnedFd, CopyError> {
    fs::openat(&destination.root, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| CopyError::host("open", &destination.shown, &error.into()))
}

/// Reads what follows the end, so that the guest's tar does not fail for want of a reader.
fn trailer(from: &mut impl Read) -> Result<(), CopyError> {
    let read = io::copy(&mut from.take(MAX_TRAILER), &mut io::sink()).map_err(|error| hostile(error.to_string()))?;
    match read < MAX_TRAILER {
        true => Ok(()),
        false => Err(hostile("it goes on after its end".to_owned())),
    }
}

struct Unpack<'a> {
    destination: &'a Destination,
    root: OwnedFd,
    /// The directory of the last entry, as the next one is most often there too.
    parent: (PathBuf, OwnedFd),
    /// The name under which a file is written before it has its own.
    temporary: PathBuf,
    /// Directories whose mode and time must wait until nothing is written into them any more, each in the one before it.
    /// Others are not remembered: there may be a million of them, with long names.
    open: Vec<(PathBuf, u32, TarTime)>,
    tally: Tally,
    buffer: Vec<u8>,
}

impl Unpack<'_> {
    fn entry(&mut self, entry: &Entry, from: &mut impl Read) -> Result<(), CopyError> {
        self.tally.entry()?;
        let path = inside(&entry.path)?;
        if let What::File { name } = &self.destination.what
            && !(path == *name && matches!(entry.kind, Kind::File { .. }) && self.tally.copied.files == 0)
        {
            return Err(hostile(format!("it has {path:?}, and the file {name:?} was asked for")));
        }
        self.leave(Some(&path))?;
        // Names take space, too.
        self.room(if let Kind::File { size } = entry.kind { size } else { 0 })?;
        match &entry.kind {
            Kind::Directory => self.directory(path, entry),
            Kind::File { size } => {
                self.tally.file(*size)?;
                self.place(&path, |unpack, parent, name| unpack.file(parent, name, &path, entry, *size, from))
            }
            Kind::Symlink { target } => {
                self.tally.copied.links += 1;
                let target = OsStr::from_bytes(target);
                self.place(&path, |unpack, parent, name| unpack.symlink(parent, name, &path, entry, target))
            }
            Kind::Hardlink { target } => {
                self.tally.copied.files += 1;
                let target = inside(target)?;
                self.place(&path, |unpack, parent, name| unpack.hardlink(parent, name, &path, &target))
            }
            Kind::Special { what } => {
                self.tally.skip(path.as_os_str().as_bytes(), what);
                Ok(())
            }
        }
    }

    fn directory(&mut self, path: PathBuf, entry: &Entry) -> Result<(), CopyError> {
        self.tally.copied.directories += 1;
        if path.as_os_str().is_empty() {
            // The destination itself: one that was there before keeps its mode and time.
            if !self.destination.live {
                self.fill(path, entry);
            }
            return Ok(());
        }
        let mode = match self.destination.preserve {
            true => Mode::RWXU,
            false => Mode::from_raw_mode(entry.mode | 0o700),
        };
        let (parent, name) = self.open_parent(&path)?;
        let existed = match fs::mkdirat(&parent, name, mode) {
            Ok(()) => false,
            Err(Errno::EXIST) => true,
            Err(error) => return Err(self.failed("make", &path, error)),
        };
        let directory = self.open_directory(&parent, Path::new(name), &path)?;
        if existed && self.destination.preserve {
            // Its last mode may not let us write.
            let _ = fs::fchmod(&directory, Mode::from_raw_mode(entry.mode) | Mode::RWXU);
        }
        self.fill(path, entry);
        Ok(())
    }

    /// Remembers what a directory is to have once it is full.
    fn fill(&mut self, path: PathBuf, entry: &Entry) {
        if self.destination.preserve {
            self.open.push((path, entry.mode, entry.mtime));
        }
    }

    /// Lets `make` make something under a name in its directory, replacing what is there unless it is a directory.
    fn place(
        &mut self,
        path: &Path,
        make: impl FnOnce(&mut Self, &OwnedFd, &Path) -> Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        let (parent, name) = self.open_parent(path)?;
        let (name, temporary) = (Path::new(name), self.temporary.clone());
        let made_as = match self.destination.live {
            true => &temporary,
            false => {
                // Nobody looks, but an archive may hold a name twice.
                match fs::unlinkat(&parent, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => name,
                    Err(Errno::ISDIR) => return Err(self.in_the_way(path, "it is a directory")),
                    Err(error) => return Err(self.failed("replace", path, error)),
                }
            }
        };
        let placed = make(self, &parent, made_as).and_then(|()| match self.destination.live {
            true => fs::renameat(&parent, made_as, &parent, name).map_err(|error| match error {
                Errno::ISDIR => self.in_the_way(path, "it is a directory"),
                error => self.failed("write", path, error),
            }),
            false => Ok(()),
        });
        // Renaming one name of a file onto another does nothing, and leaves the first.
        if self.destination.live && (placed.is_err() || fs::statat(&parent, made_as, AtFlags::SYMLINK_NOFOLLOW).is_ok())
        {
            let _ = fs::unlinkat(&parent, made_as, AtFlags::empty());
        }
        placed
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &Path,
        path: &Path,
        entry: &Entry,
        size: u64,
        from: &mut impl Read,
    ) -> Result<(), CopyError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = match self.destination.preserve {
            true => Mode::RUSR | Mode::WUSR,
            false => Mode::from_raw_mode(entry.mode),
        };
        let file = fs::openat(parent, name, flags, mode).map_err(|error| self.failed("write", path, error))?;
        let mut file = File::from(file);
        self.contents(&mut file, path, size, from)?;
        if self.destination.preserve {
            let kept = fs::fchmod(&file, Mode::from_raw_mode(entry.mode))
                .and_then(|()| fs::futimens(&file, &times(entry.mtime)));
            kept.map_err(|error| self.failed("set mode and time of", path, error))?;
        }
        Ok(())
    }

    fn contents(&mut self, file: &mut File, path: &Path, size: u64, from: &mut impl Read) -> Result<(), CopyError> {
        let (mut left, mut unlooked) = (size, 0);
        while left > 0 {
            if unlooked >= LOOK {
                self.room(left)?;
                unlooked = 0;
            }
            let wanted = self.buffer.len().min(left.try_into().unwrap_or(usize::MAX));
            match from.read(&mut self.buffer[..wanted]) {
                Ok(0) => return Err(hostile("it ends within a file".to_owned())),
                Ok(read) => {
                    let written = file.write_all(&self.buffer[..read]);
                    written.map_err(|error| CopyError::host("write", &self.destination.shown.join(path), &error))?;
                    left -= read as u64;
                    unlooked += read as u64;
                }
                Err(error) => return Err(hostile(error.to_string())),
            }
        }
        let mut padding = [0; BLOCK];
        let padding = &mut padding[..archive::padding(size).len()];
        from.read_exact(padding).map_err(|_| hostile("it ends within a file".to_owned()))
    }

    fn symlink(
        &self,
        parent: &OwnedFd,
        name: &Path,
        path: &Path,
        entry: &Entry,
        target: &OsStr,
    ) -> Result<(), CopyError> {
        fs::symlinkat(target, parent, name).map_err(|error| self.failed("link", path, error))?;
        if self.destination.preserve {
            // Not every filesystem keeps a link's time, and nothing depends on it.
            let _ = fs::utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW);
        }
        Ok(())
    }

    fn hardlink(&mut self, parent: &OwnedFd, name: &Path, path: &Path, target: &Path) -> Result<(), CopyError> {
        let (other, other_name) = self.open_parent(target)?;
        let stat = fs::statat(&other, other_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.failed("link to", target, error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(hostile(format!("{} is a link to {}, which is no file", path.display(), target.display())));
        }
        fs::linkat(&other, other_name, parent, name, AtFlags::empty()).map_err(|error| self.failed("link", path, error))
    }

    /// Opens the directory an entry belongs in, making it if the archive did not.
    fn open_parent<'p>(&mut self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr), CopyError> {
        let name = path.file_name().ok_or_else(|| hostile("something other than a directory is its top".to_owned()))?;
        let parent = path.parent().unwrap_or(Path::new(""));
        if self.parent.0 != parent {
            let mut directory = self.duplicate(&self.root)?;
            let mut walked = PathBuf::new();
            for component in parent {
                walked.push(component);
                let component = Path::new(component);
                match fs::mkdirat(&directory, component, Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH)
                {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(self.failed("make", &walked, error)),
                }
                directory = self.open_directory(&directory, component, &walked)?;
            }
            self.parent = (parent.to_owned(), directory);
        }
        Ok((self.duplicate(&self.parent.1)?, name))
    }

    /// Opens a directory by its last component, refusing links.
    fn open_directory(&self, parent: &OwnedFd, name: &Path, path: &Path) -> Result<OwnedFd, CopyError> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        fs::openat(parent, name, flags, Mode::empty()).map_err(|error| match error {
            Errno::NOTDIR | Errno::LOOP => {
                self.in_the_way(path, "a directory is to be there, and links are not followed")
            }
            error => self.failed("open", path, error),
        })
    }

    fn duplicate(&self, directory: &OwnedFd) -> Result<OwnedFd, CopyError> {
        directory.try_clone().map_err(|error| CopyError::host("open", &self.destination.shown, &error))
    }

    /// Gives directories their modes and times that are left, as the next entry is not in them, or none comes. tar goes through a
    /// tree directory by directory; one that is gone back to keeps its mode, and its time is lost.
    fn leave(&mut self, next: Option<&Path>) -> Result<(), CopyError> {
        while let Some((path, mode, mtime)) =
            self.open.pop_if(|(path, ..)| next.is_none_or(|next| next == *path || !next.starts_with(&*path)))
        {
            let directory = match path.as_os_str().is_empty() {
                true => self.duplicate(&self.root)?,
                false => {
                    let (parent, name) = self.open_parent(&path)?;
                    self.open_directory(&parent, Path::new(name), &path)?
                }
            };
            let kept = fs::fchmod(&directory, Mode::from_raw_mode(mode))
                .and_then(|()| fs::futimens(&directory, &times(mtime)));
            kept.map_err(|error| self.failed("set mode and time of", &path, error))?;
        }
        Ok(())
    }

    /// Refuses to fill the file system up. One that does not tell how much it has is not refused.
    fn room(&self, needed: u64) -> Result<(), CopyError> {
        let keep = self.tally.limits.keep_free;
        let Ok(space) = fs::fstatvfs(&self.root) else { return Ok(()) };
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if keep == 0 || free >= needed.saturating_add(keep) {
            return Ok(());
        }
        let shown = self.destination.shown.display();
        let why =
            format!("{needed} bytes are to be written to {shown}, where {free} are free and {keep} have to stay so");
        Err(CopyError::DiskFull { side: Side::Host, why })
    }

    fn failed(&self, doing: &str, path: &Path, error: Errno) -> CopyError {
        CopyError::host(doing, &self.destination.shown.join(path), &error.into())
    }

    fn in_the_way(&self, path: &Path, why: &'static str) -> CopyError {
        CopyError::InTheWay { side: Side::Host, path: self.destination.shown.join(path).display().to_string(), why }
    }
}

fn times(mtime: TarTime) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Takes a path from an archive as one below the destination; empty for the destination itself.
fn inside(path: &[u8]) -> Result<PathBuf, CopyError> {
    if path.len() > MAX_PATH {
        return Err(hostile(format!("a path is longer than {MAX_PATH} bytes")));
    }
    let refused = |why: &str| hostile(format!("{:?} {why}", String::from_utf8_lossy(path)));
    if path.first() == Some(&b'/') {
        return Err(refused("is an absolute path"));
    }
    if path.contains(&0) {
        return Err(refused("contains a NUL byte"));
    }
    let mut inside = PathBuf::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(refused("leads outside")),
            name => inside.push(OsStr::from_bytes(name)),
        }
    }
    Ok(inside)
}

fn hostile(why: String) -> CopyError {
    CopyError::Hostile { why }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::Limits;

    const LIMITS: Limits = Limits { bytes: 1000, entries: 10, keep_free: 0 };

    /// Before 1970, and not at the beginning of a second.
    const MTIME: TarTime = TarTime { seconds: -1000, nanoseconds: 123_456_789 };

    fn entry(kind: Kind, path: &str) -> Entry {
        Entry { kind, path: path.as_bytes().to_vec(), mode: 0o755, mtime: MTIME }
    }

    fn dir(path: &str) -> Entry {
        entry(Kind::Directory, path)
    }

    fn file(path: &str) -> Entry {
        entry(Kind::File { size: 4 }, path)
    }

    fn link(path: &str, target: &str) -> Entry {
        entry(Kind::Symlink { target: target.into() }, path)
    }

    fn hard(path: &str, target: &str) -> Entry {
        entry(Kind::Hardlink { target: target.into() }, path)
    }

    fn archive(entries: &[Entry]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for entry in entries {
            archive::write(&mut bytes, entry).expect("writing to memory");
            if let Kind::File { size } = entry.kind {
                bytes.extend(vec![b'x'; size as usize]);
                bytes.extend(archive::padding(size));
            }
        }
        archive::write_end(&mut bytes).expect("writing to memory");
        bytes
    }

    fn destination(root: &Path, live: bool) -> Destination {
        let opened = Dir::open_ambient_dir(root, cap_std::ambient_authority()).expect("open a directory");
        Destination { root: opened, shown: root.to_owned(), live, preserve: true, what: What::Tree }
    }

    /// Unpacks into `outer/inner`, so that `outer` shows whether anything got out.
    fn run(outer: &Path, live: bool, entries: &[Entry]) -> Result<Copied, CopyError> {
        let root = outer.join("inner");
        std::fs::create_dir_all(&root).expect("make a directory");
        unpack(&archive(entries)[..], destination(&root, live), Tally::new(LIMITS))
    }

    /// Checks that an archive is refused, live or not, and that nothing but `inner` is in the outer directory after it.
    fn check_refused(entries: &[Entry], why: &str) {
        for live in [false, true] {
            let outer = tempfile::tempdir().expect("make a directory");
            let error = run(outer.path(), live, entries).expect_err("a hostile archive").to_string();
            assert!(error.contains(why), "{error:?} for {entries:?}");
            let names: Vec<_> =
                std::fs::read_dir(outer.path()).expect("list").map(|entry| entry.expect("list").file_name()).collect();
            assert_eq!(names, ["inner"]);
        }
    }

    #[test]
    fn hostile_archives_write_nothing_outside() {
        check_refused(&[file("/tmp/evil")], "is an absolute path");
        check_refused(&[file("../evil")], "leads outside");
        check_refused(&[file("a/../../evil")], "leads outside");
        check_refused(&[link("a", ".."), file("a/evil")], "links are not followed");
        check_refused(&[link("a", "/"), dir("a/tmp/evil")], "links are not followed");
        check_refused(&[link("a", ".."), dir("a"), file("a/evil")], "links are not followed");
        check_refused(&[dir("a"), link("a/b", "../.."), hard("c", "a/b/x")], "links are not followed");
        check_refused(&[hard("a", "../evil")], "leads outside");
        check_refused(&[hard("a", "/etc/passwd")], "is an absolute path");
        check_refused(&[link("a", "/etc/passwd"), hard("b", "a")], "which is no file");
        check_refused(&[file("")], "other than a directory");
        check_refused(&[dir("a"), file("a")], "it is a directory");
        check_refused(&[file("a"), file("a/b")], "links are not followed");
    }

    #[test]
    fn of_a_file_nothing_but_that_file_is_taken() {
        let check = |entries: &[Entry], expected: Result<u64, &str>| {
            let outer = tempfile::tempdir().expect("make a directory");
            let destination = Destination { what: What::File { name: "f".into() }, ..destination(outer.path(), false) };
            match (unpack(&archive(entries)[..], destination, Tally::new(LIMITS)), expected) {
                (Ok(copied), Ok(bytes)) => assert_eq!((copied.files, copied.bytes), (1, bytes)),
                (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{error}"),
                (result, expected) => panic!("{result:?}, not {expected:?}, for {entries:?}"),
            }
        };
        check(&[file("./f")], Ok(4));
        check(&[link("f", "/etc/passwd")], Err("the file \"f\" was asked for"));
        check(&[dir("f")], Err("the file \"f\" was asked for"));
        check(&[hard("f", "f")], Err("the file \"f\" was asked for"));
        check(&[file("g")], Err("it has \"g\""));
        check(&[dir("./"), file("f")], Err("it has \"\""));
        check(&[file("f"), file("f")], Err("it has \"f\""));
        check(&[file("f"), link("f", "x")], Err("it has \"f\""));
    }

    #[test]
    fn what_is_remembered_does_not_grow_with_the_archive() {
        let outer = tempfile::tempdir().expect("make a directory");
        let long = "n".repeat(250);
        let mut entries = Vec::new();
        for number in 0..500 {
            entries.extend([dir(&format!("{number}-{long}")), dir(&format!("{number}-{long}/{long}"))]);
        }
        let destination = destination(outer.path(), true);
        let mut unpack = Unpack {
            destination: &destination,
            temporary: "t".into(),
            parent: (PathBuf::new(), opened(&destination).expect("a descriptor")),
            root: opened(&destination).expect("a descriptor"),
            open: Vec::new(),
            tally: Tally::new(Limits { entries: 10_000, ..LIMITS }),
            buffer: Vec::new(),
        };
        for entry in &entries {
            unpack.entry(entry, &mut io::empty()).expect("an honest entry");
            assert!(unpack.open.len() <= 2, "{}", unpack.open.len());
        }
        assert_eq!(unpack.tally.copied.directories, 1000);
        let too_long = dir(&"n/".repeat(MAX_PATH));
        assert_eq!(
            unpack.entry(&too_long, &mut io::empty()),
            Err(hostile("a path is longer than 4096 bytes".to_owned()))
        );
    }

    #[test]
    fn more_than_allowed_is_refused() {
        check_refused(&vec![dir("a"); 11], "more than 10 files and directories");
        check_refused(&[entry(Kind::File { size: 1001 }, "a")], "more than 1000 bytes");
        check_refused(&vec![entry(Kind::File { size: 300 }, "a"); 4], "more than 1000 bytes");
    }

    #[test]
    fn the_disk_is_not_filled_up() {
        let outer = tempfile::tempdir().expect("make a directory");
        let free = |keep_free| {
            let tally = Tally::new(Limits { keep_free, ..LIMITS });
            unpack(&archive(&[file("a")])[..], destination(outer.path(), true), tally)
        };
        let error = free(u64::MAX).expect_err("there is not so much space");
        assert!(matches!(&error, CopyError::DiskFull { side: Side::Host, .. }), "{error}");
        assert!(error.to_string().contains("4 bytes are to be written to"), "{error}");
        assert_eq!(std::fs::read_dir(outer.path()).expect("list").count(), 0);
        free(1).expect("there is that much");
    }

    #[test]
    fn a_cut_archive_is_refused() {
        let outer = tempfile::tempdir().expect("make a directory");
        let bytes = archive(&[file("a")]);
        let error = unpack(&bytes[..3 * BLOCK + 2], destination(outer.path(), true), Tally::new(LIMITS));
        assert_eq!(error, Err(hostile("it ends within a file".to_owned())));
        assert_eq!(std::fs::read_dir(outer.path()).expect("list").count(), 0);
    }

    #[test]
    fn files_links_and_directories_are_made_as_they_were() {
        for live in [false, true] {
            let outer = tempfile::tempdir().expect("make a directory");
            let setuid = Entry { mode: 0o4755, ..file("./d/setuid") };
            let readonly = Entry { mode: 0o555, ..dir("./r/") };
            let entries = [
                dir("./"),
                dir("./d/"),
                setuid,
                readonly,
                file("./r/f"),
                hard("./h", "./d/setuid"),
                link("./l", "d/none"),
            ];
            let copied = run(outer.path(), live, &entries).expect("an honest archive");
            let expected = Copied { bytes: 8, files: 3, directories: 3, links: 1, ..Copied::default() };
            assert_eq!(copied, expected);
            let root = outer.path().join("inner");
            let stat = |path: &str| std::fs::symlink_metadata(root.join(path)).expect("stat");
            assert_eq!((stat("d/setuid").mode() & 0o7777, stat("r").mode() & 0o7777), (0o755, 0o555));
            for path in ["d", "d/setuid", "r", "r/f", "l"] {
                let mtime = (stat(path).mtime(), stat(path).mtime_nsec());
                assert_eq!(mtime, (MTIME.seconds, MTIME.nanoseconds.into()), "{path}");
            }
            assert_eq!(stat("h").ino(), stat("d/setuid").ino());
            assert_eq!(std::fs::read_link(root.join("l")).expect("a link"), Path::new("d/none"));
            std::fs::set_permissions(root.join("r"), PermissionsExt::from_mode(0o755)).expect("chmod");
        }
    }

    #[test]
    fn what_was_there_is_replaced_never_written_through() {
        for live in [false, true] {
            let outer = tempfile::tempdir().expect("make a directory");
            let root = outer.path().join("inner");
            std::fs::create_dir(&root).expect("make a directory");
            std::fs::write(outer.path().join("victim"), "old").expect("write");
            symlink("../victim", root.join("a")).expect("link");
            std::fs::write(root.join("b"), "old").expect("write");
            let mut reader = File::open(root.join("b")).expect("open");
            run(outer.path(), live, &[file("a"), file("b"), file("b"), hard("b", "a")]).expect("an honest archive");
            let mut old = String::new();
            reader.read_to_string(&mut old).expect("read");
            assert_eq!(old, "old");
            assert_eq!(std::fs::read_to_string(outer.path().join("victim")).expect("read"), "old");
            assert_eq!(std::fs::read_to_string(root.join("a")).expect("read"), "xxxx");
            assert_eq!(std::fs::read_to_string(root.join("b")).expect("read"), "xxxx");
            assert_eq!(std::fs::read_dir(&root).expect("list").count(), 2);
        }
    }

    #[test]
    fn devices_are_left_out_and_named() {
        let outer = tempfile::tempdir().expect("make a directory");
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Char);
        header.set_path("null").expect("a path");
        header.set_size(0);
        header.set_mode(0o666);
        header.set_mtime(0);
        header.set_cksum();
        let copied = unpack(&header.as_bytes()[..], destination(outer.path(), true), Tally::new(LIMITS));
        let copied = copied.expect("an archive");
        assert_eq!(copied.skipped, [crate::Skipped { name: "null".into(), what: "character device" }]);
        assert_eq!(std::fs::read_dir(outer.path()).expect("list").count(), 0);
    }
}
