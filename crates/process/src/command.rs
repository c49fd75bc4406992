use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{Access, Mode, access};
use rustix::io::Errno;

use crate::setup::Setup;
use crate::spawner::{self, Request};
use crate::{Child, Limits, Output, OutputError, SpawnError, Stream};

/// A command that can be started: program, arguments, environment, directory and streams.
///
/// The child gets the environment given here and nothing else, default signal actions, an empty signal mask, no
/// descriptor but 0, 1 and 2, and its own process group.
#[derive(Debug)]
#[must_use = "a command does nothing before it is spawned"]
pub struct Command {
    program: OsString,
    args: Vec<OsString>,
    env: BTreeMap<OsString, OsString>,
    cwd: Option<PathBuf>,
    input: Input,
    null: Vec<Stream>,
    umask: Option<u32>,
    dies_with_parent: bool,
    inherited: Vec<OwnedFd>,
    output_grace: Duration,
}

/// Where stdin comes from, and with it the kind of descriptors the child has.
#[derive(Debug)]
enum Input {
    /// Pipes; these bytes, then the end.
    Bytes(Bytes),
    /// A terminal for all three.
    Terminal,
}

impl Command {
    /// Describes a command without arguments. A program without a slash is looked up on the `PATH` of the environment
    /// given to the child, or on `/bin:/usr/bin` if that has none.
    pub fn new(program: impl Into<OsString>) -> Self {
        Command {
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            input: Input::Bytes(Bytes::new()),
            null: Vec::new(),
            umask: None,
            dies_with_parent: false,
            inherited: Vec::new(),
            output_grace: Duration::from_secs(5),
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the child's environment, which is empty at first.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets variables of the child's environment.
    pub fn envs(mut self, vars: impl IntoIterator<Item = (impl Into<OsString>, impl Into<OsString>)>) -> Self {
        self.env.extend(vars.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Copies the named variables, as far as they are set, from our own environment.
    pub fn inherit_env(self, names: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let ours = |name: &OsStr| Some((name.to_owned(), std::env::var_os(name)?));
        let vars: Vec<_> = names.into_iter().filter_map(|name| ours(name.as_ref())).collect();
        self.envs(vars)
    }

    /// Sets the child's working directory; ours by default.
    pub fn current_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.cwd = Some(path.into());
        self
    }

    /// Gives the child these bytes on stdin, which is closed after them. By default there are none. Takes back
    /// [`Command::pty`].
    pub fn stdin(mut self, bytes: impl Into<Bytes>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Gives the child a session of its own on a terminal of 80 columns: its stdout and stderr both arrive as
    /// [`Stream::Stdout`], with the terminal's line ends, and the first read from it finds the end of the input. Takes
    /// back [`Command::stdin`] and [`Command::null`].
    pub fn pty(mut self) -> Self {
        self.input = Input::Terminal;
        self
    }

    /// Connects a stream to `/dev/null` instead of a pipe.
    pub fn null(mut self, stream: Stream) -> Self {
        self.null.push(stream);
        self
    }

    /// Sets the child's file mode creation mask; ours by default.
    pub fn umask(mut self, mask: u32) -> Self {
        self.umask = Some(mask & 0o777);
        self
    }

    /// Has the kernel kill the child (SIGKILL, not its own children) as soon as this process ends, however that happens.
    /// Lost if the program is set-user-id or has file capabilities (prctl(2), `PR_SET_PDEATHSIG`).
    pub fn dies_with_parent(mut self) -> Self {
        self.dies_with_parent = true;
        self
    }

    /// Leaves this descriptor open in the child under the number it has here. It is closed here once the child runs.
    pub fn inherit_fd(mut self, fd: OwnedFd) -> Self {
        self.inherited.push(fd);
        self
    }

    /// Sets how long output is awaited after the child has exited, in case a process it left behind holds it open.
    /// 5 seconds by default.
    pub fn output_grace(mut self, grace: Duration) -> Self {
        self.output_grace = grace;
        self
    }

    /// Starts the command. Must be called in the context of a tokio runtime with IO and time. If this future is dropped
    /// before it is ready, the child is killed.
    pub async fn spawn(self) -> Result<Child, SpawnError> {
        self.check_names()?;
        let command = self.std_command();
        let setup = Setup {
            terminal: matches!(self.input, Input::Terminal),
            umask: self.umask.map(Mode::from_raw_mode),
            dies_with_parent: self.dies_with_parent,
            inherited: self.inherited,
        };
        let (program, cwd) = (self.program, self.cwd);
        let spawned = match spawner::spawn(Request { command, setup }).await {
            Ok(spawned) => spawned,
            Err(error) => return Err(diagnose(program, cwd, error)),
        };
        let input = match self.input {
            Input::Bytes(bytes) => bytes,
            Input::Terminal => Bytes::new(),
        };
        Child::new(spawned, input, self.output_grace).map_err(|source| SpawnError::Resources { program, source })
    }

    /// Runs the command to its end and collects what it writes, within limits. Whether it succeeded is for the caller to
    /// see, or for [`Output::into_success`].
    pub async fn output(self, limits: &Limits) -> Result<Output, OutputError> {
        let program = self.program.clone();
        let child = self.spawn().await?;
        crate::output::collect(program, child, limits).await
    }

    fn check_names(&self) -> Result<(), SpawnError> {
        match self.env.keys().find(|name| name.is_empty() || name.as_bytes().contains(&b'=')) {
            Some(name) => Err(SpawnError::VariableName { name: name.clone() }),
            None => Ok(()),
        }
    }

    fn std_command(&self) -> std::process::Command {
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.args).env_clear().envs(&self.env);
        if let Some(path) = &self.cwd {
            command.current_dir(path);
        }
        if let Input::Bytes(bytes) = &self.input {
            command.stdin(if bytes.is_empty() { Stdio::null() } else { Stdio::piped() });
            command.stdout(self.pipe_or_null(Stream::Stdout)).stderr(self.pipe_or_null(Stream::Stderr));
        }
        command
    }

    fn pipe_or_null(&self, stream: Stream) -> Stdio {
        if self.null.contains(&stream) { Stdio::null() } else { Stdio::piped() }
    }
}

/// Says which of the things that may be wrong it was. The system only returns a number, which is the same for a missing
/// program and a missing directory.
fn diagnose(program: OsString, cwd: Option<PathBuf>, source: io::Error) -> SpawnError {
    if let Some(path) = cwd
        && let Err(source) = enterable(&path)
    {
        return SpawnError::WorkingDirectory { path, source };
    }
    if source.kind() == io::ErrorKind::InvalidInput && source.raw_os_error().is_none() {
        return SpawnError::NulByte { program };
    }
    match Errno::from_io_error(&source) {
        Some(Errno::NOENT | Errno::NOTDIR) => SpawnError::NotFound { program },
        Some(Errno::ACCESS | Errno::PERM | Errno::NOEXEC | Errno::ISDIR) => {
            SpawnError::NotExecutable { program, source }
        }
        Some(Errno::TOOBIG) => SpawnError::TooLong { program },
        Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE) => SpawnError::Resources { program, source },
        _ => SpawnError::Other { program, source },
    }
}

fn enterable(path: &std::path::Path) -> io::Result<()> {
    if !std::fs::metadata(path)?.is_dir() {
        return Err(Errno::NOTDIR.into());
    }
    Ok(access(path, Access::EXEC_OK)?)
}
