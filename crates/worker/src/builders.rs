//! The builders of this worker and their directories, as a master tells them over PB.
//!
//! Over msgpack a master does not tell: it names paths, and makes and removes the directories itself.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use tracing::{debug, info, warn};

use crate::host_access::make_below;
use crate::place::create_dir_all;

/// The directory that describes the worker, which is no builder's.
const INFO: &str = "info";

/// Where the builders' directories are, which are what the master says they are: most often one below the base directory,
/// but it may be that itself, or be elsewhere on the host.
#[derive(Debug, Default)]
pub(crate) struct Builders {
    /// Over PB, by the builders' names.
    named: HashMap<String, PathBuf>,
    /// Over msgpack, which does not tell whose they are: those that were not there.
    unnamed: Vec<PathBuf>,
    refused: Vec<Refused>,
}

/// A builder that can't be served, as there is no directory for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Its name; none over msgpack.
    pub builder: Option<String>,
    pub directory: PathBuf,
    pub why: String,
}

/// What a builder's directory may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds<'a> {
    pub basedir: &'a Path,
    /// Whether builds run on the host, too, so that a directory elsewhere than in `basedir` is to be made there.
    pub host: bool,
}

/// What came of a master's list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Replaced {
    /// The builders that are served.
    pub served: Vec<String>,
    /// Those that were and are not any more.
    pub gone: Vec<String>,
}

impl Builders {
    /// What the relative paths of a builder's commands are relative to.
    pub(crate) fn directory(&self, builder: Option<&str>, basedir: &Path) -> PathBuf {
        builder.and_then(|builder| self.named.get(builder)).cloned().unwrap_or_else(|| basedir.to_owned())
    }

    /// All that builders have for directories, as far as is known.
    pub(crate) fn directories(&self) -> impl Iterator<Item = &Path> {
        self.named.values().chain(&self.unnamed).map(PathBuf::as_path)
    }

    /// The builders that are not served.
    pub(crate) fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Takes over the master's list and makes the directories. A builder whose directory can't be made is refused, and no
    /// other is for it.
    pub(crate) fn replace(&mut self, list: Vec<(String, String)>, bounds: Bounds<'_>) -> Replaced {
        let (mut named, mut served) = (HashMap::new(), Vec::new());
        self.refused.clear();
        for (name, directory) in list {
            let path = bounds.basedir.join(directory);
            if self.make(Some(&name), &path, bounds) {
                served.push(name.clone());
                named.insert(name, path);
            }
        }
        let gone = self.named.keys().filter(|name| !named.contains_key(*name)).cloned().collect();
        self.named = named;
        Replaced { served, gone }
    }

    /// Makes directories of builders, whose names the master does not tell.
    pub(crate) fn make_unnamed(&mut self, paths: &[PathBuf], bounds: Bounds<'_>) {
        for path in paths {
            if self.make(None, path, bounds) {
                self.unnamed.push(path.clone());
            }
        }
    }

    /// Forgets what a msgpack master said before it begins to say it anew.
    pub(crate) fn forget_unnamed(&mut self) {
        self.unnamed.clear();
        self.refused.retain(|refused| refused.builder.is_some());
    }

    /// Forgets who is refused: another master, or the same one later, may say something else.
    pub(crate) fn forget_refused(&mut self) {
        self.refused.clear();
    }

    fn make(&mut self, builder: Option<&str>, path: &Path, bounds: Bounds<'_>) -> bool {
        // Where builds run in machines only, what is in the worker's directory may be theirs, and nothing else is the master's.
        let made = if bounds.host { create_dir_all(path).map(|()| true) } else { make_below(bounds.basedir, path) };
        let error = match made {
            Ok(made) => {
                if !made {
                    debug!(builder, directory = %path.display(), "not made on this host, where no build runs");
                }
                return true;
            }
            Err(error) => error,
        };
        warn!(
            builder,
            directory = %path.display(),
            "builder refused, as its directory can't be made: {error}; put that right and restart the worker, or change \
             the builder's workerbuilddir"
        );
        let refused =
            Refused { builder: builder.map(str::to_owned), directory: path.to_owned(), why: error.to_string() };
        self.refused.push(refused);
        false
    }

    /// The directories in `basedir` that belong to no builder.
    pub(crate) fn leftovers(&self, basedir: &Path) -> Leftovers {
        Leftovers(self.unknown(basedir))
    }

    fn unknown(&self, basedir: &Path) -> Vec<PathBuf> {
        let refused = self.refused.iter().map(|refused| refused.directory.as_path());
        let known: Vec<Way> = self.directories().chain(refused).map(Way::of).collect();
        let entries = fs::read_dir(basedir).into_iter().flatten().flatten();
        let mut unknown: Vec<_> = entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != INFO)
            .map(|entry| entry.path())
            .filter(|path| path.canonicalize().is_ok_and(|path| !known.iter().any(|way| way.needs(&path))))
            .collect();
        unknown.sort();
        unknown
    }
}

/// All that a builder's directory stands on: what its path goes through, links and `..` followed, and what it leads to.
struct Way(Vec<PathBuf>);

impl Way {
    fn of(directory: &Path) -> Self {
        // From the whole path upwards.
        Way(directory.ancestors().filter_map(|part| part.canonicalize().ok()).collect())
    }

