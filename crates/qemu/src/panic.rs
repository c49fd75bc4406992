//! A kernel that panics, as it says itself on the console.
//!
//! QEMU's panic device needs a driver in the guest, which is not there early in the boot, when kernels panic most often for
//! want of a root filesystem, nor in every guest. What the kernel prints is there always. QEMU tells nobody what a guest
//! prints, so the console's file is looked at again and again.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::console::{line_start, plain};

/// What Linux begins its last words with, whatever the reason (kernel/panic.c, since 2.6).
const WORDS: &[u8] = b"Kernel panic - not syncing";

/// What it ends them with, if it stays where it is (since 2.6.26).
const LAST_WORDS: &[u8] = b"---[ end Kernel panic";

/// How often the console is looked at.
const POLL: Duration = Duration::from_millis(250);

/// How long a kernel may take to print the rest of its words. What it is that made it panic comes before and after.
const REST: Duration = Duration::from_secs(1);

/// How much of the console is shown from before its words and from after them, in bytes.
const BEFORE: u64 = 2500;
const AFTER: u64 = 1500;

/// How much is looked at in one go, in bytes.
const BLOCK: usize = 256 * 1024;

/// A guest's kernel has panicked, or something in the guest says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panic {
    /// The kernel's words and the console's lines around them, without terminal control.
    pub console: String,
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the guest's kernel panicked")
    }
}

/// What a guest's kernels say that panic, one after the other. That is what the console says: anybody in the guest may print
/// the same.
#[derive(Debug)]
pub struct Panics {
    log: PathBuf,
    scan: Scan,
}

impl Panics {
    /// Looks at what is printed from this byte on.
    pub(crate) fn new(log: PathBuf, from: u64) -> Self {
        Panics { log, scan: Scan { at: from, tail: Vec::new() } }
    }

    /// Waits until a kernel has panicked, and has said what it has to say. Waits for ever where the log can't be read. What was
    /// looked at for one is not looked at again for the next.
    pub async fn next(&mut self) -> Panic {
        loop {
            if let Some(at) = self.look().await {
                return self.rest_of(at).await;
            }
            sleep(POLL).await;
        }
    }

    /// Looks once, for who knows that the kernel has panicked: its words are there, if it has any.
    pub(crate) async fn said(&mut self) -> Option<Panic> {
        let at = self.look().await?;
        Some(self.rest_of(at).await)
    }

    /// Looks at what is new, and returns where a kernel's words begin.
    async fn look(&mut self) -> Option<u64> {
        let (log, mut scan) = (self.log.clone(), self.scan.clone());
        let looked = move || {
            let found = scan.file(&log);
            (scan, found)
        };
        let (scan, found) = spawn_blocking(looked).await.ok()?;
        self.scan = scan;
        // One that is not there yet, or is being removed, says nothing.
        found.unwrap_or_default()
    }

    /// Waits until a kernel has had its time to print the rest, and returns all of it.
    async fn rest_of(&self, at: u64) -> Panic {
        let begun = Instant::now();
        loop {
            let log = self.log.clone();
            let read = spawn_blocking(move || around(&log, at)).await;
            let Around { before, after } = read.ok().and_then(Result::ok).unwrap_or_default();
            let complete = find(&after, LAST_WORDS).is_some() || after.len() as u64 == AFTER;
            if complete || begun.elapsed() >= REST {
                let console = plain(&String::from_utf8_lossy(&[before, after].concat()));
                return Panic { console };
            }
            sleep(POLL).await;
        }
    }
}

/// How far a log has been looked at.
#[derive(Clone, Debug)]
struct Scan {
    /// The next byte to read.
    at: u64,
    /// The end of what was read, in which words may have begun.
    tail: Vec<u8>,
}

impl Scan {
    /// Reads a log to its end or to where words begin, and returns where they do.
    fn file(&mut self, log: &Path) -> io::Result<Option<u64>> {
        let mut file = File::open(log)?;
        // Most often: a guest prints little when it has booted, and each one is looked at several times a second.
        if file.metadata()?.len() <= self.at {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(self.at))?;
        let mut block = vec![0; BLOCK];
        loop {
            let read = file.read(&mut block)?;
            if read == 0 {
                return Ok(None);
            }
            if let Some(at) = self.take(&block[..read]) {
                return Ok(Some(at));
            }
        }
    }

