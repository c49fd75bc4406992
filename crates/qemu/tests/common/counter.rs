//! Machines that can be frozen and restored, with a guest that counts.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use qemu::{
    Accelerator, Base, Boot, Drive, Durability, Files, Format, FreezeError, Machine, Memory, Network, Outside, Qemu,
    RestoreError, Vm,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::common::{DEADLINE, qemu, within};

/// A directory with a bootable disk, in which a template and its clones are made.
pub struct Workshop {
    directory: TempDir,
    pub qemu: Qemu,
}

/// A machine, and what its guest is talked to over.
pub struct Counter {
    pub vm: Vm,
    line: UnixStream,
}

impl Workshop {
    pub async fn new() -> Self {
        Self::with(qemu().await).await
    }

    pub async fn with(qemu: Qemu) -> Self {
        let directory = tempfile::Builder::new().prefix("templates, 1 ").tempdir().expect("a temporary directory");
        let mut disk = GUEST.to_vec();
        disk.resize(510, 0);
        disk.extend([0x55, 0xaa]);
        let file = directory.path().join("base.img");
        fs::write(&file, disk).expect("written");
        File::options().write(true).open(&file).expect("it is there").set_len(64 << 20).expect("made larger");
        let workshop = Workshop { directory, qemu };
        let base = Base { file, format: Format::Raw };
        workshop.qemu.create_overlay(&base, &workshop.disk("template")).await.expect("created");
        workshop
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn disk(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.qcow2"))
    }

    pub fn memory(&self) -> PathBuf {
        self.path("template.ram")
    }

    pub fn state(&self) -> PathBuf {
        self.path("template.state")
    }

    pub fn files(&self, name: &str) -> Files {
        let path = |suffix: &str| self.path(&format!("{name}.{suffix}"));
        Files { pidfile: path("pid"), qmp_socket: path("qmp"), console_log: path("log") }
    }

    fn line(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.line"))
    }

    /// Describes a machine whose guest calls us once it is there.
    pub fn machine(&self, name: &str, memory: Memory) -> Machine {
        let line = format!("socket,id=line,path={}", self.line(name).to_string_lossy().replace(',', ",,"));
        let extra = ["-chardev", &line, "-device", "isa-serial,index=1,chardev=line"];
        Machine {
            name: name.to_owned(),
            machine_type: "q35".to_owned(),
            accelerator: Accelerator::Tcg,
            cpu: None,
            cpus: 1,
            memory_mib: 16,
            memory,
            boot: Boot::Disk,
            drives: vec![Drive { file: self.disk(name), format: Format::Qcow2, durability: Durability::Disposable }],
            network: Network { host_port: 0, guest_port: 22, outside: Outside::Closed },
            extra_args: extra.map(str::to_owned).to_vec(),
        }
    }

    pub fn template(&self) -> Machine {
        self.machine("template", Memory::Shared { file: self.memory() })
    }

    pub fn clone_of_template(&self, name: &str) -> Machine {
        self.machine(name, Memory::Private { file: self.memory() })
    }

    pub fn listen(&self, name: &str) -> UnixListener {
        UnixListener::bind(self.line(name)).expect("it listens")
    }

    /// Boots a machine.
    pub async fn boot(&self, machine: &Machine) -> Counter {
        let listener = self.listen(&machine.name);
        let vm = within(Vm::start(&self.qemu, machine, self.files(&machine.name))).await.expect("it starts");
        let (line, _) = within(listener.accept()).await.expect("qemu connects");
        let mut counter = Counter { vm, line };
        assert_eq!(counter.hears().await, b's');
        counter
    }

    /// Freezes a machine, and gives its files the rights a template's have.
    pub async fn freeze(&self, vm: &Vm) -> Result<(), FreezeError> {
        let state = File::create(self.state()).expect("made");
        vm.freeze(state, DEADLINE).await?;
        for (file, mode) in
            [(self.state(), 0o400), (self.disk("template"), 0o400), (self.memory(), self.qemu.features().memory_mode())]
        {
            fs::set_permissions(file, fs::Permissions::from_mode(mode)).expect("set");
        }
        Ok(())
    }

    /// Makes a template whose guest has counted to 2.
    pub async fn frozen(&self) {
        let mut template = self.boot(&self.template()).await;
        template.counts(&["1", "2"]).await;
        self.freeze(&template.vm).await.expect("it is frozen");
    }

    /// Restores a machine on a new overlay.
    pub async fn restore(&self, machine: &Machine) -> Result<Counter, RestoreError> {
        let listener = self.listen(&machine.name);
        let vm = within(self.restore_with(machine)).await?;
        let (line, _) = within(listener.accept()).await.expect("qemu has connected");
        Ok(Counter { vm, line })
    }

    /// Restores a machine on a new overlay, for somebody who listens for it.
    pub async fn restore_with(&self, machine: &Machine) -> Result<Vm, RestoreError> {
        let base = Base { file: self.disk("template"), format: Format::Qcow2 };
        self.qemu.create_overlay(&base, &self.disk(&machine.name)).await.expect("created");
        let state = File::open(self.state()).expect("it is there");
        Vm::restore(&self.qemu, machine, self.files(&machine.name), state).await
    }

    /// Reads what clones must not change.
    pub fn contents(&self) -> [Vec<u8>; 3] {
        [self.memory(), self.state(), self.disk("template")].map(|file| fs::read(file).expect("readable"))
    }
}

impl Counter {
    pub async fn hears(&mut self) -> u8 {
        within(self.line.read_u8()).await.expect("the guest says something")
    }

