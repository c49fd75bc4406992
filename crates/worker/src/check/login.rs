//! The master: whether it is reached, and lets this worker in.

use std::time::Duration;

use super::{Finding, Master};
use crate::config::{Config, Password, PasswordSource};
use crate::master::try_login;

/// How long the master may take, if the configuration leaves it longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The password, as far as it is to be had here, and how it is.
pub(super) fn password(config: &Config) -> (Option<Password>, Finding) {
    let source = &config.worker.password;
    match source.read() {
        Ok(password) => {
            let text = match source {
                PasswordSource::File(file) => file.display().to_string(),
                PasswordSource::Credential(name) => format!("credential '{name}'"),
            };
            (Some(password), Finding::ok("password", text))
        }
        // It is there for the unit alone.
        Err(_) if source.is_elsewhere() => {
            (None, Finding::skipped("password", "it is a credential of systemd's, which only the worker's unit gets"))
        }
        Err(error) => (None, Finding::failed("password", format!("{error:#}"), None)),
    }
}

/// Has the master look at the password, and nothing else: see [`try_login`].
pub(super) async fn look(config: &Config, password: Option<Password>, running: Option<u32>, master: Master) -> Finding {
    let subject = "login";
    let worker = &config.worker;
    if master == Master::LeaveAlone {
        return Finding::skipped(subject, "--offline: the master is not asked");
    }
    if let Some(pid) = running {
        return Finding::skipped(subject, format!("process {pid} runs as this worker; its log tells of its line"));
    }
    let Some(password) = password else { return Finding::skipped(subject, "there is no password to try") };
    let within = config.connection.connect_timeout.min(PATIENCE);
    match try_login(&worker.master, worker.ca_file.as_deref(), &worker.name, &password, within).await {
        Ok(()) => Finding::ok(subject, format!("{} takes worker '{}' and its password", worker.master, worker.name)),
        Err(why) => Finding::failed(subject, why, None),
    }
}
