//! What a guest prints before a command's own output is taken apart the same way however it arrives, and not held for ever.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| ssh::fuzzing::scan_login(bytes));
