use std::time::SystemTime;

use bytes::Bytes;
use protocol::{Call, CommandId, Settings, Stream, Update};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, sleep_until};

use super::buffer::{Batch, Buffer, order};
use super::decoder::Decoder;
use super::lines::LineSplitter;
use crate::master::{LineLost, MasterLink};

/// How many pieces of output may wait; beyond that whoever reports waits, and with it the program that writes.
const QUEUE: usize = 4;

/// How long what somebody watches for may gather. What follows at once goes with it: a message costs a 4.3.0 master some
/// 12 ms, four questions to its database.
const SOON: Duration = Duration::from_millis(150);

/// Tells the master what a command does, and in the end exactly once that it is complete.
///
/// Its text is decoded, cut into lines and sent in batches by a task of its own, which ends with the completion. When the
/// line to the master is lost everything said here is dropped in silence: what runs on that line is about to be stopped.
/// A reporter that is dropped without a word completes the command with a failure.
#[derive(Debug)]
pub(crate) struct Reporter {
    command_id: CommandId,
    link: MasterLink,
    queue: mpsc::Sender<Item>,
    completion: oneshot::Sender<Completion>,
    task: JoinHandle<()>,
}

/// A place in the queue: what is said with it is said without waiting.
#[derive(Debug)]
pub(crate) struct Room<'a>(Option<mpsc::Permit<'a, Item>>);

/// Writes into one of the command's logs from elsewhere, for as long as the command runs.
#[derive(Debug, Clone)]
pub(crate) struct LogWriter {
    queue: mpsc::Sender<Item>,
    name: String,
}

#[derive(Debug)]
enum Item {
    Output { stream: Stream, bytes: Bytes, arrived: f64 },
    Update(Update),
    Hasten,
}

#[derive(Debug)]
enum Completion {
    Complete { failure: Option<String> },
    Abandoned,
}

impl Reporter {
    /// Reports on one command over the line it was started on. Needs a runtime.
    pub(crate) fn new(command_id: CommandId, link: MasterLink, settings: &Settings) -> Self {
        let (queue, items) = mpsc::channel(QUEUE);
        let (completion, completed) = oneshot::channel();
        let report = Report {
            command_id: command_id.clone(),
            link: link.clone(),
            settings: settings.clone(),
            buffer: Buffer::new(settings),
            streams: Vec::new(),
            ready: Vec::new(),
        };
        let task = tokio::spawn(async move {
            // The line is lost: nobody is left to report to.
            let _ = report.run(items, completed).await;
        });
        Reporter { command_id, link, queue, completion, task }
    }

    /// Reports standard error.
    pub(crate) async fn stderr(&self, bytes: impl Into<Bytes>) {
        self.room().await.stderr(bytes);
    }

    /// Says something about the command.
    pub(crate) async fn header(&self, text: impl Into<Bytes>) {
        self.room().await.output(Stream::Header, text.into());
    }

    /// Reports something that is not text.
    pub(crate) async fn update(&self, update: Update) {
        self.room().await.send(Item::Update(update));
    }

    /// Has what has gathered sent soon, as somebody waits to see it; lines that are not ended stay.
    pub(crate) async fn hasten(&self) {
        self.room().await.send(Item::Hasten);
    }

    /// Waits until more can be said. Cancel safe.
    pub(crate) async fn room(&self) -> Room<'_> {
        Room(self.queue.reserve().await.ok())
    }

    /// Returns a writer for one of the command's logs.
    pub(crate) fn log_writer(&self, name: impl Into<String>) -> LogWriter {
        LogWriter { queue: self.queue.clone(), name: name.into() }
    }

    /// Completes the command, and waits until all of it is on its way. A failure makes the build an exception; a command's
    /// ordinary failure is its `rc`.
    pub(crate) async fn complete(self, failure: Option<String>) {
        self.end(Completion::Complete { failure }).await;
    }

    /// Says nothing more, not even that the command is complete: its line is gone, or about to be.
    pub(crate) async fn abandon(self) {
        self.end(Completion::Abandoned).await;
    }

    async fn end(self, completion: Completion) {
        let abandoned = matches!(completion, Completion::Abandoned);
        // If the task has ended well, so has the line.
        let _ = self.completion.send(completion);
        if self.task.await.is_err() && !abandoned {
            // Without this the master would wait for ever. What was said last is lost, so the command can't count as done.
            let failure = Some("the worker broke down while it reported what the command did: see its log".to_owned());
            let _ = self.link.tell(Call::Complete { command_id: self.command_id, failure }).await;
        }
    }
}

impl Room<'_> {
    /// Reports standard output.
    pub(crate) fn stdout(self, bytes: impl Into<Bytes>) {
        self.output(Stream::Stdout, bytes.into());
    }

    /// Reports standard error.
    pub(crate) fn stderr(self, bytes: impl Into<Bytes>) {
        self.output(Stream::Stderr, bytes.into());
    }

    /// Reports what belongs into a log.
    pub(crate) fn log(self, name: &str, bytes: impl Into<Bytes>) {
        self.output(Stream::Log(name.to_owned()), bytes.into());
    }

    fn output(self, stream: Stream, bytes: Bytes) {
        self.send(Item::Output { stream, bytes, arrived: now() });
    }

    fn send(self, item: Item) {
        if let Some(permit) = self.0 {
            permit.send(item);
        }
    }
}

