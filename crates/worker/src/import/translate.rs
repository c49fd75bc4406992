//! From the call that makes a Buildbot worker (4.3.0, and back to 0.9) to this worker's settings.

use std::path::Path;

use super::arguments::{Arguments, Wrong, located, place, text};
use super::endpoint::{self, Endpoint, Kind};
use super::master::Master;
use super::report::{Report, shown};
use super::scope::{Located, Value, WorkerCall, normalized};
use super::settings::Settings;
use super::tac::Effect;
use crate::config::MasterAddress;

/// What `create-worker` writes unless it is told otherwise, in seconds.
const CREATED_MAXDELAY: i64 = 300;

/// The default of `connection.dead_after`, in seconds.
const DEAD_AFTER: i64 = 120;

/// How many arguments have had the same places in all releases: host, port, name, passwd, basedir, keepalive.
const PLACES: usize = 6;

/// The most statements of their own that are told one by one.
const MAX_EFFECTS: usize = 20;

/// Translates the call of a worker in `directory`, which is absolute.
pub(super) fn translate(directory: &Path, call: WorkerCall, effects: &[Effect]) -> (Settings, Report) {
    let mut translation = Translation { arguments: Arguments::new(call.arguments), report: Report::default() };
    if call.conditional {
        let remark =
            format!("{}: the worker is made in a block that may not run; taken as if it ran", place(call.line));
        translation.report.different.push(remark);
    }
    let (master, connect_timeout) = translation.master();
    let settings = Settings {
        name: translation.name(),
        master,
        password: translation.password(),
        basedir: translation.basedir(directory),
        delete_leftover_dirs: translation.delete_leftover_dirs(),
        connect_timeout,
        retry_max: translation.retry_max(),
    };
    translation.keepalive();
    translation.process_settings();
    let Translation { arguments, mut report } = translation;
    other_arguments(arguments, &mut report);
    // It has no argument.
    report.different.push(
        "the log goes to standard error instead of twistd.log, and is not rotated: journald or what starts kvm-worker \
         keeps it"
            .to_owned(),
    );
    other_statements(effects, &mut report);
    (settings, report)
}

struct Translation {
    arguments: Arguments,
    report: Report,
}

impl Translation {
    fn name(&mut self) -> Option<String> {
        let given = self.arguments.required(2, "name");
        let name = text(&given.value).and_then(|text| match text.contains(':') {
            true => Err("has a colon, which the login cannot carry"),
            false => Ok(text),
        });
        match located(&given, "the worker's name", name) {
            Ok(name) => {
                self.carry("worker.name", &name, given.line);
                Some(name)
            }
            Err(wrong) => {
                self.leave("worker.name", wrong, "the name that the master knows");
                None
            }
        }
    }

    fn password(&mut self) -> Option<String> {
        let given = self.arguments.required(3, "passwd");
        let (line, text) = (given.line, text(&given.value));
        let text = text.and_then(|text| match text {
            text if text.contains(['\n', '\r']) => Err("has more than one line"),
            text if text.len() >= 4096 => Err("is too long"),
            text => Ok(text),
        });
        match text {
            Ok(password) => {
                self.report.carried.push(format!("the password ({}), which belongs in a file of its own", place(line)));
                Some(password)
            }
            Err(why) => {
                let remark =
                    format!("worker.password_file: {}: the password {why}; write it into that file", place(line));
                self.report.by_hand.push(remark);
                None
            }
        }
    }

    /// The master's address, and how long an attempt to connect may take if it was said.
    fn master(&mut self) -> (Option<MasterAddress>, Option<i64>) {
        match Master::take(&mut self.arguments) {
            Ok(Master { address, endpoint, line }) => {
                self.carry("worker.master", &address.to_string(), line);
                self.proxy(&address);
                (Some(address), self.of_endpoint(&endpoint, line))
            }
            Err(wrong) => {
                self.leave("worker.master", wrong, "\"pb://HOST:PORT\", or pbs://, ws:// or wss://");
                (None, None)
            }
        }
    }

