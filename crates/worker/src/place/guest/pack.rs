//! A guest's directory as a tar archive.
//!
//! The guest's own tar makes the stream: one round trip for any number of files. It is taken apart and put together again
//! here, so that the master gets what the host would have sent, whichever tar the guest has: names without `./`, no names
//! of users and groups, nothing of what the guest may put into an archive that the master would stumble over. Compression
//! is the host's work, which has the better processor and every kind of it.
//!
//! Members come in the order of the guest's directories, and not sorted.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use protocol::command::Compression;
use ssh::TarTime;
use tar::{Archive, EntryType, Header, PaxExtensions};
use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

use super::output::Output;
use super::{Guest, script};
use crate::place::MAX_NAMES;
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
    let mut tree = Tree::default();
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
                member(kind, &header, &extended, &mut entry, &mut tree, members)?;
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
    mtime: Option<TarTime>,
}

impl Extended {
    fn read(&mut self, records: &[u8]) -> io::Result<()> {
        for record in PaxExtensions::new(records) {
            let record = record.map_err(|_| bad("a pax header is malformed"))?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"mtime" => self.mtime = record.value().ok().and_then(TarTime::parse),
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
    tree: &mut Tree,
    members: &mut Members,
) -> io::Result<()> {
    let name = extended.name.clone().unwrap_or_else(|| header.path_bytes().into_owned());
    let name = relative(&name);
    let target = match &extended.link {
        Some(target) => target.clone(),
        None => header.link_name_bytes().map(|target| target.into_owned()).unwrap_or_default(),
    };
    // That of another name is a member's name itself.
    let target = if kind.is_hard_link() { relative(&target) } else { &target };
    tree.take(kind, name, target)?;
    let (name, target) = (OsStr::from_bytes(name), OsStr::from_bytes(target));
    let attributes = Attributes {
        mode: header.mode()?,
        uid: header.uid()?,
        gid: header.gid()?,
        mtime: extended.mtime.unwrap_or_else(|| TarTime::of_header(header).unwrap_or_default()),
        device: match kind {
            EntryType::Char | EntryType::Block => header.device_major()?.zip(header.device_minor()?),
            _ => None,
        },
    };
    match kind {
        EntryType::Regular | EntryType::Continuous => {
            members.add_file(&attributes, name, header.entry_size()?, content)
        }
        EntryType::Symlink | EntryType::Link => members.add_link(kind, &attributes, name, target),
        EntryType::Directory | EntryType::Fifo | EntryType::Char | EntryType::Block => {
            members.add_plain(kind, &attributes, name)
        }
        other => Err(bad(&format!("a member has type {:?}", char::from(other.as_byte())))),
    }
}

/// The tree that members make up for who unpacks them, where nothing may be put outside: a tar tells the truth, and a guest
/// may have what it likes in its place.
#[derive(Default)]
struct Tree {
    /// The symbolic links, each by a number that its name gives: there may be many.
    links: HashSet<u64>,
    numbers: RandomState,
}

impl Tree {
    fn take(&mut self, kind: EntryType, name: &[u8], target: &[u8]) -> io::Result<()> {
        self.check(name)?;
        if self.is_link(name) {
            return Err(bad("a link's name comes again"));
        }
        let mut link = kind.is_symlink();
        if kind.is_hard_link() {
            self.check(target)?;
            link = self.is_link(target);
        }
        if link {
            self.links.insert(self.numbers.hash_one(name));
        }
        match self.links.len() > MAX_NAMES {
            true => Err(bad(&format!("it has more than {MAX_NAMES} links"))),
            false => Ok(()),
        }
    }

    /// Refuses a name that leads out of the tree, by itself or through a link. The tree's root has an empty one.
    fn check(&self, name: &[u8]) -> io::Result<()> {
        let mut parts = name.split(|byte| *byte == b'/');
        if !name.is_empty() && parts.any(|part| matches!(part, b"" | b"." | b"..")) {
            return Err(bad("a name leads out of the directory"));
        }
        let slashes = name.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut above = slashes.map(|(at, _)| &name[..at]);
        match above.any(|directory| self.is_link(directory)) {
            true => Err(bad("a name leads through a link")),
            false => Ok(()),
        }
    }

    fn is_link(&self, name: &[u8]) -> bool {
        self.links.contains(&self.numbers.hash_one(name))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_lie_in_the_tree_whatever_the_guests_tar_says() {
        use EntryType::{Directory, Link, Regular, Symlink};
        let check = |members: &[(EntryType, &str, &str)], expected: Option<&str>| {
            let mut tree = Tree::default();
            let taken = members
                .iter()
                .try_for_each(|(kind, name, target)| tree.take(*kind, relative(name.as_bytes()), target.as_bytes()));
            let why = taken.err().map(|error| error.to_string());
            let expected = expected.map(|why| format!("the guest's tar made a bad archive: {why}"));
            assert_eq!(why, expected, "{members:?}");
        };
        let (out, through) = ("a name leads out of the directory", "a name leads through a link");
        check(&[(Directory, "./", ""), (Directory, "./d/", ""), (Regular, "./d/...", "")], None);
        check(&[(Symlink, "./d/l", "../../x"), (Regular, "./d/l2", ""), (Link, "h", "d/l"), (Link, "i", "d/l2")], None);
        check(&[(Regular, "/etc/passwd", "")], Some(out));
        check(&[(Regular, "./../x", "")], Some(out));
        check(&[(Directory, "d/..", "")], Some(out));
        check(&[(Link, "h", "/etc/passwd")], Some(out));
        check(&[(Link, "h", "../x")], Some(out));
        check(&[(Symlink, "l", "/etc"), (Regular, "l/passwd", "")], Some(through));
        check(&[(Symlink, "l", "/etc"), (Link, "h", "l/passwd")], Some(through));
        check(&[(Symlink, "l", "/etc/passwd"), (Regular, "l", "")], Some("a link's name comes again"));
        check(&[(Symlink, "l", "/etc"), (Link, "h", "l"), (Regular, "h/passwd", "")], Some(through));
    }
}
