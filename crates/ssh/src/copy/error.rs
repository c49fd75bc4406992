//! Why a copy failed, by what the caller can do about it.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::host_path::{HostPath, led_outside};
use crate::{ExecError, Lost};

/// One end of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The machine we run on.
    Host,
    /// The machine behind the session.
    Guest,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Guest => "guest",
        })
    }
}

/// Why a copy failed. Paths are shown with bytes that are not UTF-8 replaced.
///
/// What was new at the destination is not there then; of a directory merged into an existing one, some files may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// The guest's system is not one that copies are possible with.
    #[error("copies need sh and tar in the guest, which this guest's system has not")]
    Unsupported,
    /// A path no system could have.
    #[error("path {path:?} {why}")]
    BadPath {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The source does not exist.
    #[error("{path} does not exist on the {side}")]
    Missing {
        /// Where.
        side: Side,
        /// The source.
        path: String,
    },
    /// The source is a directory, and the copy is not recursive.
    #[error("{path} on the {side} is a directory: ask for a recursive copy")]
    IsDirectory {
        /// Where.
        side: Side,
        /// The source.
        path: String,
    },
    /// The source is neither file nor directory.
    #[error("{path} on the {side} is neither file nor directory")]
    Special {
        /// Where.
        side: Side,
        /// The source.
        path: String,
    },
    /// A file is where a directory must be, or the other way round, or a symbolic link is in the way.
    #[error("{path} is in the way on the {side}: {why}")]
    InTheWay {
        /// Where.
        side: Side,
        /// What is in the way.
        path: String,
        /// Why it is.
        why: &'static str,
    },
    /// Somebody may not read or write something.
    #[error("permission denied on the {side}: {why}")]
    Denied {
        /// Where.
        side: Side,
        /// What the system said.
        why: String,
    },
    /// The destination has no room.
    #[error("no space left on the {side}: {why}")]
    DiskFull {
        /// Where.
        side: Side,
        /// What the system said.
        why: String,
    },
    /// A file changed while it was read.
    #[error("{path} on the {side} changed while it was copied: copy it when nothing writes to it")]
    Changed {
        /// Where.
        side: Side,
        /// The file.
        path: String,
    },
    /// A link or `..` leads out of the directory of the host that the copy is to stay in.
    #[error("{path} leads out of {root} on the host, where no copy goes")]
    Outside {
        /// What leads there.
        path: String,
        /// The directory.
        root: String,
    },
    /// More than [`CopyOptions::limits`](crate::CopyOptions::limits) allows.
    #[error("more than {limit} bytes")]
    TooManyBytes {
        /// How many are allowed.
        limit: u64,
    },
    /// More than [`CopyOptions::limits`](crate::CopyOptions::limits) allows.
    #[error("more than {limit} files and directories: pack them into an archive there, and copy that")]
    TooManyEntries {
        /// How many are allowed.
        limit: u64,
    },
    /// The guest was given up after [`CopyOptions::silence`](crate::CopyOptions::silence).
    #[error("the guest neither sent nor took anything for {silence:?}")]
    Silent {
        /// How long that was waited for.
        silence: Duration,
    },
    /// The guest sent what no honest `tar` sends.
    #[error("guest sent a bad archive: {why}")]
    Hostile {
        /// What was wrong with it.
        why: String,
    },
    /// Anything else that a system said.
    #[error("copy failed on the {side}: {why}")]
    Failed {
        /// Where.
        side: Side,
        /// What the system said.
        why: String,
    },
    /// The guest's part of the copy was not started.
    #[error(transparent)]
    Exec(ExecError),
    /// The connection is gone.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl From<ExecError> for CopyError {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Lost(lost) => Self::Lost(lost),
            error => Self::Exec(error),
        }
    }
}

impl CopyError {
    /// Sorts an error of something below the root of a path.
    pub(crate) fn below(to: &HostPath, doing: &str, path: &Path, error: &io::Error) -> Self {
        let path = to.shown(path);
        match led_outside(error) {
            true => Self::Outside { path: path.display().to_string(), root: to.shown_root().display().to_string() },
            false => Self::host(doing, &path, error),
        }
    }

    /// Sorts an error of the host's operating system.
    pub(crate) fn host(doing: &str, path: &Path, error: &io::Error) -> Self {
        let side = Side::Host;
        let why = format!("{doing} {}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing { side, path: path.display().to_string() },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Denied { side, why },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { side, why },
            _ => Self::Failed { side, why },
        }
    }

    /// A task of ours ended in a way that it never should.
    pub(crate) fn broke_down(error: &tokio::task::JoinError) -> Self {
        Self::Failed { side: Side::Host, why: error.to_string() }
    }

    /// Sorts what the guest's tools said, in the C locale.
    pub(crate) fn guest(said: &str) -> Self {
        let side = Side::Guest;
        let has = |words: &str| said.contains(words);
        let why = brief(said);
        match () {
            // GNU tar and busybox tell of a write that was cut short without the reason, which is a full disk.
            () if ["No space left on device", "Disk quota exceeded", "Wrote only", "short write"]
                .into_iter()
                .any(has) =>
            {
                Self::DiskFull { side, why }
            }
            () if ["Permission denied", "Read-only file system", "Operation not permitted"].into_iter().any(has) => {
                Self::Denied { side, why }
            }
            () if ["tar: not found", "tar: command not found"].into_iter().any(has) => {
                Self::Failed { side, why: "it has no tar: install tar or busybox there".to_owned() }
            }
            () => Self::Failed { side, why },
        }
    }
}

/// How many lines of the guest's tools go into an error.
const MAX_LINES: usize = 3;

/// Makes one line of many: the first ones say what is wrong, the others say it again.
fn brief(said: &str) -> String {
    let mut lines = said.lines();
    let mut brief: Vec<&str> = lines.by_ref().take(MAX_LINES).collect();
    if brief.is_empty() {
        brief.push("its tools said nothing");
    }
    if lines.next().is_some() {
        brief.push("and so on");
    }
    brief.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_says_is_sorted_by_remedy() {
        let side = Side::Guest;
        let check = |said: &str, expected: fn(String) -> CopyError| {
            assert_eq!(CopyError::guest(said), expected(said.to_owned()))
        };
        check("tar: a: Cannot write: No space left on device", |why| CopyError::DiskFull { side: Side::Guest, why });
        check("tar: can't open 'a': Permission denied", |why| CopyError::Denied { side: Side::Guest, why });
        check("mkdir: a: Read-only file system", |why| CopyError::Denied { side: Side::Guest, why });
        check("tar: data: Wrote only 512 of 10240 bytes", |why| CopyError::DiskFull { side: Side::Guest, why });
        check("tar: short read", |why| CopyError::Failed { side: Side::Guest, why });
        let many = CopyError::guest("a\nb\nc\nd\ne");
        assert_eq!(many, CopyError::Failed { side, why: "a; b; c; and so on".to_owned() });
        assert_eq!(CopyError::guest(""), CopyError::Failed { side, why: "its tools said nothing".to_owned() });
        let why = "it has no tar: install tar or busybox there".to_owned();
        assert_eq!(CopyError::guest("sh: 1: tar: not found"), CopyError::Failed { side, why });
    }
}
