//! Shows what a VM's serial console prints as a Buildbot log.

use std::convert::Infallible;
use std::io::SeekFrom;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::output::LogWriter;

/// How often the console's file is looked at. QEMU writes it, and nothing tells us when.
const POLL: Duration = Duration::from_millis(200);

/// How much is shown at once at most, in bytes.
const BLOCK: usize = 32 * 1024;

/// A console that is being shown.
#[derive(Debug)]
pub(crate) struct Console {
    file: File,
    shown: u64,
    log: LogWriter,
}

impl Console {
    /// Shows the console that goes to `path` from `shown` bytes on. It can still be shown to its end when the file has
    /// been removed meanwhile.
    pub(crate) async fn open(path: &Path, shown: u64, log: LogWriter) -> std::io::Result<Self> {
        Ok(Console { file: File::open(path).await?, shown, log })
    }

    /// How many bytes have been shown.
    pub(crate) fn shown(&self) -> u64 {
        self.shown
    }

    /// Shows what is printed, as it is printed, until the future is dropped. What was shown is never shown again.
    pub(crate) async fn follow(&mut self) -> Infallible {
        loop {
            self.catch_up().await;
            tokio::time::sleep(POLL).await;
        }
    }

    /// Where what is to be shown goes on; nothing at the end of the file.
    fn next_data(&self) -> Option<u64> {
        let shown = i64::try_from(self.shown).ok()?;
        match lseek(&self.file, shown, Whence::SeekData) {
            Ok(next) => u64::try_from(next).ok(),
            Err(Errno::ENXIO) => None,
            // A file system that knows no holes has none.
            Err(_) => Some(self.shown),
        }
    }

    /// Shows what has been printed so far, and not what is printed meanwhile: a guest may print faster than the master takes.
    pub(crate) async fn catch_up(&mut self) {
        let Ok(metadata) = self.file.metadata().await else { return };
        let mut block = vec![0; BLOCK];
        while self.shown < metadata.len()
            && let Some(next) = self.next_data()
        {
            // What a guest printed without end is given back to the file system.
            let gone = next - self.shown;
            if gone > 0 && !self.log.write(format!("[{gone} bytes that were printed before are not kept]\n")).await {
                return;
            }
            self.shown = next;
            if self.file.seek(SeekFrom::Start(next)).await.is_err() {
                return;
            }
            match self.file.read(&mut block).await {
                Ok(bytes) if bytes > 0 => {
                    if !self.log.write(block[..bytes].to_vec()).await {
                        return;
                    }
                    self.shown += bytes as u64;
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::super::fake_master::{Reply, Stage};
    use super::super::scenery::Where;
    use super::*;

    #[test]
    fn what_is_not_kept_is_counted_and_not_shown() {
        let stage = Stage::new(Where::Host);
        let path = stage.path("console.log");
        let mut file = std::fs::File::create(&path).expect("made");
        file.seek(SeekFrom::Start(1 << 20)).expect("a hole");
        file.write_all(b"the end\n").expect("written");
        let told = stage.play(
            |_| Reply::nil(),
            async |_, _, reporter| {
                let mut console =
                    Console::open(&path, 1000, reporter.log_writer("console")).await.expect("it can be read");
                console.catch_up().await;
                assert_eq!(console.shown(), (1 << 20) + 8);
                console.catch_up().await;
                Ok(())
            },
        );
        let gone = (1 << 20) - 1000;
        assert_eq!(told[0], format!("console [{gone} bytes that were printed before are not kept]\nthe end\n"));
    }

    #[test]
    fn a_guest_that_prints_faster_than_the_master_takes_is_caught_up_with() {
        let stage = Stage::new(Where::Host);
        let path = stage.path("console.log");
        let mut file = std::fs::File::create(&path).expect("made");
        let print = |file: &mut std::fs::File| file.write_all(&[b'x'; 1 << 20]).expect("written");
        print(&mut file);
        let mut messages = 0;
        stage.play(
            move |_| {
                messages += 1;
                // What is wrong ends at some time.
                if messages < 200 {
                    print(&mut file);
                }
                Reply::nil()
            },
            async |_, _, reporter| {
                let mut console =
                    Console::open(&path, 0, reporter.log_writer("console")).await.expect("it can be read");
                console.catch_up().await;
                let shown = console.shown();
                assert!((1 << 20..=(1 << 20) + BLOCK as u64).contains(&shown), "{shown}");
                Ok(())
            },
        );
    }
}
