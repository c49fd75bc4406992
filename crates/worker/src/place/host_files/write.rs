//! A file that is replaced as a whole.

use std::fs::{OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tempfile::TempPath;
use tokio::fs::File;
use tokio::io::AsyncWrite;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// What a new file may be used for unless the umask or the master says otherwise.
const NEW_FILE_MODE: u32 = 0o666;

/// Setuid, setgid and sticky.
const SPECIAL_BITS: u32 = 0o7000;

/// Writes a new file beside an old one and puts it in the old one's place when it is shut down.
///
/// Dropped before, it takes the new file away again and the old one is as it was. What is no regular file (a device,
/// say), or stands where no new file can be made, is written directly.
pub(super) struct Replacement {
    file: File,
    /// The file again, and its mode, if that has special bits: others than root take them away by writing.
    special: Option<(std::fs::File, u32)>,
    state: State,
}

enum State {
    Writing(Option<Aside>),
    Finishing(JoinHandle<io::Result<()>>),
    Done,
}

/// A new file that is not in its place yet.
struct Aside {
    temporary: TempPath,
    target: PathBuf,
}

impl Replacement {
    /// Opens the new file; it has its mode from the beginning. Blocks.
    pub(super) fn begin(path: &Path, mode: Option<u32>) -> io::Result<Self> {
        // A link stays a link: what it leads to is replaced, or made.
        let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let old = target.symlink_metadata().ok();
        if target.file_name().is_none() || old.as_ref().is_some_and(|old| !old.is_file()) {
            return Self::directly(path, mode);
        }
        let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // A secret must not be readable for a moment: the wider mode comes once the file is there.
        let created_with = mode.map_or(NEW_FILE_MODE, |mode| mode & 0o600);
        let create =
            |path: &Path| OpenOptions::new().read(true).write(true).create_new(true).mode(created_with).open(path);
        let (file, temporary) = match tempfile::Builder::new().prefix(".kvm-worker-").make_in(directory, create) {
            Ok(made) => made.into_parts(),
            Err(_) if old.is_some() => return Self::directly(path, mode),
            Err(source) => return Err(source),
        };
        if let Some(old) = &old {
            // Only root can give a file away; for others it stays their own.
            let _ = std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()));
        }
        let mode = mode.or(old.map(|old| old.mode() & 0o7777));
        Self::of(file, mode, Some(Aside { temporary, target }))
    }

    fn directly(path: &Path, mode: Option<u32>) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode.map_or(NEW_FILE_MODE, |mode| mode & 0o600))
            // A pipe that nobody reads must not hold us up.
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(path)?;
        Self::of(file, mode, None)
    }

    fn of(file: std::fs::File, mode: Option<u32>, aside: Option<Aside>) -> io::Result<Self> {
        if let Some(mode) = mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        let special = match mode.filter(|mode| mode & SPECIAL_BITS != 0) {
            Some(mode) => Some((file.try_clone()?, mode)),
            None => None,
        };
        Ok(Replacement { file: File::from_std(file), special, state: State::Writing(aside) })
    }

    /// What is left to do once all is written. Blocks.
    fn finish(special: Option<(std::fs::File, u32)>, aside: Option<Aside>) -> io::Result<()> {
        if let Some((file, mode)) = special {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        match aside {
            Some(Aside { temporary, target }) => temporary.persist(target).map_err(|failed| failed.error),
            None => Ok(()),
        }
    }
}

