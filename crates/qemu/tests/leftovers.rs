//! What an earlier run left behind.

mod common;

use std::fs;
use std::time::Duration;

use common::{DEADLINE, Slot, gone, signal, within};
use process::{Child, Command, Event, Signal};
use qemu::{Identity, Leftover, LeftoverError, Pidfile};

/// A QEMU that this crate does not look after, as one of an earlier run would be.
async fn orphan() -> (Child, Identity) {
    let command = Command::new(common::SYSTEM)
        .inherit_env(["PATH"])
        .args("-nodefaults -no-user-config -display none -machine none -accel tcg -chardev stdio,id=qmp -mon qmp,mode=control".split(' '))
        .stdin("{\"execute\": \"qmp_capabilities\"}");
    let mut child = command.spawn().await.expect("QEMU is installed");
    // It answers, so that its signal handlers are in place.
    let mut text = String::new();
    while !text.contains("return") {
        match within(child.next_event()).await {
            Some(Event::Stdout(bytes)) => text += &String::from_utf8_lossy(&bytes),
            other => panic!("unexpected {other:?} after {text}"),
        }
    }
    let identity = Identity::of(child.id()).expect("it runs");
    (child, identity)
}

fn pidfile(slot: &Slot, identity: &Identity) -> Pidfile {
    let pidfile = Pidfile::new(slot.files().pidfile);
    pidfile.write(identity).expect("written");
    pidfile
}

#[tokio::test]
async fn an_empty_slot_needs_no_clearing() {
    let slot = Slot::new();
    let leftover = Pidfile::new(slot.files().pidfile).clear(DEADLINE).await.expect("no error");
    assert_eq!(leftover, Leftover::None);
}

#[tokio::test]
async fn a_machine_that_still_runs_is_ended() {
    let slot = Slot::new();
    let (_child, identity) = orphan().await;
    match pidfile(&slot, &identity).clear(DEADLINE).await.expect("no error") {
        Leftover::Ended { pid, with, .. } => assert_eq!((pid, with), (identity.pid, Signal::SIGTERM)),
        other => panic!("unexpected {other:?}"),
    }
    assert!(!identity.is_alive());
    assert_eq!(slot.remains(), Vec::<String>::new());
}

#[tokio::test]
async fn a_machine_that_hangs_is_killed() {
    let slot = Slot::new();
    let (_child, identity) = orphan().await;
    signal(identity.pid, Signal::SIGSTOP);
    match pidfile(&slot, &identity).clear(Duration::from_millis(300)).await.expect("no error") {
        Leftover::Ended { pid, with, .. } => assert_eq!((pid, with), (identity.pid, Signal::SIGKILL)),
        other => panic!("unexpected {other:?}"),
    }
    gone(&identity).await;
}

#[tokio::test]
async fn a_process_that_only_has_the_same_id_is_never_touched() {
    let slot = Slot::new();
    let (_child, identity) = orphan().await;
    for recycled in [
        Identity { start_time: identity.start_time - 1, ..identity.clone() },
        Identity { boot_id: "another".to_owned(), ..identity.clone() },
    ] {
        let leftover = pidfile(&slot, &recycled).clear(DEADLINE).await.expect("no error");
        assert_eq!(leftover, Leftover::Stale { pid: identity.pid });
        assert!(identity.is_alive());
        assert_eq!(slot.remains(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_machine_whose_directory_was_copied_is_never_touched() {
    let (slot, copy) = (Slot::new(), Slot::new());
    let (_child, identity) = orphan().await;
    let original = pidfile(&slot, &identity);
    fs::copy(original.path(), copy.files().pidfile).expect("copied");
    let leftover = Pidfile::new(copy.files().pidfile).clear(DEADLINE).await.expect("no error");
    assert_eq!(leftover, Leftover::Copied { pid: identity.pid });
    assert_eq!(copy.remains(), Vec::<String>::new());
    assert!(identity.is_alive());
}

#[tokio::test]
async fn a_machine_that_has_ended_is_only_a_file() {
    let slot = Slot::new();
    let (child, identity) = orphan().await;
    drop(child);
    gone(&identity).await;
    let leftover = pidfile(&slot, &identity).clear(DEADLINE).await.expect("no error");
    assert_eq!(leftover, Leftover::Stale { pid: identity.pid });
}

#[tokio::test]
async fn a_pidfile_nobody_understands_is_kept() {
    let slot = Slot::new();
    fs::write(slot.files().pidfile, "4711\n").expect("written");
    let result = Pidfile::new(slot.files().pidfile).clear(DEADLINE).await;
    assert!(matches!(result, Err(LeftoverError::Pidfile(_))), "{result:?}");
    assert_eq!(slot.remains(), ["qemu.pid"]);
}

#[tokio::test]
async fn a_machine_does_not_outlive_the_one_who_started_it() {
    // This test's own binary stands for the worker, and is killed.
    let test = std::env::current_exe().expect("this test runs");
    let command =
        Command::new(test).inherit_env(["PATH"]).args(["--ignored", "--exact", "one_who_is_killed", "--nocapture"]);
    let mut worker = command.spawn().await.expect("it is there");
    let mut text = String::new();
    let line = loop {
        match within(worker.next_event()).await {
            Some(Event::Stdout(bytes)) => text += &String::from_utf8_lossy(&bytes),
            other => panic!("unexpected {other:?} after {text:?}"),
        }
        if let Some((_, rest)) = text.split_once("machine ")
            && let Some((json, _)) = rest.split_once('\n')
        {
            break json.to_owned();
        }
    };
    let identity: Identity = serde_json::from_str(&line).expect("an identity");
    assert!(identity.is_alive());
    signal(worker.id(), Signal::SIGKILL);
    gone(&identity).await;
}

#[tokio::test]
#[ignore = "is the process that a_machine_does_not_outlive_the_one_who_started_it kills"]
async fn one_who_is_killed() {
    let slot = Slot::new();
    let vm = slot.start().await;
    println!("machine {}", serde_json::to_string(vm.identity()).expect("plain numbers"));
    vm.exited().await;
}
