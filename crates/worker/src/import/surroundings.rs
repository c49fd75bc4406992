//! What lies beside a `buildbot.tac`: `info/`, and the traces of a worker that runs.

use std::fs;
use std::path::Path;

use super::report::{Report, shown};

/// The most entries of `info/` that are looked at.
const MAX_ENTRIES: usize = 100;

/// Says what becomes of `info/`, which stays where it is.
pub(super) fn info(basedir: &Path, report: &mut Report) {
    let mut names: Vec<String> = fs::read_dir(basedir.join("info"))
        .into_iter()
        .flatten()
        .take(MAX_ENTRIES)
        .flatten()
        .filter(|entry| entry.path().is_file())
        .map(|entry| shown(&entry.file_name().to_string_lossy()))
        .collect();
    names.sort();
    if names.is_empty() {
        report
            .different
            .push("info/ has no files; info/admin and info/host describe the worker to the master".to_owned());
    } else {
        report.carried.push(format!("info/, which is used where it is: {}", names.join(", ")));
    }
}

/// The process that `twistd.pid` names, if it is still the worker: one that runs in this directory.
///
/// `proc` is where processes are listed, `/proc`.
pub(super) fn running(basedir: &Path, proc: &Path) -> Option<u32> {
    let pid_file = basedir.join("twistd.pid");
    let length = fs::metadata(&pid_file).ok().filter(fs::Metadata::is_file)?.len();
    let pid = (length <= 32).then(|| fs::read_to_string(&pid_file).ok())??.trim().parse().ok()?;
    let directory = proc.join(format!("{pid}"));
    // A number that went to another process is no reason to worry. One whose directory is hidden from us may be one.
    match fs::read_link(directory.join("cwd")) {
        Ok(cwd) => (cwd == fs::canonicalize(basedir).ok()?).then_some(pid),
        Err(_) => directory.exists().then_some(pid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_runs_if_the_process_is_there_and_at_home() {
        let directory = tempfile::tempdir().unwrap();
        let (basedir, proc) = (directory.path().join("w"), directory.path().join("proc"));
        fs::create_dir_all(&basedir).unwrap();
        for (pid, cwd) in [("7", Some(basedir.as_path())), ("8", Some(Path::new("/"))), ("9", None)] {
            fs::create_dir_all(proc.join(pid)).unwrap();
            if let Some(cwd) = cwd {
                std::os::unix::fs::symlink(fs::canonicalize(cwd).unwrap(), proc.join(pid).join("cwd")).unwrap();
            }
        }
        let check = |content: &str, expected: Option<u32>| {
            fs::write(basedir.join("twistd.pid"), content).unwrap();
            assert_eq!(running(&basedir, &proc), expected, "{content}");
        };
        check("7", Some(7));
        check("7\n", Some(7));
        check("8", None);
        check("9", Some(9));
        check("10", None);
        check("-7", None);
        check("../7", None);
        check("", None);
        check(&format!("7{}", " ".repeat(100)), None);
        fs::remove_file(basedir.join("twistd.pid")).unwrap();
        assert_eq!(running(&basedir, &proc), None);
    }
}
