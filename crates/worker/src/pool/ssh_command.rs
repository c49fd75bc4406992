//! How a person on this host gets into a guest: with OpenSSH's client.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Pool;
use super::machine::Machine;

/// What OpenSSH's client has to be told. It asks no questions then: the guest's key is known, and no other key of the person's
/// is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SshCommand {
    pub port: u16,
    /// The file with the private key.
    pub key: PathBuf,
    /// The file with the guest's own key.
    pub known_hosts: PathBuf,
    pub user: String,
}

impl SshCommand {
    /// The arguments, the last of which is the destination.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let known_hosts = format!("UserKnownHostsFile={}", option_path(&self.known_hosts));
        let (port, key) = (self.port.to_string(), self.key.to_string_lossy());
        let options = ["-p", &port, "-i", &key, "-o", "IdentitiesOnly=yes", "-o", &known_hosts];
        let rest = ["-o", "StrictHostKeyChecking=yes", &format!("{}@127.0.0.1", self.user)];
        options.into_iter().chain(rest).map(str::to_owned).collect()
    }

    /// The same as a shell's command line.
    pub(crate) fn line(&self) -> String {
        let words = self.arguments();
        std::iter::once("ssh").chain(words.iter().map(String::as_str)).map(shell_word).collect::<Vec<_>>().join(" ")
    }
}

/// Nobody is to log in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoLogin {
    #[error("there is no slot {0}; see kvm-worker status")]
    NoSlot(u16),
    #[error("there is no machine to log in to in slot {slot}: it is {state}")]
    NoMachine { slot: u16, state: &'static str },
    #[error("write the known_hosts file of slot {0}: {1}")]
    KnownHosts(u16, io::Error),
}

impl Pool {
    /// How a person gets into the guest in a slot, which may be a build's.
    pub(crate) fn login(&self, slot: u16) -> Result<SshCommand, NoLogin> {
        match self.machine_in(slot) {
            Some(machine) => self.ssh_command(&machine).map_err(|error| NoLogin::KnownHosts(slot, error)),
            None => match self.0.slots.board().slots().get(&slot) {
                Some(note) => Err(NoLogin::NoMachine { slot, state: note.state.sentence() }),
                None => Err(NoLogin::NoSlot(slot)),
            },
        }
    }

    /// Writes what the client needs, and returns how to call it.
    pub(super) fn ssh_command(&self, machine: &Machine) -> io::Result<SshCommand> {
        let slot = self.slot_numbered(machine.facts.slot);
        let known_hosts = slot.known_hosts();
        let line = format!("[127.0.0.1]:{} {}\n", slot.ssh_port(), machine.login().session.host_key());
        std::fs::write(&known_hosts, line)?;
        let (key, user) = (machine.image.key.clone(), machine.image.user.clone());
        Ok(SshCommand { port: slot.ssh_port(), key, known_hosts, user })
    }
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
pub(crate) fn shell_word(word: &str) -> String {
    if !word.is_empty() && word.chars().all(|char| char.is_ascii_alphanumeric() || "@%_+=:,./-".contains(char)) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn command(key: &Path, known_hosts: &Path) -> SshCommand {
        SshCommand { port: 2225, key: key.to_owned(), known_hosts: known_hosts.to_owned(), user: "buildbot".to_owned() }
    }

    #[test]
    fn the_command_that_gets_a_person_in_is_one_line_for_a_shell() {
        let check = |key: &str, known_hosts: &str, expected: &str| {
            assert_eq!(command(Path::new(key), Path::new(known_hosts)).line(), expected);
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
        std::fs::write(&key, "").expect("written");
        let line = command(&key, &known_hosts).line().replacen("ssh ", "ssh -F none -G ", 1);
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
