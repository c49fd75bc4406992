//! The guest's part of a copy: a script, and the lines it speaks to us.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::error::{CopyError, Side};
use super::heard;
use crate::launch;
use crate::process::{Event, Exit, Process};
use crate::session::Session;
use crate::shell::Shell;
use crate::signal::Signal;
use crate::{Exec, Lost, said};

/// How much of what the guest's tools say is kept, in bytes.
const MAX_SAID: usize = 4096;

/// How much data may come before a word, in bytes; more than any window is.
const MAX_EARLY: usize = 16 << 20;

/// The longest line of ours, in bytes.
const MAX_LINE: usize = 256;

/// A script that runs in the guest.
pub(super) struct Script {
    pub process: Process,
    stderr: Lines,
    path: String,
    failed: Option<String>,
    silence: Duration,
    /// Data that came before the word that was waited for: the two streams are not ordered.
    early: VecDeque<Bytes>,
}

/// What a script does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It said this word.
    Said(String),
    /// It wrote to standard output.
    Data(Bytes),
    /// It ended well, and all its output was seen.
    Done,
}

impl Script {
    /// Starts `body` with these variables set, values being any bytes but NUL. `path` is named in errors.
    pub(super) async fn start(
        session: &Session,
        body: &str,
        variables: &[(&str, &[u8])],
        path: &[u8],
        silence: Duration,
        stdin: bool,
    ) -> Result<Self, CopyError> {
        if !session.dialect().is_posix() {
            return Err(CopyError::Unsupported);
        }
        let shown = String::from_utf8_lossy(path).into_owned();
        let mark = launch::nonce();
        let mut script = format!("mark={mark}\n").into_bytes();
        for (name, value) in variables {
            script.extend_from_slice(name.as_bytes());
            script.push(b'=');
            script.extend(
                Shell::Posix
                    .quote(value)
                    .map_err(|_| CopyError::BadPath { path: shown.clone(), why: "contains a NUL byte" })?,
            );
            script.push(b'\n');
        }
        script.extend_from_slice(body.as_bytes());
        let exec = Exec::shell(script).buffer(4 << 20).abandoned_by(Signal::Term);
        let process = session.exec(if stdin { exec.stdin() } else { exec }).await?;
        Ok(Self { process, stderr: Lines::new(&mark), path: shown, failed: None, silence, early: VecDeque::new() })
    }

