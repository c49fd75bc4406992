use std::mem;

use protocol::{Lines, Settings, Stream, Update};
use tokio::time::{Duration, Instant};

/// What the largest message may cost, whatever the master's settings say: Buildbot's older protocol carries no string
/// of more than 640 KiB.
const MAX_BUFFER_SIZE: usize = 512 * 1024;

/// What an update that is not text costs, as Buildbot 4.3.0's worker counts.
const PLAIN_COST: usize = 20;

/// What a line costs beside its text: its position and its time.
const LINE_COST: usize = 16;

/// One message's updates, in order.
pub(crate) type Batch = Vec<Update>;

/// Gathers a command's updates until they are worth a message.
///
/// Neighbours on the same stream become one update. Nothing is larger than the buffer in the end but a single line.
#[derive(Debug)]
pub(crate) struct Buffer {
    size: usize,
    timeout: Duration,
    gathered: Batch,
    cost: usize,
    deadline: Option<Instant>,
}

impl Buffer {
    /// Gathers as the master wants it.
    pub(crate) fn new(settings: &Settings) -> Self {
        Buffer {
            size: settings.buffer_size.min(MAX_BUFFER_SIZE),
            timeout: settings.buffer_timeout,
            gathered: Batch::new(),
            cost: 0,
            deadline: None,
        }
    }

    /// When what has gathered is to be sent at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Has what has gathered sent within a time, if there is any.
    pub(crate) fn hasten(&mut self, within: Duration) {
        let soon = Instant::now() + within;
        self.deadline = self.deadline.map(|deadline| deadline.min(soon));
    }

    /// Takes an update, and adds to `ready` the messages that are to be sent now.
    pub(crate) fn push(&mut self, update: Update, ready: &mut Vec<Batch>) {
        match update {
            Update::Text(_, lines) if lines.text.is_empty() => {}
            Update::Text(stream, lines) if lines.cost() > self.size => {
                ready.extend(self.take());
                for part in split(&lines, self.size) {
                    self.add(Update::Text(stream.clone(), part), ready);
                }
            }
            update => self.add(update, ready),
        }
    }

    /// Empties the buffer.
    pub(crate) fn take(&mut self) -> Option<Batch> {
        self.cost = 0;
        self.deadline = None;
        let gathered = mem::take(&mut self.gathered);
        (!gathered.is_empty()).then_some(gathered)
    }

    fn add(&mut self, update: Update, ready: &mut Vec<Batch>) {
        let cost = match &update {
            Update::Text(_, lines) => lines.cost(),
            _ => PLAIN_COST,
        };
        if cost > self.size.saturating_sub(self.cost) {
            ready.extend(self.take());
        }
        if cost > self.size {
            ready.push(vec![update]);
            return;
        }
        self.cost += cost;
        self.deadline.get_or_insert_with(|| Instant::now() + self.timeout);
        match (self.gathered.last_mut(), update) {
            (Some(Update::Text(last, lines)), Update::Text(stream, more)) if *last == stream => join(lines, &more),
            (_, update) => self.gathered.push(update),
        }
    }
}

/// Where each stream stands among others that end together: by the key that Buildbot's worker files it under.
pub(crate) fn order(stream: &Stream) -> (&str, &Stream) {
    let key = match stream {
        Stream::Header => "header",
        Stream::Log(name) => name,
        Stream::Stderr => "stderr",
        Stream::Stdout => "stdout",
    };
    (key, stream)
}

/// Adds lines to others of the same stream.
pub(crate) fn join(lines: &mut Lines, more: &Lines) {
    let length = lines.newlines.last().map_or(0, |last| last + 1);
    lines.text.push_str(&more.text);
    lines.newlines.extend(more.newlines.iter().map(|position| position + length));
    lines.times.extend_from_slice(&more.times);
}

