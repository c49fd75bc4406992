//! From a [`Machine`] to QEMU's arguments.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::{Accelerator, Boot, Card, Drive, Durability, Features, Machine, Memory, Network, Outside};

/// What connects a machine to its host, apart from its disks and network.
#[derive(Clone, Copy, Debug)]
pub struct Wiring<'a> {
    /// The number QEMU inherits the listening QMP socket under. A socket that listens before QEMU starts can be connected
    /// to at once, and nobody has to wait for a file to appear.
    pub qmp: RawFd,
    /// The file that gets what the guest writes to its first serial port. Truncated by QEMU.
    pub console_log: &'a Path,
    /// Its card on a private network, if it is on one.
    pub card: Option<Card>,
}

impl Machine {
    /// Returns QEMU's arguments for this machine, without the program's name. Pure. Works with QEMU 7.2 to 10.0.
    pub fn arguments(&self, features: &Features, wiring: Wiring<'_>) -> Vec<OsString> {
        let mut list = List::default();
        list.option("-name", Value::new("guest=").text(&self.name));
        // No devices, files or windows but those named here.
        list.flag("-no-user-config");
        list.flag("-nodefaults");
        list.option("-display", Value::new("none"));
        if features.sandbox {
            list.option("-sandbox", Value::new(SANDBOX));
        }
        self.processor_and_memory(&mut list, features);
        self.boot(&mut list);
        for (number, drive) in self.drives.iter().enumerate() {
            self.drive(&mut list, number, drive);
        }
        self.network(&mut list);
        if let Some(card) = wiring.card {
            self.card(&mut list, card);
        }
        if features.rng {
            list.option("-object", Value::new("rng-random,id=rng0,filename=/dev/urandom"));
            list.option("-device", self.virtio("rng").then(",rng=rng0"));
        }
        // It is in memory that the firmware sets aside, and there is none for it without PCI.
        if features.vmgenid && self.has_pci() && self.memory != Memory::Own {
            list.option("-device", Value::new("vmgenid,guid=auto"));
        }
        // Else a guest that panics would turn the machine off, and nobody could say why.
        list.option("-action", Value::new("panic=pause"));
        if features.pvpanic && self.is_pc() && !self.has_pvpanic() {
            list.option("-device", Value::new("pvpanic"));
        }
        list.option("-chardev", Value::new("file,id=console,append=off,path=").text(wiring.console_log));
        list.option("-serial", Value::new("chardev:console"));
        list.option("-chardev", Value::new(format!("socket,id=qmp,server=on,wait=off,fd={}", wiring.qmp)));
        list.option("-mon", Value::new("chardev=qmp,mode=control"));
        list.args.extend(self.extra_args.iter().map(OsString::from));
        list.args
    }

    /// Returns the arguments without what may differ between a frozen machine and those that are restored from it: the
    /// name, the port on the host, where the disks, the memory and the console's log are, and what QEMU inherits. Two
    /// machines with the same blueprint, run by the same [program](crate::Qemu::program), have the same devices in the same
    /// places.
    ///
    /// A machine type may be an alias: `q35` is another type with each release of QEMU. Which one it is needs no
    /// looking up, as long as the program is compared as well. What is in the files that are named (the kernel, the
    /// disks) is not part of it.
    pub fn blueprint(&self, features: &Features) -> Vec<OsString> {
        let nowhere = PathBuf::new;
        let drives = self.drives.iter().map(|drive| Drive { file: nowhere(), ..drive.clone() });
        let neutral = Machine {
            name: String::new(),
            memory: Memory::Shared { file: nowhere() },
            drives: drives.collect(),
            network: Network { host_port: 0, ..self.network },
            ..self.clone()
        };
        neutral.arguments(features, Wiring { qmp: 0, console_log: &nowhere(), card: None })
    }

    fn processor_and_memory(&self, list: &mut List, features: &Features) {
        let default_cpu = match self.accelerator {
            Accelerator::Kvm => "host",
            Accelerator::Tcg => "max",
        };
        // These three are option strings themselves (`q35,smm=off`), so that their commas mean what they say.
        let machine = Value::new(&self.machine_type);
        match self.memory_backend(features) {
            None => list.option("-machine", machine),
            Some(backend) => {
                list.option("-object", backend);
                list.option("-machine", machine.then(",memory-backend=ram0"));
            }
        }
        list.option("-accel", Value::new(self.accelerator.name()));
        list.option("-cpu", Value::new(self.cpu.as_deref().unwrap_or(default_cpu)));
        list.option("-smp", Value::new(self.cpus.to_string()));
        list.option("-m", Value::new(format!("{}M", self.memory_mib)));
        if let Memory::Private { .. } = self.memory {
            list.option("-incoming", Value::new("defer"));
        }
    }

