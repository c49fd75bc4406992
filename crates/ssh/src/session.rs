//! One connection with one guest, over which everything else runs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use russh::Disconnect;
use russh::client::Handle;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::channel::Channels;
use crate::connect::{self, Client, Connected};
use crate::copy::{self, Copied, CopyError, CopyOptions};
use crate::{
    ConnectError, Dialect, Exec, ExecError, HostKey, HostKeyPolicy, HostPath, Lost, Process, Processor, Target, Timing,
    process,
};

/// How long [`Session::close`] waits for the connection to end politely.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// A session with a guest: one connection, any number of processes and copies over it. A server that allows fewer channels
/// on a connection than are needed gets further connections, which end with the first.
///
/// A clone is another handle on the same connection, which ends with [`Session::close`] or when the last handle,
/// [`Process`] and copy is gone.
#[derive(Clone)]
pub struct Session {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub handle: Handle<Client>,
    pub channels: Channels,
    pub timing: Timing,
    pub dialect: Dialect,
    pub state: watch::Sender<State>,
    /// Whom it is with, by the host key that it presented.
    target: Target,
    name: String,
    host_key: HostKey,
}

/// What everybody on a connection must know of it.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Why the connection is over, if it is.
    pub ended: Option<String>,
    /// How many requests must get through although somebody does not read his output.
    pub urgent: u32,
}

impl State {
    /// Records the first reason; says whether this was it.
    pub(crate) fn end(&mut self, why: String) -> bool {
        let first = self.ended.is_none();
        if first {
            self.ended = Some(why);
        }
        first
    }
}

impl Session {
    /// Makes one try to connect and log in, each part of it bounded by `timing`. Dropping the future ends the try.
    pub async fn connect(target: &Target, timing: &Timing) -> Result<Self, ConnectError> {
        let stream = connect::reach(target, timing).await?;
        Self::log_in(stream, target, timing).await
    }

    /// Makes a session of a connection whose server has said its banner.
    pub(crate) async fn log_in(stream: TcpStream, target: &Target, timing: &Timing) -> Result<Self, ConnectError> {
        let shared = Shared::log_in(stream, target, timing, 0).await?;
        tracing::debug!(peer = %target, host_key = %shared.host_key.fingerprint(), "ssh session established");
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Returns the key the server presented: after [`HostKeyPolicy::Learn`], the one to pin.
    pub fn host_key(&self) -> &HostKey {
        &self.shared.host_key
    }

    /// Returns how the guest is spoken to.
    pub fn dialect(&self) -> &Dialect {
        &self.shared.dialect
    }

    /// What the guest was said to have for a processor.
    pub fn processor(&self) -> Processor {
        self.shared.target.processor
    }

    /// Starts a command. Returns when the guest's shell has entered the working directory and reported the process.
    ///
    /// When all channels are in use it waits for one, up to [`Timing::channel`]. Dropping the future closes the channel.
    pub async fn exec(&self, exec: Exec) -> Result<Process, ExecError> {
        process::start(self, &exec).await
    }

    /// Copies a host file, or a directory with all it holds, into the guest.
    ///
    /// As with `scp`: if `to` is an existing directory, the source lands inside it under its own name, else it becomes
    /// `to`. A `to` that ends in `/` is always meant as a directory and made if missing; so are missing parents. A
    /// relative `to` starts at the login directory. What is new in the guest appears under its name only when complete;
    /// a directory copied onto an existing one is merged into it. Symbolic links within a directory are copied as links.
    pub async fn copy_in(
        &self,
        from: &HostPath,
        to: impl Into<Vec<u8>>,
        options: &CopyOptions,
    ) -> Result<Copied, CopyError> {
        copy::copy_in(self, from, &to.into(), options).await
    }

    /// Copies a guest file, or a directory with all it holds, to the host, by the rules of [`Session::copy_in`].
    ///
    /// The guest is not trusted: whatever it sends, nothing is written outside the destination, through a symbolic link,
    /// or beyond [`CopyOptions::limits`], and no device or setuid file is made. Of a file, nothing but a file arrives.
    pub async fn copy_out(
        &self,
        from: impl Into<Vec<u8>>,
        to: &HostPath,
        options: &CopyOptions,
    ) -> Result<Copied, CopyError> {
        copy::copy_out(self, &from.into(), to, options).await
    }

    /// Waits until the connection is gone, and says why. Cancel-safe.
    pub async fn lost(&self) -> Lost {
        self.shared.lost().await
    }

    /// Tells whether the connection is known to be gone.
    pub fn is_lost(&self) -> bool {
        self.shared.is_lost()
    }

    /// Ends the session, and with it every process's channel; the processes themselves are not signalled.
    pub async fn close(self) {
        self.close_because("closed by us").await;
    }

    /// Ends the connection, and those beside it; whoever uses them is told why.
    pub async fn close_because(self, why: &str) {
        let mut next = Some(self.shared);
        while let Some(shared) = next {
            let polite = shared.handle.disconnect(Disconnect::ByApplication, "", "");
            // Pumps that wait for a reader would keep russh's task from ever seeing the request.
            shared.state.send_if_modified(|state| state.end(why.to_owned()));
            let _ = timeout(CLOSE_WAIT, polite).await;
            next = shared.channels.take_beside();
        }
    }
}

impl Shared {
    /// Logs in over a connection; so many others of the same session come before it.
    async fn log_in(stream: TcpStream, target: &Target, timing: &Timing, place: u8) -> Result<Self, ConnectError> {
        let state = watch::Sender::new(State::default());
        let Connected { handle, host_key } = connect::login(stream, target, timing, state.clone()).await?;
        Ok(Self {
            handle,
            channels: Channels::new(timing.channels, place),
            timing: timing.clone(),
            dialect: target.dialect.clone(),
            state,
            target: Target { host_key: HostKeyPolicy::Pinned(host_key.clone()), ..target.clone() },
            name: target.to_string(),
            host_key,
        })
    }

    /// Makes another connection with the same guest, as the same user.
    pub(crate) async fn connect_beside(&self, place: u8) -> Result<Arc<Self>, ConnectError> {
        let stream = connect::reach(&self.target, &self.timing).await?;
        Ok(Arc::new(Self::log_in(stream, &self.target, &self.timing, place).await?))
    }

    /// `user@address`.
    pub(crate) fn target(&self) -> &str {
        &self.name
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.state.borrow().ended.is_some()
    }

    pub(crate) async fn lost(&self) -> Lost {
        let mut state = self.state.subscribe();
        // The sender lives in `self`, so waiting cannot fail; if it did, the connection would be gone.
        let why = match state.wait_for(|state| state.ended.is_some()).await {
            Ok(state) => state.ended.clone().unwrap_or_default(),
            Err(_) => "the session was dropped".to_owned(),
        };
        Lost { target: self.name.clone(), why }
    }

    /// Does what has to end with the connection and may not hear of it: who waits for the server to make room for what is to be
    /// sent is not woken (russh 0.65).
    pub(crate) async fn unless_lost<T>(&self, work: impl Future<Output = T>) -> Result<T, Lost> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            lost = self.lost() => Err(lost),
        }
    }

    /// Lets every process take in more output than its reader asked for, until the guard is dropped.
    pub(crate) fn urgent(self: &Arc<Self>) -> Urgent {
        self.state.send_modify(|state| state.urgent += 1);
        Urgent(Arc::clone(self))
    }
}

pub(crate) struct Urgent(Arc<Shared>);

impl Drop for Urgent {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.urgent -= 1);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("target", &self.shared.name)
            .field("state", &*self.shared.state.borrow())
            .finish()
    }
}