    /// Takes in what was printed next.
    fn take(&mut self, bytes: &[u8]) -> Option<u64> {
        let begin = self.at - self.tail.len() as u64;
        self.at += bytes.len() as u64;
        self.tail.extend_from_slice(bytes);
        let found = find(&self.tail, WORDS).map(|place| begin + place as u64);
        let keep = self.tail.len().min(WORDS.len() - 1);
        match found {
            // What follows is looked at by the next call.
            Some(place) => {
                let next = place + WORDS.len() as u64;
                let seen = usize::try_from(next - begin).unwrap_or(self.tail.len());
                let rest = self.tail.split_off(seen);
                self.at -= rest.len() as u64;
                self.tail.clear();
            }
            None => drop(self.tail.drain(..self.tail.len() - keep)),
        }
        found
    }
}

/// What a log has on both sides of a place.
#[derive(Default)]
struct Around {
    before: Vec<u8>,
    after: Vec<u8>,
}

fn around(log: &Path, at: u64) -> io::Result<Around> {
    let mut file = File::open(log)?;
    let begin = at.saturating_sub(BEFORE);
    let (mut before, mut after) = (Vec::new(), Vec::new());
    file.seek(SeekFrom::Start(begin))?;
    (&mut file).take(at - begin).read_to_end(&mut before)?;
    file.take(AFTER).read_to_end(&mut after)?;
    if begin > 0 {
        before.drain(..line_start(&before));
    }
    Ok(Around { before, after })
}

fn find(text: &[u8], words: &[u8]) -> Option<usize> {
    text.windows(words.len()).position(|window| window == words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PANIC: &str = "[    1.2] VFS: no root\r\n[    1.3] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n\
        [    1.4] CPU: 0 PID: 1\r\n[    1.5] ---[ end Kernel panic - not syncing: VFS ]---\r\n";

    #[test]
    fn words_are_found_however_they_arrive() {
        let at = PANIC.find("Kernel").expect("it is there") as u64;
        for split in 0..PANIC.len() {
            let mut scan = Scan { at: 1000, tail: Vec::new() };
            let (first, second) = PANIC.as_bytes().split_at(split);
            let found = scan.take(first).or_else(|| scan.take(second));
            assert_eq!(found, Some(1000 + at), "{split}");
            assert!(scan.tail.len() < WORDS.len(), "{split}");
        }
    }

    #[test]
    fn what_follows_words_is_looked_at_as_well() {
        let mut scan = Scan { at: 0, tail: Vec::new() };
        let text = [PANIC, PANIC].concat();
        // As a file that is read again from where it was left.
        let mut found = Vec::new();
        while let Some(at) = scan.take(&text.as_bytes()[usize::try_from(scan.at).expect("it fits")..]) {
            found.push(at);
        }
        let places: Vec<_> = text.match_indices("Kernel panic - not").map(|(at, _)| at as u64).collect();
        assert_eq!(found, places);
        assert_eq!(scan.at, text.len() as u64);
    }

    #[test]
    fn other_words_are_no_panic() {
        let check = |text: &str| assert_eq!(Scan { at: 0, tail: Vec::new() }.take(text.as_bytes()), None, "{text}");
        check("Kernel panic");
        check("kernel.panic = -1\r\nKernel command line: panic=-1\r\n");
        check("");
    }

    #[tokio::test]
    async fn the_lines_around_the_words_are_told_whatever_was_printed_after_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("console.log");
        let mut panics = Panics::new(log.clone(), 0);
        assert_eq!(panics.said().await, None);
        let text = ["booting\r\n".repeat(1000), PANIC.to_owned(), "booting again\r\n".repeat(1000)].concat();
        std::fs::write(&log, text).expect("written");
        let panic = panics.next().await;
        assert!(panic.console.starts_with("booting\n"), "{}", panic.console);
        assert!(panic.console.contains(&PANIC.replace('\r', "")), "{}", panic.console);
        assert!(panic.console.len() <= 4000, "{}", panic.console.len());
        let mut later = Panics::new(log, 1_000_000);
        assert_eq!(later.said().await, None);
    }
}
