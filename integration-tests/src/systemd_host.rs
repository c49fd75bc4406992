//! A host with a real systemd that has the worker as a service: a guest of ours, in software emulation.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::artefacts::{repository, systemd_image_file, worker_binary};
use crate::machine_times;
use crate::scratch::Scratch;
use crate::{Daemon, Master, Ports, WITH_GUESTS};

/// How long the guest may take to boot, on a loaded machine; 16 s on an idle one.
const BOOT: Duration = Duration::from_secs(300);

/// Where the guest finds services of the machine it runs on (QEMU's user network).
const OUTER_HOST: &str = "10.0.2.2";

/// A running guest with the worker's program, units and user, but without a worker. It ends with the value.
#[derive(Debug)]
pub struct SystemdHost {
    /// The session that each command has a channel of; before the guest, so that it ends first.
    session: Daemon,
    _guest: Daemon,
    ports: Ports,
    directory: Scratch,
}

impl SystemdHost {
    /// Boots the guest and installs the worker, as the manual says.
    pub fn install() -> Result<SystemdHost> {
        let directory = Scratch::new("systemd")?;
        let ports = Ports::reserve()?;
        let guest = boot(directory.path(), ports.get(0))?;
        let begun = Instant::now();
        // What comes last is not always shown: systemd is silent once there is a login prompt.
        guest.transcript().find("login:", BOOT).context("wait for systemd in the guest")?;
        let session = loop {
            match log_in(directory.path(), ports.get(0)) {
                Err(error) if begun.elapsed() > BOOT => return Err(error),
                Err(_) => thread::sleep(Duration::from_secs(1)),
                Ok(session) => break session,
            }
        };
        let host = SystemdHost { session, _guest: guest, ports, directory };
        // It ends with 124 when its own time is over, and with another status if some unit failed.
        while host.try_run("systemctl is-system-running --wait")?.status.code() == Some(124) {
            ensure!(begun.elapsed() < BOOT, "systemd is not done with the boot");
        }
        machine_times::note("boot", &begun.elapsed().as_secs_f64().to_string());
        host.copy_worker()?;
        host.run("systemd/install ./kvm-worker").context(
            "install the worker in the guest; if it asks for a newer C library there, build it on Debian 12 and set \
             KVM_WORKER_BIN",
        )?;
        Ok(host)
    }

    /// Configures a worker of a name, as root does: it gives its password by a credential, and speaks with a master.
    pub fn configure(&self, name: &str, master: &Master) -> Result<()> {
        let url = master.url().replace("127.0.0.1", OUTER_HOST);
        let (worker, password) = (Master::WORKER, Master::PASSWORD);
        let configuration = format!(
            "[worker]\nname = \"{worker}\"\nmaster = \"{url}\"\npassword_credential = \"password\"\n\
             basedir = \"/var/lib/kvm-worker/{name}\"\n[connection]\nretry_max = 2\n"
        );
        self.write(&format!("/etc/kvm-worker/{name}.toml"), &configuration)?;
        self.run(&format!("umask 077; echo '{password}' >/etc/kvm-worker/{name}.password")).map(drop)
    }

