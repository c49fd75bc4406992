//! Which file a disk was made on.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Tells a disk from another one in its place. An overlay on another disk of the same name is not the same disk but a
/// corrupt one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DiskIdentity {
    pub file: PathBuf,
    size: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl DiskIdentity {
    /// That of the disk that is there now.
    pub(super) fn of(file: &Path) -> anyhow::Result<Self> {
        let metadata = std::fs::metadata(file).with_context(|| format!("read the disk {}", file.display()))?;
        Ok(DiskIdentity {
            file: file.to_owned(),
            size: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        })
    }

    /// Whether the disk is still the one it was.
    pub(super) fn still_holds(&self) -> anyhow::Result<bool> {
        Ok(DiskIdentity::of(&self.file)? == *self)
    }
}

/// For people, with all that tells it from another one.
impl fmt::Display for DiskIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DiskIdentity { file, size, modified_s, modified_ns } = self;
        write!(f, "{} ({size} bytes, modified {modified_s}.{modified_ns:09})", file.display())
    }
}
