//! What the names of a Python file stand for, and what its calls return, as far as that is certain without running it.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// The longest text that is put together from others, in bytes.
const MAX_TEXT: usize = 4096;

/// What an expression stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Number(i64),
    Text(String),
    /// What an import made known, by its full name: `os.path`.
    Object(String),
    /// A worker, by the number of its call.
    Worker(usize),
    /// It can't be told, and why: a sentence's predicate such as `comes from the environment`.
    Unknown(&'static str),
}

/// A value and the line that says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located {
    pub value: Value,
    pub line: usize,
}

impl Located {
    pub(super) fn unknown(line: usize, why: &'static str) -> Self {
        Located { value: Value::Unknown(why), line }
    }
}

/// A call that makes a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WorkerCall {
    pub line: usize,
    pub arguments: Vec<Argument>,
    /// Whether it stands in a block that may not run.
    pub conditional: bool,
}

/// What is passed to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Argument {
    /// Its name; `*` for what stands for several, and for what follows that without a name.
    pub name: Option<String>,
    pub value: Located,
}

/// What the statements so far have made known.
#[derive(Debug)]
pub(super) struct Scope<'a> {
    /// The file; absolute.
    pub file: &'a Path,
    pub names: BTreeMap<String, Located>,
    pub calls: Vec<WorkerCall>,
    /// Whether what is being evaluated may not run.
    pub conditional: bool,
}

impl Scope<'_> {
    /// The value of a name.
    pub(super) fn lookup(&self, name: &str, line: usize) -> Located {
        if let Some(known) = self.names.get(name) {
            // What is said of an imported name is said of its use.
            let line = if matches!(known.value, Value::Object(_)) { line } else { known.line };
            return Located { value: known.value.clone(), line };
        }
        let value = match name {
            "None" => Value::None,
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "__file__" => text(self.file.to_string_lossy().into_owned()),
            // The first is built in; the second comes of `from buildbot_worker.bot import *`.
            "open" | "Worker" => Value::Object(name.to_owned()),
            _ => Value::Unknown("is a name that is not set before"),
        };
        Located { value, line }
    }

    /// The value of a call. buildbot-worker starts in the worker's directory: relative paths begin there.
    pub(super) fn call(&mut self, function: Located, arguments: Vec<Argument>) -> Located {
        let line = function.line;
        let Value::Object(path) = function.value else {
            return match function.value {
                Value::Unknown(_) => function,
                _ => Located::unknown(line, "is what a call returns"),
            };
        };
        if makes_worker(&path) {
            self.calls.push(WorkerCall { line, arguments, conditional: self.conditional });
            return Located { value: Value::Worker(self.calls.len() - 1), line };
        }
        if path == "open" {
            return Located::unknown(line, "is read from another file");
        }
        if from_environment(&path) {
            return Located::unknown(line, "comes from the environment");
        }
        let mut texts = Vec::new();
        for argument in arguments {
            match argument.value.value {
                Value::Text(text) if argument.name.is_none() => texts.push(text),
                Value::Unknown(_) => return argument.value,
                _ => return Located::unknown(line, "is what a call returns"),
            }
        }
        let directory = self.file.parent().unwrap_or(Path::new("/"));
        let path = match (path.as_str(), texts.as_slice()) {
            ("os.path.join", [first, rest @ ..]) => {
                rest.iter().fold(PathBuf::from(first), |path, text| path.join(text))
            }
            ("os.path.dirname", [path]) => PathBuf::from(dirname(path)),
            ("os.path.abspath" | "os.path.realpath", [path]) => normalized(&directory.join(path)),
            ("os.path.normpath", [path]) => normalized(Path::new(path)),
            ("os.getcwd", []) => directory.to_owned(),
            _ => return Located::unknown(line, "is what a call returns"),
        };
        Located { value: text(path.to_string_lossy().into_owned()), line }
    }
}

/// The path without `.` and `..`, which it loses without a look at the disk, as in Python's `os.path.normpath`.
pub(super) fn normalized(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if matches!(out.components().next_back(), Some(Component::Normal(_))) => {
                out.pop();
            }
            Component::ParentDir if out.has_root() => {}
            _ => out.push(component),
        }
    }
    if out.as_os_str().is_empty() { PathBuf::from(".") } else { out }
}

/// All up to the last slash, as Python has it: what ends with a slash loses no more than that.
fn dirname(path: &str) -> &str {
    let head = &path[..path.rfind('/').map_or(0, |at| at + 1)];
    let shorter = head.trim_end_matches('/');
    if shorter.is_empty() { head } else { shorter }
}

/// The class is known by its name, or by the module that it comes from, which has had the same name for longer.
fn makes_worker(path: &str) -> bool {
    let Some((module, class)) = path.rsplit_once('.') else { return path == "Worker" };
    class == "Worker" || (module.starts_with("build") && module.ends_with(".bot") && class != "LocalWorker")
}

/// Whether a name is the environment, or something of it.
pub(super) fn from_environment(path: &str) -> bool {
    path == "os.getenv" || path == "os.environ" || path.starts_with("os.environ.")
}

/// A text, if it is not too long.
pub(super) fn text(text: String) -> Value {
    if text.len() > MAX_TEXT { Value::Unknown("is longer than 4096 bytes") } else { Value::Text(text) }
}
