//! `shell`: the arguments of a program to run (Buildbot 4.3.0, `WorkerShellCommand`).

use std::path::PathBuf;
use std::time::Duration;

use crate::args::{Args, ArgumentError};
use crate::value::Value;

/// A program to run and how to watch it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shell {
    /// What to run.
    pub command: CommandLine,
    /// Where; made if it is missing.
    pub workdir: PathBuf,
    /// Changes to the worker's own environment, in the order sent.
    pub env: Vec<(String, EnvValue)>,
    /// Written to standard input, which is closed after it in any case.
    pub initial_stdin: Option<String>,
    /// Whether standard output goes to the master.
    pub want_stdout: bool,
    /// Whether standard error goes to the master.
    pub want_stderr: bool,
    /// Files to follow while the program runs.
    pub logfiles: Vec<Logfile>,
    /// The `logfiles` argument as it came, for the header.
    pub logfiles_shown: Value,
    /// The program is killed after this time without output.
    pub timeout: Option<Duration>,
    /// The program is killed after this time.
    pub max_time: Option<Duration>,
    /// The program is killed once it has written more lines than this.
    pub max_lines: Option<u64>,
    /// Killing begins with SIGTERM, followed by `interrupt_signal` after this time.
    pub sigterm_time: Option<Duration>,
    /// The signal that kills, without `SIG`.
    pub interrupt_signal: String,
    /// Whether the program gets a terminal.
    pub use_pty: bool,
    /// Whether the header shows the environment.
    pub log_environ: bool,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// A line for `/bin/sh -c`.
    Line(String),
    /// A program and its arguments.
    Words(Vec<Word>),
}

/// One word of a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// What the program gets.
    pub real: String,
    /// What people get to see instead, for a secret.
    pub shown: Option<String>,
}

/// The value of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// Text, in which `${NAME}` stands for a variable of the worker.
    Text(String),
    /// Texts to be joined with colons.
    Joined(Vec<String>),
    /// The variable is removed.
    Removed,
    /// Something else. The command fails when it starts, as Buildbot's worker has it.
    Unusable,
}

/// A file whose growth is shown as a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logfile {
    /// The log's name.
    pub name: String,
    /// The file, relative to the workdir.
    pub filename: PathBuf,
    /// Whether what is in the file at the start is skipped.
    pub follow: bool,
}

impl Shell {
    pub(super) fn parse(args: Args<'_>) -> Result<Self, ArgumentError> {
        args.require(&["workdir", "command"])?;
        Ok(Shell {
            command: command_line(args)?,
            workdir: args.required_text("workdir")?.into(),
            env: env(args)?,
            initial_stdin: args.text("initial_stdin")?,
            want_stdout: args.flag("want_stdout", true)?,
            want_stderr: args.flag("want_stderr", true)?,
            logfiles: logfiles(args)?,
            logfiles_shown: args.value("logfiles").cloned().unwrap_or(Value::Map(Vec::new())),
            timeout: args.seconds("timeout")?,
            max_time: args.seconds("maxTime")?,
            max_lines: args.count("max_lines")?,
            sigterm_time: args.seconds("sigtermTime")?,
            interrupt_signal: args.text("interruptSignal")?.unwrap_or_else(|| "KILL".to_owned()),
            use_pty: args.flag("usePTY", false)?,
            log_environ: args.flag("logEnviron", true)?,
        })
    }
}

fn command_line(args: Args<'_>) -> Result<CommandLine, ArgumentError> {
    match args.value("command") {
        Some(Value::List(items)) if !items.is_empty() => items
            .iter()
            .map(|item| word(item).ok_or_else(|| args.invalid("command", "a line, or a list of words")))
            .collect::<Result<_, _>>()
            .map(CommandLine::Words),
        Some(Value::Str(_) | Value::Bytes(_)) => Ok(CommandLine::Line(args.required_text("command")?)),
        _ => Err(args.invalid("command", "a line, or a list of words")),
    }
}

/// A word is text, a number (which Python turns into text), or `("obfuscated", real, shown)`.
fn word(item: &Value) -> Option<Word> {
    let plain = |real: String| Some(Word { real, shown: None });
    match item {
        Value::Str(text) => plain(text.clone()),
        Value::Bytes(bytes) => plain(String::from_utf8(bytes.clone()).ok()?),
        Value::Int(number) => plain(number.to_string()),
        Value::Float(number) => plain(number.to_string()),
        Value::List(triple) => match triple.as_slice() {
            [Value::Str(tag), Value::Str(real), Value::Str(shown)] if tag == "obfuscated" => {
                Some(Word { real: real.clone(), shown: Some(shown.clone()) })
            }
            _ => None,
        },
        Value::Nil | Value::Bool(_) | Value::Map(_) => None,
    }
}

fn env(args: Args<'_>) -> Result<Vec<(String, EnvValue)>, ArgumentError> {
    let pairs = match args.value("env") {
        None => return Ok(Vec::new()),
        Some(Value::Map(pairs)) => pairs,
        Some(_) => return Err(args.invalid("env", "a map")),
    };
    Ok(pairs.iter().map(|(name, value)| (name.clone(), env_value(value))).collect())
}

fn env_value(value: &Value) -> EnvValue {
    match value {
        Value::Nil => EnvValue::Removed,
        Value::Str(text) => EnvValue::Text(text.clone()),
        Value::List(items) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .map_or(EnvValue::Unusable, EnvValue::Joined),
        _ => EnvValue::Unusable,
    }
}

fn logfiles(args: Args<'_>) -> Result<Vec<Logfile>, ArgumentError> {
    let pairs = match args.value("logfiles") {
        None => return Ok(Vec::new()),
        Some(Value::Map(pairs)) => pairs,
        Some(_) => return Err(args.invalid("logfiles", "a map")),
    };
    pairs
        .iter()
        .map(|(name, value)| {
            let (filename, follow) = match value {
                Value::Str(filename) => (filename.as_str(), false),
                _ => (
                    value
                        .get("filename")
                        .and_then(Value::as_str)
                        .ok_or_else(|| args.invalid("logfiles", "file names"))?,
                    matches!(value.get("follow"), Some(Value::Bool(true) | Value::Int(1))),
                ),
            };
            Ok(Logfile { name: name.clone(), filename: filename.into(), follow })
        })
        .collect()
}
