//! Tar headers, written and read in the form that GNU and busybox tar share.
//!
//! The `tar` crate encodes and decodes the header block; names go past it, because it tidies paths up and reads long
//! ones, whatever length the other side claims, into memory.

use std::io::{self, Read, Write};

use tar::{EntryType, Header, PaxExtensions};

use super::error::CopyError;

pub(super) const BLOCK: usize = 512;

/// The longest path or link target that is taken, in bytes; Linux's PATH_MAX is 4096.
const MAX_NAME: u64 = 8 * 1024;

/// The most extension headers one entry may have: a long name, a long link, a pax header.
const MAX_EXTENSIONS: usize = 4;

/// An entry's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub kind: Kind,
    /// The path as it stands in the archive.
    pub path: Vec<u8>,
    /// The permission bits, of which only 0o777 are ever used.
    pub mode: u32,
    /// The modification time in seconds since 1970.
    pub mtime: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File {
        size: u64,
    },
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    /// Another name of a file that came before.
    Hardlink {
        target: Vec<u8>,
    },
    /// A device, pipe or the like.
    Special {
        what: &'static str,
    },
}

/// Writes an entry's head; a file's contents and [`padding`] must follow.
pub(super) fn write(to: &mut impl Write, entry: &Entry) -> io::Result<()> {
    let (kind, size, link): (_, _, &[u8]) = match &entry.kind {
        Kind::File { size } => (EntryType::Regular, *size, b""),
        Kind::Directory => (EntryType::Directory, 0, b""),
        Kind::Symlink { target } => (EntryType::Symlink, 0, target),
        Kind::Hardlink { target } => (EntryType::Link, 0, target),
        Kind::Special { what } => return Err(io::Error::other(format!("no archive holds a {what}"))),
    };
    let mut header = header(kind, entry.mode & 0o777, entry.mtime, size);
    let Some(gnu) = header.as_gnu_mut() else { return Err(io::Error::other("not a GNU header")) };
    let (name_field, link_field) = (gnu.name.len(), gnu.linkname.len());
    fill(&mut gnu.name, &entry.path);
    fill(&mut gnu.linkname, link);
    if entry.path.len() > name_field {
        long(to, EntryType::GNULongName, &entry.path)?;
    }
    if link.len() > link_field {
        long(to, EntryType::GNULongLink, link)?;
    }
    header.set_cksum();
    to.write_all(header.as_bytes())
}

fn header(kind: EntryType, mode: u32, mtime: u64, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(mtime);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn fill(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

/// Writes a name too long for its field as an entry of its own, ended by a NUL byte.
fn long(to: &mut impl Write, kind: EntryType, name: &[u8]) -> io::Result<()> {
    let size = name.len() as u64 + 1;
    let mut header = header(kind, 0, 0, size);
    if let Some(gnu) = header.as_gnu_mut() {
        fill(&mut gnu.name, b"././@LongLink");
    }
    header.set_cksum();
    to.write_all(header.as_bytes())?;
    to.write_all(name)?;
    to.write_all(&[0])?;
    to.write_all(padding(size))
}

/// Returns the zeros that follow contents of `size` bytes.
pub(super) fn padding(size: u64) -> &'static [u8] {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let used = (size % BLOCK as u64) as usize;
    &ZEROS[..(BLOCK - used) % BLOCK]
}

/// Writes the two empty blocks at the end.
pub(super) fn write_end(to: &mut impl Write) -> io::Result<()> {
    to.write_all(&[0; 2 * BLOCK])?;
    to.flush()
}

/// Reads the next entry's head, with its extension headers; `None` at the end of the archive.
///
/// A file's contents and padding must be read before the next call.
pub(super) fn read(from: &mut impl Read) -> Result<Option<Entry>, CopyError> {
    let (mut path, mut link) = (None, None);
    for _ in 0..=MAX_EXTENSIONS {
        let Some(header) = read_header(from)? else {
            return match (path, link) {
                (None, None) => Ok(None),
                _ => Err(hostile("it ends after an extension header")),
            };
        };
        let size = header.entry_size().map_err(|_| hostile("a size is no number"))?;
        match header.entry_type() {
            EntryType::GNULongName => path = Some(read_name(from, size)?),
            EntryType::GNULongLink => link = Some(read_name(from, size)?),
            EntryType::XHeader => read_pax(from, size, &mut path, &mut link)?,
            EntryType::XGlobalHeader => drop(read_small(from, size)?),
            kind => {
                let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
                let link = link.or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
                return entry(&header, kind, size, path, link.unwrap_or_default()).map(Some);
            }
        }
    }
    Err(hostile("an entry has too many extension headers"))
}

fn read_header(from: &mut impl Read) -> Result<Option<Header>, CopyError> {
    let mut header = Header::new_old();
    let mut filled = 0;
    while filled < BLOCK {
        match from.read(&mut header.as_mut_bytes()[filled..]).map_err(|error| hostile(&error.to_string()))? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(hostile("it ends within a header")),
            read => filled += read,
        }
    }
    if header.as_bytes().iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    // The checksum counts its own field as blanks.
    let sum: u32 = header
        .as_bytes()
        .iter()
        .enumerate()
        .map(|(at, byte)| match at {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        })
        .sum();
    match header.cksum() {
        Ok(stated) if stated == sum => Ok(Some(header)),
        _ => Err(hostile("a header's checksum is wrong")),
    }
}

