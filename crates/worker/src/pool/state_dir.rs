//! The state directory: where slots, disks and learnt keys are kept, who has it, and files in it that outlast a crash.
//!
//! ```text
//! STATE_DIR/lock      who has it, or had it last: a process id and which boot that was in; and the same of who last used its
//!                     slots, unless that one ended in order
//!          /slots     a directory for each slot in use
//!          /…
//! ```

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::unistd::Uid;
use thiserror::Error;
use tracing::warn;

/// The largest record that is read, in bytes.
const MAX_RECORD: u64 = 1024;

/// What the line begins with that says who uses the slots.
const RUNNING: &str = "running";

/// The state directory, which nobody else has for as long as this lives.
#[derive(Debug)]
pub(super) struct Claim {
    lock: File,
    own: qemu::Identity,
    /// Who used it last and did not end in order.
    pub crashed: Option<Crashed>,
}

/// A run that did not end in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crashed {
    /// Its process id.
    pub pid: u32,
    /// Whether the host was started anew since, so that nothing that it started can run.
    pub in_earlier_boot: bool,
}

/// What the lock's file says of the last run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pid: Option<u32>,
    /// Earlier releases did not write it.
    boot_id: Option<&'a str>,
    /// The process that did not end in order, and its boot.
    running: Option<(u32, &'a str)>,
}

/// Why the state directory is not ours.
#[derive(Debug, Error)]
pub(super) enum ClaimError {
    /// It is another worker's.
    #[error(
        "another kvm-worker (process {pid}) uses {}; stop it, or give this one another pool.state_dir", .directory.display()
    )]
    Taken { pid: String, directory: PathBuf },
    /// Others may put something there.
    #[error("pool.state_dir {} can't be trusted: {flaw}", .directory.display())]
    Foreign { flaw: Flaw, directory: PathBuf },
    /// It is not there and can't be made, or can't be written to.
    #[error(transparent)]
    Unusable(#[from] anyhow::Error),
}

/// Why what is in a directory may be somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Flaw {
    /// The owner is neither this user nor root.
    #[error("it belongs to user {owner}, and this is run as user {user}")]
    Owner { owner: u32, user: u32 },
    /// Its mode lets others write.
    #[error("others may write to it (mode {mode:o}); run chmod go-w")]
    Writable { mode: u32 },
}

/// What is wrong with a directory that is to be ours alone: what is in there (disks, learnt keys, templates) is trusted.
pub(crate) fn flaw(owner: u32, mode: u32, user: u32) -> Option<Flaw> {
    match mode & 0o022 {
        _ if owner != user && owner != 0 => Some(Flaw::Owner { owner, user }),
        0 => None,
        _ => Some(Flaw::Writable { mode: mode & 0o7777 }),
    }
}

/// Makes the state directory ours alone.
pub(super) fn claim(state_dir: &Path) -> Result<Claim, ClaimError> {
    make_lasting_directory(state_dir)?;
    let seen = fs::metadata(state_dir).with_context(|| format!("look at {}", state_dir.display()))?;
    if let Some(flaw) = flaw(seen.uid(), seen.mode(), Uid::effective().as_raw()) {
        return Err(ClaimError::Foreign { flaw, directory: state_dir.to_owned() });
    }
    let path = state_dir.join("lock");
    // Whoever could read it could lock it.
    let private = 0o600;
    let open = || {
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true).mode(private).custom_flags(nix::libc::O_NOFOLLOW);
        let lock = options.open(&path)?;
        // As earlier releases made it.
        lock.set_permissions(Permissions::from_mode(private))?;
        Ok::<_, io::Error>(lock)
    };
    let lock = open().with_context(|| format!("open {}", path.display()))?;
    let locked = lock.try_lock();
    let mut text = String::new();
    let read = (&lock).take(MAX_RECORD).read_to_string(&mut text);
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = parse(&text).pid.map_or("of an unknown number".to_owned(), |pid| pid.to_string());
            return Err(ClaimError::Taken { pid, directory: state_dir.to_owned() });
        }
        Err(TryLockError::Error(error)) => {
            return Err(anyhow::Error::from(error).context(format!("lock {}", path.display())).into());
        }
    }
    // What a power failure did to it can't be read, and says nothing.
    let last = if read.is_ok() { parse(&text) } else { Record::default() };
    let own = qemu::Identity::of(std::process::id()).context("find out when this process was started")?;
    let in_earlier_boot = last.boot_id.is_some_and(|boot_id| boot_id != own.boot_id);
    if in_earlier_boot {
        forget_processes(&state_dir.join("slots"));
    }
    let crashed = last.running.map(|(pid, boot_id)| Crashed { pid, in_earlier_boot: boot_id != own.boot_id });
    let claim = Claim { lock, own, crashed };
    // Whoever does not get as far as to use the slots leaves it to the next one to say who did.
    let write = || {
        claim.write(last.running)?;
        // Before anything is started whose pidfile a power failure may make unreadable.
        claim.lock.sync_all()?;
        sync(state_dir)
    };
    write().with_context(|| format!("write {}", path.display()))?;
    Ok(claim)
}

