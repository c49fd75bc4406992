//! Why a machine is not to be had.

use std::time::Duration;

use protocol::command::Name;
use thiserror::Error;

/// Why a machine did not start, or is not there. Each is told to the master as its [`reason`](Self::reason) and its
/// text, which ends in a remedy where there is one.
#[derive(Debug, Error)]
pub(crate) enum VmError {
    /// The arguments make no sense.
    #[error("{0}")]
    BadArguments(String),
    /// The configuration has no such image.
    #[error("no image is named '{image}' in the worker's configuration; it has {}", list(.known))]
    NoSuchImage { image: Name, known: Vec<Name> },
    /// All slots stayed in use.
    #[error("all {slots} slots stayed in use for {} s; start fewer builds at a time, or raise pool.slots or pool.acquire_timeout", .waited.as_secs())]
    PoolFull { slots: u16, waited: Duration },
    /// The persistent disk stayed in use.
    #[error("the persistent disk '{vm}' of image '{image}' stayed in use by another builder for {} s", .waited.as_secs())]
    DiskInUse { image: Name, vm: Name, waited: Duration },
    /// The worker stops and starts nothing new.
    #[error("the worker is stopping")]
    Stopping,
    /// QEMU or the guest did not come up.
    #[error("start vm '{vm}' of image '{image}' in slot {slot}: {why}")]
    BootFailed { vm: Name, image: Name, slot: u16, why: String },
    /// The builder has one of this name already.
    #[error("the builder's vm '{0}' is running already; stop it first, or give the other one another name")]
    AlreadyRunning(Name),
    /// The builder has none of this name.
    #[error("the builder has no vm named '{0}'; start it with vm_start first")]
    NotRunning(Name),
    /// It was there and is not any more.
    #[error("{reason}")]
    Lost { reason: String },
}

impl VmError {
    /// The `failure_reason` on the wire.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            VmError::BadArguments(_) => "vm_bad_arguments",
            VmError::NoSuchImage { .. } => "vm_no_such_image",
            VmError::PoolFull { .. } | VmError::DiskInUse { .. } | VmError::Stopping => "vm_pool_full",
            VmError::BootFailed { .. } => "vm_boot_failed",
            VmError::AlreadyRunning(_) => "vm_already_running",
            VmError::NotRunning(_) => "vm_not_running",
            VmError::Lost { .. } => "vm_lost",
        }
    }
}

fn list(names: &[Name]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.iter().map(Name::as_str).collect::<Vec<_>>().join(", "),
    }
}
