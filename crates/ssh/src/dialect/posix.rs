//! The few lines of `sh` with which a command starts in a guest: see [`crate::launch`].

use bytes::{Bytes, BytesMut};

use super::Start;
use crate::exec::{Command, Exec, Missing};
use crate::launch::MARK;
use crate::shell::Shell;

/// Becomes a session leader where the server did not see to it (dropbear), then reads the script.
/// `setsid` would fork, and lose the exit status, in a process that leads its group already.
const LAUNCH: &str = "exec /bin/sh -c '{ read -r _ _ _ _ l_group l_session _ </proc/$$/stat; } 2>/dev/null; \
    if [ \"${l_session:-$$}\" != $$ ] && [ \"$l_group\" != $$ ] && command -v setsid >/dev/null; \
    then exec setsid /bin/sh -c \"$1\" sh; fi; eval \"$1\"' sh 'IFS= read -r l_script && eval \"$l_script\"'";

/// With a terminal the script must not be echoed nor be cut at the line discipline's 4096 bytes, so it waits until the
/// terminal is raw.
const LAUNCH_PTY: &str = "exec /bin/sh -c 'l_tty=$(stty -g) && stty raw -echo && printf \"%s\\n\" \"$1 ready\" && \
    IFS= read -r l_script && stty \"$l_tty\" && eval \"$l_script\"' sh ";

/// Variables that some shell refuses to set or gives a meaning to: `env` sets them, past the shell.
const SHELL_VARIABLES: [&str; 12] = [
    "BASHOPTS",
    "BASHPID",
    "BASH_VERSINFO",
    "EUID",
    "FUNCNAME",
    "GROUPS",
    "IFS",
    "LINENO",
    "OPTIND",
    "PPID",
    "SHELLOPTS",
    "UID",
];

/// Whether every shell can set a variable of this name.
fn is_portable(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first == b'_' || first.is_ascii_alphabetic())
        && bytes.all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
        && !SHELL_VARIABLES.contains(&name)
}

/// Starts a command.
pub(crate) fn launch(exec: &Exec, nonce: &str) -> Start {
    let request = match exec.pty {
        None => LAUNCH.to_owned(),
        Some(_) => format!("{LAUNCH_PTY}{nonce}"),
    };
    Start { request: request.into_bytes(), script: script(exec, nonce) }
}

/// Runs a script of ours with variables set.
pub(crate) fn run(script: &str, variables: &[(&str, &str)]) -> Start {
    let mut text = BytesMut::new();
    for (name, value) in variables {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b"=");
        // The values are our own: numbers, names and marks.
        text.extend_from_slice(&Shell::Posix.quote(value.as_bytes()).unwrap_or_default());
        text.extend_from_slice(b"\n");
    }
    text.extend_from_slice(script.as_bytes());
    Start { request: b"exec /bin/sh".to_vec(), script: text.freeze() }
}

/// Writes the script: one line, ending in the only newline.
fn script(exec: &Exec, nonce: &str) -> Bytes {
    let mut line = Line::new(format!(
        "l_newline=$(printf '\\nx'); l_newline=${{l_newline%x}}; unset CDPATH; \
         l_fail() {{ printf '%s\\n' \"{nonce} fail $1\" \"$2\" >&2; exit 125; }}"
    ));
    if let Some(umask) = exec.umask {
        line.raw(&format!("; umask {umask:04o}"));
    }
    if let Some((dir, missing)) = exec.dir.as_ref().filter(|(dir, _)| !dir.is_empty()) {
        line.enter(dir, *missing);
    }
    line.raw(&format!("; export {MARK}={nonce}"));
    for (name, value) in exec.env.iter().filter(|(name, _)| is_portable(name)) {
        match value {
            Some(value) => line.raw(&format!("; export {name}=")).quoted(value),
            None => line.raw(&format!("; unset {name}")),
        };
    }
    if let Command::Argv(argv) = &exec.command {
        line.find_program(argv.first().map_or(b"", Vec::as_slice));
    }
    line.raw("; l_start=; { read -r l_start </proc/$$/stat; } 2>/dev/null; set -- ${l_start##*) }");
    if exec.pty.is_none() {
        line.raw(&format!("; printf '%s\\n' {nonce}"));
    }
    line.raw(&format!("; printf '%s\\n' \"{nonce} run $$ ${{20:-0}}\" >&2; exec"));
    line.environment_past_the_shell(&exec.env);
    match &exec.command {
        Command::Argv(argv) => argv.iter().for_each(|argument| {
            line.raw(" ").quoted(argument);
        }),
        Command::Shell(command) => {
            line.raw(" /bin/sh -c ").quoted(command);
        }
    }
    line.finish()
}

