//! A guest: processes over the machine's ssh session.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protocol::command::Compression;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::{Ending, Event, Place, Process, Program, SpawnError};
use crate::pool::{Fate, Login};

/// How long output that is on its way may take to arrive once nobody waits for more.
const LAST_OUTPUT: Duration = Duration::from_millis(500);

/// How long a lost session waits to hear that it was QEMU that ended.
const CAUSE: Duration = Duration::from_secs(2);

/// The guest of a machine. Paths are the guest's own.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    login: Arc<Login>,
    fate: Fate,
}

impl Guest {
    pub(crate) fn new(login: Arc<Login>, fate: Fate) -> Self {
        Guest { login, fate }
    }

    /// Runs a small program of our own and returns what it wrote.
    async fn output(&self, argv: &[&OsStr]) -> io::Result<Vec<u8>> {
        /// More than a directory's names or a file's numbers ever need.
        const LIMIT: usize = 16 << 20;
        // What went wrong is read from what the tool says.
        let exec = ssh::Exec::argv(argv.iter().map(|word| word.as_bytes())).env("LC_ALL", "C");
        let process = match self.login.session.exec(exec).await {
            Ok(process) => process,
            Err(error) => return Err(self.exec_error(error).await),
        };
        let output = match process.output(LIMIT).await {
            Ok(output) => output,
            Err(ssh::OutputError::Lost(lost)) => return Err(self.lost(&lost).await),
            Err(error) => return Err(io::Error::other(error)),
        };
        if output.exit.is_success() {
            return Ok(output.stdout);
        }
        Err(refusal(&String::from_utf8_lossy(&output.stderr)))
    }
}

/// What a tool of the guest complained of, as the error the host would have given.
fn refusal(stderr: &str) -> io::Error {
    let text = stderr.trim();
    let errno = [
        ("No such file or directory", nix::libc::ENOENT),
        ("Permission denied", nix::libc::EACCES),
        ("Not a directory", nix::libc::ENOTDIR),
        ("Is a directory", nix::libc::EISDIR),
        ("File exists", nix::libc::EEXIST),
        ("No space left on device", nix::libc::ENOSPC),
        ("Read-only file system", nix::libc::EROFS),
        ("Operation not permitted", nix::libc::EPERM),
    ];
    match errno.iter().find(|(sentence, _)| text.ends_with(sentence)) {
        Some((_, errno)) => io::Error::from_raw_os_error(*errno),
        None => io::Error::other(text.to_owned()),
    }
}

/// What a guest can't do yet.
fn unsupported(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!("{what} is not possible in a guest yet; use vm=\"host\" and vm_copy"),
    )
}

#[async_trait]
impl Place for Guest {
    fn environment(&self) -> Vec<(OsString, OsString)> {
        self.login.environment.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn home(&self) -> PathBuf {
        let home = self.login.environment.iter().find(|(name, _)| name == "HOME");
        home.map_or_else(|| self.login.basedir.clone(), |(_, home)| home.into())
    }

    async fn spawn(&self, program: Program) -> Result<Box<dyn Process>, SpawnError> {
        let mut exec = ssh::Exec::argv(program.argv.iter().map(|word| word.as_bytes()))
            .dir(program.workdir.as_os_str().as_bytes(), ssh::Missing::Fail);
        for (name, value) in changed(&self.login.environment, &program.environment)? {
            exec = match value {
                Some(value) => exec.env(name, value.as_bytes()),
                None => exec.env_remove(name),
            };
        }
        if program.pty {
            exec = exec.pty(ssh::Pty::default());
        }
        if !program.stdin.is_empty() {
            exec = exec.stdin();
        }
        let mut process = match self.login.session.exec(exec).await {
            Ok(process) => process,
            Err(error) => return Err(self.spawn_error(&program, error).await),
        };
        if let Some(mut stdin) = process.take_stdin() {
            // Ends when all is written or the program, its only reader, is gone.
            tokio::spawn(async move {
                if stdin.write(program.stdin).await.is_ok() {
                    stdin.close().await;
                }
            });
        }
        Ok(Box::new(GuestProcess { fate: self.fate.clone(), process, exited: None, left: None, lost: None }))
    }

    async fn stat(&self, path: &Path) -> io::Result<[i64; 10]> {
        const FORMAT: &str = "%f %i %d %h %u %g %s %X %Y %Z";
        let output = self
            .output(
                &["stat", "-L", "-c", FORMAT].map(OsStr::new).into_iter().chain([path.as_os_str()]).collect::<Vec<_>>(),
            )
            .await?;
        parse_stat(&String::from_utf8_lossy(&output)).ok_or_else(|| io::Error::other("the guest's stat wrote nonsense"))
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let mut directory = path.as_os_str().to_owned();
        directory.push("/.");
        let find = ["-mindepth", "1", "-maxdepth", "1", "-print0"].map(OsStr::new);
        let output = self.output(&[OsStr::new("find"), &directory].into_iter().chain(find).collect::<Vec<_>>()).await?;
        let names = output.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names
            .filter_map(|path| path.rsplit(|byte| *byte == b'/').next())
            .map(|name| OsString::from_vec(name.to_vec()))
            .collect())
    }