impl LogWriter {
    /// Writes; waits if the master is slow. Returns false once the command is complete, or its line lost.
    pub(crate) async fn write(&self, bytes: impl Into<Bytes>) -> bool {
        let stream = Stream::Log(self.name.clone());
        self.queue.send(Item::Output { stream, bytes: bytes.into(), arrived: now() }).await.is_ok()
    }
}

/// The work behind a [`Reporter`].
struct Report {
    command_id: CommandId,
    link: MasterLink,
    settings: Settings,
    buffer: Buffer,
    streams: Vec<(Stream, Decoder, LineSplitter)>,
    /// Messages that are to be sent next.
    ready: Vec<Batch>,
}

impl Report {
    async fn run(
        mut self,
        mut items: mpsc::Receiver<Item>,
        mut completed: oneshot::Receiver<Completion>,
    ) -> Result<(), LineLost> {
        let completion = loop {
            tokio::select! {
                biased;
                completion = &mut completed => break completion,
                Some(item) = items.recv() => self.take(item),
                () = until(self.buffer.deadline()) => self.ready.extend(self.buffer.take()),
            }
            self.send().await?;
        };
        let failure = match completion {
            Ok(Completion::Abandoned) => return Ok(()),
            Ok(Completion::Complete { failure }) => failure,
            Err(_) => Some("the worker dropped the command: see its log".to_owned()),
        };
        items.close();
        while let Some(item) = items.recv().await {
            self.take(item);
            self.send().await?;
        }
        self.finish();
        self.send().await?;
        self.link.tell(Call::Complete { command_id: self.command_id, failure }).await
    }

    fn take(&mut self, item: Item) {
        match item {
            Item::Output { stream, bytes, arrived } => self.output(stream, &bytes, arrived),
            Item::Update(update) => self.buffer.push(update, &mut self.ready),
            Item::Hasten => self.buffer.hasten(SOON),
        }
    }

    fn output(&mut self, stream: Stream, bytes: &[u8], arrived: f64) {
        let known = self.streams.iter().position(|(known, ..)| *known == stream);
        let index = known.unwrap_or_else(|| {
            self.streams.push((stream.clone(), Decoder::default(), LineSplitter::new(&self.settings)));
            self.streams.len() - 1
        });
        let (_, decoder, splitter) = &mut self.streams[index];
        let lines = splitter.push(&decoder.decode(bytes), arrived);
        self.buffer.push(Update::Text(stream, lines), &mut self.ready);
    }

    /// Ends the lines that are not ended, and empties the buffer.
    fn finish(&mut self) {
        let now = now();
        self.streams.sort_by(|(a, ..), (b, ..)| order(a).cmp(&order(b)));
        for (stream, mut decoder, mut splitter) in self.streams.drain(..) {
            let mut lines = splitter.push(decoder.finish(), now);
            let last = splitter.finish(now);
            super::buffer::join(&mut lines, &last);
            self.buffer.push(Update::Text(stream, lines), &mut self.ready);
        }
        self.ready.extend(self.buffer.take());
    }

