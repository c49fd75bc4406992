use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use thiserror::Error;

use crate::ExitStatus;

/// Why a command could not be started. Nothing of it runs.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// There is no such program, or its interpreter (the `#!` line, the dynamic loader) is missing.
    #[error("no program {program:?}: it, or the interpreter it names, does not exist")]
    NotFound {
        /// The program as it was asked for.
        program: OsString,
    },
    /// The file is there and may not be executed, or is not a program.
    #[error("may not execute {program:?}: {source}; check its mode, its format and the mount options")]
    NotExecutable {
        /// The program as it was asked for.
        program: OsString,
        /// EACCES, EPERM, ENOEXEC or EISDIR.
        source: io::Error,
    },
    /// The working directory can't be entered.
    #[error("can't enter the working directory {}: {source}", path.display())]
    WorkingDirectory {
        /// The directory as it was asked for.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An environment variable's name is empty, or contains `=`.
    #[error("{name:?} can't be the name of an environment variable")]
    VariableName {
        /// The name.
        name: OsString,
    },
    /// The program, an argument, the directory or a variable contains a NUL byte.
    #[error("a NUL byte in the command line, directory or environment of {program:?}")]
    NulByte {
        /// The program as it was asked for.
        program: OsString,
    },
    /// Arguments and environment are more than the kernel takes (E2BIG).
    #[error("arguments and environment of {program:?} are too long for the kernel")]
    TooLong {
        /// The program as it was asked for.
        program: OsString,
    },
    /// Out of processes, memory, file descriptors or terminals: the same command may work later.
    #[error("no resources to start {program:?}: {source}")]
    Resources {
        /// The program as it was asked for.
        program: OsString,
        /// What ran out.
        source: io::Error,
    },
    /// Anything else.
    #[error("start {program:?}: {source}")]
    Other {
        /// The program as it was asked for.
        program: OsString,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a signal was not sent.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SignalError {
    /// The child is finished; there is nothing left to signal.
    #[error("the process is already finished")]
    Finished,
    /// The kernel refused, for instance because every process of the group runs as another user.
    #[error("send {signal} to process group {pid}: {source}")]
    Refused {
        /// The signal.
        signal: Signal,
        /// The group, which has its leader's process id.
        pid: u32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why [`Command::output`](crate::Command::output) has no result.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OutputError {
    /// It could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// It did not end in time, and was killed.
    #[error("{program:?} did not end within {} s and was killed{}", deadline.as_secs_f32(), said(stderr))]
    TimedOut {
        /// The program.
        program: OsString,
        /// The time it had.
        deadline: Duration,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// It wrote more than was allowed, and was killed.
    #[error("{program:?} wrote more than {max_bytes} bytes and was killed")]
    TooMuch {
        /// The program.
        program: OsString,
        /// What it might have written.
        max_bytes: usize,
    },
    /// It ran and reported failure.
    #[error("{program:?} failed with {status}{}", said(stderr))]
    Failed {
        /// The program.
        program: OsString,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
}

fn said(stderr: &str) -> String {
    match stderr.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}