    pub async fn say(&mut self, byte: u8) {
        within(self.line.write_all(&[byte])).await.expect("the guest can be talked to");
    }

    /// Has the guest count, and checks what it says.
    pub async fn counts(&mut self, expected: &[&str]) {
        for number in expected {
            self.say(b'c').await;
            assert_eq!(char::from(self.hears().await).to_string(), *number);
        }
    }

    /// Has the guest write a sector where it has not written before.
    pub async fn writes(&mut self) {
        self.say(b'w').await;
        assert_eq!(char::from(self.hears().await), 'w');
    }
}

/// A boot sector for address 0x7c00. Over the second serial port it says that it is there, and then answers each byte: `w`
/// by writing a sector 64 KiB behind the last one, `p` not at all, as it has the panic device stop the machine, and any
/// other by counting on.
#[rustfmt::skip]
const GUEST: &[u8] = &[
    0xfa,                               // cli
    0xfc,                               // cld
    0x31, 0xc0,                         // xorw %ax, %ax
    0x8e, 0xd8,                         // movw %ax, %ds
    0x8e, 0xd0,                         // movw %ax, %ss
    0xbc, 0x00, 0x7c,                   // movw $0x7c00, %sp
    0x88, 0x16, 0x55, 0x7c,             // movb %dl, drive
    0xb0, 0x73,                         // movb $'s', %al
    // say:
    0xba, 0xf8, 0x02,                   // movw $0x2f8, %dx
    0xee,                               // outb %al, %dx
    // wait:
    0xba, 0xfd, 0x02,                   // movw $0x2fd, %dx
    0xec,                               // inb %dx, %al
    0xa8, 0x01,                         // testb $1, %al
    0x74, 0xf8,                         // jz wait
    0xba, 0xf8, 0x02,                   // movw $0x2f8, %dx
    0xec,                               // inb %dx, %al
    0x3c, 0x77,                         // cmpb $'w', %al
    0x74, 0x0d,                         // je write
    0x3c, 0x70,                         // cmpb $'p', %al
    0x74, 0x24,                         // je panic
    0xfe, 0x06, 0x56, 0x7c,             // incb counter
    0xa0, 0x56, 0x7c,                   // movb counter, %al
    0xeb, 0xdf,                         // jmp say
    // write:
    0x81, 0x06, 0x5f, 0x7c, 0x80, 0x00, // addw $128, lba
    0xbe, 0x57, 0x7c,                   // movw $packet, %si
    0xb4, 0x43,                         // movb $0x43, %ah
    0x30, 0xc0,                         // xorb %al, %al
    0x8a, 0x16, 0x55, 0x7c,             // movb drive, %dl
    0xcd, 0x13,                         // int $0x13
    0xb0, 0x77,                         // movb $'w', %al
    0x73, 0xc8,                         // jnc say
    0xb0, 0x65,                         // movb $'e', %al
    0xeb, 0xc4,                         // jmp say
    // panic:
    0xba, 0x05, 0x05,                   // movw $0x505, %dx
    0xb0, 0x01,                         // movb $1, %al
    0xee,                               // outb %al, %dx
    0xeb, 0xc0,                         // jmp wait
    // drive, counter, and the packet of int 0x13: its size, sectors, where from, where to.
    0x00, b'0',
    0x10, 0x00, 0x01, 0x00, 0x00, 0x7c, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];
