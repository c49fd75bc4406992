//! The socket of a service manager, which a worker tells what it does (sd_notify(3)).

use std::io::{self, Read};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{KvmHost, Transcript};

/// Hears what the worker of a host says, an assignment a line.
#[derive(Debug)]
pub struct ServiceManager(Transcript);

/// Messages as a stream; each ends with a line's end.
struct Messages(UnixDatagram);

impl ServiceManager {
    /// Listens for a host's worker that is to be started.
    pub fn of(host: &mut KvmHost) -> Result<ServiceManager> {
        let path = host.path("notify.sock");
        let messages = Messages(UnixDatagram::bind(&path).context("listen for what the worker says")?);
        host.set_variable("NOTIFY_SOCKET", path.display());
        let transcript = Transcript::default();
        transcript.follow(messages);
        Ok(ServiceManager(transcript))
    }

    /// The same, as one that ends a worker which gives no sign of life for so long.
    pub fn watching(host: &mut KvmHost, period: Duration) -> Result<ServiceManager> {
        host.set_variable("WATCHDOG_USEC", period.as_micros());
        ServiceManager::of(host)
    }

    /// What it was told.
    pub fn told(&self) -> &Transcript {
        &self.0
    }
}

impl Read for Messages {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buffer)
    }
}
