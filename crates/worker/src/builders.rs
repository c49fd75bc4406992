//! The builders of this worker and their directories, as a master tells them over PB.
//!
//! Over msgpack a master does not tell: it names paths, and makes and removes the directories itself.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use tracing::{info, warn};

/// The directory that describes the worker, which is no builder's.
const INFO: &str = "info";

/// Where each builder's directory is.
#[derive(Debug, Default)]
pub(crate) struct Builders(HashMap<String, PathBuf>);

impl Builders {
    /// What the relative paths of a builder's commands are relative to.
    pub(crate) fn directory(&self, builder: Option<&str>, basedir: &Path) -> PathBuf {
        builder.and_then(|builder| self.0.get(builder)).cloned().unwrap_or_else(|| basedir.to_owned())
    }

    /// Takes over the master's list: makes the directories and returns the builders that are gone.
    ///
    /// # Errors
    /// A directory that can't be made, or that is not one below `basedir`; the list stays as it was.
    pub(crate) fn replace(&mut self, list: Vec<(String, String)>, basedir: &Path) -> io::Result<Vec<String>> {
        let mut builders = HashMap::new();
        for (name, directory) in list {
            let path = basedir.join(below(&directory)?);
            fs::create_dir_all(&path)
                .map_err(|error| io::Error::new(error.kind(), format!("make {}: {error}", path.display())))?;
            builders.insert(name, path);
        }
        let gone = self.0.keys().filter(|name| !builders.contains_key(*name)).cloned().collect();
        self.0 = builders;
        Ok(gone)
    }

    /// The directories in `basedir` that belong to no builder.
    pub(crate) fn leftovers(&self, basedir: &Path) -> Leftovers {
        Leftovers(self.unknown(basedir))
    }

    fn unknown(&self, basedir: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(basedir).into_iter().flatten().flatten();
        let mut unknown: Vec<_> = entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != INFO)
            .map(|entry| entry.path())
            // A builder's directory may be deeper; what leads to it is not left over either.
            .filter(|path| !self.0.values().any(|known| known.starts_with(path)))
            .collect();
        unknown.sort();
        unknown
    }
}

/// Directories that belong to no builder any more.
#[derive(Debug)]
pub(crate) struct Leftovers(Vec<PathBuf>);

impl Leftovers {
    /// Says that they are there.
    pub(crate) fn mention(&self) {
        for path in &self.0 {
            info!(directory = %path.display(), "belongs to no builder any more; worker.delete_leftover_dirs removes such");
        }
    }

    /// Removes them, which may take long.
    pub(crate) fn remove(&self) {
        for path in &self.0 {
            match fs::remove_dir_all(path) {
                Ok(()) => info!(directory = %path.display(), "removed: it belongs to no builder any more"),
                Err(error) => warn!(directory = %path.display(), "remove what belongs to no builder any more: {error}"),
            }
        }
    }
}

/// A builder's directory is relative and stays below the basedir.
fn below(directory: &str) -> io::Result<&Path> {
    let path = Path::new(directory);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if plain && path.components().any(|part| matches!(part, Component::Normal(_))) {
        Ok(path)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("'{directory}' is no directory for a builder")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, directory)| ((*name).to_owned(), (*directory).to_owned())).collect()
    }

    #[test]
    fn directories_are_made_and_the_gone_are_named() {
        let basedir = tempfile::tempdir().unwrap();
        let mut builders = Builders::default();
        assert_eq!(builders.replace(list(&[("a", "dir-a"), ("b", "deep/b")]), basedir.path()).unwrap(), [""; 0]);
        assert!(basedir.path().join("deep/b").is_dir());
        assert_eq!(builders.directory(Some("a"), basedir.path()), basedir.path().join("dir-a"));
        assert_eq!(builders.directory(Some("z"), basedir.path()), basedir.path());
        assert_eq!(builders.replace(list(&[("b", "deep/b")]), basedir.path()).unwrap(), ["a"]);
        builders.leftovers(basedir.path()).mention();
        assert!(basedir.path().join("dir-a").is_dir());
        fs::create_dir(basedir.path().join(INFO)).unwrap();
        builders.leftovers(basedir.path()).remove();
        let mut left: Vec<_> = fs::read_dir(&basedir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["deep", INFO]);
    }

    #[test]
    fn a_builders_directory_stays_in_the_basedir() {
        let check = |directory: &str, expected: bool| assert_eq!(below(directory).is_ok(), expected, "{directory}");
        check("runtests", true);
        check("a/b", true);
        for bad in ["", ".", "..", "a/../..", "/etc"] {
            check(bad, false);
        }
    }
}
