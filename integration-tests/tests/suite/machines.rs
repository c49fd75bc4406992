//! Builds in machines: commands, files and what becomes of a machine's disk.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::{Result, ensure};
use integration_tests::{Guest, Master, Results, Rig, WITH_GUESTS, contains_all};

#[test]
fn commands_and_files_go_into_a_machine_and_out_again() -> Result<()> {
    let rig = Rig::with_guest(
        r#"steps.ShellCommand(name="make", command="mkdir -p in/sub && echo text > in/sub/file && chmod 750 in/sub/file && touch -d @1000000000 in/sub/file"),
           steps.StartVM(image="plain", console_log="console"),
           steps.VMCopyIn(src="in", dest="in"),
           steps.VMShellCommand(name="look", command="cat in/sub/file; pwd; whoami; echo trouble >&2"),
           steps.VMSetPropertyFromCommand(command=["echo", "made in the guest"], property="said"),
           steps.VMShellCommand(name="work", command="mkdir out && cp -a in/sub/file out/ && ln -s file out/link && seq 100000 > out/numbers"),
           steps.VMCopyOut(src="out", dest="out"),
           steps.VMShellCommand(name="tell", command="echo told to the console | sudo tee /dev/ttyS0; sleep 1", console_log="kernel"),
           steps.VMShellCommand(name="fail", command="exit 7", flunkOnFailure=False),
           steps.StopVM(),"#,
        Guest::plain()?.booting(),
    )?;
    let build = rig.run()?;
    rig.host.slots_clean()?;
    build.succeeded()?;
    for step in &build.steps {
        let expected = if step.name == "fail" { Results::Failure } else { Results::Success };
        ensure!(step.results == Some(expected), "{}: {}", step.name, build.story());
    }
    let look = build.step("look")?.stdio();
    let workdir = rig.host.basedir().join("build/build");
    let seen = format!("text\n{}\nbuildbot\n", workdir.display());
    assert_eq!((look.stdout.as_str(), look.stderr.as_str()), (seen.as_str(), "trouble\n"));
    assert_eq!(build.property("said"), "made in the guest");
    assert_eq!(build.property("vm_ssh_port"), rig.host.ssh_port(0));
    contains_all(&build.step("fail")?.stdio().header, &["program finished with exit code 7"])?;
    contains_all(&build.step("start-vm")?.log("console").stdout, &["initrd: mounting /dev/vda"])?;
    contains_all(&build.step("tell")?.log("kernel").stdout, &["told to the console\n"])?;

    let here = rig.host.basedir().join("build/build");
    let file = fs::metadata(here.join("out/file"))?;
    assert_eq!((file.permissions().mode() & 0o777, file.mtime()), (0o750, 1_000_000_000));
    assert_eq!(fs::read_to_string(here.join("out/link"))?, "text\n");
    let numbers: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    ensure!(fs::read_to_string(here.join("out/numbers"))? == numbers, "numbers came out of the machine changed");
    rig.finish()
}

#[test]
fn plain_steps_run_in_a_machine_that_is_bound() -> Result<()> {
    let guests_own = "test -d /usr/local/lib/guest && echo in the guest || echo on the host";
    let rig = Rig::with_machine(&format!(
        r#"steps.ShellCommand(name="before", command="{guests_own}"),
           steps.StartVM(image="plain", bind=True),
           steps.ShellCommand(name="bound", command="{guests_own}"),
           steps.StopVM(),
           steps.ShellCommand(name="after", command="{guests_own}"),"#
    ))?;
    let build = rig.run()?;
    build.succeeded()?;
    for (step, place) in [("before", "on the host\n"), ("bound", "in the guest\n"), ("after", "on the host\n")] {
        assert_eq!(build.step(step)?.stdio().stdout, place, "{step}");
    }
    rig.finish()
}

#[test]
fn commands_in_a_machine_get_their_environment_and_obey_limits() -> Result<()> {
    let rig = Rig::with_machine(
        r#"steps.StartVM(image="plain"),
           steps.VMShellCommand(name="environment", command='echo "$GIVEN from $HOME"', env={"GIVEN": "it's $1"}),
           steps.VMShellCommand(name="input", command=["cat"], initialStdin="given\n"),
           steps.VMShellCommand(name="timeout", command="echo begun; sleep 1000 & sleep 1000", timeout=3, flunkOnFailure=False),
           steps.VMShellCommand(name="polite", command="trap 'echo cleaned up; exit 7' TERM; echo begun; sleep 1000 & wait",
                                maxTime=3, sigtermTime=20, flunkOnFailure=False),
           steps.VMShellCommand(name="wordy", command="yes", max_lines=20, flunkOnFailure=False),
           steps.VMShellCommand(name="left", command="""
               for try in $(seq 20); do
                   ps -eo stat,args | grep -qE '^[^Z].* (sleep 1000|yes)$' || { echo none; exit; }
                   timeout 0.5 tail -f /dev/null
               done
               ps -ef"""),
           steps.StopVM(),"#,
    )?;
    let build = rig.run()?;
    build.succeeded()?;
    for (step, stdout) in [
        ("environment", "it's $1 from /home/buildbot\n"),
        ("input", "given\n"),
        ("timeout", "begun\n"),
        ("polite", "begun\ncleaned up\n"),
        ("left", "none\n"),
    ] {
        assert_eq!(build.step(step)?.stdio().stdout, stdout, "{step}");
    }
    contains_all(&build.step("timeout")?.stdio().header, &["command timed out: 3 seconds without output"])?;
    contains_all(&build.step("polite")?.stdio().header, &["command timed out: 3 seconds elapsed", "exit code 7"])?;
    contains_all(&build.step("wordy")?.stdio().header, &["command exceeds max lines"])?;
    rig.finish()
}

