//! What a machine's serial console printed.

use std::io;
use std::process::ExitCode;

use anyhow::bail;

use super::screen::say;
use super::{begin, load, print};
use crate::cli::Worker;
use crate::control::{Conversation, Request, Response};
use crate::exit;
use crate::plain::{Plain, plain};

/// How the console is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Made plain text, which does nothing to a terminal.
    Plain,
    /// As it is.
    Raw,
}

/// Shows a console, and with `follow` what comes, until the machine ends.
pub(crate) fn console(worker: &Worker, slot: u16, follow: bool, form: Form) -> ExitCode {
    let config = match load(worker) {
        Ok(config) => config,
        Err(status) => return status,
    };
    let shown = begin(&config, &Request::Console { slot, follow })
        .map_err(anyhow::Error::from)
        .and_then(|conversation| show(conversation, form));
    match shown {
        Ok(()) => exit::code(exit::DONE),
        Err(error) => exit::failed(&error),
    }
}

fn show(mut conversation: Conversation, form: Form) -> anyhow::Result<()> {
    let mut text = Plain::default();
    loop {
        let out = match conversation.next()? {
            Response::Stdout(bytes) if form == Form::Raw => bytes.0,
            Response::Stdout(bytes) => text.take(&bytes.0).into_bytes(),
            Response::Progress(line) => {
                say(&line);
                continue;
            }
            Response::Done(_) if form == Form::Plain => {
                let rest = text.rest();
                return Ok(print(rest.as_bytes())?);
            }
            Response::Done(_) => return Ok(()),
            Response::Refused(why) => bail!("{}", plain(why.as_bytes())),
            _ => continue,
        };
        match print(&out) {
            // Whoever reads it has read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            printed => printed?,
        }
    }
}
