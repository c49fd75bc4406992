//! What a guest prints becomes text that does nothing to a terminal, however it arrives.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../crates/worker/src/plain.rs"]
mod plain;

fuzz_target!(|input: &[u8]| {
    let Some((at, bytes)) = input.split_first() else { return };
    let text = plain::plain(bytes);
    assert!(text.chars().all(|char| matches!(char, '\n' | '\t') || !char.is_control()), "{text:?}");
    let at = usize::from(*at).min(bytes.len());
    let mut parts = plain::Plain::default();
    let arrived = [parts.take(&bytes[..at]), parts.take(&bytes[at..]), parts.rest()].concat();
    assert_eq!(arrived, text);
});
