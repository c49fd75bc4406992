//! What is found out about a QEMU before it is used.

mod common;

use std::fs;

use common::{Slot, qemu, script};
use qemu::{Accel, Accelerated, Accelerator, Features, Qemu};

async fn error(program: &str) -> String {
    Qemu::probe(program, "qemu-img").await.expect_err("it can't be used").to_string()
}

#[tokio::test]
async fn the_installed_qemu_tells_its_version_and_features() {
    let qemu = qemu().await;
    let parts: Vec<_> = qemu.version().split('.').map(str::parse::<u32>).collect();
    assert!(parts.len() == 3 && parts.iter().all(Result::is_ok), "{}", qemu.version());
    // Whatever the distribution, these are in its package.
    let Features { sandbox, rng, rom: _, vmgenid, pvpanic } = *qemu.features();
    assert_eq!((sandbox, rng, vmgenid, pvpanic), (true, true, true, true));
}

#[tokio::test]
async fn a_qemu_without_a_sandbox_can_be_used() {
    let slot = Slot::new();
    let wrapper = slot.path("qemu-without-sandbox");
    let refuse = "for arg; do if [ \"$arg\" = -sandbox ]; then echo 'no such option' >&2; exit 1; fi; done";
    script(&wrapper, &format!("#!/bin/sh\n{refuse}\nexec {} \"$@\"\n", common::SYSTEM));
    let qemu = Qemu::probe(&wrapper, "qemu-img").await.expect("it can be used");
    assert!(!qemu.features().sandbox);
}

#[tokio::test]
async fn a_program_that_was_replaced_is_another() {
    let slot = Slot::new();
    let wrapper = slot.path("qemu-wrapper");
    let write = |comment: &str| script(&wrapper, &format!("#!/bin/sh\n{comment}exec {} \"$@\"\n", common::SYSTEM));
    write("");
    let probed = Qemu::probe(&wrapper, "qemu-img").await.expect("it can be used");
    let before = probed.program().expect("it is there");
    assert_eq!((&before.file, &*before.version), (&wrapper, probed.version()));
    assert_eq!(probed.program().expect("it is there"), before);
    write("# upgraded\n");
    assert_ne!(probed.program().expect("it is there"), before);
    fs::remove_file(&wrapper).expect("removed");
    assert_eq!(probed.program().map_err(|error| error.kind()), Err(std::io::ErrorKind::NotFound));
    assert!(qemu().await.program().expect("it is on PATH").file.is_absolute());
}

#[tokio::test]
async fn what_can_not_be_used_is_named_with_a_remedy() {
    let remedy = "install QEMU 7.2 or later (Debian: qemu-system-x86, qemu-utils) or name another in the configuration";
    let text = error("no-such-qemu").await;
    assert!(text.starts_with("no program \"no-such-qemu\"") && text.ends_with(remedy), "{text}");
    let text = error("/bin/false").await;
    assert_eq!(text, format!("\"/bin/false\" failed with code 1; {remedy}"));
    let text = error("/bin/echo").await;
    assert!(text.starts_with("\"/bin/echo\" does not answer like QEMU: -no-user-config"), "{text}");
}

#[tokio::test]
async fn automatic_acceleration_gives_its_reason() {
    let Accelerated { accelerator, reason } = qemu().await.accelerator(Accel::Auto).await.expect("there is always one");
    println!("{accelerator}: {reason}");
    assert_eq!(accelerator == Accelerator::Kvm, reason == "guest code ran on it");
}

#[tokio::test]
async fn translation_is_had_for_the_asking() {
    let accelerated = qemu().await.accelerator(Accel::Tcg).await.expect("it needs nothing");
    let expected = Accelerated { accelerator: Accelerator::Tcg, reason: "the configuration asks for it".to_owned() };
    assert_eq!(accelerated, expected);
}

#[test]
fn accelerators_are_read_from_their_names() {
    assert_eq!("auto".parse(), Ok(Accel::Auto));
    assert_eq!("kvm".parse(), Ok(Accel::Kvm));
    assert_eq!("tcg".parse(), Ok(Accel::Tcg));
    let error = "KVM".parse::<Accel>().map_err(|error| error.to_string());
    assert_eq!(error, Err("\"KVM\" is no accelerator; use \"auto\", \"kvm\" or \"tcg\"".to_owned()));
}
