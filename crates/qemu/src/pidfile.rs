use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Identity;

/// Far more than an identity takes.
const MAX_BYTES: u64 = 4096;

/// A file that says which process there may be: an [`Identity`] as one line of JSON, and which directory it was written in,
/// readable by its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pidfile {
    path: PathBuf,
}

/// What is in a pidfile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Contents {
    #[serde(flatten)]
    identity: Identity,
    /// Earlier releases did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    directory: Option<Directory>,
}

/// A directory that can be told from its copies, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Directory {
    device: u64,
    inode: u64,
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
        Ok(self.contents()?.map(|contents| contents.identity))
    }

    /// Whether the directory that it is in was copied from elsewhere, so that the process is not that of this place.
    pub(crate) fn is_copy(&self) -> Result<bool, PidfileError> {
        let written_in = self.contents()?.and_then(|contents| contents.directory);
        let is_in = self.directory().map_err(|source| self.error("read", source))?;
        Ok(written_in.is_some_and(|written_in| written_in != is_in))
    }

    fn directory(&self) -> io::Result<Directory> {
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let metadata = fs::metadata(directory)?;
        Ok(Directory { device: metadata.dev(), inode: metadata.ino() })
    }

    fn contents(&self) -> Result<Option<Contents>, PidfileError> {
        let mut text = Vec::new();
        let read = File::open(&self.path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.error("read", source)),
        }
        let contents = serde_json::from_slice(&text);
        contents.map(Some).map_err(|source| PidfileError::Malformed { path: self.path.clone(), source })
    }

    /// Writes it, in place of one that is there. It appears complete or not at all.
    pub fn write(&self, identity: &Identity) -> Result<(), PidfileError> {
        let mut unfinished = self.path.clone().into_os_string();
        unfinished.push(".new");
        let write = || {
            let contents = Contents { identity: identity.clone(), directory: Some(self.directory()?) };
            let text = serde_json::to_string(&contents)?;
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
        let begins = "{\"pid\":42,\"start_time\":7777,\"boot_id\":\"ead70a1f\",\"directory\":{\"device\":";
        assert!(text.starts_with(begins) && text.ends_with("}}\n"), "{text}");
        let mode = fs::metadata(pidfile.path()).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        pidfile.remove().expect("removed");
        pidfile.remove().expect("nothing to do");
        assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn a_copy_of_its_directory_is_known_and_another_name_of_it_is_none() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| Pidfile::new(directory.path().join(name).join("qemu.pid"));
        for name in ["one", "copy", "old"] {
            fs::create_dir(directory.path().join(name)).expect("made");
        }
        at("one").write(&identity()).expect("written");
        fs::copy(at("one").path(), at("copy").path()).expect("copied");
        fs::write(at("old").path(), serde_json::to_string(&identity()).expect("plain numbers")).expect("written");
        assert_eq!(at("copy").read().expect("no error"), Some(identity()));
        assert!(at("copy").is_copy().expect("no error"));
        assert!(!at("old").is_copy().expect("no error"));
        fs::rename(directory.path().join("one"), directory.path().join("two")).expect("renamed");
        assert!(!at("two").is_copy().expect("no error"));
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
