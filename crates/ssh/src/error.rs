//! What can go wrong, by what the caller can do about it.

use std::time::Duration;

use crate::BadExec;

/// The connection is gone, and everything on it: make a new session, or give the guest up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ssh connection to {target} lost: {why}")]
pub struct Lost {
    /// `user@address`.
    pub target: String,
    /// What ended it.
    pub why: String,
}

/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers yet, or the answer was cut short: try again while the guest boots.
    #[error("{target} does not answer ssh: {why}")]
    NotReady {
        /// `user@address`.
        target: String,
        /// What happened.
        why: String,
    },
    /// The server does not let this user in with this key. For good, except while a guest boots (see
    /// [`Readiness::refusal_grace`](crate::Readiness::refusal_grace)).
    #[error(
        "{target} refuses key {fingerprint} (it offers: {methods}): put the public key into that user's \
         ~/.ssh/authorized_keys, or correct the user or key"
    )]
    KeyRefused {
        /// `user@address`.
        target: String,
        /// Our key's SHA-256 fingerprint.
        fingerprint: String,
        /// The methods the server would accept instead, separated by commas.
        methods: String,
    },
    /// The server is not the one we know. For good.
    #[error(
        "{target} presents host key {presented}, but {pinned} is pinned: another machine answers, or the guest's host \
         key was made anew and the pinned one must be replaced"
    )]
    HostKeyMismatch {
        /// `user@address`.
        target: String,
        /// The SHA-256 fingerprint that was expected.
        pinned: String,
        /// The SHA-256 fingerprint that was presented.
        presented: String,
    },
    /// Server and client cannot agree on how to talk. For good.
    #[error("cannot speak ssh with {target}: {why}")]
    Incompatible {
        /// `user@address`.
        target: String,
        /// On what they disagree.
        why: String,
    },
}

impl ConnectError {
    /// Tells whether another try may succeed without anybody changing anything.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::NotReady { .. })
    }
}

/// Why a command was not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// The request itself cannot be carried out anywhere.
    #[error(transparent)]
    Bad(#[from] BadExec),
    /// The working directory does not exist and could not be made.
    #[error("make directory {dir} in the guest: {why}")]
    MakeDir {
        /// The directory; bytes that are not UTF-8 are replaced.
        dir: String,
        /// What the guest's `mkdir` said.
        why: String,
    },
    /// The working directory cannot be entered.
    #[error("enter directory {dir} in the guest: {why}")]
    EnterDir {
        /// The directory; bytes that are not UTF-8 are replaced.
        dir: String,
        /// What the guest's shell said.
        why: String,
    },
    /// There is no such program along the command's `PATH`, or at its path.
    #[error("there is no program {program} in the guest")]
    NoProgram {
        /// The program; bytes that are not UTF-8 are replaced.
        program: String,
    },
    /// It may not be executed, or is a directory.
    #[error("{program} in the guest may not be executed")]
    NotExecutable {
        /// The program; bytes that are not UTF-8 are replaced.
        program: String,
    },
    /// All channels were busy for [`Timing::channel`](crate::Timing::channel).
    #[error("no free ssh channel to {target} within {waited:?}: too many commands run in this guest at once")]
    Busy {
        /// `user@address`.
        target: String,
        /// How long we waited.
        waited: Duration,
    },
    /// The server allows no further channel on the connection, and there is no other connection.
    #[error(
        "{target} allows no more than {most} sessions on a connection (sshd_config's MaxSessions), and another connection \
         could not be made: {why}"
    )]
    Refused {
        /// `user@address`.
        target: String,
        /// How many the server allows.
        most: usize,
        /// Why there is no other connection.
        why: String,
    },
    /// The server or the login shell did not get as far as starting the command.
    #[error("{target} did not start the command: {why}")]
    NotStarted {
        /// `user@address`.
        target: String,
        /// What the guest said.
        why: String,
    },
    /// The connection is gone.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// Why a signal did not reach its processes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignalError {
    /// Some processes belong to another user, and `sudo -n kill` was not allowed either.
    #[error(
        "signal {signal} not permitted for processes {pids:?} in the guest: allow the user sudo without a password"
    )]
    NotPermitted {
        /// The signal's name, without `SIG`.
        signal: &'static str,
        /// Those that were not signalled.
        pids: Vec<u32>,
    },
    /// The guest's system has no such signal.
    #[error("the guest's system has no signal {signal}; it knows KILL only")]
    Unknown {
        /// The signal's name, without `SIG`.
        signal: &'static str,
    },
    /// The helper that sends the signal could not run.
    #[error("send signal in the guest: {0}")]
    Exec(#[from] ExecError),
}

/// Why [`Process::output`](crate::Process::output) has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    /// The command printed more than was allowed for.
    #[error("command printed more than {limit} bytes")]
    TooLong {
        /// The allowance, in bytes, for both streams together.
        limit: usize,
    },
    /// The connection is gone.
    #[error(transparent)]
    Lost(#[from] Lost),
}