fn entry(header: &Header, kind: EntryType, size: u64, path: Vec<u8>, link: Vec<u8>) -> Result<Entry, CopyError> {
    let kind = match kind {
        EntryType::Regular | EntryType::Continuous => Kind::File { size },
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink { target: link },
        EntryType::Link => Kind::Hardlink { target: link },
        EntryType::Char => Kind::Special { what: "character device" },
        EntryType::Block => Kind::Special { what: "block device" },
        EntryType::Fifo => Kind::Special { what: "named pipe" },
        other => return Err(hostile(&format!("an entry has type {:?}", char::from(other.as_byte())))),
    };
    if !matches!(kind, Kind::File { .. }) && size != 0 && !matches!(kind, Kind::Hardlink { .. }) {
        return Err(hostile("an entry without contents has a size"));
    }
    let mode = header.mode().map_err(|_| hostile("a mode is no number"))? & 0o777;
    let mtime = header.mtime().map_err(|_| hostile("a time is no number"))?;
    Ok(Entry { kind, path, mode, mtime })
}

/// Reads the contents of an extension header.
fn read_small(from: &mut impl Read, size: u64) -> Result<Vec<u8>, CopyError> {
    if size > MAX_NAME {
        return Err(hostile(&format!("a name is longer than {MAX_NAME} bytes")));
    }
    let mut contents = vec![0; size as usize];
    let cut = |_| hostile("it ends within an extension header");
    from.read_exact(&mut contents).map_err(cut)?;
    let mut rest = [0; BLOCK];
    from.read_exact(&mut rest[..padding(size).len()]).map_err(cut)?;
    Ok(contents)
}

fn read_name(from: &mut impl Read, size: u64) -> Result<Vec<u8>, CopyError> {
    let mut name = read_small(from, size)?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name.truncate(end);
    Ok(name)
}

fn read_pax(
    from: &mut impl Read,
    size: u64,
    path: &mut Option<Vec<u8>>,
    link: &mut Option<Vec<u8>>,
) -> Result<(), CopyError> {
    let contents = read_small(from, size)?;
    for extension in PaxExtensions::new(&contents) {
        let extension = extension.map_err(|_| hostile("a pax header is malformed"))?;
        match extension.key_bytes() {
            b"path" => *path = Some(extension.value_bytes().to_vec()),
            b"linkpath" => *link = Some(extension.value_bytes().to_vec()),
            b"size" => return Err(hostile("a size is in a pax header, which is not supported")),
            _ => {}
        }
    }
    Ok(())
}

fn hostile(why: &str) -> CopyError {
    CopyError::Hostile { why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(path: &[u8], size: u64) -> Entry {
        Entry { kind: Kind::File { size }, path: path.to_vec(), mode: 0o640, mtime: 1_234_567_890 }
    }

    fn written(entries: &[Entry]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for entry in entries {
            write(&mut bytes, entry).expect("writing to memory");
        }
        write_end(&mut bytes).expect("writing to memory");
        bytes
    }

    fn check_hostile(bytes: &[u8], why: &str) {
        assert_eq!(read(&mut &bytes[..]), Err(hostile(why)));
    }

    #[test]
    fn malformed_archives_are_refused() {
        let good = written(&[file(b"a", 0)]);
        let mut bad = good.clone();
        bad[0] = b'b';
        check_hostile(&bad, "a header's checksum is wrong");
        check_hostile(&good[..100], "it ends within a header");
        let mut huge = header(EntryType::GNULongName, 0, 0, 1 << 40);
        huge.set_cksum();
        check_hostile(huge.as_bytes(), "a name is longer than 8192 bytes");
        let mut odd = header(EntryType::new(b'Q'), 0, 0, 0);
        odd.set_cksum();
        check_hostile(odd.as_bytes(), "an entry has type 'Q'");
        let mut sized = header(EntryType::Directory, 0, 0, 10);
        sized.set_cksum();
        check_hostile(sized.as_bytes(), "an entry without contents has a size");
        check_hostile(&[0xff; BLOCK], "a header's checksum is wrong");
        let mut extensions = Vec::new();
        for _ in 0..=MAX_EXTENSIONS {
            long(&mut extensions, EntryType::GNULongName, b"x").expect("writing to memory");
        }
        check_hostile(&extensions, "an entry has too many extension headers");
        check_hostile(&extensions[..2 * BLOCK], "it ends after an extension header");
    }

    #[test]
    fn sizes_beyond_eight_gigabytes_survive() {
        let entry = file(b"huge", 1 << 40);
        assert_eq!(read(&mut &written(std::slice::from_ref(&entry))[..]), Ok(Some(entry)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            path in prop::collection::vec(1u8.., 1..400),
            target in prop::collection::vec(1u8.., 1..400),
            mode in 0u32..0o1000,
            mtime in 0u64..1 << 40,
        ) {
            let entries = [
                Entry { kind: Kind::File { size: 0 }, path: path.clone(), mode, mtime },
                Entry { kind: Kind::Directory, path: path.clone(), mode, mtime },
                Entry { kind: Kind::Symlink { target: target.clone() }, path: path.clone(), mode, mtime },
                Entry { kind: Kind::Hardlink { target }, path, mode, mtime },
            ];
            let bytes = written(&entries);
            let mut rest = &bytes[..];
            for entry in entries {
                prop_assert_eq!(read(&mut rest), Ok(Some(entry)));
            }
            prop_assert_eq!(read(&mut rest), Ok(None));
        }

        #[test]
        fn garbage_never_panics(garbage in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut rest = &garbage[..];
            while let Ok(Some(_)) = read(&mut rest) {}
        }
    }
}