    async fn send(&mut self) -> Result<(), LineLost> {
        for updates in self.ready.drain(..) {
            self.link.tell(Call::Update { command_id: self.command_id.clone(), updates }).await?;
        }
        Ok(())
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use protocol::Lines;
    use tokio::time::{advance, timeout};

    use super::*;
    use crate::master::Outgoing;

    /// One message, without the times of its lines.
    #[derive(Debug, PartialEq)]
    enum Said {
        Update(Vec<Update>),
        Complete(Option<String>),
    }

    fn reporter() -> (Reporter, mpsc::Receiver<Outgoing>) {
        let (link, calls) = MasterLink::new();
        (Reporter::new(CommandId("1".to_owned()), link, &Settings::default()), calls)
    }

    async fn stdout(reporter: &Reporter, bytes: impl Into<Bytes>) {
        reporter.room().await.stdout(bytes);
    }

    async fn next(calls: &mut mpsc::Receiver<Outgoing>) -> Option<Said> {
        Some(match calls.recv().await?.call {
            Call::Update { updates, .. } => Said::Update(updates.into_iter().map(without_times).collect()),
            Call::Complete { failure, .. } => Said::Complete(failure),
            other => panic!("{other:?}"),
        })
    }

    async fn all(calls: &mut mpsc::Receiver<Outgoing>) -> Vec<Said> {
        let mut said = Vec::new();
        while let Some(next) = next(calls).await {
            said.push(next);
        }
        said
    }

    fn without_times(update: Update) -> Update {
        match update {
            Update::Text(stream, lines) => Update::Text(stream, Lines { times: Vec::new(), ..lines }),
            other => other,
        }
    }

    fn text(stream: Stream, text: &str, newlines: &[u32]) -> Update {
        Update::Text(stream, Lines { text: text.to_owned(), newlines: newlines.to_vec(), times: Vec::new() })
    }

    #[tokio::test]
    async fn lines_that_are_not_ended_follow_at_the_end_in_order_of_their_keys() {
        let (reporter, mut calls) = reporter();
        stdout(&reporter, "out\nrest").await;
        reporter.stderr("bad").await;
        reporter.header("head").await;
        reporter.room().await.log("zoo", "animal");
        reporter.room().await.log("a", "é");
        reporter.update(Update::Rc(0)).await;
        reporter.complete(None).await;
        let expected = vec![
            text(Stream::Stdout, "out\n", &[3]),
            Update::Rc(0),
            text(Stream::Log("a".to_owned()), "é\n", &[1]),
            text(Stream::Header, "head\n", &[4]),
            text(Stream::Stderr, "bad\n", &[3]),
            text(Stream::Stdout, "rest\n", &[4]),
            text(Stream::Log("zoo".to_owned()), "animal\n", &[6]),
        ];
        assert_eq!(all(&mut calls).await, [Said::Update(expected), Said::Complete(None)]);
    }

    #[tokio::test]
    async fn a_command_whose_report_broke_down_is_completed_all_the_same() {
        let (reporter, mut calls) = reporter();
        // As a panic would.
        reporter.task.abort();
        stdout(&reporter, "lost\n").await;
        reporter.complete(None).await;
        let said = all(&mut calls).await;
        assert!(matches!(&said[..], [Said::Complete(Some(failure))] if failure.contains("broke down")), "{said:?}");
    }

    #[tokio::test]
    async fn a_line_that_is_to_be_abandoned_hears_nothing_of_a_report_that_broke_down() {
        let (reporter, mut calls) = reporter();
        reporter.task.abort();
        reporter.abandon().await;
        assert_eq!(all(&mut calls).await, []);
    }

    #[tokio::test]
    async fn half_a_character_at_the_end_is_shown() {
        let (reporter, mut calls) = reporter();
        stdout(&reporter, &b"caf\xc3"[..]).await;
        reporter.complete(None).await;
        let expected = vec![text(Stream::Stdout, "caf\u{fffd}\n", &[4])];
        assert_eq!(all(&mut calls).await, [Said::Update(expected), Said::Complete(None)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_gathered_is_sent_after_five_seconds() {
        let (reporter, mut calls) = reporter();
        let started = Instant::now();
        stdout(&reporter, "one\n").await;
        assert_eq!(next(&mut calls).await, Some(Said::Update(vec![text(Stream::Stdout, "one\n", &[3])])));
        assert_eq!(started.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn what_somebody_waits_for_is_sent_soon_with_what_follows_at_once() {
        let (reporter, mut calls) = reporter();
        let started = Instant::now();
        reporter.hasten().await;
        for line in ["one\n", "two\n"] {
            stdout(&reporter, line).await;
            reporter.hasten().await;
        }
        assert_eq!(next(&mut calls).await, Some(Said::Update(vec![text(Stream::Stdout, "one\ntwo\n", &[3, 7])])));
        assert_eq!(started.elapsed(), SOON);
    }

    #[tokio::test]
    async fn a_dropped_command_is_completed_with_a_failure() {
        let (reporter, mut calls) = reporter();
        stdout(&reporter, "last words").await;
        drop(reporter);
        let failure = Some("the worker dropped the command: see its log".to_owned());
        let words = vec![text(Stream::Stdout, "last words\n", &[10])];
        assert_eq!(all(&mut calls).await, [Said::Update(words), Said::Complete(failure)]);
    }

    #[tokio::test]
    async fn an_abandoned_command_says_nothing_more() {
        let (reporter, mut calls) = reporter();
        stdout(&reporter, "out\n").await;
        reporter.abandon().await;
        assert_eq!(all(&mut calls).await, []);
    }

    #[tokio::test]
    async fn a_lost_line_does_not_hold_a_command_up() {
        let (reporter, calls) = reporter();
        drop(calls);
        for _ in 0..100 {
            stdout(&reporter, "out\n".repeat(30_000)).await;
        }
        reporter.complete(None).await;
    }

    #[tokio::test]
    async fn a_log_writer_ends_with_the_command() {
        let (reporter, mut calls) = reporter();
        let console = reporter.log_writer("console");
        assert!(console.write("booting\n").await);
        reporter.complete(None).await;
        assert!(!console.write("halted\n").await);
        let expected = vec![text(Stream::Log("console".to_owned()), "booting\n", &[7])];
        assert_eq!(all(&mut calls).await, [Said::Update(expected), Said::Complete(None)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_master_slows_the_command_down() {
        let (reporter, mut calls) = reporter();
        let block = Bytes::from(("x".repeat(79) + "\n").repeat(800));
        let mut reported = 0;
        while timeout(Duration::from_secs(60), stdout(&reporter, block.clone())).await.is_ok() {
            reported += 1;
            assert!(reported < 200, "nothing holds the command up");
        }
        advance(Duration::from_secs(1)).await;
        assert!(next(&mut calls).await.is_some());
        assert!(next(&mut calls).await.is_some());
        assert!(timeout(Duration::from_secs(60), stdout(&reporter, block)).await.is_ok());
    }
}
