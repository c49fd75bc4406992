//! The public key by which we know a guest again.

use std::fmt;
use std::str::FromStr;

use russh::keys::{Algorithm, HashAlg, PublicKey};

/// A guest's public host key.
///
/// Parsed from and displayed as one line `ssh-ed25519 AAAA…`, the form of a `.pub` file; a comment is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey(PublicKey);

impl HostKey {
    pub(crate) fn new(key: &PublicKey) -> Self {
        // The comment is no part of the identity and would spoil comparisons.
        Self(PublicKey::new(key.key_data().clone(), ""))
    }

    /// Returns the SHA-256 fingerprint, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        self.0.algorithm()
    }
}

impl FromStr for HostKey {
    type Err = BadHostKey;

    fn from_str(line: &str) -> Result<Self, BadHostKey> {
        let key = PublicKey::from_openssh(line.trim()).map_err(|error| BadHostKey { why: error.to_string() })?;
        Ok(Self::new(&key))
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_openssh().map_err(|_| fmt::Error)?.trim_end())
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostKey").field(&self.fingerprint()).finish()
    }
}

/// A text that is no host key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a host key ({why}): give one line such as \"ssh-ed25519 AAAA...\", the guest's /etc/ssh/ssh_host_*_key.pub"
)]
pub struct BadHostKey {
    why: String,
}

/// Which host key a guest may present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostKeyPolicy {
    /// This one and no other.
    Pinned(HostKey),
    /// Any, once: the caller keeps [`Session::host_key`](crate::Session::host_key) and pins it ever after.
    Learn,
}
