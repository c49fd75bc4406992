//! A tar archive that is read while it is made.
//!
//! A blocking thread writes the members into a bounded queue; memory use does not grow with the archive. It is what GNU
//! tar writes, which Python's `tarfile` and every tar read, without the names of users and groups: they mean something
//! else to the master.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;

use bytes::{Bytes, BytesMut};
use bzip2::write::BzEncoder;
use flate2::write::GzEncoder;
use futures_util::stream::poll_fn;
use protocol::command::Compression;
use ssh::TarTime;
use tar::{Builder, EntryType, Header};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

/// How much of the archive travels at once, in bytes.
const CHUNK: usize = 128 * 1024;

/// How many chunks may wait to be read.
const CHUNKS: usize = 4;

/// An archive of the members that `write` adds, on a blocking thread. An error of `write` is one of the reader. Dropping
/// the reader ends `write` at what it adds next.
pub(super) fn archive<F>(compression: Compression, write: F) -> impl AsyncRead + Send + Unpin + use<F>
where
    F: FnOnce(&mut Members) -> io::Result<()> + Send + 'static,
{
    let (sender, mut receiver) = mpsc::channel(CHUNKS);
    tokio::task::spawn_blocking(move || {
        let mut members = Members { archive: Builder::new(Encoder::new(compression, sender.clone())) };
        let ending = write(&mut members).and_then(|()| members.archive.into_inner()?.finish());
        // Nobody hears it if the reader is gone.
        let _ = sender.blocking_send(ending.map_or_else(Part::Failed, |()| Part::End));
    });
    let mut ended = false;
    let chunks = poll_fn(move |cx| {
        if ended {
            return std::task::Poll::Ready(None);
        }
        receiver.poll_recv(cx).map(|part| match part {
            Some(Part::Chunk(chunk)) => Some(Ok(chunk)),
            Some(Part::Failed(error)) => Some(Err(error)),
            Some(Part::End) => {
                ended = true;
                None
            }
            // Half an archive must never pass for a whole one.
            None => Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the packing ended before its archive did"))),
        })
    });
    StreamReader::new(chunks)
}

/// What the thread sends.
enum Part {
    Chunk(Bytes),
    Failed(io::Error),
    End,
}

/// The members of an archive that is being made.
pub(super) struct Members {
    archive: Builder<Encoder>,
}

/// What is known of a member beside its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// The permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: TarTime,
    /// Major and minor number, if it is a device.
    pub device: Option<(u32, u32)>,
}

impl Members {
    /// Adds what has neither content nor a target: a directory, a pipe, a device.
    pub(super) fn add_plain(&mut self, kind: EntryType, attributes: &Attributes, name: &OsStr) -> io::Result<()> {
        self.append(header(kind, attributes), attributes.mtime, name, io::empty())
    }

    /// Adds a symbolic link, or another name of a member.
    pub(super) fn add_link(
        &mut self,
        kind: EntryType,
        attributes: &Attributes,
        name: &OsStr,
        target: &OsStr,
    ) -> io::Result<()> {
        let mut header = header(kind, attributes);
        if !fits(&mut header.as_old_mut().linkname, target.as_bytes()) {
            self.long_name(EntryType::GNULongLink, target.as_bytes())?;
        }
        self.append(header, attributes.mtime, name, io::empty())
    }

    /// Adds a file. `content` has `size` bytes.
    pub(super) fn add_file(
        &mut self,
        attributes: &Attributes,
        name: &OsStr,
        size: u64,
        content: impl Read,
    ) -> io::Result<()> {
        let mut header = header(EntryType::Regular, attributes);
        header.set_size(size);
        self.append(header, attributes.mtime, name, content)
    }

    fn append(&mut self, mut header: Header, mtime: TarTime, name: &OsStr, content: impl Read) -> io::Result<()> {
        let mut name = name.as_bytes().to_vec();
        if header.entry_type().is_dir() {
            name.push(b'/');
        }
        if !fits(&mut header.as_old_mut().name, &name) {
            self.long_name(EntryType::GNULongName, &name)?;
        }
        if let Some(content) = mtime.pax_header() {
            // As Buildbot's worker does; the header itself has seconds alone.
            self.extension(EntryType::XHeader, b"./PaxHeaders/mtime", &content)?;
        }
        header.set_cksum();
        self.archive.append(&header, content)
    }

    /// GNU tar's way to give the next member a name that its header has no room for.
    fn long_name(&mut self, kind: EntryType, name: &[u8]) -> io::Result<()> {
        self.extension(kind, b"././@LongLink", &[name, &[0]].concat())
    }

    /// Says something more about the next member.
    fn extension(&mut self, kind: EntryType, name: &[u8], content: &[u8]) -> io::Result<()> {
        let mut header = header(kind, &Attributes::default());
        fits(&mut header.as_old_mut().name, name);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.archive.append(&header, content)
    }
}

fn header(kind: EntryType, attributes: &Attributes) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(attributes.mode & 0o7777);
    header.set_uid(attributes.uid);
    header.set_gid(attributes.gid);
    attributes.mtime.set(&mut header);
    header.set_size(0);
    if let (Some((major, minor)), Some(gnu)) = (attributes.device, header.as_gnu_mut()) {
        gnu.set_device_major(major);
        gnu.set_device_minor(minor);
    }
    header
}

/// Puts as much of `name` into a header's field as it takes, and says whether that was all.
fn fits(field: &mut [u8; 100], name: &[u8]) -> bool {
    let taken = name.len().min(field.len());
    field[..taken].copy_from_slice(&name[..taken]);
    taken == name.len()
}

/// Compresses what is written on its way to the queue.
enum Encoder {
    None(Queue),
    Gz(GzEncoder<Queue>),
    Bz2(BzEncoder<Queue>),
}

impl Encoder {
    fn new(compression: Compression, sender: mpsc::Sender<Part>) -> Self {
        let queue = Queue { sender, chunk: BytesMut::new() };
        match compression {
            Compression::None => Encoder::None(queue),
            Compression::Gz => Encoder::Gz(GzEncoder::new(queue, flate2::Compression::default())),
            Compression::Bz2 => Encoder::Bz2(BzEncoder::new(queue, bzip2::Compression::default())),
        }
    }

    fn finish(self) -> io::Result<()> {
        let mut queue = match self {
            Encoder::None(queue) => queue,
            Encoder::Gz(encoder) => encoder.finish()?,
            Encoder::Bz2(encoder) => encoder.finish()?,
        };
        queue.flush()
    }
}

impl Write for Encoder {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Encoder::None(queue) => queue.write(data),
            Encoder::Gz(encoder) => encoder.write(data),
            Encoder::Bz2(encoder) => encoder.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Encoder::None(queue) => queue.flush(),
            Encoder::Gz(encoder) => encoder.flush(),
            Encoder::Bz2(encoder) => encoder.flush(),
        }
    }
}

/// Gathers what is written into chunks; waits when the reader is slow, and fails when it is gone.
struct Queue {
    sender: mpsc::Sender<Part>,
    chunk: BytesMut,
}

impl Write for Queue {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.chunk.capacity() == 0 {
            self.chunk.reserve(CHUNK);
        }
        let taken = data.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&data[..taken]);
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.chunk).freeze();
        self.sender.blocking_send(Part::Chunk(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
