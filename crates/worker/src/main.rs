//! kvm-worker: a Buildbot-compatible worker that runs builds in fresh QEMU/KVM machines.
#![allow(dead_code)] // until the daemon is wired up

mod commands;
mod master;
mod output;
mod place;

fn main() {}
