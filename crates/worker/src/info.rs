//! What the worker says of itself when the master asks (worker info, Buildbot 4.3.0).

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::{fs, io};

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use protocol::command::COMMANDS;
use protocol::{Value, WorkerInfo};

use crate::config::Config;
use crate::host_access;
use crate::pool::ReadyImages;

/// The version of Buildbot's worker that this one stands in for.
pub(crate) const BUILDBOT_VERSION: &str = "4.3.0";

/// The largest file of `info/` that is passed on, in bytes.
const MAX_INFO_FILE: u64 = 64 * 1024;

/// How many of them.
const MAX_INFO_FILES: usize = 100;

/// Texts that make an environment variable's name look like that of a secret, wherever they are in it.
const SECRET_TEXTS: [&str; 9] =
    ["PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "TOKEN", "CREDENTIAL", "PRIVATE_KEY", "API_KEY", "APIKEY"];

/// The same for the last of its words.
const SECRET_ENDS: [&str; 4] = ["PASS", "PAT", "PWD", "AUTH"];

/// What builds need to know of a host that they don't run on: over msgpack a master makes paths of some of it.
const NEEDED: [&str; 8] = ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER"];

/// Variables that systemd sets for the worker alone: sockets, credentials and watchdogs that a build has no business
/// with, or that would have its programs believe they are the service (systemd.exec(5), sd_notify(3)).
const SERVICE_VARIABLES: [&str; 12] = [
    "CREDENTIALS_DIRECTORY",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "MAINPID",
    "NOTIFY_SOCKET",
    "RUNTIME_DIRECTORY",
    "SYSTEMD_EXEC_PID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// What the variables of the worker's own configuration begin with.
const OWN_PREFIX: &str = "KVM_WORKER__";

/// The variable that names the configuration's file.
pub(crate) const CONFIG_VARIABLE: &str = "KVM_WORKER_CONFIG";

/// The state of the pool, which changes from one question to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolState {
    /// How many machines may run at a time.
    pub slots: u16,
    /// How many more could be started now.
    pub free: u16,
    /// How many wait to be started.
    pub waiting: usize,
    /// How many machines are ready for builds to come.
    pub warm: u16,
    /// How many machines are held for people.
    pub held: usize,
    /// What the worker does: `running`, `paused` or `draining`.
    pub state: &'static str,
}

/// Everything the master may know. Files are read anew, so that a changed `info/host` shows after a reconnect.
pub(crate) fn worker_info(
    config: &Config,
    environment: &[(OsString, OsString)],
    pool: PoolState,
    ready: &ReadyImages,
) -> WorkerInfo {
    let mut info = directory_info(&config.worker.basedir);
    info.extend(os_release(&fs::read_to_string("/etc/os-release").unwrap_or_default()));
    let environment = environment_of_host(environment, config.worker.host_commands);
    let commands = COMMANDS.iter().map(|(name, version)| ((*name).to_owned(), Value::from(*version))).collect();
    let basedir = config.worker.basedir.to_string_lossy().into_owned();
    let images = config.images.keys().map(|name| Value::from(name.as_str())).collect();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let warm = ready.warm.iter().map(|(image, count)| (image.to_string(), Value::from(i64::from(*count))));
    let own = [
        ("environ", environment),
        ("system", "posix".into()),
        ("basedir", basedir.into()),
        ("numcpus", Value::Int(i64::try_from(processors).unwrap_or(i64::MAX))),
        ("version", BUILDBOT_VERSION.into()),
        ("worker_commands", Value::Map(commands)),
        ("delete_leftover_dirs", config.worker.delete_leftover_dirs.into()),
        ("kvm_worker_version", env!("CARGO_PKG_VERSION").into()),
        ("vm_images", Value::List(images)),
        ("vm_slots", i64::from(pool.slots).into()),
        ("vm_free", i64::from(pool.free).into()),
        ("vm_state", pool.state.into()),
        ("vm_waiting", Value::Int(i64::try_from(pool.waiting).unwrap_or(i64::MAX))),
        ("vm_warm", i64::from(pool.warm).into()),
        ("vm_templates", Value::List(ready.templates.iter().map(|image| Value::from(image.as_str())).collect())),
        ("vm_warm_images", Value::Map(warm.collect())),
        ("vm_held", Value::Int(i64::try_from(pool.held).unwrap_or(i64::MAX))),
    ];
    // A file in info/ must not stand in for what the master computes with.
    info.retain(|(key, _)| own.iter().all(|(name, _)| name != key));
    info.extend(own.map(|(name, value)| (name.to_owned(), value)));
    WorkerInfo(info)
}

/// Whether a service manager started the worker and wants to hear from it (sd_notify(3)).
pub(crate) fn is_a_service() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty())
}