    /// Whether the builder has something in a directory, or would not be reached without it.
    fn needs(&self, directory: &Path) -> bool {
        // What is in a builder's directory is the builder's.
        self.0.first().is_some_and(|own| directory.starts_with(own))
            || self.0.iter().any(|part| part.starts_with(directory))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, directory)| ((*name).to_owned(), (*directory).to_owned())).collect()
    }

    fn served(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn on_the_host(basedir: &Path) -> Bounds<'_> {
        Bounds { basedir, host: true }
    }

    /// What is left in a directory, sorted.
    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn directories_are_made_and_the_gone_are_named() {
        let basedir = tempfile::tempdir().unwrap();
        let bounds = on_the_host(basedir.path());
        let mut builders = Builders::default();
        let first = builders.replace(list(&[("a", "dir-a"), ("b", "deep/b")]), bounds);
        assert_eq!(first, Replaced { served: served(&["a", "b"]), gone: Vec::new() });
        assert!(basedir.path().join("deep/b").is_dir());
        assert_eq!(builders.directory(Some("a"), basedir.path()), basedir.path().join("dir-a"));
        assert_eq!(builders.directory(Some("z"), basedir.path()), basedir.path());
        let second = builders.replace(list(&[("b", "deep/b")]), bounds);
        assert_eq!(second, Replaced { served: served(&["b"]), gone: served(&["a"]) });
        builders.leftovers(basedir.path()).mention();
        assert!(basedir.path().join("dir-a").is_dir());
        fs::create_dir(basedir.path().join(INFO)).unwrap();
        builders.leftovers(basedir.path()).remove();
        assert_eq!(names(basedir.path()), ["deep", INFO]);
    }

    /// As Buildbot's worker has it.
    #[test]
    fn a_directory_may_be_anywhere() {
        let (basedir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bounds = on_the_host(basedir.path());
        let absolute = elsewhere.path().join("data/x").display().to_string();
        let mut builders = Builders::default();
        let replaced =
            builders.replace(list(&[("elsewhere", &absolute), ("odd", "up/../norm"), ("above", "../above")]), bounds);
        assert_eq!(replaced.served, served(&["elsewhere", "odd", "above"]));
        assert_eq!(builders.directory(Some("elsewhere"), basedir.path()), Path::new(&absolute));
        assert!(Path::new(&absolute).is_dir() && basedir.path().join("norm").is_dir());
        fs::remove_dir(basedir.path().join("../above")).unwrap();
    }

    #[test]
    fn only_the_builder_whose_directory_cant_be_made_is_refused() {
        let basedir = tempfile::tempdir().unwrap();
        fs::write(basedir.path().join("file"), "").unwrap();
        let bounds = on_the_host(basedir.path());
        let mut builders = Builders::default();
        let wanted = [("good", "good"), ("bad", "file/x"), ("nul", "a\0b"), ("other", "other")];
        let replaced = builders.replace(list(&wanted), bounds);
        assert_eq!(replaced, Replaced { served: served(&["good", "other"]), gone: Vec::new() });
        let refused = |builders: &Builders| -> Vec<_> {
            builders.refused().iter().map(|refused| (refused.builder.clone(), refused.directory.clone())).collect()
        };
        let path = |name: &str| basedir.path().join(name);
        let names = [(Some("bad".to_owned()), path("file/x")), (Some("nul".to_owned()), path("a\0b"))];
        assert_eq!(refused(&builders), names);
        assert_eq!(builders.refused()[0].why, "Not a directory (os error 20)");
        builders.replace(list(&[("good", "good")]), bounds);
        assert_eq!(refused(&builders), []);

        builders.make_unnamed(&[path("good"), path("file/x"), path("last")], bounds);
        assert_eq!(refused(&builders), [(None, path("file/x"))]);
        assert!(path("last").is_dir());
        builders.forget_unnamed();
        assert_eq!(refused(&builders), []);
    }

    #[test]
    fn where_no_build_runs_on_the_host_nothing_is_made_outside_the_basedir() {
        let (basedir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let absolute = elsewhere.path().join("x").display().to_string();
        let bounds = Bounds { basedir: basedir.path(), host: false };
        std::os::unix::fs::symlink(elsewhere.path(), basedir.path().join("link")).unwrap();
        let mut builders = Builders::default();
        let replaced = builders.replace(list(&[("elsewhere", &absolute), ("through", "link/y"), ("in", "in")]), bounds);
        assert_eq!(replaced.served, served(&["elsewhere", "in"]));
        assert_eq!((names(elsewhere.path()), names(basedir.path())), (served(&[]), served(&["in", "link"])));
    }

    #[test]
    fn what_a_builder_stands_on_is_not_left_over() {
        let check = |directory: &str, expected: &[&str]| {
            let basedir = tempfile::tempdir().unwrap();
            for name in ["build", "left", INFO, "norm", "other", "up"] {
                fs::create_dir(basedir.path().join(name)).unwrap();
            }
            std::os::unix::fs::symlink("other/../norm", basedir.path().join("link")).unwrap();
            let mut builders = Builders::default();
            builders.replace(list(&[("b", directory)]), on_the_host(basedir.path()));
            builders.leftovers(basedir.path()).remove();
            assert_eq!(names(basedir.path()), expected, "{directory}");
        };
        check("left", &[INFO, "left", "link"]);
        check("up/../norm", &[INFO, "link", "norm", "up"]);
        check("link", &[INFO, "link", "norm"]);
        // What is in the base directory is this builder's.
        check(".", &["build", INFO, "left", "link", "norm", "other", "up"]);
        check("", &["build", INFO, "left", "link", "norm", "other", "up"]);
    }
}
