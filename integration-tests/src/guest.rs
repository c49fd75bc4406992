//! The guests that `scripts/setup image` makes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use toml::{Table, Value};

use crate::artefacts::{image_file, sources_image_file};

/// Keys of `[images.NAME]` that a template does not depend on.
const NOT_FROZEN: [&str; 6] =
    ["boot_timeout", "keep_generations", "overlay_limit_mib", "post_restore", "shutdown", "warm"];

/// One of the guests: a disk, and what it takes to boot it and to log in.
///
/// Its machines are clones of a template that all tests share, unless the guest is [`booting`](Guest::booting) or is given
/// something that the template does not have. A test that is about how machines begin says `booting()`, or
/// `with("template", true)` for a template of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Guest {
    table: Table,
    has_shared_template: bool,
}

impl Guest {
    /// A Debian without a toolchain.
    pub fn plain() -> Result<Guest> {
        Guest::on_disk("debian-plain.qcow2")
    }

    /// A Debian with C compiler, git and make.
    pub fn build() -> Result<Guest> {
        Guest::on_disk("debian-build.qcow2")
    }

    /// A Debian with all that Buildbot's source steps run, too.
    pub fn sources() -> Result<Guest> {
        Ok(Guest::of("debian-sources.qcow2", sources_image_file)?.booting())
    }

    fn on_disk(disk: &str) -> Result<Guest> {
        Guest::of(disk, image_file)
    }

    /// A guest that `contrib/images/build` made in a directory of one's own; its machines boot.
    pub fn made_in(directory: &Path, variant: &str) -> Result<Guest> {
        Ok(Guest::of(&format!("debian-{variant}.qcow2"), |name| Ok(directory.join(name)))?.booting())
    }

    fn of(disk: &str, file: impl Fn(&str) -> Result<PathBuf>) -> Result<Guest> {
        let path = |name: &str| -> Result<String> { Ok(file(name)?.display().to_string()) };
        let host_key = fs::read_to_string(file("host_key.pub")?).context("read the guests' host key")?;
        let guest = Guest::of_table(Table::new())
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
            .with("boot_timeout", 120)
            .with("template", true)
            // By default it is the path that the host has, which is another one in each test.
            .with("guest_basedir", "/home/buildbot");
        Ok(Guest { has_shared_template: true, ..guest })
    }

    /// One that is configured so.
    pub(crate) fn of_table(table: Table) -> Guest {
        Guest { table, has_shared_template: false }
    }

    /// The same, whose machines boot.
    pub fn booting(self) -> Guest {
        self.without("template")
    }

    /// The same with one key of `[images.NAME]` changed.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Guest {
        self.leave_shared_template(key);
        self.table.insert(key.to_owned(), value.into());
        self
    }

    /// The same without a key.
    pub fn without(mut self, key: &str) -> Guest {
        self.leave_shared_template(key);
        self.table.remove(key);
        self
    }

    /// A key's value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.table.get(key).and_then(Value::as_str)
    }

    /// How it is configured.
    pub(crate) fn table(&self) -> Table {
        self.table.clone()
    }

    /// As much of that as a template depends on, if the one that all tests share is to be linked for it.
    pub(crate) fn shared_template(&self) -> Option<Table> {
        let frozen = |(key, _): &(String, Value)| !NOT_FROZEN.contains(&key.as_str());
        self.has_shared_template.then(|| self.table().into_iter().filter(frozen).collect())
    }

    /// The shared template is of no use for a guest with another value of a key.
    fn leave_shared_template(&mut self, key: &str) {
        if self.has_shared_template && !NOT_FROZEN.contains(&key) {
            self.has_shared_template = false;
            self.table.remove("template");
            self.table.remove("guest_basedir");
        }
    }
}
