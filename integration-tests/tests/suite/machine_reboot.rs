//! Guests that restart, and sessions that are lost though the machine runs.

use anyhow::{Result, ensure};
use integration_tests::{Guest, Results, Rig, contains_all};
use toml::Value as Key;

/// What differs from one run of a kernel to the next.
const RUN: &str = "cat /proc/sys/kernel/random/boot_id";

#[test]
#[ignore = "long"]
fn rebooted_guest_keeps_its_disk_and_its_network() -> Result<()> {
    let rig = Rig::with_machine(&format!(
        r#"steps.StartVM(image="plain", network="lan", bind=True),
           steps.ShellCommand(name="before", command="echo kept > ~/file; {RUN}"),
           steps.RebootVM(console_log="kernel"),
           steps.ShellCommand(name="after", command="{RUN}"),
           steps.ShellCommand(name="look", command="cat ~/file; ip -4 -o address | grep -o 10.77.0.1/24; grep kvm-worker /etc/hosts"),
           steps.StopVM(),"#
    ))?;
    let build = rig.run()?;
    rig.host.slots_clean()?;
    build.succeeded()?;
    let [before, after] = ["before", "after"].map(|name| build.step(name).map(|step| step.stdio().stdout));
    let (before, after) = (before?, after?);
    ensure!(after.len() > 30 && before != after, "the guest did not restart: {}", build.story());
    assert_eq!(build.step("look")?.stdio().stdout, "kept\n10.77.0.1/24\n10.77.0.1 default # kvm-worker\n");
    let reboot = build.step("reboot-vm")?;
    contains_all(&reboot.log("kernel").stdout, &["guest: reboot: stopping processes", "initrd: mounting /dev/vda"])?;
    contains_all(&reboot.state_string, &["rebooted"])?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn guest_that_does_not_restart_by_itself_is_reset() -> Result<()> {
    let rig = Rig::with(
        &format!(
            r#"steps.StartVM(image="plain"),
               steps.VMShellCommand(name="before", command="{RUN}"),
               steps.RebootVM(),
               steps.VMShellCommand(name="after", command="{RUN}"),
               steps.StopVM(),"#
        ),
        |host| {
            let odd = [("base", "linux"), ("reboot", "echo not today >&2; exit 3")];
            host.set(
                "profiles.odd",
                Key::Table(odd.map(|(key, value)| (key.to_owned(), value.into())).into_iter().collect()),
            );
            host.image("plain", Guest::plain()?.with("profile", "odd"));
            Ok(())
        },
    )?;
    let build = rig.run()?;
    build.succeeded()?;
    let text = build.step("reboot-vm")?.stdio().text();
    contains_all(&text, &["the guest's reboot command failed: not today; pressing its reset button"])?;
    ensure!(build.step("before")?.stdio().stdout != build.step("after")?.stdio().stdout, "the guest did not restart");
    rig.finish()
}

#[test]
#[ignore = "long"]
fn guest_that_does_not_come_back_fails_the_step_with_its_console() -> Result<()> {
    let rig = Rig::with_machine(
        r#"steps.StartVM(image="plain"),
           steps.VMShellCommand(command="sudo mv /usr/sbin/sshd /usr/sbin/sshd.away"),
           steps.RebootVM(timeout=15),
           steps.StopVM(),"#,
    )?;
    let build = rig.run()?;
    rig.host.slots_clean()?;
    build.ended(Results::Exception)?;
    let reboot = build.step("reboot-vm")?;
    contains_all(
        &reboot.stdio().text(),
        &["reboot vm 'default': the guest was not ready within 15 s; its console's last lines:\n"],
    )?;
    rig.finish()
}

/// Runs a command that ends its own session, and then one that wants another.
fn session_is_made_anew(command: &str) -> Result<(String, String)> {
    let rig = Rig::with_machine(&format!(
        r#"steps.StartVM(image="plain"),
           steps.VMShellCommand(name="before", command="{RUN}"),
           Repeat("shell", {{"command": "{command}", "vm": "default", "workdir": "/tmp"}}, times=1, flunkOnFailure=False),
           steps.VMShellCommand(name="after", command="{RUN}"),
           steps.StopVM(),"#
    ))?;
    let build = rig.run()?;
    rig.host.slots_clean()?;
    build.succeeded()?;
    let repeat = build.step("repeat")?;
    ensure!(repeat.results == Some(Results::Failure), "its session was to be lost: {}", build.story());
    contains_all(&repeat.stdio().text(), &["the ssh session with vm 'default' was lost"])?;
    let said = |name: &str| build.step(name).map(|step| step.stdio().stdout);
    let runs = (said("before")?, said("after")?);
    rig.finish()?;
    Ok(runs)
}

#[test]
fn lost_session_is_made_anew_by_the_next_command() -> Result<()> {
    let (before, after) = session_is_made_anew("sudo pkill -x sshd; sleep 1000")?;
    ensure!(before == after, "the guest restarted, which it was not to");
    Ok(())
}

#[test]
#[ignore = "long"]
fn guest_that_restarts_by_itself_is_waited_for_by_the_next_command() -> Result<()> {
    let (before, after) = session_is_made_anew("sudo reboot; sleep 1000")?;
    ensure!(before != after, "the guest did not restart");
    Ok(())
}
