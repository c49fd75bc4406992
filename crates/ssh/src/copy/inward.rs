//! Host to guest.

use std::os::unix::ffi::OsStrExt;
use std::path::Component;
use std::time::Duration;

use bytes::Bytes;
use cap_std::fs::MetadataExt;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use super::error::{CopyError, Side};
use super::guest::{Script, Step};
use super::pack::{Layout, pack_counted};
use super::{Copied, CopyOptions, Tally, blocking, heard, stream};
use crate::HostPath;
use crate::session::Session;
use crate::stdin::Stdin;

const SCRIPT: &str = include_str!("copy_in.sh");

/// How long the guest may take to remove what a failed copy left.
const CLEANUP_WAIT: Duration = Duration::from_secs(10);

/// See [`Session::copy_in`].
pub(crate) async fn copy_in(
    session: &Session,
    from: &HostPath,
    to: &[u8],
    options: &CopyOptions,
) -> Result<Copied, CopyError> {
    let start = Instant::now();
    let source = {
        let (from, recursive) = (from.clone(), options.recursive);
        blocking(move || Source::look(&from, recursive)).await?
    };
    if to.is_empty() {
        return Err(CopyError::BadPath { path: String::new(), why: "is empty" });
    }
    let mode = format!("{:o}", source.mode & 0o777);
    let variables: [(&str, &[u8]); 5] = [
        ("to", to),
        ("name", &source.name),
        ("kind", if source.directory { b"directory" } else { b"file" }),
        ("mode", if options.preserve { mode.as_bytes() } else { b"" }),
        ("flags", if options.preserve { b"p" } else { b"m" }),
    ];
    let mut script = Script::start(session, SCRIPT, &variables, to, options.silence, true).await?;
    let layout = match script.word().await?.as_str() {
        "fresh" => Layout::Whole,
        "merge" => Layout::Contents,
        word => return Err(CopyError::Hostile { why: format!("it says {word:?}") }),
    };
    let stdin = script.process.take_stdin().ok_or_else(|| script.lost("no standard input"))?;

    let (writer, chunks) = stream::to_task();
    let (from, tally) = (from.clone(), Tally::new(options.limits));
    let packing = spawn_blocking(move || pack_counted(&from, layout, tally, writer));
    let silence = options.silence;
    let feeding = feed(chunks, stdin, silence);
    let finishing = finish(&mut script);
    tokio::pin!(feeding, finishing);
    // If the script ends first, it failed, and says why better than the packer whom nobody listens to any more.
    let stdin = tokio::select! {
        finished = &mut finishing => {
            finished?;
            return Err(CopyError::Hostile { why: "its part ended before the data".to_owned() });
        }
        stdin = &mut feeding => stdin?,
    };
    let packed = packing.await.unwrap_or_else(|error| Err(CopyError::broke_down(&error)));
    let copied = match (packed, stdin) {
        (Ok(copied), Some(stdin)) => {
            stdin.close().await;
            heard(silence, finishing).await??;
            copied
        }
        // The guest stopped reading.
        (_, None) => {
            heard(silence, finishing).await??;
            return Err(CopyError::Hostile { why: "its part ended before the data".to_owned() });
        }
        (Err(error), Some(stdin)) => {
            // The archive lacks its end, so the script fails, and removes what it had.
            stdin.close().await;
            let _ = timeout(CLEANUP_WAIT, finishing).await;
            return Err(error);
        }
    };
    Ok(Copied { elapsed: start.elapsed(), ..copied })
}

/// Passes the packer's chunks on; returns the input, unless the guest stopped reading.
async fn feed(
    mut chunks: mpsc::Receiver<Bytes>,
    mut stdin: Stdin,
    silence: Duration,
) -> Result<Option<Stdin>, CopyError> {
    while let Some(chunk) = chunks.recv().await {
        if heard(silence, stdin.write(chunk)).await?.is_err() {
            return Ok(None);
        }
    }
    Ok(Some(stdin))
}

async fn finish(script: &mut Script) -> Result<(), CopyError> {
    loop {
        match script.next().await? {
            Step::Done => return Ok(()),
            Step::Said(_) | Step::Data(_) => {}
        }
    }
}

/// What is known of the source before anything moves.
struct Source {
    /// Its own name; empty if the path ends in none, as `.` and `/` do.
    name: Vec<u8>,
    directory: bool,
    mode: u32,
}

impl Source {
    fn look(from: &HostPath, recursive: bool) -> Result<Self, CopyError> {
        let metadata = from.root().metadata(from.path());
        let metadata = metadata.map_err(|error| CopyError::below(from, "read", from.path(), &error))?;
        let (side, path) = (Side::Host, from.to_string());
        if metadata.is_dir() && !recursive {
            return Err(CopyError::IsDirectory { side, path });
        }
        if !metadata.is_dir() && !metadata.is_file() {
            return Err(CopyError::Special { side, path });
        }
        // Unlike Path::file_name, "dir/." means what is in dir.
        let bytes = from.path().as_os_str().as_bytes();
        let name = match (from.path().components().next_back(), bytes.ends_with(b"/.")) {
            (Some(Component::Normal(name)), false) => name.as_bytes().to_vec(),
            _ => Vec::new(),
        };
        Ok(Self { name, directory: metadata.is_dir(), mode: metadata.mode() })
    }
}
