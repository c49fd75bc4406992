//! The commands that carry files between master and worker (Buildbot 4.3.0, `commands/transfer.py`).
//!
//! ```text
//! uploadFile       write… close [utime]     header, rc, elapsed, stderr, complete
//! uploadDirectory  write… unpack            header, rc, elapsed, stderr, complete
//! downloadFile     read…  close                     rc, elapsed, stderr, complete
//! ```
//!
//! A few blocks are under way at once, so that the line's delay does not count for each of them; that number bounds the
//! memory a transfer takes. What goes wrong on our side is an exit status of 1 and a sentence on stderr. A master that
//! refuses the data is a [`Failure`].

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use bytes::BufMut;
use protocol::command::{DownloadFile, UploadDirectory, UploadFile};
use protocol::{Call, Update, Value};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::files::{before_the_last_slash, locate};
use super::os_error::{self, place_lost, pythonic, text};
use super::{Context, Failure};
use crate::master::{Answer, AskError, LineLost};
use crate::output::Reporter;
use crate::place::Place;

/// How many blocks are under way before the first of them must have been answered.
const AHEAD: usize = 3;

/// Sends a file to the master.
///
/// A 4.3.0 master can't set a file's times over msgpack; that is only warned of, as the file is there.
pub(super) async fn upload_file(
    context: &Context,
    upload: &UploadFile,
    place: &dyn Place,
    reporter: &Reporter,
) -> Result<(), Failure> {
    let path = locate(context, place, &upload.path);
    let command_id = context.command_id.clone();
    let opened = open(place, &path, upload.keepstamp).await;
    reporter.header(format!("sending {}\n", path.display())).await;
    let (sent, times) = match opened {
        Ok((mut file, times)) => {
            let blocks = Blocks { context, path: &path, size: upload.blocksize, most: upload.maxsize };
            let call = |data| Call::UploadWrite { command_id: command_id.clone(), data };
            (blocks.send(&mut file, call, |error| format!("Error reading '{}': {error}", path.display())).await, times)
        }
        Err(stopped) => (Err(stopped), None),
    };
    // In any case: otherwise the master keeps its file open.
    let closed = ask(context, Call::UploadClose { command_id: command_id.clone() }).await;
    let mut sent = sent.and(closed.map(drop));
    if let (Ok(()), Some((accessed, modified))) = (&sent, times) {
        match ask(context, Call::UploadTimes { command_id, accessed, modified }).await {
            Err(Stopped::Refused(why)) => reporter.header(times_refused(&path, &why)).await,
            answered => sent = answered.map(drop),
        }
    }
    conclude(reporter, sent).await
}

/// Sends a directory to the master, as an archive that is made meanwhile and never stored here.
///
/// The master unpacks it only when it is whole: one that was interrupted or could not be read to its end is thrown away.
pub(super) async fn upload_directory(
    context: &Context,
    upload: &UploadDirectory,
    place: &dyn Place,
    reporter: &Reporter,
) -> Result<(), Failure> {
    let path = locate(context, place, &upload.path);
    let command_id = context.command_id.clone();
    let unreadable = |why: String| format!("Cannot read directory '{}' for upload: {why}", path.display());
    let mut archive = match place.pack(&path, upload.compression).await {
        Ok(archive) => archive,
        Err(error) => {
            return conclude(reporter, Err(Stopped::by(&error, unreadable(pythonic(&error, &path))))).await;
        }
    };
    reporter.header(format!("sending {}\n", path.display())).await;
    let blocks = Blocks { context, path: &path, size: upload.blocksize, most: upload.maxsize };
    let call = |data| Call::DirectoryWrite { command_id: command_id.clone(), data };
    let mut sent = blocks.send(&mut archive, call, unreadable).await;
    if sent.is_ok() {
        sent = match ask(context, Call::DirectoryUnpack { command_id: command_id.clone() }).await {
            // Mostly for what is in it: the master takes no devices and no links that lead out of the directory.
            Err(Stopped::Refused(why)) => {
                Err(Stopped::Wrong(format!("The master cannot unpack the directory '{}': {why}", path.display())))
            }
            answered => answered.map(drop),
        };
    }
    conclude(reporter, sent).await
}

