//! Real programs, on this host and in a guest.

use std::path::PathBuf;

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

/// Runs a line that does something to a log file `r`, and returns what of it was shown.
fn shown(at: Where, line: &str) -> String {
    let logfile = protocol::command::Logfile { name: "r".to_owned(), filename: "r".into(), follow: false };
    let told = told(&Stage::new(at), line, |shell| shell.logfiles = vec![logfile]);
    let shown = told.iter().filter_map(|told| told.strip_prefix("r ").filter(|_| !told.starts_with("rc ")));
    shown.collect()
}

fn a_log_file_is_shown_to_its_end_whatever_becomes_of_its_name(at: Where) {
    let check = |end: &str, expected: &str| {
        let line = format!("echo a1 >r; sleep 3.3; echo a2 >>r; {end}");
        assert_eq!(shown(at, &line), expected, "{end}");
    };
    check("mv r r.old", "a1\na2\n");
    check("rm r", "a1\na2\n");
    check("mv r r.old; echo b >r", "a1\na2\nb\n");
    check("rm r; echo b >r", "a1\na2\nb\n");
    // Written on under its new name, with nothing in its place.
    check("mv r r.old; sleep 2.5; echo a3 >>r.old", "a1\na2\na3\n");
    check("mv r r.old; echo b1 >r; sleep 2.5; echo b2 >>r; mv r r.older; echo c >r", "a1\na2\nb1\nb2\nc\n");
}

fn a_log_file_that_is_cut_short_is_shown_from_its_beginning_again(at: Where) {
    assert_eq!(
        shown(at, "echo a1 >r; sleep 3.3; echo b >r; sleep 2.5; printf '' >r; sleep 2.5; echo c >>r"),
        "a1\nb\nc\n"
    );
}

/// A guest's server lets in fewer channels.
fn many_log_files_are_shown_to_their_ends(at: Where) {
    let logfiles = (0..32).map(|at| format!("log {at}\n'é"));
    let logfiles: Vec<_> = logfiles
        .map(|name| protocol::command::Logfile { filename: name.clone().into(), name, follow: false })
        .collect();
    let line = "all() { i=0; while [ $i -lt 32 ]; do eval \"$1\"; i=$((i + 1)); done; }\n\
                n=$(printf \"\\n'\\303\\251\"); all 'echo $i a >\"log $i$n\"'; sleep 8; \
                all 'echo $i b >>\"log $i$n\"; mv \"log $i$n\" old$i'";
    let told = told(&Stage::new(at), line, |shell| shell.logfiles = logfiles);
    for at in 0..32 {
        let of_this = told.iter().filter_map(|told| told.strip_prefix(&format!("log {at}\n'é ")));
        assert_eq!(of_this.collect::<String>(), format!("{at} a\n{at} b\n"), "{told:?}");
    }
}

fn a_log_file_that_can_not_be_is_told(at: Where) {
    let stage = Stage::new(at);
    let logfile =
        |name: &str, filename: PathBuf| protocol::command::Logfile { name: name.to_owned(), filename, follow: false };
    let logfiles = vec![
        logfile("lost", stage.path("elsewhere/k.log")),
        logfile("late", stage.path("work/k.log")),
        logfile("lazy", "sub/k.log".into()),
    ];
    let told = told(&stage, "echo done", |shell| shell.logfiles = logfiles);
    let why = "header log file lost: nothing to show, as there is no directory ROOT/elsewhere\n";
    assert_eq!(told, ["stdout done\n", why, "rc 0", "header elapsedTime=T\n", "elapsed", "complete None"]);
}

fn a_log_file_that_is_followed_begins_where_it_ended_when_it_was_noticed(at: Where) {
    let stage = Stage::with(at, &[("work/k.log", "old\n")]);
    let logfile = protocol::command::Logfile { name: "kernel".to_owned(), filename: "k.log".into(), follow: true };
    let told = told(&stage, "echo new >>k.log; sleep 3; echo newer >>k.log", |shell| shell.logfiles = vec![logfile]);
    let expected = ["kernel newer\n", "rc 0", "header elapsedTime=T\n", "elapsed", "complete None"];
    assert_eq!(told, expected);
}