    async fn glob(&self, _pattern: &str) -> io::Result<Vec<PathBuf>> {
        Err(unsupported("glob"))
    }

    async fn make_directory(&self, path: &Path) -> io::Result<()> {
        self.output(&[OsStr::new("mkdir"), OsStr::new("-p"), OsStr::new("--"), path.as_os_str()]).await.map(drop)
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.output(&[OsStr::new("rm"), OsStr::new("--"), path.as_os_str()]).await.map(drop)
    }

    async fn read(&self, path: &Path, offset: u64) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        let from = format!("+{}", offset.saturating_add(1));
        let exec = ssh::Exec::argv([b"tail".as_slice(), b"-c", from.as_bytes(), b"--", path.as_os_str().as_bytes()]);
        let mut process = match self.login.session.exec(exec).await {
            Ok(process) => process,
            Err(error) => return Err(self.exec_error(error).await),
        };
        let (reader, mut writer) = tokio::io::duplex(64 * 1024);
        // Ends with the program, or when the reader is dropped.
        tokio::spawn(async move {
            while let Ok(Some(event)) = process.next().await {
                if let ssh::Event::Stdout(bytes) = event
                    && tokio::io::AsyncWriteExt::write_all(&mut writer, &bytes).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(Box::new(reader))
    }

    async fn write(&self, _path: &Path, _mode: Option<u32>) -> io::Result<Box<dyn AsyncWrite + Send + Unpin>> {
        Err(unsupported("a download"))
    }

    async fn pack(&self, _path: &Path, _compression: Compression) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        Err(unsupported("an upload of a directory"))
    }
}

impl Guest {
    async fn exec_error(&self, error: ssh::ExecError) -> io::Error {
        match error {
            ssh::ExecError::Lost(lost) => self.lost(&lost).await,
            other => io::Error::other(other),
        }
    }

    /// The error that says that the guest itself is gone.
    async fn lost(&self, lost: &ssh::Lost) -> io::Error {
        io::Error::new(io::ErrorKind::NotConnected, cause(&self.fate, lost).await)
    }

    async fn spawn_error(&self, program: &Program, error: ssh::ExecError) -> SpawnError {
        match error {
            ssh::ExecError::EnterDir { .. } | ssh::ExecError::MakeDir { .. } => {
                SpawnError::Workdir { workdir: program.workdir.clone(), source: io::Error::other(error) }
            }
            ssh::ExecError::Lost(lost) => SpawnError::Lost(cause(&self.fate, &lost).await),
            other => SpawnError::Other(io::Error::other(other)),
        }
    }
}

/// Why a session was lost: most often because its QEMU ended, which is seen a moment later.
pub(crate) async fn cause(fate: &Fate, lost: &ssh::Lost) -> String {
    tokio::time::timeout(CAUSE, fate.gone())
        .await
        .unwrap_or_else(|_| format!("the ssh session with vm '{}' was lost: {lost}", fate.vm()))
}

/// The variables that differ from the guest's own; without a value, those that are to be removed.
fn changed<'a>(
    own: &'a [(String, String)],
    wanted: &'a [(OsString, OsString)],
) -> io::Result<Vec<(&'a str, Option<&'a OsStr>)>> {
    let mut changes = Vec::new();
    for (name, value) in wanted {
        let name = name.to_str().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("the environment variable {name:?} is not UTF-8"))
        })?;
        if !own.iter().any(|(own_name, own_value)| own_name == name && OsStr::new(own_value) == value) {
            changes.push((name, Some(value.as_os_str())));
        }
    }
    let removed = own.iter().filter(|(name, _)| !wanted.iter().any(|(wanted, _)| wanted == OsStr::new(name)));
    changes.extend(removed.map(|(name, _)| (name.as_str(), None)));
    Ok(changes)
}

