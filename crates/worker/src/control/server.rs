//! The worker's side.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{MAX_LINE, Request, Response, socket};
use crate::core_tasks::{CoreTasks, End};

/// How long a client may take to ask, and to take its answer.
const TALK: Duration = Duration::from_secs(5);

/// How many clients are served at a time; further ones wait in the kernel's queue.
const CLIENTS: usize = 8;

/// How long to wait after the system refused to accept a connection, such as for want of file descriptors.
const BREATH: Duration = Duration::from_secs(1);

/// A request that waits for its answer.
#[derive(Debug)]
pub(crate) struct Question {
    pub request: Request,
    pub answer: oneshot::Sender<Response>,
}

/// Listens on the control socket until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    path: PathBuf,
    questions: mpsc::Receiver<Question>,
    task: JoinHandle<()>,
}

impl Server {
    /// Begins to listen. The state directory is claimed by this process, so that a socket that is there is nobody's. An
    /// answer is waited for as long as `patience` says for its request.
    pub(crate) fn listen(
        state_dir: &Path,
        patience: impl Fn(&Request) -> Duration + Send + Sync + 'static,
        tasks: &CoreTasks,
    ) -> anyhow::Result<Self> {
        let path = socket(state_dir);
        let listener = bind(&path).with_context(|| format!("listen on {}", path.display()))?;
        let (asked, questions) = mpsc::channel(CLIENTS);
        let serving = serve(listener, asked, Arc::new(patience));
        let task = tokio::spawn(tasks.watch("the task that serves the control socket", End::Never, serving));
        Ok(Server { path, questions, task })
    }

    /// The next question. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Question {
        match self.questions.recv().await {
            Some(question) => question,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Only the worker's user and group may ask. The directory keeps everybody else out also for the moment before that is set.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// How long the answer to a request is waited for.
type Patience = Arc<dyn Fn(&Request) -> Duration + Send + Sync>;

async fn serve(listener: UnixListener, asked: mpsc::Sender<Question>, patience: Patience) {
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
        }
    }
}

async fn talk(stream: UnixStream, asked: mpsc::Sender<Question>, patience: Patience) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(MAX_LINE));
    let mut line = Vec::new();
    let read = timeout(TALK, reader.read_until(b'\n', &mut line)).await;
    if !matches!(read, Ok(Ok(_))) || line.last() != Some(&b'\n') {
        return debug!("a client of the control socket did not ask anything");
    }
    let response = match serde_json::from_slice(&line) {
        Ok(request) => {
            let patience = patience(&request);
            answered(request, asked, patience).await
        }
        Err(error) => Response::Refused(format!("the worker does not understand this: {error}")),
    };
    let Ok(mut line) = serde_json::to_vec(&response) else { return };
    line.push(b'\n');
    let _ = timeout(TALK, writer.write_all(&line)).await;
}

async fn answered(request: Request, asked: mpsc::Sender<Question>, patience: Duration) -> Response {
    let (answer, response) = oneshot::channel();
    let waited = async {
        // Either fails only when the worker ends.
        asked.send(Question { request, answer }).await.ok()?;
        response.await.ok()
    };
    match timeout(patience, waited).await {
        Ok(Some(response)) => response,
        Ok(None) => Response::Refused("the worker is stopping".to_owned()),
        Err(_) => {
            Response::Refused(format!("there was no answer within {} s; it may still happen", patience.as_secs()))
        }
    }
}
