//! What the fuzz targets reach of copies.

use std::io::{self, Read};
use std::path::Path;

use cap_std::fs::Dir;

use super::unpack::{Destination, What};
use super::{Limits, Tally, archive};

/// Reads an archive, passing its files' contents by.
pub fn read_archive(mut bytes: &[u8]) {
    while let Ok(Some(entry)) = archive::read(&mut bytes) {
        if let archive::Kind::File { size } = entry.kind {
            let padded = size.saturating_add(archive::padding(size).len() as u64);
            let _ = io::copy(&mut (&mut bytes).take(padded), &mut io::sink());
        }
    }
}

/// Unpacks an archive into a directory; the bits of `how` say in which way.
pub fn unpack(bytes: &[u8], root: &Path, how: u8) {
    let destination = Destination {
        root: Dir::open_ambient_dir(root, cap_std::ambient_authority()).expect("it is there"),
        shown: root.to_owned(),
        live: how & 1 != 0,
        preserve: how & 2 != 0,
        what: if how & 4 != 0 { What::File { name: "f".into() } } else { What::Tree },
    };
    let limits = Limits { bytes: 1 << 20, entries: 100, keep_free: 1 };
    let unpacked = super::unpack::unpack(bytes, destination, Tally::new(limits));
    if how & 4 != 0 && unpacked.is_ok() {
        let made = root.join("f").symlink_metadata();
        assert!(made.map_or(true, |made| made.is_file()), "something else than a file was taken for one");
    }
}