    /// Waits for the script's next step. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Step, CopyError> {
        match self.early.pop_front() {
            Some(data) => Ok(Step::Data(data)),
            None => self.next_received().await,
        }
    }

    async fn next_received(&mut self) -> Result<Step, CopyError> {
        loop {
            if let Some(word) = self.stderr.word() {
                match word.strip_prefix("fail ") {
                    Some(reason) => self.failed = Some(reason.to_owned()),
                    None => return Ok(Step::Said(word)),
                }
                continue;
            }
            match self.process.next().await? {
                Some(Event::Stdout(data)) => return Ok(Step::Data(data)),
                Some(Event::Stderr(data)) => self.stderr.feed(&data),
                Some(Event::Exited(Exit::Code(0))) => {}
                Some(Event::Exited(exit)) => return self.explain(exit).await,
                None => return Ok(Step::Done),
            }
        }
    }

    /// Collects what else it says, and makes an error of it.
    async fn explain(&mut self, exit: Exit) -> Result<Step, CopyError> {
        while let Some(event) = self.process.next().await? {
            if let Event::Stderr(data) = event {
                self.stderr.feed(&data);
            }
            while let Some(word) = self.stderr.word() {
                if let Some(reason) = word.strip_prefix("fail ") {
                    self.failed = Some(reason.to_owned());
                }
            }
        }
        let said = self.stderr.said();
        if exit == Exit::Code(1)
            && !said.is_empty()
            && said.lines().all(|line| line.contains("file changed as we read it"))
        {
            return Err(CopyError::Changed { side: Side::Guest, path: self.path.clone() });
        }
        let (side, path) = (Side::Guest, self.path.clone());
        Err(match self.failed.as_deref() {
            Some("is-directory") => CopyError::IsDirectory { side, path },
            Some("special") => CopyError::Special { side, path },
            Some("missing") => CopyError::Missing { side, path },
            Some("missing-or-denied") if !said.contains("Permission denied") => CopyError::Missing { side, path },
            Some("directory-in-the-way") => CopyError::InTheWay { side, path, why: "it is a directory" },
            Some("file-in-the-way") => CopyError::InTheWay { side, path, why: "it is not a directory" },
            Some("generated") => {
                let why = format!("{path} is made up by the kernel as it is read: copy a copy of it");
                CopyError::Failed { side, why }
            }
            _ if said.is_empty() => CopyError::guest(&format!("its part ended with {exit}")),
            _ => CopyError::guest(&said),
        })
    }

    /// Waits until the script says how it goes on.
    pub(super) async fn word(&mut self) -> Result<String, CopyError> {
        let mut size = 0;
        while size <= MAX_EARLY {
            match heard(self.silence, self.next_received()).await?? {
                Step::Said(word) => return Ok(word),
                Step::Data(data) => {
                    size += data.len();
                    self.early.push_back(data);
                }
                Step::Done => return Err(CopyError::Hostile { why: "it ends without a word".to_owned() }),
            }
        }
        Err(CopyError::Hostile { why: "it has much data and no word".to_owned() })
    }

    pub(super) fn lost(&self, why: &str) -> CopyError {
        CopyError::Lost(Lost { target: self.path.clone(), why: why.to_owned() })
    }
}

/// Standard error, taken apart into our lines and the tools' words.
struct Lines {
    mark: String,
    partial: Vec<u8>,
    said: Vec<u8>,
    words: VecDeque<String>,
}

impl Lines {
    fn new(mark: &str) -> Self {
        Self { mark: format!("{mark} "), partial: Vec::new(), said: Vec::new(), words: VecDeque::new() }
    }

    fn feed(&mut self, data: &[u8]) {
        for part in data.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend(part.iter().take(MAX_SAID.saturating_sub(self.partial.len())));
            if part.ends_with(b"\n") {
                self.line();
            }
        }
    }

    fn line(&mut self) {
        let line = std::mem::take(&mut self.partial);
        match line.strip_prefix(self.mark.as_bytes()) {
            Some(word) if word.len() <= MAX_LINE => {
                self.words.push_back(String::from_utf8_lossy(word).trim().to_owned())
            }
            _ => self.said.extend(line.iter().take(MAX_SAID.saturating_sub(self.said.len()))),
        }
        // A guest says two or three words; more are of no interest.
        self.words.truncate(16);
    }

    fn word(&mut self) -> Option<String> {
        self.words.pop_front()
    }

    fn said(&mut self) -> String {
        if !self.partial.is_empty() {
            self.line();
        }
        said::text(&String::from_utf8_lossy(&self.said))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_lines_and_the_tools_words_are_told_apart() {
        let text = b"tar: a\nx1 fresh\nx1 fail other\ntar: b";
        for split in 0..text.len() {
            let mut lines = Lines::new("x1");
            lines.feed(&text[..split]);
            lines.feed(&text[split..]);
            let words: Vec<String> = std::iter::from_fn(|| lines.word()).collect();
            assert_eq!(
                (words, lines.said()),
                (vec!["fresh".to_owned(), "fail other".to_owned()], "tar: a\ntar: b".to_owned())
            );
        }
    }

    #[test]
    fn endless_words_are_cut_off() {
        let mut lines = Lines::new("x1");
        for _ in 0..1000 {
            lines.feed(&[b'.'; 1000]);
            lines.feed(b"x1 a\n\nx1 a\n");
        }
        assert!(lines.partial.len() <= MAX_SAID && lines.said.len() <= MAX_SAID && lines.words.len() <= 16);
    }
}
