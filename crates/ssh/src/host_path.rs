//! What a copy reads or writes on the host: something below a directory, whatever links are in it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cap_std::fs::Dir;

/// A file or directory of the host, below a directory that is open. What is in there may have come from a guest, and may
/// change at any moment: a link or `..` that leads out of the directory is refused when it is met, not before.
#[derive(Debug, Clone)]
pub struct HostPath {
    root: Arc<Dir>,
    /// Where the root was found, for people.
    shown_root: PathBuf,
    /// Relative, and as it was written: a slash at its end says something to a copy.
    path: OsString,
}

impl HostPath {
    /// What has this name below `root`, which was opened as `shown_root`. The name is relative, however it begins.
    pub fn below(root: Dir, shown_root: impl Into<PathBuf>, path: impl AsRef<OsStr>) -> Self {
        let path = path.as_ref().as_bytes();
        let start = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
        let path = OsStr::from_bytes(&path[start..]).to_owned();
        Self { root: Arc::new(root), shown_root: shown_root.into(), path }
    }

    pub(crate) fn root(&self) -> &Dir {
        &self.root
    }

    /// The directory that it does not lead out of, for people.
    pub fn shown_root(&self) -> &Path {
        &self.shown_root
    }

    /// The path below the root: `.` for that itself.
    pub(crate) fn path(&self) -> &Path {
        Path::new(if self.path.is_empty() { OsStr::new(".") } else { &self.path })
    }

    /// Whether it ends in a slash, so that a directory is meant.
    pub(crate) fn names_directory(&self) -> bool {
        self.path.as_bytes().ends_with(b"/")
    }

    /// What has another path below the same root, for people.
    pub(crate) fn shown(&self, path: &Path) -> PathBuf {
        self.shown_root.join(path)
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown_root.join(&self.path).display().fmt(f)
    }
}

/// Whether an error says that a path led out of the directory that it was to stay in: cap-std makes it up.
pub(crate) fn led_outside(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none()
}
