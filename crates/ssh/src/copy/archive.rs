//! Tar headers, written and read in the form that GNU and busybox tar share.
//!
//! The `tar` crate encodes and decodes the header block; names go past it, because it tidies paths up and reads long
//! ones, whatever length the other side claims, into memory.

use std::io::{self, Read, Write};

use tar::{EntryType, Header, PaxExtensions};

use super::error::CopyError;
use crate::tar_time::TarTime;

pub(super) const BLOCK: usize = 512;

/// The longest name or pax header that is taken, in bytes; Linux's PATH_MAX is 4096, and a pax header may hold two paths.
const MAX_NAME: u64 = 16 * 1024;

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
    /// The modification time.
    pub mtime: TarTime,
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
    if let Some(contents) = entry.mtime.pax_header() {
        // GNU tar knows it; busybox's passes it by, and keeps the second.
        extension(to, EntryType::XHeader, b"./PaxHeaders/mtime", &contents)?;
    }
    header.set_cksum();
    to.write_all(header.as_bytes())
}

fn header(kind: EntryType, mode: u32, mtime: TarTime, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    mtime.set(&mut header);
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
    extension(to, kind, b"././@LongLink", &[name, &[0]].concat())
}

/// Writes something more about the entry that follows.
fn extension(to: &mut impl Write, kind: EntryType, name: &[u8], contents: &[u8]) -> io::Result<()> {
    let size = contents.len() as u64;
    let mut header = header(kind, 0, TarTime::default(), size);
    if let Some(gnu) = header.as_gnu_mut() {
        fill(&mut gnu.name, name);
    }
    header.set_cksum();
    to.write_all(header.as_bytes())?;
    to.write_all(contents)?;
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
    let mut more = Extended::default();
    for _ in 0..=MAX_EXTENSIONS {
        let Some(header) = read_header(from)? else {
            return match more == Extended::default() {
                true => Ok(None),
                false => Err(hostile("it ends after an extension header")),
            };
        };
        let size = header.entry_size().map_err(|_| hostile("a size is no number"))?;
        match header.entry_type() {
            EntryType::GNULongName => more.path = Some(read_name(from, size)?),
            EntryType::GNULongLink => more.link = Some(read_name(from, size)?),
            EntryType::XHeader => more.read_pax(&read_small(from, size)?)?,
            EntryType::XGlobalHeader => drop(read_small(from, size)?),
            kind => return entry(&header, kind, more.size.unwrap_or(size), more).map(Some),
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
        // Who makes inputs up without knowing the rules would not get past it.
        Ok(stated) if stated == sum || cfg!(fuzzing) => Ok(Some(header)),
        _ => Err(hostile("a header's checksum is wrong")),
    }
}

/// What extension headers say of the entry that follows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<TarTime>,
}

fn entry(header: &Header, kind: EntryType, size: u64, more: Extended) -> Result<Entry, CopyError> {
    let path = more.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let link = more.link.or_else(|| header.link_name_bytes().map(|link| link.into_owned())).unwrap_or_default();
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
    let mtime = match more.mtime {
        Some(mtime) => mtime,
        None => TarTime::of_header(header).map_err(|_| hostile("a time is no number"))?,
    };
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

impl Extended {
    fn read_pax(&mut self, contents: &[u8]) -> Result<(), CopyError> {
        for extension in PaxExtensions::new(contents) {
            let extension = extension.map_err(|_| hostile("a pax header is malformed"))?;
            let text = || extension.value().ok();
            match extension.key_bytes() {
                b"path" => self.path = Some(extension.value_bytes().to_vec()),
                b"linkpath" => self.link = Some(extension.value_bytes().to_vec()),
                b"size" => {
                    let size = text().and_then(|text| text.parse().ok());
                    self.size = Some(size.ok_or_else(|| hostile("a size is no number"))?);
                }
                b"mtime" => {
                    let mtime = text().and_then(TarTime::parse);
                    self.mtime = Some(mtime.ok_or_else(|| hostile("a time is no number"))?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn hostile(why: &str) -> CopyError {
    CopyError::Hostile { why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tar_time::pax_record;

    fn file(path: &[u8], size: u64) -> Entry {
        Entry {
            kind: Kind::File { size },
            path: path.to_vec(),
            mode: 0o640,
            mtime: TarTime { seconds: 1_234_567_890, nanoseconds: 0 },
        }
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
        let mut huge = header(EntryType::GNULongName, 0, TarTime::default(), 1 << 40);
        huge.set_cksum();
        check_hostile(huge.as_bytes(), "a name is longer than 16384 bytes");
        let mut odd = header(EntryType::new(b'Q'), 0, TarTime::default(), 0);
        odd.set_cksum();
        check_hostile(odd.as_bytes(), "an entry has type 'Q'");
        let mut sized = header(EntryType::Directory, 0, TarTime::default(), 10);
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
    fn a_size_may_be_in_a_pax_header() {
        let mut bytes = Vec::new();
        extension(&mut bytes, EntryType::XHeader, b"x", &pax_record("size", &(1u64 << 40).to_string()))
            .expect("writing to memory");
        bytes.extend(written(&[file(b"huge", 0)]));
        assert_eq!(read(&mut &bytes[..]), Ok(Some(file(b"huge", 1 << 40))));
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
            seconds in -1i64 << 40..1 << 40,
            nanoseconds in 0u32..1_000_000_000,
        ) {
            let mtime = TarTime { seconds, nanoseconds };
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
