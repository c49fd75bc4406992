//! A git repository that only those get who have the key, by ssh, or the password, by HTTP.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::artefacts::{in_venv, repository};
use crate::repository::{example, git};
use crate::scratch::Scratch;
use crate::{Daemon, Ports, SOON};

const SSH: u16 = 0;
const HTTP: u16 = 1;

const USER: &str = "somebody";
const PASSWORD: &str = "not: a / secret@";

/// An `sshd` and a web server on loopback with one bare repository, `hello.git`. Both end with the value.
#[derive(Debug)]
pub struct PrivateRepository {
    _daemons: [Daemon; 2],
    ports: Ports,
    directory: Scratch,
}

impl PrivateRepository {
    /// Makes the repository, with one commit on the branch `main`, and serves it.
    pub fn serve() -> Result<PrivateRepository> {
        let directory = Scratch::new("private")?;
        let here = directory.path();
        let work = example(here)?;
        let bare = here.join("hello.git");
        git(here, &["clone", "--quiet", "--bare", &work.display().to_string(), &bare.display().to_string()])?;
        git(&bare, &["config", "http.receivepack", "true"])?;
        for name in ["host", "user"] {
            run(Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "a test", "-f"])
                .arg(here.join(name)))?;
        }
        let ports = Ports::reserve()?;
        let daemons = [sshd(here, ports.get(SSH))?, web_server(here, ports.get(HTTP))?];
        Ok(PrivateRepository { _daemons: daemons, ports, directory })
    }

    /// What one has to know to get it from a host that has this one's loopback at an address: `ssh`, `http`, `key`, `known_hosts`
    /// and `credentials`.
    pub fn seen_at(&self, address: &str) -> Result<Value> {
        let read =
            |name: &str| fs::read_to_string(self.directory.path().join(name)).with_context(|| format!("read {name}"));
        let [ssh, http] = [SSH, HTTP].map(|place| self.ports.get(place));
        let repository = self.directory.path().join("hello.git");
        Ok(json!({
            "ssh": format!("ssh://{}@{address}:{ssh}{}", whoami()?, repository.display()),
            "http": format!("http://{address}:{http}/hello.git"),
            "key": read("user")?,
            "known_hosts": format!("[{address}]:{ssh} {}", read("host.pub")?),
            "credentials": [USER, PASSWORD],
        }))
    }

    /// The file with the key that opens it.
    pub fn key(&self) -> PathBuf {
        self.directory.path().join("user")
    }

    /// What `git` says of the repository.
    pub fn git(&self, arguments: &[&str]) -> Result<String> {
        git(&self.directory.path().join("hello.git"), arguments)
    }
}

fn sshd(here: &Path, port: u16) -> Result<Daemon> {
    if whoami()? == "root" {
        // Without it sshd refuses to start as root.
        fs::create_dir_all("/run/sshd").context("make /run/sshd")?;
    }
    let (config, shown) = (here.join("sshd_config"), here.display());
    let text = format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey {shown}/host\nAuthorizedKeysFile {shown}/user.pub\nStrictModes no\nPidFile none\n\
         UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
    );
    fs::write(&config, text).context("write sshd_config")?;
    // It has to be called by its whole path, by which it starts itself again for each connection.
    let daemon = Daemon::spawn("sshd", Command::new("/usr/sbin/sshd").args(["-D", "-e", "-f"]).arg(&config), Some(20))?;
    daemon.transcript().find("Server listening on", SOON).context("start sshd")?;
    Ok(daemon)
}

fn web_server(here: &Path, port: u16) -> Result<Daemon> {
    let mut command = Command::new(in_venv("python")?);
    command.arg(repository().join("integration-tests/master/private_http.py"));
    command.arg(port.to_string()).arg(here).args([USER, PASSWORD]);
    let daemon = Daemon::spawn("http", &mut command, Some(20))?;
    daemon.transcript().find("serving", SOON).context("start the web server")?;
    Ok(daemon)
}

fn whoami() -> Result<String> {
    let output = Command::new("id").arg("-un").output().context("run id")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
