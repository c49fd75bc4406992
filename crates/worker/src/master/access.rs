//! What getting at the master takes. It may change while a line stands, and then goes for the next one.

use std::path::PathBuf;

use crate::config::{Config, Connection, Password};

/// How to get at the master.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Access {
    pub password: Password,
    /// The certificates that vouch for the master, instead of the system's.
    pub ca_file: Option<PathBuf>,
    pub connection: Connection,
}

impl Access {
    /// That of a configuration, with the password that it tells where to find.
    pub(crate) fn of(config: &Config, password: Password) -> Self {
        Access { password, ca_file: config.worker.ca_file.clone(), connection: config.connection.clone() }
    }
}