impl Claim {
    /// Says whether the last run ended in order.
    pub(super) fn say_what_was_left(&self) {
        match self.crashed {
            Some(Crashed { pid, in_earlier_boot: true }) => {
                warn!(pid, "the host went down under the last run; what it left is cleaned up");
            }
            Some(Crashed { pid, .. }) => warn!(pid, "the last run did not end in order; what it left is cleaned up"),
            None => {}
        }
    }

    /// Notes that the slots are used from now on. If it can't be written, the next start says something wrong, and that is all.
    pub(super) fn begin(&self) {
        let _ = self.write(Some((self.own.pid, &self.own.boot_id)));
    }

    /// Notes that all that was in the slots has ended.
    pub(super) fn end(&self) {
        let _ = self.write(None);
    }

    fn write(&self, running: Option<(u32, &str)>) -> io::Result<()> {
        let mut text = format!("{}\nboot {}\n", self.own.pid, self.own.boot_id);
        if let Some((pid, boot_id)) = running {
            text += &format!("{RUNNING} {pid} {boot_id}\n");
        }
        let mut lock = &self.lock;
        lock.rewind()?;
        lock.write_all(text.as_bytes())?;
        lock.set_len(text.len() as u64)
    }
}

pub(super) fn parse(text: &str) -> Record<'_> {
    let mut record = Record::default();
    for line in text.lines() {
        match *line.split_ascii_whitespace().collect::<Vec<_>>() {
            [pid] if record.pid.is_none() => record.pid = pid.parse().ok(),
            ["boot", boot_id] => record.boot_id = Some(boot_id),
            [RUNNING, pid, boot_id] => record.running = pid.parse().ok().map(|pid| (pid, boot_id)),
            _ => {}
        }
    }
    record
}

/// Removes the pidfiles of an earlier boot. What they name does not run any more, and a power failure may have left nothing
/// in one that could be read, which would keep its slot out of use.
fn forget_processes(slots: &Path) {
    for slot in fs::read_dir(slots).into_iter().flatten().flatten() {
        // One that can't be removed shows when its slot is cleaned.
        let _ = fs::remove_file(slot.path().join(super::slot::PID_FILE));
    }
}

/// The process of the worker that the state directory is claimed by, if it is.
///
/// # Errors
/// It can't be seen.
pub(crate) fn neighbour(state_dir: &Path) -> io::Result<Option<u32>> {
    let file = match File::open(state_dir.join("lock")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Held only while it is looked at: a worker that starts in this moment would not get it.
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            file.take(MAX_RECORD).read_to_string(&mut text)?;
            // It is written down a moment after the lock is taken.
            Ok(Some(parse(&text).pid.unwrap_or_default()))
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Makes a directory, and those above it, that is nobody else's business.
pub(super) fn make_private_directory(directory: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("make {}", directory.display()))
}

/// Makes such a directory for what has to outlast a power failure. Blocks.
pub(super) fn make_lasting_directory(directory: &Path) -> anyhow::Result<()> {
    let missing: Vec<&Path> = directory.ancestors().take_while(|directory| !directory.exists()).collect();
    make_private_directory(directory)?;
    for made in missing {
        let above = made.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync(above).with_context(|| format!("make {}", made.display()))?;
    }
    Ok(())
}

/// Writes a file that is either the old one or the new one, whatever happens, and the new one when this returns. Blocks.
pub(super) fn write_whole(path: &Path, contents: impl AsRef<[u8]>) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = File::create(&unfinished)?;
    file.write_all(contents.as_ref())?;
    file.sync_all()?;
    fs::rename(unfinished, path)?;
    sync(path.parent().unwrap_or(Path::new("/")))
}

