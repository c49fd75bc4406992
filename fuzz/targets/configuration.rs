//! A configuration is taken or its problems are told, whatever is in it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| kvm_worker_inside::configuration(text));
