//! Files that the configuration names.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens a file for reading, if it is one. Anything else would have whoever reads it wait, for a writer to a named pipe for one,
/// or has no end.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = match File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path) {
        // What a socket answers.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => return Err(no_file("a socket or device")),
        opened => opened?,
    };
    let kind = file.metadata()?.file_type();
    match () {
        () if kind.is_file() => Ok(file),
        () if kind.is_dir() => Err(no_file("a directory")),
        () if kind.is_fifo() => Err(no_file("a named pipe")),
        () => Err(no_file("a device")),
    }
}

/// Reads a file, if it is one and has at most so many bytes.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        false => Ok(bytes),
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} bytes"))),
    }
}

fn no_file(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a file"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_is_no_file_is_named_and_not_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let check = |path: &Path, expected: Result<&[u8], &str>| {
            let read = read(path, 4).map_err(|error| error.to_string());
            assert_eq!(read.as_deref().map_err(String::as_str), expected);
        };
        std::fs::write(path("file"), "1234").expect("written");
        check(&path("file"), Ok(b"1234"));
        std::fs::write(path("file"), "12345").expect("written");
        check(&path("file"), Err("it has more than 4 bytes"));
        check(directory.path(), Err("it is a directory, not a file"));
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("made");
        check(&path("pipe"), Err("it is a named pipe, not a file"));
        let _socket = UnixListener::bind(path("socket")).expect("bound");
        check(&path("socket"), Err("it is a socket or device, not a file"));
        check(Path::new("/dev/zero"), Err("it is a device, not a file"));
        check(&path("nothing"), Err("No such file or directory (os error 2)"));
    }
}
