use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use protocol::command::Logfile;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio::time::{Duration, MissedTickBehavior, interval};

use crate::output::Reporter;
use crate::place::{Held, Place};

/// How often files are looked at (Buildbot 4.3.0, `POLL_INTERVAL`).
const INTERVAL: Duration = Duration::from_secs(2);

/// What is read at once.
const BLOCK: usize = 64 * 1024;

/// The file type's part of a mode, and what it is for a regular file (inode(7)).
const S_IFMT: i64 = 0o170_000;
const S_IFREG: i64 = 0o100_000;

/// The files that a command wants shown as logs while it runs.
///
/// A file counts from when it first differs from what it was before the command started. It is then shown as it grows, and kept
/// open: one that is renamed, removed or replaced is shown to its end, and what came in its place from the beginning. One that
/// is cut short is shown from its beginning again. What is no regular file is left alone.
pub(super) struct Logfiles<'a> {
    place: &'a dyn Place,
    reporter: &'a Reporter,
    files: Vec<Watched>,
}

struct Watched {
    name: String,
    path: PathBuf,
    /// Whether the master named it by a path that begins at the root.
    absolute: bool,
    follow: bool,
    state: State,
}

enum State {
    /// As it was before the command started; nothing if it was not there.
    Waiting { before: Option<Look> },
    /// It is being shown, up to here.
    Shown { file: Identity, offset: u64, hold: Hold },
}

/// Whether a file is kept open.
enum Hold {
    /// The file that was shown before stays so until this one is: a place that keeps nothing open any more lets go of what it
    /// needs for that.
    NotYet {
        _before: Option<Held>,
    },
    Held(Held),
    /// The place can't; it is read by its name.
    Impossible,
}

/// Which file is found under a path: inode and device.
type Identity = (i64, i64);

/// What tells whether a file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    file: Identity,
    size: u64,
    modified: i64,
    changed: i64,
}

impl<'a> Logfiles<'a> {
    /// Takes a look at the files before the command starts.
    pub(super) async fn before(
        place: &'a dyn Place,
        reporter: &'a Reporter,
        logfiles: &[Logfile],
        workdir: &Path,
    ) -> Self {
        let mut files = Vec::with_capacity(logfiles.len());
        for Logfile { name, filename, follow } in logfiles {
            let path = workdir.join(filename);
            let state = State::Waiting { before: look(place, &path).await };
            let absolute = filename.is_absolute();
            files.push(Watched { name: name.clone(), path, absolute, follow: *follow, state });
        }
        Logfiles { place, reporter, files }
    }

    /// Shows what the files get, now and every two seconds, and notifies `grown` each time there was something. Cancel
    /// safe: nothing is shown twice or left out.
    pub(super) async fn watch(&mut self, grown: &Notify) -> Infallible {
        if self.files.is_empty() {
            return std::future::pending().await;
        }
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.show(|| grown.notify_one()).await;
        }
    }

    /// Says of which files there can't have been anything: nothing of their directory is there. So does a path that a master
    /// made for another place.
    pub(super) async fn say_impossible(&self) {
        for file in self.files.iter().filter(|file| file.absolute) {
            let State::Waiting { before: None } = file.state else { continue };
            let Some(directory) = file.path.parent() else { continue };
            let missing = self.place.stat(directory).await.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
            if missing {
                let (name, directory) = (&file.name, directory.display());
                self.reporter
                    .header(format!("log file {name}: nothing to show, as there is no directory {directory}\n"))
                    .await;
            }
        }
    }

    /// Shows what the files have got up to now.
    pub(super) async fn show(&mut self, mut grown: impl FnMut()) {
        for file in &mut self.files {
            if let Err(error) = file.show(self.place, self.reporter, &mut grown).await {
                tracing::debug!(path = %file.path.display(), %error, "can't read a log file now");
            }
        }
    }
}

impl Watched {
    async fn show(&mut self, place: &dyn Place, reporter: &Reporter, grown: &mut impl FnMut()) -> io::Result<()> {
        let now = look(place, &self.path).await;
        // One that is not there any more is shown to its end before what came in its place.
        if let Some(path) = self.displaced_by(now)
            && let Some(last) = look(place, &path).await
        {
            self.show_up_to(last.size, &path, place, reporter, grown).await?;
        }
        let Some(mut size) = self.notice(now) else { return Ok(()) };
        if let Some(held) = self.hold(place).await {
            size = held.size;
        }
        let path = self.held().unwrap_or(&self.path).to_owned();
        self.show_up_to(size, &path, place, reporter, grown).await
    }

    /// Where the file that is being shown is read, if its name leads to another one by now, or to none.
    fn displaced_by(&self, now: Option<Look>) -> Option<PathBuf> {
        match &self.state {
            State::Shown { file, .. } if now.is_none_or(|now| now.file != *file) => self.held().map(Path::to_owned),
            _ => None,
        }
    }

    fn held(&self) -> Option<&Path> {
        match &self.state {
            State::Shown { hold: Hold::Held(held), .. } => Some(&held.path),
            _ => None,
        }
    }

