//! What is in the state directory is understood or refused, whatever a power failure or a person did to it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| kvm_worker_inside::notes(text));
