//! The host itself.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use process::{Child, ExitStatus, Signal};
use protocol::command::Compression;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Ending, Event, Held, NO_PROGRAM, Place, Process, Program, SpawnError, host_files};

/// How long a program's output is waited for after its exit if nobody calls [`Process::leave`].
const OUTPUT_GRACE: Duration = Duration::from_secs(24 * 3600);

/// The host the worker runs on.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    environment: Vec<(OsString, OsString)>,
    home: PathBuf,
}

impl Host {
    /// The host as a user with this home sees it. Builds get this environment.
    pub(crate) fn new(environment: Vec<(OsString, OsString)>, home: PathBuf) -> Self {
        Host { environment, home }
    }
}

#[async_trait]
impl Place for Host {
    fn environment(&self) -> Vec<(OsString, OsString)> {
        self.environment.clone()
    }

    fn home(&self) -> PathBuf {
        self.home.clone()
    }

    async fn spawn(&self, program: Program) -> Result<Box<dyn Process>, SpawnError> {
        let Program { argv, workdir, environment, stdin, pty } = program;
        if let Err(source) = host_files::make_directory(&workdir).await {
            return Err(SpawnError::NoWorkdir { workdir, source });
        }
        let mut argv = argv.into_iter();
        let command = process::Command::new(argv.next().unwrap_or_default())
            .args(argv)
            .current_dir(workdir)
            .envs(environment)
            // A worker that is killed leaves its master to run the build again, beside what would still run here.
            .dies_with_parent()
            .output_grace(OUTPUT_GRACE);
        let command = if pty { command.pty() } else { command.stdin(stdin) };
        let child = command.spawn().await.map_err(spawn_error)?;
        Ok(Box::new(HostProcess { child }))
    }

    async fn stat(&self, path: &Path) -> io::Result<[i64; 10]> {
        host_files::stat(path).await
    }

    async fn times(&self, path: &Path) -> io::Result<(f64, f64)> {
        host_files::times(path).await
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        host_files::list(path).await
    }

    async fn glob(&self, pattern: &str) -> io::Result<Vec<PathBuf>> {
        host_files::glob(pattern).await
    }

    async fn make_directory(&self, path: &Path) -> io::Result<()> {
        host_files::make_directory(path).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        host_files::remove_file(path).await
    }

    async fn read(&self, path: &Path, offset: u64) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        host_files::read(path, offset).await
    }

    async fn hold(&self, path: &Path) -> io::Result<Held> {
        host_files::hold(path).await
    }

    async fn write(&self, path: &Path, mode: Option<u32>) -> io::Result<Box<dyn AsyncWrite + Send + Unpin>> {
        host_files::write(path, mode).await
    }

    async fn pack(&self, path: &Path, compression: Compression) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        host_files::pack(path, compression).await
    }
}

/// A process of the host, and its group.
struct HostProcess {
    child: Child,
}

#[async_trait]
impl Process for HostProcess {
    async fn event(&mut self) -> Event {
        loop {
            match self.child.next_event().await {
                Some(process::Event::Stdout(bytes)) => return Event::Stdout(bytes),
                Some(process::Event::Stderr(bytes)) => return Event::Stderr(bytes),
                Some(process::Event::Exited(_)) => return Event::Exited,
                Some(process::Event::Finished(finish)) => return Event::Ended(ending(finish.status)),
                // Nobody has the child escalate.
                Some(process::Event::Signalled(_) | process::Event::Unkilled) => {}
                None => std::future::pending().await,
            }
        }
    }

    async fn signal(&mut self, signal: &str) -> io::Result<Option<String>> {
        let unknown = |_| io::Error::new(io::ErrorKind::InvalidInput, format!("there is no signal SIG{signal}"));
        let signal = Signal::from_str(&format!("SIG{signal}")).map_err(unknown)?;
        self.child.signal(signal).map(|()| None).map_err(io::Error::other)
    }

    fn leave(&mut self) {
        self.child.end_grace();
    }
}

fn ending(status: ExitStatus) -> Ending {
    match status {
        ExitStatus::Code(status) => Ending::Exited { status },
        ExitStatus::Signal(signal) => Ending::Signalled { signal },
    }
}

/// Tells a program that can't be executed, which is the build's business, from a host that is short of something.
fn spawn_error(error: process::SpawnError) -> SpawnError {
    use process::SpawnError as Spawn;
    let refused = |program: &OsStr, kind, why: &str| SpawnError::Program {
        program: program.into(),
        source: io::Error::new(kind, why),
    };
    match error {
        Spawn::NotFound { program } => refused(&program, io::ErrorKind::NotFound, NO_PROGRAM),
        Spawn::NotExecutable { program, source } => SpawnError::Program { program: program.into(), source },
        Spawn::WorkingDirectory { path, source } => SpawnError::Workdir { workdir: path, source },
        Spawn::VariableName { name } => {
            refused(&name, io::ErrorKind::InvalidInput, "this can't be the name of an environment variable")
        }
        Spawn::NulByte { program } => {
            refused(&program, io::ErrorKind::InvalidInput, "a NUL byte in the arguments or the environment")
        }
        Spawn::TooLong { program } => {
            refused(&program, io::ErrorKind::ArgumentListTooLong, "arguments and environment are too long")
        }
        error => SpawnError::Other(io::Error::other(error)),
    }
}
