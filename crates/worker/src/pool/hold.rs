//! Machines that are kept for people after their build has ended.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tracing::info;

use super::machine::Machine;
use super::slot::Slot;
use super::{Owner, Pool, Status, Stopped, VmError};

/// What holding a machine came to.
#[derive(Debug)]
pub(crate) enum Hold {
    /// It runs on.
    Held(Held),
    /// It was stopped, as the configuration lets none be held.
    Off(Stopped),
}

/// A machine that runs on for a person.
#[derive(Debug)]
pub(crate) struct Held {
    pub machine: Arc<Machine>,
    /// For how long.
    pub time: Duration,
    /// The command that gets a person on this host into its guest.
    pub login: String,
    /// The slots of machines that are ended for it, because only so many may be held.
    pub displaced: Vec<u16>,
}

/// Why a slot is not released.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReleased {
    /// There is no machine in it.
    #[error("no machine runs in slot {0}")]
    Free(u16),
    /// A builder uses it.
    #[error("slot {slot} has vm '{}' of builder '{}', whose build runs; stop the build instead", .owner.vm, .owner.builder.escape_debug())]
    InUse { slot: u16, owner: Owner },
    /// It does not end.
    #[error(transparent)]
    NotStopped(#[from] VmError),
}

impl Pool {
    /// Takes a machine from its builder and lets it run on for a person: for the time asked, if the configuration allows as
    /// much. Neither builds nor the line have to do with it any more.
    pub(crate) async fn hold(&self, owner: &Owner, asked: Duration) -> Result<Hold, VmError> {
        let config = &self.0.config;
        let most = usize::from(config.max_held);
        if most == 0 {
            let stopped = self.stop(owner, None).await;
            return stopped.unwrap_or_else(|| Err(VmError::NotRunning(owner.vm.clone()))).map(Hold::Off);
        }
        let time = asked.min(config.max_hold);
        let machine = self.find(owner)?;
        let login = self.login_command(&machine).map_err(|error| VmError::StopFailed {
            vm: owner.vm.clone(),
            why: format!("write the known_hosts file of slot {}: {error}", machine.facts.slot),
        });
        let login = match login {
            Ok(login) => login,
            Err(error) => {
                // A machine that nobody gets into is of no use.
                drop(self.stop(owner, None).await);
                return Err(error);
            }
        };
        // From here on nothing is waited for: the machine is either the builder's or held.
        let (machine, displaced) = self.machines().hold(owner, most)?;
        machine.extend(time);
        machine.span.in_scope(|| info!(seconds = time.as_secs(), "vm held"));
        let displaced = displaced.into_iter().map(|machine| {
            let slot = machine.facts.slot;
            machine.span.in_scope(|| info!("ending the machine that was held longest: pool.max_held are held"));
            drop(self.stop_machine(machine, None));
            slot
        });
        Ok(Hold::Held(Held { displaced: displaced.collect(), machine, time, login }))
    }

    /// How many machines are held.
    pub(crate) fn held(&self) -> usize {
        self.machines().held().count()
    }

    /// Ends the machine that is held in a slot.
    pub(crate) async fn release_slot(&self, slot: u16) -> Result<Stopped, NotReleased> {
        let machine = self.machines().held().find(|machine| machine.facts.slot == slot).cloned();
        match machine {
            Some(machine) => {
                machine.span.in_scope(|| info!("ending a held machine: it was released"));
                Ok(self.stop_machine(machine, None).await?)
            }
            None => Err(
                match self.machines().tenant(|machine| machine.facts.slot == slot && machine.status() == Status::Up) {
                    Some(owner) => NotReleased::InUse { slot, owner },
                    None => NotReleased::Free(slot),
                },
            ),
        }
    }

    /// Writes what the command needs, and returns it.
    fn login_command(&self, machine: &Machine) -> io::Result<String> {
        let directory = self.0.config.state_dir.join("slots");
        let slot = Slot::new(machine.facts.slot, self.0.config.ssh_port_base, &directory);
        let known_hosts = slot.known_hosts();
        let login = machine.login();
        let line = format!("[127.0.0.1]:{} {}\n", slot.ssh_port(), login.session.host_key());
        fs::write(&known_hosts, line)?;
        Ok(ssh_command(slot.ssh_port(), &machine.image.key, &known_hosts, &machine.image.user))
    }
}

/// A shell's command line for OpenSSH that asks no questions: the guest's key is known, and no other key of the person's is
/// tried.
fn ssh_command(port: u16, key: &Path, known_hosts: &Path, user: &str) -> String {
    let known_hosts = format!("UserKnownHostsFile={}", option_path(known_hosts));
    let words = [
        "ssh",
        "-p",
        &port.to_string(),
        "-i",
        &key.to_string_lossy(),
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        &known_hosts,
        "-o",
        "StrictHostKeyChecking=yes",
        &format!("{user}@127.0.0.1"),
    ]
    .map(shell_word);
    words.join(" ")
}

/// A path as the value of an option that takes several: quoted where a blank would end it (ssh_config(5)).
fn option_path(path: &Path) -> String {
    let path = path.to_string_lossy().replace('%', "%%");
    if path.contains(|char: char| char.is_whitespace() || "\"\\#'".contains(char)) {
        format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        path
    }
}

/// A word as a POSIX shell takes it literally.
fn shell_word(word: &str) -> String {
    if !word.is_empty() && word.chars().all(|char| char.is_ascii_alphanumeric() || "@%_+=:,./-".contains(char)) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_gets_a_person_in_is_one_line_for_a_shell() {
        let check = |key: &str, known_hosts: &str, expected: &str| {
            assert_eq!(ssh_command(2225, Path::new(key), Path::new(known_hosts), "buildbot"), expected);
        };
        check(
            "/images/id_ed25519",
            "/state/slots/3/known_hosts",
            "ssh -p 2225 -i /images/id_ed25519 -o IdentitiesOnly=yes -o UserKnownHostsFile=/state/slots/3/known_hosts -o StrictHostKeyChecking=yes buildbot@127.0.0.1",
        );
        check(
            "/my images/it's",
            "/my state/known_hosts",
            r#"ssh -p 2225 -i '/my images/it'\''s' -o IdentitiesOnly=yes -o 'UserKnownHostsFile="/my state/known_hosts"' -o StrictHostKeyChecking=yes buildbot@127.0.0.1"#,
        );
    }

    /// OpenSSH itself says what it makes of the words, without connecting (`ssh -G`).
    #[tokio::test]
    async fn openssh_reads_the_paths_as_they_were_meant() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let (key, known_hosts) = (path("a key's \"file\""), path("50% known hosts"));
        fs::write(&key, "").expect("written");
        let line = ssh_command(2225, &key, &known_hosts, "user").replacen("ssh ", "ssh -F none -G ", 1);
        let command = process::Command::new("sh").inherit_env(["PATH"]).args(["-c", &line]);
        let limits = process::Limits { deadline: Duration::from_secs(20), max_bytes: 1 << 20 };
        let said = command.output(&limits).await.and_then(process::Output::into_success).expect("ssh is installed");
        let said = String::from_utf8_lossy(&said).into_owned();
        let value = |option: &str| {
            said.lines().find_map(|line| line.strip_prefix(option)).unwrap_or_default().trim().to_owned()
        };
        assert_eq!(value("hostname"), "127.0.0.1");
        assert_eq!(value("stricthostkeychecking"), "true");
        assert_eq!(value("identityfile"), key.to_string_lossy());
        assert_eq!(value("userknownhostsfile"), known_hosts.to_string_lossy());
    }
}
