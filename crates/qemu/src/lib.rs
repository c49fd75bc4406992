//! One QEMU virtual machine: its arguments, disks, process, monitor, boot and shutdown.
//!
//! ```text
//! Qemu::probe ─▶ Qemu ─▶ accelerator(Accel) ─▶ Accelerated
//!                 ├────▶ create_overlay(Base) / disk()
//! Machine ────────┴────▶ Vm::start ─▶ Vm ─▶ boot(probe) ─▶ shutdown(Shutdown) ─▶ Ended
//! Vm::freeze ─▶ a machine's memory, state and disk in files ─▶ Vm::restore ─▶ any number of Vm that go on from there
//! Lan::join ─▶ Port, Cable ─▶ Vm::start_on: machines on an Ethernet of their own
//! Pidfile::clear: what an earlier run left
//! ```
//!
//! A machine is a child of this process. It is named by a pidfile from its start until it was reaped, so that the next run
//! finds it if this one is killed together with the guarantee that it dies with us (see [`Vm`]).
//!
//! This crate works with QEMU 7.2 and later, and asks QEMU what it can do instead of comparing versions. It knows nothing
//! of ssh: that a guest is ready, and how to shut it down from inside, is told by its caller. It knows nothing of
//! Buildbot either.

pub mod console;
pub mod qmp;

mod accel;
mod arguments;
mod disk;
mod features;
mod files;
mod freeze;
mod growth;
mod identity;
mod ladder;
mod lan;
mod leftovers;
mod machine;
mod migration;
mod owner;
mod panic;
mod pidfile;
mod preflight;
mod program;
mod qemu;
mod restore;
mod shutdown;
mod socket;
mod start;
mod state;
mod tool;
mod vm;

pub use accel::{Accel, Accelerated, Accelerator, NoKvm, UnknownAccel};
pub use arguments::Wiring;
pub use disk::{Base, Disk, DiskError, Format};
pub use features::{Features, ProbeError};
pub use files::Files;
pub use freeze::FreezeError;
pub use identity::Identity;
pub use ladder::{Patience, Rung};
pub use lan::{Cable, Card, Lan, MAX_FRAME, MAX_MEMBERS, Mac, Port};
pub use leftovers::{Leftover, LeftoverError};
pub use machine::{Boot, Drive, Durability, Machine, Memory, Network, Outside};
pub use panic::{Panic, Panics};
pub use pidfile::{Pidfile, PidfileError};
pub use program::Program;
pub use qemu::Qemu;
pub use restore::RestoreError;
pub use shutdown::{Ended, Shutdown, Stuck};
pub use start::StartError;
pub use state::{Exit, State};
pub use vm::{BootError, Vm};