    /// What a connection string says beside host and port.
    fn of_endpoint(&mut self, endpoint: &Endpoint, line: usize) -> Option<i64> {
        let place = place(line);
        if let Some(directory) = &endpoint.authorities {
            self.report.by_hand.push(format!(
                "worker.ca_file: {place}: the master's certificate is vouched for by those in {}; put them into one file \
                 (cat DIRECTORY/*.pem >FILE) and set worker.ca_file to it",
                shown(directory),
            ));
        } else if endpoint.kind == Kind::Ssl {
            self.report.different.push(format!(
                "ssl: ({place}): Buildbot's worker does not check the master's certificate then; here it is always \
                 checked, against the system's authorities or worker.ca_file",
            ));
        }
        for name in &endpoint.others {
            let remedy = match name.as_str() {
                "certificate" | "privateKey" | "certKey" => "kvm-worker has no certificate of its own to show",
                "bindAddress" => "the host's routes decide which address kvm-worker comes from",
                _ => "there is nothing like it here",
            };
            self.report.dropped.push(format!("{} of the connection string ({place}): {remedy}", shown(name)));
        }
        let timeout = endpoint.timeout?.clamp(1, 600);
        self.report.carried.push(format!("connection.connect_timeout = {timeout} ({place})"));
        Some(timeout)
    }

    fn proxy(&mut self, master: &MasterAddress) {
        let Some(proxy) = self.arguments.given("proxy_connection_string") else { return };
        let tunnel = match text(&proxy.value).and_then(|text| endpoint::parse(&text)) {
            Ok(proxy) => format!(
                ", such as `socat TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr PROXY:{}:{},proxyport={}`",
                proxy.host,
                master.authority(),
                proxy.port,
                port = master.port,
            ),
            Err(_) => String::new(),
        };
        self.report.by_hand.push(format!(
            "worker.master: {}: kvm-worker does not go through a proxy; where it has to, run a tunnel{tunnel}, and let \
             worker.master name its near end",
            place(proxy.line),
        ));
    }

    fn basedir(&mut self, directory: &Path) -> std::path::PathBuf {
        let given = self.arguments.required(4, "basedir");
        match text(&given.value) {
            Ok(text) => {
                let basedir = normalized(&directory.join(text));
                self.carry("worker.basedir", &basedir.to_string_lossy(), given.line);
                basedir
            }
            Err(why) => {
                self.report.by_hand.push(format!(
                    "worker.basedir: {}: the basedir {why}; {} stands there now: see that it is right",
                    place(given.line),
                    shown(&directory.to_string_lossy()),
                ));
                directory.to_owned()
            }
        }
    }

    fn delete_leftover_dirs(&mut self) -> bool {
        let Some((line, number)) = self.number(None, "delete_leftover_dirs", "worker.delete_leftover_dirs") else {
            return false;
        };
        if number != 0 {
            self.report.carried.push(format!("worker.delete_leftover_dirs = true ({})", place(line)));
        }
        number != 0
    }

    /// Buildbot's worker says `keepalive` that often and does not look for the answer. Here a line without one is given
    /// up, so that asking more often would also mean to give up sooner a master that is busy: that is for a person to
    /// decide.
    fn keepalive(&mut self) {
        let Some((line, seconds)) = self.number(Some(5), "keepalive", "connection.dead_after") else { return };
        let often = DEAD_AFTER / 3;
        let mut remark = format!(
            "keepalive = {seconds} ({}): the master is asked for a sign of life every {often} s, and a line that is silent \
             for {DEAD_AFTER} s is made anew (connection.dead_after = {DEAD_AFTER}, its default)",
            place(line),
        );
        if (1..often).contains(&seconds) {
            remark += &format!(
                "; if a firewall forgets idle connections sooner, set it to {}, but a master that is busy for so long \
                 loses its builds then",
                (seconds * 3).max(3),
            );
        }
        self.report.different.push(remark);
    }

    fn retry_max(&mut self) -> Option<i64> {
        let (line, seconds) = self.number(None, "maxdelay", "connection.retry_max")?;
        let place = place(line);
        if seconds == CREATED_MAXDELAY {
            self.report.different.push(format!(
                "maxdelay = {seconds} ({place}): written by create-worker, but not used by Buildbot 4.3, which waits for a \
                 minute at most; so does connection.retry_max = 60, its default",
            ));
            return None;
        }
        let seconds = seconds.clamp(1, 3600);
        self.report.different.push(format!("maxdelay ({place}): connection.retry_max = {seconds}"));
        Some(seconds)
    }

