//! A guest's files: their numbers and names, and reading them.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use tokio::io::AsyncRead;

use super::output::Output;
use super::{Guest, script, tool};
use crate::place::MAX_NAMES;

/// What a small answer has at most, in bytes.
const SHORT: usize = 4096;

/// What the names in a directory may have together, in bytes.
const LONG: usize = 64 << 20;

/// How often a directory is read that changes under the reader.
const TRIES: usize = 3;

const MAKE: &str = include_str!("make.sh");
const READ: &str = include_str!("read.sh");
const REMOVE: &str = include_str!("remove.sh");

impl Guest {
    /// Runs a program of our own to its end and returns what it wrote.
    pub(super) async fn output(&self, exec: ssh::Exec, limit: usize) -> io::Result<Vec<u8>> {
        Output::new(self, self.start(exec).await?).all(limit).await
    }

    /// See [`super::super::Place::stat`].
    pub(super) async fn look(&self, path: &Path) -> io::Result<[i64; 10]> {
        let words = ["stat", "-L", "-c", "%f %i %d %h %u %g %s %X %Y %Z", "--"].map(OsStr::new);
        let output = self.output(tool(words.into_iter().chain([path.as_os_str()])), SHORT).await?;
        parse_stat(&String::from_utf8_lossy(&output)).ok_or_else(|| io::Error::other("the guest's stat wrote nonsense"))
    }

    /// See [`super::super::Place::times`].
    pub(super) async fn look_at_times(&self, path: &Path) -> io::Result<(f64, f64)> {
        // Whole seconds, and the same in words, which have a fraction.
        let words = ["stat", "-L", "-c", "%X %x|%Y %y", "--"].map(OsStr::new);
        let output = self.output(tool(words.into_iter().chain([path.as_os_str()])), SHORT).await?;
        parse_times(&String::from_utf8_lossy(&output))
            .ok_or_else(|| io::Error::other("the guest's stat wrote nonsense"))
    }

    /// See [`super::super::Place::list`]; sorted.
    pub(super) async fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let mut directory = path.as_os_str().to_owned();
        directory.push("/.");
        let words = ["-mindepth", "1", "-maxdepth", "1", "-print0"].map(OsStr::new);
        let mut tries = 1;
        let output = loop {
            let mut output =
                Output::new(self, self.start(tool([OsStr::new("find"), &directory].into_iter().chain(words))).await?);
            let mut listed = Vec::new();
            let ended = loop {
                match output.next().await {
                    Ok(Some(bytes)) if listed.len() + bytes.len() <= LONG => listed.extend_from_slice(&bytes),
                    Ok(Some(_)) => return Err(too_many()),
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            match ended {
                Ok(()) => break listed,
                // Busybox looks at each name, and complains of those that have just been removed.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !listed.is_empty() && tries < TRIES => {
                    tries += 1
                }
                Err(error) => return Err(error),
            }
        };
        let names = output.split(|byte| *byte == 0).filter(|path| !path.is_empty());
        let mut names: Vec<OsString> = names
            .filter_map(|path| path.rsplit(|byte| *byte == b'/').next())
            .take(MAX_NAMES + 1)
            .map(|name| OsString::from_vec(name.to_vec()))
            .collect();
        if names.len() > MAX_NAMES {
            return Err(too_many());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// See [`super::super::Place::make_directory`].
    pub(super) async fn make(&self, path: &Path) -> io::Result<()> {
        self.output(script(MAKE, [path.as_os_str()]), SHORT).await.map(drop)
    }

    /// See [`super::super::Place::remove_file`].
    pub(super) async fn remove(&self, path: &Path) -> io::Result<()> {
        self.output(script(REMOVE, [path.as_os_str()]), SHORT).await.map(drop)
    }

    /// See [`super::super::Place::read`]. Directories, named pipes and sockets are refused; a pipe might never be readable.
    pub(super) async fn open(&self, path: &Path, offset: u64) -> io::Result<impl AsyncRead + Send + Unpin + use<>> {
        let offset = offset.to_string();
        let process = self.start(script(READ, [path.as_os_str(), OsStr::new(&offset)])).await?;
        match Output::new(self, process).reader().await {
            Err(error) if error.to_string() == PIPE => Err(io::Error::new(io::ErrorKind::InvalidInput, PIPE)),
            opened => opened,
        }
    }
}

/// What `read.sh` says of a pipe.
const PIPE: &str = "not a file but a pipe or a socket";

fn too_many() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {MAX_NAMES} names"))
}

/// Reads `stat -c '%f %i ...'`: the mode is hexadecimal, the rest decimal.
fn parse_stat(line: &str) -> Option<[i64; 10]> {
    let mut fields = line.split_whitespace();
    let mut numbers = [0; 10];
    numbers[0] = i64::from_str_radix(fields.next()?, 16).ok()?;
    for number in &mut numbers[1..] {
        *number = integer(fields.next()?)?;
    }
    fields.next().is_none().then_some(numbers)
}

/// Busybox writes a time before 1970 without its sign, as the number that it is then.
fn integer(text: &str) -> Option<i64> {
    text.parse().ok().or_else(|| text.parse().ok().map(u64::cast_signed))
}

/// Reads `stat -c '%X %x|%Y %y'`: for each time its seconds and something like `2001-01-01 00:00:00.500000000 +0000`.
fn parse_times(line: &str) -> Option<(f64, f64)> {
    let time = |text: &str| {
        let (seconds, words) = text.trim().split_once(' ')?;
        let fraction = words.split_once('.').map_or("", |(_, fraction)| fraction);
        let digits = fraction.split(|c: char| !c.is_ascii_digit()).next().filter(|digits| !digits.is_empty());
        let fraction: f64 = format!("0.{}", digits.unwrap_or("0")).parse().ok()?;
        Some(integer(seconds)? as f64 + fraction)
    };
    let (accessed, modified) = line.split_once('|')?;
    Some((time(accessed)?, time(modified)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_from_its_line() {
        let check = |line: &str, expected| assert_eq!(parse_stat(line), expected, "{line}");
        check("81a4 11 65024 1 1000 1000 5 3 2 1\n", Some([0o100644, 11, 65024, 1, 1000, 1000, 5, 3, 2, 1]));
        let before = "81a4 11 65024 1 1000 1000 5 3 -2 18446744073709551615";
        check(before, Some([0o100644, 11, 65024, 1, 1000, 1000, 5, 3, -2, -1]));
        check("81a4 11 65024 1 1000 1000 5 3 2", None);
        check("81a4 11 65024 1 1000 1000 5 3 2 1 0", None);
        check("mode", None);
    }

    #[test]
    fn times_are_read_with_their_fractions() {
        let check = |line: &str, expected| assert_eq!(parse_times(line), expected, "{line}");
        let line = "978307200 2001-01-01 00:00:00.500000000 +0000|-1001 1969-12-31 23:43:19.750000000 +0000\n";
        check(line, Some((978_307_200.5, -1000.25)));
        check("5 2001-01-01 00:00:00|6 x\n", Some((5.0, 6.0)));
        check("5 2001-01-01 00:00:00\n", None);
        check("x y|6 x\n", None);
    }
}
