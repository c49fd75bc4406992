//! The file that a machine's serial console goes to. QEMU writes it, and nothing tells when.

use std::io::{self, SeekFrom};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::Pool;
use super::board::Notice;

/// How often the file is looked at by those who follow it.
pub(crate) const POLL: Duration = Duration::from_millis(200);

/// How much is read at once at most, in bytes.
pub(crate) const BLOCK: usize = 32 * 1024;

/// A console's file that is being read. It can still be read to its end when it has been removed meanwhile.
#[derive(Debug)]
pub(crate) struct ConsoleFile {
    file: File,
    at: u64,
}

/// What is next in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// So many bytes are not kept: what a guest printed without end was given back to the file system.
    Gone(u64),
    Bytes(Vec<u8>),
}

impl ConsoleFile {
    /// Reads a file from so many bytes on.
    pub(crate) async fn open(path: &Path, at: u64) -> io::Result<Self> {
        Ok(ConsoleFile { file: File::open(path).await?, at })
    }

    /// How far it has been read.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// How long it is now.
    pub(crate) async fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata().await?.len())
    }

    /// What is next in it; nothing at its end, or if it can't be read.
    pub(crate) async fn next(&mut self) -> Option<Piece> {
        let next = self.next_data()?;
        if next > self.at {
            let gone = next - self.at;
            self.at = next;
            return Some(Piece::Gone(gone));
        }
        self.file.seek(SeekFrom::Start(self.at)).await.ok()?;
        let mut block = vec![0; BLOCK];
        let bytes = self.file.read(&mut block).await.ok().filter(|bytes| *bytes > 0)?;
        block.truncate(bytes);
        self.at += bytes as u64;
        Some(Piece::Bytes(block))
    }

    /// Where what is to be read goes on; nothing at the end of the file.
    fn next_data(&self) -> Option<u64> {
        match lseek(&self.file, i64::try_from(self.at).ok()?, Whence::SeekData) {
            Ok(next) => u64::try_from(next).ok(),
            Err(Errno::ENXIO) => None,
            // A file system that knows no holes has none.
            Err(_) => Some(self.at),
        }
    }
}

/// The console of the machine that is in a slot.
#[derive(Debug)]
pub(crate) struct SlotConsole {
    pub file: ConsoleFile,
    machine: Notice,
}

impl SlotConsole {
    /// Whether the machine is not in the slot any more.
    pub(crate) fn is_over(&self) -> bool {
        self.machine.is_over()
    }
}

/// There is no console.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoConsole {
    #[error("there is no slot {0}; see kvm-worker status")]
    NoSlot(u16),
    #[error("there is no machine in slot {0}, and so no console")]
    NoMachine(u16),
    #[error("read the console of slot {0}: {1}")]
    Unreadable(u16, io::Error),
}

impl Pool {
    /// The console of the machine in a slot, from its beginning.
    pub(crate) async fn console(&self, slot: u16) -> Result<SlotConsole, NoConsole> {
        let machine = self.0.slots.board().notice(slot).ok_or(NoConsole::NoSlot(slot))?;
        let path = self.slot_numbered(slot).console_log();
        match ConsoleFile::open(&path, 0).await {
            Ok(file) => Ok(SlotConsole { file, machine }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(NoConsole::NoMachine(slot)),
            Err(error) => Err(NoConsole::Unreadable(slot, error)),
        }
    }
}
