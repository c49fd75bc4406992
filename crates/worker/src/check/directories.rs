//! The worker's directories, who they belong to, and whether another worker has them.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Uid, User, access};

use super::Finding;
use crate::config::Config;
use crate::pool::{Flaw, flaw};

/// The directories below the state directory that hold what is large.
const PARTS: [&str; 4] = ["slots", "disks", "generations", "templates"];

/// What is known of a directory.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    There {
        mode: u32,
        owner: u32,
        is_directory: bool,
        writable: Result<(), String>,
    },
    /// It is going to be made, in this one.
    Missing {
        below: PathBuf,
        writable: Result<(), String>,
    },
    /// It can't be looked at.
    Hidden(String),
}

/// Looks at the directories; `running` is the process that has the state directory.
pub(super) fn look(config: &Config, running: &io::Result<Option<u32>>) -> Vec<Finding> {
    let user = Uid::effective().as_raw();
    let (basedir, state_dir) = (&config.worker.basedir, &config.pool.state_dir);
    let mut findings = vec![judge("basedir", basedir, &see(basedir), user, false)];
    // Without images there is only a socket in the other one, and a worker can do without.
    if config.images.is_empty() && matches!(running, Ok(None)) {
        return findings;
    }
    findings.push(judge("state_dir", state_dir, &see(state_dir), user, true));
    findings.extend(elsewhere(state_dir));
    findings.push(judge_running(running, state_dir));
    findings
}

/// Who this is run as; worth a line only for root, whom everything lets pass.
pub(super) fn look_at_user(config: &Config) -> Option<Finding> {
    let basedir = &config.worker.basedir;
    let owner = owner_beside_root(Uid::effective(), basedir).filter(|_| basedir.exists())?;
    let text = format!("root, and the worker's directories are {owner}'s: what that user may not is not noticed");
    let remedy = format!("run it as that user: sudo -u {owner} kvm-worker check");
    Some(Finding::warning("user", text, Some(remedy)))
}

/// The user whose directory this is, or is going to be, if `user` is root and the other one is not. What root makes in it
/// that user can't use.
pub(crate) fn owner_beside_root(user: Uid, directory: &Path) -> Option<String> {
    let there = directory.ancestors().find_map(|path| std::fs::metadata(path).ok())?;
    (user.is_root() && there.uid() != 0).then(|| name(there.uid()))
}

fn see(path: &Path) -> Seen {
    let writable =
        |path: &Path| access(path, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|error| error.desc().to_owned());
    match std::fs::metadata(path) {
        Ok(metadata) => Seen::There {
            mode: metadata.mode() & 0o777,
            owner: metadata.uid(),
            is_directory: metadata.is_dir(),
            writable: writable(path),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A symbolic link that leads nowhere is not a place for a directory.
            if std::fs::symlink_metadata(path).is_ok() {
                return Seen::Hidden("it is a symbolic link that leads nowhere".to_owned());
            }
            let below = path.ancestors().skip(1).find(|above| above.exists()).unwrap_or(Path::new("/"));
            Seen::Missing { below: below.to_owned(), writable: writable(below) }
        }
        Err(error) => Seen::Hidden(error.to_string()),
    }
}

fn judge(subject: &str, path: &Path, seen: &Seen, user: u32, private: bool) -> Finding {
    let shown = path.display();
    let give = |path: &Path| Some(format!("give it to the worker's user: chown {} {}", name(user), path.display()));
    let flaw = match seen {
        // Root is told about the user it is not, see `look_at_user`.
        Seen::There { mode, owner, .. } if private => flaw(if user == 0 { 0 } else { *owner }, *mode, user),
        _ => None,
    };
    match seen {
        Seen::Hidden(why) => Finding::failed(subject, format!("{shown}: {why}"), None),
        Seen::Missing { below, writable: Err(why) } => Finding::failed(
            subject,
            format!("{shown} is not there and can't be made in {}: {why}", below.display()),
            Some(format!("make it and give it to the worker's user: install -d -o {} {shown}", name(user))),
        ),
        Seen::Missing { .. } => Finding::ok(subject, format!("{shown}, which is made at the first start")),
        Seen::There { is_directory: false, .. } => {
            Finding::failed(subject, format!("{shown} is not a directory"), Some("name another one".to_owned()))
        }
        Seen::There { writable: Err(why), owner, .. } => {
            Finding::failed(subject, format!("{shown}, {}'s, can't be written to: {why}", name(*owner)), give(path))
        }
        Seen::There { owner, .. } if matches!(flaw, Some(Flaw::Owner { .. })) => Finding::failed(
            subject,
            format!("{shown} is {}'s, and what is in there is trusted", name(*owner)),
            give(path),
        ),
        Seen::There { .. } if matches!(flaw, Some(Flaw::Writable { .. })) => Finding::failed(
            subject,
            format!("{shown}: others may write to it, and what is in there is trusted"),
            Some(format!("run chmod go-w {shown}")),
        ),
        Seen::There { mode, .. } if mode & 0o002 != 0 => Finding::warning(
            subject,
            format!("{shown}: everybody on this host may write to it"),
            Some(format!("run chmod o-w {shown}")),
        ),
        Seen::There { owner, .. } => Finding::ok(subject, format!("{shown}, {}'s", name(*owner))),
    }
}

/// Parts of the state directory on other file systems, whose free space nobody looks at.
fn elsewhere(state_dir: &Path) -> Option<Finding> {
    let device = std::fs::metadata(state_dir).ok()?.dev();
    let parts = PARTS.map(|part| state_dir.join(part));
    let away = parts.iter().find(|part| std::fs::metadata(part).is_ok_and(|part| part.dev() != device))?;
    Some(Finding::warning(
        "state_dir",
        format!("{} is on another file system, whose free space is not what machines wait for", away.display()),
        Some("have all of pool.state_dir on one".to_owned()),
    ))
}

