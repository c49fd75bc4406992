//! How a command starts in the guest, and what reports that back.
//!
//! ```text
//! request    <a shell that reads one line, evaluates it and becomes the command>
//! stdin      <the script: one line><the command's own standard input…>
//! stderr     <noise of the login shell><nonce> run <pid> <start time>\n<the command's own standard error…>
//! stdout     <noise of the login shell><nonce>\n<the command's own standard output…>
//! ```
//!
//! The script is sent when the server has taken the request, so that nothing runs on a channel that is closed before that. It
//! comes over standard input because arguments are readable by every user of the guest; exactly one line is read, so what
//! follows is the command's. sshd closes over nothing that would kill a process tree, and has no request for a process id:
//! hence the session of its own and the report. What the shell is told in is the [`Dialect`]'s matter.

use bytes::{Buf, Bytes, BytesMut};
use rand::Rng;

use crate::dialect::{Dialect, Start};
use crate::exec::{BadExec, Command, Exec, Pty};

/// The environment variable that marks a command's processes, also those that left its session.
pub(crate) const MARK: &str = "SSH_EXEC_ID";

/// Noise of login shells is cut off here, in bytes.
const MAX_NOISE: usize = 64 * 1024;

/// The longest report line, in bytes: a nonce, a verb and two numbers.
const MAX_REPORT: usize = 128;

/// Returns what is wrong with a request, before any guest is asked.
pub(crate) fn validate(exec: &Exec) -> Result<(), BadExec> {
    let no_nul = |bytes: &[u8], what: &str| match bytes.contains(&0) {
        true => Err(BadExec::Nul { what: what.to_owned() }),
        false => Ok(()),
    };
    match &exec.command {
        Command::Argv(argv) => {
            if argv.first().is_none_or(Vec::is_empty) {
                return Err(BadExec::Empty);
            }
            argv.iter().try_for_each(|argument| no_nul(argument, "the command"))?;
        }
        Command::Shell(line) => no_nul(line, "the command")?,
    }
    if let Some((dir, _)) = &exec.dir {
        no_nul(dir, "the working directory")?;
    }
    for (name, value) in &exec.env {
        if !is_name(name) {
            return Err(BadExec::EnvName { name: name.clone() });
        }
        if let Some(value) = value {
            no_nul(value, &format!("environment variable {name}"))?;
        }
    }
    if let Some(pty) = &exec.pty {
        no_nul(pty.term.as_bytes(), "the terminal type")?;
    }
    match exec.umask {
        Some(umask) if umask > 0o777 => Err(BadExec::Umask { umask }),
        _ => Ok(()),
    }
}

/// Whether the system takes it for a variable's name.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// What to send to the guest for one command.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// The exec request.
    pub request: Vec<u8>,
    /// The line for standard input.
    pub script: Bytes,
    /// What marks our own lines in the output, and the command's environment.
    pub nonce: String,
}

impl Launch {
    pub(crate) fn new(exec: &Exec, dialect: &Dialect) -> Result<Self, BadExec> {
        validate(exec)?;
        let nonce = nonce();
        let Start { request, script } = dialect.launch(exec, &nonce)?;
        Ok(Self { request, script, nonce })
    }
}

/// Returns a word that no output contains by chance.
pub(crate) fn nonce() -> String {
    format!("x{:016x}", rand::rng().random::<u64>())
}

/// What the script reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// The terminal is raw: send the script.
    Ready,
    /// The command runs under this pid; `start` is its start time in the guest's clock ticks, 0 if unknown.
    Run { pid: u32, start: u64 },
    /// It does not: `step` is `mkdir` or `cd`, the reason follows as text; or `missing` or `denied`, and it is the
    /// program.
    Fail { step: String },
}

/// Finds our lines in one stream of output and cuts them out, with everything before them.
pub(crate) struct Scanner {
    nonce: Vec<u8>,
    seen: BytesMut,
}

impl Scanner {
    pub(crate) fn new(nonce: &str) -> Self {
        Self { nonce: nonce.as_bytes().to_vec(), seen: BytesMut::new() }
    }

    /// Takes output in. Returns our next line without the nonce; what follows it stays for [`Scanner::rest`].
    pub(crate) fn feed(&mut self, data: &[u8]) -> Option<String> {
        self.seen.extend_from_slice(data);
        loop {
            let start = self.seen.windows(self.nonce.len()).position(|window| window == self.nonce);
            let Some(start) = start else {
                self.forget_noise();
                return None;
            };
            let begin = start + self.nonce.len();
            let line = &self.seen[begin..];
            if let Some(end) = line.iter().take(MAX_REPORT + 1).position(|byte| *byte == b'\n') {
                let text = String::from_utf8_lossy(&line[..end]).trim().to_owned();
                self.seen.advance(begin + end + 1);
                return Some(text);
            }
            if line.len() <= MAX_REPORT {
                return None;
            }
            // Too long for a line of ours: noise, of somebody who knows the nonce.
            self.seen.advance(begin);
        }
    }

