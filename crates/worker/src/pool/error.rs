//! Why a machine is not to be had.

use std::time::Duration;

use protocol::command::Name;
use thiserror::Error;

use super::Wait;
use super::budget::{Excess, Shortage};

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
    /// What it waited for did not come.
    #[error("{}", full(.wait, .waited.as_secs()))]
    PoolFull { wait: Wait, waited: Duration },
    /// It would not fit if it were the only one.
    #[error("start vm '{vm}' of image '{image}': {excess}")]
    TooLarge { vm: Name, image: Name, excess: Excess },
    /// The persistent disk stayed in use.
    #[error(
        "the persistent disk '{vm}' of image '{image}' stayed in use for {} s, by another builder or by a vm that is kept for a \
         person; end that with kvm-worker release, or give this vm another name for a disk of its own", .waited.as_secs()
    )]
    DiskInUse { image: Name, vm: Name, waited: Duration },
    /// It can't be stopped.
    #[error("stop vm '{vm}': {why}")]
    StopFailed { vm: Name, why: String },
    /// Its disk is not saved.
    #[error("save vm '{vm}' as image '{image}': {why}")]
    SaveFailed { vm: Name, image: Name, why: String },
    /// QEMU or the guest did not come up.
    #[error("start vm '{vm}' of image '{image}' in slot {slot}: {why}")]
    BootFailed { vm: Name, image: Name, slot: u16, why: String },
    /// Its guest did not come back.
    #[error("reboot vm '{vm}': {why}")]
    RebootFailed { vm: Name, why: String },
    /// The builder has one of this name already.
    #[error("the builder's vm '{0}' is running already; stop it first, or give the other one another name")]
    AlreadyRunning(Name),
    /// The builder has none of this name.
    #[error("the builder has no vm named '{0}'; start it with vm_start first")]
    NotRunning(Name),
    /// The builder's commands are to run in it, and it never was there.
    #[error("vm '{vm}' is not running, as it did not start: {reason}")]
    NotStarted { vm: Name, reason: String },
    /// The builder's commands are to run in it, and it is not there yet.
    #[error("vm '{0}' is still being started; wait for the end of its vm_start")]
    BeingStarted(Name),
    /// It was there and is not any more.
    #[error("{reason}")]
    Lost { reason: String },
    /// It was there until its time was over.
    #[error("{reason}")]
    Expired { reason: String },
    /// It was there until its disk had grown too large.
    #[error("{reason}")]
    Outgrown { reason: String },
    /// The worker runs nothing on its host.
    #[error(
        "the command is for the worker's host, where worker.host_commands = false allows none: bind the builder to a vm with \
         StartVM(bind=True), name a vm at the step, or set worker.host_commands = true"
    )]
    HostRefused,
}

impl VmError {
    /// The `failure_reason` on the wire.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            VmError::BadArguments(_) => "vm_bad_arguments",
            VmError::NoSuchImage { .. } => "vm_no_such_image",
            VmError::PoolFull { .. } | VmError::DiskInUse { .. } => "vm_pool_full",
            VmError::TooLarge { .. } => "vm_too_large",
            VmError::StopFailed { .. } => "vm_stop_failed",
            VmError::SaveFailed { .. } => "vm_save_failed",
            VmError::BootFailed { .. } => "vm_boot_failed",
            VmError::RebootFailed { .. } => "vm_reboot_failed",
            VmError::AlreadyRunning(_) => "vm_already_running",
            VmError::NotRunning(_) | VmError::NotStarted { .. } | VmError::BeingStarted(_) => "vm_not_running",
            VmError::Lost { .. } => "vm_lost",
            VmError::Expired { .. } => "vm_expired",
            VmError::Outgrown { .. } => "vm_outgrown",
            VmError::HostRefused => "vm_host_refused",
        }
    }
}

fn full(wait: &Wait, seconds: u64) -> String {
    match wait {
        Wait::Slot { slots, quarantined } => {
            let in_use = match quarantined.first() {
                None => format!("all {slots} slots stayed in use"),
                Some((slot, why)) => {
                    let count = quarantined.len();
                    format!("{count} of {slots} slots can't be used (slot {slot}: {why}), and the others stayed in use")
                }
            };
            format!(
                "{in_use} for {seconds} s; start fewer builds at a time, or raise pool.slots or pool.acquire_timeout"
            )
        }
        Wait::Paused => format!(
            "the worker stayed paused for {seconds} s; kvm-worker resume on its host lets builds have machines again"
        ),
        Wait::Short(shortage) => format!("waited {seconds} s for {shortage}; {}", remedy(shortage)),
        Wait::Turn { ahead, first } => {
            format!("waited {seconds} s behind {ahead} others, the first of them for {first}; {}", remedy(first))
        }
    }
}

fn remedy(shortage: &Shortage) -> &'static str {
    match shortage {
        Shortage::Memory { .. } => {
            "start fewer builds at a time, or raise pool.memory_budget_mib or pool.acquire_timeout"
        }
        Shortage::LowDisk { .. } => "make room on the disk of pool.state_dir",
        Shortage::Overlays { .. } => {
            "start fewer builds at a time, lower the image's overlay_limit_mib, or make room on the disk of pool.state_dir"
        }
    }
}

fn list(names: &[Name]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.iter().map(Name::as_str).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_waited_for_in_vain_is_named_with_a_remedy() {
        let memory = Shortage::Memory { machines: 3, promised_mib: 3072, budget_mib: 4096, needed_mib: 2176 };
        let short = "memory: 3072 of 4096 MiB are promised to 3 machines, this one needs 2176";
        let check = |wait: Wait, expected: &str| {
            let error = VmError::PoolFull { wait, waited: Duration::from_secs(600) };
            assert_eq!((error.reason(), error.to_string()), ("vm_pool_full", expected.to_owned()));
        };
        let slots = "start fewer builds at a time, or raise pool.slots or pool.acquire_timeout";
        check(Wait::Slot { slots: 2, quarantined: vec![] }, &format!("all 2 slots stayed in use for 600 s; {slots}"));
        check(
            Wait::Slot { slots: 2, quarantined: vec![(1, "port in use".to_owned())] },
            &format!(
                "1 of 2 slots can't be used (slot 1: port in use), and the others stayed in use for 600 s; {slots}"
            ),
        );
        let raise = "start fewer builds at a time, or raise pool.memory_budget_mib or pool.acquire_timeout";
        check(Wait::Short(memory), &format!("waited 600 s for {short}; {raise}"));
        check(
            Wait::Turn { ahead: 2, first: memory },
            &format!("waited 600 s behind 2 others, the first of them for {short}; {raise}"),
        );
        check(
            Wait::Short(Shortage::LowDisk { free_mib: 10, low_water_mib: 1024 }),
            "waited 600 s for disk space: 10 MiB are free, and machines start with at least 1024 \
             (pool.disk_low_water_mib); make room on the disk of pool.state_dir",
        );
    }
}
