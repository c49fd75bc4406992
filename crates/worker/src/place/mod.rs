//! Where a command runs: on the host or in a guest.
//!
//! Every standard command is written once, against [`Place`]. A place knows processes and files and nothing of
//! Buildbot: no time-outs, no headers, no logs.

mod archive;
mod glob;
mod guest;
mod host;
mod host_files;
#[cfg(test)]
mod same;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use protocol::command::Compression;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) use guest::{Guest, cause};
pub(crate) use host::Host;
pub(crate) use host_files::create_dir_all;

/// Longer lists of names are refused: Banana carries no longer ones, and a pattern such as `/**` is a mistake.
const MAX_NAMES: usize = 640 * 1024;

/// Processes and files of one machine. Paths are absolute and the place's own; [`guest_path`] turns one of the host into
/// one of a guest.
#[async_trait]
pub(crate) trait Place: Send + Sync {
    /// The environment that a build's own settings are laid over, and that `${NAME}` in them refers to.
    fn environment(&self) -> Vec<(OsString, OsString)>;

    /// Where a path from `~` begins.
    fn home(&self) -> PathBuf;

    /// Starts a program. Its workdir is made, with its parents, if it is not there: at once, as each thing that is done in a
    /// guest takes time.
    async fn spawn(&self, program: Program) -> Result<Box<dyn Process>, SpawnError>;

    /// Mode, inode, device, links, uid, gid, size, access, modification and change time of what `path` leads to.
    async fn stat(&self, path: &Path) -> io::Result<[i64; 10]>;

    /// Access and modification time of what `path` leads to, in seconds since 1970.
    async fn times(&self, path: &Path) -> io::Result<(f64, f64)>;

    /// The names in a directory, without `.` and `..`.
    async fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;

    /// The paths that match a pattern as Python's `glob.glob(…, recursive=True)` has it.
    async fn glob(&self, pattern: &str) -> io::Result<Vec<PathBuf>>;

    /// Makes a directory and its parents; one that exists is fine.
    async fn make_directory(&self, path: &Path) -> io::Result<()>;

    /// Removes a file or a symbolic link.
    async fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Opens a file for reading, from `offset` bytes on.
    async fn read(&self, path: &Path, offset: u64) -> io::Result<Box<dyn AsyncRead + Send + Unpin>>;

    /// Keeps a regular file open, so that it can be read on whatever becomes of its name.
    async fn hold(&self, path: &Path) -> io::Result<Held>;

    /// Opens a new file that takes the place of `path`, with these permission bits or those of the old one. It does so
    /// when `AsyncWriteExt::shutdown` returns; dropped before, it is gone and the old one is as it was.
    async fn write(&self, path: &Path, mode: Option<u32>) -> io::Result<Box<dyn AsyncWrite + Send + Unpin>>;

    /// A tar archive of what is in a directory; the names in it are relative to the directory.
    async fn pack(&self, path: &Path, compression: Compression) -> io::Result<Box<dyn AsyncRead + Send + Unpin>>;
}

/// A file that is kept open until this is dropped.
pub(crate) struct Held {
    /// Where the place has it meanwhile, also when it has been renamed or removed.
    pub path: PathBuf,
    _open: Box<dyn Send + Sync>,
}

impl Held {
    fn new(path: PathBuf, open: impl Send + Sync + 'static) -> Self {
        Held { path, _open: Box::new(open) }
    }
}

/// A program to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    /// The program, looked up on the `PATH` of `environment`, and its arguments; never empty.
    pub argv: Vec<OsString>,
    /// Where; must exist.
    pub workdir: PathBuf,
    /// Its whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Written to its standard input, which is closed after it in any case.
    pub stdin: Bytes,
    /// Whether it gets a terminal of its own; its standard error then arrives as standard output.
    pub pty: bool,
}

/// A program that was started. Dropping it kills all that it started.
#[async_trait]
pub(crate) trait Process: Send + Sync {
    /// The next thing that happens. Cancel-safe. After [`Event::Ended`] it must not be called again.
    async fn event(&mut self) -> Event;

    /// Sends a signal (`TERM`, `KILL`, ...) to the program and all that it started, as far as the place can tell. Says how it
    /// went, for people, if that was not the usual way.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if the place knows no signal of that name.
    async fn signal(&mut self, signal: &str) -> io::Result<Option<String>>;

    /// Ends the place itself, as no signal has ended the program in it. Says that it did so, and why it had to: for those who
    /// could not be told of `failed`, the last signal's failure. A place that is not the worker's to end says nothing.
    async fn end_place(&mut self, failed: Option<&str>) -> Option<String> {
        let _ = failed;
        None
    }

    /// After [`Event::Exited`], waits no longer for output of what the program left behind: what has been written
    /// already still arrives, then [`Event::Ended`]. A place that never says `Exited` has nothing to do here.
    fn leave(&mut self) {}
}

/// What happens to a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// It wrote to its standard output.
    Stdout(Bytes),
    /// It wrote to its standard error.
    Stderr(Bytes),
    /// It has ended itself; what it left behind may still write. Not every place can tell.
    Exited,
    /// It has ended and there is no more output.
    Ended(Ending),
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself.
    Exited {
        /// Its exit status.
        status: i32,
    },
    /// By a signal.
    Signalled {
        /// The signal's number on the place.
        signal: i32,
    },
    /// The place itself went away under it.
    Lost {
        /// What happened, for people.
        reason: String,
    },
}

/// Why a program is said to be missing.
const NO_PROGRAM: &str = "no such program, or the interpreter that it names is missing";

/// Why a program did not start.
#[derive(Debug, Error)]
pub(crate) enum SpawnError {
    /// There is no such program, or it may not be executed.
    #[error("{}: {source}", .program.display())]
    Program {
        /// Its name.
        program: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The workdir is not there, and can't be made.
    #[error("{}: {source}", .workdir.display())]
    NoWorkdir {
        /// The directory.
        workdir: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The workdir can't be entered.
    #[error("{}: {source}", .workdir.display())]
    Workdir {
        /// The directory.
        workdir: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The place itself is not there any more.
    #[error("{0}")]
    Lost(String),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] io::Error),
}

/// A host path as a guest knows it: what is below the worker's base directory is below the guest's, and other paths are
/// the same in both.
pub(crate) fn guest_path(path: &Path, basedir: &Path, guest_basedir: &Path) -> PathBuf {
    let rest = path.as_os_str().as_bytes().strip_prefix(basedir.as_os_str().as_bytes());
    match rest {
        // As it was written: a slash at the end says something to those who copy.
        Some(rest) if rest.is_empty() || rest.starts_with(b"/") => {
            let mut mapped = guest_basedir.as_os_str().to_owned();
            mapped.push(OsStr::from_bytes(rest));
            mapped.into()
        }
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_the_basedir_is_below_the_guests() {
        let check = |path: &str, expected: &str| {
            let mapped = guest_path(Path::new(path), Path::new("/srv/w"), Path::new("/home/buildbot"));
            assert_eq!(mapped.as_os_str(), expected, "{path}");
        };
        check("/srv/w", "/home/buildbot");
        check("/srv/w/b/build", "/home/buildbot/b/build");
        check("/srv/w/b/new/", "/home/buildbot/b/new/");
        check("/srv/w/b/.", "/home/buildbot/b/.");
        check("/srv/work", "/srv/work");
        check("/tmp", "/tmp");
    }
}
