//! Channels: as many at once as the server allows, one of them kept for signals.

use std::sync::Arc;
use std::time::Duration;

use russh::Channel;
use russh::client::Msg;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use crate::ExecError;
use crate::session::Shared;

/// How long to wait before asking again for a channel that the server refused: it frees a channel a little later than
/// it says so, and others may use the guest too.
const REFUSED_WAIT: Duration = Duration::from_millis(50);

/// The right to have channels open.
pub(crate) struct Channels {
    ordinary: Arc<Semaphore>,
    control: Arc<Semaphore>,
}

/// What a channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A command or a copy.
    Ordinary,
    /// Signalling a command: must not wait until a command has ended.
    Control,
}

impl Channels {
    pub(crate) fn new(limit: u32) -> Self {
        let ordinary = limit.saturating_sub(1).max(1) as usize;
        Self { ordinary: Arc::new(Semaphore::new(ordinary)), control: Arc::new(Semaphore::new(1)) }
    }

    fn of(&self, purpose: Purpose) -> Arc<Semaphore> {
        Arc::clone(match purpose {
            Purpose::Ordinary => &self.ordinary,
            Purpose::Control => &self.control,
        })
    }
}

/// Opens a channel, waiting for a free one up to [`Timing::channel`](crate::Timing::channel). The permit is to be
/// dropped when the channel is closed.
pub(crate) async fn open(
    shared: &Arc<Shared>,
    purpose: Purpose,
) -> Result<(Channel<Msg>, OwnedSemaphorePermit), ExecError> {
    let waited = shared.timing.channel;
    let opening = async {
        let Ok(permit) = shared.channels.of(purpose).acquire_owned().await else {
            return Err(ExecError::Lost(shared.lost().await));
        };
        loop {
            match shared.handle.channel_open_session().await {
                Ok(channel) => return Ok((channel, permit)),
                Err(russh::Error::ChannelOpenFailure(reason)) => {
                    tracing::debug!(peer = shared.target(), ?reason, "server refused a channel");
                    sleep(REFUSED_WAIT).await;
                }
                Err(_) => return Err(ExecError::Lost(shared.lost().await)),
            }
        }
    };
    tokio::select! {
        biased;
        lost = shared.lost() => Err(ExecError::Lost(lost)),
        opened = timeout(waited, opening) => opened.unwrap_or_else(|_| {
            Err(ExecError::Busy { target: shared.target().to_owned(), waited })
        }),
    }
}