/// A line of shell under construction.
struct Line(BytesMut);

impl Line {
    fn new(start: String) -> Self {
        Self(BytesMut::from(start.as_bytes()))
    }

    fn raw(&mut self, text: &str) -> &mut Self {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// Appends one word. A newline would end the line that `read` takes, so it comes from a variable.
    fn quoted(&mut self, word: &[u8]) -> &mut Self {
        let quoted = Shell::Posix.quote(word).unwrap_or_default();
        for (index, part) in quoted.split(|byte| *byte == b'\n').enumerate() {
            if index > 0 {
                self.raw("'\"$l_newline\"'");
            }
            self.0.extend_from_slice(part);
        }
        self
    }

    /// Enters the working directory. In the ordinary case that it exists nothing is forked.
    fn enter(&mut self, dir: &[u8], missing: Missing) {
        let dir = not_an_option(dir);
        self.raw("; cd -- ").quoted(&dir).raw(" 2>/dev/null || { ");
        if missing == Missing::Make {
            self.raw("l_why=$(LC_ALL=C mkdir -p -- ").quoted(&dir).raw(" 2>&1) || l_fail mkdir \"$l_why\"; ");
        }
        self.raw("l_why=$(cd -- ").quoted(&dir).raw(" 2>&1) || l_fail cd \"$l_why\"; cd -- ").quoted(&dir).raw("; }");
    }

    /// Fails while it can still be told from a program's own failure: a program that is not there, or is none.
    fn find_program(&mut self, program: &[u8]) {
        match program.contains(&b'/') {
            false => self.raw("; command -v ").quoted(program).raw(" >/dev/null 2>&1 || l_fail missing ''"),
            true => self
                .raw("; [ -e ")
                .quoted(program)
                .raw(" ] || l_fail missing ''; { [ -f ")
                .quoted(program)
                .raw(" ] && [ -x ")
                .quoted(program)
                .raw(" ]; } || l_fail denied ''"),
        };
    }

    fn environment_past_the_shell(&mut self, env: &[(String, Option<Vec<u8>>)]) {
        let mut past = env.iter().filter(|(name, _)| !is_portable(name)).peekable();
        if past.peek().is_some() {
            self.raw(" /usr/bin/env");
        }
        // env wants removals before settings; of one variable the later counts.
        let (removed, set): (Vec<_>, Vec<_>) = past.partition(|(_, value)| value.is_none());
        for (name, _) in removed {
            self.raw(" -u ").quoted(name.as_bytes());
        }
        for (name, value) in set {
            let value = value.as_deref().unwrap_or_default();
            self.raw(" ").quoted(&[name.as_bytes(), b"=", value].concat());
        }
    }

    fn finish(mut self) -> Bytes {
        self.raw("\n");
        self.0.freeze()
    }
}

/// Returns a path that `cd` and others take for a path: `-` means the previous directory.
pub(crate) fn not_an_option(path: &[u8]) -> Vec<u8> {
    match path.first() {
        Some(b'-') => [b"./", path].concat(),
        _ => path.to_vec(),
    }
}
