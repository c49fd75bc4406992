//! Guests whose ssh server allows one session on a connection.

use anyhow::{Result, ensure};
use integration_tests::{Results, Rig, WITH_GUESTS, contains_all};

/// Steps that begin a build in a guest whose ssh server allows so much.
const NARROW: &str = r#"
    steps.StartVM(image="plain", bind=True),
    steps.ShellCommand(name="narrow", command="sudo sed -i 's/^MaxSessions .*/MaxSessions 1/' /etc/ssh/sshd_config"),
    steps.RebootVM(),"#;

#[test]
#[ignore = "long"]
fn command_is_ended_over_another_connection_and_the_step_says_so() -> Result<()> {
    let rig = Rig::with_machine(&format!(
        r#"{NARROW}
           steps.ShellCommand(name="late", command="echo working; sleep 1000", maxTime=3, haltOnFailure=False),
           steps.ShellCommand(name="next", command="pgrep -a sleep; echo alive"),
           steps.StopVM(alwaysRun=True),"#
    ))?;
    let build = rig.run()?;
    build.ended(Results::Failure)?;
    let late = build.step("late")?;
    assert_eq!(late.results, Some(Results::Failure), "{}", build.story());
    contains_all(
        &late.stdio().header,
        &[
            "command timed out: 3 seconds elapsed",
            "SIGKILL went over another connection, as the guest's ssh server allows no more than 1 session on one \
             (sshd_config's MaxSessions)",
            "process killed by signal 9",
        ],
    )?;
    assert_eq!(build.step("next")?.stdio().stdout, "alive\n", "{}", build.story());
    rig.finish()
}

#[test]
#[ignore = "long"]
fn build_is_stopped_and_its_log_files_are_shown() -> Result<()> {
    let rig = Rig::with_machine(&format!(
        r#"{NARROW}
           steps.ShellCommand(name="logs", command="echo one > log; sleep 6; echo two >> log", logfiles={{"L": "log"}}),
           steps.ShellCommand(name="stopped", command="echo working; sleep 1000"),
           steps.StopVM(alwaysRun=True),"#
    ))?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "working", WITH_GUESTS)?;
    rig.master.stop(rig.master.begun(request)?)?;
    let build = rig.master.complete(request, WITH_GUESTS)?;
    build.ended(Results::Cancelled)?;
    assert_eq!(build.step("logs")?.log("L").stdout, "one\ntwo\n", "{}", build.story());
    contains_all(&build.step("stopped")?.stdio().header, &["command interrupted", "went over another connection"])?;
    rig.host.slots_clean()?;
    rig.finish()
}

/// Nothing kills what a freezer of Linux's first cgroups holds.
const FREEZE: &str = "sudo mkdir /tmp/freezer && sudo mount -t cgroup -o freezer none /tmp/freezer && \
     sudo mkdir /tmp/freezer/x && echo $$ | sudo tee /tmp/freezer/x/tasks && echo working && \
     (sudo sh -c 'echo $$ > /tmp/freezer/tasks; echo FROZEN > /tmp/freezer/x/freezer.state' &) ; sleep 1000";

#[test]
#[ignore = "long"]
fn machine_is_ended_with_a_command_that_nothing_else_ends() -> Result<()> {
    let rig = Rig::with_machine(&format!(
        r#"steps.StartVM(image="plain", bind=True),
           steps.ShellCommand(name="frozen", command="{FREEZE}", maxTime=20, haltOnFailure=False),
           steps.ShellCommand(name="next", command="echo alive"),
           steps.StopVM(alwaysRun=True),"#
    ))?;
    let request = rig.master.force("build")?;
    let build = rig.master.ended(rig.master.begun(request)?, WITH_GUESTS)?;
    let frozen = build.step("frozen")?;
    assert_eq!(frozen.results, Some(Results::Failure), "{}", build.story());
    let said = "SIGKILL failed to kill process: vm 'default' was ended: a command in it survived SIGKILL";
    contains_all(&frozen.stdio().header, &[said])?;
    // What comes after it in that machine is told the same, and the worker is as good as before.
    let ended = "vm 'default' was ended: a command in it survived SIGKILL";
    contains_all(&build.step("next")?.stdio().text(), &[ended])?;
    let failed = |line: &str| line.contains("'op': 'complete'") && line.contains("SIGKILL failed");
    ensure!(rig.master.transcript().lines(failed).is_empty(), "the command was completed with a failure");
    Ok(())
}
