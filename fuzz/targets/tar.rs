//! What a guest sends for an archive is read as entries or refused, however long it claims to be.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| ssh::fuzzing::read_archive(bytes));
