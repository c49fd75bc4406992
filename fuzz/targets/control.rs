//! What a client of the control socket says is understood or refused, and what is understood survives being written down.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| kvm_worker_inside::control(line));
