//! Drains with builds that run, and others behind them: none is lost, whoever sees to it.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use integration_tests::{KvmHost, Master, MasterPlan, Protocol, Request, Results, Rig, SOON, Worker, contains_all};
use rustix::process::Signal;

const BUILDERS: [&str; 4] = ["first", "second", "third", "fourth"];

/// Waits for a file, is quiet for a second, and goes on.
const STEPS: &str = r#"
    steps.ShellCommand(name="wait", command="echo begun; until test -e ../go-on; do sleep 0.1; done"),
    steps.MasterShellCommand(command="sleep 1"),
    steps.ShellCommand(name="end", command="echo ended"),"#;

const KVM_WORKER: &str = r#"c["workers"] = [worker.KVMWorker(each.name, each.password) for each in c["workers"]]"#;

/// A master whose four builders wait.
fn plan(protocol: Protocol) -> MasterPlan {
    BUILDERS.into_iter().fold(Master::plan().speaking(protocol), |plan, builder| plan.builder(builder, STEPS))
}

fn start(plan: MasterPlan) -> Result<Rig> {
    Rig::of(plan.start()?, |host| {
        // Longer than the builds are quiet, and on a busy host, too: a second is enough for one with nothing else to do.
        host.set("worker.drain_quiet", 20);
        Ok(())
    })
}

/// A build that runs at each builder, and one behind it.
fn busy(rig: &Rig) -> Result<[Vec<Request>; 2]> {
    let force = || BUILDERS.into_iter().map(|builder| rig.master.force(builder)).collect::<Result<Vec<_>>>();
    let running = force()?;
    for request in &running {
        rig.master.printed(*request, "begun", SOON)?;
    }
    Ok([running, force()?])
}

fn go_on(host: &KvmHost, builder: &str) -> Result<()> {
    let file: PathBuf = host.basedir().join(builder).join("go-on");
    fs::write(&file, "").with_context(|| format!("write {}", file.display()))
}

fn ends_well(worker: &mut Worker) -> Result<()> {
    let status = worker.wait(2 * SOON)?;
    ensure!(status.code() == Some(0), "the worker ended with {status}");
    Ok(())
}

fn said(output: &Output) -> Result<String> {
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "it ended with {} and {error}", output.status);
    Ok(String::from_utf8(output.stdout.clone())?)
}

/// Drains a worker with four builds, and has them end: each at its first try, and each of those behind them at the last one
/// of these, which begins when a worker is there again.
fn none_is_lost(plan: MasterPlan, tries: &[Results], drain: impl FnOnce(&Rig) -> Result<()>) -> Result<()> {
    let mut rig = start(plan)?;
    let [running, queued] = busy(&rig)?;
    drain(&rig)?;
    rig.worker.transcript().find("draining: waiting for", SOON)?;
    for builder in BUILDERS {
        go_on(&rig.host, builder)?;
    }
    ends_well(&mut rig.worker)?;
    rig.host.nothing_left()?;
    for request in &running {
        rig.master.complete(*request, SOON)?.succeeded()?;
        let tries = rig.master.tries(*request)?.len();
        ensure!(tries == 1, "a build that ran was tried {tries} times");
    }
    rig.worker = rig.host.attach(&rig.master)?;
    for request in &queued {
        rig.master.complete(*request, 2 * SOON)?.succeeded()?;
        let results: Vec<_> = rig.master.tries(*request)?.iter().map(|build| build.results).collect();
        let expected: Vec<_> = tries.iter().copied().map(Some).collect();
        ensure!(results == expected, "a build behind one that ran: {results:?}");
    }
    rig.finish()
}

#[test]
#[ignore = "long"]
fn over_pb_the_master_lets_the_builds_end() -> Result<()> {
    none_is_lost(plan(Protocol::Pb), &[Results::Success], |rig| {
        rig.worker.signal(Signal::USR1)?;
        rig.worker.transcript().find("asked the master for no more builds", SOON).map(drop)
    })
}

#[test]
#[ignore = "long"]
fn over_pb_with_kvm_worker_it_is_the_same() -> Result<()> {
    none_is_lost(plan(Protocol::Pb).python(KVM_WORKER), &[Results::Success], |rig| {
        rig.worker.signal(Signal::USR1).map(drop)
    })
}

