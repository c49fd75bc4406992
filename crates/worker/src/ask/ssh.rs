//! OpenSSH's client in a machine of the worker's.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, anyhow};

use super::{another_version, answer, load};
use crate::cli::Worker;
use crate::config::Config;
use crate::control::{Answer, Login, Request};
use crate::pool::shell_word;
use crate::{exit, plain_file};

/// Becomes the client, in the guest in a slot: with a command, or for a person.
pub(crate) fn ssh(worker: &Worker, slot: u16, command: &[String]) -> ExitCode {
    let config = match load(worker) {
        Ok(config) => config,
        Err(status) => return status,
    };
    let result = login(&config, slot).and_then(|login| client(&login, command));
    let error = match result {
        // It returns only if there is no such program.
        Ok(mut client) => anyhow::Error::new(client.exec()).context("run ssh; is OpenSSH's client installed?"),
        Err(error) => error,
    };
    exit::failed(&error)
}

fn login(config: &Config, slot: u16) -> anyhow::Result<Login> {
    match answer(config, &Request::Login { slot }, &mut |_| {})? {
        Answer::Login(login) => Ok(login),
        _ => Err(another_version()),
    }
}

/// The client's command line. Words of a command arrive as they are; a single one is for the guest's shell.
pub(super) fn client(login: &Login, command: &[String]) -> anyhow::Result<Command> {
    let key = &login.ssh.key;
    plain_file::open(key).with_context(|| format!("read the guest's key {}", key.display())).map_err(|error| {
        anyhow!("{error:#}; run this as the worker's user, who alone may have it, or use kvm-worker exec")
    })?;
    let mut client = Command::new("ssh");
    client.args(login.ssh.arguments());
    match command {
        [] => {}
        [line] => {
            client.arg(line);
        }
        words => {
            client.arg(words.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" "));
        }
    }
    Ok(client)
}
