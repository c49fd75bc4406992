//! Shows what a VM's serial console prints as a Buildbot log.

use std::convert::Infallible;
use std::io::SeekFrom;
use std::path::Path;
use std::time::Duration;

use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::output::LogWriter;

/// How often the console's file is looked at. QEMU writes it, and nothing tells us when.
const POLL: Duration = Duration::from_millis(200);

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

    /// Shows what has been printed so far.
    pub(crate) async fn catch_up(&mut self) {
        let mut block = vec![0; 32 * 1024];
        while self.file.seek(SeekFrom::Start(self.shown)).await.is_ok() {
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
