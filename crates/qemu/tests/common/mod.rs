//! A slot's files, and a guest of one sector that real QEMU runs.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use process::Signal;
use qemu::{
    Accelerator, Boot, Drive, Durability, Files, Format, Identity, Machine, Memory, Network, Outside, Qemu, Vm,
};
use rustix::process::{Pid, kill_process};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::time::timeout;

/// Far more than anything here needs: a test that reaches it has failed.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// For what is expected to time out.
pub const SHORT: Duration = Duration::from_millis(200);

/// The program every machine here runs.
pub const SYSTEM: &str = "qemu-system-x86_64";

pub async fn qemu() -> Qemu {
    Qemu::probe(SYSTEM, "qemu-img").await.expect("QEMU is installed: scripts/setup packages")
}

/// Bounds a test's wait.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.expect("it happens in time")
}

/// A directory like that of a slot, with a bootable disk in it.
pub struct Slot {
    directory: TempDir,
    guest: UnixListener,
}

impl Slot {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("slot, 1 ").tempdir().expect("a temporary directory");
        let guest = UnixListener::bind(directory.path().join("guest")).expect("it listens");
        let mut disk = GUEST.to_vec();
        disk.resize(510, 0);
        disk.extend([0x55, 0xaa]);
        disk.resize(1 << 20, 0);
        fs::write(directory.path().join("disk.img"), disk).expect("written");
        Slot { directory, guest }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn files(&self) -> Files {
        Files {
            pidfile: self.path("qemu.pid"),
            qmp_socket: self.path("qmp.sock"),
            console_log: self.path("console.log"),
        }
    }

    pub fn machine(&self) -> Machine {
        let guest = self.path("guest").to_string_lossy().replace(',', ",,");
        let extra =
            ["-chardev", &format!("socket,id=guest,path={guest}"), "-device", "isa-debugcon,iobase=0xe9,chardev=guest"];
        Machine {
            name: "test".to_owned(),
            machine_type: "q35".to_owned(),
            accelerator: Accelerator::Tcg,
            cpu: None,
            cpus: 1,
            memory_mib: 16,
            memory: Memory::Own,
            boot: Boot::Disk,
            drives: vec![Drive {
                file: self.path("disk.img"),
                format: Format::Raw,
                durability: Durability::Disposable,
            }],
            // Port 0 has the system choose one that is free.
            network: Network { host_port: 0, guest_port: 22, outside: Outside::Closed },
            extra_args: extra.map(str::to_owned).to_vec(),
        }
    }

    pub async fn start(&self) -> Vm {
        within(Vm::start(&qemu().await, &self.machine(), self.files())).await.expect("it starts")
    }

    /// Waits until the guest says that it is up.
    pub async fn guest_is_up(&self) -> Result<(), String> {
        let (mut connection, _) = self.guest.accept().await.map_err(|error| error.to_string())?;
        match connection.read_u8().await {
            Ok(b's') => Ok(()),
            other => Err(format!("the guest said {other:?}")),
        }
    }

    /// Starts the machine and waits until the guest is up.
    pub async fn boot(&self) -> Vm {
        let vm = self.start().await;
        vm.boot(self.guest_is_up(), DEADLINE).await.expect("the guest boots");
        vm
    }

    /// Names what of a machine is left, besides its disk and its log.
    pub fn remains(&self) -> Vec<String> {
        let names = fs::read_dir(self.directory.path()).expect("it is there");
        let names = names.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.filter(|name| !["disk.img", "guest", "console.log"].contains(&&**name)).collect();
        names.sort();
        names
    }
}

/// Writes an executable script.
pub fn script(path: &Path, text: &str) {
    fs::write(path, text).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("made executable");
}

/// Sends a signal to a process that is known to be there.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a process id")).expect("not 0");
    let signal = rustix::process::Signal::from_named_raw(signal as i32).expect("a signal");
    kill_process(pid, signal).expect("it is there");
}

/// Waits until a process is gone.
pub async fn gone(identity: &Identity) {
    if let Some(process) = identity.hold().expect("no error") {
        within(process.exited()).await;
    }
}

/// A boot sector for address 0x7c00. It writes a line to the serial port and a byte to the debug port, and turns the
/// machine off when its power button is pressed. The ports from 0x600 are where the firmware puts power management on q35.
#[rustfmt::skip]
const GUEST: &[u8] = &[
    0xfa,                   // cli
    0x31, 0xc0,             // xorw %ax, %ax
    0x8e, 0xd8,             // movw %ax, %ds
    0xfc,                   // cld
    0xbe, 0x32, 0x7c,       // movw $text, %si
    0xba, 0xf8, 0x03,       // movw $0x3f8, %dx
    0xac,                   // 1: lodsb
    0x84, 0xc0,             // testb %al, %al
    0x74, 0x03,             // jz 2f
    0xee,                   // outb %al, %dx
    0xeb, 0xf8,             // jmp 1b
    0xba, 0x02, 0x06,       // 2: movw $0x602, %dx     which events are wanted: the power button
    0xb8, 0x00, 0x01,       // movw $0x100, %ax
    0xef,                   // outw %ax, %dx
    0xb0, b's',             // movb $'s', %al
    0xe6, 0xe9,             // outb %al, $0xe9
    0xba, 0x00, 0x06,       // movw $0x600, %dx     which have happened
    0xed,                   // 3: inw %dx, %ax
    0xa9, 0x00, 0x01,       // testw $0x100, %ax
    0x74, 0xfa,             // jz 3b
    0xba, 0x04, 0x06,       // movw $0x604, %dx     sleep, in the state "off"
    0xb8, 0x00, 0x20,       // movw $0x2000, %ax
    0xef,                   // outw %ax, %dx
    0xf4,                   // 4: hlt
    0xeb, 0xfd,             // jmp 4b
    // text:
    b'g', b'u', b'e', b's', b't', b':', b' ', 0x1b, b'[', b'1', b'm', b'u', b'p', 0x1b, b'[', b'0', b'm', b'\r', b'\n', 0,
];
