//! Files of a guest that are kept open.
//!
//! One script does it for all files of a command: a guest's server lets in a few channels only. A process of it has the file
//! open, so that Linux's `/proc` has a path of it. The script ends when the last file is not needed any more, so that one who
//! finds no further channel for reading what is kept open gives this one back.

use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{Guest, script};
use crate::place::Held;

const HOLD: &str = include_str!("hold.sh");

/// How many files may wait to be opened.
const WAITING: usize = 16;

/// How long it may take to open one.
const OPENING: Duration = Duration::from_secs(10);

/// How long the script may take to end.
const ENDING: Duration = Duration::from_secs(5);

/// The longest answer of the script, in bytes: a number.
const MAX_ANSWER: usize = 32;

/// A guest's script that keeps files open. It ends with the last handle.
#[derive(Debug)]
pub(super) struct Keeper(mpsc::Sender<Wanted>);

/// A file that is to be kept open.
#[derive(Debug)]
struct Wanted {
    line: String,
    /// Gets the process that has it, and what to drop when it is not needed any more; nothing if it can't be opened.
    answer: oneshot::Sender<Option<(u32, Needed)>>,
}

type Needed = oneshot::Sender<()>;

impl Guest {
    /// See [`super::super::Place::hold`].
    pub(super) async fn keep_open(&self, path: &Path) -> io::Result<Held> {
        let keeper = self.keeper.get_or_try_init(|| Keeper::start(self)).await?;
        let (answer, answered) = oneshot::channel();
        let opening = async {
            let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
            keeper.0.send(Wanted { line: line(path), answer }).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())
        };
        let opened = timeout(OPENING, opening).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let (pid, needed) = opened.ok_or_else(|| io::Error::other("the guest can't keep it open"))?;
        Ok(Held::new(PathBuf::from(format!("/proc/{pid}/fd/3")), needed))
    }
}

impl Keeper {
    async fn start(guest: &Guest) -> io::Result<Self> {
        let mut process = guest.start(script(HOLD, []).stdin().abandoned_by(ssh::Signal::Term)).await?;
        let stdin = process.take_stdin().ok_or_else(|| io::Error::other("no standard input in the guest"))?;
        let (sender, wanted) = mpsc::channel(WAITING);
        tokio::spawn(keep(process, stdin, wanted));
        Ok(Keeper(sender))
    }
}

/// Has files opened and closed until none is open any more, or nobody can want one.
async fn keep(mut process: ssh::Process, mut stdin: ssh::Stdin, mut wanted: mpsc::Receiver<Wanted>) {
    let mut held = FuturesUnordered::new();
    let mut said = Vec::new();
    loop {
        let next = tokio::select! {
            Some(pid) = held.next(), if !held.is_empty() => {
                if held.is_empty() {
                    break;
                }
                if stdin.write(format!("-{pid}\n")).await.is_err() {
                    return;
                }
                continue;
            }
            next = wanted.recv() => next,
        };
        let Some(Wanted { line, answer }) = next else { break };
        if stdin.write(line).await.is_err() {
            return;
        }
        let Ok(Some(pid)) = timeout(OPENING, number(&mut process, &mut said)).await else { return };
        let opened = (pid > 0).then(|| {
            let (needed, not_any_more) = oneshot::channel();
            held.push(async move {
                // Nothing is ever sent.
                let _: Result<(), _> = not_any_more.await;
                pid
            });
            (pid, needed)
        });
        // Who does not wait any more drops what it would have got.
        let _ = answer.send(opened);
    }
    stdin.close().await;
    // What is dropped after its end needs no kill.
    let _ = timeout(ENDING, async { while let Ok(Some(_)) = process.next().await {} }).await;
}

/// The next line that the script says, a number.
async fn number(process: &mut ssh::Process, said: &mut Vec<u8>) -> Option<u32> {
    loop {
        if let Some(end) = said.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = said.drain(..=end).collect();
            return std::str::from_utf8(&line[..end]).ok()?.parse().ok();
        }
        match process.next().await.ok()?? {
            ssh::Event::Stdout(bytes) if said.len() + bytes.len() <= MAX_ANSWER => said.extend_from_slice(&bytes),
            ssh::Event::Stderr(_) => {}
            ssh::Event::Stdout(_) | ssh::Event::Exited(_) => return None,
        }
    }
}

/// What the script reads: one line, whatever is in the path.
fn line(path: &Path) -> String {
    let mut line = String::from("+");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => line.push(char::from(*byte)),
            // Writing to a String does not fail.
            _ => drop(write!(line, "\\0{byte:03o}")),
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_is_one_line() {
        let check = |path: &[u8], expected: &str| {
            assert_eq!(line(Path::new(std::ffi::OsStr::from_bytes(path))), expected);
        };
        check(b"/w/a-b_1.log", "+/w/a-b_1.log\n");
        check(b"/a b\n\xff\\%", "+/a\\0040b\\0012\\0377\\0134\\0045\n");
    }
}
