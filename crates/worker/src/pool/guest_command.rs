//! Small commands of ours in a guest, such as those of its profile.

use std::time::Duration;

use anyhow::{Context, bail};
use ssh::{Exec, Session};

/// How long one may take. A guest without hardware virtualisation on a busy host needs seconds for the simplest.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one may print, in bytes.
const LIMIT: usize = 256 * 1024;

/// How much of what one complains of is shown, in characters.
const COMPLAINT: usize = 400;

/// Runs a command line to its end and returns what it printed. It is an error if it fails.
pub(super) async fn run(session: &Session, line: &str) -> anyhow::Result<Vec<u8>> {
    let work = async {
        let output = session.exec(Exec::shell(line)).await?.output(LIMIT).await?;
        if output.exit.is_success() {
            return Ok(output.stdout);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        match stderr.trim() {
            "" => bail!("ended with {}", output.exit),
            complaint => bail!("{}", last(complaint)),
        }
    };
    let late = || format!("no end within {} s", PATIENCE.as_secs());
    tokio::time::timeout(PATIENCE, work).await.with_context(late)?
}

/// The end of a text, which is where a command says why it failed, as one line that does nothing to a log or a terminal.
fn last(text: &str) -> String {
    let skipped = text.chars().count().saturating_sub(COMPLAINT);
    text.chars().skip(skipped).map(|char| if char.is_control() { ' ' } else { char }).collect()
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
}
