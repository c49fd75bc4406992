//! How a worker logs in: it proves that it knows the password without saying it (Twisted 26.10.0, `pb.respond`).

use std::fmt;

use md5::{Digest, Md5};

use super::failure::RemoteFailure;

/// Who logs in.
pub(super) struct Credentials {
    pub name: Vec<u8>,
    password: Vec<u8>,
}

impl Credentials {
    pub(super) fn new(name: Vec<u8>, password: Vec<u8>) -> Self {
        Credentials { name, password }
    }

    /// The answer to the master's challenge.
    pub(super) fn respond(&self, challenge: &[u8]) -> [u8; 16] {
        Md5::new().chain_update(Md5::digest(&self.password)).chain_update(challenge).finalize().into()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.name.escape_ascii())
    }
}

/// Why a master does not let a worker in, by what is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The name is unknown or the password wrong: a person must act, on either side.
    Unauthorized,
    /// Another worker of this name is connected: it may go away, or be the same one on a line that is dead already.
    Duplicate,
    /// The password is right, and nobody has logged in with it: what a [trial](super::Connection::trial) is to come to.
    Nobody,
    /// Something went wrong at the master.
    Other,
}

impl Refusal {
    pub(super) fn of(failure: &RemoteFailure) -> Self {
        match failure.class.as_str() {
            "twisted.cred.error.UnauthorizedLogin" => Refusal::Unauthorized,
            _ if failure.text.contains("duplicate worker") => Refusal::Duplicate,
            // The first thing that a master wants of the object: `mind.broker.transport`.
            class if class.ends_with(".AttributeError") && failure.text.contains("'broker'") => Refusal::Nobody,
            _ => Refusal::Other,
        }
    }
}