    /// What belongs to the process and to whatever starts it.
    fn process_settings(&mut self) {
        if let Some(umask) = self.arguments.given("umask") {
            let mask = match umask.value {
                Value::Number(mask @ 0..=0o777) => format!("{mask:04o}"),
                _ => "MASK".to_owned(),
            };
            self.drop(
                "umask",
                &umask,
                &format!("set UMask={mask} in the systemd unit, or umask {mask} in what starts kvm-worker"),
            );
        }
        if let Some(numcpus) = self.arguments.given("numcpus") {
            self.drop(
                "numcpus",
                &numcpus,
                "the master is told how many processors kvm-worker may use; CPUAffinity= in the systemd unit lowers that",
            );
        }
        if let Some(allow_shutdown) = self.arguments.given("allow_shutdown") {
            self.drop(
                "allow_shutdown",
                &allow_shutdown,
                "no SIGHUP and no shutdown.stamp here; SIGUSR1 lets the builds finish first, and so does a \
                 graceful shutdown on the master's page",
            );
        }
        if let Some(retries) = self.arguments.given("maxRetries").filter(|retries| retries.value != Value::Number(0)) {
            self.drop("maxRetries", &retries, "kvm-worker tries to connect until it is told to stop");
        }
        if let Some(encoding) = self.arguments.given("unicode_encoding") {
            let is_utf8 = matches!(&encoding.value, Value::Text(text) if ["utf-8", "utf8"].contains(&text.to_lowercase().as_str()));
            if !is_utf8 {
                self.drop("unicode_encoding", &encoding, "text is UTF-8 here, as it is by default there");
            }
        }
    }

    fn drop(&mut self, name: &str, given: &Located, remedy: &str) {
        let value = match &given.value {
            Value::Text(text) => format!("{name} = {}", shown(text)),
            Value::Number(mask) if name == "umask" => format!("{name} = {mask:#o}"),
            Value::Number(number) => format!("{name} = {number}"),
            Value::Unknown(why) => format!("{name}, which {why}"),
            _ => name.to_owned(),
        };
        self.report.dropped.push(format!("{value} ({}): {remedy}", place(given.line)));
    }

    fn carry(&mut self, key: &str, value: &str, line: usize) {
        self.report.carried.push(format!("{key} = {} ({})", shown(value), place(line)));
    }

    fn leave(&mut self, key: &str, Wrong { line, subject, why }: Wrong, what: &str) {
        self.report.by_hand.push(format!("{key}: {}: {subject} {why}; set it to {what}", place(line)));
    }

    /// A number that is given and is not None. What it can't be told is left at its default, and said.
    fn number(&mut self, position: Option<usize>, name: &str, key: &str) -> Option<(usize, i64)> {
        let given = self.arguments.take(position, name)?;
        let why = match given.value {
            Value::Number(number) => return Some((given.line, number)),
            Value::Bool(truth) => return Some((given.line, i64::from(truth))),
            Value::None => return None,
            Value::Unknown(why) => why,
            _ => "is not a number",
        };
        self.report.by_hand.push(format!("{key}: {}: {name} {why}; the key is left at its default", place(given.line)));
        None
    }
}

fn other_arguments(arguments: Arguments, report: &mut Report) {
    for (at, argument) in arguments.rest(PLACES) {
        let meaning = match argument.name.as_deref() {
            // Buildbot itself does nothing with them.
            Some("keepaliveTimeout" | "usePTY") => continue,
            None => format!("argument {at} has no name; see what it means in that release of Buildbot"),
            Some("*") => "arguments come from elsewhere; see what they are".to_owned(),
            Some(name) => format!("import does not know what {} is", shown(name)),
        };
        report.dropped.push(format!("{}: {meaning}", place(argument.value.line)));
    }
}

fn other_statements(effects: &[Effect], report: &mut Report) {
    for effect in effects.iter().take(MAX_EFFECTS) {
        let remedy = match effect.target.as_str() {
            "" => "a statement that import does not understand; see whether builds need what it does".to_owned(),
            "os.umask" => "set UMask= in the systemd unit".to_owned(),
            "os.nice" => "set Nice= in the systemd unit".to_owned(),
            "os.putenv" => "set the variable with Environment= in the systemd unit".to_owned(),
            "service.Application" => {
                "start kvm-worker as that user and group, with User= and Group= in the systemd unit".to_owned()
            }
            target if target.starts_with("os.environ") => {
                "set the variable with Environment= in the systemd unit".to_owned()
            }
            target => format!("{} is more than a setting; see whether builds need what it does", shown(target)),
        };
        report.dropped.push(format!("{}: {remedy}", place(effect.line)));
    }
    if let Some(more) = effects.len().checked_sub(MAX_EFFECTS).filter(|more| *more > 0) {
        report.dropped.push(format!("buildbot.tac: {more} more statements that do something of their own"));
    }
}