#[test]
#[ignore = "long"]
fn over_msgpack_with_kvm_worker_the_master_learns_of_it_and_lets_the_builds_end() -> Result<()> {
    none_is_lost(plan(Protocol::Msgpack).python(KVM_WORKER), &[Results::Success], |rig| {
        let said = said(&rig.host.ask(&["drain"])?)?;
        let expected = "draining: 4 builders have a build here (first, fourth, second, third); the master shuts the worker \
                        down after them\n";
        assert_eq!(said, expected);
        Ok(())
    })
}

/// Buildbot 4.3.0 waits for the answer to its ping as long as it takes, and tries the build again if the line ends instead.
#[test]
#[ignore = "long"]
fn over_msgpack_without_it_the_worker_holds_what_is_to_begin_and_gives_it_back() -> Result<()> {
    none_is_lost(plan(Protocol::Msgpack), &[Results::Retry, Results::Success], |rig| {
        let said = said(&rig.host.ask(&["drain"])?)?;
        let expected =
            "draining: 4 builders have a build here (first, fourth, second, third); the worker ends after them\n";
        assert_eq!(said, expected);
        Ok(())
    })
}

/// The signal's way to the same.
#[test]
#[ignore = "long"]
fn a_builder_that_is_done_has_its_next_build_held_while_another_goes_on() -> Result<()> {
    let mut rig = start(plan(Protocol::Msgpack))?;
    let [running, queued] = busy(&rig)?;
    rig.worker.signal(Signal::USR1)?;
    for builder in &BUILDERS[..3] {
        go_on(&rig.host, builder)?;
    }
    for request in &running[..3] {
        rig.master.complete(*request, SOON)?.succeeded()?;
    }
    let held = "draining: waiting for a command of 'fourth'; builds held: 3";
    rig.worker.transcript().find(held, SOON)?;
    ensure!(queued.iter().all(|request| rig.master.tries(*request).is_ok_and(|tries| tries.is_empty())), "not held");
    go_on(&rig.host, "fourth")?;
    rig.master.complete(running[3], SOON)?.succeeded()?;
    ends_well(&mut rig.worker)?;
    rig.host.nothing_left()
}

#[test]
fn a_worker_without_builds_ends_at_once() -> Result<()> {
    for protocol in [Protocol::Msgpack, Protocol::Pb] {
        for python in ["", KVM_WORKER] {
            let mut rig = Rig::of(plan(protocol).python(python).start()?, |_| Ok(()))?;
            rig.worker.signal(Signal::USR1)?;
            ends_well(&mut rig.worker)?;
            rig.host.nothing_left()?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "long"]
fn a_drain_can_be_waited_for() -> Result<()> {
    let mut rig = start(plan(Protocol::Msgpack).python(KVM_WORKER))?;
    let running = rig.master.force("first")?;
    rig.master.printed(running, "begun", SOON)?;
    let output = thread::scope(|scope| {
        let waits = scope.spawn(|| rig.host.ask(&["drain", "--wait"]));
        rig.worker.transcript().find("draining: waiting for a command of 'first'", SOON)?;
        ensure!(!waits.is_finished(), "it did not wait");
        let pause = rig.host.ask(&["pause"])?;
        ensure!(pause.status.code() == Some(1), "a worker that drains can be paused");
        contains_all(&String::from_utf8(pause.stderr)?, &["the worker is draining"])?;
        contains_all(&said(&rig.host.ask(&["drain"])?)?, &["draining already: builder first has a build here"])?;
        go_on(&rig.host, "first")?;
        waits.join().map_err(|_| anyhow!("the wait panicked"))?
    })?;
    contains_all(&said(&output)?, &["draining: builder first has a build here"])?;
    // It has ended already.
    ends_well(&mut rig.worker)?;
    rig.master.complete(running, SOON)?.succeeded()?;
    let gone = rig.host.ask(&["drain"])?;
    ensure!(gone.status.code() == Some(1), "there is no worker");
    contains_all(&String::from_utf8(gone.stderr)?, &["no worker runs on"])
}

#[test]
fn a_drain_without_a_line_ends_at_once() -> Result<()> {
    let mut master = plan(Protocol::Pb).start()?;
    let host = KvmHost::of(&master)?;
    master.stop_master()?;
    let mut worker = host.start()?;
    worker.transcript().find("not connected", SOON)?;
    contains_all(&said(&host.ask(&["drain"])?)?, &["draining: no build runs, and the worker ends"])?;
    ends_well(&mut worker)
}
