//! Overlays, by the real qemu-img.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{Slot, script};
use process::{Command, Limits, Output};
use qemu::{Base, DiskError, Format, Qemu, Vm};

/// Makes an empty base of 3 MiB under an inconvenient name.
async fn base(slot: &Slot, format: Format) -> Base {
    let file = slot.path("base, with: comma.img");
    let limits = Limits { deadline: common::DEADLINE, max_bytes: 1 << 16 };
    let command = Command::new("qemu-img").inherit_env(["PATH"]).args(["create", "-q", "-f", &format.to_string()]);
    let output = command.arg(&file).arg("3M").output(&limits).await;
    output.and_then(Output::into_success).expect("qemu-img is installed");
    Base { file, format }
}

#[tokio::test]
async fn an_overlay_knows_its_base() {
    for format in [Format::Qcow2, Format::Raw] {
        let slot = Slot::new();
        let (qemu, base, overlay) = (common::qemu().await, base(&slot, format).await, slot.path("overlay.qcow2"));
        qemu.create_overlay(&base, &overlay).await.expect("created");
        let disk = qemu.disk(&overlay).await.expect("understood");
        let found = (disk.format.as_str(), disk.virtual_size, disk.backing, disk.backing_format);
        assert_eq!(found, ("qcow2", 3 << 20, Some(base.file), Some(format.to_string())));
        assert_eq!(fs::metadata(&overlay).expect("it is there").permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn an_overlay_is_replaced_by_a_fresh_one() {
    let slot = Slot::new();
    let (qemu, base, overlay) = (common::qemu().await, base(&slot, Format::Qcow2).await, slot.path("overlay.qcow2"));
    fs::write(&overlay, "of an earlier build").expect("written");
    qemu.create_overlay(&base, &overlay).await.expect("created");
    assert_eq!(qemu.disk(&overlay).await.expect("understood").format, "qcow2");
}

#[tokio::test]
async fn many_overlays_share_a_base_while_machines_run_on_them() {
    let slots = [Slot::new(), Slot::new()];
    let (qemu, base) = (common::qemu().await, base(&slots[0], Format::Qcow2).await);
    let before = fs::read(&base.file).expect("readable");
    let mut machines = Vec::new();
    for slot in &slots {
        let mut machine = slot.machine();
        machine.drives[0].file = slot.path("overlay.qcow2");
        machine.drives[0].format = Format::Qcow2;
        qemu.create_overlay(&base, &machine.drives[0].file).await.expect("created");
        machines.push(Vm::start(&qemu, &machine, slot.files()).await.expect("it starts"));
        let disk = qemu.disk(&machine.drives[0].file).await.expect("examined while it is in use");
        assert_eq!(disk.format, "qcow2");
    }
    assert!(fs::read(&base.file).expect("readable") == before);
}

/// How an overlay on a base fails, with the directory cut out.
async fn check(slot: &Slot, qemu: &Qemu, base: &Base, expected: &str) {
    let overlay = slot.path("overlay.qcow2");
    let error = qemu.create_overlay(base, &overlay).await.expect_err("it can't be made").to_string();
    assert_eq!(error.replace(&*slot.directory().to_string_lossy(), "DIR"), expected);
    let left = slot.remains().into_iter().filter(|name| name.starts_with("overlay")).collect::<Vec<_>>();
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test]
async fn a_base_that_is_not_what_it_is_said_to_be_is_named() {
    let (slot, qemu) = (Slot::new(), common::qemu().await);
    let qcow2 = base(&slot, Format::Qcow2).await;
    let raw = Base { file: slot.path("disk.img"), format: Format::Raw };
    check(
        &slot,
        &qemu,
        &Base { file: slot.path("none.img"), ..qcow2.clone() },
        "can't read disk image DIR/none.img: No such file or directory (os error 2); check the image's `disk` and its permissions",
    )
    .await;
    check(
        &slot,
        &qemu,
        &Base { format: Format::Raw, ..qcow2 },
        "disk image DIR/base, with: comma.img is a qcow2 image; correct the image's `format`, which says raw",
    )
    .await;
    check(
        &slot,
        &qemu,
        &Base { format: Format::Qcow2, ..raw },
        "disk image DIR/disk.img is not a qcow2 image; correct the image's `format`, which says qcow2",
    )
    .await;
}

#[tokio::test]
async fn a_broken_base_fails_in_qemu_imgs_words() {
    let (slot, qemu) = (Slot::new(), common::qemu().await);
    let broken = Base { file: slot.path("broken.qcow2"), format: Format::Qcow2 };
    fs::write(&broken.file, b"QFI\xfb and nothing else").expect("written");
    let result = qemu.create_overlay(&broken, &slot.path("overlay.qcow2")).await;
    let error = result.expect_err("it is broken").to_string();
    assert!(error.starts_with("create overlay ") && error.contains("failed with code 1: qemu-img: "), "{error}");
    assert_eq!(slot.remains(), ["broken.qcow2"]);
}

#[tokio::test]
async fn a_full_disk_is_told_from_other_failures() {
    let slot = Slot::new();
    let fake = slot.path("qemu-img");
    // Leaves half a file, as the real one does.
    let text = "#!/bin/sh\nfor file; do :; done; : >\"$file\"; echo 'qemu-img: x: Could not resize: No space left on device' >&2; exit 1\n";
    script(&fake, text);
    let qemu = Qemu::probe(common::SYSTEM, &fake).await.expect("QEMU is installed");
    let base = base(&slot, Format::Qcow2).await;
    let result = qemu.create_overlay(&base, &slot.path("overlay.qcow2")).await;
    assert!(matches!(result, Err(DiskError::Full { .. })), "{result:?}");
    assert_eq!(slot.remains(), ["base, with: comma.img", "qemu-img"]);
}

#[tokio::test]
async fn a_missing_qemu_img_is_named() {
    let slot = Slot::new();
    let qemu = Qemu::probe(common::SYSTEM, "no-such-qemu-img").await.expect("QEMU is installed");
    let base = base(&slot, Format::Qcow2).await;
    let error = qemu.create_overlay(&base, &slot.path("overlay.qcow2")).await.expect_err("it is missing").to_string();
    assert!(error.contains("no program \"no-such-qemu-img\""), "{error}");
}
