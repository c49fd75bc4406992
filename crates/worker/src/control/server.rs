//! The worker's side.

use std::fs::Permissions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::stat::Mode;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::talk::{Far, Input, Patience, Question, Talk};
use super::{MAX_ASKED, Request, Response};
use crate::config::Control;
use crate::core_tasks::{CoreTasks, End};

/// How long a client may take to ask.
const ASKING: Duration = Duration::from_secs(5);

/// How long it may take its answer.
const TAKING: Duration = Duration::from_secs(5);

/// How long the last answers may take when the worker ends.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How many clients are served at a time; further ones wait in the kernel's queue.
const CLIENTS: usize = 64;

/// How long that queue may get.
const BACKLOG: u32 = 64;

/// How long to wait after the system refused to accept a connection, such as for want of file descriptors.
const BREATH: Duration = Duration::from_secs(1);

/// Listens on the control socket until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    path: PathBuf,
    questions: mpsc::Receiver<Question>,
    /// Ends the task, after it has given the answers that there are.
    over: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    /// Begins to listen. An answer is waited for as long as `patience` says for its request.
    ///
    /// # Errors
    /// Somebody else listens there; the directory is missing; the group can't be given the socket.
    pub(crate) async fn listen(
        control: &Control,
        patience: impl Fn(&Request) -> Duration + Send + Sync + 'static,
        tasks: &CoreTasks,
    ) -> anyhow::Result<Self> {
        let path = &control.socket;
        let doing = || format!("listen on {} (control.socket)", path.display());
        let listener = bind(path).await.with_context(doing)?;
        if let Some(group) = &control.group {
            let result = give_to(path, group);
            result.with_context(|| {
                format!(
                    "give {} to the group '{group}' (control.group); the worker's user has to be in it \
                     (SupplementaryGroups= in its unit)",
                    path.display()
                )
            })?;
        }
        std::fs::set_permissions(path, Permissions::from_mode(0o660)).with_context(doing)?;
        let (asked, questions) = mpsc::channel(CLIENTS);
        let over = CancellationToken::new();
        let serving = serve(listener, asked, Arc::new(patience), over.clone());
        let end = End::Cancelled(over.clone());
        let task = tokio::spawn(tasks.watch("the task that serves the control socket", end, serving));
        Ok(Server { path: path.clone(), questions, over, task })
    }

    /// The next question. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Question {
        match self.questions.recv().await {
            Some(question) => question,
            None => std::future::pending().await,
        }
    }

    /// Takes no more questions: who asks hears that the worker is stopping.
    pub(crate) fn close(&mut self) {
        self.questions.close();
        while self.questions.try_recv().is_ok() {}
    }

    /// Ends, once those who were answered have heard it, or do not want to.
    pub(crate) async fn finish(mut self) {
        self.close();
        self.over.cancel();
        let _ = timeout(LAST_ANSWERS, &mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Takes the place of a socket that nobody listens on any more. Only the worker's user may ask at first.
async fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        bail!("another worker listens there; give this one another control.socket");
    }
    match std::fs::symlink_metadata(path) {
        // One that a worker left which was killed.
        Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => bail!("there is something else than a socket; remove it, or choose another control.socket"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let socket = UnixSocket::new_stream()?;
    // The file gets the mode that the socket has (Linux), so that there is no moment at which others may ask.
    nix::sys::stat::fchmod(socket.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    let bound = socket.bind(path);
    match bound {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = path.parent().unwrap_or(path).display();
            bail!("there is no directory {directory}; make it, or have systemd do so (RuntimeDirectory=)")
        }
        bound => bound?,
    }
    Ok(socket.listen(BACKLOG)?)
}

/// Gives a socket to a group.
fn give_to(path: &Path, group: &str) -> anyhow::Result<()> {
    let known = nix::unistd::Group::from_name(group)?.context("there is no such group")?;
    Ok(nix::unistd::chown(path, None, Some(known.gid))?)
}

async fn serve(listener: UnixListener, asked: mpsc::Sender<Question>, patience: Patience, over: CancellationToken) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if clients.len() < CLIENTS => match accepted {
                Ok((stream, _)) => {
                    clients.spawn(talk(stream, asked.clone(), Arc::clone(&patience)));
                }
                Err(error) => {
                    warn!("accept a connection on the control socket: {error}");
                    tokio::time::sleep(BREATH).await;
                }
            },
            Some(_) = clients.join_next() => {}
            () = over.cancelled() => break,
        }
    }
    while clients.join_next().await.is_some() {}
}

async fn talk(stream: UnixStream, asked: mpsc::Sender<Question>, patience: Patience) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let line = match timeout(ASKING, line(&mut reader)).await {
        Ok(Some(line)) => line,
        _ => return debug!("a client of the control socket did not ask anything"),
    };
    let last = match serde_json::from_slice(&line) {
        Ok(request) => {
            let patience = patience(&request);
            conversation(request, asked, patience, reader, &mut writer).await
        }
        Err(error) => Some(Response::Refused(format!("the worker does not understand this: {error}"))),
    };
    if let Some(last) = last {
        let _ = timeout(TAKING, write(&mut writer, &last)).await;
    }
}

/// Passes on what is said about a request, until its answer was given or the client has gone. Returns what is left to say.
async fn conversation(
    request: Request,
    asked: mpsc::Sender<Question>,
    patience: Duration,
    mut reader: BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
) -> Option<Response> {
    let stopping = || Some(Response::Refused("the worker is stopping".to_owned()));
    let until = Instant::now() + patience;
    let (near, Far { mut lines, input }) = Talk::new();
    if asked.send(Question { request, talk: near }).await.is_err() {
        return stopping();
    }
    // Ends when the client does, or says what it was not asked for; else it would have to be kept for it. What was asked for
    // may come when nobody wants it any more, as the answer is already on its way.
    let hearing = async {
        while let Some(line) = line(&mut reader).await
            && let Ok(heard) = serde_json::from_slice::<Input>(&line)
            && !matches!(input.try_send(heard), Err(TrySendError::Full(_)))
        {}
    };
    let saying = async {
        loop {
            match timeout_at(until, lines.recv()).await {
                Ok(Some(line)) if line.is_last() => return Some(line),
                // A client that is slow to take what it wants may be: whoever has the output waits for it.
                Ok(Some(line)) => write(writer, &line).await.ok()?,
                Ok(None) => return stopping(),
                Err(_) => {
                    let seconds = patience.as_secs();
                    let why = format!("there was no answer within {seconds} s; it may still happen");
                    return Some(Response::Refused(why));
                }
            }
        }
    };
    tokio::select! {
        // Both may be there when a client has taken its answer and goes.
        biased;
        last = saying => last,
        () = hearing => None,
    }
}

/// The next whole line; nothing if there is none that is short enough.
async fn line(reader: &mut BufReader<OwnedReadHalf>) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    reader.take(MAX_ASKED).read_until(b'\n', &mut line).await.ok()?;
    Some(line).filter(|line| line.last() == Some(&b'\n'))
}

async fn write(writer: &mut OwnedWriteHalf, line: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(line)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
