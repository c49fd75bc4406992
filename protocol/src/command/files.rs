//! The commands on files and directories.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::{Args, ArgumentError};
use crate::value::Value;

/// How long `rmdir` and `cpdir` may be silent unless the master says otherwise.
const TREE_TIMEOUT: Duration = Duration::from_secs(120);

/// The path a command is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathArgument(pub PathBuf);

/// The paths a command is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths(pub Vec<PathBuf>);

/// Trees to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rmdir {
    /// The trees.
    pub paths: Vec<PathBuf>,
    /// Removing one is given up after this time without output.
    pub timeout: Option<Duration>,
    /// Removing one is given up after this time.
    pub max_time: Option<Duration>,
    /// Whether the header shows the environment.
    pub log_environ: bool,
}

/// A tree to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpdir {
    /// The tree.
    pub from: PathBuf,
    /// Its copy.
    pub to: PathBuf,
    /// Copying is given up after this time without output.
    pub timeout: Option<Duration>,
    /// Copying is given up after this time.
    pub max_time: Option<Duration>,
    /// Whether the header shows the environment.
    pub log_environ: bool,
}

impl PathArgument {
    /// Reads `path` (msgpack), else `legacy` relative to `workdir` (PB).
    pub(super) fn parse(args: Args<'_>, legacy: &'static str) -> Result<Self, ArgumentError> {
        if let Some(path) = args.text("path")? {
            return Ok(PathArgument(path.into()));
        }
        let path = args.required_text(legacy)?;
        let workdir = args.text("workdir")?.unwrap_or_default();
        Ok(PathArgument(Path::new(&workdir).join(path)))
    }
}

impl Paths {
    /// Reads `paths` (msgpack), else `dir` (PB): a text or a list.
    pub(super) fn parse(args: Args<'_>) -> Result<Self, ArgumentError> {
        let name = if args.value("paths").is_some() { "paths" } else { "dir" };
        args.require(&[name])?;
        let paths = args.texts(name)?.unwrap_or_default();
        Ok(Paths(paths.into_iter().map(PathBuf::from).collect()))
    }
}

impl Rmdir {
    pub(super) fn parse(args: Args<'_>) -> Result<Self, ArgumentError> {
        let Paths(paths) = Paths::parse(args)?;
        Ok(Rmdir {
            paths,
            timeout: tree_timeout(args)?,
            max_time: args.seconds("maxTime")?,
            log_environ: args.flag("logEnviron", true)?,
        })
    }
}

impl Cpdir {
    pub(super) fn parse(args: Args<'_>) -> Result<Self, ArgumentError> {
        let names = if args.value("from_path").is_some() { ["from_path", "to_path"] } else { ["fromdir", "todir"] };
        args.require(&names)?;
        Ok(Cpdir {
            from: args.required_text(names[0])?.into(),
            to: args.required_text(names[1])?.into(),
            timeout: tree_timeout(args)?,
            max_time: args.seconds("maxTime")?,
            log_environ: args.flag("logEnviron", true)?,
        })
    }
}

/// Absent means the default, and 0 means off.
fn tree_timeout(args: Args<'_>) -> Result<Option<Duration>, ArgumentError> {
    match args.value("timeout") {
        None | Some(Value::Nil) => Ok(Some(TREE_TIMEOUT)),
        Some(_) => args.seconds("timeout"),
    }
}
