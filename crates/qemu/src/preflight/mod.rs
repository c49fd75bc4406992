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

/// The commonest reason for it, a few lines further on.
const EMULATION_FAILURE: &str = "emulation failure";

/// How long the reason is waited for once there is known to be one.
const LAST_WORDS: Duration = Duration::from_millis(500);

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
    Ok(watch(child, DEADLINE).await)
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

async fn watch(mut child: Child, deadline: Duration) -> Verdict {
    let mut ends = Instant::now() + deadline;
    let mut stderr = Tail::new(4096);
    let why = loop {
        match timeout_at(ends, child.next_event()).await {
            Ok(Some(Event::Stderr(bytes))) => {
                stderr.push(&bytes);
                let text = stderr.text();
                if text.contains(EMULATION_FAILURE) {
                    break format!("{INTERNAL_ERROR}: {EMULATION_FAILURE}");
                }
                if text.contains(INTERNAL_ERROR) {
                    ends = ends.min(Instant::now() + LAST_WORDS);
                }
            }
            Ok(Some(Event::Finished(finish))) => match finish.status {
                ExitStatus::Code(guest::DONE) => return Verdict::Works,
                ExitStatus::Code(0) => break "the guest crashed".to_owned(),
                status => break format!("qemu exited with {status}: {}", stderr.text().trim()),
            },
            Ok(Some(_)) => {}
            Ok(None) => break "qemu is gone".to_owned(),
            Err(_) if stderr.text().contains(INTERNAL_ERROR) => break INTERNAL_ERROR.to_owned(),
            Err(_) => break format!("the guest was not done within {} s", deadline.as_secs_f32()),
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn qemu() -> Qemu {
        Qemu::probe("qemu-system-x86_64", "qemu-img").await.expect("QEMU is installed: scripts/setup packages")
    }

    #[tokio::test]
    async fn the_guest_gets_to_its_end_where_guests_do() {
        assert_eq!(run(&qemu().await, Accelerator::Tcg).await, Verdict::Works);
    }

    /// What is made of a QEMU that behaves like this script.
    async fn check(script: &str, expected: Result<(), &str>) {
        let command = process::Command::new("/bin/sh").args(["-c", script]).env("PATH", "/usr/bin:/bin");
        let verdict = watch(command.spawn().await.expect("the shell is there"), DEADLINE).await;
        let expected = match expected {
            Ok(()) => Verdict::Works,
            Err(why) => Verdict::Fails { why: why.to_owned() },
        };
        assert_eq!(verdict, expected);
    }

    #[tokio::test]
    async fn only_the_guests_own_exit_code_counts() {
        check("exit 33", Ok(())).await;
        check("exit 0", Err("the guest crashed")).await;
        check("exit 255", Err("qemu exited with code 255: ")).await;
        check("echo no kvm >&2; exit 1", Err("qemu exited with code 1: no kvm")).await;
    }

    #[tokio::test]
    async fn a_guest_that_kvm_gave_up_on_is_not_waited_for() {
        let stopped = "echo 'KVM internal error. Suberror: 1'; echo 'emulation failure'; exec sleep 1000";
        check(&format!("({stopped}) >&2"), Err("KVM internal error: emulation failure")).await;
    }

    #[tokio::test]
    async fn a_reason_qemu_does_not_give_is_not_waited_for_long() {
        check("echo 'KVM internal error. Suberror: 3' >&2; exec sleep 1000", Err("KVM internal error")).await;
    }

    #[tokio::test]
    async fn a_sector_of_nothing_does_not_pass() {
        // The firmware finds nothing to boot, and stays there: the deadline has to end it.
        let mut empty = File::from(memfd_create("empty", MemfdFlags::CLOEXEC).expect("a file in memory"));
        empty.write_all(&[0; 1 << 20]).expect("written");
        let arguments = arguments(Accelerator::Tcg, empty.as_raw_fd());
        let command = tool(qemu().await.system()).args(arguments).inherit_fd(empty.into());
        let verdict = watch(command.spawn().await.expect("QEMU is installed"), Duration::from_millis(500)).await;
        assert_eq!(verdict, Verdict::Fails { why: "the guest was not done within 0.5 s".to_owned() });
    }
}
