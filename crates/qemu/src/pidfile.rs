use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::Identity;

/// Far more than an identity takes.
const MAX_BYTES: u64 = 4096;

/// A file that says which process there may be: an [`Identity`] as one line of JSON, readable by its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pidfile {
    path: PathBuf,
}

/// Why a pidfile could not be read, written or removed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PidfileError {
    /// The file system refused.
    #[error("{doing} pidfile {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The pidfile.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file does not hold an identity, so that nobody can tell which process is meant.
    #[error("pidfile {} names no process: {source}; see what runs there, then remove it", path.display())]
    Malformed {
        /// The pidfile.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl Pidfile {
    /// Names a pidfile, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Pidfile { path: path.into() }
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it; `None` if there is none.
    pub fn read(&self) -> Result<Option<Identity>, PidfileError> {
        let mut text = Vec::new();
        let read = File::open(&self.path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.error("read", source)),
        }
        let identity = serde_json::from_slice(&text);
        identity.map(Some).map_err(|source| PidfileError::Malformed { path: self.path.clone(), source })
    }

    /// Writes it, in place of one that is there. It appears complete or not at all.
    pub fn write(&self, identity: &Identity) -> Result<(), PidfileError> {
        let mut unfinished = self.path.clone().into_os_string();
        unfinished.push(".new");
        let write = || {
            let text = serde_json::to_string(identity)?;
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            writeln!(file, "{text}")?;
            fs::rename(&unfinished, &self.path)
        };
        write().map_err(|source| self.error("write", source))
    }

    /// Removes it, if it is there.
    pub fn remove(&self) -> Result<(), PidfileError> {
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(self.error("remove", source)),
            _ => Ok(()),
        }
    }

    fn error(&self, doing: &'static str, source: io::Error) -> PidfileError {
        PidfileError::Io { doing, path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn identity() -> Identity {
        Identity { pid: 42, start_time: 7777, boot_id: "ead70a1f".to_owned() }
    }

    #[test]
    fn what_was_written_is_read_until_it_is_removed() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let pidfile = Pidfile::new(directory.path().join("qemu.pid"));
        assert_eq!(pidfile.read().expect("no error"), None);
        pidfile.write(&Identity { pid: 1, ..identity() }).expect("written");
        pidfile.write(&identity()).expect("replaced");
        assert_eq!(pidfile.read().expect("no error"), Some(identity()));
        let text = fs::read_to_string(pidfile.path()).expect("it is there");
        assert_eq!(text, "{\"pid\":42,\"start_time\":7777,\"boot_id\":\"ead70a1f\"}\n");
        let mode = fs::metadata(pidfile.path()).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        pidfile.remove().expect("removed");
        pidfile.remove().expect("nothing to do");
        assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn a_file_that_names_no_process_is_an_error_with_a_remedy() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let pidfile = Pidfile::new(directory.path().join("qemu.pid"));
        for text in ["", "42\n", "{\"pid\": -1}", &"x".repeat(100_000)] {
            fs::write(pidfile.path(), text).expect("written");
            let error = pidfile.read().expect_err("it is malformed").to_string();
            assert!(error.ends_with("see what runs there, then remove it"), "{error}");
        }
    }
}
