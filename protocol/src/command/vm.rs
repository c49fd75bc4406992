//! The commands that Buildbot's worker does not have: machines for builds.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::args::{Args, ArgumentError};

/// The name of a VM or of an image: 1 to 64 letters, digits, `_`, `.`, `+` and `-`, the first one a letter or digit.
///
/// It is safe as a file name and never `host`, which stands for the host itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The VM that is meant when a command names none.
    pub fn default_vm() -> Self {
        Name("default".to_owned())
    }

    /// The name, if `text` is one.
    pub fn new(text: &str) -> Option<Self> {
        let mut chars = text.chars();
        let valid = chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
            && chars.all(|c| c.is_ascii_alphanumeric() || "_.+-".contains(c))
            && text.len() <= 64
            && text != "host";
        valid.then(|| Name(text.to_owned()))
    }

    /// The text of the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn parse(args: Args<'_>, name: &str) -> Result<Option<Self>, ArgumentError> {
        match args.text(name)? {
            None => Ok(None),
            Some(text) => Name::new(&text).map(Some).ok_or_else(|| {
                args.invalid(name, "a name of at most 64 letters, digits, '_', '.', '+' and '-', other than 'host'")
            }),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What becomes of a VM's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A new overlay, thrown away with the VM.
    Fresh,
    /// An overlay that stays, under the VM's name, for the next VM of this image and name.
    Persistent,
}

impl Mode {
    /// The word for it on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Fresh => "fresh",
            Mode::Persistent => "persistent",
        }
    }
}

/// Starts a VM for the builder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmStart {
    /// The image of the configuration to start.
    pub image: Name,
    /// What the builder calls the VM.
    pub vm: Name,
    /// What becomes of the disk.
    pub mode: Mode,
    /// Whether the builder's further commands run in this VM unless they say otherwise.
    pub bind: bool,
    /// Processors, 1 to 256, instead of the image's.
    pub cpus: Option<u32>,
    /// Memory in MiB, 16 to 4,194,304, instead of the image's.
    pub memory_mib: Option<u32>,
    /// How long booting may take, instead of the image's.
    pub timeout: Option<Duration>,
    /// The master's number of the build. A new one says that the builder's earlier build is over.
    pub build: Option<u64>,
    /// The private network it is to have a card on, shared with the build's other VMs that name the same.
    pub network: Option<Name>,
    /// How long the builder may have it, instead of the longest time that the worker's configuration allows.
    pub ttl: Option<Duration>,
}

/// Which way [`VmCopy`] goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the host into the guest.
    In,
    /// From the guest to the host.
    Out,
}

/// Copies a file or a tree between the builder's directory on the host and a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmCopy {
    /// The VM.
    pub vm: Name,
    /// Which way.
    pub direction: Direction,
    /// What to copy.
    pub from: PathBuf,
    /// Its copy, or a directory that is to hold it.
    pub to: PathBuf,
    /// What relative paths of the host are relative to, and, mapped into the guest, those of the guest.
    pub workdir: PathBuf,
    /// Whether a directory is copied, with all that is in it, or refused.
    pub recursive: bool,
    /// Whether times and modes are kept.
    pub preserve: bool,
}

/// Stops a VM and gives its slot back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmStop {
    /// The VM.
    pub vm: Name,
    /// How long a polite shutdown may take.
    pub timeout: Option<Duration>,
    /// Whether it is fine that there is no such VM.
    pub missing_ok: bool,
    /// What becomes of it beside that.
    pub disposal: Disposal,
}

/// What [`VmStop`] makes of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposal {
    /// It is stopped, and nothing of it is kept but a persistent disk.
    End,
    /// It is shut down cleanly, and its disk becomes the next generation of this image.
    Save(Name),
    /// It runs on for so long for a person to look into, but is the builder's no more.
    Keep(Duration),
}

/// Restarts the guest of a VM, and waits until it is back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmReboot {
    /// The VM.
    pub vm: Name,
    /// How long that may take, instead of the image's time for booting.
    pub timeout: Option<Duration>,
}

/// Asks about the builder's VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmInfo {
    /// One of them; all if absent.
    pub vm: Option<Name>,
}

impl VmStart {
    pub(super) fn parse(args: Args<'_>) -> Result<Self, ArgumentError> {
        args.require(&["image"])?;
        Ok(VmStart {
            image: Name::parse(args, "image")?.ok_or_else(|| args.invalid("image", "the name of an image"))?,
            vm: vm(args)?,
            mode: match args.text("mode")?.as_deref() {
                None | Some("fresh") => Mode::Fresh,
                Some("persistent") => Mode::Persistent,
                Some(_) => return Err(args.invalid("mode", "'fresh' or 'persistent'")),
            },
            bind: args.flag("bind", false)?,
            cpus: within(args, "cpus", 1, 256, "a number of processors, 1 to 256")?,
            memory_mib: within(args, "memory_mib", 16, 4 << 20, "an amount of memory in MiB, 16 to 4194304")?,
            timeout: args.seconds("timeout")?,
            build: args.count("build")?,
            network: Name::parse(args, "network")?,
            ttl: args.seconds("ttl")?,
        })
    }
}

impl VmCopy {
    pub(super) fn parse(args: Args<'_>) -> Result<Self, ArgumentError> {
        args.require(&["direction", "from", "to", "workdir"])?;
        Ok(VmCopy {
            vm: vm(args)?,
            direction: match args.text("direction")?.as_deref() {
                Some("in") => Direction::In,
                Some("out") => Direction::Out,
                _ => return Err(args.invalid("direction", "'in' or 'out'")),
            },
            from: args.required_text("from")?.into(),
            to: args.required_text("to")?.into(),
            workdir: args.required_text("workdir")?.into(),
            recursive: args.flag("recursive", true)?,
            preserve: args.flag("preserve", true)?,
        })
    }
}

impl VmStop {
    pub(super) fn parse(args: Args<'_>) -> Result<Self, ArgumentError> {
        let disposal = match (Name::parse(args, "save")?, args.seconds("keep")?) {
            (None, None) => Disposal::End,
            (Some(image), None) => Disposal::Save(image),
            (None, Some(time)) => Disposal::Keep(time),
            (Some(_), Some(_)) => return Err(args.invalid("keep", "absent where 'save' is given")),
        };
        Ok(VmStop {
            vm: vm(args)?,
            timeout: args.seconds("timeout")?,
            missing_ok: args.flag("missing_ok", true)?,
            disposal,
        })
    }
}

impl VmReboot {
    pub(super) fn parse(args: Args<'_>) -> Result<Self, ArgumentError> {
        Ok(VmReboot { vm: vm(args)?, timeout: args.seconds("timeout")? })
    }
}

impl VmInfo {
    pub(super) fn parse(args: Args<'_>) -> Result<Self, ArgumentError> {
        Ok(VmInfo { vm: Name::parse(args, "vm")? })
    }
}

fn vm(args: Args<'_>) -> Result<Name, ArgumentError> {
    Ok(Name::parse(args, "vm")?.unwrap_or_else(Name::default_vm))
}

fn within(
    args: Args<'_>,
    name: &str,
    low: u32,
    high: u32,
    expected: &'static str,
) -> Result<Option<u32>, ArgumentError> {
    match args.count(name)? {
        None => Ok(None),
        Some(number) => u32::try_from(number)
            .ok()
            .filter(|number| (low..=high).contains(number))
            .map(Some)
            .ok_or_else(|| args.invalid(name, expected)),
    }
}
