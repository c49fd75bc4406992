//! A terminal, and a program that runs on it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Transcript;
use crate::daemon::has_ended;

/// A program on a terminal of 200 by 24 characters, killed at its end.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    child: Child,
    pidfd: OwnedFd,
    screen: Transcript,
    before: Termios,
}

impl Terminal {
    /// Starts a program with all three streams on a terminal.
    pub fn start(command: &mut Command) -> Result<Terminal> {
        let size = Winsize { ws_row: 24, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).context("open a terminal")?;
        let keyboard = File::from(pty.master);
        let before = tcgetattr(&keyboard).context("ask the terminal for its settings")?;
        let end = || pty.slave.try_clone().context("open a terminal");
        command.env("TERM", "xterm").stdin(end()?).stdout(end()?).stderr(end()?);
        let child = command.spawn().with_context(|| format!("start {command:?}"))?;
        // The command keeps the ends that it was given, and nobody else is to have any.
        *command = Command::new("true");
        drop(pty.slave);
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).context("open a pidfd")?;
        let screen = Transcript::default();
        screen.follow(Screen(keyboard.try_clone()?));
        Ok(Terminal { keyboard, child, pidfd, screen, before })
    }

    /// What was written to it so far.
    pub fn screen(&self) -> &Transcript {
        &self.screen
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.keyboard.write_all(keys.as_bytes()).context("press keys")
    }

    /// Waits until the program has ended and all that it wrote is there.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        ensure!(has_ended(&self.pidfd, within)?, "the program still runs after {within:?}:\n{}", self.screen.text());
        let status = self.child.wait()?;
        self.screen.wait_for_end(Duration::from_secs(2));
        Ok(status)
    }

    /// Checks that its settings are as they were before the program.
    pub fn is_as_before(&self) -> Result<()> {
        let now = tcgetattr(&self.keyboard).context("ask the terminal for its settings")?;
        ensure!(now == self.before, "not {:?} but {now:?}", self.before);
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A failure means that the program has ended already.
        if pidfd_send_signal(&self.pidfd, Signal::KILL).is_ok() {
            drop(self.wait(Duration::from_secs(10)));
        }
    }
}

/// What is written to a terminal; at its end once nobody has it open for writing (Linux says EIO then).
struct Screen(File);

impl Read for Screen {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer) {
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(0),
            read => read,
        }
    }
}
