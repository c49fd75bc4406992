//! The few threads that start all children.
//!
//! The parent-death signal of Linux is sent when the *thread* that forked ends (prctl(2)), and the threads of a tokio
//! runtime may end long before the process does. These live as long as the process. They also keep the fork, which blocks,
//! off the runtime, and have all signals blocked, so that none is handled in a child before its exec.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use nix::sys::signal::SigSet;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::group::Group;
use crate::pty::Pty;
use crate::setup::{Setup, keep_exited_children};

/// How many threads there are. A spawn takes a millisecond, so that one would do, if it were not for programs and
/// directories on a network mount that hangs: there must be more threads than such mounts.
const THREADS: usize = 4;

/// Spawns that may wait for their turn before further ones wait to be let in.
const QUEUE: usize = 64;

/// What to start.
pub(crate) struct Request {
    pub(crate) command: std::process::Command,
    pub(crate) setup: Setup,
}

/// A process that runs, and our ends of its descriptors.
pub(crate) struct Spawned {
    pub(crate) group: Group,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

struct Job {
    request: Request,
    runtime: Handle,
    answer: oneshot::Sender<io::Result<Spawned>>,
}

/// Starts a process. Must be called in the context of a runtime. A caller that stops waiting gets no process: it is
/// killed.
pub(crate) async fn spawn(request: Request) -> io::Result<Spawned> {
    let (answer, answered) = oneshot::channel();
    let job = Job { request, runtime: Handle::current(), answer };
    queue()?.send(job).await.map_err(|_| io::Error::other("the spawning threads have ended"))?;
    answered.await.map_err(|_| io::Error::other("the spawning threads have ended"))?
}

fn queue() -> io::Result<&'static mpsc::Sender<Job>> {
    static JOBS: OnceLock<Option<mpsc::Sender<Job>>> = OnceLock::new();
    let sender = JOBS.get_or_init(|| {
        let (sender, jobs) = mpsc::channel(QUEUE);
        let jobs = Arc::new(Mutex::new(jobs));
        keep_exited_children();
        let serving = (0..THREADS).map(|_| {
            let jobs = jobs.clone();
            thread::Builder::new().name("process-spawner".to_owned()).spawn(move || serve(&jobs))
        });
        serving.fold(false, |any, thread| any | thread.is_ok()).then_some(sender)
    });
    sender.as_ref().ok_or_else(|| io::Error::other("can't start the spawning threads"))
}

fn serve(jobs: &Mutex<mpsc::Receiver<Job>>) {
    let _ = SigSet::all().thread_block();
    // The lock is held while waiting for a job, and not while doing it.
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
    while let Some(Job { request, runtime, answer }) = next() {
        let _context = runtime.enter();
        // An answer nobody waits for is dropped, and the process in it killed.
        let _ = answer.send(start(request));
    }
}

fn start(Request { mut command, setup }: Request) -> io::Result<Spawned> {
    let master = match setup.terminal {
        true => {
            let Pty { master, terminal } = Pty::open()?;
            command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
            Some(master)
        }
        false => None,
    };
    setup.apply_to(&mut command);
    let mut child = command.spawn()?;
    // The command still holds the terminal's other side, which would keep it open.
    drop(command);
    let stdin = child.stdin.take().map(OwnedFd::from);
    let stdout = child.stdout.take().map(OwnedFd::from).or(master);
    let stderr = child.stderr.take().map(OwnedFd::from);
    Ok(Spawned { group: Group::adopt(child)?, stdin, stdout, stderr })
}