impl AsyncWrite for Replacement {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.file).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Writing(_) => {
                    // An error of the last write comes to light here; the new file is then not worth having.
                    ready!(Pin::new(&mut self.file).poll_flush(cx))?;
                    let State::Writing(aside) = std::mem::replace(&mut self.state, State::Done) else { continue };
                    let special = self.special.take();
                    if special.is_some() || aside.is_some() {
                        let finish = move || Self::finish(special, aside);
                        self.state = State::Finishing(tokio::task::spawn_blocking(finish));
                    }
                }
                State::Finishing(finishing) => {
                    let finished = ready!(Pin::new(finishing).poll(cx));
                    self.state = State::Done;
                    return Poll::Ready(finished.unwrap_or_else(|ended| Err(io::Error::other(ended))));
                }
                State::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let State::Writing(Some(aside)) = std::mem::replace(&mut self.state, State::Done)
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn_blocking(move || drop(aside));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use nix::libc;
    use tempfile::TempDir;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Runs to the end, with all that was left to the blocking threads.
    fn wait<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(work)
    }

    fn directory(files: &[(&str, &str, u32)]) -> TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, content, mode) in files {
            let path = directory.path().join(name);
            std::fs::write(&path, content).expect("a file");
            std::fs::set_permissions(&path, Permissions::from_mode(*mode)).expect("its mode");
        }
        directory
    }

    /// Content and mode of all that is in a directory.
    fn content(directory: &TempDir) -> BTreeMap<String, (String, u32)> {
        let entries = std::fs::read_dir(directory.path()).expect("names");
        entries
            .map(|entry| {
                let entry = entry.expect("a name");
                let mode = entry.metadata().expect("its mode").mode() & 0o7777;
                let text = std::fs::read_to_string(entry.path()).expect("text");
                (entry.file_name().into_string().expect("text"), (text, mode))
            })
            .collect()
    }

    fn one(name: &str, text: &str, mode: u32) -> BTreeMap<String, (String, u32)> {
        BTreeMap::from([(name.to_owned(), (text.to_owned(), mode))])
    }

    async fn replace(path: &Path, mode: Option<u32>, text: &str) -> io::Result<()> {
        let mut file = super::super::write(path, mode).await?;
        file.write_all(text.as_bytes()).await?;
        file.shutdown().await
    }

    #[track_caller]
    fn check_error(path: &Path, expected: i32) {
        let error = wait(replace(path, None, "new")).expect_err("it can't be written");
        assert_eq!(error.raw_os_error(), Some(expected), "{error}");
    }

    #[test]
    fn a_new_file_has_the_mode_asked_for() {
        let directory = directory(&[]);
        wait(replace(&directory.path().join("f"), Some(0o6755), "new")).expect("written");
        assert_eq!(content(&directory), one("f", "new", 0o6755));
    }

    #[test]
    fn an_old_file_keeps_its_mode_unless_another_is_asked_for() {
        let directory = directory(&[("f", "old", 0o751)]);
        wait(replace(&directory.path().join("f"), None, "new")).expect("written");
        assert_eq!(content(&directory), one("f", "new", 0o751));
        wait(replace(&directory.path().join("f"), Some(0o640), "newer")).expect("written");
        assert_eq!(content(&directory), one("f", "newer", 0o640));
    }

    #[test]
    fn a_new_file_without_a_mode_obeys_the_umask_as_others_do() {
        let directory = directory(&[]);
        std::fs::write(directory.path().join("f"), "").expect("a file");
        let (_, mode) = content(&directory)["f"];
        std::fs::remove_file(directory.path().join("f")).expect("removed");
        wait(replace(&directory.path().join("f"), None, "new")).expect("written");
        assert_eq!(content(&directory), one("f", "new", mode));
    }

    #[test]
    fn the_old_file_stays_until_the_new_one_is_complete() {
        let directory = directory(&[("f", "old", 0o644)]);
        wait(async {
            let path = directory.path().join("f");
            let mut file = super::super::write(&path, None).await.expect("opened");
            file.write_all(b"new").await.expect("written");
            file.flush().await.expect("flushed");
            assert_eq!(std::fs::read_to_string(&path).expect("text"), "old");
        });
        assert_eq!(content(&directory), one("f", "old", 0o644));
    }

    #[test]
    fn nothing_is_left_of_a_new_file_that_was_given_up() {
        let directory = directory(&[]);
        wait(async {
            let mut file = super::super::write(&directory.path().join("f"), None).await.expect("opened");
            file.write_all(b"new").await.expect("written");
        });
        assert_eq!(content(&directory), BTreeMap::new());
    }

    #[test]
    fn a_link_stays_and_what_it_leads_to_is_replaced() {
        let directory = directory(&[("f", "old", 0o644)]);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("f", &link).expect("a link");
        wait(replace(&link, None, "new")).expect("written");
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(directory.path().join("f")).expect("text"), "new");
    }

    #[test]
    fn a_link_to_nothing_gets_its_file() {
        let directory = directory(&[]);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("f", &link).expect("a link");
        wait(replace(&link, None, "new")).expect("written");
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(directory.path().join("f")).expect("text"), "new");
    }

    #[test]
    fn a_full_disk_is_reported_when_the_writer_is_shut_down() {
        check_error(Path::new("/dev/full"), libc::ENOSPC);
    }

    #[test]
    fn what_can_not_be_written_says_why() {
        let directory = directory(&[("f", "", 0o644)]);
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        check_error(directory.path(), libc::EISDIR);
        check_error(&pipe, libc::ENXIO);
        check_error(&directory.path().join("missing/f"), libc::ENOENT);
        check_error(&directory.path().join("f/x"), libc::ENOTDIR);
        check_error(&directory.path().join("n".repeat(300)), libc::ENAMETOOLONG);
    }
}
