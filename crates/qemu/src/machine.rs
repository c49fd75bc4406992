use std::path::PathBuf;

use crate::{Accelerator, Format};

/// A virtual machine to be, as QEMU will be told to make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What QEMU calls it, for `ps` and for QEMU's own messages.
    pub name: String,
    /// QEMU's machine type: `q35`, `pc-q35-7.2`, `microvm`, …
    pub machine_type: String,
    /// What executes the guest's code.
    pub accelerator: Accelerator,
    /// QEMU's cpu model. By default the most capable there is: `host` with KVM, `max` with TCG.
    pub cpu: Option<String>,
    /// Virtual processors, at least 1.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Where its memory is.
    pub memory: Memory,
    /// What is booted.
    pub boot: Boot,
    /// Its virtio disks, `/dev/vda` first.
    pub drives: Vec<Drive>,
    /// Its card that leads to the host. One on a private network comes with [`Vm::start_on`](crate::Vm::start_on).
    pub network: Network,
    /// Arguments of QEMU's own that come after all others.
    pub extra_args: Vec<String>,
}

/// Where a machine's memory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Memory {
    /// In QEMU, and gone with it.
    Own,
    /// In a file, which others can be started from once the machine was [frozen](crate::Vm::freeze): a template in the
    /// making. QEMU makes the file, for this user alone, or uses what is there.
    Shared {
        /// The file.
        file: PathBuf,
    },
    /// What the file of a frozen machine says, where this one has not written itself: a clone. Such a machine does not boot;
    /// it is [restored](crate::Vm::restore). The file is only read, and must stay as it is until QEMU is gone: a clone sees
    /// what changes in it, and a file that becomes shorter kills it (SIGBUS). It has the rights that
    /// [`Features::memory_mode`](crate::Features::memory_mode) says.
    Private {
        /// The file.
        file: PathBuf,
    },
}

/// What a machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// The boot loader on the first drive.
    Disk,
    /// A Linux kernel that QEMU loads itself.
    Kernel {
        /// The kernel's file (`vmlinuz`).
        kernel: PathBuf,
        /// The initial RAM disk, if the kernel needs one.
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        append: String,
    },
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    /// The image or overlay the guest writes to.
    pub file: PathBuf,
    /// Its format. Never probed: a guest could write another format's header into a raw disk.
    pub format: Format,
    /// What a crash of the host may do to it.
    pub durability: Durability,
}

/// What a crash of the host may do to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// What the guest has flushed survives.
    Kept,
    /// The disk is thrown away with its machine, so the guest's flushes are not passed on, which is faster.
    Disposable,
}

/// A machine's connection through QEMU's user-mode network: 10.0.2.0/24, the host at 10.0.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The port on 127.0.0.1 of the host…
    pub host_port: u16,
    /// … that leads to this TCP port of the guest.
    pub guest_port: u16,
    /// What the guest can reach.
    pub outside: Outside,
}

/// What a guest can reach through its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// Whatever the host can, including services on the host's loopback interface (at 10.0.2.2).
    Open,
    /// Nothing. The forwarded port still works.
    Closed,
}
