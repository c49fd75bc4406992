//! A worker and its machines within the system calls that `contrib/systemd/machines-only.conf` leaves them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use integration_tests::{Guest, KvmHost, SOON, Worker};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;
use seccompiler::{BpfProgram, TargetArch, apply_filter, compile_from_json};
use serde_json::json;

/// What the drop-in allows: names of system calls, and of systemd's sets of them, which begin with `@`.
fn allowed() -> Result<Vec<String>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/systemd/machines-only.conf");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let line = text.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")).next_back();
    let line = line.context("the drop-in has no filter")?;
    ensure!(!line.is_empty() && !line.starts_with('~'), "{line:?} is no list of what is allowed");
    Ok(line.split_whitespace().map(str::to_owned).collect())
}

/// Resolves the sets, as the systemd of this host knows them.
fn system_calls(mut names: Vec<String>) -> Result<BTreeSet<String>> {
    let mut calls = BTreeSet::new();
    while let Some(name) = names.pop() {
        if !name.starts_with('@') {
            calls.insert(name);
            continue;
        }
        let output = Command::new("systemd-analyze").args(["syscall-filter", &name]).output();
        let output = output.context("run systemd-analyze; to install it, run: scripts/setup packages")?;
        ensure!(output.status.success(), "systemd-analyze syscall-filter {name}: {output:?}");
        let text = String::from_utf8(output.stdout)?;
        let members = text.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        names.extend(members.map(str::to_owned));
    }
    Ok(calls)
}

/// A filter that lets these calls pass, and has others fail with EPERM as `SystemCallErrorNumber=` of the units says.
fn filter(calls: &BTreeSet<String>) -> Result<BpfProgram> {
    let compile = |calls: &[&String]| {
        let rules: Vec<_> = calls.iter().map(|call| json!({"syscall": call})).collect();
        let filter = json!({"all": {
            "mismatch_action": {"errno": Errno::EPERM as i32},
            "match_action": "allow",
            "filter": rules,
        }});
        let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
        compile_from_json(filter.to_string().as_bytes(), architecture)
    };
    // Sets have the calls of all architectures in them.
    let known: Vec<_> = calls.iter().filter(|call| compile(&[call]).is_ok()).collect();
    ensure!(known.len() > 200, "only these calls are known: {known:?}");
    compile(&known)?.remove("all").context("there is one filter")
}

/// Starts a worker that has only these calls. A filter can't be taken off again, and is the thread's that puts it on and
/// of all that thread starts.
fn start_within(filter: &BpfProgram, host: &KvmHost) -> Result<Worker> {
    let start = || {
        apply_filter(filter)?;
        // Else what follows would show nothing.
        let refused = ptrace::attach(Pid::from_raw(i32::MAX)).err();
        ensure!(refused == Some(Errno::EPERM), "a call that is not allowed ended with {refused:?}");
        host.start()
    };
    thread::scope(|scope| scope.spawn(start).join()).map_err(|_| anyhow!("the thread panicked"))?
}

#[test]
#[ignore = "long"]
fn machines_need_no_more_system_calls_than_the_drop_in_allows() -> Result<()> {
    let mut host = KvmHost::at("pb://127.0.0.1:9")?;
    host.image("plain", Guest::plain()?.with("template", true));
    host.set("worker.host_commands", false);
    let mut worker = start_within(&filter(&system_calls(allowed()?)?)?, &host)?;
    worker.transcript().find("started", SOON)?;
    let run = |arguments: &[&str], how: &str| -> Result<()> {
        let output = host.ask(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && said.contains(how), "{arguments:?} ended with {}: {said}", output.status);
        Ok(())
    };
    run(&["exec", "plain", "--memory-mib", "300", "--", "true"], "qemu started")?;
    run(&["image", "template", "plain"], "")?;
    run(&["exec", "plain", "--", "true"], "cloned from the template")?;
    ensure!(worker.stop()?.success(), "the worker did not end well");
    host.nothing_left()
}