/// Receives a file from the master. Until it is complete, whatever was there under its name stays.
///
/// A 4.3.0 master answers every read over msgpack with nil and not with data. An empty file would pass for the real
/// one, so this is an error.
pub(super) async fn download_file(
    context: &Context,
    download: &DownloadFile,
    place: &dyn Place,
    reporter: &Reporter,
) -> Result<(), Failure> {
    let path = locate(context, place, &download.path);
    let received = receive(context, download, place, &path).await;
    // An answer to this changes nothing: the file is there, or something is wrong already.
    let _ = ask(context, Call::ReadClose { command_id: context.command_id.clone() }).await;
    conclude(reporter, received).await
}

/// Why a transfer did not do what it was asked for.
enum Stopped {
    /// The master interrupted it.
    Interrupted,
    /// The line is gone, and with it everybody who could hear of it.
    LineLost,
    /// The place is gone.
    PlaceLost(String),
    /// The master refused a call.
    Refused(String),
    /// Anything else, as it is shown at the step.
    Wrong(String),
}

impl Stopped {
    /// By an error of the place; `sentence` says what it means for the transfer.
    fn by(error: &io::Error, sentence: String) -> Self {
        place_lost(error).map_or(Stopped::Wrong(sentence), Stopped::PlaceLost)
    }

    fn truncated(path: &Path) -> Self {
        Stopped::Wrong(format!("Maximum filesize reached, truncating file '{}'", path.display()))
    }
}

impl From<AskError> for Stopped {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Lost(lost) => lost.into(),
            AskError::Refused(why) => Stopped::Refused(why),
        }
    }
}

impl From<LineLost> for Stopped {
    fn from(_: LineLost) -> Self {
        Stopped::LineLost
    }
}

async fn conclude(reporter: &Reporter, transferred: Result<(), Stopped>) -> Result<(), Failure> {
    let rc = i32::from(transferred.is_err());
    match transferred {
        Ok(()) | Err(Stopped::Interrupted | Stopped::LineLost) => reporter.update(Update::Rc(rc)).await,
        Err(Stopped::PlaceLost(why)) => os_error::report_lost(reporter, why).await,
        Err(Stopped::Refused(why)) => {
            reporter.update(Update::Rc(rc)).await;
            return Err(Failure(format!("the master refused the transfer: {why}")));
        }
        Err(Stopped::Wrong(why)) => {
            reporter.update(Update::Rc(rc)).await;
            // Without a newline it follows at the end, where Buildbot's worker has it.
            reporter.stderr(why).await;
        }
    }
    Ok(())
}

/// Asks the master, and does not wait for its answer once the command is interrupted.
async fn ask(context: &Context, call: Call) -> Result<Value, Stopped> {
    let answer = context.link.ask(call).await?;
    tokio::select! {
        biased;
        answered = answer.get() => Ok(answered?),
        _ = context.interrupt.requested() => Err(Stopped::Interrupted),
    }
}

/// Does a part of a transfer, unless the command is interrupted before it is done.
async fn until_interrupted<T>(context: &Context, work: impl Future<Output = Result<T, Stopped>>) -> Result<T, Stopped> {
    tokio::select! {
        biased;
        _ = context.interrupt.requested() => Err(Stopped::Interrupted),
        done = work => done,
    }
}

type Source = Box<dyn AsyncRead + Send + Unpin>;

/// Opens a file to be sent, and learns its access and modification time (seconds since the epoch) if they are to be kept.
async fn open(place: &dyn Place, path: &Path, keepstamp: bool) -> Result<(Source, Option<(f64, f64)>), Stopped> {
    let opened = async {
        let times = match keepstamp {
            true => place.times(path).await.map(Some)?,
            false => None,
        };
        Ok((place.read(path, 0).await?, times))
    };
    opened.await.map_err(|error| Stopped::by(&error, cannot_open(path, "upload", &error)))
}

