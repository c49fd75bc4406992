//! The first words with a clone, which make it look like a machine that was never frozen.
//!
//! All of it is one command over its session, because starting processes is what takes time in an emulated guest:
//!
//! ```text
//! the profile's restore    ──▶ ready
//!                          ◀── time and entropy (more than once if it took too long for the clock)
//!                          ──▶ the environment
//! the image's post_restore
//! ```

use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use protocol::command::Name;
use rand::Rng;
use ssh::{Event, Exec, Exit, Session, Shell, Stdin};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::greeting;
use super::guest_basedir::GuestBasedir;
use super::guest_command::{self, LIMIT, PATIENCE, Tail};
use super::machine::Login;
use super::restorer::{self, READY};
use crate::config::Image;

/// How many lines a guest gets that asks for more because one took too long to arrive.
const LINES: u32 = 20;

/// Makes a clone look new: its clock, its random numbers, its names if the image asks for it. Then its `post_restore`
/// command is run. `basedir` is its template's.
///
/// # Errors
/// Something failed, or took too long: which, and what it said. Nobody should get the clone.
pub(super) async fn refresh(
    session: Session,
    image_name: &Name,
    image: &Image,
    basedir: GuestBasedir,
) -> anyhow::Result<Login> {
    let environment = converse(&session, image_name, image, image.post_restore.as_deref()).await?;
    Ok(Login { session, environment, basedir })
}

/// Does the same in the machine that is to be frozen, but for its `post_restore`.
pub(super) async fn rehearse(session: &Session, image_name: &Name, image: &Image) -> anyhow::Result<()> {
    converse(session, image_name, image, None).await.map(drop)
}

/// Runs it all; returns the environment.
async fn converse(
    session: &Session,
    image_name: &Name,
    image: &Image,
    hook: Option<&str>,
) -> anyhow::Result<Vec<(String, String)>> {
    let script = script(image, image_name, hook).context("its profile has no restore command")?;
    let mut conversation = Conversation::new();
    let failed = match conversation.hold(session, &script, image.boot_timeout).await {
        Ok(Exit::Code(0)) => None,
        Ok(exit) => Some(format!("ended with {exit}")),
        Err(error) => Some(format!("{error:#}")),
    };
    let Conversation { stage, said, complaint, lines, .. } = conversation;
    if let Some(why) = failed {
        bail!("run its {} command: {}", stage.name(), complaint.after(&why));
    }
    if lines > LINES {
        warn!("its clock may be late by more than is meant: the guest takes too long to set it");
    }
    let environment = greeting::variables(&said);
    ensure!(!environment.is_empty(), "run its {} command: it told no environment", Stage::Restore.name());
    Ok(environment)
}

/// What is to run in the guest: POSIX shells only, which the configuration sees to.
fn script(image: &Image, image_name: &Name, hook: Option<&str>) -> Option<String> {
    let profile = &image.profile;
    let machine_id = if image.fresh_machine_id { machine_id() } else { String::new() };
    let host_name = if image.fresh_host_name { host_name(image_name) } else { String::new() };
    let restore = profile.fill(&profile.restore, &[("machine_id", &machine_id), ("host_name", &host_name)])?;
    let Some(hook) = hook else { return Some(restore) };
    // A configuration has no NUL bytes that could not be quoted.
    let hook = Shell::Posix.quote(hook.as_bytes()).unwrap_or_default();
    let hook = String::from_utf8_lossy(&hook);
    // The restore command may exit, or become another program, in a shell of its own.
    Some(format!("(\n{restore}\n) || exit\nprintf 'restored\\0'\nexec /bin/sh -c {hook} </dev/null >&2"))
}

/// An id as `systemd-machine-id-setup` makes them: 128 bits, those of a random UUID (RFC 9562, version 4).
fn machine_id() -> String {
    let bits = rand::rng().random::<u128>();
    let version = (bits & !(0xf << 76)) | (4 << 76);
    let variant = (version & !(0b11 << 62)) | (0b10 << 62);
    format!("{variant:032x}")
}

/// A host name that is the image's, as far as host names can be, with a number of its own.
fn host_name(image_name: &Name) -> String {
    let letters = image_name.as_str().chars().map(|char| if char.is_ascii_alphanumeric() { char } else { '-' });
    let image: String = letters.take(54).collect::<String>().to_ascii_lowercase();
    format!("{}-{:08x}", image.trim_end_matches('-'), rand::rng().random::<u32>())
}

/// What runs in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Restore,
    Hook,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Stage::Restore => "profile's restore",
            Stage::Hook => "post_restore",
        }
    }
}

/// What stands behind the environment when the hook begins. It is no variable.
const RESTORED: &[u8] = b"restored\0";

struct Conversation {
    stage: Stage,
    /// How long the guest may take for what runs in it, and until when that is.
    patience: Duration,
    until: Instant,
    /// The environment, as far as the guest has told it.
    said: Vec<u8>,
    complaint: Tail,
    /// How many lines of time and entropy were asked for.
    lines: u32,
}

impl Conversation {
    fn new() -> Self {
        Conversation {
            stage: Stage::Restore,
            patience: PATIENCE,
            until: Instant::now() + PATIENCE,
            said: Vec::new(),
            complaint: Tail::default(),
            lines: 0,
        }
    }

    async fn hold(&mut self, session: &Session, script: &str, patience_for_hook: Duration) -> anyhow::Result<Exit> {
        let mut process = session.exec(Exec::shell(script).stdin()).await?;
        let mut stdin = process.take_stdin();
        let mut exit = None;
        loop {
            let event = timeout_at(self.until, guest_command::next(&mut process, exit.is_some())).await;
            match event.map_err(|_| anyhow!("no end within {} s", self.patience.as_secs()))?? {
                Some(Event::Stdout(data)) => {
                    self.said.extend_from_slice(&data);
                    ensure!(self.said.len() <= LIMIT, "it says too much");
                    self.answer(&mut stdin).await?;
                    if self.stage == Stage::Restore && self.said.ends_with(RESTORED) {
                        self.stage = Stage::Hook;
                        self.patience = patience_for_hook;
                        self.until = Instant::now() + patience_for_hook;
                    }
                }
                Some(Event::Stderr(data)) => self.complaint.push(&data),
                Some(Event::Exited(how)) => exit = Some(how),
                None => return exit.context("ended in a way unknown"),
            }
        }
    }

    /// Gives the guest what it asks for before it tells its environment.
    async fn answer(&mut self, stdin: &mut Option<Stdin>) -> anyhow::Result<()> {
        while self.said.starts_with(READY) {
            self.said.drain(..READY.len());
            self.lines += 1;
            if self.lines > LINES {
                drop(stdin.take());
            } else if let Some(stdin) = stdin {
                // If it does not want it, how it ends says more.
                let _ = stdin.write(restorer::line()?).await;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
