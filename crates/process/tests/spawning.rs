//! What a child is given, and what a command that can't be started says.

mod common;

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;

use common::{run, sh, spawn};
use process::{Command, SpawnError};

async fn stdout(command: Command) -> String {
    run(command).await.stdout
}

#[tokio::test]
async fn the_environment_is_what_was_given_and_nothing_else() {
    let command = Command::new("/usr/bin/env").env("B", "2").envs([("A", "1"), ("EMPTY", "")]);
    assert_eq!(stdout(command).await, "A=1\nB=2\nEMPTY=\n");
}

#[tokio::test]
async fn named_variables_are_inherited_if_they_are_set() {
    let path = std::env::var("PATH").expect("cargo sets it");
    let command = Command::new("/usr/bin/env").inherit_env(["PATH", "NO_SUCH_VARIABLE"]);
    assert_eq!(stdout(command).await, format!("PATH={path}\n"));
}

#[tokio::test]
async fn a_program_is_looked_up_on_the_path_of_the_child() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tool = directory.path().join("tool-of-the-child");
    fs::write(&tool, "#!/bin/sh\necho found").expect("written");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).expect("made executable");
    assert_eq!(stdout(Command::new("tool-of-the-child").env("PATH", directory.path())).await, "found\n");
}

#[tokio::test]
async fn the_directory_and_the_umask_are_set() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().canonicalize().expect("it exists");
    let command = sh("pwd; umask; : >file; stat -c %a file").current_dir(&path).umask(0o027);
    assert_eq!(stdout(command).await, format!("{}\n0027\n640\n", path.display()));
}

#[tokio::test]
async fn signals_have_their_default_action_and_none_is_blocked() {
    let status = stdout(Command::new("/bin/cat").arg("/proc/self/status")).await;
    let mask = |name: &str| {
        let hex = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel lists it");
        // Signals from 32 on belong to the C library and to programs' own ideas.
        u64::from_str_radix(hex.trim(), 16).expect("a mask") & 0x7fff_ffff
    };
    assert_eq!((mask("SigBlk:"), mask("SigIgn:"), mask("SigCgt:")), (0, 0, 0));
}

#[tokio::test]
async fn a_child_leads_its_own_group_and_has_no_descriptor_of_ours() {
    let _ours = fs::File::open("/dev/null").expect("it is there");
    // Descriptor 3 is the directory that is listed.
    assert_eq!(stdout(Command::new("/bin/ls").arg("/proc/self/fd")).await, "0\n1\n2\n3\n");
    let child = spawn(sh("sleep 1000")).await;
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("it runs");
    let group = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(2)).map(str::to_owned);
    assert_eq!(group, Some(child.id().to_string()));
}

#[tokio::test]
async fn an_inherited_descriptor_keeps_its_number() {
    let file = tempfile::tempfile().expect("a temporary file");
    let fd = OwnedFd::from(file.try_clone().expect("duplicated"));
    let script = format!("echo through the descriptor >/proc/self/fd/{}", fd.as_raw_fd());
    run(sh(&script).inherit_fd(fd)).await;
    assert_eq!(file.metadata().expect("it is open").len(), 23);
}

#[tokio::test]
async fn a_child_asked_to_dies_with_its_parent() {
    // Another process has to die for it: this test's own binary, run for the test below.
    let test = std::env::current_exe().expect("this test runs");
    let parent = Command::new(test).args(["--ignored", "--exact", "parent_that_is_killed", "--nocapture"]);
    let mut parent = spawn(parent).await;
    let mut text = String::new();
    let orphan = loop {
        match common::next(&mut parent).await {
            Some(process::Event::Stdout(bytes)) => text += &String::from_utf8_lossy(&bytes),
            other => panic!("unexpected {other:?} after {text:?}"),
        }
        if let Some((_, rest)) = text.split_once("child ")
            && let Some((pid, _)) = rest.split_once('\n')
        {
            break pid.to_owned();
        }
    };
    assert!(common::alive(&orphan));
    process::Pidfd::open(parent.id()).expect("it runs").signal(process::Signal::SIGKILL).expect("it is ours");
    common::gone(&orphan).await;
}

#[tokio::test]
#[ignore = "is the process that a_child_asked_to_dies_with_its_parent kills"]
async fn parent_that_is_killed() {
    let mut child = spawn(sh("exec sleep 1000").dies_with_parent()).await;
    println!("child {}", child.id());
    child.finish().await;
}

/// What an error says, with the temporary directory cut out.
async fn error(command: Command) -> String {
    match command.spawn().await {
        Ok(_) => "it was started".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let text = "no program \"no-such-program\": it, or the interpreter it names, does not exist";
    assert_eq!(error(Command::new("no-such-program")).await, text);
    assert!(matches!(Command::new("/no/such").spawn().await, Err(SpawnError::NotFound { .. })));
    assert!(matches!(Command::new("").spawn().await, Err(SpawnError::NotFound { .. })));
}

#[tokio::test]
async fn a_missing_directory_is_not_taken_for_a_missing_program() {
    let text = "can't enter the working directory /no/such: No such file or directory (os error 2)";
    assert_eq!(error(sh("exit 0").current_dir("/no/such")).await, text);
    let text = "can't enter the working directory /etc/passwd: Not a directory (os error 20)";
    assert_eq!(error(sh("exit 0").current_dir("/etc/passwd")).await, text);
}

#[tokio::test]
async fn a_file_that_is_no_program_is_named() {
    let text = "may not execute \"/etc/passwd\": Permission denied (os error 13); check its mode, its format and the mount options";
    assert_eq!(error(Command::new("/etc/passwd")).await, text);
    let text =
        "may not execute \"/etc\": Permission denied (os error 13); check its mode, its format and the mount options";
    assert_eq!(error(Command::new("/etc")).await, text);
}

#[tokio::test]
async fn what_the_kernel_can_not_take_is_refused() {
    assert!(matches!(sh("exit 0").arg("a\0b").spawn().await, Err(SpawnError::NulByte { .. })));
    assert!(matches!(sh("exit 0").env("A", "a\0b").spawn().await, Err(SpawnError::NulByte { .. })));
    assert!(matches!(sh("exit 0").env("A=B", "").spawn().await, Err(SpawnError::VariableName { .. })));
    assert!(matches!(sh("exit 0").env("", "").spawn().await, Err(SpawnError::VariableName { .. })));
    assert!(matches!(sh("exit 0").arg("x".repeat(3 << 20)).spawn().await, Err(SpawnError::TooLong { .. })));
}

#[tokio::test]
async fn names_that_are_no_utf8_work() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join(OsString::from_vec(b"\xff tool".to_vec()));
    fs::write(&path, "#!/bin/sh\necho ran").expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("made executable");
    assert_eq!(stdout(Command::new(path)).await, "ran\n");
}
