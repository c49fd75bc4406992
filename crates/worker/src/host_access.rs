//! What a master may do on the host of a worker whose `worker.host_commands` is off: keep house in the worker's directory,
//! as a msgpack master does when a worker attaches (Buildbot 4.3.0), and nothing of a build.

use std::path::{Path, PathBuf};

use protocol::Command;

use crate::commands::vm::within;

/// Whether a command is about no build and only looks at or removes directories below the basedir, links followed. None of
/// these starts a shell. The command's paths are absolute. Those that it makes are [`crate::builders`]' matter.
pub(crate) fn keeps_house(builder: Option<&str>, command: &Command, basedir: &Path) -> bool {
    let below = |paths: &[PathBuf]| paths.iter().all(|path| within(&[basedir], path).is_ok());
    builder.is_none()
        && match command {
            Command::Rmdir(rmdir) => below(&rmdir.paths),
            Command::Listdir(path) | Command::Stat(path) => below(std::slice::from_ref(&path.0)),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use protocol::{CommandId, Invocation, StartCommand, Value};

    use super::*;

    #[test]
    fn a_master_keeps_house_in_the_basedir_and_does_nothing_else_on_the_host() {
        let directory = tempfile::tempdir().expect("a directory");
        let basedir = directory.path().join("worker");
        std::fs::create_dir(&basedir).expect("made");
        std::os::unix::fs::symlink("/etc", basedir.join("link")).expect("made");
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
        check(None, "stat", "path", "leftover", true);
        check(None, "stat", "path", "link/passwd", false);
        check(None, "rmdir", "paths", "leftover", true);
        check(None, "rmdir", "paths", "/tmp", false);
        check(None, "rmfile", "path", "builder/file", false);
        check(None, "glob", "path", "*", false);
        check(Some("builder"), "listdir", "path", "", false);
        check(Some("builder"), "mkdir", "paths", "builder", false);
    }
}
