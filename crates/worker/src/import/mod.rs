//! `kvm-worker import`: from the directory of a Buildbot worker to this worker's configuration.
//!
//! The directory's `buildbot.tac` is a Python program. It is read, never executed: [`tokens`] splits it, [`tac`],
//! [`expression`] and [`scope`] work out what is certain, [`translate`] says it in our words. What is not certain is left to a person,
//! with the line that it stands on. The directory itself is not changed and goes on being used.

mod arguments;
mod endpoint;
mod expression;
mod master;
mod report;
mod scope;
mod settings;
mod string;
mod surroundings;
mod tac;
mod tokens;
mod translate;
mod write;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use report::{Report, shown};
use scope::{WorkerCall, normalized};
use settings::Settings;
use tac::Tac;

use crate::config::MAX_STATE_DIR;

/// The largest `buildbot.tac` that is read, in bytes; `create-worker` writes less than 2 KiB.
const MAX_TAC: u64 = 64 * 1024;

/// Where the password is looked for if there is no configuration file for it to lie beside.
const USUAL_PASSWORD_FILE: &str = "/etc/kvm-worker/password";

/// What an import came to.
#[derive(Debug)]
pub(crate) struct Imported {
    /// The configuration, unless it was written to a file.
    pub printed: Option<String>,
    pub report: Report,
}

/// Reads the worker in a directory and writes its configuration to a file, its password to another one beside that.
/// Without a file the configuration is handed out, and the password is written nowhere.
///
/// # Errors
/// There is no worker to be found, or a file can't be written; nothing is written then.
pub(crate) fn run(directory: &Path, output: Option<&Path>) -> anyhow::Result<Imported> {
    let directory = normalized(&std::path::absolute(directory)?);
    let tac_file = directory.join("buildbot.tac");
    let (settings, mut report) =
        translated(&directory, &tac_file).with_context(|| format!("import {}", tac_file.display()))?;
    ensure!(
        settings.basedir.to_str().is_some(),
        "import {}: the basedir's path is not UTF-8 text; rename it",
        tac_file.display(),
    );
    surroundings(&directory, &settings.basedir, &mut report);
    let printed = match output {
        Some(output) => {
            save(&settings, &tac_file, output, &mut report)?;
            None
        }
        None => {
            let password_file = Path::new(USUAL_PASSWORD_FILE);
            report.next.push(format!("the password is not printed: {}", make_password_file(password_file)));
            Some(settings.toml(&tac_file, password_file))
        }
    };
    let config_file = output.unwrap_or(Path::new("FILE")).display();
    report.next.push(format!("stop the old worker for good, then: kvm-worker run --config {config_file}"));
    Ok(Imported { printed, report })
}

fn translated(directory: &Path, tac_file: &Path) -> anyhow::Result<(Settings, Report)> {
    let Tac { workers, effects } = tac::parse(tac_file, &read(tac_file)?)?;
    let call = only(workers)?;
    Ok(translate::translate(directory, call, &effects))
}

/// Reads the file if it is text of a reasonable length.
fn read(path: &Path) -> anyhow::Result<String> {
    const REMEDY: &str = "name the directory that buildbot-worker was started with";
    // Opening a fifo would wait for somebody to write to it.
    ensure!(std::fs::metadata(path).context(REMEDY)?.is_file(), "it is not a file; {REMEDY}");
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_TAC + 1).read_to_end(&mut bytes)?;
    ensure!(
        u64::try_from(bytes.len()).is_ok_and(|length| length <= MAX_TAC),
        "it is larger than {} KiB, which no buildbot.tac is",
        MAX_TAC / 1024,
    );
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => bail!("it is not UTF-8 text; convert it, such as with iconv"),
    }
}

fn only(mut workers: Vec<WorkerCall>) -> anyhow::Result<WorkerCall> {
    let lines: Vec<_> = workers.iter().map(|call| call.line.to_string()).collect();
    match (workers.pop(), lines.len()) {
        (Some(call), 1) => Ok(call),
        (None, _) => bail!(
            "no call of Worker(...) from buildbot_worker.bot is found in it; begin with `kvm-worker print-config` and \
             set name, master and password_file by hand"
        ),
        _ => bail!(
            "it makes several workers (lines {}), and a kvm-worker is one; copy it for each, with one call in each copy",
            lines.join(", ")
        ),
    }
}

/// What else the one who runs the import should know of the host.
fn surroundings(directory: &Path, basedir: &Path, report: &mut Report) {
    let named = shown(&basedir.to_string_lossy());
    if !basedir.is_dir() {
        report
            .by_hand
            .push(format!("worker.basedir: there is no directory {named} on this host; make it, or set another"));
    }
    if std::fs::canonicalize(basedir).ok() != std::fs::canonicalize(directory).ok() {
        report.different.push(format!(
            "worker.basedir is not {}: buildbot.tac names another directory",
            shown(&directory.to_string_lossy())
        ));
    }
    surroundings::info(basedir, report);
    if let Some(pid) = surroundings::running(basedir, Path::new("/proc")) {
        report.next.push(format!(
            "the old worker still runs, as process {pid}: two of one name keep the other out; buildbot-worker stop {named}"
        ));
    }
    let state_dir = format!("{}-vms", basedir.display());
    let named = shown(&state_dir);
    report.different.push(match state_dir.len() > MAX_STATE_DIR {
        true => format!(
            "machines, and commands such as kvm-worker drain, need a second directory: set pool.state_dir, at the latest with \
             the first image, for its default {named} is longer than {MAX_STATE_DIR} bytes"
        ),
        false => format!(
            "machines, and commands such as kvm-worker drain, need a second directory, {named}: let its user make it, or set \
             pool.state_dir"
        ),
    });
}

fn save(settings: &Settings, tac_file: &Path, output: &Path, report: &mut Report) -> anyhow::Result<()> {
    let refused = || format!("write the configuration to {}", output.display());
    let password_file: PathBuf = write::password_file(output).with_context(refused)?;
    ensure!(password_file.to_str().is_some(), "{}: the path is not UTF-8 text; choose another", refused());
    let password = settings.password.as_deref().map(|password| (password_file.as_path(), password));
    write::write(output, &settings.toml(tac_file, &password_file), password).with_context(refused)?;
    report.next.push(format!("{} is written; see that it is as you want it", output.display()));
    report.next.push(match password {
        Some(_) => format!(
            "{} is written, for you alone to read: chown it to the user that kvm-worker runs as",
            password_file.display()
        ),
        None => make_password_file(&password_file),
    });
    Ok(())
}

fn make_password_file(path: &Path) -> String {
    format!(
        "write the password into {path}, whose owner is the user that kvm-worker runs as: (umask 077; cat >{path}), the \
         password, Enter, Ctrl-D",
        path = path.display()
    )
}