/// Waits until a file's contents, or the names in a directory, are on the host's disk. Blocks.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_of_the_last_run_is_understood_in_part_if_not_as_a_whole() {
        let check = |text: &str, pid: Option<u32>, boot_id: Option<&str>, running: Option<(u32, &str)>| {
            assert_eq!(parse(text), Record { pid, boot_id, running }, "{text:?}");
        };
        check("17\nboot abc\nrunning 17 abc\n", Some(17), Some("abc"), Some((17, "abc")));
        check("18\nboot xyz\nrunning 17 abc\n", Some(18), Some("xyz"), Some((17, "abc")));
        check("17\nboot abc\n", Some(17), Some("abc"), None);
        // As earlier releases wrote it, and as a power failure may leave it.
        check("17\n", Some(17), None, None);
        check("", None, None, None);
        check("17\nboot \nrunning 1", Some(17), None, None);
        check("\0\0\0\0", None, None, None);
    }

    #[test]
    fn a_directory_that_others_may_change_is_not_trusted() {
        let check = |owner, mode, expected| assert_eq!(flaw(owner, mode, 1000), expected, "{owner} {mode:o}");
        check(1000, 0o40700, None);
        check(0, 0o40755, None);
        check(1001, 0o40700, Some(Flaw::Owner { owner: 1001, user: 1000 }));
        check(1000, 0o40770, Some(Flaw::Writable { mode: 0o770 }));
        check(0, 0o41777, Some(Flaw::Writable { mode: 0o1777 }));
        assert_eq!(flaw(1000, 0o40700, 0), Some(Flaw::Owner { owner: 1000, user: 0 }));
    }

    #[test]
    fn the_lock_is_nobody_elses_to_hold() {
        let directory = tempfile::tempdir().expect("a directory");
        let state_dir = directory.path().join("state");
        fs::create_dir(&state_dir).expect("made");
        let permit = |mode| fs::set_permissions(&state_dir, Permissions::from_mode(mode)).expect("changed");
        permit(0o777);
        let refusal = claim(&state_dir).expect_err("anybody may write to it").to_string();
        assert!(refusal.ends_with("others may write to it (mode 777); run chmod go-w"), "{refusal}");
        permit(0o755);
        fs::write(state_dir.join("lock"), "").expect("written");
        let _claim = claim(&state_dir).expect("it is ours");
        let mode = fs::metadata(state_dir.join("lock")).expect("it is there").mode();
        assert_eq!(mode & 0o777, 0o600);
        let elsewhere = directory.path().join("elsewhere");
        fs::create_dir(&elsewhere).expect("made");
        std::os::unix::fs::symlink(state_dir.join("lock"), elsewhere.join("lock")).expect("made");
        claim(&elsewhere).expect_err("it is a link");
    }

    #[test]
    fn who_comes_next_learns_whether_the_last_one_ended_in_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let state_dir = directory.path().join("a/state");
        let pid_file = state_dir.join("slots/0").join(crate::pool::slot::PID_FILE);
        let crashed = |in_earlier_boot| Some(Crashed { pid: std::process::id(), in_earlier_boot });
        let first = claim(&state_dir).expect("it is nobody's");
        assert_eq!(first.crashed, None);
        let refusal = claim(&state_dir).expect_err("it is somebody's").to_string();
        assert!(refusal.contains(&format!("(process {})", std::process::id())), "{refusal}");
        drop(first);
        let second = claim(&state_dir).expect("it was not used");
        assert_eq!(second.crashed, None);
        second.begin();
        drop(second);
        let third = claim(&state_dir).expect("its lock went with it");
        assert_eq!(third.crashed, crashed(false));
        third.begin();
        third.end();
        drop(third);
        let fourth = claim(&state_dir).expect("it ended");
        assert_eq!(fourth.crashed, None);
        fourth.begin();
        drop(fourth);
        // One who only looked does not count.
        assert_eq!(claim(&state_dir).expect("it crashed").crashed, crashed(false));
        fs::create_dir_all(state_dir.join("slots/0")).expect("made");
        fs::write(&pid_file, "").expect("written");
        assert_eq!(claim(&state_dir).expect("it crashed").crashed, crashed(false));
        assert!(pid_file.exists(), "what it names may run");
        let lock = state_dir.join("lock");
        fs::write(&lock, format!("1\nboot another\nrunning {} another\n", std::process::id())).expect("written");
        assert_eq!(claim(&state_dir).expect("it crashed").crashed, crashed(true));
        assert!(!pid_file.exists(), "it is there for a process of another boot");
    }
}
