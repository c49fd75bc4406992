//! What differs between guests' systems: the shell, how a command is begun, and how its processes are signalled.

pub(crate) mod posix;
pub(crate) mod windows;

use std::borrow::Cow;

use bytes::Bytes;

use crate::{BadExec, Exec, Shell, Signal};

/// How a guest's system is spoken to.
///
/// | | begun by | signals | terminal, umask, copies |
/// |---|---|---|---|
/// | [`Shell::Posix`] | `sh` | all, to all processes that the script finds | yes |
/// | [`Shell::PowerShell`], [`Shell::Cmd`] | PowerShell | `KILL`, to the processes whose parents still run | no |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialect {
    /// The shell that runs [`Exec::shell`] lines.
    pub shell: Shell,
    /// The script that sends a signal to a command's processes, for `sh` or PowerShell. It finds variables set: `leader`,
    /// the pid of the command or `none`; `start`, when that began in clock ticks, 0 if unknown; `mark`, what the
    /// environment of its processes has (`NAME=VALUE`); `signal`, a name without `SIG`; and `report`. It ends with a line
    /// of `report`'s value, the number of processes it signalled, and the pids of those it was not allowed to.
    pub signal: Cow<'static, str>,
}

impl Dialect {
    /// Linux, with GNU tools or busybox.
    pub const LINUX: Self = Self {
        shell: Shell::Posix,
        signal: Cow::Borrowed(concat!(include_str!("list_proc.sh"), include_str!("signal_tree.sh"))),
    };

    /// A BSD: without Linux's `/proc`, with `ps`.
    pub const BSD: Self = Self {
        shell: Shell::Posix,
        signal: Cow::Borrowed(concat!(include_str!("list_ps.sh"), include_str!("signal_tree.sh"))),
    };

    /// Windows with OpenSSH's server, whichever its default shell is; command lines are PowerShell's.
    pub const WINDOWS: Self = Self { shell: Shell::PowerShell, signal: Cow::Borrowed(include_str!("signal_tree.ps1")) };

    /// Tells whether commands can be sent this signal.
    pub fn knows(&self, signal: Signal) -> bool {
        self.shell == Shell::Posix || signal == Signal::Kill
    }

    /// Tells whether a command can have a terminal or a umask, and files can be copied.
    pub fn is_posix(&self) -> bool {
        self.shell == Shell::Posix
    }

    pub(crate) fn launch(&self, exec: &Exec, nonce: &str) -> Result<Start, BadExec> {
        match self.shell {
            Shell::Posix => Ok(posix::launch(exec, nonce)),
            Shell::PowerShell | Shell::Cmd => windows::launch(exec, self.shell, nonce),
        }
    }

    /// Returns how to run the script that signals, with these variables.
    pub(crate) fn run_signal(&self, variables: &[(&str, &str)]) -> Start {
        match self.shell {
            Shell::Posix => posix::run(&self.signal, variables),
            Shell::PowerShell | Shell::Cmd => windows::run(&self.signal, variables),
        }
    }
}

impl Default for Dialect {
    fn default() -> Self {
        Self::LINUX
    }
}

/// What is sent to a guest to have something run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    /// The exec request.
    pub request: Vec<u8>,
    /// What comes first on standard input.
    pub script: Bytes,
}
