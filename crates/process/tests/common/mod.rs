//! Shell scripts as children, and what they are seen to do.
#![allow(dead_code)]

use std::time::Duration;

use process::{Child, Command, Event, Finish, Pidfd};
use tokio::time::timeout;

/// Far more than anything here needs: a test that reaches it has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A shell script with a usual `PATH`.
pub fn sh(script: &str) -> Command {
    Command::new("/bin/sh").args(["-c", script]).env("PATH", "/usr/bin:/bin")
}

/// All that a child reported, its output joined.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    pub stdout: String,
    pub stderr: String,
    pub finish: Finish,
}

pub async fn run(command: Command) -> Report {
    report(&mut spawn(command).await).await
}

pub async fn spawn(command: Command) -> Child {
    command.spawn().await.expect("the shell is there")
}

pub async fn report(child: &mut Child) -> Report {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match next(child).await {
            Some(Event::Stdout(bytes)) => stdout.extend(bytes),
            Some(Event::Stderr(bytes)) => stderr.extend(bytes),
            Some(Event::Finished(finish)) => {
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                return Report { stdout: text(stdout), stderr: text(stderr), finish };
            }
            Some(_) => {}
            None => panic!("the child was finished before"),
        }
    }
}

pub async fn next(child: &mut Child) -> Option<Event> {
    timeout(DEADLINE, child.next_event()).await.expect("something happens in time")
}

/// Reads stdout until it ends a line, without regard to whether the child exits meanwhile.
pub async fn line(child: &mut Child) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        match next(child).await {
            Some(Event::Stdout(bytes)) => line.extend(bytes),
            Some(Event::Exited(_)) => {}
            other => panic!("expected a line after {line:?}, got {other:?}"),
        }
    }
    String::from_utf8(line).expect("scripts speak ASCII").trim_end().to_owned()
}

/// Waits until a process is gone.
pub async fn gone(pid: &str) {
    if let Ok(process) = Pidfd::open(pid.parse().expect("a process id")) {
        timeout(DEADLINE, process.exited()).await.expect("the process ends in time");
    }
}

pub fn alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