/// Cuts lines into parts that cost at most `size` each, or are a single line.
fn split(lines: &Lines, size: usize) -> impl Iterator<Item = Lines> {
    let ends: Vec<usize> = memchr::memchr_iter(b'\n', lines.text.as_bytes()).map(|at| at + 1).collect();
    let mut first = 0;
    std::iter::from_fn(move || {
        let start = if first == 0 { 0 } else { ends[first - 1] };
        let fits = |last: &usize| ends[*last] - start + (*last + 1 - first) * LINE_COST <= size;
        let last = (first..ends.len()).take_while(fits).last().or((first < ends.len()).then_some(first))?;
        let offset = if first == 0 { 0 } else { lines.newlines[first - 1] + 1 };
        let part = Lines {
            text: lines.text[start..ends[last]].to_owned(),
            newlines: lines.newlines[first..=last].iter().map(|position| position - offset).collect(),
            times: lines.times[first..=last].to_vec(),
        };
        first = last + 1;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lines as a splitter makes them; the time of each is its number.
    fn lines(text: &str) -> Lines {
        let newlines: Vec<u32> = (0u32..).zip(text.chars()).filter(|(_, c)| *c == '\n').map(|(at, _)| at).collect();
        let times = (0u32..).zip(&newlines).map(|(number, _)| f64::from(number)).collect();
        Lines { text: text.to_owned(), newlines, times }
    }

    fn stdout(text: &str) -> Update {
        Update::Text(Stream::Stdout, lines(text))
    }

    fn buffer(buffer_size: usize) -> Buffer {
        Buffer::new(&Settings { buffer_size, ..Settings::default() })
    }

    /// The messages that come out of a buffer of 100.
    fn batches(updates: impl IntoIterator<Item = Update>) -> Vec<Batch> {
        let mut buffer = buffer(100);
        let mut ready = Vec::new();
        for update in updates {
            buffer.push(update, &mut ready);
        }
        ready.extend(buffer.take());
        ready
    }

    #[track_caller]
    fn check(updates: impl IntoIterator<Item = Update>, expected: &[Batch]) {
        assert_eq!(batches(updates), expected);
    }

    #[test]
    fn neighbours_on_one_stream_are_joined() {
        let joined = Lines { text: "é\nb\nc\n".to_owned(), newlines: vec![1, 3, 5], times: vec![0.0, 0.0, 1.0] };
        check([stdout("é\n"), stdout("b\nc\n")], &[vec![Update::Text(Stream::Stdout, joined)]]);
    }

    #[test]
    fn order_is_kept_between_streams_and_other_updates() {
        let log = |name: &str| Update::Text(Stream::Log(name.to_owned()), lines("l\n"));
        let updates = vec![stdout("a\n"), log("x"), log("y"), Update::Rc(0), stdout("b\n")];
        check(updates.clone(), &[updates]);
    }

    #[test]
    fn what_does_not_fit_any_more_waits_for_the_next_message() {
        let line = |c: &str| stdout(&(c.repeat(49) + "\n"));
        check([line("a"), Update::Rc(0), line("b")], &[vec![line("a"), Update::Rc(0)], vec![line("b")]]);
        check([line("a"), line("b")], &[vec![line("a")], vec![line("b")]]);
    }

    #[test]
    fn what_is_larger_than_the_buffer_is_cut_at_line_ends() {
        let Update::Text(stream, three) = stdout(&("é".repeat(15) + "\n").repeat(3)) else { unreachable!() };
        let two = Lines { text: ("é".repeat(15) + "\n").repeat(2), newlines: vec![15, 31], times: vec![0.0, 1.0] };
        let one = Lines { text: "é".repeat(15) + "\n", newlines: vec![15], times: vec![2.0] };
        check(
            [Update::Rc(0), Update::Text(stream.clone(), three)],
            &[vec![Update::Rc(0)], vec![Update::Text(stream.clone(), two)], vec![Update::Text(stream, one)]],
        );
    }

    #[test]
    fn a_line_larger_than_the_buffer_goes_alone() {
        let long = "x".repeat(200) + "\n";
        check(
            [stdout("a\n"), stdout(&long), stdout("b\n")],
            &[vec![stdout("a\n")], vec![stdout(&long)], vec![stdout("b\n")]],
        );
    }

    #[test]
    fn no_text_is_no_update() {
        check([stdout("")], &[]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_counts_from_the_first_update() {
        let mut buffer = buffer(100);
        let started = Instant::now();
        assert_eq!(buffer.deadline(), None);
        buffer.push(Update::Rc(0), &mut Vec::new());
        tokio::time::advance(Duration::from_secs(1)).await;
        buffer.push(Update::Rc(1), &mut Vec::new());
        assert_eq!(buffer.deadline(), Some(started + Duration::from_secs(5)));
        assert_eq!(buffer.take(), Some(vec![Update::Rc(0), Update::Rc(1)]));
        assert_eq!(buffer.deadline(), None);
    }

    proptest! {
        #[test]
        fn all_text_arrives_in_messages_that_fit(texts in proptest::collection::vec("([a-é]{0,30}\n){1,9}", 0..6)) {
            let batches = batches(texts.iter().map(|text| stdout(text)));
            let mut arrived = String::new();
            for update in batches.into_iter().flatten() {
                let Update::Text(_, part) = update else { unreachable!() };
                prop_assert_eq!(&part.newlines, &lines(&part.text).newlines);
                prop_assert_eq!(part.times.len(), part.newlines.len());
                prop_assert!(part.cost() <= 100 || part.newlines.len() == 1);
                arrived.push_str(&part.text);
            }
            prop_assert_eq!(arrived, texts.concat());
        }
    }
}
