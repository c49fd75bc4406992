//! The host's end of a copy in: a file or tree becomes a tar stream.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cap_std::fs::{FileTypeExt, Metadata, MetadataExt, OpenOptions, OpenOptionsExt};
use rustix::fs::OFlags;

use super::archive::{self, Entry, Kind};
use super::error::{CopyError, Side};
use super::{Copied, Tally};
use crate::HostPath;
use crate::tar_time::TarTime;

/// How much of a file is read at once, in bytes.
const READ: usize = 256 * 1024;

/// Of how many files with several names the first name is remembered; the others are copied as files of their own.
const MAX_LINKED: usize = 64 * 1024;

/// How a stream is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// The source is `data`, and an empty file `end` follows it.
    Whole,
    /// What the source directory holds, without the directory itself.
    Contents,
}

/// Writes a source as a tar stream. The source's own last link is followed, links below it are not.
fn pack(source: &HostPath, layout: Layout, tally: &mut Tally, to: impl Write) -> Result<(), CopyError> {
    let top = source.path();
    let metadata = source.root().metadata(top).map_err(|error| CopyError::below(source, "read", top, &error))?;
    let mut pack = Pack { source, to, tally, buffer: vec![0; READ], linked: HashMap::new() };
    match (layout, metadata.is_dir()) {
        (Layout::Contents, _) => pack.tree(top, Vec::new(), &metadata)?,
        (Layout::Whole, true) => pack.tree(top, b"data".to_vec(), &metadata)?,
        (Layout::Whole, false) => pack.file(top, b"data", &metadata)?,
    }
    if layout == Layout::Whole {
        pack.head(&Entry {
            kind: Kind::File { size: 0 },
            path: b"end".to_vec(),
            mode: 0o600,
            mtime: TarTime::default(),
        })?;
    }
    archive::write_end(&mut pack.to).map_err(|_| cut())
}

/// The other side takes no more; why, it says itself.
fn cut() -> CopyError {
    CopyError::Failed { side: Side::Guest, why: "it stopped reading".to_owned() }
}

/// Paths of the host are below the source's root, and each is looked up anew from there.
struct Pack<'a, W> {
    source: &'a HostPath,
    to: W,
    tally: &'a mut Tally,
    buffer: Vec<u8>,
    /// Where files that have several names are in the stream, by device and inode.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

/// What is left to do in a tree.
enum Todo {
    Visit {
        host: PathBuf,
        path: Vec<u8>,
    },
    /// A directory whose contents are all written.
    Leave {
        path: Vec<u8>,
        metadata: Metadata,
    },
}

