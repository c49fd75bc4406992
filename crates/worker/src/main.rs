//! The kvm-worker daemon.

fn main() {}