/// Steps know the sentence; what is more than that a file is not there is added to it.
fn cannot_open(path: &Path, what: &str, error: &io::Error) -> String {
    let sentence = format!("Cannot open file '{}' for {what}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => sentence,
        _ => format!("{sentence}: {}", text(error)),
    }
}

fn times_refused(path: &Path, why: &str) -> String {
    let path = path.display();
    format!(
        "WARNING: the master could not set the times of its copy of '{path}': {why} \
         (Buildbot 4.3.0 can't over msgpack_experimental_v7: leave keepstamp off, or use PB)\n"
    )
}

/// How a file or an archive is cut.
struct Blocks<'a> {
    context: &'a Context,
    path: &'a Path,
    /// Bytes.
    size: usize,
    /// Bytes; more than this is an error.
    most: Option<u64>,
}

impl Blocks<'_> {
    /// Sends all of a source, in order. `unreadable` says what an error of the source means.
    async fn send(
        &self,
        source: &mut Source,
        call: impl Fn(Vec<u8>) -> Call,
        unreadable: impl Fn(String) -> String,
    ) -> Result<(), Stopped> {
        until_interrupted(self.context, async {
            let mut unanswered: VecDeque<Answer> = VecDeque::with_capacity(AHEAD);
            let mut left = self.most;
            loop {
                let length = shortest(self.size, left);
                let block =
                    read_block(source, length).await.map_err(|error| Stopped::by(&error, unreadable(text(&error))))?;
                if block.is_empty() {
                    break;
                }
                left = left.map(|left| left - block.len() as u64);
                if unanswered.len() == AHEAD
                    && let Some(first) = unanswered.pop_front()
                {
                    first.get().await?;
                }
                unanswered.push_back(self.context.link.ask(call(block)).await?);
            }
            for answer in unanswered {
                answer.get().await?;
            }
            // Buildbot's worker does not look whether there is more, either.
            if left == Some(0) { Err(Stopped::truncated(self.path)) } else { Ok(()) }
        })
        .await
    }
}

/// The length of the next block: at most `size`, and what is left.
fn shortest(size: usize, left: Option<u64>) -> usize {
    left.and_then(|left| usize::try_from(left).ok()).map_or(size, |left| size.min(left))
}

/// Reads a block of this length; the last one is shorter, and after it they are empty.
async fn read_block(source: &mut Source, length: usize) -> io::Result<Vec<u8>> {
    let mut block = Vec::with_capacity(length).limit(length);
    while block.has_remaining_mut() && source.read_buf(&mut block).await? > 0 {}
    Ok(block.into_inner())
}

async fn receive(context: &Context, download: &DownloadFile, place: &dyn Place, path: &Path) -> Result<(), Stopped> {
    let opened = async {
        place.make_directory(before_the_last_slash(path)).await?;
        place.write(path, download.mode).await
    };
    let mut file = opened.await.map_err(|error| Stopped::by(&error, cannot_open(path, "download", &error)))?;
    let unwritable =
        |error: io::Error| Stopped::by(&error, format!("Error writing '{}': {}", path.display(), text(&error)));
    let end = until_interrupted(context, fetch(context, download, path, &mut file, unwritable)).await?;
    file.shutdown().await.map_err(unwritable)?;
    match end {
        End::OfFile => Ok(()),
        End::OfSpace => Err(Stopped::truncated(path)),
    }
}

/// How a download's data ended.
enum End {
    OfFile,
    /// At `maxsize`. Buildbot's worker does not look whether there is more, either.
    OfSpace,
}

