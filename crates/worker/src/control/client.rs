//! The command line's side. It blocks: there is nothing else to do meanwhile.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

use super::message::Printable;
use super::{Answer, MAX_LINE, Request, Response, socket};

/// Asks the worker that uses a state directory, and waits so long for its answer.
///
/// # Errors
/// No worker runs, or it refuses.
pub(crate) fn ask(state_dir: &Path, request: &Request, patience: Duration) -> anyhow::Result<Answer> {
    let path = socket(state_dir);
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            bail!("no worker runs on {}, or none with images", state_dir.display())
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            bail!("{} is the worker's user's alone; run this as that user or as root", path.display())
        }
        Err(error) => return Err(error).with_context(|| format!("connect to {}", path.display())),
    };
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).with_context(|| format!("ask the worker on {}", path.display()))?;
    let mut line = Vec::new();
    let read = BufReader::new(stream.take(MAX_LINE)).read_until(b'\n', &mut line);
    match read {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            bail!("the worker did not answer within {} s", patience.as_secs())
        }
        read => read.with_context(|| format!("hear the worker on {}", path.display()))?,
    };
    if line.is_empty() {
        bail!("the worker ended before it answered");
    }
    match serde_json::from_slice(&line).context("understand the worker's answer; is it of another version?")? {
        Response::Done(answer) => Ok(answer),
        Response::Refused(why) => bail!("{}", Printable(&why)),
    }
}
