//! A guest: processes and files over the machine's ssh session.
//!
//! Nothing is installed in a guest. What is to be known of its files is asked of the small tools that every one has, GNU's
//! or busybox's, and each question is one command and one round trip. They are asked so that names are bytes of any kind;
//! what they complain of becomes the error that the host would have given.

mod environment;
mod files;
mod glob;
mod hold;
mod output;
mod pack;
mod process;
mod refusal;
mod write;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use protocol::command::Compression;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OnceCell;

use self::hold::Keeper;
use super::{Held, Place, Process, Program, SpawnError};
use crate::pool::{Fate, Login};

/// The guest of a machine. Paths are the guest's own.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    login: Arc<Login>,
    fate: Fate,
    /// What keeps files open, once there are any.
    keeper: Arc<OnceCell<Keeper>>,
}

impl Guest {
    pub(crate) fn new(login: Arc<Login>, fate: Fate) -> Self {
        Guest { login, fate, keeper: Arc::default() }
    }

    /// Starts a program of our own.
    async fn start(&self, exec: ssh::Exec) -> io::Result<ssh::Process> {
        if !self.login.session.dialect().is_posix() {
            let what = "files are out of reach in this guest, whose system has no sh: use commands of its own";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        match self.login.session.exec(exec).await {
            Ok(process) => Ok(process),
            Err(ssh::ExecError::Lost(lost)) => Err(self.lost(&lost).await),
            Err(ssh::ExecError::Bad(bad)) => Err(io::Error::new(io::ErrorKind::InvalidInput, bad)),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// The error that says that the guest itself is gone.
    async fn lost(&self, lost: &ssh::Lost) -> io::Error {
        io::Error::new(io::ErrorKind::NotConnected, cause(&self.fate, lost).await)
    }
}

/// A program of our own. What went wrong is read from what it says, so it has to say it in English.
fn tool<'a>(argv: impl IntoIterator<Item = &'a OsStr>) -> ssh::Exec {
    ssh::Exec::argv(argv.into_iter().map(OsStrExt::as_bytes)).env("LC_ALL", "C")
}

/// A script of our own with its arguments.
fn script<'a>(body: &'a str, arguments: impl IntoIterator<Item = &'a OsStr>) -> ssh::Exec {
    let shell = ["/bin/sh", "-c", body, "sh"].map(OsStr::new);
    tool(shell.into_iter().chain(arguments))
}

/// Why a session was lost: most often because its QEMU ended, which is seen a moment later.
pub(crate) async fn cause(fate: &Fate, lost: &ssh::Lost) -> String {
    match fate.explanation().await {
        Some(end) => end.to_string(),
        None => format!("the ssh session with vm '{}' was lost: {lost}", fate.vm()),
    }
}

#[async_trait]
impl Place for Guest {
    fn environment(&self) -> Vec<(OsString, OsString)> {
        self.login.environment.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn home(&self) -> PathBuf {
        let home = self.login.environment.iter().find(|(name, _)| name == "HOME");
        home.map_or_else(|| self.login.basedir.path.clone(), |(_, home)| home.into())
    }

    async fn spawn(&self, program: Program) -> Result<Box<dyn Process>, SpawnError> {
        Ok(Box::new(self.run(program).await?))
    }

    async fn stat(&self, path: &Path) -> io::Result<[i64; 10]> {
        self.look(path).await
    }

    async fn times(&self, path: &Path) -> io::Result<(f64, f64)> {
        self.look_at_times(path).await
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.names(path).await
    }

    async fn glob(&self, pattern: &str) -> io::Result<Vec<PathBuf>> {
        glob::glob(self, pattern).await
    }

    async fn make_directory(&self, path: &Path) -> io::Result<()> {
        self.make(path).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.remove(path).await
    }

    async fn read(&self, path: &Path, offset: u64) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        Ok(Box::new(self.open(path, offset).await?))
    }

    async fn hold(&self, path: &Path) -> io::Result<Held> {
        self.keep_open(path).await
    }

    async fn write(&self, path: &Path, mode: Option<u32>) -> io::Result<Box<dyn AsyncWrite + Send + Unpin>> {
        Ok(Box::new(write::Replacement::begin(self, path, mode).await?))
    }

    async fn pack(&self, path: &Path, compression: Compression) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        Ok(Box::new(pack::pack(self, path, compression).await?))
    }
}
