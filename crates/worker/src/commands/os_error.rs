//! What the operating system refused, as Buildbot's worker says it.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use protocol::Update;

use super::vm;
use crate::output::Reporter;

/// Ends a command with what went wrong: the error's number is its exit status (Buildbot 4.3.0, `commands/fs.py`).
///
/// If it is the place itself that is gone, the command ends as a shell command does whose VM died under it.
pub(super) async fn report(reporter: &Reporter, command: &str, path: &Path, error: &io::Error) {
    if let Some(lost) = place_lost(error) {
        return report_lost(reporter, lost).await;
    }
    reporter.header(format!("{command}: {}: {}", text(error), path.display())).await;
    reporter.update(Update::Rc(number(error))).await;
}

/// Ends a command whose place went away under it: a failure of the infrastructure, which steps know by its reason.
pub(super) async fn report_lost(reporter: &Reporter, reason: String) {
    vm::fail(reporter, "vm_lost", &reason, vm::KILLED).await;
}

/// What happened, if an error says that the place is not there any more: [`io::ErrorKind::NotConnected`], and not from
/// the host's own system.
pub(super) fn place_lost(error: &io::Error) -> Option<String> {
    let lost = error.kind() == io::ErrorKind::NotConnected && error.raw_os_error().is_none();
    lost.then(|| error.to_string())
}

/// What the system calls it, such as `No such file or directory`.
pub(super) fn text(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(number) => text.trim_end_matches(&format!(" (os error {number})")).to_owned(),
        None => text,
    }
}

/// An error about a path as Python writes an `OSError`.
pub(super) fn pythonic(error: &io::Error, path: &Path) -> String {
    match error.raw_os_error() {
        Some(number) => format!("[Errno {number}] {}: '{}'", text(error), path.display()),
        None => error.to_string(),
    }
}

/// Its number; a place that knows only the kind of error gets the usual number of that kind.
fn number(error: &io::Error) -> i32 {
    let usual = match error.kind() {
        io::ErrorKind::NotFound => Errno::ENOENT,
        io::ErrorKind::PermissionDenied => Errno::EACCES,
        io::ErrorKind::AlreadyExists => Errno::EEXIST,
        io::ErrorKind::NotADirectory => Errno::ENOTDIR,
        io::ErrorKind::IsADirectory => Errno::EISDIR,
        io::ErrorKind::StorageFull => Errno::ENOSPC,
        io::ErrorKind::ReadOnlyFilesystem => Errno::EROFS,
        io::ErrorKind::InvalidInput => Errno::EINVAL,
        io::ErrorKind::FileTooLarge => Errno::EFBIG,
        _ => Errno::EIO,
    };
    error.raw_os_error().unwrap_or(usual as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_system_keeps_its_text_and_number() {
        let error = io::Error::from_raw_os_error(20);
        assert_eq!((text(&error), number(&error)), ("Not a directory".to_owned(), 20));
        assert_eq!(pythonic(&error, Path::new("/x")), "[Errno 20] Not a directory: '/x'");
    }

    #[test]
    fn an_error_without_a_number_gets_the_usual_one() {
        let error = io::Error::new(io::ErrorKind::NotFound, "no such thing");
        assert_eq!((text(&error), number(&error)), ("no such thing".to_owned(), 2));
        assert_eq!(pythonic(&error, Path::new("/x")), "no such thing");
        assert_eq!(number(&io::Error::other("what?")), 5);
    }

    #[test]
    fn only_a_place_can_be_lost() {
        let gone = io::Error::new(io::ErrorKind::NotConnected, "the VM is gone");
        assert_eq!(place_lost(&gone), Some("the VM is gone".to_owned()));
        assert_eq!(place_lost(&Errno::ENOTCONN.into()), None);
    }
}
