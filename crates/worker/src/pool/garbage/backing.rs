//! What a qcow2 image lies over, as its own first bytes say.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// How a qcow2 image begins (QEMU, docs/interop/qcow2.txt).
const MAGIC: [u8; 4] = *b"QFI\xfb";

/// The longest name of a backing file (same document).
const MAX_NAME: u32 = 1023;

/// The file that an image lies over; none if it lies over none, or is no qcow2 image, such as one that is being made.
///
/// # Errors
/// It can't be read, or makes no sense: then nobody knows what it needs.
pub(super) fn backing(image: &Path) -> io::Result<Option<PathBuf>> {
    // In place of a disk there may be something that would be waited for, such as a named pipe.
    let mut file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(image)?;
    let mut header = Vec::new();
    (&mut file).take(20).read_to_end(&mut header)?;
    let Some((offset, length)) = parse(&header)? else { return Ok(None) };
    let mut name = vec![0; length];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut name)?;
    let name = PathBuf::from(std::ffi::OsString::from_vec(name));
    // A relative name is taken from where the image is.
    Ok(Some(image.parent().unwrap_or(Path::new("/")).join(name)))
}

/// Where the name of the backing file is: its offset and length.
fn parse(header: &[u8]) -> io::Result<Option<(u64, usize)>> {
    if header.len() < 20 || header[..4] != MAGIC {
        return Ok(None);
    }
    let number = |from: usize, to: usize| header[from..to].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    match (number(8, 16), number(16, 20)) {
        (0, _) => Ok(None),
        (_, length) if length == 0 || length > u64::from(MAX_NAME) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "its header has no name of the disk it lies over"))
        }
        (offset, length) => Ok(Some((offset, length as usize))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_says_where_the_name_is() {
        let header = |offset: u64, length: u32| {
            [&MAGIC[..], &3_u32.to_be_bytes(), &offset.to_be_bytes(), &length.to_be_bytes()].concat()
        };
        let check = |header: &[u8], expected: Result<Option<(u64, usize)>, ()>| {
            assert_eq!(parse(header).map_err(drop), expected, "{header:?}");
        };
        check(&header(0, 0), Ok(None));
        check(&header(528, 9), Ok(Some((528, 9))));
        check(&header(528, 0), Err(()));
        check(&header(528, 1024), Err(()));
        check(&header(528, 9)[..19], Ok(None));
        check(b"raw bytes of a disk, of some length", Ok(None));
        check(b"", Ok(None));
    }

    #[test]
    fn it_is_what_qemu_img_writes() {
        let directory = tempfile::tempdir().expect("a directory");
        let make = |arguments: &[&str]| {
            let made = std::process::Command::new("qemu-img").args(arguments).current_dir(directory.path()).status();
            assert!(made.expect("it is installed").success());
        };
        let path = |name: &str| directory.path().join(name);
        make(&["create", "-q", "-f", "qcow2", "base.qcow2", "1M"]);
        make(&["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "relative.qcow2"]);
        let absolute = path("base.qcow2").display().to_string();
        make(&["create", "-q", "-f", "qcow2", "-b", &absolute, "-F", "qcow2", "absolute.qcow2"]);
        assert_eq!(backing(&path("base.qcow2")).expect("read"), None);
        assert_eq!(backing(&path("relative.qcow2")).expect("read"), Some(path("base.qcow2")));
        assert_eq!(backing(&path("absolute.qcow2")).expect("read"), Some(path("base.qcow2")));
        assert!(backing(&path("none")).is_err());
    }
}
