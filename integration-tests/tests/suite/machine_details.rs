//! What a guest's user notices: modes, times, terminals, log files and processes are in a machine what they are on a host.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Result, ensure};
use integration_tests::{Guest, Master, Protocol, Results, Rig, over_both_protocols};

fn rig(protocol: Protocol, steps: &str) -> Result<Rig> {
    Rig::of(Master::building_over(protocol, steps)?, |host| {
        host.image("plain", Guest::plain()?);
        Ok(())
    })
}

over_both_protocols! {
    #[ignore = "long"]
    log_files_terminals_and_processes_are_as_on_a_host,
}

fn log_files_terminals_and_processes_are_as_on_a_host(protocol: Protocol) -> Result<()> {
    let rig = rig(
        protocol,
        r#"steps.StartVM(image="plain", bind=True),
           steps.ShellCommand(name="renamed", command="echo a1 > r; sleep 3.3; echo a2 >> r; mv r r.old", logfiles={"r": "r"}),
           steps.ShellCommand(name="removed", command="echo a1 > r; sleep 3.3; echo a2 >> r; rm r", logfiles={"r": "r"}),
           steps.ShellCommand(name="replaced", command="echo a1 > r; sleep 3.3; echo a2 >> r; mv r r.old; echo b > r",
                              logfiles={"r": "r"}),
           steps.ShellCommand(name="terminal", command="echo $TERM; tput colors", usePTY=True),
           steps.ShellCommand(name="hide", command="sudo -n mount -o remount,hidepid=2 /proc; ! test -d /proc/1"),
           steps.ShellCommand(name="killed", command="echo begun; sudo -n sleep 4321 & sudo -n sleep 4321", timeout=4,
                              flunkOnFailure=False),
           steps.ShellCommand(name="left", command=["sudo", "-n", "sh", "-c", """
               for try in $(seq 50); do
                   left=
                   for comm in /proc/[0-9]*/comm; do
                       read -r name < $comm && [ "$name" = sleep ] && left="$left $comm"
                   done
                   [ "$left" ] || { echo none; exit; }
                   usleep 200000 2>/dev/null || sleep 0.2
               done
               echo "$left" """]),
           steps.StopVM(),"#,
    )?;
    let build = rig.run()?;
    build.succeeded()?;
    assert_eq!(build.step("renamed")?.log("r").stdout, "a1\na2\n");
    assert_eq!(build.step("removed")?.log("r").stdout, "a1\na2\n");
    assert_eq!(build.step("replaced")?.log("r").stdout, "a1\na2\nb\n");
    assert_eq!(build.step("terminal")?.stdio().stdout, "xterm\n8\n");
    build.step("killed").and_then(|step| {
        ensure!(step.results == Some(Results::Failure), "{}", build.story());
        Ok(())
    })?;
    assert_eq!(build.step("left")?.stdio().stdout, "none\n");
    ensure!(!rig.worker.transcript().text().contains("may still run"), "the log warns of a command that has ended");
    rig.finish()
}

/// Downloads and times of uploads are out of reach for a 4.3.0 master over MessagePack.
#[test]
fn modes_and_times_are_kept_to_the_last_bit() -> Result<()> {
    let rig = rig(
        Protocol::Pb,
        r#"steps.ShellCommand(name="make", command="mkdir -p in; echo text > in/a; ln in/a in/b; touch -d @-1000.25 in/a"),
           steps.StartVM(image="plain", bind=True),
           steps.StringDownload("text\n", workerdest="setuid", mode=0o6755),
           steps.ShellCommand(name="mode", command="stat -c '%a %U' setuid"),
           steps.VMCopyIn(src="in", dest="in"),
           steps.ShellCommand(name="in", command="stat -c '%n %h %.9Y' in/a in/b"),
           steps.VMCopyOut(src="in", dest="out"),
           steps.FileUpload(workersrc="in/a", masterdest="file", keepstamp=True),
           steps.DirectoryUpload(workersrc="in", masterdest="tree"),
           steps.CopyDirectory(src="build/in", dest="build/new/"),
           steps.ShellCommand(name="copied", command="ls new/in"),
           steps.StopVM(),"#,
    )?;
    let build = rig.run()?;
    build.succeeded()?;
    assert_eq!(build.step("mode")?.stdio().stdout, "6755 buildbot\n");
    assert_eq!(build.step("in")?.stdio().stdout, "in/a 2 -1000.250000000\nin/b 2 -1000.250000000\n");
    assert_eq!(build.step("copied")?.stdio().stdout, "a\nb\n");
    let out = rig.host.basedir().join("build/build/out");
    for path in [out.join("a"), out.join("b"), rig.master.path("file"), rig.master.path("tree/b")] {
        let file = fs::metadata(&path)?;
        assert_eq!((file.mtime(), file.mtime_nsec()), (-1001, 750_000_000), "{}", path.display());
    }
    assert_eq!(fs::metadata(out.join("a"))?.ino(), fs::metadata(out.join("b"))?.ino());
    rig.finish()
}
