use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Qemu;
use crate::preflight::{self, Verdict};

/// What a configuration may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM if guest code was seen to run on it, else TCG.
    Auto,
    /// KVM, as long as its device can be opened.
    Kvm,
    /// TCG.
    Tcg,
}

/// What executes a guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's processor.
    Kvm,
    /// QEMU's translator: everywhere, and ten times slower or worse.
    Tcg,
}

/// The accelerator machines are to use, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accelerated {
    /// The accelerator.
    pub accelerator: Accelerator,
    /// Why this one, for a person to read.
    pub reason: String,
}

/// KVM was asked for and can't be had.
#[derive(Debug, Error)]
#[error(
    "/dev/kvm can't be used: {source}; add this user to the group that owns it (kvm), load the module, or set accel to \"auto\" or \"tcg\""
)]
pub struct NoKvm {
    source: io::Error,
}

/// `kvm` is none of the three words.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no accelerator; use \"auto\", \"kvm\" or \"tcg\"")]
pub struct UnknownAccel(String);

const DEVICE: &str = "/dev/kvm";

impl Qemu {
    /// Decides what executes guests. With [`Accel::Auto`] this runs a small guest under KVM, and takes up to 10 seconds if
    /// that hangs: the device's existence proves nothing where KVM itself runs in a virtual machine.
    pub async fn accelerator(&self, accel: Accel) -> Result<Accelerated, NoKvm> {
        let (accelerator, reason) = match accel {
            Accel::Tcg => (Accelerator::Tcg, "the configuration asks for it".to_owned()),
            Accel::Kvm => {
                open_kvm().map_err(|source| NoKvm { source })?;
                (Accelerator::Kvm, "the configuration asks for it".to_owned())
            }
            Accel::Auto => match open_kvm() {
                Err(error) => (Accelerator::Tcg, format!("{DEVICE} can't be opened: {error}")),
                Ok(()) => match preflight::run(self, Accelerator::Kvm).await {
                    Verdict::Works => (Accelerator::Kvm, "guest code ran on it".to_owned()),
                    Verdict::Fails { why } => (Accelerator::Tcg, format!("guest code does not run under KVM: {why}")),
                },
            },
        };
        Ok(Accelerated { accelerator, reason })
    }
}

fn open_kvm() -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open(Path::new(DEVICE)).map(drop)
}

impl Accelerator {
    /// Returns QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Accel {
    type Err = UnknownAccel;

    fn from_str(text: &str) -> Result<Self, UnknownAccel> {
        match text {
            "auto" => Ok(Accel::Auto),
            "kvm" => Ok(Accel::Kvm),
            "tcg" => Ok(Accel::Tcg),
            _ => Err(UnknownAccel(text.to_owned())),
        }
    }
}
