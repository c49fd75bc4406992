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

/// Lets `qemu-io` work on a disk that no machine uses.
async fn io(disk: &std::path::Path, format: Format, commands: &[&str]) -> String {
    let limits = Limits { deadline: common::DEADLINE, max_bytes: 1 << 16 };
    let mut command = Command::new("qemu-io").inherit_env(["PATH"]).args(["-f", &format.to_string()]);
    for text in commands {
        command = command.args(["-c", text]);
    }
    let said = command.arg(disk).output(&limits).await.and_then(Output::into_success).expect("qemu-io is installed");
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn a_copy_of_an_overlay_has_all_that_lies_between_it_and_the_base() {
    for format in [Format::Qcow2, Format::Raw] {
        let (slot, qemu) = (Slot::new(), common::qemu().await);
        let base = base(&slot, format).await;
        io(&base.file, format, &["write -P 1 0 3M"]).await;
        let between = Base { file: slot.path("between.qcow2"), format: Format::Qcow2 };
        qemu.create_overlay(&base, &between.file).await.expect("created");
        io(&between.file, Format::Qcow2, &["write -P 2 1M 64k"]).await;
        let (overlay, copy) = (slot.path("overlay.qcow2"), slot.path("copy.qcow2"));
        qemu.create_overlay(&between, &overlay).await.expect("created");
        io(&overlay, Format::Qcow2, &["write -P 3 2M 64k", "write -z -u 64k 64k"]).await;
        let before = fs::read(&overlay).expect("readable");

        qemu.copy_overlay(&overlay, &base, &copy).await.expect("copied");

        fs::remove_file(&between.file).expect("the copy does not need it");
        let disk = qemu.disk(&copy).await.expect("understood");
        assert_eq!((disk.backing, disk.virtual_size), (Some(base.file.clone()), 3 << 20));
        assert!(disk.actual_size < 1 << 20, "only what differs is in it: {}", disk.actual_size);
        let patterns =
            ["read -P 1 0 64k", "read -P 0 64k 64k", "read -P 1 128k 896k", "read -P 2 1M 64k", "read -P 3 2M 64k"];
        assert!(!io(&copy, Format::Qcow2, &patterns).await.contains("failed"));
        assert!(fs::read(&overlay).expect("readable") == before);
        assert_eq!(fs::metadata(&copy).expect("it is there").permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_copy_that_can_not_be_made_leaves_nothing() {
    let (slot, qemu) = (Slot::new(), common::qemu().await);
    let base = base(&slot, Format::Raw).await;
    let overlay = slot.path("overlay.qcow2");
    qemu.create_overlay(&base, &overlay).await.expect("created");
    io(&overlay, Format::Qcow2, &["write -P 3 0 3M"]).await;
    let copies = || slot.remains().into_iter().filter(|name| name.starts_with("copy")).collect::<Vec<_>>();
    let check = async |overlay: &std::path::Path, copy: &std::path::Path, expected: &str| {
        let error = qemu.copy_overlay(overlay, &base, copy).await.expect_err("it can't be made").to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(copies(), Vec::<String>::new());
    };
    check(&slot.path("none.qcow2"), &slot.path("copy.qcow2"), "can't read disk image").await;
    check(&base.file, &slot.path("copy.qcow2"), "not a qcow2 image").await;
    check(&overlay, &slot.path("none/copy.qcow2"), "No such file or directory").await;
    // Given up before the end.
    let copy = slot.path("copy.qcow2");
    let mut copying = Box::pin(qemu.copy_overlay(&overlay, &base, &copy));
    let begun = async {
        while copies().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        done = &mut copying => done.expect("copied before it could be given up"),
        () = begun => {}
    }
    drop(copying);
    fs::remove_file(&copy).ok();
    assert_eq!(copies(), Vec::<String>::new());
}

/// A file system of its own that is too small: needs root, and is then the one way to see what a full disk does.
#[tokio::test]
async fn a_full_disk_is_told_and_nothing_is_left_on_it() {
    let (slot, qemu) = (Slot::new(), common::qemu().await);
    let base = base(&slot, Format::Raw).await;
    let overlay = slot.path("overlay.qcow2");
    qemu.create_overlay(&base, &overlay).await.expect("created");
    io(&overlay, Format::Qcow2, &["write -P 3 0 3M"]).await;
    let small = slot.path("small");
    fs::create_dir(&small).expect("made");
    let limits = Limits { deadline: common::DEADLINE, max_bytes: 1 << 16 };
    let run = async |program: &str, args: &[&str]| {
        let command = Command::new(program).inherit_env(["PATH"]).args(args).arg(&small);
        command.output(&limits).await.and_then(Output::into_success)
    };
    if let Err(error) = run("mount", &["-t", "tmpfs", "-o", "size=1M", "tmpfs"]).await {
        eprintln!("skipped: only root can mount a small file system: {error}");
        return;
    }
    let error = qemu.copy_overlay(&overlay, &base, &small.join("copy.qcow2")).await;
    let left = fs::read_dir(&small).expect("readable").count();
    run("umount", &[]).await.expect("unmounted");
    assert!(matches!(error, Err(DiskError::Full { .. })), "{error:?}");
    assert_eq!(left, 0);
}

/// Makes a disk by `qemu-img create` with these arguments, before and after its name.
async fn created(slot: &Slot, name: &str, before: &[&str], after: &[&str]) -> Base {
    let file = slot.path(name);
    let limits = Limits { deadline: common::DEADLINE, max_bytes: 1 << 16 };
    let command = Command::new("qemu-img").inherit_env(["PATH"]).arg("create").arg("-q").args(before);
    let output = command.arg(&file).args(after).output(&limits).await;
    output.and_then(Output::into_success).expect("it is made");
    Base { file, format: Format::Qcow2 }
}

#[tokio::test]
async fn a_disk_that_qemu_does_not_open_is_told_from_one_that_it_does() {
    let slot = Slot::new();
    let check = async |base: &Base, expected: Option<&str>| {
        let opened = base.try_open(common::SYSTEM.as_ref(), "qemu-img".as_ref()).await;
        let error = opened.err().map(|error| error.to_string());
        match (&error, expected) {
            (None, None) => {}
            (Some(error), Some(expected)) if error.contains(expected) => {
                assert!(!error.contains("-blockdev"), "{error}");
            }
            _ => panic!("{}: {error:?}, not {expected:?}", base.file.display()),
        }
    };
    for format in [Format::Qcow2, Format::Raw] {
        check(&base(&slot, format).await, None).await;
    }
    let secret = ["--object", "secret,id=s,data=abc", "-f", "qcow2", "-o"];
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let encrypted = created(&slot, "encrypted", &[&secret[..], &[options]].concat(), &["3M"]).await;
    check(&encrypted, Some("encrypt.key-secret")).await;
    let examined = qemu::Disk::examine("qemu-img".as_ref(), &encrypted.file).await.expect("understood");
    assert!(examined.encrypted);
    let options = format!("data_file={}", slot.path("data").display().to_string().replace(',', ",,"));
    let elsewhere = created(&slot, "elsewhere", &["-f", "qcow2", "-o", &options], &["3M"]).await;
    check(&elsewhere, None).await;
    let examined = qemu::Disk::examine("qemu-img".as_ref(), &elsewhere.file).await.expect("understood");
    assert_eq!(examined.data_file(), Some(slot.path("data").as_path()));
    fs::remove_file(slot.path("data")).expect("removed");
    check(&elsewhere, Some("No such file or directory")).await;
}

#[tokio::test]
async fn what_is_no_disk_is_named_and_not_waited_for() {
    let slot = Slot::new();
    let check = async |path: &std::path::Path, expected: &str| {
        for format in [Format::Qcow2, Format::Raw] {
            let base = Base { file: path.to_owned(), format };
            let made = common::within(common::qemu().await.create_overlay(&base, &slot.path("overlay"))).await;
            let error = made.expect_err("it is none").to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = common::within(qemu::Disk::examine("qemu-img".as_ref(), path)).await.expect_err("it is none");
        assert!(error.to_string().contains(expected), "{error}");
    };
    let pipe = slot.path("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).expect("made");
    check(&pipe, "it is a named pipe").await;
    check(&slot.path("guest"), "it is a socket").await;
    check(slot.directory(), "it is a directory").await;
    check("/dev/zero".as_ref(), "it is a character device").await;
    check(&slot.path("nothing"), "No such file").await;
}
