//! The host's files, as [`super::Place`] wants them.
//!
//! Whatever may block runs on the blocking threads. Nothing here changes the process's working directory or umask.

mod glob;
mod pack;
mod write;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use protocol::command::Compression;
use tokio::io::{AsyncRead, AsyncSeekExt, AsyncWrite};
use tokio::task::spawn_blocking;

use super::{Held, MAX_NAMES};
use write::Replacement;

/// See [`super::Place::stat`].
pub(super) async fn stat(path: &Path) -> io::Result<[i64; 10]> {
    let of = tokio::fs::metadata(path).await?;
    Ok([
        i64::from(of.mode()),
        of.ino().cast_signed(),
        of.dev().cast_signed(),
        of.nlink().cast_signed(),
        i64::from(of.uid()),
        i64::from(of.gid()),
        of.size().cast_signed(),
        of.atime(),
        of.mtime(),
        of.ctime(),
    ])
}

/// See [`super::Place::times`].
pub(super) async fn times(path: &Path) -> io::Result<(f64, f64)> {
    let of = tokio::fs::metadata(path).await?;
    let time = |seconds: i64, nanoseconds: i64| seconds as f64 + nanoseconds as f64 / 1e9;
    Ok((time(of.atime(), of.atime_nsec()), time(of.mtime(), of.mtime_nsec())))
}

/// See [`super::Place::list`]; sorted.
pub(super) async fn list(path: &Path) -> io::Result<Vec<OsString>> {
    let path = path.to_owned();
    on_a_blocking_thread(move || names(&path)).await
}

/// See [`super::Place::glob`]; sorted, each path once.
pub(super) async fn glob(pattern: &str) -> io::Result<Vec<PathBuf>> {
    let pattern = pattern.to_owned();
    on_a_blocking_thread(move || super::glob::glob(&pattern, &mut glob::Disk)).await
}

/// See [`super::Place::make_directory`].
pub(super) async fn make_directory(path: &Path) -> io::Result<()> {
    let path = path.to_owned();
    on_a_blocking_thread(move || create_dir_all(&path)).await
}

/// Makes a directory, and those above it, by whatever name. Blocks.
pub(crate) fn create_dir_all(path: &Path) -> io::Result<()> {
    // Without a `.` at its end, as a master writes `build/.`: mkdir(2) makes no such thing, and what is above it is not what
    // `Path::parent` says.
    std::fs::create_dir_all(path.components().collect::<PathBuf>())
}

/// See [`super::Place::remove_file`].
pub(super) async fn remove_file(path: &Path) -> io::Result<()> {
    tokio::fs::remove_file(path).await
}

/// See [`super::Place::read`]. Directories, named pipes and sockets are refused; a pipe might never be readable.
pub(super) async fn read(path: &Path, offset: u64) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
    let mut file = tokio::fs::File::from_std(open(path).await?);
    if offset > 0 {
        file.seek(SeekFrom::Start(offset)).await?;
    }
    Ok(Box::new(file))
}

/// See [`super::Place::hold`].
pub(super) async fn hold(path: &Path) -> io::Result<Held> {
    let file = open(path).await?;
    Ok(Held::new(format!("/proc/self/fd/{}", file.as_raw_fd()).into(), file))
}

async fn open(path: &Path) -> io::Result<File> {
    let path = path.to_owned();
    on_a_blocking_thread(move || {
        let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return Err(io::Error::from_raw_os_error(nix::libc::EISDIR));
        }
        if kind.is_fifo() || kind.is_socket() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file but a pipe or a socket"));
        }
        Ok(file)
    })
    .await
}

/// See [`super::Place::write`]. A regular file is replaced as a whole when the writer is shut down; until then, and
/// if the writer is dropped before, the old one stays as it is.
pub(super) async fn write(path: &Path, mode: Option<u32>) -> io::Result<Box<dyn AsyncWrite + Send + Unpin>> {
    let path = path.to_owned();
    let replacement = on_a_blocking_thread(move || Replacement::begin(&path, mode)).await?;
    Ok(Box::new(replacement))
}

/// See [`super::Place::pack`].
pub(super) async fn pack(path: &Path, compression: Compression) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
    Ok(Box::new(pack::pack(path, compression).await?))
}

/// The names in a directory, sorted.
fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        names.push(entry?.file_name());
        if names.len() > MAX_NAMES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {MAX_NAMES} names")));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Does what may block where it may.
async fn on_a_blocking_thread<T, F>(work: F) -> io::Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    spawn_blocking(work).await.unwrap_or_else(|ended| Err(io::Error::other(ended)))
}
