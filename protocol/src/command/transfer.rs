//! The commands that carry files between master and worker.

use std::path::{Path, PathBuf};

use crate::args::{Args, ArgumentError};

/// The largest block of file data in one message, in bytes; a master that asks for larger ones gets these. Banana
/// refuses longer byte strings (Twisted's `SIZE_LIMIT`), and a bound keeps memory predictable over msgpack too.
pub const MAX_BLOCK_SIZE: usize = 640 * 1024;

/// A file for the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadFile {
    /// The file; may start with `~`.
    pub path: PathBuf,
    /// Sending stops, as a failure, at this many bytes.
    pub maxsize: Option<u64>,
    /// Bytes a message; 1 to [`MAX_BLOCK_SIZE`].
    pub blocksize: usize,
    /// Whether the master's copy gets the file's times.
    pub keepstamp: bool,
}

/// A directory for the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadDirectory {
    /// The directory; may start with `~`.
    pub path: PathBuf,
    /// Sending stops, as a failure, at this many bytes of the archive.
    pub maxsize: Option<u64>,
    /// Bytes a message; 1 to [`MAX_BLOCK_SIZE`].
    pub blocksize: usize,
    /// How the archive is compressed.
    pub compression: Compression,
}

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gz,
    /// bzip2.
    Bz2,
}

/// A file from the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadFile {
    /// Where to write it; may start with `~`.
    pub path: PathBuf,
    /// Receiving stops, as a failure, at this many bytes.
    pub maxsize: Option<u64>,
    /// Bytes a message; 1 to [`MAX_BLOCK_SIZE`].
    pub blocksize: usize,
    /// The file's permission bits.
    pub mode: Option<u32>,
}

impl UploadFile {
    pub(super) fn parse(args: Args<'_>) -> Result<Self, ArgumentError> {
        Ok(UploadFile {
            path: path(args, "workersrc")?,
            maxsize: args.count("maxsize")?,
            blocksize: blocksize(args)?,
            keepstamp: args.flag("keepstamp", false)?,
        })
    }
}

impl UploadDirectory {
    pub(super) fn parse(args: Args<'_>) -> Result<Self, ArgumentError> {
        Ok(UploadDirectory {
            path: path(args, "workersrc")?,
            maxsize: args.count("maxsize")?,
            blocksize: blocksize(args)?,
            compression: match args.text("compress")?.as_deref() {
                None => Compression::None,
                Some("gz") => Compression::Gz,
                Some("bz2") => Compression::Bz2,
                Some(_) => return Err(args.invalid("compress", "nil, 'gz' or 'bz2'")),
            },
        })
    }
}

impl DownloadFile {
    pub(super) fn parse(args: Args<'_>) -> Result<Self, ArgumentError> {
        Ok(DownloadFile {
            path: path(args, "workerdest")?,
            maxsize: args.count("maxsize")?,
            blocksize: blocksize(args)?,
            mode: match args.count("mode")? {
                None => None,
                Some(mode) if mode <= 0o7777 => u32::try_from(mode).ok(),
                Some(_) => return Err(args.invalid("mode", "permission bits, 0 to 0o7777")),
            },
        })
    }
}

/// Reads `path` (msgpack), else `legacy` relative to `workdir` (PB). A path from `~` stands by itself.
fn path(args: Args<'_>, legacy: &'static str) -> Result<PathBuf, ArgumentError> {
    if let Some(path) = args.text("path")? {
        return Ok(path.into());
    }
    args.require(&["workdir", legacy])?;
    let path = args.required_text(legacy)?;
    if path.starts_with('~') {
        return Ok(path.into());
    }
    Ok(Path::new(&args.required_text("workdir")?).join(path))
}

fn blocksize(args: Args<'_>) -> Result<usize, ArgumentError> {
    args.require(&["blocksize"])?;
    match args.count("blocksize")? {
        None | Some(0) => Err(args.invalid("blocksize", "a number of at least 1")),
        Some(bytes) => Ok(usize::try_from(bytes).map_or(MAX_BLOCK_SIZE, |bytes| bytes.min(MAX_BLOCK_SIZE))),
    }
}
