//! Images: what machines are made from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::command::Name;
use qemu::Outside;

use super::profile::{self, Profile};
use super::section::Section;
use super::{Template, absolute_path};

/// A named disk, how to boot it and how to log in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Image {
    /// The disk. Machines write to overlays on it, never to itself.
    pub disk: PathBuf,
    /// The disk's format.
    pub format: DiskFormat,
    /// The kernel to boot directly; without one the disk's own boot loader is used.
    pub boot: Option<KernelBoot>,
    /// QEMU's machine type.
    pub machine: String,
    /// QEMU's processor model; what suits the accelerator if absent.
    pub cpu: Option<String>,
    pub cpus: u32,
    pub memory_mib: u32,
    /// Who logs in.
    pub user: String,
    /// The private key that logs in.
    pub key: PathBuf,
    /// The guest's own key; learnt at the first boot if absent.
    pub host_key: Option<ssh::HostKey>,
    /// The guest's ssh port.
    pub ssh_port: u16,
    /// What kind of system it is.
    pub profile: Arc<Profile>,
    /// The guest's command that shuts it down, if it has one.
    pub shutdown: Option<String>,
    /// What it can reach beside its private networks.
    pub outside: Outside,
    /// How many saved generations are kept, beside those in use.
    pub keep_generations: usize,
    /// How long booting may take, up to the first command over ssh.
    pub boot_timeout: Duration,
    /// Whether machines are clones of one that was frozen just after it booted.
    pub template: bool,
    /// How many clones are kept ready for builds to come.
    pub warm: u16,
    /// What is run in the guest just before it is frozen.
    pub warm_up: Option<String>,
    /// What is run in a clone before anybody gets it.
    pub post_restore: Option<String>,
    /// Whether each clone gets a machine-id of its own.
    pub fresh_machine_id: bool,
    /// Whether each clone gets a host name of its own.
    pub fresh_host_name: bool,
    /// How large the overlay of a fresh machine may grow, in MiB.
    pub overlay_limit_mib: Option<u32>,
    /// More arguments for QEMU.
    pub qemu_args: Vec<String>,
    /// What the worker's basedir is called in the guest; if absent as on the host, where the guest lets us make that.
    pub guest_basedir: Option<PathBuf>,
}

/// A kernel that QEMU loads by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelBoot {
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    pub append: String,
}

/// The format of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskFormat {
    Qcow2,
    Raw,
}

impl Image {
    pub(super) fn parse(mut section: Section<'_>, profiles: &BTreeMap<Name, Arc<Profile>>) -> Self {
        let chosen = section.parsed("profile", None, |text: String| {
            let found = Name::new(&text).and_then(|name| profiles.get(&name));
            found.cloned().map(Some).ok_or_else(|| format!("a profile: {}", profile::list(profiles.keys())))
        });
        let profile = chosen.unwrap_or_else(|| profile::default(profiles));
        let shutdown = section.optional("shutdown", |text: String| Ok::<_, &str>(Template::new(text)));
        let kernel = section.optional("kernel", absolute_path);
        let initrd = section.optional("initrd", absolute_path);
        let append: Option<String> = section.optional("append", Ok::<String, &str>);
        if kernel.is_none() {
            if let Some(initrd) = &initrd {
                section.problem("initrd", &initrd.display(), "goes with kernel, which is missing");
            }
            if let Some(append) = &append {
                section.problem("append", append, "goes with kernel, which is missing");
            }
        }
        let image = Image {
            disk: section.required("disk", "the path of the image's disk", absolute_path),
            format: section.parsed("format", DiskFormat::Qcow2, |text: String| match text.as_str() {
                "qcow2" => Ok(DiskFormat::Qcow2),
                "raw" => Ok(DiskFormat::Raw),
                _ => Err("\"qcow2\" or \"raw\""),
            }),
            boot: kernel.map(|kernel| KernelBoot { kernel, initrd, append: append.unwrap_or_default() }),
            machine: section.or("machine", "q35".to_owned()),
            cpu: section.optional("cpu", Ok::<String, &str>),
            cpus: section.number("cpus", 1..=256, 1),
            memory_mib: section.number("memory_mib", 16..=4 << 20, 1024),
            user: section.required("user", "the guest's user that runs builds", |user: String| {
                (!user.is_empty()).then_some(user).ok_or("a user's name")
            }),
            key: section.required("key", "the path of the private ssh key that logs in", absolute_path),
            host_key: section.optional("host_key", |line: String| {
                line.parse::<ssh::HostKey>().map_err(|_| "a line such as \"ssh-ed25519 AAAA...\"")
            }),
            ssh_port: section.number("ssh_port", 1..=u16::MAX, 22),
            shutdown: profile.fill(shutdown.as_ref().unwrap_or(&profile.shutdown), &[]),
            profile,
            outside: section.parsed("outside", Outside::Open, |text: String| match text.as_str() {
                "open" => Ok(Outside::Open),
                "closed" => Ok(Outside::Closed),
                _ => Err("\"open\" or \"closed\""),
            }),
            keep_generations: usize::from(section.number("keep_generations", 1..=1000_u16, 3)),
            boot_timeout: section.seconds("boot_timeout", 1.0..=3600.0, 120.0),
            template: section.or("template", false),
            warm: section.number("warm", 0..=1000, 0),
            warm_up: section.optional("warm_up", command),
            post_restore: section.optional("post_restore", command),
            fresh_machine_id: section.or("fresh_machine_id", false),
            fresh_host_name: section.or("fresh_host_name", false),
            overlay_limit_mib: section.optional_number("overlay_limit_mib", 16..=u32::MAX),
            qemu_args: section.or("qemu_args", Vec::new()),
            guest_basedir: section.optional("guest_basedir", absolute_path),
        };
        if image.warm > 0 && !image.template {
            section.problem("warm", &image.warm, "goes with template = true: warm machines are clones");
        }
        if image.template && image.profile.restore.is_empty() {
            let remedy = format!(
                "needs a profile with a restore command; '{}' has none: leave it out, machines are booted then",
                image.profile.name
            );
            section.problem("template", &image.template, &remedy);
        }
        section.finish();
        image
    }
}

/// Whether a path of the host below its basedir could be taken for one of a guest whose basedir is another one, or the other way
/// round.
pub(crate) fn is_ambiguous(guest: &Path, host: &Path) -> bool {
    guest != host && (guest.starts_with(host) || host.starts_with(guest))
}

/// A command of the guest's.
fn command(text: String) -> Result<String, &'static str> {
    Some(text).filter(|text| !text.trim().is_empty()).ok_or("a command of the guest's shell")
}