/// The worker's environment as builds get it: without what concerns only this process.
pub(crate) fn environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| !is_our_own(name)).collect()
}

fn is_our_own(name: &OsStr) -> bool {
    name.as_bytes().starts_with(OWN_PREFIX.as_bytes())
        || name == CONFIG_VARIABLE
        || SERVICE_VARIABLES.iter().any(|variable| name == *variable)
}

/// The worker's environment as a master shows it: no more than is needed if no build runs in it.
fn environment_of_host(environment: &[(OsString, OsString)], host_commands: bool) -> Value {
    let text = environment.iter().filter_map(|(name, value)| Some((name.to_str()?, value.to_str()?)));
    shown_environment(text.filter(|(name, _)| host_commands || NEEDED.contains(name)))
}

/// Variables as a master shows them: without those that look like secrets.
pub(crate) fn shown_environment<'a>(variables: impl Iterator<Item = (&'a str, &'a str)>) -> Value {
    let shown = variables.filter(|(name, value)| !looks_secret(name) && !has_login(value));
    Value::Map(shown.map(|(name, value)| (name.to_owned(), Value::from(value))).collect())
}

fn looks_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    // PWD and OLDPWD are directories, and SSH_AUTH_SOCK is none.
    let end = name.split_once('_').map(|_| name.rsplit('_').next().unwrap_or_default());
    SECRET_TEXTS.iter().any(|text| name.contains(text)) || end.is_some_and(|end| SECRET_ENDS.contains(&end))
}

/// Whether there is a URL in it that says who logs in.
fn has_login(value: &str) -> bool {
    let ends = |char: char| matches!(char, '/' | '?' | '#') || char.is_whitespace();
    value.split("://").skip(1).any(|rest| rest.split(ends).next().is_some_and(|authority| authority.contains('@')))
}

/// The text of each file in `info/`, under the file's name. What a copy put there is nobody's way to other files.
fn directory_info(basedir: &Path) -> Vec<(String, Value)> {
    let opened = host_access::open(basedir, &basedir.join("info"), false);
    let Ok(directory) = opened else { return Vec::new() };
    let entries = directory.entries().into_iter().flatten().flatten().take(MAX_INFO_FILES);
    let mut info: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let text = info_file(&directory, &name).ok().flatten()?;
            Some((name, Value::from(String::from_utf8_lossy(&text).into_owned())))
        })
        .collect();
    info.sort_by(|(a, _), (b, _)| a.cmp(b));
    info
}

/// What is in a file; nothing if that is more than is passed on, or it is none.
fn info_file(directory: &Dir, name: &str) -> io::Result<Option<Vec<u8>>> {
    // A pipe must not hold us up.
    let file = directory.open_with(name, OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK))?;
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut text = Vec::new();
    file.take(MAX_INFO_FILE + 1).read_to_end(&mut text)?;
    Ok(Some(text).filter(|text| text.len() as u64 <= MAX_INFO_FILE))
}

