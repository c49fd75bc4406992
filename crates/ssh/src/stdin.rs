//! A remote command's standard input.

use std::sync::Arc;

use bytes::Bytes;
use russh::ChannelWriteHalf;
use russh::client::Msg;
use tokio::sync::watch;

use crate::exec::Pty;

/// The standard input of a [`Process`](crate::Process).
///
/// Dropping it ends the command's input, as [`Stdin::close`] does.
pub struct Stdin {
    write: Option<Arc<ChannelWriteHalf<Msg>>>,
    /// Has no sender any more once the channel is closed.
    open: watch::Receiver<()>,
    terminal: bool,
}

/// The command, or the connection, is gone, or the command has closed its input; its exit or the session tells which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the command no longer reads its standard input")]
pub struct StdinClosed;

impl Stdin {
    pub(crate) fn new(write: Arc<ChannelWriteHalf<Msg>>, open: watch::Receiver<()>, terminal: bool) -> Self {
        Self { write: Some(write), open, terminal }
    }

    /// Sends bytes, waiting while the command does not read. Cancelled, it may have sent part of them.
    pub async fn write(&mut self, data: impl Into<Bytes>) -> Result<(), StdinClosed> {
        let Some(write) = &self.write else { return Err(StdinClosed) };
        tokio::select! {
            biased;
            // The sender never sends, so this ends only when it is dropped.
            _ = self.open.changed() => Err(StdinClosed),
            sent = write.data_bytes(data) => sent.map_err(|_| StdinClosed),
        }
    }

    /// Ends the command's input. A terminal has no end; its end-of-file character is sent.
    pub async fn close(mut self) {
        if let Some(write) = self.write.take() {
            end(write, self.terminal, self.open.clone()).await;
        }
    }
}

async fn end(write: Arc<ChannelWriteHalf<Msg>>, terminal: bool, mut open: watch::Receiver<()>) {
    let ending = async {
        match terminal {
            true => write.data_bytes(Pty::EOF).await,
            false => write.eof().await,
        }
    };
    // A channel that is gone needs no end.
    tokio::select! {
        _ = open.changed() => {}
        _ = ending => {}
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        if let (Some(write), Ok(runtime)) = (self.write.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(end(write, self.terminal, self.open.clone()));
        }
    }
}

impl std::fmt::Debug for Stdin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stdin").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}
