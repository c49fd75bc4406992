//! Real programs, on this host and in a guest.

use tokio::time::{Duration, timeout};

use super::super::*;
use crate::commands::fake_master::{Reply, Stage};
use crate::commands::scenery::{Where, everywhere};

/// Runs a line with its workdir in a stage; returns what the master was told, but for the header.
fn told(stage: &Stage, line: &str, change: impl FnOnce(&mut Shell)) -> Vec<String> {
    let mut shell = program([""], Path::new("work"));
    shell.command = CommandLine::Line(line.to_owned());
    shell.log_environ = false;
    change(&mut shell);
    let command =
        async |context: &Context, host: &dyn Place, reporter: &Reporter| run(context, &shell, host, reporter).await;
    let mut told = stage.play(|_| Reply::nil(), command);
    assert!(told[0].starts_with("header "), "{told:?}");
    told.remove(0);
    told
}

#[track_caller]
fn check(at: Where, line: &str, change: impl FnOnce(&mut Shell), expected: &[&str]) {
    assert_eq!(told(&Stage::new(at), line, change), expected);
}

fn the_workdir_is_made(at: Where) {
    let stage = Stage::new(at);
    let expected = ["stdout ROOT/work\nROOT/work\n", "rc 0", "header elapsedTime=T\n", "elapsed", "complete None"];
    assert_eq!(told(&stage, "pwd; echo $PWD", |_| ()), expected);
    assert!(stage.path("work").is_dir());
}

fn programs_are_looked_up_on_the_path_of_the_step(at: Where) {
    let stage = Stage::with(at, &[("bin/mytool", "#!/bin/sh\necho found\n")]);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(stage.path("bin/mytool"), mode).expect("a mode");
    let path = format!("{}:${{PATH}}", stage.path("bin").display());
    let told = told(&stage, "", |shell| {
        shell.command = program(["mytool"], Path::new("")).command;
        shell.env = vec![("PATH".to_owned(), protocol::command::EnvValue::Text(path))];
    });
    assert_eq!(told, ["stdout found\n", "rc 0", "header elapsedTime=T\n", "elapsed", "complete None"]);
}

fn the_whole_process_group_is_killed(at: Where) {
    let stage = Stage::new(at);
    told(&stage, "sleep 1000 & echo $! >pid; echo one; echo two; wait", |shell| shell.max_lines = Some(1));
    let pid = stage.read("work/pid").expect("the grandchild's id").trim().parse().expect("a number");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        // One that is gone for good can't be opened.
        if let Ok(grandchild) = process::Pidfd::open(pid) {
            timeout(Duration::from_secs(10), grandchild.exited()).await.expect("the grandchild is killed");
        }
    });
}

fn a_program_that_does_not_exist_fails_with_its_name(at: Where) {
    let change = |shell: &mut Shell| shell.command = program(["/no/such", "arg"], Path::new("")).command;
    let why = "stderr can't execute /no/such: no such program, or the interpreter that it names is missing\n";
    check(at, "", change, &[why, "rc 1", "header elapsedTime=T\n", "elapsed", "complete None"]);
}

fn a_log_file_is_shown_from_what_was_written_last_too(at: Where) {
    let logfile = protocol::command::Logfile { name: "kernel".to_owned(), filename: "k.log".into(), follow: false };
    let change = |shell: &mut Shell| shell.logfiles = vec![logfile];
    let expected = ["kernel one\n", "rc 0", "header elapsedTime=T\n", "elapsed", "kernel two\n", "complete None"];
    check(at, "echo one >k.log; printf two >>k.log", change, &expected);
}

everywhere! {
    the_workdir_is_made
    programs_are_looked_up_on_the_path_of_the_step
    the_whole_process_group_is_killed
    a_program_that_does_not_exist_fails_with_its_name
    a_log_file_is_shown_from_what_was_written_last_too
}
