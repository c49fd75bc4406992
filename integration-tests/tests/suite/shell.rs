//! Commands on the host: what a program is given, what comes back, and how it is ended.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration_tests::{Build, Master, Protocol, Results, Rig, SOON, contains_all, over_both_protocols};

/// Runs a builder of these steps on a worker without machines.
fn build(steps: &str) -> Result<Build> {
    build_over(Protocol::Msgpack, steps)
}

/// The same over a protocol.
fn build_over(protocol: Protocol, steps: &str) -> Result<Build> {
    let rig = Rig::building_over(protocol, steps)?;
    let build = rig.run()?;
    rig.nothing_but_the_worker_runs()?;
    rig.finish()?;
    Ok(build)
}

over_both_protocols! {
    arguments_reach_the_program_as_they_are,
    environment_follows_the_rules_of_buildbot,
    exit_code_and_signal_are_told,
    standard_input_is_written_and_closed,
    log_files_are_followed_while_the_command_runs,
    output_arrives_whole_and_in_order,
    limits_of_time_and_lines_end_the_whole_process_group,
    stopping_a_build_kills_the_whole_process_group,
    builders_run_side_by_side,
}

fn arguments_reach_the_program_as_they_are(protocol: Protocol) -> Result<()> {
    let build = build_over(
        protocol,
        r#"steps.ShellCommand(name="argv", command=["printf", "%s|", "a b", "", "ü", "$HOME", "it's"]),
           steps.ShellCommand(name="string", command="echo one; echo two >&2; echo 'th ree'"),"#,
    )?;
    build.succeeded()?;
    let argv = build.step("argv")?.stdio();
    // A last line without an end gets one.
    assert_eq!((argv.stdout.as_str(), argv.stderr.as_str()), ("a b||ü|$HOME|it's|\n", ""));
    let string = build.step("string")?.stdio();
    assert_eq!((string.stdout.as_str(), string.stderr.as_str()), ("one\nth ree\n", "two\n"));
    contains_all(&string.header, &["echo one;", " in dir ", "argv: ", "PWD=", "program finished with exit code 0"])
}

fn environment_follows_the_rules_of_buildbot(protocol: Protocol) -> Result<()> {
    let rig = Rig::building_over(
        protocol,
        r#"steps.ShellCommand(
               command='echo "plain=$PLAIN list=$LIST from=$FROM unset=${USER_GONE-gone}"; test "$PWD" = "$(pwd -P)"',
               env={"PLAIN": "x y", "LIST": ["/p", "/q"], "FROM": "<${HOME}>", "USER_GONE": None},
               logEnviron=False),"#,
    )?;
    let build = rig.run()?;
    build.succeeded()?;
    let stdio = build.step("shell")?.stdio();
    assert_eq!(stdio.stdout, format!("plain=x y list=/p:/q from=<{}> unset=gone\n", rig.host.home().display()));
    ensure!(!stdio.header.contains("PLAIN="), "logEnviron=False shows the environment:\n{}", stdio.header);
    rig.finish()
}

fn exit_code_and_signal_are_told(protocol: Protocol) -> Result<()> {
    let build = build_over(
        protocol,
        r#"steps.ShellCommand(name="code", command="exit 3", flunkOnFailure=False),
           steps.ShellCommand(name="signal", command="kill -9 $$", flunkOnFailure=False),
           steps.ShellCommand(name="missing", command=["no-such-program", "-v"], flunkOnFailure=False),"#,
    )?;
    for name in ["code", "signal", "missing"] {
        assert_eq!(build.step(name)?.results, Some(Results::Failure), "{name}");
    }
    contains_all(&build.step("code")?.stdio().header, &["program finished with exit code 3"])?;
    contains_all(&build.step("signal")?.stdio().header, &["process killed by signal 9"])?;
    contains_all(&build.step("missing")?.stdio().stderr, &["no-such-program"])
}

fn standard_input_is_written_and_closed(protocol: Protocol) -> Result<()> {
    let build = build_over(
        protocol,
        r#"steps.ShellCommand(name="given", command=["cat"], initialStdin="first\nsecond\n"),
           steps.ShellCommand(name="none", command=["cat"]),"#,
    )?;
    build.succeeded()?;
    assert_eq!(build.step("given")?.stdio().stdout, "first\nsecond\n");
    assert_eq!(build.step("none")?.stdio().stdout, "");
    Ok(())
}

#[test]
fn terminal_is_given_when_asked_for() -> Result<()> {
    let build = build(
        r#"steps.ShellCommand(name="with", command="test -t 1 && echo terminal", usePTY=True),
           steps.ShellCommand(name="without", command="test -t 1 || echo pipe"),"#,
    )?;
    build.succeeded()?;
    assert_eq!(build.step("with")?.stdio().stdout, "terminal\n");
    assert_eq!(build.step("without")?.stdio().stdout, "pipe\n");
    Ok(())
}

fn log_files_are_followed_while_the_command_runs(protocol: Protocol) -> Result<()> {
    let build = build_over(
        protocol,
        r#"steps.ShellCommand(name="before", command="echo old >> followed.log"),
           steps.ShellCommand(
               name="follow",
               command="echo new >> whole.log; echo new >> followed.log; sleep 5; echo late >> whole.log; echo late >> followed.log",
               logfiles={"whole": "whole.log", "followed": {"filename": "followed.log", "follow": True}}),"#,
    )?;
    build.succeeded()?;
    let follow = build.step("follow")?;
    assert_eq!(follow.log("whole").stdout, "new\nlate\n");
    let followed = follow.log("followed").stdout;
    ensure!(followed.ends_with("late\n") && !followed.contains("old"), "followed.log arrived as {followed:?}");
    Ok(())
}