impl<W: Write> Pack<'_, W> {
    /// Writes a directory and all below it, without recursion: trees may be deeper than stacks.
    fn tree(&mut self, top: &Path, path: Vec<u8>, metadata: &Metadata) -> Result<(), CopyError> {
        let mut todo = Vec::new();
        self.enter(top, path, metadata.clone(), &mut todo)?;
        while let Some(next) = todo.pop() {
            match next {
                Todo::Leave { path, metadata } => self.directory(&path, metadata.mode(), &metadata)?,
                Todo::Visit { host, path } => {
                    let metadata = self.source.root().symlink_metadata(&host);
                    let metadata = metadata.map_err(|error| self.failed("read", &host, &error))?;
                    match metadata.is_dir() {
                        true => self.enter(&host, path, metadata, &mut todo)?,
                        false => self.leaf(&host, &path, &metadata)?,
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes a directory's entry and plans its contents.
    ///
    /// It comes once before its contents, writable, and once after them, as it is: busybox tar applies mode and time at
    /// once, and could not write into a read-only directory nor keep its time.
    fn enter(&mut self, host: &Path, path: Vec<u8>, metadata: Metadata, todo: &mut Vec<Todo>) -> Result<(), CopyError> {
        self.tally.entry()?;
        self.tally.copied.directories += 1;
        let mut names = Vec::new();
        for entry in self.source.root().read_dir(host).map_err(|error| self.failed("list", host, &error))? {
            names.push(entry.map_err(|error| self.failed("list", host, &error))?.file_name());
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        if !path.is_empty() {
            self.directory(&path, metadata.mode() | 0o700, &metadata)?;
            todo.push(Todo::Leave { path: path.clone(), metadata });
        }
        todo.extend(names.into_iter().map(|name| {
            let path = match path.is_empty() {
                true => name.as_bytes().to_vec(),
                false => [&path, &b"/"[..], name.as_bytes()].concat(),
            };
            Todo::Visit { host: host.join(name), path }
        }));
        Ok(())
    }

    fn directory(&mut self, path: &[u8], mode: u32, metadata: &Metadata) -> Result<(), CopyError> {
        self.head(&Entry { kind: Kind::Directory, path: [path, b"/"].concat(), mode, mtime: mtime(metadata) })
    }

    fn leaf(&mut self, host: &Path, path: &[u8], metadata: &Metadata) -> Result<(), CopyError> {
        let kind = metadata.file_type();
        if kind.is_symlink() {
            self.tally.entry()?;
            self.tally.copied.links += 1;
            let target = self.source.root().read_link_contents(host);
            let target = target.map_err(|error| self.failed("read", host, &error))?;
            let kind = Kind::Symlink { target: target.as_os_str().as_bytes().to_vec() };
            return self.head(&Entry { kind, path: path.to_vec(), mode: 0o777, mtime: mtime(metadata) });
        }
        if kind.is_file() {
            return self.file(host, path, metadata);
        }
        let what = match () {
            () if kind.is_socket() => "socket",
            () if kind.is_fifo() => "named pipe",
            () if kind.is_block_device() => "block device",
            () => "character device",
        };
        self.tally.skip(path, what);
        Ok(())
    }

    fn file(&mut self, host: &Path, path: &[u8], expected: &Metadata) -> Result<(), CopyError> {
        // A pipe put there in the meantime must not make us wait for a writer.
        let flags = OFlags::NONBLOCK.bits() as i32;
        let opened = self.source.root().open_with(host, OpenOptions::new().read(true).custom_flags(flags));
        let file = opened.map_err(|error| self.failed("read", host, &error))?;
        let metadata = file.metadata().map_err(|error| self.failed("read", host, &error))?;
        if (metadata.dev(), metadata.ino()) != (expected.dev(), expected.ino()) || !metadata.is_file() {
            return Err(self.changed(host));
        }
        self.tally.entry()?;
        if metadata.nlink() > 1 {
            let identity = (metadata.dev(), metadata.ino());
            if let Some(first) = self.linked.get(&identity) {
                self.tally.file(0)?;
                let kind = Kind::Hardlink { target: first.clone() };
                return self.head(&Entry { kind, path: path.to_vec(), mode: metadata.mode(), mtime: mtime(&metadata) });
            }
            if self.linked.len() < MAX_LINKED {
                self.linked.insert(identity, path.to_vec());
            }
        }
        self.tally.file(metadata.len())?;
        let kind = Kind::File { size: metadata.len() };
        self.head(&Entry { kind, path: path.to_vec(), mode: metadata.mode(), mtime: mtime(&metadata) })?;
        self.contents(host, file.take(metadata.len()), metadata.len())
    }

    fn contents(&mut self, host: &Path, mut file: impl Read, size: u64) -> Result<(), CopyError> {
        let mut left = size;
        while left > 0 {
            match file.read(&mut self.buffer) {
                Ok(0) => return Err(self.changed(host)),
                Ok(read) => {
                    self.to.write_all(&self.buffer[..read]).map_err(|_| cut())?;
                    left -= read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed("read", host, &error)),
            }
        }
        self.to.write_all(archive::padding(size)).map_err(|_| cut())
    }

    fn head(&mut self, entry: &Entry) -> Result<(), CopyError> {
        archive::write(&mut self.to, entry).map_err(|_| cut())
    }

    fn failed(&self, doing: &str, host: &Path, error: &io::Error) -> CopyError {
        CopyError::below(self.source, doing, host, error)
    }

    fn changed(&self, host: &Path) -> CopyError {
        CopyError::Changed { side: Side::Host, path: self.source.shown(host).display().to_string() }
    }
}

fn mtime(metadata: &Metadata) -> TarTime {
    TarTime::at(metadata.mtime(), metadata.mtime_nsec())
}

/// Packs with its own count, and returns it.
pub(super) fn pack_counted(
    source: &HostPath,
    layout: Layout,
    mut tally: Tally,
    to: impl Write,
) -> Result<Copied, CopyError> {
    pack(source, layout, &mut tally, to)?;
    Ok(tally.copied)
}
