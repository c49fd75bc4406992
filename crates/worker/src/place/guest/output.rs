//! What a program of our own writes.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tokio::io::AsyncRead;
use tokio::time::timeout;
use tokio_util::io::StreamReader;

use super::Guest;
use super::refusal::refusal;

/// How much of what a tool complains of is kept, in bytes.
const MAX_SAID: usize = 8 * 1024;

/// How long one may say nothing. The longest that such a one has to do is to look for files in a large tree.
const SILENCE: Duration = Duration::from_secs(600);

/// A program of our own that runs. Dropping it kills it.
pub(super) struct Output {
    guest: Guest,
    process: ssh::Process,
    exit: Option<ssh::Exit>,
    said: Vec<u8>,
    forgiven: fn(&ssh::Exit, &str) -> bool,
}

impl Output {
    pub(super) fn new(guest: &Guest, process: ssh::Process) -> Self {
        Output { guest: guest.clone(), process, exit: None, said: Vec::new(), forgiven: |_, _| false }
    }

    /// Which failures are none, by how the program ended and what it said.
    pub(super) fn forgiving(self, forgiven: fn(&ssh::Exit, &str) -> bool) -> Self {
        Output { forgiven, ..self }
    }

    /// The next piece of its standard output; nothing once it has ended well.
    ///
    /// # Errors
    /// It failed: what it complained of last.
    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let Ok(event) = timeout(SILENCE, self.process.next()).await else {
                let silent = format!("the guest's tool said nothing for {} s", SILENCE.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, silent));
            };
            match event {
                Ok(Some(ssh::Event::Stdout(bytes))) => return Ok(Some(bytes)),
                Ok(Some(ssh::Event::Stderr(bytes))) => self.hear(&bytes),
                Ok(Some(ssh::Event::Exited(exit))) => self.exit = Some(exit),
                Ok(None) => return self.ended().map(|()| None),
                Err(lost) => return Err(self.guest.lost(&lost).await),
            }
        }
    }

    /// All of it, up to `limit` bytes.
    pub(super) async fn all(mut self, limit: usize) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await? {
            if all.len() + bytes.len() > limit {
                let long = format!("the guest's answer is longer than {limit} bytes: ask for less");
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, long));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    /// As a reader, once there is something to read or the program has ended well. The reader's end says that it did.
    pub(super) async fn reader(mut self) -> io::Result<impl AsyncRead + Send + Unpin + use<>> {
        let first = self.next().await?;
        let begun = first.is_some();
        let rest = stream::try_unfold((self, begun), |(mut output, more)| async move {
            match more {
                true => Ok(output.next().await?.map(|bytes| (bytes, (output, true)))),
                false => Ok::<_, io::Error>(None),
            }
        });
        Ok(StreamReader::new(stream::iter(first.map(Ok)).chain(Box::pin(rest))))
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.said.extend_from_slice(bytes);
        let forgotten = self.said.len().saturating_sub(MAX_SAID);
        self.said.drain(..forgotten);
    }

    fn ended(&self) -> io::Result<()> {
        let Some(exit) = &self.exit else {
            return Err(io::Error::other("the guest did not say how the program ended"));
        };
        let said = String::from_utf8_lossy(&self.said);
        match exit.is_success() || (self.forgiven)(exit, &said) {
            true => Ok(()),
            false if said.trim().is_empty() => Err(io::Error::other(format!("the guest's tool ended with {exit}"))),
            false => Err(refusal(&said)),
        }
    }
}
