//! A guest's directory as a tar archive.
//!
//! The guest's own tar makes the stream: one round trip for any number of files. It is taken apart and put together again
//! here, so that the master gets what the host would have sent, whichever tar the guest has: names without `./`, no names
//! of users and groups, nothing of what the guest may put into an archive that the master would stumble over. Compression
//! is the host's work, which has the better processor and every kind of it.
//!
//! Members come in the order of the guest's directories, and not sorted.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use protocol::command::Compression;
use tar::{Archive, EntryType, Header, PaxExtensions};
use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

use super::output::Output;
use super::{Guest, script};
use crate::place::archive::{Attributes, Members, archive};

const PACK: &str = include_str!("pack.sh");

/// The longest name or extension header that is taken, in bytes; Linux's PATH_MAX is 4096.
const MAX_NAME: u64 = 16 * 1024;

/// What GNU tar says of files that change under it, or go, when it leaves a good archive all the same.
const CHANGES: [&str; 5] = [
    "file changed as we read it",
    "File removed before we read it",
    "padding with zeros",
    "socket ignored",
    "Removing leading",
];

/// Packs a directory; what can't be opened at all is an error here, what goes wrong later is an error of the reader.
/// Dropping the reader ends the packing.
pub(super) async fn pack(
    guest: &Guest,
    path: &Path,
    compression: Compression,
) -> io::Result<impl AsyncRead + Send + Unpin + use<>> {
    let process = guest.start(script(PACK, [path.as_os_str()]).buffer(4 << 20)).await?;
    let stream = Output::new(guest, process).forgiving(changes_alone).reader().await?;
    let stream = SyncIoBridge::new(stream);
    Ok(archive(compression, |members| copy(stream, members)))
}

/// Whether all that went wrong is that files changed while they were packed.
fn changes_alone(exit: &ssh::Exit, said: &str) -> bool {
    *exit == ssh::Exit::Code(1)
        && !said.trim().is_empty()
        && said.trim().lines().all(|line| CHANGES.iter().any(|change| line.contains(change)))
}

/// Copies all members of a stream, and reads it to its end, which says whether it was whole.
fn copy(mut stream: impl Read, members: &mut Members) -> io::Result<()> {
    let mut archive = Archive::new(&mut stream);
    let mut extended = Extended::default();
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        let header = entry.header().clone();
        match header.entry_type() {
            EntryType::GNULongName => extended.name = Some(long_name(&mut entry)?),
            EntryType::GNULongLink => extended.link = Some(long_name(&mut entry)?),
            EntryType::XHeader => extended.read(&small(&mut entry)?)?,
            EntryType::XGlobalHeader => drop(small(&mut entry)?),
            kind => {
                let extended = std::mem::take(&mut extended);
                member(kind, &header, &extended, &mut entry, members)?;
            }
        }
    }
    if extended != Extended::default() {
        return Err(bad("it ends after an extension header"));
    }
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

/// What stands before a member and says more of it than its header can hold.
#[derive(Debug, Default, PartialEq, Eq)]
struct Extended {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    mtime: Option<u64>,
}

impl Extended {
    fn read(&mut self, records: &[u8]) -> io::Result<()> {
        for record in PaxExtensions::new(records) {
            let record = record.map_err(|_| bad("a pax header is malformed"))?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"mtime" => {
                    let seconds = record.value().ok().and_then(|text| text.split('.').next());
                    self.mtime = seconds.and_then(|seconds| seconds.parse().ok());
                }
                b"size" => return Err(bad("a size is in a pax header, which is not supported")),
                _ => {}
            }
        }
        Ok(())
    }
}

fn member(
    kind: EntryType,
    header: &Header,
    extended: &Extended,
    content: &mut impl Read,
    members: &mut Members,
) -> io::Result<()> {
    let name = extended.name.clone().unwrap_or_else(|| header.path_bytes().into_owned());
    let name = OsStr::from_bytes(relative(&name));
    let target = || match &extended.link {
        Some(target) => target.clone(),
        None => header.link_name_bytes().map(|target| target.into_owned()).unwrap_or_default(),
    };
    let attributes = Attributes {
        mode: header.mode()?,
        uid: header.uid()?,
        gid: header.gid()?,
        mtime: extended.mtime.or_else(|| header.mtime().ok()).filter(is_time).unwrap_or(0),
        device: match kind {
            EntryType::Char | EntryType::Block => header.device_major()?.zip(header.device_minor()?),
            _ => None,
        },
    };
    match kind {
        EntryType::Regular | EntryType::Continuous => {
            members.add_file(&attributes, name, header.entry_size()?, content)
        }
        EntryType::Symlink => members.add_link(kind, &attributes, name, OsStr::from_bytes(&target())),
        // The target is a member's name.
        EntryType::Link => members.add_link(kind, &attributes, name, OsStr::from_bytes(relative(&target()))),
        EntryType::Directory | EntryType::Fifo | EntryType::Char | EntryType::Block => {
            members.add_plain(kind, &attributes, name)
        }
        other => Err(bad(&format!("a member has type {:?}", char::from(other.as_byte())))),
    }
}

/// Whether it is a time since 1970. GNU tar writes one before as a negative number, which reads as a very large one.
fn is_time(seconds: &u64) -> bool {
    i64::try_from(*seconds).is_ok()
}

/// A member's name without the `./` before it and the slash after it.
fn relative(name: &[u8]) -> &[u8] {
    let end = name.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    match &name[..end] {
        b"." => b"",
        name => name.strip_prefix(b"./").unwrap_or(name),
    }
}

/// The contents of an extension header.
fn small(entry: &mut (impl Read + Sized)) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    entry.take(MAX_NAME + 1).read_to_end(&mut contents)?;
    match contents.len() as u64 > MAX_NAME {
        true => Err(bad(&format!("a name is longer than {MAX_NAME} bytes"))),
        false => Ok(contents),
    }
}

fn long_name(entry: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut name = small(entry)?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name.truncate(end);
    Ok(name)
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the guest's tar made a bad archive: {why}"))
}
