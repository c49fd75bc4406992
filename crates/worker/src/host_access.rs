//! What a master may do on the host without running a build there: copy to and from machines, and keep house in the worker's
//! directory, as a msgpack master does when a worker attaches (Buildbot 4.3.0).
//!
//! What is in a builder's directory may have come from a guest, and another command may change it at any moment. So nothing here
//! looks where a path leads before it is used: a path is taken apart as text, which says whose it is, and then looked up from
//! the directory that it has to stay in, whatever links there are (`cap_std`).

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use cap_std::fs::Dir;
use protocol::Command;
use ssh::HostPath;

use crate::config;

/// What copies may do on the host.
#[derive(Debug, Clone)]
pub(crate) struct Copies {
    pub roots: CopyRoots,
    pub limits: ssh::Limits,
}

impl Copies {
    /// As is configured.
    pub(crate) fn new(roots: CopyRoots, pool: &config::Pool) -> Self {
        let bytes = |mib: u64| mib.saturating_mul(1 << 20);
        let limits = ssh::Limits {
            bytes: bytes(pool.max_copy_mib),
            keep_free: bytes(pool.disk_low_water_mib),
            ..ssh::Limits::default()
        };
        Copies { roots, limits }
    }
}

/// Where copies may read and write on the host: in builders' directories.
#[derive(Debug, Clone)]
pub(crate) struct CopyRoots {
    /// The worker's directory.
    pub basedir: PathBuf,
    /// Directories of builders, as far as they are known, which may be elsewhere. Over msgpack whose they are is not.
    pub builder_dirs: Vec<PathBuf>,
}

impl CopyRoots {
    /// What a copy may take for this path, which is absolute: it leads nowhere out of the directory of the builder that it is in.
    /// That is opened here, and made if it is to be written to. Blocks.
    ///
    /// # Errors
    /// It is nobody's: `InvalidInput`. Or the directory can't be opened.
    pub(crate) fn path(&self, path: &Path, make: bool) -> io::Result<HostPath> {
        let outside = || {
            let why = format!("{} is not in the worker's directory {}", path.display(), self.basedir.display());
            io::Error::new(io::ErrorKind::InvalidInput, why)
        };
        let folded = folded(path).ok_or_else(outside)?;
        let own = self.builder_dirs.iter().filter_map(|directory| folded_prefix(&folded, directory));
        let root = match own.max_by_key(|directory| directory.components().count()) {
            Some(directory) => directory,
            None => first_below(&folded, &self.basedir).ok_or_else(outside)?,
        };
        let rest = folded.strip_prefix(&root).map_err(|_| outside())?.as_os_str().as_bytes();
        let mut rest = rest.to_vec();
        // What folding takes away says something to a copy.
        for end in [&b"/."[..], b"/"] {
            if path.as_os_str().as_bytes().ends_with(end) {
                rest.extend(end);
                break;
            }
        }
        let opened = open(&self.basedir, &root, make)?;
        Ok(HostPath::below(opened, root, std::ffi::OsStr::from_bytes(&rest)))
    }
}

/// Opens a directory, such as a builder's: in the worker's, links lead nowhere out of that.
pub(crate) fn open(basedir: &Path, directory: &Path, make: bool) -> io::Result<Dir> {
    let Ok(below) = directory.strip_prefix(basedir) else { return ambient(directory) };
    let basedir = ambient(basedir)?;
    if below.as_os_str().is_empty() {
        return Ok(basedir);
    }
    if make {
        basedir.create_dir_all(below)?;
    }
    basedir.open_dir(below)
}

fn ambient(directory: &Path) -> io::Result<Dir> {
    Dir::open_ambient_dir(directory, cap_std::ambient_authority())
}

/// Makes a directory in the worker's, with those above it, whatever links are there. False if it is not in that.
pub(crate) fn make_below(basedir: &Path, path: &Path) -> io::Result<bool> {
    let folded = folded(path);
    let Some(below) = folded.as_deref().and_then(|path| path.strip_prefix(basedir).ok()) else { return Ok(false) };
    if !below.as_os_str().is_empty() {
        ambient(basedir)?.create_dir_all(below)?;
    }
    Ok(true)
}

/// A path without `.` and `..`, as if there were no links. None if it leads above the root.
fn folded(path: &Path) -> Option<PathBuf> {
    let mut folded = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                if !folded.pop() {
                    return None;
                }
            }
            other => folded.push(other),
        }
    }
    Some(folded)
}

/// The directory, if the path is in it.
fn folded_prefix(path: &Path, directory: &Path) -> Option<PathBuf> {
    folded(directory).filter(|directory| path.starts_with(directory))
}

/// The first directory below `basedir` that a path leads through; for what is in `basedir` itself, that.
fn first_below(path: &Path, basedir: &Path) -> Option<PathBuf> {
    let mut components = path.strip_prefix(basedir).ok()?.components();
    let first = components.next();
    match (first, components.next()) {
        (Some(first), Some(_)) => Some(basedir.join(first)),
        _ => Some(basedir.to_owned()),
    }
}

