//! Channels: as many at once as the server allows, one of them kept for signals.
//!
//! How many it allows on a connection is its own matter (OpenSSH's `MaxSessions`), and it may be a single one. What it
//! refuses goes over another connection, made when it is needed first and kept for the next time:
//!
//! ```text
//! session ──▶ connection ──beside──▶ connection ──beside──▶ …
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use russh::Channel;
use russh::client::Msg;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use crate::ExecError;
use crate::session::Shared;

/// How long to wait before asking again for a channel that the server refused: it frees a channel a little later than
/// it says so, and others may use the guest too.
const REFUSED_WAIT: Duration = Duration::from_millis(50);

/// How long a server may refuse a channel, while others are open on the connection, before that is taken for its limit.
const REFUSED_PATIENCE: Duration = Duration::from_secs(1);

/// How many connections may stand beside the first; sshd refuses some from 10 logins under way on.
const MOST_BESIDE: u8 = 8;

/// How many channels to ask for one command on, when the server closes them unasked: dropbear (up to 2026.94) does so if
/// the command of another channel ends just then. Nothing follows the request until the server has taken it, so what it
/// has not taken can be asked for again.
pub(crate) const TRIES: u32 = 5;

/// What is said when all of them were closed.
pub(crate) const UNTAKEN: &str = "the server closed each channel that it was asked on";

/// The right to have channels open on a connection.
pub(crate) struct Channels {
    ordinary: Arc<Semaphore>,
    control: Arc<Semaphore>,
    /// How many are open.
    open: Arc<AtomicUsize>,
    /// How many the server was seen to allow.
    most: AtomicUsize,
    /// How many connections come before this one.
    place: u8,
    /// The next connection, if one was needed.
    beside: Mutex<Option<Arc<Shared>>>,
}

/// What a channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A command or a copy.
    Ordinary,
    /// Signalling a command: must not wait until a command has ended.
    Control,
}

/// A channel that is open.
pub(crate) struct Opened {
    pub channel: Channel<Msg>,
    /// To be dropped when the channel is closed.
    pub permit: Permit,
    /// The connection that it is on, the one that was asked for or one beside it.
    pub shared: Arc<Shared>,
}

/// The right to one open channel.
#[derive(Debug)]
pub(crate) struct Permit {
    _permit: OwnedSemaphorePermit,
    open: Arc<AtomicUsize>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Channels {
    /// Those of a connection with so many before it.
    pub(crate) fn new(limit: u32, place: u8) -> Self {
        let ordinary = limit.saturating_sub(1).max(1) as usize;
        Self {
            ordinary: Arc::new(Semaphore::new(ordinary)),
            control: Arc::new(Semaphore::new(1)),
            open: Arc::default(),
            most: AtomicUsize::new(usize::MAX),
            place,
            beside: Mutex::default(),
        }
    }

    /// How many channels at a time the server was seen to allow on a connection; nothing if it has refused none.
    pub(crate) fn limit(&self) -> Option<usize> {
        Some(self.most.load(Ordering::Acquire)).filter(|most| *most != usize::MAX)
    }

    /// Takes the next connection away, if there is one.
    pub(crate) fn take_beside(&self) -> Option<Arc<Shared>> {
        // Whoever is just making one holds the lock, and gives it up with the connection that it is made beside.
        self.beside.try_lock().ok()?.take()
    }

    fn of(&self, purpose: Purpose) -> Arc<Semaphore> {
        Arc::clone(match purpose {
            Purpose::Ordinary => &self.ordinary,
            Purpose::Control => &self.control,
        })
    }

    fn opened(&self, permit: OwnedSemaphorePermit) -> Permit {
        self.open.fetch_add(1, Ordering::AcqRel);
        Permit { _permit: permit, open: Arc::clone(&self.open) }
    }

    /// Takes note that the server refused a channel, first so long ago; true if it allows no more than are open.
    fn refused(&self, since: Duration) -> bool {
        let open = self.open.load(Ordering::Acquire);
        if open == 0 {
            return false;
        }
        if since >= REFUSED_PATIENCE {
            self.most.fetch_min(open, Ordering::AcqRel);
        }
        self.is_full()
    }

    fn is_full(&self) -> bool {
        self.open.load(Ordering::Acquire) >= self.most.load(Ordering::Acquire)
    }
}

/// Opens a channel, waiting for a free one up to [`Timing::channel`](crate::Timing::channel).
pub(crate) async fn open(shared: &Arc<Shared>, purpose: Purpose) -> Result<Opened, ExecError> {
    let waited = shared.timing.channel;
    tokio::select! {
        biased;
        lost = shared.lost() => Err(ExecError::Lost(lost)),
        opened = timeout(waited, open_somewhere(Arc::clone(shared), purpose)) => opened.unwrap_or_else(|_| {
            Err(ExecError::Busy { target: shared.target().to_owned(), waited })
        }),
    }
}

/// Opens a channel on a connection or on one beside it.
async fn open_somewhere(mut shared: Arc<Shared>, purpose: Purpose) -> Result<Opened, ExecError> {
    loop {
        match open_on(&shared, purpose).await? {
            Some(opened) => return Ok(opened),
            None => shared = beside(&shared).await?,
        }
    }
}

/// Opens a channel on this connection; nothing if the server allows no more on it and there may be another connection.
async fn open_on(shared: &Arc<Shared>, purpose: Purpose) -> Result<Option<Opened>, ExecError> {
    let channels = &shared.channels;
    let may_go_on = channels.place < MOST_BESIDE;
    if may_go_on && channels.is_full() {
        return Ok(None);
    }
    let Ok(permit) = channels.of(purpose).acquire_owned().await else {
        return Err(ExecError::Lost(shared.lost().await));
    };
    let mut first_refused = None;
    loop {
        match shared.handle.channel_open_session().await {
            Ok(channel) => {
                let permit = channels.opened(permit);
                return Ok(Some(Opened { channel, permit, shared: Arc::clone(shared) }));
            }
            Err(russh::Error::ChannelOpenFailure(reason)) => {
                tracing::debug!(peer = shared.target(), ?reason, "server refused a channel");
                let since = first_refused.get_or_insert_with(Instant::now).elapsed();
                if channels.refused(since) && may_go_on {
                    return Ok(None);
                }
                sleep(REFUSED_WAIT).await;
            }
            Err(_) => return Err(ExecError::Lost(shared.lost().await)),
        }
    }
}

/// The connection beside one that is full, which is made if there is none.
async fn beside(shared: &Arc<Shared>) -> Result<Arc<Shared>, ExecError> {
    let mut beside = shared.channels.beside.lock().await;
    if let Some(beside) = beside.as_ref().filter(|beside| !beside.is_lost()) {
        return Ok(Arc::clone(beside));
    }
    let made = shared.connect_beside(shared.channels.place + 1).await;
    let made = made.map_err(|error| ExecError::Refused {
        target: shared.target().to_owned(),
        most: shared.channels.limit().unwrap_or_default(),
        why: error.to_string(),
    })?;
    tracing::debug!(peer = shared.target(), place = made.channels.place, "another connection, for more channels");
    Ok(Arc::clone(beside.insert(made)))
}
