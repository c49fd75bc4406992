//! Whom to log in to, and how long anything may take.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::{Dialect, HostKeyPolicy, Identity};

/// A guest's ssh server and how to log in to it.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where the server, or the port forwarded to it, listens.
    pub address: SocketAddr,
    /// The login name.
    pub user: String,
    /// The private key.
    pub identity: Identity,
    /// The host key it must present.
    pub host_key: HostKeyPolicy,
    /// How its system is spoken to.
    pub dialect: Dialect,
    /// What its processor is, which is what copies take most of their time in.
    pub processor: Processor,
}

/// What encrypts at the guest's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processor {
    /// A real one, fastest with AES-GCM.
    Real,
    /// A translated one. It has no fast way to multiply in GCM's field: AES-CTR with SHA-256 takes a fifth to a third less of
    /// it than AES-GCM or ChaCha20 (QEMU 10.0, OpenSSH 9.2, whole copies included).
    Emulated,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.user, self.address)
    }
}

/// How long each part of a session may take.
///
/// The defaults suit a guest without hardware virtualisation on a busy host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// For the TCP connection.
    pub connect: Duration,
    /// For the server's first byte after the TCP connection stands: QEMU's user network accepts a connection before the
    /// guest listens, and then says nothing.
    pub banner: Duration,
    /// For key exchange and login together.
    pub login: Duration,
    /// For opening a channel, a free one included.
    pub channel: Duration,
    /// For a command to start: from its request until the guest's shell reports the process.
    pub start: Duration,
    /// How long the guest may be silent before it is asked whether it is alive.
    pub keepalive: Duration,
    /// How many such questions may go unanswered before the session counts as lost; at least 1.
    pub keepalive_tries: u32,
    /// How many channels may be open at once: OpenSSH's `MaxSessions`, which is 10 unless configured. At least 2, as one
    /// is kept for signals.
    pub channels: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            banner: Duration::from_secs(10),
            login: Duration::from_secs(30),
            channel: Duration::from_secs(60),
            start: Duration::from_secs(60),
            keepalive: Duration::from_secs(5),
            keepalive_tries: 6,
            channels: 10,
        }
    }
}