    fn memory_backend(&self, features: &Features) -> Option<Value> {
        let (file, access) = match &self.memory {
            Memory::Own => return None,
            Memory::Shared { file } => (file, "share=on"),
            // Without rom=off, what is opened for reading only is memory that the guest can't write to either. A QEMU that
            // has no rom= opens the file for writing, and writes nothing.
            Memory::Private { file } if features.rom => (file, "share=off,readonly=on,rom=off"),
            Memory::Private { file } => (file, "share=off"),
        };
        let size = self.memory_mib;
        Some(Value::new(format!("memory-backend-file,id=ram0,size={size}M,{access},mem-path=")).text(file))
    }

    fn boot(&self, list: &mut List) {
        if let Boot::Kernel { kernel, initrd, append } = &self.boot {
            // Not option strings: a comma is a comma here, except in -initrd, which lists modules for multiboot kernels
            // only.
            list.option("-kernel", Value::new(kernel));
            if let Some(initrd) = initrd {
                list.option("-initrd", Value::new(initrd));
            }
            list.option("-append", Value::new(append));
        }
    }

    fn drive(&self, list: &mut List, number: usize, drive: &Drive) {
        let no_flush = match drive.durability {
            Durability::Kept => "off",
            Durability::Disposable => "on",
        };
        let format = drive.format.name();
        // Unlike -drive file=, this never takes the beginning of a path for the name of a protocol.
        let node = format!("driver={format},node-name=disk{number},discard=unmap,cache.no-flush={no_flush}");
        list.option(
            "-blockdev",
            Value::new(node)
                .then(format!(",file.driver=file,file.node-name=disk{number}-file,file.filename="))
                .text(&drive.file),
        );
        let boot = if self.boot == Boot::Disk { format!(",bootindex={number}") } else { String::new() };
        list.option("-device", self.virtio("blk").then(format!(",drive=disk{number}")).then(boot));
    }

    fn network(&self, list: &mut List) {
        let Network { host_port, guest_port, outside } = self.network;
        let restrict = match outside {
            Outside::Open => "off",
            Outside::Closed => "on",
        };
        let forward = format!("hostfwd=tcp:127.0.0.1:{host_port}-:{guest_port}");
        list.option("-netdev", Value::new(format!("user,id=net0,restrict={restrict},{forward}")));
        list.option("-device", self.virtio("net").then(",netdev=net0").then(self.no_rom()));
    }

    /// After the card that leads to the host, so that this one's name in the guest does not depend on it.
    fn card(&self, list: &mut List, Card { fd, mac }: Card) {
        list.option("-netdev", Value::new(format!("dgram,id=net1,local.type=fd,local.str={fd}")));
        list.option("-device", self.virtio("net").then(format!(",netdev=net1,mac={mac}")).then(self.no_rom()));
    }

    /// Leaves out the option ROM, which is of no use but for booting from the network, and in a package of its own.
    fn no_rom(&self) -> &'static str {
        if self.has_pci() { ",romfile=" } else { "" }
    }

    /// Names a virtio device for the machine's bus.
    fn virtio(&self, kind: &str) -> Value {
        let bus = if self.has_pci() { "pci" } else { "device" };
        Value::new(format!("virtio-{kind}-{bus}"))
    }

    /// Whether it has what a PC has, an ISA bus among others.
    fn is_pc(&self) -> bool {
        let machine_type = self.machine_type.split(',').next().unwrap_or_default();
        ["q35", "pc"].contains(&machine_type) || machine_type.starts_with("pc-")
    }

    /// Whether the configuration gives it a panic device. QEMU takes no second one.
    fn has_pvpanic(&self) -> bool {
        self.extra_args.iter().any(|argument| argument.contains("pvpanic"))
    }

    fn has_pci(&self) -> bool {
        self.machine_type.split(',').next() != Some("microvm")
    }
}

/// Keeps QEMU from the system calls it has no use for once it runs: old ones, other users' rights, new processes, other
/// priorities.
pub(crate) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

#[derive(Default)]
struct List {
    args: Vec<OsString>,
}

impl List {
    fn flag(&mut self, name: &str) {
        self.args.push(name.into());
    }

