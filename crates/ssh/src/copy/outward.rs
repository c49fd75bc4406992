//! Guest to host.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::error::{CopyError, Side};
use super::guest::{Script, Step};
use super::unpack::{Destination, unpack};
use super::{Copied, CopyOptions, Tally, stream};
use crate::dialect::posix::not_an_option;
use crate::session::Session;

const SCRIPT: &str = include_str!("copy_out.sh");

/// See [`Session::copy_out`].
pub(crate) async fn copy_out(
    session: &Session,
    from: &[u8],
    to: &Path,
    options: &CopyOptions,
) -> Result<Copied, CopyError> {
    let start = Instant::now();
    if from.is_empty() {
        return Err(CopyError::BadPath { path: String::new(), why: "is empty" });
    }
    let script_from = not_an_option(from);
    let variables: [(&str, &[u8]); 2] =
        [("from", &script_from), ("recursive", if options.recursive { b"1" } else { b"" })];
    let mut script = Script::start(session, SCRIPT, &variables, from, false).await?;
    let directory = match script.word().await?.as_str() {
        "directory" => true,
        "file" => false,
        word => return Err(CopyError::Hostile { why: format!("it says {word:?}") }),
    };
    let plan = {
        let (name, to, preserve) = (own_name(from), to.to_owned(), options.preserve);
        blocking(move || Plan::new(&name, &to, directory, preserve)).await?
    };

    let (sender, reader) = stream::to_thread();
    let (destination, tally) = (plan.destination.clone(), Tally::new(options.limits));
    let unpacking = spawn_blocking(move || unpack(reader, &destination, tally));
    let received = receive(&mut script, sender).await;
    let unpacked = unpacking.await.map_err(|error| CopyError::host("unpack", to, &io::Error::other(error)))?;
    // What the guest says of its failure explains a cut archive better than the cut does; but an unpacker that gave up
    // is what stopped the guest.
    let copied = match received {
        Received::All => unpacked?,
        Received::UnpackerGaveUp => {
            unpacked?;
            return Err(CopyError::Hostile { why: "it goes on after its end".to_owned() });
        }
        Received::Failed(error) => return Err(error),
    };
    blocking(move || plan.finish()).await?;
    Ok(Copied { elapsed: start.elapsed(), ..copied })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CopyError> + Send + 'static,
) -> Result<T, CopyError> {
    spawn_blocking(work).await.map_err(|error| CopyError::Failed { side: Side::Host, why: error.to_string() })?
}

enum Received {
    All,
    UnpackerGaveUp,
    Failed(CopyError),
}

/// Passes the guest's stream on to the unpacker.
async fn receive(script: &mut Script, sender: mpsc::Sender<Bytes>) -> Received {
    loop {
        match script.next().await {
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
    /// What is to be renamed once complete, and whereto; dropped otherwise.
    rename: Option<(tempfile::TempDir, PathBuf, PathBuf)>,
}

impl Plan {
    fn new(name: &[u8], to: &Path, directory: bool, preserve: bool) -> Result<Self, CopyError> {
        let (side, name) = (Side::Host, OsStr::from_bytes(name));
        if to.as_os_str().is_empty() {
            return Err(CopyError::BadPath { path: String::new(), why: "is empty" });
        }
        let make = |path: &Path| std::fs::create_dir_all(path).map_err(|error| CopyError::host("make", path, &error));
        if to.as_os_str().as_bytes().ends_with(b"/") {
            make(to)?;
        }
        let last = match to.is_dir() {
            true => to.join(name),
            false => to.to_owned(),
        };
        let shown = last.display().to_string();
        // The caller chose `to`, but not what lies in it: a link there may have come from a guest.
        if directory && last != to && last.is_symlink() {
            return Err(CopyError::InTheWay { side, path: shown, why: "it is a symbolic link, which is not followed" });
        }
        if last.is_dir() {
            return match directory {
                true => Ok(Self { destination: Destination { root: last, live: true, preserve }, rename: None }),
                false => Err(CopyError::InTheWay { side, path: shown, why: "it is a directory" }),
            };
        }
        if directory && last.symlink_metadata().is_ok() {
            return Err(CopyError::InTheWay { side, path: shown, why: "it is not a directory" });
        }
        let parent = match last.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        make(parent)?;
        let part = tempfile::Builder::new().prefix(".").suffix(".part").tempdir_in(parent);
        let part = part.map_err(|error| CopyError::host("make a directory in", parent, &error))?;
        // A tree's own directory gets the mode and time of the source, so it must not be the one that is 0700.
        let (root, made) = match directory {
            true => (part.path().join("tree"), part.path().join("tree")),
            false => (part.path().to_owned(), part.path().join(name)),
        };
        make(&root)?;
        Ok(Self { destination: Destination { root, live: false, preserve }, rename: Some((part, made, last)) })
    }

    fn finish(self) -> Result<(), CopyError> {
        let Some((_part, made, last)) = self.rename else { return Ok(()) };
        std::fs::rename(&made, &last).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => CopyError::Hostile { why: "the file asked for is not in it".to_owned() },
            _ => CopyError::host("write", &last, &error),
        })
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

    #[test]
    fn a_tree_does_not_go_through_a_link_that_lies_in_its_destination() {
        let directory = tempfile::tempdir().unwrap();
        let (to, elsewhere) = (directory.path().join("build"), directory.path().join("elsewhere"));
        std::fs::create_dir_all(&to).unwrap();
        std::fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, to.join("dist")).unwrap();
        let refused = Plan::new(b"dist", &to, true, true).map(|_| ());
        assert!(matches!(refused, Err(CopyError::InTheWay { .. })), "{refused:?}");
        assert!(Plan::new(b"other", &to, true, true).is_ok());
    }
}