/// Whether a command is about no build and looks at the basedir, or at what is directly in it, or removes that. None of these
/// starts a shell or goes through a link. The command's paths are absolute. Those that it makes are [`crate::builders`]' matter.
pub(crate) fn keeps_house(builder: Option<&str>, command: &Command, basedir: &Path) -> bool {
    let is_in = |path: &PathBuf| {
        let mut below = path.strip_prefix(basedir).into_iter().flat_map(Path::components);
        matches!((below.next(), below.next()), (Some(Component::Normal(_)), None))
    };
    builder.is_none()
        && match command {
            Command::Rmdir(rmdir) => rmdir.paths.iter().all(is_in),
            Command::Listdir(path) => path.0 == basedir,
            Command::Stat(path) => is_in(&path.0) && !path.0.is_symlink(),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use protocol::{CommandId, Invocation, StartCommand, Value};

    use super::*;

    #[test]
    fn a_master_keeps_house_in_the_basedir_and_does_nothing_else_on_the_host() {
        let directory = tempfile::tempdir().expect("a directory");
        let basedir = directory.path().join("worker");
        std::fs::create_dir(&basedir).expect("made");
        symlink("/etc", basedir.join("link")).expect("made");
        let check = |builder: Option<&str>, name: &str, key: &'static str, path: &str, expected: bool| {
            let path = Value::from(basedir.join(path).to_string_lossy().as_ref());
            let path = if key.ends_with('s') { Value::List(vec![path]) } else { path };
            let args = [(key, path)].into_iter().collect();
            let start =
                StartCommand { command_id: CommandId("1".to_owned()), builder: None, name: name.to_owned(), args };
            let command = Invocation::parse(&start).expect("understood").command;
            assert_eq!(keeps_house(builder, &command, &basedir), expected, "{command:?}");
        };
        check(None, "listdir", "path", "", true);
        check(None, "listdir", "path", "/etc", false);
        check(None, "listdir", "path", "builder", false);
        check(None, "stat", "path", "leftover", true);
        check(None, "stat", "path", "link", false);
        check(None, "stat", "path", "link/passwd", false);
        check(None, "stat", "path", "", false);
        check(None, "rmdir", "paths", "leftover", true);
        check(None, "rmdir", "paths", "builder/build", false);
        check(None, "rmdir", "paths", "..", false);
        check(None, "rmdir", "paths", "/tmp", false);
        check(None, "rmfile", "path", "builder/file", false);
        check(None, "glob", "path", "*", false);
        check(Some("builder"), "listdir", "path", "", false);
        check(Some("builder"), "mkdir", "paths", "builder", false);
    }

    #[test]
    fn a_copy_stays_in_its_builders_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let (basedir, elsewhere) = (directory.path().join("base"), directory.path().join("data/x"));
        for made in [&basedir.join("builder/build"), &basedir.join("deep/builder"), &elsewhere] {
            std::fs::create_dir_all(made).expect("made");
        }
        symlink("/etc", basedir.join("link")).expect("made");
        let roots = CopyRoots {
            basedir: basedir.clone(),
            builder_dirs: vec![elsewhere.clone(), basedir.join("deep/../deep/builder"), basedir.clone()],
        };
        let workdir = basedir.join("builder/build");
        let check = |path: &Path, root: &Path, shown: &Path| {
            let found = roots.path(&workdir.join(path), false).expect("it may be taken");
            assert_eq!((found.shown_root(), found.to_string()), (root, shown.display().to_string()), "{path:?}");
        };
        let builder = basedir.join("builder");
        // Nobody said whose this one is.
        let msgpack = CopyRoots { basedir: basedir.clone(), builder_dirs: Vec::new() };
        let found = msgpack.path(&workdir.join("new/file"), false).expect("it may be taken");
        assert_eq!(found.shown_root(), builder);
        let found = msgpack.path(&basedir.join("file"), false).expect("it may be taken");
        assert_eq!(found.shown_root(), basedir);

        check(Path::new("new/file"), &basedir, &workdir.join("new/file"));
        check(Path::new("new/"), &basedir, &workdir.join("new/"));
        check(Path::new("new/."), &basedir, &workdir.join("new/."));
        check(Path::new("../../deep/builder/x"), &basedir.join("deep/builder"), &basedir.join("deep/builder/x"));
        check(&elsewhere.join("build/file"), &elsewhere, &elsewhere.join("build/file"));
        let refused = |roots: &CopyRoots, path: &Path| {
            let refused = roots.path(path, true).map(|path| path.to_string());
            assert!(refused.is_err(), "{}: {refused:?}", path.display());
        };
        for path in ["../../../file", "new/../../../../file", "/etc/passwd", "/../etc/passwd"] {
            refused(&roots, &workdir.join(path));
        }
        refused(&roots, &directory.path().join("data/file"));
        // The builder's directory itself is a link to somewhere else.
        refused(&msgpack, &basedir.join("link/passwd"));
        let made = msgpack.path(&basedir.join("new/file"), true).expect("it may be written");
        assert!(basedir.join("new").is_dir() && !basedir.join("new/file").exists(), "{made}");
    }

    #[test]
    fn a_directory_is_made_in_the_workers_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let basedir = directory.path().join("base");
        std::fs::create_dir_all(&basedir).expect("made");
        symlink("..", basedir.join("up")).expect("made");
        assert!(make_below(&basedir, &basedir.join("a/../b/c")).expect("made"));
        assert!(basedir.join("b/c").is_dir());
        assert!(!make_below(&basedir, &directory.path().join("x")).expect("left alone"));
        assert!(!make_below(&basedir, &basedir.join("../x")).expect("left alone"));
        make_below(&basedir, &basedir.join("up/x")).expect_err("it leads outside");
        assert!(!directory.path().join("x").exists());
    }
}
