use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use crate::{Features, ProbeError, features};

/// A QEMU installation that was found to work. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Qemu {
    installation: Arc<Installation>,
}

#[derive(Debug)]
struct Installation {
    system: OsString,
    img: OsString,
    version: String,
    features: Features,
}

impl Qemu {
    /// Runs a QEMU to find out what it can do. Both programs are looked up on `PATH` unless they have a slash.
    pub async fn probe(system: impl Into<OsString>, img: impl Into<OsString>) -> Result<Self, ProbeError> {
        let (system, img) = (system.into(), img.into());
        let (version, features) = features::probe(&system).await?;
        Ok(Qemu { installation: Arc::new(Installation { system, img, version, features }) })
    }

    /// Returns the program that runs machines.
    pub fn system(&self) -> &OsStr {
        &self.installation.system
    }

    /// Returns the `qemu-img` program.
    pub fn img(&self) -> &OsStr {
        &self.installation.img
    }

    /// Returns QEMU's version: `10.0.2`.
    pub fn version(&self) -> &str {
        &self.installation.version
    }

    /// Returns what this QEMU can do.
    pub fn features(&self) -> &Features {
        &self.installation.features
    }
}
