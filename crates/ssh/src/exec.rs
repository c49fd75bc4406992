//! A command to run in the guest.

use crate::launch;
use crate::signal::Signal;

/// A command and the surroundings it runs in.
///
/// Strings are bytes: any but NUL are passed on as they are. Environment values and the command travel over the
/// command's own standard input, so that they never show in the guest's process list before the command itself does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    pub(crate) command: Command,
    pub(crate) dir: Option<(Vec<u8>, Missing)>,
    pub(crate) env: Vec<(String, Option<Vec<u8>>)>,
    pub(crate) umask: Option<u32>,
    pub(crate) pty: Option<Pty>,
    pub(crate) stdin: bool,
    pub(crate) buffer: usize,
    pub(crate) abandoned_by: Signal,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Argv(Vec<Vec<u8>>),
    Shell(Vec<u8>),
}

/// What to do when the working directory does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Make it, and its parents.
    Make,
    /// Fail with [`ExecError::EnterDir`](crate::ExecError::EnterDir).
    Fail,
}

/// A terminal for the command; standard output and error then arrive as one stream, as standard output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pty {
    /// The value of `TERM`.
    pub term: String,
    /// Width in characters.
    pub columns: u32,
    /// Height in characters.
    pub rows: u32,
}

impl Default for Pty {
    /// A plain terminal of 80 by 24.
    fn default() -> Self {
        Self { term: "dumb".to_owned(), columns: 80, rows: 24 }
    }
}

impl Exec {
    /// Runs a program with arguments, found along the guest's `PATH`; no shell interprets them.
    pub fn argv<A: Into<Vec<u8>>>(argv: impl IntoIterator<Item = A>) -> Self {
        Self::new(Command::Argv(argv.into_iter().map(Into::into).collect()))
    }

    /// Runs a command line with the guest's shell: `/bin/sh -c`, unless its [`Dialect`](crate::Dialect) has another.
    pub fn shell(line: impl Into<Vec<u8>>) -> Self {
        Self::new(Command::Shell(line.into()))
    }

    fn new(command: Command) -> Self {
        Self {
            command,
            dir: None,
            env: Vec::new(),
            umask: None,
            pty: None,
            stdin: false,
            buffer: 1 << 20,
            abandoned_by: Signal::Kill,
        }
    }

    /// Sets the working directory; a relative one starts at the login directory, which is also the default.
    pub fn dir(mut self, dir: impl Into<Vec<u8>>, missing: Missing) -> Self {
        self.dir = Some((dir.into(), missing));
        self
    }

    /// Sets an environment variable; of two settings of one name the later counts.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.env.push((name.into(), Some(value.into())));
        self
    }

    /// Removes an environment variable.
    pub fn env_remove(mut self, name: impl Into<String>) -> Self {
        self.env.push((name.into(), None));
        self
    }

    /// Sets the file mode creation mask, for instance `0o022`; otherwise it is the login's.
    pub fn umask(mut self, umask: u32) -> Self {
        self.umask = Some(umask);
        self
    }

    /// Gives the command a terminal.
    pub fn pty(mut self, pty: Pty) -> Self {
        self.pty = Some(pty);
        self
    }

    /// Keeps standard input open for [`Process::take_stdin`](crate::Process::take_stdin); otherwise it is at its end
    /// from the start.
    pub fn stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    /// Sets how many bytes of output may wait for the caller (1 MiB by default) before the guest is made to wait.
    pub fn buffer(mut self, bytes: usize) -> Self {
        self.buffer = bytes;
        self
    }

    /// Sets the signal a process gets when it is dropped before its end; if it ignores it, `KILL` follows.
    pub fn abandoned_by(mut self, signal: Signal) -> Self {
        self.abandoned_by = signal;
        self
    }

    /// Checks what can be checked without a guest; [`Session::exec`](crate::Session::exec) does so too.
    pub fn validate(&self) -> Result<(), BadExec> {
        launch::validate(self)
    }
}

/// A command that no guest could run as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadExec {
    /// There is no program to run.
    #[error("the command is empty")]
    Empty,
    /// A string holds a NUL byte, which no program can be given.
    #[error("{what} contains a NUL byte")]
    Nul {
        /// Which string.
        what: String,
    },
    /// The name is none that a variable can have.
    #[error("environment variable {name:?} has no valid name: it must not be empty nor contain =")]
    EnvName {
        /// The name given.
        name: String,
    },
    /// The guest's system has nothing of the kind.
    #[error("this guest's system has no such thing as {what} for commands")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
    /// Windows knows text only.
    #[error("{what} is not UTF-8, which a Windows guest needs")]
    NotText {
        /// Which string.
        what: String,
    },
    /// The mask has bits beyond the permissions.
    #[error("umask {umask:o} is not between 0 and 777")]
    Umask {
        /// The mask given.
        umask: u32,
    },
}
