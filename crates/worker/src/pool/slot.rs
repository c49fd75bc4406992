//! A numbered place for one machine.

use std::fmt;
use std::path::{Path, PathBuf};

/// The name of a slot's pidfile in its directory.
pub(super) const PID_FILE: &str = "qemu.pid";

/// A place for one machine: its number gives everything that must not be shared between machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    number: u16,
    ssh_port: u16,
    directory: PathBuf,
}

impl Slot {
    /// The slot of this number; its directory is below `slots`.
    pub(crate) fn new(number: u16, ssh_port_base: u16, slots: &Path) -> Self {
        Slot { number, ssh_port: ssh_port_base.saturating_add(number), directory: slots.join(number.to_string()) }
    }

    /// Counted from 0.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// The port of 127.0.0.1 that leads to the guest's ssh.
    pub(crate) fn ssh_port(&self) -> u16 {
        self.ssh_port
    }

    /// What holds all the slot's files; it exists only while the slot is in use.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn pid_file(&self) -> PathBuf {
        self.directory.join(PID_FILE)
    }

    pub(crate) fn qmp_socket(&self) -> PathBuf {
        self.directory.join("qmp.sock")
    }

    pub(crate) fn console_log(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// The files of the machine in it.
    pub(crate) fn files(&self) -> qemu::Files {
        qemu::Files { pidfile: self.pid_file(), qmp_socket: self.qmp_socket(), console_log: self.console_log() }
    }

    /// The guest's ssh key, for a person who logs in.
    pub(crate) fn known_hosts(&self) -> PathBuf {
        self.directory.join("known_hosts")
    }

    /// The disk of a machine that is thrown away.
    pub(crate) fn overlay(&self) -> PathBuf {
        self.directory.join("overlay.qcow2")
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}
