//! Whether an accelerator runs guest code, found out by having it run some.

mod guest;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use process::{Child, Event, ExitStatus, Rung, Signal, Stream, Tail};
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::time::{Instant, timeout_at};

use crate::tool::tool;
use crate::{Accelerator, Qemu};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Works,
    Fails { why: String },
}

/// The guest takes less than a second even under TCG. A hypervisor that hangs is known by not getting there.
const DEADLINE: Duration = Duration::from_secs(10);

/// QEMU's words when KVM gives up on a guest, which it then keeps stopped (accel/kvm/kvm-all.c, 7.2 to 10.0).
const INTERNAL_ERROR: &str = "KVM internal error";

/// Runs the guest.
pub(crate) async fn run(qemu: &Qemu, accelerator: Accelerator) -> Verdict {
    match attempt(qemu, accelerator).await {
        Ok(verdict) => verdict,
        Err(why) => Verdict::Fails { why },
    }
}

async fn attempt(qemu: &Qemu, accelerator: Accelerator) -> Result<Verdict, String> {
    let disk = disk().map_err(|error| format!("make a disk in memory: {error}"))?;
    let command = tool(qemu.system())
        .args(arguments(accelerator, disk.as_raw_fd()))
        .null(Stream::Stdout)
        .inherit_fd(disk)
        .dies_with_parent();
    let child = command.spawn().await.map_err(|error| error.to_string())?;
    Ok(watch(child).await)
}

/// A disk without a place in the file system, with the guest on its first sector.
fn disk() -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("preflight", MemfdFlags::CLOEXEC)?);
    file.write_all(&guest::boot_sector())?;
    file.set_len(guest::DISK_SIZE)?;
    Ok(file.into())
}

fn arguments(accelerator: Accelerator, disk: i32) -> Vec<OsString> {
    let cpu = match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    };
    let exit = format!("isa-debug-exit,iobase={:#x},iosize=1", guest::EXIT_PORT);
    let node = format!("driver=raw,node-name=disk0,read-only=on,file.driver=file,file.filename=/dev/fd/{disk}");
    let fixed = "-no-user-config -nodefaults -display none -no-reboot -machine q35 -m 16M";
    let list = ["-accel", accelerator.name(), "-cpu", cpu, "-device", &exit, "-blockdev", &node];
    let disk = ["-device", "virtio-blk-pci,drive=disk0,bootindex=0"];
    fixed.split(' ').chain(list).chain(disk).map(OsString::from).collect()
}

async fn watch(mut child: Child) -> Verdict {
    let ends = Instant::now() + DEADLINE;
    let mut stderr = Tail::new(4096);
    let why = loop {
        match timeout_at(ends, child.next_event()).await {
            Ok(Some(Event::Stderr(bytes))) => {
                stderr.push(&bytes);
                if stderr.text().contains(INTERNAL_ERROR) {
                    break internal_error(&stderr.text());
                }
            }
            Ok(Some(Event::Finished(finish))) => match finish.status {
                ExitStatus::Code(guest::DONE) => return Verdict::Works,
                ExitStatus::Code(0) => break "the guest crashed".to_owned(),
                status => break format!("qemu exited with {status}: {}", stderr.text().trim()),
            },
            Ok(Some(_)) => {}
            Ok(None) => break "qemu is gone".to_owned(),
            Err(_) => break format!("the guest did nothing for {} s", DEADLINE.as_secs()),
        }
    };
    end(child).await;
    Verdict::Fails { why }
}

/// Waits for the process to end as well, so that none is about when the first machine starts.
async fn end(mut child: Child) {
    let kill = [Rung::new(Signal::SIGKILL, Duration::from_secs(2))];
    if child.escalate(kill).is_ok() {
        while !matches!(child.next_event().await, None | Some(Event::Unkilled | Event::Finished(_))) {}
    }
}

/// QEMU prints the reason on a line of its own, between many others.
fn internal_error(stderr: &str) -> String {
    match stderr.contains("emulation failure") {
        true => format!("{INTERNAL_ERROR}: emulation failure"),
        false => INTERNAL_ERROR.to_owned(),
    }
}
