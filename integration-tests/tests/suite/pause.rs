//! Pausing and resuming a worker, as a master with `KVMWorker` follows it.

use anyhow::{Result, ensure};
use integration_tests::{KvmHost, Master, Protocol, Rig, SOON, over_both_protocols};
use rustix::process::Signal;

over_both_protocols!(kvm_worker_begins_no_builds_while_the_worker_is_paused);

fn kvm_worker_begins_no_builds_while_the_worker_is_paused(protocol: Protocol) -> Result<()> {
    let steps = r#"steps.ShellCommand(command="echo hello"),"#;
    let master = Master::plan()
        .speaking(protocol)
        .worker("other")
        .python(r#"c["workers"] = [worker.KVMWorker(each.name, each.password) for each in c["workers"]]"#)
        .builder_with("build", steps, r#"workernames=["worker"]"#)
        .builder_with("elsewhere", steps, r#"workernames=["other"]"#)
        .start()?;
    let mut others = KvmHost::of(&master)?;
    others.set("worker.name", "other");
    let mark = master.transcript().mark();
    let mut other = others.start()?;
    master.attached(mark, "other")?;
    let rig = Rig::of(master, |_| Ok(()))?;

    rig.worker.signal(Signal::USR2)?;
    rig.worker.transcript().find("paused: SIGUSR2", SOON)?;
    let kept = rig.master.force("build")?;
    // Asked for later, and done before.
    rig.master.run("elsewhere")?.succeeded()?;
    ensure!(!rig.master.has_begun(kept)?, "a paused worker was given a build");
    for (verb, expected) in [
        ("pause", "paused already\n"),
        ("resume", "resumed: builds get machines again\n"),
        ("resume", "not paused\n"),
        ("pause", "paused: no build gets a machine until kvm-worker resume\n"),
        ("resume", "resumed: builds get machines again\n"),
    ] {
        let output = rig.host.ask(&[verb])?;
        ensure!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8(output.stdout)?, expected, "{verb}");
    }
    rig.master.complete(kept, SOON)?.succeeded()?;
    let status = other.stop()?;
    ensure!(status.success(), "the other worker ended with {status}");
    rig.finish()
}
