//! Shows what a VM's serial console prints as a Buildbot log.

use std::convert::Infallible;
use std::path::Path;

use crate::output::LogWriter;
#[cfg(test)]
use crate::pool::CONSOLE_BLOCK as BLOCK;
use crate::pool::{CONSOLE_POLL, ConsoleFile, ConsolePiece};

/// A console that is being shown.
#[derive(Debug)]
pub(crate) struct Console {
    file: ConsoleFile,
    log: LogWriter,
}

impl Console {
    /// Shows the console that goes to `path` from `shown` bytes on. It can still be shown to its end when the file has
    /// been removed meanwhile.
    pub(crate) async fn open(path: &Path, shown: u64, log: LogWriter) -> std::io::Result<Self> {
        Ok(Console { file: ConsoleFile::open(path, shown).await?, log })
    }

    /// How many bytes have been shown.
    pub(crate) fn shown(&self) -> u64 {
        self.file.at()
    }

    /// Shows what is printed, as it is printed, until the future is dropped. What was shown is never shown again.
    pub(crate) async fn follow(&mut self) -> Infallible {
        loop {
            self.catch_up().await;
            tokio::time::sleep(CONSOLE_POLL).await;
        }
    }

    /// Shows what has been printed so far, and not what is printed meanwhile: a guest may print faster than the master takes.
    pub(crate) async fn catch_up(&mut self) {
        let Ok(length) = self.file.length().await else { return };
        while self.file.at() < length
            && let Some(piece) = self.file.next().await
        {
            let shown = match piece {
                ConsolePiece::Gone(gone) => {
                    self.log.write(format!("[{gone} bytes that were printed before are not kept]\n")).await
                }
                ConsolePiece::Bytes(bytes) => self.log.write(bytes).await,
            };
            if !shown {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

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
