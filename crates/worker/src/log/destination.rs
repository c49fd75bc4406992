//! What standard error is connected to.

use std::env;
use std::io::IsTerminal;
use std::os::fd::AsFd;

use nix::sys::stat::fstat;

/// The variable by which systemd tells a service which stream leads to the journal: `DEVICE:INODE` (systemd.exec(5)).
const STREAM: &str = "JOURNAL_STREAM";

/// Where standard error leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    /// To the journal.
    Journal,
    /// To a person.
    Terminal,
    /// To a file, a pipe or nowhere.
    Other,
}

impl Destination {
    /// Looks where it leads. The variable alone proves nothing: who was started by a service inherits it, whatever became of
    /// standard error.
    pub(super) fn of_stderr() -> Self {
        let stderr = std::io::stderr();
        if stderr.is_terminal() {
            return Destination::Terminal;
        }
        let stream = env::var(STREAM).unwrap_or_default();
        if is_stream(&stderr, &stream) { Destination::Journal } else { Destination::Other }
    }
}

fn is_stream(file: impl AsFd, stream: &str) -> bool {
    let named = stream.split_once(':').and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    let Ok(status) = fstat(file) else { return false };
    named == Some((status.st_dev, status.st_ino))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_stream_is_known_by_its_device_and_inode() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let name = |stream: &UnixStream| {
            let status = fstat(stream).expect("it is open");
            format!("{}:{}", status.st_dev, status.st_ino)
        };
        assert!(is_stream(&one, &name(&one)));
        for wrong in [name(&other), String::new(), "1".to_owned(), ":".to_owned(), format!("{}:", name(&one))] {
            assert!(!is_stream(&one, &wrong), "{wrong}");
        }
    }
}
