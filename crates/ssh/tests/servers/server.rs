//! A real ssh server for one test, of this crate and of others.
//!
//! The test listens; for each connection it starts the server in its inetd mode with the socket as standard input, so no
//! port is guessed, nothing is polled, and a server lives exactly as long as its connection.

use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use ssh::{Dialect, HostKey, HostKeyPolicy, Identity, Processor, Session, Target, Timing};
use tempfile::TempDir;

/// Which server, and what it finds along its `PATH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    OpenSsh,
    /// Needs root, for a mount namespace in which the login directory is a temporary one.
    Dropbear,
    /// OpenSSH in a guest whose tools are busybox's.
    Busybox,
}

pub const ALL: [Kind; 3] = [Kind::OpenSsh, Kind::Dropbear, Kind::Busybox];

pub struct Server {
    pub dir: TempDir,
    pub address: SocketAddr,
    children: Arc<Mutex<Vec<Child>>>,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(kind: Kind) -> Self {
        Self::with(kind, "")
    }

    /// Starts a server with further lines for `sshd_config`, which go before the others: of a setting the first counts.
    pub fn with(kind: Kind, config: &str) -> Self {
        let dir = tempfile::tempdir().expect("make a directory");
        for (name, algorithm) in [("host_ed25519", "ed25519"), ("host_ecdsa", "ecdsa"), ("user", "ed25519")] {
            keygen(&dir.path().join(name), algorithm, "");
        }
        let command: Arc<dyn Fn() -> Command + Send + Sync> = match kind {
            Kind::OpenSsh => openssh(dir.path(), config),
            Kind::Busybox => {
                let path = busybox(&dir.path().join("bin"));
                openssh(dir.path(), &format!("SetEnv PATH={}\n{config}", path.display()))
            }
            Kind::Dropbear => dropbear(dir.path()),
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen on loopback");
        let address = listener.local_addr().expect("a bound address");
        let (children, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let log = File::create(dir.path().join("log")).expect("make a log");
        let acceptor = std::thread::spawn({
            let (children, stop) = (Arc::clone(&children), Arc::clone(&stop));
            move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let stream = OwnedFd::from(stream.expect("accept a connection"));
                    let child = command()
                        .stdin(stream.try_clone().expect("duplicate a socket"))
                        .stdout(stream)
                        .stderr(log.try_clone().expect("duplicate the log"))
                        .spawn()
                        .expect("start the server");
                    children.lock().expect("no test panics with it").push(child);
                }
            }
        });
        Self { dir, address, children, stop, acceptor: Some(acceptor) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn host_key(&self, kind: &str) -> HostKey {
        let line = fs::read_to_string(self.path(&format!("host_{kind}.pub"))).expect("read the host key");
        line.parse().expect("a host key")
    }

    pub fn target(&self) -> Target {
        Target {
            address: self.address,
            user: whoami(),
            identity: Identity::load(&self.path("user")).expect("a private key"),
            host_key: HostKeyPolicy::Pinned(self.host_key("ed25519")),
            dialect: Dialect::LINUX,
            processor: Processor::Real,
        }
    }

    pub async fn session(&self) -> Session {
        self.session_with(&Timing::default()).await
    }

    pub async fn session_in(&self, dialect: Dialect) -> Session {
        let target = Target { dialect, ..self.target() };
        Session::connect(&target, &Timing::default()).await.expect("a session")
    }

    pub async fn session_with(&self, timing: &Timing) -> Session {
        match Session::connect(&self.target(), timing).await {
            Ok(session) => session,
            Err(error) => panic!("{error}; the server says:\n{}", self.log()),
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).expect("read the log")
    }

    /// How many connections there have been.
    #[allow(dead_code, reason = "other crates' tests have this file, too")]
    pub fn connections(&self) -> usize {
        self.children.lock().expect("no test panics with it").len()
    }

    /// Waits until the servers of all connections so far have ended by themselves.
    pub async fn ended(&self) {
        let children = Arc::clone(&self.children);
        let waiting = tokio::task::spawn_blocking(move || {
            for child in children.lock().expect("no test panics with it").iter_mut() {
                child.wait().expect("wait for the server");
            }
        });
        let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
        waited.expect("the servers end").expect("no panic");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the acceptor up.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for child in self.children.lock().expect("no test panics with it").iter_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub fn keygen(path: &Path, algorithm: &str, passphrase: &str) {
    run(Command::new("ssh-keygen").args(["-q", "-t", algorithm, "-N", passphrase, "-f"]).arg(path));
}

pub fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).status().unwrap_or_else(|error| missing(command, &error));
    assert!(status.success(), "{command:?}: {status}");
}

fn missing(command: &Command, error: &std::io::Error) -> ! {
    panic!("{command:?}: {error}: install what the tests need with scripts/setup packages")
}

/// Fails unless a program is installed.
fn installed(path: &str) -> &str {
    match fs::metadata(path) {
        Ok(_) => path,
        Err(error) if error.kind() == ErrorKind::NotFound => missing(&Command::new(path), &error),
        Err(error) => panic!("{path}: {error}"),
    }
}

pub fn whoami() -> String {
    let output = Command::new("id").arg("-un").output().expect("run id");
    String::from_utf8(output.stdout).expect("a user's name").trim().to_owned()
}

fn is_root() -> bool {
    whoami() == "root"
}

fn openssh(dir: &Path, config: &str) -> Arc<dyn Fn() -> Command + Send + Sync> {
    let sshd = installed("/usr/sbin/sshd");
    if is_root() {
        // Without it sshd refuses to start as root.
        fs::create_dir_all("/run/sshd").expect("make /run/sshd");
    }
    let file = dir.join("sshd_config");
    let here = dir.display();
    let text = format!(
        "{config}\nHostKey {here}/host_ed25519\nHostKey {here}/host_ecdsa\nAuthorizedKeysFile {here}/user.pub\nStrictModes no\n\
         UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nLogLevel VERBOSE\n"
    );
    fs::write(&file, text).expect("write sshd_config");
    Arc::new(move || {
        let mut command = Command::new(sshd);
        command.args(["-i", "-e", "-f"]).arg(&file);
        command
    })
}

/// Makes a directory with links to busybox for all that it can be, and nothing else.
pub fn busybox(bin: &Path) -> PathBuf {
    let busybox = installed("/usr/bin/busybox");
    fs::create_dir(bin).expect("make a directory");
    let list = Command::new(busybox).arg("--list").output().expect("run busybox");
    for name in String::from_utf8(list.stdout).expect("a list of names").lines() {
        symlink(busybox, bin.join(name)).expect("make a link");
    }
    bin.to_owned()
}

fn dropbear(dir: &Path) -> Arc<dyn Fn() -> Command + Send + Sync> {
    installed("/usr/sbin/dropbear");
    assert!(is_root(), "the tests with dropbear need root: it reads authorized_keys from the login directory alone");
    let home = dir.join("home");
    fs::create_dir_all(home.join(".ssh")).expect("make a directory");
    fs::set_permissions(&home, Permissions::from_mode(0o700)).expect("chmod");
    fs::copy(dir.join("user.pub"), home.join(".ssh/authorized_keys")).expect("copy the key");
    for name in ["ed25519", "ecdsa"] {
        let (from, to) = (dir.join(format!("host_{name}")), dir.join(format!("dropbear_{name}")));
        let mut convert = Command::new("/usr/bin/dropbearconvert");
        run(convert.args(["openssh", "dropbear"]).arg(from).arg(to).stdout(Stdio::null()).stderr(Stdio::null()));
    }
    let dir = dir.to_owned();
    Arc::new(move || {
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$1/home\" ~ && exec /usr/sbin/dropbear -i -r \"$1/dropbear_ed25519\" -r \"$1/dropbear_ecdsa\"";
        command.args(["-m", "sh", "-c", script, "sh"]).arg(&dir);
        command
    })
}