    /// Writes a file, and the directories above it.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        ensure!(!text.contains('\''), "a text without apostrophes");
        self.run(&format!("mkdir -p \"$(dirname {path})\"; printf %s '{text}' >{path}")).map(drop)
    }

    /// Runs a command as root, which has to succeed; gives what it prints.
    pub fn run(&self, command: &str) -> Result<String> {
        let output = self.try_run(command)?;
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        if !output.status.success() {
            bail!("{command}: {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(text)
    }

    /// Runs a command as root, however it ends.
    pub fn try_run(&self, command: &str) -> Result<Output> {
        let mut ssh = self.ssh();
        // One that hangs, such as a start that is never done, ends with an error.
        ssh.arg(format!(
            "sudo timeout {} sh -ec {}",
            WITH_GUESTS.as_secs(),
            quoted(&format!("cd /opt/kvm-worker; {command}"))
        ));
        ssh.stdin(Stdio::null()).output().with_context(|| format!("run in the guest: {command}"))
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, property: &str) -> Result<String> {
        self.run(&format!("systemctl show --value --property {property} {unit}"))
    }

    /// Waits until a property of a unit has a part, and gives it.
    pub fn until(&self, unit: &str, property: &str, part: &str) -> Result<String> {
        let show = format!("systemctl show --value --property {property} {unit}");
        // Nothing short of a bus client of one's own tells of it.
        let look = format!("until {show} | grep -F {}; do sleep 0.2; done", quoted(part));
        self.run(&look).with_context(|| match (self.run(&show), self.journal(unit)) {
            (Ok(value), Ok(journal)) => {
                format!("{property} of {unit} is {value:?}, without {part:?}; its journal:\n{journal}")
            }
            _ => format!("{property} of {unit} does not get {part:?}"),
        })
    }

    /// What a unit and systemd said about it.
    pub fn journal(&self, unit: &str) -> Result<String> {
        self.run(&format!("journalctl --no-pager --output cat --unit {unit}"))
    }

    fn copy_worker(&self) -> Result<()> {
        let program = self.directory.path().join("kvm-worker");
        // What debuggers want is most of it.
        let stripped = Command::new("strip").arg("-o").arg(&program).arg(worker_binary()?).status();
        ensure!(stripped.context("run strip, of binutils")?.success(), "strip failed");
        let mut pack = Command::new("tar")
            .arg("-C")
            .arg(self.directory.path())
            .args(["--create", "kvm-worker", "-C"])
            .arg(repository().join("contrib"))
            .arg("systemd")
            .stdout(Stdio::piped())
            .spawn()
            .context("run tar")?;
        let packed = pack.stdout.take().context("what tar packs")?;
        let unpack = "sudo sh -ec 'mkdir /opt/kvm-worker; tar -C /opt/kvm-worker --no-same-owner -x'";
        let copied = self.ssh().arg(unpack).stdin(packed).output().context("copy the worker into the guest")?;
        ensure!(pack.wait()?.success(), "tar failed");
        ensure!(copied.status.success(), "copy the worker: {}", String::from_utf8_lossy(&copied.stderr));
        Ok(())
    }

    fn ssh(&self) -> Command {
        ssh(self.directory.path(), self.ports.get(0))
    }

    /// What the ssh session complained of, for a test that failed.
    pub fn complaints(&self) -> String {
        self.session.transcript().text()
    }
}

fn boot(directory: &Path, ssh_port: u16) -> Result<Daemon> {
    let image = |name: &str| systemd_image_file(name);
    let overlay = directory.join("overlay.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(image("debian-systemd.qcow2")?)
        .arg(&overlay)
        .status();
    ensure!(made.context("run qemu-img")?.success(), "qemu-img failed");
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-machine", "q35", "-cpu", "max", "-smp", "2", "-m", "512"]);
    qemu.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-device", "virtio-rng-pci"]);
    qemu.arg("-kernel").arg(image("vmlinuz")?).arg("-initrd").arg(image("initrd.img")?);
    qemu.args(["-append", "root=/dev/vda console=ttyS0 no_timer_check"]);
    qemu.arg("-drive").arg(format!("if=virtio,format=qcow2,file={}", overlay.display()));
    qemu.arg("-netdev").arg(format!("user,id=n,hostfwd=tcp:127.0.0.1:{ssh_port}-:22"));
    qemu.args(["-device", "virtio-net-pci,netdev=n"]);
    Daemon::spawn("guest", &mut qemu, Some(20))
}

/// Opens the session that all commands share: a login takes an emulated processor seconds.
fn log_in(directory: &Path, port: u16) -> Result<Daemon> {
    let host_key = fs::read_to_string(systemd_image_file("host_key.pub")?).context("read the guest's host key")?;
    let known = format!("[127.0.0.1]:{port} {}\n", host_key.trim());
    fs::write(directory.join("known_hosts"), known).context("write known_hosts")?;
    let mut command = ssh(directory, port);
    command.args([
        "-o",
        "ControlMaster=yes",
        "-o",
        "PermitLocalCommand=yes",
        "-o",
        "LocalCommand=echo logged in",
        "-N",
    ]);
    let session = Daemon::spawn("ssh", &mut command, Some(20))?;
    session.transcript().find("logged in", WITH_GUESTS).context("log in to the guest")?;
    Ok(session)
}

fn ssh(directory: &Path, port: u16) -> Command {
    let option = |name: &str, value: PathBuf| format!("{name}={}", value.display());
    let mut command = Command::new("ssh");
    command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30", "-o", "LogLevel=ERROR"]);
    command.arg("-o").arg(option("ControlPath", directory.join("session")));
    command.arg("-o").arg(option("UserKnownHostsFile", directory.join("known_hosts")));
    if let Ok(key) = systemd_image_file("id_ed25519") {
        command.arg("-i").arg(key);
    }
    command.args(["-p", &port.to_string(), "buildbot@127.0.0.1"]);
    command
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
