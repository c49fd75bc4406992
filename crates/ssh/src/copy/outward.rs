//! Guest to host.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use cap_std::fs::{Dir, DirBuilder, DirBuilderExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::error::{CopyError, Side};
use super::guest::{Script, Step};
use super::unpack::{Destination, What, unpack};
use super::{Copied, CopyOptions, Tally, blocking, heard, stream};
use crate::dialect::posix::not_an_option;
use crate::host_path::led_outside;
use crate::session::Session;
use crate::{HostPath, launch};

const SCRIPT: &str = include_str!("copy_out.sh");

/// See [`Session::copy_out`].
pub(crate) async fn copy_out(
    session: &Session,
    from: &[u8],
    to: &HostPath,
    options: &CopyOptions,
) -> Result<Copied, CopyError> {
    let start = Instant::now();
    if from.is_empty() {
        return Err(CopyError::BadPath { path: String::new(), why: "is empty" });
    }
    let script_from = not_an_option(from);
    let variables: [(&str, &[u8]); 2] =
        [("from", &script_from), ("recursive", if options.recursive { b"1" } else { b"" })];
    let mut script = Script::start(session, SCRIPT, &variables, from, options.silence, false).await?;
    let directory = match script.word().await?.as_str() {
        "directory" => true,
        "file" => false,
        word => return Err(CopyError::Hostile { why: format!("it says {word:?}") }),
    };
    let Plan { destination, renaming } = {
        let (name, to, preserve) = (own_name(from), to.clone(), options.preserve);
        blocking(move || Plan::new(&name, &to, directory, preserve)).await?
    };

    let (sender, reader) = stream::to_thread();
    let (end_well, ended_well) = oneshot::channel();
    let tally = Tally::new(options.limits);
    // All that is done with the files is done there, also if nobody waits for it any more: a million files may have to be removed.
    let unpacking = spawn_blocking(move || {
        let copied = unpack(reader, destination, tally)?;
        match (renaming, ended_well.blocking_recv()) {
            (Some(renaming), Ok(())) => renaming.rename().map(|()| copied),
            (None, Ok(())) => Ok(copied),
            (_, Err(_)) => Err(CopyError::Hostile { why: "it goes on after its end".to_owned() }),
        }
    });
    let received = receive(&mut script, sender, options.silence).await;
    if let Received::All = received {
        // Fails only if the unpacker has given up, and says why.
        let _ = end_well.send(());
    } else {
        drop(end_well);
    }
    let unpacked = unpacking.await.unwrap_or_else(|error| Err(CopyError::broke_down(&error)));
    // What the guest says of its failure explains a cut archive better than the cut does; but an unpacker that gave up
    // is what stopped the guest.
    match received {
        Received::Failed(error) => Err(error),
        Received::All | Received::UnpackerGaveUp => Ok(Copied { elapsed: start.elapsed(), ..unpacked? }),
    }
}

enum Received {
    All,
    UnpackerGaveUp,
    Failed(CopyError),
}

/// Passes the guest's stream on to the unpacker.
async fn receive(script: &mut Script, sender: mpsc::Sender<Bytes>, silence: Duration) -> Received {
    loop {
        match heard(silence, script.next()).await.flatten() {
            Ok(Step::Data(data)) => {
                if sender.send(data).await.is_err() {
                    return Received::UnpackerGaveUp;
                }
            }
            Ok(Step::Said(_)) => {}
            Ok(Step::Done) => return Received::All,
            Err(error) => return Received::Failed(error),
        }
    }
}

/// Returns a guest path's own name; empty if it ends in none.
fn own_name(path: &[u8]) -> Vec<u8> {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    match path[..end].rsplit(|byte| *byte == b'/').next() {
        Some(b"." | b"..") | None => Vec::new(),
        Some(name) => name.to_vec(),
    }
}

/// Where things go on the host.
struct Plan {
    destination: Destination,
    /// What is to be renamed once complete.
    renaming: Option<Renaming>,
}

/// Something under a name of ours, which is removed unless it gets its own name.
struct Renaming {
    /// The directory that it is to be in.
    parent: Dir,
    /// A directory in that which nobody else looks at.
    part: PathBuf,
    /// What it is called in there.
    made: PathBuf,
    /// What it is to be called.
    last: PathBuf,
    /// The same for people.
    shown: PathBuf,
}