    fn option(&mut self, name: &str, value: Value) {
        self.args.extend([name.into(), value.0]);
    }
}

/// An option's value in the making.
struct Value(OsString);

impl Value {
    fn new(syntax: impl AsRef<OsStr>) -> Self {
        Value(syntax.as_ref().to_owned())
    }

    /// Adds what QEMU is to read as syntax.
    fn then(mut self, syntax: impl AsRef<OsStr>) -> Self {
        self.0.push(syntax);
        self
    }

    /// Adds what QEMU is to take as it is, by doubling its commas.
    fn text(self, text: impl AsRef<OsStr>) -> Self {
        let bytes = text.as_ref().as_bytes();
        let doubled = bytes.iter().flat_map(|&byte| std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
        self.then(OsString::from_vec(doubled.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, Mac};

    const ALL: Features = Features { sandbox: true, rng: true, rom: true, vmgenid: true, pvpanic: true };

    fn machine() -> Machine {
        Machine {
            name: "slot-3".to_owned(),
            machine_type: "q35".to_owned(),
            accelerator: Accelerator::Kvm,
            cpu: None,
            cpus: 2,
            memory_mib: 1024,
            memory: Memory::Own,
            boot: Boot::Kernel {
                kernel: "/images/vmlinuz".into(),
                initrd: Some("/images/initrd.img".into()),
                append: "root=/dev/vda console=ttyS0,115200".to_owned(),
            },
            drives: vec![Drive {
                file: "/slots/3/overlay.qcow2".into(),
                format: Format::Qcow2,
                durability: Durability::Disposable,
            }],
            network: Network { host_port: 2225, guest_port: 22, outside: Outside::Open },
            extra_args: Vec::new(),
        }
    }

    fn wiring(console_log: &str) -> Wiring<'_> {
        Wiring { qmp: 7, console_log: Path::new(console_log), card: None }
    }

    /// Compares with one option a line.
    #[track_caller]
    fn check(machine: &Machine, features: Features, expected: &str) {
        let args = machine.arguments(&features, wiring("/slots/3/console.log"));
        let mut text = String::new();
        for arg in &args {
            text.push(if arg.as_bytes().starts_with(b"-") { '\n' } else { ' ' });
            text.push_str(&arg.to_string_lossy());
        }
        assert_eq!(text.trim(), expected.trim());
    }

    #[test]
    fn a_kernel_is_booted_directly() {
        check(
            &machine(),
            ALL,
            "
-name guest=slot-3
-no-user-config
-nodefaults
-display none
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine q35
-accel kvm
-cpu host
-smp 2
-m 1024M
-kernel /images/vmlinuz
-initrd /images/initrd.img
-append root=/dev/vda console=ttyS0,115200
-blockdev driver=qcow2,node-name=disk0,discard=unmap,cache.no-flush=on,file.driver=file,file.node-name=disk0-file,file.filename=/slots/3/overlay.qcow2
-device virtio-blk-pci,drive=disk0
-netdev user,id=net0,restrict=off,hostfwd=tcp:127.0.0.1:2225-:22
-device virtio-net-pci,netdev=net0,romfile=
-object rng-random,id=rng0,filename=/dev/urandom
-device virtio-rng-pci,rng=rng0
-action panic=pause
-device pvpanic
-chardev file,id=console,append=off,path=/slots/3/console.log
-serial chardev:console
-chardev socket,id=qmp,server=on,wait=off,fd=7
-mon chardev=qmp,mode=control",
        );
    }

    #[test]
    fn disks_are_booted_in_order_and_features_left_out_where_qemu_has_none() {
        let mut machine = machine();
        machine.boot = Boot::Disk;
        machine.accelerator = Accelerator::Tcg;
        machine.cpu = Some("qemu64,+ssse3".to_owned());
        machine.network.outside = Outside::Closed;
        let data = Drive { file: "/data.img".into(), format: Format::Raw, durability: Durability::Kept };
        machine.drives.push(data);
        machine.extra_args = vec!["-device".to_owned(), "i6300esb".to_owned()];
        check(
            &machine,
            Features { sandbox: false, rng: false, rom: false, vmgenid: false, pvpanic: false },
            "
-name guest=slot-3
-no-user-config
-nodefaults
-display none
-machine q35
-accel tcg
-cpu qemu64,+ssse3
-smp 2
-m 1024M
-blockdev driver=qcow2,node-name=disk0,discard=unmap,cache.no-flush=on,file.driver=file,file.node-name=disk0-file,file.filename=/slots/3/overlay.qcow2
-device virtio-blk-pci,drive=disk0,bootindex=0
-blockdev driver=raw,node-name=disk1,discard=unmap,cache.no-flush=off,file.driver=file,file.node-name=disk1-file,file.filename=/data.img
-device virtio-blk-pci,drive=disk1,bootindex=1
-netdev user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:2225-:22
-device virtio-net-pci,netdev=net0,romfile=
-action panic=pause
-chardev file,id=console,append=off,path=/slots/3/console.log
-serial chardev:console
-chardev socket,id=qmp,server=on,wait=off,fd=7
-mon chardev=qmp,mode=control
-device i6300esb",
        );
    }

    #[test]
    fn a_machine_without_pci_gets_devices_without_it() {
        let mut machine = machine();
        machine.machine_type = "microvm,rtc=on".to_owned();
        let args = machine.arguments(&ALL, wiring("/c"));
        let devices: Vec<_> =
            args.iter().filter_map(|arg| arg.to_str()).filter(|arg| arg.starts_with("virtio-")).collect();
        assert_eq!(
            devices,
            ["virtio-blk-device,drive=disk0", "virtio-net-device,netdev=net0", "virtio-rng-device,rng=rng0"]
        );
    }

    #[test]
    fn a_card_on_a_private_network_comes_after_the_one_that_leads_to_the_host() {
        let check = |machine_type: &str, devices: [&str; 2]| {
            let machine = Machine { machine_type: machine_type.to_owned(), ..machine() };
            let wiring = Wiring { card: Some(Card { fd: 9, mac: Mac::of_member(3) }), ..wiring("/c") };
            let args = machine.arguments(&ALL, wiring);
            let networks = args.iter().filter_map(|arg| arg.to_str()).filter(|arg| arg.contains("id=net"));
            let cards = args.iter().filter_map(|arg| arg.to_str()).filter(|arg| arg.contains("netdev=net"));
            let expected =
                ["user,id=net0,restrict=off,hostfwd=tcp:127.0.0.1:2225-:22", "dgram,id=net1,local.type=fd,local.str=9"];
            assert_eq!(networks.collect::<Vec<_>>(), expected);
            assert_eq!(cards.collect::<Vec<_>>(), devices);
        };
        check(
            "q35",
            ["virtio-net-pci,netdev=net0,romfile=", "virtio-net-pci,netdev=net1,mac=02:6b:76:6d:00:03,romfile="],
        );
        check("microvm", ["virtio-net-device,netdev=net0", "virtio-net-device,netdev=net1,mac=02:6b:76:6d:00:03"]);
    }

    #[test]
    fn commas_in_paths_and_names_are_doubled_where_qemu_parses_them() {
        let mut machine = machine();
        machine.name = "a,b".to_owned();
        machine.drives[0].file = "/a, b/c,,d.qcow2".into();
        machine.boot = Boot::Kernel { kernel: "/k,1".into(), initrd: None, append: "a,b".to_owned() };
        let args = machine.arguments(&ALL, wiring("/c d,e"));
        let after = |name: &str| {
            let at = args.iter().position(|arg| arg == name).expect("it is there");
            args[at + 1].to_string_lossy().into_owned()
        };
        assert_eq!(after("-name"), "guest=a,,b");
        assert!(after("-blockdev").ends_with("file.filename=/a,, b/c,,,,d.qcow2"));
        assert_eq!(after("-chardev"), "file,id=console,append=off,path=/c d,,e");
        assert_eq!((after("-kernel"), after("-append")), ("/k,1".to_owned(), "a,b".to_owned()));
    }

    #[test]
    fn memory_is_in_a_file_that_clones_do_not_write_to() {
        let check = |memory: Memory, rom: bool, expected: &[&str]| {
            let machine = Machine { memory, machine_type: "microvm,rtc=on".to_owned(), ..machine() };
            let args = machine.arguments(&Features { rom, ..ALL }, wiring("/c"));
            let names = ["-object", "-machine", "-m", "-incoming"];
            let pairs = args.windows(2).filter(|pair| names.iter().any(|name| pair[0] == *name));
            let values = pairs.map(|pair| pair[1].to_string_lossy()).filter(|value| !value.starts_with("rng-"));
            assert_eq!(values.collect::<Vec<_>>(), expected);
        };
        let file = || "/t,1/ram".into();
        let machine = "microvm,rtc=on,memory-backend=ram0";
        check(Memory::Own, true, &["microvm,rtc=on", "1024M"]);
        let object = "memory-backend-file,id=ram0,size=1024M,share=on,mem-path=/t,,1/ram";
        check(Memory::Shared { file: file() }, true, &[object, machine, "1024M"]);
        let object = "memory-backend-file,id=ram0,size=1024M,share=off,readonly=on,rom=off,mem-path=/t,,1/ram";
        check(Memory::Private { file: file() }, true, &[object, machine, "1024M", "defer"]);
        let object = "memory-backend-file,id=ram0,size=1024M,share=off,mem-path=/t,,1/ram";
        check(Memory::Private { file: file() }, false, &[object, machine, "1024M", "defer"]);
    }

    #[test]
    fn templates_and_clones_have_a_generation_where_qemu_has_the_device_and_the_machine_a_place_for_it() {
        let check = |machine: Machine, vmgenid: bool, expected: bool| {
            let args = machine.arguments(&Features { vmgenid, ..ALL }, wiring("/c"));
            assert_eq!(args.iter().any(|arg| arg == "vmgenid,guid=auto"), expected, "{machine:?}");
        };
        let clone = || Machine { memory: Memory::Private { file: "/t/ram".into() }, ..machine() };
        check(clone(), true, true);
        check(Machine { memory: Memory::Shared { file: "/t/ram".into() }, ..machine() }, true, true);
        check(machine(), true, false);
        check(clone(), false, false);
        check(Machine { machine_type: "microvm".to_owned(), ..clone() }, true, false);
    }

    #[test]
    fn a_pc_tells_of_a_panic_by_one_device() {
        let check = |machine_type: &str, extra: &[&str], expected: usize| {
            let extra_args = extra.iter().map(|&word| word.to_owned()).collect();
            let machine = Machine { machine_type: machine_type.to_owned(), extra_args, ..machine() };
            let args = machine.arguments(&ALL, wiring("/c"));
            let devices = args.iter().filter(|arg| arg.to_string_lossy().starts_with("pvpanic")).count();
            assert_eq!(devices, expected, "{machine_type} {extra:?}");
        };
        check("q35", &[], 1);
        check("pc", &[], 1);
        check("pc-i440fx-7.2,acpi=off", &[], 1);
        check("microvm", &[], 0);
        check("virt", &[], 0);
        check("q35", &["-device", "pvpanic,ioport=0x600"], 1);
        check("q35", &["-device", "pvpanic-pci"], 1);
    }

    #[test]
    fn a_blueprint_has_all_but_what_a_clone_has_of_its_own() {
        let template = Machine { memory: Memory::Shared { file: "/t/ram".into() }, ..machine() };
        let blueprint = template.blueprint(&ALL);
        let check = |same: bool, other: Machine| assert_eq!(other.blueprint(&ALL) == blueprint, same, "{other:?}");
        let with = |change: fn(&mut Machine)| {
            let mut machine = machine();
            change(&mut machine);
            machine
        };
        check(true, with(|clone| clone.memory = Memory::Private { file: "/t/ram".into() }));
        check(true, with(|clone| clone.name = "slot-4".to_owned()));
        check(true, with(|clone| clone.drives[0].file = "/slots/4/overlay.qcow2".into()));
        check(true, with(|clone| clone.network.host_port = 2226));
        check(false, with(|other| other.machine_type = "pc".to_owned()));
        check(false, with(|other| other.accelerator = Accelerator::Tcg));
        check(false, with(|other| other.cpu = Some("qemu64".to_owned())));
        check(false, with(|other| other.cpus = 1));
        check(false, with(|other| other.memory_mib = 512));
        check(false, with(|other| other.boot = Boot::Disk));
        check(false, with(|other| other.drives[0].format = Format::Raw));
        check(false, with(|other| other.drives.clear()));
        check(false, with(|other| other.network.guest_port = 2222));
        check(false, with(|other| other.network.outside = Outside::Closed));
        check(false, with(|other| other.extra_args = vec!["-no-reboot".to_owned()]));
        assert_ne!(template.blueprint(&Features { rng: false, ..ALL }), blueprint);
    }

    #[test]
    fn paths_that_are_no_utf8_stay_as_they_are() {
        let mut machine = machine();
        machine.drives[0].file = OsStr::from_bytes(b"/\xff,").into();
        let args = machine.arguments(&ALL, wiring("/c"));
        assert!(args.iter().any(|arg| arg.as_bytes().ends_with(b"file.filename=/\xff,,")));
    }
}