/// Reads `stat -c '%f %i ...'`: the mode is hexadecimal, the rest decimal.
fn parse_stat(line: &str) -> Option<[i64; 10]> {
    let mut fields = line.split_whitespace();
    let mut numbers = [0; 10];
    numbers[0] = i64::from_str_radix(fields.next()?, 16).ok()?;
    for number in &mut numbers[1..] {
        *number = fields.next()?.parse().ok()?;
    }
    fields.next().is_none().then_some(numbers)
}

struct GuestProcess {
    fate: Fate,
    process: ssh::Process,
    /// How it ended, while its output is still awaited.
    exited: Option<Ending>,
    /// Until when its output is awaited, once nobody waits for more.
    left: Option<Instant>,
    lost: Option<ssh::Lost>,
}

impl GuestProcess {
    /// The next thing the session says of it; nothing if all was said or is waited for no longer.
    async fn next(&mut self) -> Result<Option<ssh::Event>, ssh::Lost> {
        match self.left {
            None => self.process.next().await,
            Some(until) => tokio::time::timeout_at(until, self.process.next()).await.unwrap_or(Ok(None)),
        }
    }
}

#[async_trait]
impl Process for GuestProcess {
    async fn event(&mut self) -> Event {
        if self.lost.is_none() {
            match self.next().await {
                Ok(Some(ssh::Event::Stdout(bytes))) => return Event::Stdout(bytes),
                Ok(Some(ssh::Event::Stderr(bytes))) => return Event::Stderr(bytes),
                Ok(Some(ssh::Event::Exited(exit))) => {
                    self.exited = Some(ending(&exit));
                    return Event::Exited;
                }
                Ok(None) => {
                    let nothing = || Ending::Lost { reason: "the guest did not say how the program ended".to_owned() };
                    return Event::Ended(self.exited.take().unwrap_or_else(nothing));
                }
                Err(lost) => self.lost = Some(lost),
            }
        }
        let reason = match &self.lost {
            Some(lost) => cause(&self.fate, lost).await,
            None => self.fate.gone().await,
        };
        Event::Ended(Ending::Lost { reason })
    }

    async fn signal(&mut self, signal: &str) -> io::Result<()> {
        let signal =
            ssh::Signal::from_str(signal).map_err(|unknown| io::Error::new(io::ErrorKind::InvalidInput, unknown))?;
        self.process.signal(signal).await.map(drop).map_err(io::Error::other)
    }

    fn leave(&mut self) {
        self.left.get_or_insert(Instant::now() + LAST_OUTPUT);
    }
}

fn ending(exit: &ssh::Exit) -> Ending {
    match exit {
        ssh::Exit::Code(code) => Ending::Exited { status: i32::try_from(*code).unwrap_or(-1) },
        ssh::Exit::Signal { name, .. } => Ending::Signalled {
            // Numbers as on Linux, where this runs; a name that Linux lacks is as good as a kill.
            signal: nix::sys::signal::Signal::from_str(&format!("SIG{name}"))
                .map_or(nix::libc::SIGKILL, |signal| signal as i32),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_sent_to_the_guest() {
        let own = [("A", "1"), ("B", "2"), ("C", "3")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let wanted = [("A", "1"), ("B", "two"), ("D", "4")].map(|(k, v)| (OsString::from(k), OsString::from(v)));
        let expected = vec![("B", Some(OsStr::new("two"))), ("D", Some(OsStr::new("4"))), ("C", None)];
        assert_eq!(changed(&own, &wanted).unwrap(), expected);
    }

    #[test]
    fn stat_is_read_from_its_line() {
        let check = |line: &str, expected| assert_eq!(parse_stat(line), expected, "{line}");
        check("81a4 11 65024 1 1000 1000 5 3 2 1\n", Some([0o100644, 11, 65024, 1, 1000, 1000, 5, 3, 2, 1]));
        check("81a4 11 65024 1 1000 1000 5 3 2", None);
        check("81a4 11 65024 1 1000 1000 5 3 2 1 0", None);
        check("mode", None);
    }

    #[test]
    fn a_tools_complaint_is_an_errno() {
        let check = |text: &str, errno| assert_eq!(refusal(text).raw_os_error(), errno, "{text}");
        check("stat: cannot statx '/x': No such file or directory\n", Some(nix::libc::ENOENT));
        check("mkdir: can't create directory '/y': Permission denied", Some(nix::libc::EACCES));
        check("something else", None);
    }
}