fn workdirs_and_words_are_any_text(at: Where) {
    let change = |shell: &mut Shell| {
        shell.workdir = " -a\nb'é$".into();
        let words = ["printf", "%s|", " x ", "-n", "$HOME", "it's", "a\\nb", "", "é\ny"];
        shell.command = program(words, Path::new("")).command;
    };
    let mut told = told(&Stage::new(at), "", change);
    // A line without its newline comes after the rest, or not.
    told.sort();
    let lines = ["stdout  x |-n|$HOME|it's|a\\nb||é\n", "stdout y|\n"];
    assert_eq!(told, ["complete None", "elapsed", "header elapsedTime=T\n", "rc 0", lines[0], lines[1]]);
}

fn variables_are_set_removed_and_expanded_there(at: Where) {
    let mut stage = Stage::new(at);
    stage.environment.extend([("GONE", "1".to_owned()), ("KEPT", "two words".to_owned())]);
    let told = told(&stage, "echo \"${GONE-gone} $KEPT $NEW $PWD\"", |shell| {
        use protocol::command::EnvValue::{Removed, Text};
        shell.env = vec![("GONE".to_owned(), Removed), ("NEW".to_owned(), Text("<${KEPT}>".to_owned()))];
    });
    let expected = "stdout gone two words <two words> ROOT/work\n";
    assert_eq!(told, [expected, "rc 0", "header elapsedTime=T\n", "elapsed", "complete None"]);
}

fn a_terminal_has_a_name(at: Where) {
    let on_a_terminal = |line: &str, env: &[(&str, protocol::command::EnvValue)]| {
        told(&Stage::new(at), line, |shell| {
            shell.use_pty = true;
            shell.env = env.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        })
    };
    let said = |text: &str| {
        [
            format!("stdout {text}\n"),
            "rc 0".into(),
            "header elapsedTime=T\n".into(),
            "elapsed".into(),
            "complete None".into(),
        ]
    };
    use protocol::command::EnvValue::{Removed, Text};
    assert_eq!(on_a_terminal("test -t 1 && echo ${TERM-none}", &[]), said("xterm"));
    assert_eq!(on_a_terminal("echo ${TERM-none}", &[("TERM", Text("vt100".to_owned()))]), said("vt100"));
    assert_eq!(on_a_terminal("echo ${TERM-none}", &[("TERM", Removed)]), said("none"));
    check(at, "echo ${TERM-none}", |_| (), &said("none").each_ref().map(String::as_str));
}

/// A shell would lose it.
fn a_variable_may_have_any_name(at: Where) {
    let told = told(&Stage::new(at), "", |shell| {
        shell.command = program(["/usr/bin/printenv", "odd.name"], Path::new("")).command;
        shell.env = vec![("odd.name".to_owned(), protocol::command::EnvValue::Text("it's".to_owned()))];
    });
    assert_eq!(told, ["stdout it's\n", "rc 0", "header elapsedTime=T\n", "elapsed", "complete None"]);
}

/// In a guest nothing that a command started outlives its kill, also what left its session.
fn what_left_its_session_is_killed_too(at: Where) {
    let stage = Stage::new(at);
    let line = "setsid sh -c 'echo $$ >pid; sleep 1000 & sleep 1000' & while ! [ -s pid ]; do sleep 0.1; done; echo one; echo two; wait";
    told(&stage, line, |shell| shell.max_lines = Some(1));
    let pid = stage.read("work/pid").expect("the grandchild's id").trim().parse().expect("a number");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        if let Ok(grandchild) = process::Pidfd::open(pid) {
            timeout(Duration::from_secs(10), grandchild.exited()).await.expect("the grandchild is killed");
        }
    });
}

#[test]
fn what_left_its_session_is_killed_in_a_guest() {
    what_left_its_session_is_killed_too(Where::Guest);
    what_left_its_session_is_killed_too(Where::Busybox);
}

everywhere! {
    a_log_file_that_is_followed_begins_where_it_ended_when_it_was_noticed
    workdirs_and_words_are_any_text
    variables_are_set_removed_and_expanded_there
    a_variable_may_have_any_name
    a_terminal_has_a_name
    the_workdir_is_made
    programs_are_looked_up_on_the_path_of_the_step
    the_whole_process_group_is_killed
    a_program_that_does_not_exist_fails_with_its_name
    a_log_file_is_shown_from_what_was_written_last_too
    a_log_file_is_shown_to_its_end_whatever_becomes_of_its_name
    a_log_file_that_is_cut_short_is_shown_from_its_beginning_again
    many_log_files_are_shown_to_their_ends
    a_log_file_that_can_not_be_is_told
}