async fn fetch(
    context: &Context,
    download: &DownloadFile,
    path: &Path,
    file: &mut (dyn AsyncWrite + Send + Unpin),
    unwritable: impl Fn(io::Error) -> Stopped,
) -> Result<End, Stopped> {
    let mut asked: VecDeque<(usize, Answer)> = VecDeque::with_capacity(AHEAD);
    let mut left = download.maxsize;
    // A file that fits into one block is not asked for more than is needed.
    let mut ahead = 1;
    loop {
        while asked.len() < ahead && left != Some(0) {
            let length = shortest(download.blocksize, left);
            left = left.map(|left| left - length as u64);
            let call = Call::Read { command_id: context.command_id.clone(), length };
            asked.push_back((length, context.link.ask(call).await?));
        }
        let Some((length, answer)) = asked.pop_front() else { return Ok(End::OfSpace) };
        let block = data(answer.get().await?, length)
            .map_err(|why| Stopped::Wrong(format!("Cannot download to '{}': {why}", path.display())))?;
        if block.is_empty() {
            return Ok(End::OfFile);
        }
        file.write_all(&block).await.map_err(&unwritable)?;
        left = left.map(|left| left + (length - block.len()) as u64);
        ahead = if block.len() == length { AHEAD } else { 1 };
    }
}

