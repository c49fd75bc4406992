//! A file of a guest that is replaced as a whole.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::PollSender;

use super::output::Output;
use super::{Guest, script, tool};

const WRITE: &str = include_str!("write.sh");

/// How much is handed over at once at most, in bytes.
const CHUNK: usize = 256 * 1024;

/// How many chunks may wait for the connection.
const CHUNKS: usize = 4;

/// What the script's first words are at most, in bytes: two paths.
const MAX_WORDS: usize = 16 * 1024;

/// Writes a new file beside an old one and puts it in the old one's place when it is shut down.
///
/// Dropped before, it takes the new file away again and the old one is as it was. What is no regular file (a device,
/// say), or stands where no new file can be made, is written directly. If the guest is lost on the way the new file
/// stays under its temporary name.
pub(super) struct Replacement {
    parts: PollSender<Part>,
    /// The task that hands the parts over; taken when its end was seen.
    receiving: Option<JoinHandle<io::Result<()>>>,
    complete: bool,
}

enum Part {
    Data(Bytes),
    /// There is no more, and this was all.
    End,
}

impl Replacement {
    /// Opens the new file.
    pub(super) async fn begin(guest: &Guest, path: &Path, mode: Option<u32>) -> io::Result<Self> {
        let mode = mode.map(|mode| format!("{mode:o}")).unwrap_or_default();
        let exec = script(WRITE, [path.as_os_str(), OsStr::new(&mode)]).stdin().abandoned_by(ssh::Signal::Term);
        let mut process = guest.start(exec).await?;
        let stdin = process.take_stdin().ok_or_else(|| io::Error::other("no standard input in the guest"))?;
        let mut output = Output::new(guest, process);
        let aside = Aside::told(&mut output).await?;
        let (sender, parts) = mpsc::channel(CHUNKS);
        let receiving = Receiving { guest: guest.clone(), output, stdin, aside };
        let receiving = tokio::spawn(receiving.run(parts));
        Ok(Replacement { parts: PollSender::new(sender), receiving: Some(receiving), complete: false })
    }

    /// How the task ended that handed the parts over.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(receiving) = &mut self.receiving else { return Poll::Ready(Ok(())) };
        let ended = ready!(Pin::new(receiving).poll(cx));
        self.receiving = None;
        Poll::Ready(ended.unwrap_or_else(|ended| Err(io::Error::other(ended))))
    }

    /// Hands a part over; an error is why the guest takes no more.
    fn poll_send(&mut self, cx: &mut Context<'_>, part: impl FnOnce() -> Part) -> Poll<io::Result<()>> {
        if ready!(self.parts.poll_reserve(cx)).is_ok() && self.parts.send_item(part()).is_ok() {
            return Poll::Ready(Ok(()));
        }
        let ended = ready!(self.poll_end(cx));
        Poll::Ready(ended.and_then(|()| Err(io::ErrorKind::BrokenPipe.into())))
    }
}

impl AsyncWrite for Replacement {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let data = &data[..data.len().min(CHUNK)];
        self.poll_send(cx, || Part::Data(Bytes::copy_from_slice(data))).map_ok(|()| data.len())
    }

    /// What was written is on its way, and nobody looks for it under the file's name yet.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.complete {
            ready!(self.poll_send(cx, || Part::End))?;
            self.complete = true;
        }
        self.poll_end(cx)
    }
}

/// A new file that is not in its place yet, and its place.
struct Aside {
    temporary: Vec<u8>,
    target: Vec<u8>,
}

impl Aside {
    /// What the script says first; nothing if it writes directly.
    async fn told(output: &mut Output) -> io::Result<Option<Aside>> {
        let mut said = Vec::new();
        while said.iter().filter(|byte| **byte == 0).count() < 2 {
            match output.next().await? {
                Some(bytes) if said.len() < MAX_WORDS => said.extend_from_slice(&bytes),
                _ => return Err(io::Error::other("the guest did not say where it writes")),
            }
        }
        let mut words = said.split(|byte| *byte == 0).map(<[u8]>::to_vec);
        let (temporary, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        Ok((!temporary.is_empty()).then_some(Aside { temporary, target }))
    }
}

/// The guest's end of it.
struct Receiving {
    guest: Guest,
    output: Output,
    stdin: ssh::Stdin,
    aside: Option<Aside>,
}

impl Receiving {
    /// Hands parts over until the end, then puts the file in its place; without an end, takes it away.
    async fn run(mut self, mut parts: mpsc::Receiver<Part>) -> io::Result<()> {
        loop {
            match parts.recv().await {
                Some(Part::Data(data)) => {
                    if self.stdin.write(data).await.is_err() {
                        // Nobody reads any more. It says why, and has cleaned up.
                        return match self.finish().await {
                            Ok(_) => Err(io::ErrorKind::BrokenPipe.into()),
                            Err(error) => Err(error),
                        };
                    }
                }
                Some(Part::End) => break,
                None => {
                    self.give_up().await;
                    return Ok(());
                }
            }
        }
        let (guest, aside) = self.finish().await?;
        let Some(Aside { temporary, target }) = aside else { return Ok(()) };
        let move_there = [b"mv", b"-f".as_slice(), &temporary, &target].map(OsStr::from_bytes);
        let moved = guest.output(tool(move_there), 0).await;
        if moved.is_err() {
            remove(&guest, &temporary).await;
        }
        moved.map(drop)
    }

    /// Waits until all that was written has arrived.
    async fn finish(self) -> io::Result<(Guest, Option<Aside>)> {
        let Receiving { guest, mut output, stdin, aside } = self;
        stdin.close().await;
        while output.next().await?.is_some() {}
        Ok((guest, aside))
    }

    async fn give_up(self) {
        let Receiving { guest, output, stdin, aside } = self;
        if let Some(Aside { temporary, .. }) = aside {
            remove(&guest, &temporary).await;
        }
        // In this order, so that the script does not take this for the end of the file.
        drop(output);
        drop(stdin);
    }
}

async fn remove(guest: &Guest, temporary: &[u8]) {
    let words = [b"rm", b"-f".as_slice(), temporary].map(OsStr::from_bytes);
    if let Err(error) = guest.output(tool(words), 0).await {
        tracing::debug!(%error, "a file that was not completed may be left in the guest");
    }
}
