use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use bytes::{Buf, Bytes};
use rustix::io::{Errno, ioctl_fionbio, ioctl_fionread, read, write};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::watched::{runtime_is_gone, watch};

/// The most bytes one event carries. A pipe holds as many by default (pipe(7)), so that one read empties it.
const CHUNK: usize = 64 * 1024;

/// What a read brought.
pub(crate) enum Read {
    Bytes(Bytes),
    /// Nothing now.
    Pending,
    /// Nothing ever again.
    End,
}

/// Our end of a child's output: of a pipe, or of a terminal.
pub(crate) struct Reader {
    fd: AsyncFd<OwnedFd>,
    /// How much may still be read; `None` while the child may write as much as it likes.
    rest: Option<usize>,
    pub(crate) discarded: bool,
}

impl Reader {
    /// Must be called in the context of a runtime.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        ioctl_fionbio(&fd, true)?;
        let fd = watch(fd, Interest::READABLE)?;
        Ok(Reader { fd, rest: None, discarded: false })
    }

    /// Waits until a read is worth trying. Cancel safe.
    pub(crate) async fn ready(&self) {
        if self.fd.readable().await.is_err() {
            runtime_is_gone().await;
        }
    }

    pub(crate) fn read(&mut self) -> Read {
        // Asking first keeps a thousand idle children from holding a buffer each. A terminal answers 0 as well when
        // its other side is closed, and then the read has to tell, as it has when all that was left is read.
        let size = waiting(&self.fd).min(self.rest.unwrap_or(CHUNK)).clamp(1, CHUNK);
        let mut buffer = vec![0; size];
        let result = match self.rest {
            None => self.fd.try_io(Interest::READABLE, |fd| Ok(read(fd, &mut buffer)?)),
            Some(_) => read(&self.fd, &mut buffer).map_err(io::Error::from),
        };
        match result {
            Ok(0) => Read::End,
            Ok(_) if self.rest == Some(0) => Read::Pending,
            Ok(n) => {
                buffer.truncate(n);
                self.rest = self.rest.map(|rest| rest - n);
                Read::Bytes(buffer.into())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Read::Pending,
            // How Linux says that nobody has the terminal open any more (ptmx, n_tty).
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Read::End,
            Err(error) => {
                tracing::warn!(%error, "reading a child's output failed");
                Read::End
            }
        }
    }

    /// Reads what is there already, and from then on only says whether more could come.
    pub(crate) fn stop_after_what_is_there(&mut self) {
        self.rest = Some(waiting(&self.fd));
    }
}

/// How much can be read at once.
fn waiting(fd: &AsyncFd<OwnedFd>) -> usize {
    ioctl_fionread(fd.get_ref()).map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// Our end of a child's stdin, with what is still to be written to it.
pub(crate) struct Writer {
    fd: AsyncFd<OwnedFd>,
    bytes: Bytes,
}

impl Writer {
    /// Must be called in the context of a runtime.
    pub(crate) fn new(fd: OwnedFd, bytes: Bytes) -> io::Result<Self> {
        ioctl_fionbio(&fd, true)?;
        Ok(Writer { fd: watch(fd, Interest::WRITABLE)?, bytes })
    }

    /// Waits until a write is worth trying. Cancel safe.
    pub(crate) async fn ready(&self) {
        if self.fd.writable().await.is_err() {
            runtime_is_gone().await;
        }
    }

    /// Writes what fits, and says whether more is to come.
    pub(crate) fn write(&mut self) -> bool {
        let bytes = &self.bytes;
        match self.fd.try_io(Interest::WRITABLE, |fd| Ok(write(fd, bytes)?)) {
            Ok(n) => self.bytes.advance(n),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // The child has closed its stdin; it wants no more.
            Err(_) => return false,
        }
        !self.bytes.is_empty()
    }
}
