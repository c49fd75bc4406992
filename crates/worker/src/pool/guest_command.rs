//! Small commands in a guest: ours, such as those of its profile, and those that an image has run around a freeze.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use ssh::{Event, Exec, Exit, Lost, Process, Session};

/// How long one of ours may take. A guest without hardware virtualisation on a busy host needs seconds for the simplest.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// How long what a command left running may hold its output open after it has ended.
const LEFTOVERS: Duration = Duration::from_secs(1);

/// What one of ours may print, in bytes.
pub(super) const LIMIT: usize = 256 * 1024;

/// How much of what one complains of is shown, in characters.
const COMPLAINT: usize = 400;

/// Runs a command line to its end and returns what it printed. It is an error if it fails.
pub(super) async fn run(session: &Session, line: &str) -> anyhow::Result<Vec<u8>> {
    bounded(PATIENCE, async { printed(session.exec(Exec::shell(line)).await?).await }).await
}

/// The same for a command that reads its standard input.
pub(super) async fn run_with(session: &Session, line: &str, input: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    let work = async {
        let mut process = session.exec(Exec::shell(line).stdin()).await?;
        if let Some(mut stdin) = process.take_stdin() {
            // If it does not want all of it, how it ends says more.
            let _ = stdin.write(input).await;
            stdin.close().await;
        }
        printed(process).await
    };
    bounded(PATIENCE, work).await
}

/// Runs a command of the image's to its end, however much it prints. It is an error if it fails, with what it printed last.
pub(super) async fn run_of_image(session: &Session, line: &str, patience: Duration) -> anyhow::Result<()> {
    let mut said = Tail::default();
    let work = async {
        let mut process = session.exec(Exec::shell(line)).await?;
        let mut exit = None;
        while let Some(event) = next(&mut process, exit.is_some()).await? {
            match event {
                Event::Stdout(data) | Event::Stderr(data) => said.push(&data),
                Event::Exited(how) => exit = Some(how),
            }
        }
        exit.context("ended in a way unknown")
    };
    let ended: anyhow::Result<Exit> = bounded(patience, work).await;
    match ended {
        Ok(exit) if exit.is_success() => Ok(()),
        Ok(exit) => bail!("{}", said.after(&format!("ended with {exit}"))),
        Err(error) => bail!("{}", said.after(&format!("{error:#}"))),
    }
}

/// What a process does next; nothing once it has exited and nothing more of its output came for a while, which a program
/// that it left behind may hold open.
pub(super) async fn next(process: &mut Process, exited: bool) -> Result<Option<Event>, Lost> {
    match exited {
        false => process.next().await,
        true => tokio::time::timeout(LEFTOVERS, process.next()).await.unwrap_or(Ok(None)),
    }
}

async fn printed(process: Process) -> anyhow::Result<Vec<u8>> {
    let output = process.output(LIMIT).await?;
    if output.exit.is_success() {
        return Ok(output.stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    match stderr.trim() {
        "" => bail!("ended with {}", output.exit),
        complaint => bail!("{}", last(complaint)),
    }
}

async fn bounded<T>(patience: Duration, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let late = |_| anyhow!("no end within {} s", patience.as_secs());
    tokio::time::timeout(patience, work).await.map_err(late)?
}

/// The end of a text, which is where a command says why it failed, as one line that does nothing to a log or a terminal.
fn last(text: &str) -> String {
    let skipped = text.chars().count().saturating_sub(COMPLAINT);
    text.chars().skip(skipped).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// The end of what a command said.
#[derive(Debug, Default)]
pub(super) struct Tail(Vec<u8>);

impl Tail {
    /// How much is kept, in bytes.
    const SIZE: usize = 2000;

    pub(super) fn push(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
        self.0.drain(..self.0.len().saturating_sub(Self::SIZE));
    }

    /// A sentence about the command, and behind it what it said.
    pub(super) fn after(&self, sentence: &str) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let lines = text.trim().lines().map(|line| line.replace(char::is_control, " "));
        match lines.collect::<Vec<_>>().join("\n") {
            said if said.is_empty() => sentence.to_owned(),
            said => format!("{sentence}: {said}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_the_end_of_what_was_said_on_one_line() {
        let check = |text: &str, expected: &str| assert_eq!(last(text), expected, "{text:?}");
        check("sudo: a password is required", "sudo: a password is required");
        check("one\ntwo\r\n\u{1b}[2Jthree", "one two   [2Jthree");
        check(&"é".repeat(COMPLAINT + 1), &"é".repeat(COMPLAINT));
    }

    #[test]
    fn what_an_image_s_command_said_is_its_last_lines_without_control_characters() {
        let check = |parts: &[&[u8]], expected: &str| {
            let mut tail = Tail::default();
            parts.iter().for_each(|part| tail.push(part));
            assert_eq!(tail.after("it failed"), expected);
        };
        check(&[], "it failed");
        check(&[b" \n"], "it failed");
        check(&[b"one\r\ntw", b"o \x1b[2J\xff\n"], "it failed: one\ntwo  [2J\u{fffd}");
        check(&[&[b'a'; Tail::SIZE], b"b"], &format!("it failed: {}b", "a".repeat(Tail::SIZE - 1)));
    }
}
