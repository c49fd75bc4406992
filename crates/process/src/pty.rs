//! Pseudo-terminals for children that want one.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// What a terminal of the default size has been since the VT100.
const SIZE: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

/// The end-of-file character of a terminal's initial settings, Ctrl-D.
const END_OF_FILE: u8 = 4;

pub(crate) struct Pty {
    /// Our side.
    pub(crate) master: OwnedFd,
    /// The child's side.
    pub(crate) terminal: OwnedFd,
}

impl Pty {
    /// Opens a terminal whose reader finds the end of its input at once.
    pub(crate) fn open() -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname(&master, Vec::new())?;
        let terminal = open(path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        tcsetwinsize(&terminal, SIZE)?;
        // A terminal's input can't be closed without hanging up. In its initial settings this character ends one read,
        // so that a program that asks a question is not waited for until its time-out. Linux does not echo it.
        rustix::io::write(&master, &[END_OF_FILE])?;
        Ok(Pty { master, terminal })
    }
}
