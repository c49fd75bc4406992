//! Bulk copies between host and guest, through `tar` at the guest's end.
//!
//! ```text
//! in    pack (host) ── tar stream ──▶ stdin of copy_in.sh:  tar -x, then rename
//! out   copy_out.sh: tar -c  ── stdout ──▶ unpack (host), then rename
//! ```
//!
//! One tar stream holds names, modes, times and links of any number of files at the speed of the connection, where a
//! file protocol pays a round trip for each. The scripts speak to us in lines on standard error that start with a nonce.

mod archive;
mod error;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod guest;
mod inward;
mod outward;
mod pack;
mod stream;
mod unpack;

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

pub use error::{CopyError, Side};
pub(crate) use inward::copy_in;
pub(crate) use outward::copy_out;

/// What to copy, and how much at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOptions {
    /// Whether the source may be a directory.
    pub recursive: bool,
    /// Whether modification times and permission bits are kept; otherwise times are new and permissions are the source's
    /// less the umask. A guest's busybox tar knows seconds alone, takes those before 1970 for 1970 on their way out, and loses
    /// the times of directories that hold links leading out of the copied tree or a file's further names. Names of one file
    /// stay so. Owners, setuid, setgid and sticky bits are never kept.
    pub preserve: bool,
    /// What ends the copy as too much.
    pub limits: Limits,
    /// How long the guest may say nothing, or take nothing, before it is given up.
    pub silence: Duration,
}

/// Bounds on a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of file contents.
    pub bytes: u64,
    /// Files, directories and links together.
    pub entries: u64,
    /// Bytes that have to stay free on the host's file system that is written to.
    pub keep_free: u64,
}

impl Default for CopyOptions {
    /// Directories too, times and permissions kept, and ten minutes of silence at most.
    fn default() -> Self {
        Self { recursive: true, preserve: true, limits: Limits::default(), silence: SILENCE }
    }
}

impl Default for Limits {
    /// 64 GiB in a million entries, until the disk is full.
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 1_000_000, keep_free: 0 }
    }
}

/// What was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bytes of file contents.
    pub bytes: u64,
    /// Regular files.
    pub files: u64,
    /// Directories, the named one included.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// What could not be copied, being neither file, directory nor link; the first hundred.
    pub skipped: Vec<Skipped>,
    /// From the request to the end.
    pub elapsed: Duration,
}

/// Something a copy left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its path below the source; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// What it is, for instance `socket`.
    pub what: &'static str,
}

/// Does what may block where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CopyError> + Send + 'static,
) -> Result<T, CopyError> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(CopyError::broke_down(&error)))
}

/// How long a guest may be silent unless somebody says otherwise: one without hardware virtualisation, on a busy host, that packs
/// or writes a large tree.
const SILENCE: Duration = Duration::from_secs(600);

/// Waits for something that a guest does.
async fn heard<T>(silence: Duration, waiting: impl Future<Output = T>) -> Result<T, CopyError> {
    timeout(silence, waiting).await.map_err(|_| CopyError::Silent { silence })
}

/// How many skipped entries are named.
const MAX_SKIPPED: usize = 100;

/// Counts against the limits as a copy goes on.
#[derive(Debug)]
struct Tally {
    copied: Copied,
    entries: u64,
    limits: Limits,
}

impl Tally {
    fn new(limits: Limits) -> Self {
        Self { copied: Copied::default(), entries: 0, limits }
    }

    fn entry(&mut self) -> Result<(), CopyError> {
        self.entries += 1;
        match self.entries > self.limits.entries {
            true => Err(CopyError::TooManyEntries { limit: self.limits.entries }),
            false => Ok(()),
        }
    }

    /// Counts a file before its contents are moved.
    fn file(&mut self, size: u64) -> Result<(), CopyError> {
        self.copied.files += 1;
        self.copied.bytes = self.copied.bytes.saturating_add(size);
        match self.copied.bytes > self.limits.bytes {
            true => Err(CopyError::TooManyBytes { limit: self.limits.bytes }),
            false => Ok(()),
        }
    }

    fn skip(&mut self, name: &[u8], what: &'static str) {
        if self.copied.skipped.len() < MAX_SKIPPED {
            self.copied.skipped.push(Skipped { name: String::from_utf8_lossy(name).into_owned(), what });
        }
    }
}