#[test]
fn stopping_a_build_ends_its_command_in_the_machine_and_then_the_machine() -> Result<()> {
    let rig = Rig::with_machine(
        r#"steps.StartVM(image="plain"),
           steps.VMShellCommand(command="echo working; sleep 1000"),
           steps.StopVM(),"#,
    )?;
    let request = rig.master.force("build")?;
    rig.master.printed(request, "working", WITH_GUESTS)?;
    let id = rig.master.begun(request)?;
    rig.master.stop(id)?;
    let build = rig.master.ended(id, WITH_GUESTS)?;
    rig.host.slots_clean()?;
    build.ended(Results::Cancelled)?;
    assert_eq!(build.step("stop-vm")?.results, Some(Results::Success));
    rig.finish()
}

#[test]
fn copies_stay_below_the_basedir_on_the_host() -> Result<()> {
    let rig = Rig::with_machine(
        r#"steps.ShellCommand(name="make", command="ln -s ../../.. outside"),
           steps.StartVM(image="plain"),
           steps.VMCopyIn(name="in", src="/etc/hostname", dest="stolen", alwaysRun=True),
           steps.VMCopyIn(name="in by link", src="outside/password", dest="stolen", alwaysRun=True),
           steps.VMCopyOut(name="out", src="/etc/hostname", dest="../../../escaped", alwaysRun=True),
           steps.VMCopyOut(name="out by link", src="/etc/hostname", dest="outside/escaped", alwaysRun=True),
           steps.VMShellCommand(name="look", command="test -e stolen && cat stolen || echo nothing", alwaysRun=True),
           steps.StopVM(),"#,
    )?;
    let build = rig.run()?;
    for step in ["in", "in by link", "out", "out by link"] {
        let step = build.step(step)?;
        ensure!(matches!(step.results, Some(Results::Exception | Results::Failure)), "{}: {step:?}", step.name);
    }
    assert_eq!(build.step("look")?.stdio().stdout, "nothing\n");
    ensure!(!rig.host.path("escaped").exists(), "a copy was written outside the basedir");
    rig.finish()
}

/// Links that a guest made, and that a copy brought to the host as what they are.
#[test]
fn what_a_guest_left_on_the_host_leads_to_nobody_elses_files() -> Result<()> {
    let steps = r#"steps.StartVM(image="plain"),
           steps.VMShellCommand(name="make", command="""
               mkdir tree; echo mine > tree/file; ln -s file tree/near
               ln -s ../../../other tree/other; ln -s /etc tree/etc; ln -s ../../../../password tree/password"""),
           steps.VMCopyOut(name="tree", src="tree", dest="tree"),
           steps.VMCopyIn(name="near", src="tree/near", dest="got"),
           steps.VMCopyIn(name="of another builder", src="tree/other/secret", dest="stolen", alwaysRun=True),
           steps.VMCopyIn(name="of the host", src="tree/etc/hostname", dest="stolen", alwaysRun=True),
           steps.VMCopyIn(name="of the worker", src="tree/password", dest="stolen", alwaysRun=True),
           steps.VMCopyOut(name="to another builder", src="tree/file", dest="tree/other/escaped", alwaysRun=True),
           steps.VMCopyOut(name="to the host", src="tree/file", dest="tree/etc/escaped", alwaysRun=True),
           steps.VMShellCommand(name="look", command="cat got; test -e stolen && cat stolen || echo nothing", alwaysRun=True),
           steps.StopVM(),"#;
    let master = Master::plan().builder("build", steps).start()?;
    let rig = Rig::of(master, |host| {
        host.image("plain", Guest::plain()?);
        host.set("worker.host_commands", false);
        Ok(())
    })?;
    let other = rig.host.basedir().join("other");
    fs::create_dir(&other)?;
    fs::write(other.join("secret"), "secret\n")?;
    let build = rig.run()?;
    for step in ["make", "tree", "near"] {
        ensure!(build.step(step)?.results == Some(Results::Success), "{step}: {}", build.story());
    }
    let refused = ["of another builder", "of the host", "of the worker", "to another builder", "to the host"];
    for step in refused {
        let step = build.step(step)?;
        ensure!(step.results == Some(Results::Failure), "{}: {step:?}", step.name);
        contains_all(&step.stdio().text(), &["leads out of ", "on the host, where no copy goes"])?;
    }
    assert_eq!(build.step("look")?.stdio().stdout, "mine\nnothing\n");
    let there: Vec<_> = fs::read_dir(&other)?.collect::<Result<Vec<_>, _>>()?;
    ensure!(there.len() == 1, "{there:?}");
    rig.finish()
}

#[test]
fn fresh_machine_is_always_new_and_a_persistent_one_keeps_its_disk() -> Result<()> {
    let machine = |mode: &str| {
        format!(
            r#"steps.StartVM(image="plain", mode="{mode}"),
               steps.VMShellCommand(command="cat ~/earlier || echo nothing; echo something > ~/earlier"),
               steps.StopVM(),"#
        )
    };
    let master =
        Master::plan().builder("fresh", &machine("fresh")).builder("persistent", &machine("persistent")).start()?;
    let rig = Rig::of(master, |host| {
        host.image("plain", Guest::plain()?);
        Ok(())
    })?;
    for (builder, found) in
        [("fresh", "nothing\n"), ("fresh", "nothing\n"), ("persistent", "nothing\n"), ("persistent", "something\n")]
    {
        let build = rig.master.run_within(builder, WITH_GUESTS)?;
        build.succeeded()?;
        assert_eq!(build.step("vm-shell")?.stdio().stdout, found, "{builder}");
    }
    rig.finish()
}
