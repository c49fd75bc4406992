use std::ffi::OsStr;

use process::Command;

/// Makes a command of one of QEMU's programs. It gets no more of our environment than it has a use for, and speaks
/// English.
pub(crate) fn tool(program: &OsStr) -> Command {
    Command::new(program).inherit_env(["PATH", "TMPDIR"]).env("LC_ALL", "C")
}
