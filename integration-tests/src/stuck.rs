//! A thread that hangs, as one does that waits for a lock for ever.

use std::marker::PhantomData;

use anyhow::{Context, Result};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// A process's main thread that does nothing more while its other threads go on, until this is dropped. Only the thread
/// that made it can let it go, as the kernel has it.
#[derive(Debug)]
pub struct Stuck(Pid, PhantomData<*const ()>);

impl Stuck {
    /// Has the main thread of a child of ours hang.
    pub fn main_thread_of(child: u32) -> Result<Stuck> {
        let thread = Pid::from_raw(child.try_into().context("a process id fits")?);
        ptrace::seize(thread, ptrace::Options::empty()).context("trace the main thread")?;
        ptrace::interrupt(thread).context("interrupt the main thread")?;
        waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WUNTRACED)).context("wait until it hangs")?;
        Ok(Stuck(thread, PhantomData))
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        if let Err(error) = ptrace::detach(self.0, None) {
            eprintln!("let a thread go: {error}");
        }
    }
}
