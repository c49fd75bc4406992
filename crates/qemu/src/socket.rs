//! Unix sockets by paths of any length.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

/// Listens at a path that must not exist yet, for this user alone.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let short = Short::of(path)?;
    let listener = UnixListener::bind(&short.path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let short = Short::of(path)?;
    UnixStream::connect(&short.path).await
}

/// Another path to the same file. A socket's address has room for 107 bytes (unix(7)), which a slot's directory may well
/// use up; through the directory's descriptor every path is short.
struct Short {
    path: PathBuf,
    _directory: File,
}

impl Short {
    fn of(path: &Path) -> io::Result<Self> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
        let directory = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(parent)?;
        let name: OsString = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        Ok(Short { path, _directory: directory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_may_lie_deeper_than_its_address_is_long() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let deep = directory.path().join("d".repeat(100)).join("e".repeat(100));
        fs::create_dir_all(&deep).expect("made");
        let path = deep.join("qmp.sock");
        let listener = listen(&path).expect("it listens");
        connect(&path).await.expect("it is there");
        listener.accept().expect("somebody connected");
        assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
        assert_eq!(listen(&path).map(drop).map_err(|error| error.kind()), Err(io::ErrorKind::AddrInUse));
    }
}