/// `NAME="Debian"` becomes `os_name`, and so on (os-release(5)); empty values are left out.
fn os_release(text: &str) -> Vec<(String, Value)> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.trim().split_once('=')?;
            let value = value.trim_matches('"');
            let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            (plain && !value.is_empty()).then(|| (format!("os_{}", key.to_ascii_lowercase()), Value::from(value)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_our_own(name: &str, expected: bool) {
        assert_eq!(is_our_own(OsStr::new(name)), expected);
    }

    #[test]
    fn builds_do_not_get_what_concerns_only_the_worker() {
        check_our_own("PATH", false);
        check_our_own("LISTEN_ADDRESS", false);
        check_our_own("NOTIFY_SOCKET", true);
        check_our_own("CREDENTIALS_DIRECTORY", true);
        check_our_own("KVM_WORKER__WORKER__PASSWORD_FILE", true);
        check_our_own("KVM_WORKER_CACHE", false);
    }

    #[test]
    fn os_release_becomes_keys() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12\"\n# comment=1\nID=debian\nEMPTY=\"\"\nnonsense\n";
        let expected =
            [("os_pretty_name", "Debian GNU/Linux 12"), ("os_id", "debian")].map(|(k, v)| (k.to_owned(), v.into()));
        assert_eq!(os_release(text), expected);
    }

    #[test]
    fn files_of_info_are_passed_on_as_text() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join("info").join(name);
        assert_eq!(directory_info(directory.path()), []);
        fs::create_dir_all(path("subdirectory")).unwrap();
        fs::write(path("admin"), "me <me@example.org>\n").unwrap();
        fs::write(path("host"), b"caf\xe9").unwrap();
        fs::write(path("long"), vec![b'x'; 64 * 1024 + 1]).unwrap();
        fs::write(directory.path().join("secret"), "hunter2").unwrap();
        std::os::unix::fs::symlink("../secret", path("link")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path("far")).unwrap();
        std::os::unix::fs::symlink("host", path("near")).unwrap();
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let expected = [("admin", "me <me@example.org>\n"), ("host", "caf\u{fffd}"), ("near", "caf\u{fffd}")];
        assert_eq!(directory_info(directory.path()), expected.map(|(k, v)| (k.to_owned(), v.into())));
        fs::remove_dir_all(path("")).unwrap();
        std::os::unix::fs::symlink("/etc", directory.path().join("info")).unwrap();
        assert_eq!(directory_info(directory.path()), []);
    }

    #[test]
    fn secrets_are_told_by_their_names() {
        let check = |name: &str, expected: bool| assert_eq!(looks_secret(name), expected, "{name}");
        check("PATH", false);
        check("PWD", false);
        check("OLDPWD", false);
        check("PATCH", false);
        check("COMPASS_PATH", false);
        check("SSH_AUTH_SOCK", false);
        check("AWS_SECRET_ACCESS_KEY", true);
        check("github_token", true);
        check("PGPASSWORD", true);
        check("DB_PASS", true);
        check("GITHUB_PAT", true);
        check("MYSQL_PWD", true);
        check("NPM_AUTH", true);
    }

    #[test]
    fn logins_in_urls_are_not_shown() {
        let check = |value: &str, expected: bool| assert_eq!(has_login(value), expected, "{value}");
        check("https://proxy.example.org:3128/", false);
        check("http://example.org/a@b", false);
        check("me@example.org", false);
        check("https://me:hunter2@example.org/x", true);
        check("a https://token@example.org b", true);
        check("http://a.org https://u:p@b.org", true);
    }

    #[test]
    fn where_nothing_runs_on_the_host_its_environment_is_nobodys_business() {
        let variables = [("PATH", "/bin"), ("HOME", "/home/w"), ("DEPLOY_TARGET", "prod"), ("DB_PASS", "hunter2")]
            .map(|(name, value)| (name.into(), value.into()));
        let shown = |host_commands| match environment_of_host(&variables, host_commands) {
            Value::Map(pairs) => pairs.into_iter().map(|(name, _)| name).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(shown(true), ["PATH", "HOME", "DEPLOY_TARGET"]);
        assert_eq!(shown(false), ["PATH", "HOME"]);
    }
}