    /// Sees to it that the file which is shown stays open, and returns how it looks if that is new.
    async fn hold(&mut self, place: &dyn Place) -> Option<Look> {
        let State::Shown { hold: Hold::NotYet { .. }, .. } = self.state else { return None };
        let opened = match place.hold(&self.path).await {
            Ok(held) => look(place, &held.path).await.map(|look| (held, look)),
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "can't keep a log file open");
                None
            }
        };
        let State::Shown { file, offset, hold } = &mut self.state else { return None };
        match opened {
            Some((held, look)) => {
                if look.file != *file {
                    // Replaced in this very moment.
                    (*file, *offset) = (look.file, 0);
                }
                *hold = Hold::Held(held);
                Some(look)
            }
            None => {
                *hold = Hold::Impossible;
                None
            }
        }
    }

    /// No further than it was long at the last look: a file that grows faster than the master reads has an end, too.
    async fn show_up_to(
        &mut self,
        size: u64,
        path: &Path,
        place: &dyn Place,
        reporter: &Reporter,
        grown: &mut impl FnMut(),
    ) -> io::Result<()> {
        let State::Shown { offset, .. } = &mut self.state else { return Ok(()) };
        if *offset > size {
            *offset = 0;
        }
        if *offset == size {
            return Ok(());
        }
        let mut file = place.read(path, *offset).await?.take(size - *offset);
        loop {
            let room = reporter.room().await;
            let mut block = BytesMut::with_capacity(BLOCK);
            if file.read_buf(&mut block).await? == 0 {
                return Ok(());
            }
            // Nothing is awaited from here on, so that what is shown and what counts as shown are the same.
            *offset += block.len() as u64;
            room.log(&self.name, block.freeze());
            grown();
        }
    }

    /// Takes note of how the file looks now, and returns its size if it is to be shown.
    fn notice(&mut self, now: Option<Look>) -> Option<u64> {
        match (&mut self.state, now) {
            (State::Waiting { before }, now) if *before == now => None,
            (State::Waiting { before }, None) => {
                // Removed to make place for a new one, however that will look.
                *before = None;
                None
            }
            (State::Waiting { .. }, Some(now)) => {
                let offset = if self.follow { now.size } else { 0 };
                self.state = State::Shown { file: now.file, offset, hold: Hold::NotYet { _before: None } };
                Some(now.size)
            }
            (State::Shown { .. }, None) => None,
            (State::Shown { file, offset, hold }, Some(now)) => {
                if *file != now.file {
                    (*file, *offset) = (now.file, 0);
                    let before = std::mem::replace(hold, Hold::NotYet { _before: None });
                    if let Hold::Held(before) = before {
                        *hold = Hold::NotYet { _before: Some(before) };
                    }
                }
                Some(now.size)
            }
        }
    }
}

async fn look(place: &dyn Place, path: &Path) -> Option<Look> {
    let [mode, inode, device, _, _, _, size, _, modified, changed] = place.stat(path).await.ok()?;
    let regular = mode & S_IFMT == S_IFREG;
    regular.then(|| Look { file: (inode, device), size: size.max(0).unsigned_abs(), modified, changed })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: i64, size: u64) -> Option<Look> {
        Some(Look { file: (inode, 1), size, modified: 100, changed: 100 })
    }

    /// Where the file is read from and to at each look, the first of which is before the start.
    #[track_caller]
    fn check(follow: bool, looks: &[Option<Look>], expected: &[Option<(u64, u64)>]) {
        let state = State::Waiting { before: looks[0] };
        let mut watched = Watched { name: "log".to_owned(), path: "log".into(), absolute: false, follow, state };
        let mut read = Vec::new();
        for look in &looks[1..] {
            let size = watched.notice(*look);
            read.push(size.map(|size| {
                let State::Shown { offset, .. } = &mut watched.state else { panic!("not shown") };
                (std::mem::replace(offset, size), size)
            }));
        }
        assert_eq!(read, expected);
    }

    #[test]
    fn a_new_file_is_shown_as_it_grows() {
        check(
            false,
            &[None, None, file(1, 6), file(1, 6), file(1, 9)],
            &[None, Some((0, 6)), Some((6, 6)), Some((6, 9))],
        );
    }

    #[test]
    fn an_old_file_is_shown_once_it_changes() {
        check(false, &[file(1, 6), file(1, 6), file(1, 9)], &[None, Some((0, 9))]);
        check(false, &[file(1, 6), file(2, 6)], &[Some((0, 6))]);
    }

    #[test]
    fn following_skips_what_is_there_when_the_file_counts_first() {
        check(true, &[None, file(1, 6), file(1, 9)], &[Some((6, 6)), Some((6, 9))]);
    }

    #[test]
    fn a_removed_file_is_forgotten() {
        check(false, &[file(1, 6), None, file(1, 6)], &[None, Some((0, 6))]);
    }

    #[test]
    fn a_file_in_anothers_place_is_shown_from_its_beginning() {
        check(false, &[None, file(1, 6), None, file(2, 8)], &[Some((0, 6)), None, Some((0, 8))]);
    }
}