/// The data in the answer to a read; the error is for people.
fn data(answer: Value, asked: usize) -> Result<Vec<u8>, String> {
    let data = match answer {
        Value::Bytes(data) => data,
        // What the master has as text, PB carries as text; the empty one ends a file.
        Value::Str(text) => text.into_bytes(),
        Value::Nil => {
            return Err(
                "the master answered with nil instead of data. A Buildbot 4.3.0 master cannot send files over \
                        msgpack_experimental_v7, every file would arrive empty: connect this worker over PB, or use a \
                        master that has this fixed"
                    .to_owned(),
            );
        }
        other => return Err(format!("the master answered with {} instead of data", other.kind())),
    };
    match data.len() {
        length if length <= asked => Ok(data),
        length => Err(format!("the master answered with {length} bytes where {asked} were asked for")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::{Duration, SystemTime};

    use protocol::command::Compression;

    use super::super::fake_master::{Reply, Stage};
    use super::super::scenery::{Where, everywhere};
    use super::*;

    fn upload(path: &str) -> UploadFile {
        UploadFile { path: path.into(), maxsize: None, blocksize: 4, keepstamp: false }
    }

    fn upload_dir(path: &str) -> UploadDirectory {
        UploadDirectory { path: path.into(), maxsize: None, blocksize: 1 << 16, compression: Compression::Gz }
    }

    fn download(path: &str) -> DownloadFile {
        DownloadFile { path: path.into(), maxsize: None, blocksize: 4, mode: None }
    }

    /// A master that takes everything.
    fn content(_: &Call) -> Reply {
        Reply::nil()
    }

    /// A master that has this to download.
    fn file(content: &'static str) -> impl FnMut(&Call) -> Reply + Send + 'static {
        let mut left = content.as_bytes();
        move |call| match call {
            Call::Read { length, .. } => {
                let (block, rest) = left.split_at(left.len().min(*length));
                left = rest;
                Reply::bytes(block)
            }
            _ => Reply::nil(),
        }
    }

    #[track_caller]
    fn check_upload(
        stage: &Stage,
        upload: &UploadFile,
        reply: impl FnMut(&Call) -> Reply + Send + 'static,
        told: &[&str],
    ) {
        let heard =
            stage.play(reply, async |context, host, reporter| upload_file(context, upload, host, reporter).await);
        assert_eq!(heard, told);
    }

    #[track_caller]
    fn check_directory(
        stage: &Stage,
        upload: &UploadDirectory,
        reply: impl FnMut(&Call) -> Reply + Send + 'static,
        told: &[&str],
    ) {
        let heard =
            stage.play(reply, async |context, host, reporter| upload_directory(context, upload, host, reporter).await);
        assert_eq!(heard, told);
    }

    #[track_caller]
    fn check_download(
        stage: &Stage,
        download: &DownloadFile,
        reply: impl FnMut(&Call) -> Reply + Send + 'static,
        told: &[&str],
    ) {
        let heard =
            stage.play(reply, async |context, host, reporter| download_file(context, download, host, reporter).await);
        assert_eq!(heard, told);
    }

    fn a_file_is_sent_in_blocks_and_closed(at: Where) {
        let stage = Stage::with(at, &[("build/f", "0123456789")]);
        let told = [
            "write 0123",
            "write 4567",
            "write 89",
            "close",
            "header sending ROOT/build/f\n",
            "rc 0",
            "elapsed",
            "complete None",
        ];
        check_upload(&stage, &upload("build/f"), content, &told);
        check_upload(&stage, &upload("~/build/f"), content, &told);
        check_upload(&stage, &upload(stage.path("build/f").to_str().expect("text")), content, &told);
    }

    fn an_empty_file_is_only_closed(at: Where) {
        let stage = Stage::with(at, &[("f", "")]);
        let told = ["close", "header sending ROOT/f\n", "rc 0", "elapsed", "complete None"];
        check_upload(&stage, &upload("f"), content, &told);
    }

    fn what_can_not_be_opened_is_closed_all_the_same(at: Where) {
        let stage = Stage::with(at, &[("d/f", "")]);
        let check = |path: &str, said: &str| {
            let header = format!("header sending ROOT/{path}\n");
            let stderr = format!("stderr Cannot open file 'ROOT/{path}' for upload{said}\n");
            let told = ["close", header.as_str(), "rc 1", "elapsed", stderr.as_str(), "complete None"];
            check_upload(&stage, &upload(path), content, &told);
            check_upload(&stage, &UploadFile { keepstamp: true, ..upload(path) }, content, &told);
        };
        check("missing", "");
        check("d", ": Is a directory");
        check("d/f/x", ": Not a directory");
    }

    fn times_follow_the_close(at: Where) {
        let stage = Stage::with(at, &[("f", "x")]);
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let times = std::fs::FileTimes::new().set_accessed(time(978_307_201)).set_modified(time(978_307_200));
        let set = std::fs::File::open(stage.path("f")).and_then(|file| file.set_times(times));
        set.expect("times");
        let upload = UploadFile { keepstamp: true, ..upload("f") };
        let header = "header sending ROOT/f\n";
        let utime = "utime 978307201 978307200";
        check_upload(
            &stage,
            &upload,
            content,
            &["write x", "close", utime, header, "rc 0", "elapsed", "complete None"],
        );

        set_times_back(&stage, times);
        let refuse = |call: &Call| match call {
            Call::UploadTimes { .. } => Reply::Refuse("takes 2 positional arguments"),
            _ => Reply::nil(),
        };
        let warned = "header sending ROOT/f\nWARNING: the master could not set the times of its copy of 'ROOT/f': takes 2 \
                      positional arguments (Buildbot 4.3.0 can't over msgpack_experimental_v7: leave keepstamp off, or use \
                      PB)\n";
        check_upload(&stage, &upload, refuse, &["write x", "close", utime, warned, "rc 0", "elapsed", "complete None"]);
    }

    /// Reading a file changes when it was accessed.
    fn set_times_back(stage: &Stage, times: std::fs::FileTimes) {
        std::fs::File::open(stage.path("f")).and_then(|file| file.set_times(times)).expect("times");
    }

    fn a_file_is_cut_at_its_maximal_size(at: Where) {
        let stage = Stage::with(at, &[("f", "0123456789")]);
        let check = |maxsize, writes: &[&str]| {
            let told = [
                writes,
                &["close", "header sending ROOT/f\n", "rc 1", "elapsed"],
                &["stderr Maximum filesize reached, truncating file 'ROOT/f'\n", "complete None"],
            ];
            check_upload(&stage, &UploadFile { maxsize: Some(maxsize), ..upload("f") }, content, &told.concat());
        };
        check(0, &[]);
        check(6, &["write 0123", "write 45"]);
        check(10, &["write 0123", "write 4567", "write 89"]);
    }

    fn several_blocks_are_under_way_at_once(at: Where) {
        let stage = Stage::with(at, &[("f", "0123456789ab")]);
        let (link, mut calls) = crate::master::MasterLink::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let context = stage.context(link);
            let mut source: Source = Box::new(&b"0123456789ab"[..]);
            let blocks = Blocks { context: &context, path: Path::new("f"), size: 4, most: None };
            let call = |data| Call::UploadWrite { command_id: context.command_id.clone(), data };
            let answered_late = async {
                let mut held = Vec::new();
                while held.len() < AHEAD {
                    held.push(calls.recv().await.expect("a call").answer.expect("it is asked"));
                }
                for answer in held {
                    answer.send(Ok(Value::Nil)).expect("it is waited for");
                }
            };
            let (sent, ()) = tokio::join!(blocks.send(&mut source, call, |error| error), answered_late);
            assert!(sent.is_ok());
        });
    }

    fn a_master_that_refuses_a_block_makes_the_build_an_exception(at: Where) {
        let stage = Stage::with(at, &[("f", "0123")]);
        let refuse = |call: &Call| match call {
            Call::UploadWrite { .. } => Reply::Refuse("no space"),
            _ => Reply::nil(),
        };
        let failure = "complete Some(\"the master refused the transfer: no space\")";
        let told = ["write 0123", "close", "header sending ROOT/f\n", "rc 1", "elapsed", failure];
        check_upload(&stage, &upload("f"), refuse, &told);
    }

    fn an_interrupt_stops_an_upload_and_closes_it(at: Where) {
        let stage = Stage::with(at, &[("f", "0123")]);
        let interrupt = |call: &Call| match call {
            Call::UploadWrite { .. } => Reply::Interrupt,
            _ => Reply::nil(),
        };
        let told = ["write 0123", "close", "header sending ROOT/f\n", "rc 1", "complete None"];
        check_upload(&stage, &upload("f"), interrupt, &told);
    }

    fn a_lost_line_ends_a_transfer(at: Where) {
        let stage = Stage::with(at, &[("f", "0123")]);
        check_upload(&stage, &upload("f"), |_| Reply::HangUp, &["write 0123"]);
        check_directory(&stage, &upload_dir(""), |_| Reply::HangUp, &["write archive"]);
        check_download(&stage, &download("new"), |_| Reply::HangUp, &["read 4"]);
        assert_eq!(stage.names(), ["f"]);
    }

    fn a_directory_is_sent_as_an_archive_and_unpacked(at: Where) {
        let stage = Stage::with(at, &[("d/f", "x")]);
        let told = ["write archive", "unpack", "header sending ROOT/d\n", "rc 0", "elapsed", "complete None"];
        check_directory(&stage, &upload_dir("d"), content, &told);
    }

    fn a_directory_that_is_none_is_not_sent(at: Where) {
        let stage = Stage::with(at, &[("f", "x")]);
        let check = |path: &str, why: &str| {
            let stderr = format!("stderr Cannot read directory 'ROOT/{path}' for upload: {why}: 'ROOT/{path}'\n");
            check_directory(&stage, &upload_dir(path), content, &["rc 1", "elapsed", stderr.as_str(), "complete None"]);
        };
        check("missing", "[Errno 2] No such file or directory");
        check("f", "[Errno 20] Not a directory");
    }

    fn half_an_archive_is_never_unpacked(at: Where) {
        let stage = Stage::with(at, &[("d/f", "x")]);
        let check = |upload: &UploadDirectory, reply: fn(&Call) -> Reply, end: &[&str]| {
            check_directory(
                &stage,
                upload,
                reply,
                &[&["write archive", "header sending ROOT/d\n", "rc 1"], end].concat(),
            );
        };
        let maxsize = "stderr Maximum filesize reached, truncating file 'ROOT/d'\n";
        let cut = UploadDirectory { maxsize: Some(10), ..upload_dir("d") };
        check(&cut, content, &["elapsed", maxsize, "complete None"]);
        check(&upload_dir("d"), |_| Reply::Interrupt, &["complete None"]);
        check(
            &upload_dir("d"),
            |_| Reply::Refuse("no space"),
            &["elapsed", "complete Some(\"the master refused the transfer: no space\")"],
        );
    }

    fn an_archive_that_the_master_can_not_unpack_is_said_at_the_step(at: Where) {
        let stage = Stage::with(at, &[("d/f", "x")]);
        let refuse = |call: &Call| match call {
            Call::DirectoryUnpack { .. } => Reply::Refuse("'pipe' is a special file"),
            _ => Reply::nil(),
        };
        let stderr = "stderr The master cannot unpack the directory 'ROOT/d': 'pipe' is a special file\n";
        let told = ["write archive", "unpack", "header sending ROOT/d\n", "rc 1", "elapsed", stderr, "complete None"];
        check_directory(&stage, &upload_dir("d"), refuse, &told);
    }

    fn a_file_is_received_until_it_ends(at: Where) {
        let stage = Stage::new(at);
        let end = ["close", "rc 0", "elapsed", "complete None"];
        check_download(&stage, &download("d/e/f"), file("012"), &[&["read 4", "read 4"][..], &end].concat());
        assert_eq!(stage.read("d/e/f").as_deref(), Some("012"));
        check_download(&stage, &download("~/f"), file(""), &[&["read 4"][..], &end].concat());
        assert_eq!(stage.read("f").as_deref(), Some(""));
        check_download(&stage, &download("f"), file("0123456789"), &[&["read 4"; 5][..], &end].concat());
        assert_eq!(stage.read("f").as_deref(), Some("0123456789"));
    }

    fn a_file_gets_its_mode(at: Where) {
        let stage = Stage::new(at);
        let told = ["read 4", "read 4", "close", "rc 0", "elapsed", "complete None"];
        check_download(&stage, &DownloadFile { mode: Some(0o640), ..download("f") }, file("x"), &told);
        let mode = stage.path("f").metadata().expect("a file").permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
    }

    fn text_is_data_too(at: Where) {
        let stage = Stage::new(at);
        let mut texts = ["é", ""].into_iter();
        let reply = move |call: &Call| match call {
            Call::Read { .. } => Reply::Answer(texts.next().unwrap_or_default().into()),
            _ => Reply::nil(),
        };
        let told = ["read 4", "read 4", "close", "rc 0", "elapsed", "complete None"];
        check_download(&stage, &download("f"), reply, &told);
        assert_eq!(stage.read("f").as_deref(), Some("é"));
    }

    fn a_file_larger_than_allowed_is_cut(at: Where) {
        let stage = Stage::new(at);
        let check = |maxsize, reads: &[&str], expected: &str| {
            let stderr = "stderr Maximum filesize reached, truncating file 'ROOT/f'\n";
            let told = [reads, &["close", "rc 1", "elapsed", stderr, "complete None"]].concat();
            let download = DownloadFile { maxsize: Some(maxsize), ..download("f") };
            check_download(&stage, &download, file("0123456789"), &told);
            assert_eq!(stage.read("f").as_deref(), Some(expected));
        };
        check(0, &[], "");
        check(6, &["read 4", "read 2"], "012345");
        check(10, &["read 4", "read 4", "read 2"], "0123456789");
    }

    /// What is wrong with an answer, and that it does not touch the old file.
    #[track_caller]
    fn check_unusable(at: Where, answer: fn() -> Value, why: &str) {
        let stage = Stage::with(at, &[("f", "old")]);
        let reply = move |call: &Call| match call {
            Call::Read { .. } => Reply::Answer(answer()),
            _ => Reply::nil(),
        };
        let stderr = format!("stderr Cannot download to 'ROOT/f': the master answered with {why}\n");
        let told = ["read 4", "close", "rc 1", "elapsed", stderr.as_str(), "complete None"];
        check_download(&stage, &download("f"), reply, &told);
        assert_eq!((stage.names(), stage.read("f").as_deref()), (vec!["f".to_owned()], Some("old")));
    }

    fn a_master_that_answers_with_nil_does_not_leave_an_empty_file(at: Where) {
        check_unusable(
            at,
            || Value::Nil,
            "nil instead of data. A Buildbot 4.3.0 master cannot send files over msgpack_experimental_v7, every file \
             would arrive empty: connect this worker over PB, or use a master that has this fixed",
        );
    }

    fn an_answer_that_is_no_data_is_refused(at: Where) {
        check_unusable(at, || Value::Int(5), "an integer instead of data");
        check_unusable(at, || Value::Bytes(vec![0; 5]), "5 bytes where 4 were asked for");
    }

    fn a_download_that_is_stopped_leaves_the_old_file(at: Where) {
        let check = |second: fn() -> Reply, end: &[&str]| {
            let stage = Stage::with(at, &[("f", "old")]);
            let mut reads = 0;
            let reply = move |call: &Call| match call {
                Call::Read { .. } if reads == 0 => {
                    reads += 1;
                    Reply::bytes(b"new")
                }
                Call::Read { .. } => second(),
                _ => Reply::nil(),
            };
            check_download(&stage, &download("f"), reply, &[&["read 4", "read 4", "close", "rc 1"], end].concat());
            assert_eq!((stage.names(), stage.read("f").as_deref()), (vec!["f".to_owned()], Some("old")));
        };
        check(|| Reply::Interrupt, &["complete None"]);
        check(|| Reply::Refuse("gone"), &["elapsed", "complete Some(\"the master refused the transfer: gone\")"]);
    }

    fn what_can_not_be_written_fails_the_step(at: Where) {
        let stage = Stage::with(at, &[("f", "x"), ("d/f", "x")]);
        symlink("/dev/full", stage.path("full")).expect("a link");
        let check = |path: &str, reads: &[&str], said: &str| {
            let told = [reads, &["close", "rc 1", "elapsed", said, "complete None"]].concat();
            check_download(&stage, &download(path), file("x"), &told);
        };
        check("/proc/nope/x", &[], "stderr Cannot open file '/proc/nope/x' for download\n");
        check("f/x", &[], "stderr Cannot open file 'ROOT/f/x' for download: File exists\n");
        check("d", &[], "stderr Cannot open file 'ROOT/d' for download: Is a directory\n");
        check("full", &["read 4", "read 4"], "stderr Error writing 'ROOT/full': No space left on device\n");
    }

    everywhere! {
        a_file_is_sent_in_blocks_and_closed
        an_empty_file_is_only_closed
        what_can_not_be_opened_is_closed_all_the_same
        times_follow_the_close
        a_file_is_cut_at_its_maximal_size
        several_blocks_are_under_way_at_once
        a_master_that_refuses_a_block_makes_the_build_an_exception
        an_interrupt_stops_an_upload_and_closes_it
        a_lost_line_ends_a_transfer
        a_directory_is_sent_as_an_archive_and_unpacked
        a_directory_that_is_none_is_not_sent
        half_an_archive_is_never_unpacked
        an_archive_that_the_master_can_not_unpack_is_said_at_the_step
        a_file_is_received_until_it_ends
        a_file_gets_its_mode
        text_is_data_too
        a_file_larger_than_allowed_is_cut
        a_master_that_answers_with_nil_does_not_leave_an_empty_file
        an_answer_that_is_no_data_is_refused
        a_download_that_is_stopped_leaves_the_old_file
        what_can_not_be_written_fails_the_step
    }
}
