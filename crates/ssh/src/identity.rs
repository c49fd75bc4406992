//! The private key with which we log in.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::{HashAlg, PrivateKey};
use rustix::fs::OFlags;

/// A private key file is refused above this size, in bytes.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// A private key, ready to log in with. Cheap to clone; its `Debug` shows the fingerprint and never the key.
#[derive(Clone)]
pub struct Identity {
    key: Arc<PrivateKey>,
}

impl Identity {
    /// Reads an unencrypted OpenSSH, PKCS#8 or PKCS#1 private key (ed25519, ecdsa or rsa) from a file.
    ///
    /// As the `ssh` command does, it refuses a file that its owner's group or others can read.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let unreadable = |source| IdentityError::Unreadable { path: path.to_owned(), source };
        // Nobody may ever write to a named pipe.
        let nonblock = OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(nonblock).open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(unreadable(io::Error::other("not a regular file")));
        }
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::OpenPermissions { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.take(MAX_KEY_FILE).read_to_string(&mut text).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => IdentityError::NotAKey { path: path.to_owned() },
            _ => unreadable(source),
        })?;
        let key = russh::keys::decode_secret_key(&text, None).map_err(|error| match error {
            russh::keys::Error::KeyIsEncrypted => IdentityError::Encrypted { path: path.to_owned() },
            russh::keys::Error::SshKey(russh::keys::ssh_key::Error::Encrypted) => {
                IdentityError::Encrypted { path: path.to_owned() }
            }
            _ => IdentityError::NotAKey { path: path.to_owned() },
        })?;
        if key.is_encrypted() {
            return Err(IdentityError::Encrypted { path: path.to_owned() });
        }
        Ok(Self { key: Arc::new(key) })
    }

    /// Returns the public half's SHA-256 fingerprint, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        self.key.public_key().fingerprint(HashAlg::Sha256).to_string()
    }

    pub(crate) fn key(&self) -> Arc<PrivateKey> {
        Arc::clone(&self.key)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.fingerprint()).finish()
    }
}

/// Why a private key file cannot be used; for the person who configured it.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be opened or read.
    #[error("read private key {}: {source}", path.display())]
    Unreadable {
        /// The key file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Others than the owner may read the file.
    #[error("private key {} has mode {mode:04o}, so others can read it: run chmod 600 on it", path.display())]
    OpenPermissions {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key is protected by a passphrase, which nobody is there to type.
    #[error("private key {} has a passphrase: remove it with ssh-keygen -p, or make a key without one", path.display())]
    Encrypted {
        /// The key file.
        path: PathBuf,
    },
    /// The file holds no private key that we can read.
    #[error("{} holds no private key: make one with ssh-keygen -t ed25519 (is it the .pub file?)", path.display())]
    NotAKey {
        /// The key file.
        path: PathBuf,
    },
}