impl Plan {
    fn new(name: &[u8], to: &HostPath, directory: bool, preserve: bool) -> Result<Self, CopyError> {
        let (side, root, name) = (Side::Host, to.root(), Path::new(OsStr::from_bytes(name)));
        let failed = |doing: &'static str, path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| CopyError::below(to, doing, &path, &error)
        };
        if to.names_directory() {
            make_all(to, to.path())?;
        }
        let into = root.is_dir(to.path());
        let last = if into && !name.as_os_str().is_empty() { to.path().join(name) } else { to.path().to_owned() };
        let shown = to.shown(&last);
        let in_the_way = |why: &'static str| Err(CopyError::InTheWay { side, path: shown.display().to_string(), why });
        let there = root.symlink_metadata(&last).ok();
        // The caller chose `to`, but not what lies in it: a link there may have come from a guest.
        if directory && last != to.path() && there.as_ref().is_some_and(|there| there.is_symlink()) {
            return in_the_way("it is a symbolic link, which is not followed");
        }
        if root.is_dir(&last) {
            if !directory {
                return in_the_way("it is a directory");
            }
            let live = root.open_dir(&last).map_err(failed("open", &last))?;
            let destination = Destination { root: live, shown, live: true, preserve, what: What::Tree };
            return Ok(Self { destination, renaming: None });
        }
        if directory && there.is_some() {
            return in_the_way("it is not a directory");
        }
        let parent = last.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        make_all(to, parent)?;
        let Some(last_name) = last.file_name() else {
            return Err(CopyError::BadPath { path: shown.display().to_string(), why: "has no name at its end" });
        };
        let parent_dir = root.open_dir(parent).map_err(failed("open", parent))?;
        let part = PathBuf::from(format!(".{}.part", launch::nonce()));
        let making = failed("make a directory in", parent);
        parent_dir.create_dir_with(&part, DirBuilder::new().mode(0o700)).map_err(&making)?;
        // Removed from here on, whatever happens.
        let opened = parent_dir.open_dir(&part);
        let mut renaming = Renaming { parent: parent_dir, part, made: name.to_owned(), last: last_name.into(), shown };
        let mut inside = opened.map_err(&making)?;
        let mut what = What::File { name: name.to_owned() };
        if directory {
            // A tree's own directory gets the mode and time of the source, so it must not be the one that is 0700.
            renaming.made = "tree".into();
            inside.create_dir(&renaming.made).map_err(&making)?;
            inside = inside.open_dir(&renaming.made).map_err(&making)?;
            what = What::Tree;
        }
        let shown = renaming.shown.clone();
        let destination = Destination { root: inside, shown, live: false, preserve, what };
        Ok(Self { destination, renaming: Some(renaming) })
    }
}

/// Makes a directory below a path's root, with those above it.
fn make_all(to: &HostPath, path: &Path) -> Result<(), CopyError> {
    let Err(error) = to.root().create_dir_all(path) else { return Ok(()) };
    // Of a link that leads outside it is said only that something is there.
    let outside = path.ancestors().find_map(|above| to.root().metadata(above).err().filter(led_outside));
    Err(CopyError::below(to, "make", path, &outside.unwrap_or(error)))
}

impl Renaming {
    /// Gives it its name.
    fn rename(self) -> Result<(), CopyError> {
        let renamed = self.parent.rename(self.part.join(&self.made), &self.parent, &self.last);
        renamed.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => CopyError::Hostile { why: "the file asked for is not in it".to_owned() },
            _ => CopyError::host("write", &self.shown, &error),
        })
    }
}

impl Drop for Renaming {
    fn drop(&mut self) {
        // Whoever finds it later knows by its name that it is of no use.
        let _ = self.parent.remove_dir_all(&self.part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_without_a_name_of_its_own_has_an_empty_one() {
        let check = |path: &str, expected: &str| assert_eq!(own_name(path.as_bytes()), expected.as_bytes(), "{path}");
        check("a", "a");
        check("/a/b", "b");
        check("/a/b//", "b");
        check("a/.", "");
        check("a/..", "");
        check(".", "");
        check("/", "");
    }

    /// Plans a copy below a directory.
    fn plan(root: &Path, to: &str, directory: bool) -> Result<(), CopyError> {
        let dir = Dir::open_ambient_dir(root, cap_std::ambient_authority()).expect("it is there");
        Plan::new(b"dist", &HostPath::below(dir, root, to), directory, true).map(drop)
    }

    #[test]
    fn a_tree_does_not_go_through_a_link_that_lies_in_its_destination() {
        let directory = tempfile::tempdir().unwrap();
        let (to, elsewhere) = (directory.path().join("build"), directory.path().join("elsewhere"));
        std::fs::create_dir_all(&to).unwrap();
        std::fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink("../elsewhere", to.join("dist")).unwrap();
        let refused = plan(directory.path(), "build", true);
        assert!(matches!(refused, Err(CopyError::InTheWay { .. })), "{refused:?}");
        assert_eq!(plan(directory.path(), "elsewhere", true), Ok(()));
    }

    #[test]
    fn nothing_is_written_outside_whatever_leads_there() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("in")).unwrap();
        std::fs::create_dir(directory.path().join("out")).unwrap();
        std::os::unix::fs::symlink("../out", root.join("relative")).unwrap();
        std::os::unix::fs::symlink(directory.path().join("out"), root.join("absolute")).unwrap();
        std::os::unix::fs::symlink("in", root.join("inside")).unwrap();
        for to in
            ["../out", "../out/new", "in/../../out/new", "relative/new", "relative/", "absolute/new/deep", "absolute/"]
        {
            for directory in [false, true] {
                let refused = plan(&root, to, directory);
                assert!(matches!(refused, Err(CopyError::Outside { .. })), "{to}: {refused:?}");
            }
        }
        // A link in the place of the file is replaced, not followed.
        for to in ["in/new", "inside/new", "/in/new", "in/../new", "absolute"] {
            assert_eq!(plan(&root, to, false), Ok(()), "{to}");
        }
        let left = |directory: &Path| std::fs::read_dir(directory).unwrap().count();
        assert_eq!((left(&directory.path().join("out")), left(&root.join("in"))), (0, 0));
    }
}
