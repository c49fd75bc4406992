//! Clones look like machines that were never frozen.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use integration_tests::{Build, Guest, KvmHost, Master, Rig, WITH_GUESTS, contains_all};
use toml::Value;

/// How far a clone's clock may be off.
const TOLERANCE: Duration = Duration::from_millis(100);

fn now() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

/// A time as `date +%s.%N` prints it.
fn time(text: &str) -> Result<Duration> {
    Ok(Duration::from_secs_f64(text.trim().parse().with_context(|| format!("{text:?} is no time"))?))
}

/// Runs a builder, whose machines are to be clones.
fn run(rig: &Rig, builder: &str) -> Result<Build> {
    let build = rig.master.run_within(builder, WITH_GUESTS)?;
    build.succeeded()?;
    assert_eq!(build.property("vm_how"), "clone", "{}", build.story());
    Ok(build)
}

fn make_template(rig: &Rig, image: &str) -> Result<()> {
    let made = rig.host.ask(&["image", "template", image])?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

/// By how much a guest's clock is late or early, at least: nothing if what asking took explains it.
fn off_by(guest: &Guest, port: u16) -> Result<Duration> {
    let mut ssh = Command::new("ssh")
        .args(["-q", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-i", guest.get("key").context("its key")?])
        .args(["-p", &port.to_string(), "buildbot@127.0.0.1"])
        // No process to start for an answer: that takes longer than what is measured.
        .arg("exec bash -c 'while read -r question; do echo $EPOCHREALTIME; done'")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut questions = ssh.stdin.take().context("it is piped")?;
    let mut answers = BufReader::new(ssh.stdout.take().context("it is piped")?).lines();
    let mut least = Duration::MAX;
    for _ in 0..20 {
        let before = now()?;
        writeln!(questions, "what time is it?")?;
        let told = time(&answers.next().context("it is silent")??)?;
        let after = now()?;
        least = least.min(before.saturating_sub(told).max(told.saturating_sub(after)));
    }
    drop(questions);
    ssh.wait()?;
    Ok(least)
}

#[test]
#[ignore = "long"]
fn clones_differ_in_time_random_numbers_and_names() -> Result<()> {
    // What each way to random numbers gives: a device, a file, and getrandom(2), which bash asks for SRANDOM.
    let random =
        "head -c 16 /dev/urandom | od -An -tx8; cat /proc/sys/kernel/random/uuid; echo $SRANDOM$SRANDOM$SRANDOM";
    let names = "cat /etc/machine-id /proc/sys/kernel/hostname; sudo true; getent hosts $(cat /etc/hostname)";
    let look = |vm: &str| {
        format!(
            r#"steps.StartVM(image="plain", vm="{vm}"),
               steps.VMShellCommand(name="random {vm}", vm="{vm}", command=["bash", "-c", "{random}"]),
               steps.VMShellCommand(name="names {vm}", vm="{vm}", command="{names}"),
               steps.VMShellCommand(name="hook {vm}", vm="{vm}", command="cat /tmp/hook"),"#
        )
    };
    let master = Master::plan()
        .builder("pair", &format!("{}{}steps.StopVM(vm='two'), steps.StopVM(),", look("default"), look("two")))
        .builder(
            "hold",
            r#"steps.StartVM(image="plain"), steps.VMShellCommand(command="false"), steps.StopVM(keep_on_failure=600),"#,
        )
        .start()?;
    let guest = Guest::plain()?.with("template", true);
    let named = guest.clone().with("fresh_machine_id", true).with("fresh_host_name", true);
    let named = named.with("post_restore", "date +%s.%N >/tmp/hook; hostname >>/tmp/hook");
    let rig = Rig::of(master, |host: &mut KvmHost| {
        host.image("plain", named);
        host.set("pool.slots", 2);
        Ok(())
    })?;
    make_template(&rig, "plain")?;
    let begun = now()?;
    let build = run(&rig, "pair")?;
    let told = |name: &str| Ok::<_, anyhow::Error>(build.step(name)?.stdio().stdout);

    let (one, two) = (told("random default")?, told("random two")?);
    assert_eq!((one.lines().count(), two.lines().count()), (3, 3), "{one}{two}");
    for (one, two) in one.lines().zip(two.lines()) {
        ensure!(one != two, "both clones have {one}");
    }

    let mut hosts = Vec::new();
    for vm in ["default", "two"] {
        let names = told(&format!("names {vm}"))?;
        let [id, host, found] = names.lines().collect::<Vec<_>>()[..] else {
            anyhow::bail!("not three lines but {names:?}")
        };
        assert_eq!((id.len(), found.split_whitespace().last()), (32, Some(host)), "{names}");
        ensure!(host.starts_with("plain-"), "{host}");
        // sudo has to find the name.
        assert_eq!(build.step(&format!("names {vm}"))?.stdio().stderr, "");
        hosts.push((id.to_owned(), host.to_owned()));

        // Time and names were right when the hook ran.
        let hook = told(&format!("hook {vm}"))?;
        let (date, name) = hook.split_once('\n').context("a time and a name")?;
        let date = time(date)?;
        ensure!(begun - TOLERANCE < date && date < now()? + TOLERANCE, "{date:?} is not from {begun:?} on");
        assert_eq!(name.trim(), host);
    }
    ensure!(hosts[0].0 != hosts[1].0 && hosts[0].1 != hosts[1].1, "{hosts:?}");

    let held = rig.master.run_within("hold", WITH_GUESTS)?;
    assert_eq!(held.property("vm_how"), "clone", "{}", held.story());
    let slot = held.property("vm_slot").as_u64().context("the build has no vm_slot")?;
    let off = off_by(&guest, rig.host.ssh_port(u16::try_from(slot)?))?;
    ensure!(off <= TOLERANCE, "the clock of a clone is off by {off:?}");
    rig.host.ask(&["release", &slot.to_string()])?;
    rig.host.slots_clean()?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn clone_without_programs_that_have_roots_rights_is_restored_by_sudo() -> Result<()> {
    let master = Master::plan()
        .builder(
            "build",
            r#"steps.StartVM(image="plain"),
               steps.VMShellCommand(name="look", command="stat -c %a /var/lib/kvm-worker/restore; date +%s.%N; echo $HOME"),
               steps.VMShellCommand(name="logins", command="while logins=$(ps -C sshd -o args= | grep -c priv); test $logins -gt 1; do sleep 0.1; done; echo $logins", timeout=30, logEnviron=False),
               steps.StopVM(),"#,
        )
        .start()?;
    let guest = Guest::plain()?.with("template", true).with("profile", "sudo");
    let rig = Rig::of(master, |host: &mut KvmHost| {
        host.image("plain", guest);
        let prepare = "exec sudo sh -c 'mkdir -p /var/lib/kvm-worker && cd /var/lib/kvm-worker && cat >restore && chmod 755 restore'";
        let changed = [("base", "linux"), ("prepare", prepare)].map(|(key, value)| (key.to_owned(), value.into()));
        host.set("profiles.sudo", Value::Table(changed.into_iter().collect()));
        Ok(())
    })?;
    make_template(&rig, "plain")?;
    let begun = now()?;
    let build = run(&rig, "build")?;
    let told = build.step("look")?.stdio().stdout;
    let [mode, date, home] = told.lines().collect::<Vec<_>>()[..] else {
        anyhow::bail!("not three lines but {told:?}")
    };
    // The environment is the user's, and no login of the time before the freeze stays.
    assert_eq!((mode, home), ("755", "/home/buildbot"));
    assert_eq!(build.step("logins")?.stdio().stdout, "1\n");
    ensure!(begun - TOLERANCE < time(date)?, "{date} is before {begun:?}");
    rig.host.slots_clean()?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn post_restore_that_fails_is_shown_and_the_machine_booted() -> Result<()> {
    let master = Master::building(r#"steps.StartVM(image="plain"), steps.StopVM(),"#)?;
    let guest = Guest::plain()?.with("post_restore", "echo looking; echo the database is missing >&2; exit 5");
    let rig = Rig::of(master, |host: &mut KvmHost| {
        host.image("plain", guest);
        Ok(())
    })?;
    make_template(&rig, "plain")?;
    let build = rig.run()?;
    build.succeeded()?;
    assert_eq!(build.property("vm_how"), "boot", "{}", build.story());
    contains_all(
        &build.step("start-vm")?.stdio().text(),
        &[
            "booting, as its clone failed: ",
            "run its post_restore command: ended with exit code 5: looking\nthe database is missing",
        ],
    )?;
    rig.host.slots_clean()?;
    rig.finish()
}
