//! The worker's password: from a file or a systemd credential, never from an argument or a setting.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::section::Section;
use crate::plain_file;

/// Where the password comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PasswordSource {
    /// The first line of a file.
    File(PathBuf),
    /// The first line of a systemd credential (`LoadCredential=`), by its name.
    Credential(String),
}

/// A secret. It shows itself to nobody by accident.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Password(String);

impl Password {
    /// The secret itself, for the login.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(...)")
    }
}

impl PasswordSource {
    pub(super) fn parse(section: &mut Section<'_>) -> Self {
        let file = section.optional("password_file", super::absolute_path);
        let credential = section.optional("password_credential", |name: String| {
            let plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
            plain.then_some(name).ok_or("the name of a credential, without slashes")
        });
        match (file, credential) {
            (Some(_), Some(name)) => {
                section.problem("password_credential", &name, "set either password_file or password_credential");
                PasswordSource::Credential(name)
            }
            (None, Some(name)) => PasswordSource::Credential(name),
            (Some(file), None) => PasswordSource::File(file),
            (None, None) => PasswordSource::File(section.required(
                "password_file",
                "the path of a file whose first line is the worker's password (or set password_credential)",
                super::absolute_path,
            )),
        }
    }

    /// Whether it is a credential and this process is not the unit's, the only one that gets it.
    pub(crate) fn is_elsewhere(&self) -> bool {
        matches!(self, PasswordSource::Credential(_)) && std::env::var_os("CREDENTIALS_DIRECTORY").is_none()
    }

    /// Reads the password.
    ///
    /// # Errors
    /// The file can't be read, is empty, or everybody may read it.
    pub(crate) fn read(&self) -> anyhow::Result<Password> {
        let path = match self {
            PasswordSource::File(path) => path.clone(),
            PasswordSource::Credential(name) => {
                let directory = std::env::var_os("CREDENTIALS_DIRECTORY").with_context(|| {
                    format!("read credential '{name}': not started by systemd; set worker.password_file instead")
                })?;
                Path::new(&directory).join(name)
            }
        };
        read(&path).with_context(|| format!("read the password from {}", path.display()))
    }
}

fn read(path: &Path) -> anyhow::Result<Password> {
    let file = plain_file::open(path)?;
    let metadata = file.metadata()?;
    if metadata.permissions().mode() & 0o007 != 0 {
        bail!("everybody on this host may read it; run chmod 600 {}", path.display());
    }
    let mut text = String::new();
    file.take(4096).read_to_string(&mut text).context("it is not UTF-8 text")?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(Password(line.to_owned())),
        _ => bail!("its first line is empty; write the worker's password there"),
    }
}
