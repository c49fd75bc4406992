use std::fmt;

use bytes::Bytes;
use nix::sys::signal::Signal;

use crate::ExitStatus;

/// One of a child's two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// File descriptor 1, and 2 as well where the child has a terminal.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        })
    }
}

/// What a [`Child`](crate::Child) tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes the child, or a process it left behind, wrote to stdout: 1 to 65,536 of them.
    Stdout(Bytes),
    /// The same for stderr. A child with a terminal has none.
    Stderr(Bytes),
    /// The child itself has exited. More output may follow.
    Exited(ExitStatus),
    /// The next rung of [`Child::escalate`](crate::Child::escalate) is reached and this signal was sent.
    Signalled(Signal),
    /// The last rung's patience is over and the child still runs, which after a SIGKILL means that the kernel is not
    /// done with it. Its owner may wait on, or drop it.
    Unkilled,
    /// The child is finished and reaped. This is the last event.
    Finished(Finish),
}

/// How a child finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finish {
    /// How the child itself ended.
    pub status: ExitStatus,
    /// Another process still held the child's output open when the grace was over. What that process writes later is
    /// lost; it may be killed by SIGPIPE when it does.
    pub leaked: bool,
}