    /// Returns what was taken in after the last line of ours, or all of it if there was none.
    pub(crate) fn rest(&mut self) -> Bytes {
        self.seen.split().freeze()
    }

    /// Keeps the beginning, which says why a login shell failed, and the end, where a nonce may have begun.
    fn forget_noise(&mut self) {
        if self.seen.len() > MAX_NOISE {
            let tail = self.seen.len() - self.nonce.len();
            let kept_tail = self.seen.split_off(tail);
            self.seen.truncate(MAX_NOISE / 2);
            self.seen.unsplit(kept_tail);
        }
    }
}

impl Report {
    /// Parses a line that [`Scanner::feed`] returned.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        match (words.next()?, words.next(), words.next()) {
            ("ready", None, None) => Some(Self::Ready),
            ("run", Some(pid), Some(start)) => Some(Self::Run { pid: pid.parse().ok()?, start: start.parse().ok()? }),
            ("fail", Some(step), None) => Some(Self::Fail { step: step.to_owned() }),
            _ => None,
        }
    }
}

impl Pty {
    /// The end-of-file character of a terminal in its usual mode.
    pub(crate) const EOF: &'static [u8] = b"\x04";
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command as Child, Stdio};

    use proptest::prelude::*;

    use super::*;
    use crate::Missing;

    /// What a command started by the real script in a real shell got and said.
    #[derive(Debug, PartialEq, Eq)]
    struct Ran {
        stdout: Vec<u8>,
        stderr: Vec<u8>,
        report: Option<Report>,
        code: Option<i32>,
    }

    /// Runs a request as sshd would, in `shell` as the login shell.
    fn run(shell: &[&str], exec: &Exec, stdin: &[u8]) -> Ran {
        let launch = Launch::new(exec, &Dialect::LINUX).expect("a valid request");
        let mut child = Child::new(shell[0])
            .args(&shell[1..])
            .arg("-c")
            .arg(String::from_utf8(launch.request).expect("the request is text"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the shell");
        let mut input = child.stdin.take().expect("stdin is piped");
        input.write_all(&launch.script).expect("write the script");
        // The command may not read its input.
        let _ = input.write_all(stdin);
        drop(input);
        let output = child.wait_with_output().expect("wait for the shell");
        let mut stdout = Scanner::new(&launch.nonce);
        let mut stderr = Scanner::new(&launch.nonce);
        stdout.feed(&output.stdout);
        let report = stderr.feed(&output.stderr).as_deref().and_then(Report::parse);
        Ran { stdout: stdout.rest().to_vec(), stderr: stderr.rest().to_vec(), report, code: output.status.code() }
    }

    const SHELLS: [&[&str]; 3] = [&["/bin/sh"], &["bash"], &["busybox", "sh"]];

    /// Checks the standard output in each shell, and that the command ended well.
    fn check(exec: Exec, stdin: &[u8], expected: &[u8]) {
        for shell in SHELLS {
            let ran = run(shell, &exec, stdin);
            assert_eq!((ran.stdout.as_slice(), ran.code), (expected, Some(0)), "{shell:?}: {:?}", ran.stderr);
            assert!(matches!(ran.report, Some(Report::Run { pid: 1.., start: 1.. })), "{:?}", ran.report);
        }
    }

    #[test]
    fn a_command_gets_its_arguments_environment_directory_and_input() {
        check(
            Exec::argv(["printf", "%s|", "a b", "it's", "$HOME", "line\nbreak", ""]),
            b"",
            b"a b|it's|$HOME|line\nbreak||",
        );
        check(Exec::shell("printf '%s\n' \"$0\"\nexit 0"), b"", b"/bin/sh\n");
        check(Exec::argv(["printenv", "A"]).env("A", "x\ny'z "), b"", b"x\ny'z \n");
        check(Exec::shell("echo ${HOME-gone}").env_remove("HOME"), b"", b"gone\n");
        check(
            Exec::argv(["/usr/bin/printenv", "UID", "IFS"]).env("UID", "7").env("IFS", "0123456789"),
            b"",
            b"7\n0123456789\n",
        );
        check(
            Exec::argv(["/usr/bin/printenv", "a.b", "%F()%"]).env("a.b", "1 2").env("%F()%", "it's"),
            b"",
            b"1 2\nit's\n",
        );
        check(Exec::argv(["pwd"]).dir("/usr/bin", Missing::Fail), b"", b"/usr/bin\n");
        check(Exec::shell("umask").umask(0o027), b"", b"0027\n");
        check(Exec::argv(["cat"]), b"first\nsecond\0\xff", b"first\nsecond\0\xff");
        check(Exec::argv(["cat"]), b"", b"");
    }

    #[test]
    fn a_directory_that_cannot_be_entered_is_reported_and_nothing_runs() {
        for shell in SHELLS {
            for (exec, step) in [
                (Exec::argv(["echo", "ran"]).dir("/nowhere/at all", Missing::Fail), "cd"),
                (Exec::argv(["echo", "ran"]).dir("/dev/null/x", Missing::Make), "mkdir"),
            ] {
                let ran = run(shell, &exec, b"");
                assert_eq!(ran.report, Some(Report::Fail { step: step.to_owned() }));
                assert_eq!((ran.stdout.as_slice(), ran.code), (&b""[..], Some(125)));
                assert!(!ran.stderr.is_empty());
            }
        }
    }

    #[test]
    fn a_program_that_cannot_be_run_is_told_from_one_that_fails() {
        for shell in SHELLS {
            let check = |program: &str, step: &str| {
                let ran = run(shell, &Exec::argv([program]), b"");
                assert_eq!(ran.report, Some(Report::Fail { step: step.to_owned() }), "{program} in {shell:?}");
                assert_eq!(ran.code, Some(125));
            };
            check("no-such-program", "missing");
            check("/no/such/program", "missing");
            check("/etc/passwd", "denied");
            check("/etc", "denied");
            // What only the system finds out has the usual codes.
            assert_eq!(run(shell, &Exec::shell("no-such-program"), b"").code, Some(127));
            assert_eq!(run(shell, &Exec::shell("/etc/passwd"), b"").code, Some(126));
        }
    }

    #[test]
    fn requests_no_guest_could_run_are_refused() {
        let refused = |exec: Exec, expected: BadExec| assert_eq!(exec.validate(), Err(expected));
        refused(Exec::argv(Vec::<&str>::new()), BadExec::Empty);
        refused(Exec::argv([""]), BadExec::Empty);
        refused(Exec::argv(["a\0"]), BadExec::Nul { what: "the command".into() });
        refused(Exec::shell("true").env("A", "\0"), BadExec::Nul { what: "environment variable A".into() });
        refused(Exec::shell("true").env("A=B", ""), BadExec::EnvName { name: "A=B".into() });
        refused(Exec::shell("true").env_remove(""), BadExec::EnvName { name: "".into() });
        refused(Exec::shell("true").dir("\0", Missing::Make), BadExec::Nul { what: "the working directory".into() });
        refused(Exec::shell("true").umask(0o1000), BadExec::Umask { umask: 0o1000 });
        assert_eq!(Exec::shell("").validate(), Ok(()));
    }

    #[test]
    fn our_lines_are_found_whatever_surrounds_them_and_however_they_arrive() {
        let text = b"motd\nx1 ru\xffx12 run 45 6\ncommand's own x12 run";
        for split in 0..text.len() {
            let mut scanner = Scanner::new("x12");
            let first = scanner.feed(&text[..split]);
            let found_early = first.is_some();
            let line = first.or_else(|| scanner.feed(&text[split..]));
            let mut rest = scanner.rest().to_vec();
            if found_early {
                rest.extend(&text[split..]);
            }
            assert_eq!(line.as_deref().and_then(Report::parse), Some(Report::Run { pid: 45, start: 6 }), "{split}");
            assert_eq!(rest, b"command's own x12 run", "{split}");
        }
    }

    #[test]
    fn endless_noise_is_forgotten() {
        let mut scanner = Scanner::new("x12");
        for _ in 0..100 {
            assert_eq!(scanner.feed(&[b'.'; 10_000]), None);
            assert!(scanner.seen.len() <= MAX_NOISE + 10_000);
        }
        assert_eq!(scanner.feed(b"x1"), None);
        assert_eq!(scanner.feed(b"2 ready\n"), Some("ready".to_owned()));
    }

    #[test]
    fn endless_noise_after_a_nonce_is_forgotten_too() {
        let mut scanner = Scanner::new("x12");
        for _ in 0..100 {
            assert_eq!(scanner.feed(b"x12 ready"), None);
            assert_eq!(scanner.feed(&[b'.'; 10_000]), None);
            assert!(scanner.seen.len() <= MAX_NOISE + 10_000);
        }
        assert_eq!(scanner.feed(b"\nx12 ready\n"), Some("ready".to_owned()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_bytes_but_nul_reach_the_command(
            arguments in prop::collection::vec(prop::collection::vec(1u8.., 0..30), 1..5),
            value in prop::collection::vec(1u8.., 0..60),
            input in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut argv = vec![b"sh".to_vec(), b"-c".to_vec(), b"printf '%s\\0' \"$@\" \"$V\"; cat".to_vec(), b"sh".to_vec()];
            argv.extend(arguments.iter().cloned());
            let mut expected = Vec::new();
            for word in arguments.iter().chain([&value]) {
                expected.extend(word);
                expected.push(0);
            }
            expected.extend(&input);
            let exec = Exec::argv(argv).env("V", value);
            for shell in SHELLS {
                prop_assert_eq!(&run(shell, &exec, &input).stdout, &expected);
            }
        }
    }
}
