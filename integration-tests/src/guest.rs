//! The guests that `scripts/setup image` makes.

use std::fs;

use anyhow::{Context, Result};
use toml::{Table, Value};

use crate::artefacts::image_file;

/// One of the guests: a disk, and what it takes to boot it and to log in.
#[derive(Debug, Clone, PartialEq)]
pub struct Guest(Table);

impl Guest {
    /// A Debian without a toolchain.
    pub fn plain() -> Result<Guest> {
        Guest::on_disk("debian-plain.qcow2")
    }

    /// A Debian with C compiler, git and make.
    pub fn build() -> Result<Guest> {
        Guest::on_disk("debian-build.qcow2")
    }

    fn on_disk(disk: &str) -> Result<Guest> {
        let path = |name: &str| -> Result<String> { Ok(image_file(name)?.display().to_string()) };
        let host_key = fs::read_to_string(image_file("host_key.pub")?).context("read the guests' host key")?;
        let guest = Guest(Table::new())
            .with("disk", path(disk)?)
            .with("format", "qcow2")
            .with("kernel", path("vmlinuz")?)
            .with("initrd", path("initrd.img")?)
            .with("append", "root=/dev/vda console=ttyS0 no_timer_check")
            .with("cpus", 1)
            .with("memory_mib", 384)
            .with("user", "buildbot")
            .with("key", path("id_ed25519")?)
            .with("host_key", host_key.trim())
            .with("shutdown", "sudo poweroff")
            .with("boot_timeout", 120);
        Ok(guest)
    }

    /// The same with one key of `[images.NAME]` changed.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Guest {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    /// The same without a key.
    pub fn without(mut self, key: &str) -> Guest {
        self.0.remove(key);
        self
    }

    /// A key's value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(Value::as_str)
    }

    pub(crate) fn table(self) -> Table {
        self.0
    }
}