fn judge_running(running: &io::Result<Option<u32>>, state_dir: &Path) -> Finding {
    let subject = "running";
    match running {
        Ok(None) => Finding::ok(subject, "no worker has this state directory"),
        Ok(Some(pid)) => {
            let text =
                format!("process {pid} is a worker with this state directory; what would disturb it is left out");
            Finding::ok(subject, text)
        }
        Err(error) => Finding::warning(
            subject,
            format!("whether a worker runs with {} can't be seen: {error}", state_dir.display()),
            Some("run this as the worker's user".to_owned()),
        ),
    }
}

/// A user's name, or number.
fn name(user: u32) -> String {
    let found = User::from_uid(Uid::from_raw(user)).ok().flatten();
    found.map_or_else(|| user.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn root_is_told_whose_a_directory_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let nobody = Uid::from_raw(65534);
        // Who is not root has made it for himself.
        let _ = nix::unistd::chown(directory.path(), Some(nobody), None);
        let owner = name(std::fs::metadata(directory.path()).expect("it is there").uid());
        let below = directory.path().join("not/there/yet");
        let root = Uid::from_raw(0);
        assert_eq!(owner_beside_root(root, directory.path()), Some(owner.clone()));
        assert_eq!(owner_beside_root(root, &below), Some(owner));
        assert_eq!(owner_beside_root(nobody, &below), None);
        assert_eq!(owner_beside_root(root, Path::new("/proc/1/fd/none")), None);
    }

    #[test]
    fn a_directory_is_there_or_can_be_made() {
        let there = |mode, writable: Result<(), &str>| Seen::There {
            mode,
            owner: 0,
            is_directory: true,
            writable: writable.map_err(str::to_owned),
        };
        let check = |seen: Seen, private, verdict, text: &str| {
            let finding = judge("basedir", Path::new("/srv/w"), &seen, 0, private);
            assert_eq!((finding.verdict, finding.text.as_str()), (verdict, text), "{seen:?}");
            assert_eq!(finding.remedy.is_some(), !matches!(verdict, Verdict::Ok), "{finding:?}");
        };
        check(there(0o755, Ok(())), false, Verdict::Ok, "/srv/w, root's");
        check(there(0o700, Ok(())), true, Verdict::Ok, "/srv/w, root's");
        check(there(0o770, Ok(())), false, Verdict::Ok, "/srv/w, root's");
        let others = "/srv/w: others may write to it, and what is in there is trusted";
        check(there(0o770, Ok(())), true, Verdict::Failed, others);
        check(there(0o777, Ok(())), true, Verdict::Failed, others);
        check(there(0o777, Ok(())), false, Verdict::Warning, "/srv/w: everybody on this host may write to it");
        let denied = "/srv/w, root's, can't be written to: Permission denied";
        check(there(0o755, Err("Permission denied")), false, Verdict::Failed, denied);
        let file = Seen::There { mode: 0o644, owner: 0, is_directory: false, writable: Ok(()) };
        check(file, false, Verdict::Failed, "/srv/w is not a directory");
        let missing = |writable| Seen::Missing { below: "/srv".into(), writable };
        check(missing(Ok(())), false, Verdict::Ok, "/srv/w, which is made at the first start");
        check(
            missing(Err("Read-only file system".to_owned())),
            false,
            Verdict::Failed,
            "/srv/w is not there and can't be made in /srv: Read-only file system",
        );
    }

    #[test]
    fn a_state_directory_of_somebody_else_is_refused() {
        let judge = |mode, owner, user, private| {
            let seen = Seen::There { mode, owner, is_directory: true, writable: Ok(()) };
            judge("state_dir", Path::new("/srv/w"), &seen, user, private)
        };
        let judged = |owner, user, private| judge(0o700, owner, user, private).verdict;
        assert_eq!(judged(1000, 1000, true), Verdict::Ok);
        assert_eq!(judged(0, 1000, true), Verdict::Ok);
        assert_eq!(judged(1001, 1000, true), Verdict::Failed);
        assert_eq!(judged(1001, 1000, false), Verdict::Ok);
        // Another finding tells root whose it is.
        assert_eq!(judged(1001, 0, true), Verdict::Ok);
        let remedy = |mode, owner| judge(mode, owner, 1000, true).remedy.expect("there is one");
        assert!(remedy(0o700, 1001).contains("chown"), "{}", remedy(0o700, 1001));
        assert_eq!(remedy(0o770, 1000), "run chmod go-w /srv/w");
    }

    #[test]
    fn what_is_on_the_disk_is_seen() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        assert!(matches!(see(directory.path()), Seen::There { is_directory: true, writable: Ok(()), .. }));
        assert_eq!(see(&path("a/b/c")), Seen::Missing { below: directory.path().to_owned(), writable: Ok(()) });
        std::fs::write(path("file"), "").expect("written");
        assert!(matches!(see(&path("file")), Seen::There { is_directory: false, .. }));
        assert!(matches!(see(&path("file/x")), Seen::Hidden(_)));
        std::os::unix::fs::symlink("nowhere", path("link")).expect("linked");
        assert!(matches!(see(&path("link")), Seen::Hidden(_)));
        assert_eq!(elsewhere(directory.path()), None);
        std::os::unix::fs::symlink("/proc", path("disks")).expect("linked");
        assert_eq!(elsewhere(directory.path()).map(|finding| finding.verdict), Some(Verdict::Warning));
    }
}