fn output_arrives_whole_and_in_order(protocol: Protocol) -> Result<()> {
    let build = build_over(
        protocol,
        r#"steps.ShellCommand(name="many", command=["seq", "100000"]),
           steps.ShellCommand(name="long", command="head -c 20000 /dev/zero | tr '\\0' x; echo ü"),
           steps.ShellCommand(name="progress", command=r"printf '1%%\r2%%\r3%%\n'"),
           steps.ShellCommand(name="broken", command=r"printf 'a\377b\n'"),"#,
    )?;
    build.succeeded()?;
    let numbers: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    ensure!(build.step("many")?.stdio().stdout == numbers, "some of 100000 lines are lost or out of order");
    // The master's limit cuts a long line into several; no character may be lost by that.
    let long = build.step("long")?.stdio().stdout.replace('\n', "");
    ensure!(long == "x".repeat(20_000) + "ü", "a line of 20001 characters arrived as {}", long.chars().count());
    assert_eq!(build.step("progress")?.stdio().stdout, "1%\n2%\n3%\n");
    assert_eq!(build.step("broken")?.stdio().stdout, "a\u{fffd}b\n");
    Ok(())
}

fn limits_of_time_and_lines_end_the_whole_process_group(protocol: Protocol) -> Result<()> {
    let build = build_over(
        protocol,
        r#"steps.ShellCommand(name="silent", command="echo begun; sleep 1000 & sleep 1000", timeout=1, flunkOnFailure=False),
           steps.ShellCommand(name="endless", command="while sleep 0.2; do echo on; done", maxTime=2, flunkOnFailure=False),
           steps.ShellCommand(name="wordy", command="yes", max_lines=20, flunkOnFailure=False),
           steps.ShellCommand(name="polite", timeout=1, sigtermTime=20, flunkOnFailure=False,
                              command="trap 'echo cleaned up; exit 7' TERM; sleep 1000 & wait"),"#,
    )?;
    let check = |name: &str, header: &[&str]| {
        let step = build.step(name)?;
        ensure!(step.results == Some(Results::Failure), "{name}: {}", build.story());
        contains_all(&step.stdio().header, header)
    };
    for (name, shown) in [("silent", "timed out"), ("endless", "timed out"), ("wordy", "max lines")] {
        contains_all(&build.step(name)?.state_string, &[shown])?;
    }
    check("silent", &["command timed out: 1 seconds without output", "attempting to kill", "signal 9"])?;
    check("endless", &["command timed out: 2 seconds elapsed"])?;
    check("wordy", &["command exceeds max lines", "/20 written/allowed"])?;
    check("polite", &["1 seconds without output", "exit code 7"])?;
    assert_eq!(build.step("silent")?.stdio().stdout, "begun\n");
    assert_eq!(build.step("polite")?.stdio().stdout, "cleaned up\n");
    Ok(())
}

fn stopping_a_build_kills_the_whole_process_group(protocol: Protocol) -> Result<()> {
    let rig = Rig::building_over(
        protocol,
        r#"steps.ShellCommand(command="sleep 1000 & (sleep 1000 & echo started; wait); wait"),"#,
    )?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "started", SOON)?;
    let id = rig.master.begun(request)?;
    rig.master.stop(id)?;
    let build = rig.master.ended(id, SOON)?;
    build.ended(Results::Cancelled)?;
    contains_all(&build.step("shell")?.stdio().header, &["command interrupted"])?;
    rig.nothing_but_the_worker_runs()?;
    rig.finish()
}

#[test]
fn grandchild_that_holds_the_output_does_not_hang_the_build() -> Result<()> {
    let rig = Rig::building(r#"steps.ShellCommand(command="sleep 1000 & echo done"),"#)?;
    let begun = Instant::now();
    let build = rig.run()?;
    ensure!(begun.elapsed() < Duration::from_secs(30), "the command took {:?}", begun.elapsed());
    build.succeeded()?;
    let stdio = build.step("shell")?.stdio();
    assert_eq!(stdio.stdout, "done\n");
    contains_all(&stdio.header, &["holds its output"])?;
    // As with Buildbot's own worker, what a command leaves running after it ended well may run on.
    let running = rig.host.running()?;
    let left = running.iter().find(|process| process.command == "sleep 1000").context("the grandchild has ended")?;
    rig.host.kill(left)?;
    rig.finish()
}

fn builders_run_side_by_side(protocol: Protocol) -> Result<()> {
    // Each waits for the other: one after the other they would never end.
    let meet = |own: &str, other: &str| {
        format!(
            r#"steps.ShellCommand(command="touch ../../{own}; until test -e ../../{other}; do sleep 0.1; done", maxTime=30),"#
        )
    };
    let master =
        Master::plan().speaking(protocol).builder("left", &meet("l", "r")).builder("right", &meet("r", "l")).start()?;
    let rig = Rig::of(master, |_| Ok(()))?;
    let requests = [rig.master.force("left")?, rig.master.force("right")?];
    for request in requests {
        rig.master.complete(request, SOON)?.succeeded()?;
    }
    rig.finish()
}
