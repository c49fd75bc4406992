//! The command line's side. It blocks: there is nothing else to do meanwhile.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use super::talk::Input;
use super::{Answer, MAX_SAID, Request, Response};
use crate::plain::plain;

/// Why a worker can't be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoConversation {
    /// Nobody listens.
    #[error("no worker runs on {}", .0.display())]
    NoWorker(PathBuf),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// A question that a worker was asked, and what it says.
#[derive(Debug)]
pub(crate) struct Conversation {
    path: PathBuf,
    patience: Duration,
    reader: BufReader<UnixStream>,
}

impl Conversation {
    /// Asks the worker that listens on a socket; each line of its answer is waited for so long.
    pub(crate) fn begin(path: &Path, request: &Request, patience: Duration) -> Result<Self, NoConversation> {
        let begun = Conversation::connect(path, patience)?;
        begun.ask(request)?;
        Ok(begun)
    }

    fn connect(path: &Path, patience: Duration) -> Result<Self, NoConversation> {
        let stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Err(NoConversation::NoWorker(path.to_owned()));
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(anyhow::anyhow!(
                    "{} is for the worker's user and group; run this as one of these or as root, or see control.group",
                    path.display()
                )
                .into());
            }
            Err(error) => {
                return Err(anyhow::Error::new(error).context(format!("connect to {}", path.display())).into());
            }
        };
        Ok(Conversation { path: path.to_owned(), patience, reader: BufReader::new(stream) })
    }

    /// The process that listens.
    fn listener(&self) -> anyhow::Result<u32> {
        let listener = getsockopt(self.reader.get_ref(), PeerCredentials).context("find out which process listens")?;
        Ok(u32::try_from(listener.pid())?)
    }

    fn ask(&self, request: &Request) -> anyhow::Result<()> {
        let stream = self.reader.get_ref();
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        write(stream, request).with_context(|| format!("ask the worker on {}", self.path.display()))
    }

    /// What says more to the worker, from another thread.
    pub(crate) fn voice(&self) -> io::Result<Voice> {
        self.reader.get_ref().try_clone().map(Voice)
    }

    /// The next thing the worker says.
    pub(crate) fn next(&mut self) -> anyhow::Result<Response> {
        let mut line = Vec::new();
        match (&mut self.reader).take(MAX_SAID).read_until(b'\n', &mut line) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bail!("the worker did not answer within {} s", self.patience.as_secs())
            }
            read => read.with_context(|| format!("hear the worker on {}", self.path.display()))?,
        };
        if line.is_empty() {
            bail!("the worker ended before it answered");
        }
        serde_json::from_slice(&line).context("understand the worker's answer; is it of another version?")
    }

    /// Waits for the answer, and passes progress on.
    pub(crate) fn answer(mut self, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Answer> {
        loop {
            match self.next()? {
                Response::Done(answer) => return Ok(answer),
                // It may have words of a guest in it, and what follows the first line is its console.
                Response::Refused(why) => bail!("{}", plain(why.as_bytes())),
                Response::Progress(line) => progress(&line),
                // Not said to what is asked in this way.
                _ => {}
            }
        }
    }
}

/// What says more to a worker.
#[derive(Debug)]
pub(crate) struct Voice(UnixStream);

impl Voice {
    /// Says something the worker asked for.
    pub(crate) fn say(&self, input: &Input) -> io::Result<()> {
        write(&self.0, input)
    }
}

/// Asks the worker that listens on a socket, and waits so long for its answer.
///
/// # Errors
/// No worker runs, or it refuses.
pub(crate) fn ask(
    path: &Path,
    request: &Request,
    patience: Duration,
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<Answer> {
    Conversation::begin(path, request, patience)?.answer(progress)
}

/// Asks it, passes its answer on, and waits until its process has ended.
///
/// # Errors
/// No worker runs, or it refuses.
pub(crate) fn ask_and_outlive(
    path: &Path,
    request: &Request,
    patience: Duration,
    answered: impl FnOnce(Answer),
) -> anyhow::Result<()> {
    let conversation = Conversation::connect(path, patience)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    // Taken hold of before it is asked, so that it is the one that answers.
    let context = runtime.enter();
    let worker = process::Pidfd::open(conversation.listener()?);
    let worker = worker.context("take hold of the worker's process; is it in another container?")?;
    drop(context);
    conversation.ask(request)?;
    answered(conversation.answer(&mut |_| {})?);
    runtime.block_on(worker.exited());
    Ok(())
}

fn write(mut stream: &UnixStream, line: &impl serde::Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(line)?;
    line.push(b'\n');
    stream.write_all(&line)
}
