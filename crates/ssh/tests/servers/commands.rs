use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use ssh::{
    CopyOptions, Dialect, Event, Exec, ExecError, Exit, Missing, Output, Process, Pty, Session, Signal, Signalled,
    Timing,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::copies::host;
use crate::server::{ALL, Kind, Server};

/// No command of these tests should take that long.
const SOON: Duration = Duration::from_secs(30);

async fn output(session: &Session, exec: Exec) -> Output {
    let process = session.exec(exec).await.expect("a process");
    timeout(SOON, process.output(10 << 20)).await.expect("an end").expect("its output")
}

/// Checks what a command prints and how it ends, on every kind of server.
async fn check(exec: Exec, stdout: &[u8], stderr: &[u8], exit: Exit) {
    for kind in ALL {
        let server = Server::start(kind);
        let session = server.session().await;
        let expected = Output { stdout: stdout.to_vec(), stderr: stderr.to_vec(), exit: exit.clone() };
        assert_eq!(output(&session, exec.clone()).await, expected, "{kind:?}");
    }
}

fn signalled(name: &str) -> Exit {
    Exit::Signal { name: name.to_owned(), core_dumped: false }
}

/// Reads until the process has exited, and returns how.
pub(crate) async fn exit(process: &mut Process) -> Exit {
    let exited = async {
        loop {
            match process.next().await.expect("a living connection") {
                Some(Event::Exited(exit)) => return exit,
                Some(_) => {}
                None => panic!("it ended without an exit"),
            }
        }
    };
    timeout(SOON, exited).await.expect("an exit")
}

#[tokio::test]
async fn output_and_error_come_apart_and_the_exit_is_told() {
    check(Exec::shell("echo out; echo err >&2; exit 3"), b"out\n", b"err\n", Exit::Code(3)).await;
    check(Exec::shell("kill -TERM $$"), b"", b"", signalled("TERM")).await;
    check(Exec::argv(["echo", "it's", "$HOME", "a\nb"]), b"it's $HOME a\nb\n", b"", Exit::Code(0)).await;
    check(Exec::argv(["/bin/sh", "-c", "exit 255"]), b"", b"", Exit::Code(255)).await;
}

#[tokio::test]
async fn all_bytes_but_nul_pass_as_argument_variable_and_directory() {
    let every: Vec<u8> = (1..=255).collect();
    let name: Vec<u8> = every.iter().copied().filter(|byte| *byte != b'/').take(250).collect();
    let dir = tempfile::tempdir().expect("make a directory");
    let dir = [dir.path().as_os_str().as_encoded_bytes(), b"/", &name].concat();
    let expected = [&every[..], b"|", &every, b"|", &dir, b"|"].concat();
    let script = "printf '%s|' \"$1\" \"$V\" \"$PWD\"";
    let argv = [b"sh".to_vec(), b"-c".to_vec(), script.into(), b"sh".to_vec(), every.clone()];
    check(Exec::argv(argv).env("V", every).dir(dir, Missing::Make), &expected, b"", Exit::Code(0)).await;
}

#[tokio::test]
async fn programs_that_cannot_run_are_told_from_those_that_fail() {
    for kind in ALL {
        let server = Server::start(kind);
        let session = server.session().await;
        let error = session.exec(Exec::argv(["no-such-program"])).await.expect_err("no process");
        assert_eq!(error, ExecError::NoProgram { program: "no-such-program".to_owned() }, "{kind:?}");
        let error = session.exec(Exec::argv(["/etc/passwd"])).await.expect_err("no process");
        assert_eq!(error, ExecError::NotExecutable { program: "/etc/passwd".to_owned() }, "{kind:?}");
        assert_eq!(output(&session, Exec::shell("no-such-program")).await.exit, Exit::Code(127), "{kind:?}");
        assert_eq!(output(&session, Exec::shell("/etc/passwd")).await.exit, Exit::Code(126), "{kind:?}");
    }
}

#[tokio::test]
async fn a_directory_that_cannot_be_had_is_told_from_a_failing_command() {
    for kind in ALL {
        let server = Server::start(kind);
        let session = server.session().await;
        let file = server.path("file");
        fs::write(&file, "").expect("write");
        let file = file.display().to_string();
        let below = format!("{file}/x");

        let error = session.exec(Exec::shell("true").dir("/no/such", Missing::Fail)).await.expect_err("no process");
        assert!(matches!(&error, ExecError::EnterDir { dir, why } if dir == "/no/such" && !why.is_empty()), "{error}");
        let error = session.exec(Exec::shell("true").dir(&*below, Missing::Make)).await.expect_err("no process");
        assert!(matches!(&error, ExecError::MakeDir { dir, why } if *dir == below && !why.is_empty()), "{error}");

        let made = server.path("new/one").display().to_string();
        let exec = Exec::shell("pwd; umask").dir(&*made, Missing::Make).umask(0o077);
        assert_eq!(output(&session, exec).await.stdout, format!("{made}\n0077\n").into_bytes());
    }
}

#[tokio::test]
async fn input_is_streamed_and_ends() {
    for kind in ALL {
        let server = Server::start(kind);
        let session = server.session().await;
        let mut process = session.exec(Exec::argv(["cat"]).stdin()).await.expect("a process");
        let mut stdin = process.take_stdin().expect("an input");
        stdin.write("one").await.expect("cat reads");
        assert_eq!(process.next().await, Ok(Some(Event::Stdout(Bytes::from_static(b"one")))), "{kind:?}");
        // More than all windows and pipes on the way hold.
        let much = Bytes::from(vec![b'x'; 6 << 20]);
        let (reading, writing) = (process.output(10 << 20), async {
            stdin.write(much.clone()).await.expect("cat reads");
            stdin.close().await;
        });
        let (read, ()) = timeout(SOON, async { tokio::join!(reading, writing) }).await.expect("an end");
        assert_eq!(read, Ok(Output { stdout: much.to_vec(), stderr: Vec::new(), exit: Exit::Code(0) }));

        let mut process = session.exec(Exec::argv(["true"]).stdin()).await.expect("a process");
        let mut stdin = process.take_stdin().expect("an input");
        exit(&mut process).await;
        assert_eq!(process.next().await, Ok(None));
        let written = timeout(SOON, async { while stdin.write(much.clone()).await.is_ok() {} }).await;
        written.expect("nobody reads any more, and the writer learns it");
    }
}

#[tokio::test]
async fn a_terminal_is_one_and_its_input_ends() {
    for kind in ALL {
        let server = Server::start(kind);
        let session = server.session().await;
        let pty = Pty { term: "vt100".to_owned(), columns: 91, rows: 17 };
        let long = "x".repeat(10_000);
        let exec =
            Exec::shell("test -t 0 && stty size && echo $TERM ${#LONG} >&2; cat; exit 4").env("LONG", long).pty(pty);
        let expected = Output { stdout: b"17 91\r\nvt100 10000\r\n".to_vec(), stderr: Vec::new(), exit: Exit::Code(4) };
        assert_eq!(output(&session, exec).await, expected, "{kind:?}");

        let mut process =
            session.exec(Exec::shell("stty -echo; echo go; cat").pty(Pty::default()).stdin()).await.expect("a process");
        let mut stdin = process.take_stdin().expect("an input");
        assert_eq!(process.next().await, Ok(Some(Event::Stdout(Bytes::from_static(b"go\r\n")))));
        stdin.write("typed\n").await.expect("cat reads");
        stdin.close().await;
        assert_eq!(timeout(SOON, process.output(1000)).await.expect("an end").expect("output").stdout, b"typed\r\n");
    }
}

#[tokio::test]
async fn what_a_login_says_is_no_output_and_explains_a_failed_start() {
    let config = "ForceCommand echo noise; echo more >&2; eval \"$SSH_ORIGINAL_COMMAND\"";
    let server = Server::with(Kind::OpenSsh, config);
    let session = server.session().await;
    let expected = Output { stdout: b"out\n".to_vec(), stderr: b"err\n".to_vec(), exit: Exit::Code(0) };
    assert_eq!(output(&session, Exec::shell("echo out; echo err >&2")).await, expected);

    let server = Server::with(Kind::OpenSsh, "ForceCommand echo This account is closed; exit 1");
    let error = server.session().await.exec(Exec::shell("true")).await.expect_err("no process");
    let ExecError::NotStarted { why, .. } = &error else { panic!("{error}") };
    assert_eq!(why, "This account is closed");

    let server = Server::with(Kind::OpenSsh, "ForceCommand exit 7");
    let error = server.session().await.exec(Exec::shell("true")).await.expect_err("no process");
    let ExecError::NotStarted { why, .. } = &error else { panic!("{error}") };
    assert_eq!(why, "the login shell ended with exit code 7 and said nothing");
}

#[tokio::test]
async fn more_commands_than_channels_wait_for_one() {
    // The second server has fewer channels than we believe.
    for (sessions, channels) in [(10, 10), (3, 10)] {
        let server = Server::with(Kind::OpenSsh, &format!("MaxSessions {sessions}"));
        let session = server.session_with(&Timing { channels, ..Timing::default() }).await;
        let mut running = JoinSet::new();
        for number in 0..20 {
            let session = session.clone();
            running.spawn(async move { output(&session, Exec::shell(format!("echo {number}"))).await.stdout });
        }
        let mut outputs = timeout(SOON, running.join_all()).await.expect("all get their turn");
        outputs.sort();
        let mut expected: Vec<_> = (0..20).map(|number| format!("{number}\n").into_bytes()).collect();
        expected.sort();
        assert_eq!(outputs, expected);
    }
}

#[tokio::test]
async fn a_channel_that_never_frees_is_waited_for_in_bounds() {
    let server = Server::start(Kind::OpenSsh);
    let timing = Timing { channels: 3, channel: Duration::from_millis(300), ..Timing::default() };
    let session = server.session_with(&timing).await;
    let (first, second) =
        (session.exec(Exec::argv(["cat"]).stdin()).await, session.exec(Exec::argv(["cat"]).stdin()).await);
    let (mut first, _second) = (first.expect("a process"), second.expect("a process"));
    let error = session.exec(Exec::shell("true")).await.expect_err("no process");
    assert!(matches!(error, ExecError::Busy { waited, .. } if waited == timing.channel), "{error}");
    // A signal has its own, and what it kills frees another.
    assert_eq!(first.signal(Signal::Kill).await, Ok(Signalled { processes: 1, detour: None }));
    assert_eq!(exit(&mut first).await, signalled("KILL"));
    assert_eq!(first.next().await, Ok(None));
    assert_eq!(output(&session, Exec::shell("true")).await.exit, Exit::Code(0));
}

#[tokio::test]
async fn a_reader_who_does_not_read_holds_the_command_back_and_signals_get_through() {
    for kind in ALL {
        let server = Server::start(kind);
        let session = server.session().await;
        let count = server.path("count");
        let script = format!("while :; do printf '%s' {}; echo >>{}; done", "x".repeat(1000), count.display());
        let mut process = session.exec(Exec::shell(script).buffer(100_000)).await.expect("a process");
        let printed = || fs::metadata(&count).map_or(0, |metadata| metadata.len() * 1000);
        // The guest prints until all buffers on the way are full: then nothing is added for a while.
        let mut last = (printed(), Instant::now());
        while last.0 == 0 || last.1.elapsed() < Duration::from_millis(700) {
            sleep(Duration::from_millis(20)).await;
            if printed() != last.0 {
                last = (printed(), Instant::now());
            }
            assert!(last.0 < 64 << 20, "the guest is not held back: {} bytes", last.0);
        }
        let signal = timeout(SOON, process.signal(Signal::Kill)).await.expect("the signal gets through");
        assert!(matches!(signal, Ok(Signalled { processes: 1.., detour: None })), "{kind:?}: {signal:?}");
        assert_eq!(exit(&mut process).await, signalled("KILL"));
    }
}

/// A command with a child in its group, one in a session of its own, one that became a daemon, and one in a session of
/// its own that lost its environment; each writes its pid to a file.
fn family(dir: &Path) -> String {
    let member = dir.join("member");
    fs::write(&member, "echo $$ >\"$1.new\"; mv \"$1.new\" \"$1\"; exec sleep 1000\n").expect("write");
    let (dir, member) = (dir.display(), format!("sh {}", member.display()));
    format!(
        "{member} {dir}/child & setsid {member} {dir}/session & (setsid {member} {dir}/daemon &); \
         setsid sh -c 'env -i PATH=\"$PATH\" {member} {dir}/bare & wait' & wait"
    )
}

const FAMILY: [&str; 4] = ["child", "session", "daemon", "bare"];

/// Waits until the whole family has said its pids.
async fn pids(dir: &Path) -> Vec<u32> {
    let mut pids = Vec::new();
    let deadline = Instant::now() + SOON;
    for name in FAMILY {
        pids.push(loop {
            match fs::read_to_string(dir.join(name)) {
                Ok(pid) => break pid.trim().parse().expect("a pid"),
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
            assert!(Instant::now() < deadline, "{name} did not start");
        });
    }
    pids
}

/// Tells which of these processes live; zombies do not.
fn alive(pids: &[u32]) -> Vec<u32> {
    let lives = |pid: &&u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    };
    pids.iter().filter(lives).copied().collect()
}

async fn dead(pids: &[u32]) {
    let deadline = Instant::now() + SOON;
    while !alive(pids).is_empty() {
        assert!(Instant::now() < deadline, "{:?} of {pids:?} live", alive(pids));
        sleep(Duration::from_millis(10)).await;
    }
}

/// Every server, and the ways to find a command's processes there. A BSD's works with Linux's `ps`, too.
const DIALECTS: [(Kind, Dialect); 4] = [
    (Kind::OpenSsh, Dialect::LINUX),
    (Kind::Dropbear, Dialect::LINUX),
    (Kind::Busybox, Dialect::LINUX),
    (Kind::OpenSsh, Dialect::BSD),
];

#[tokio::test]
async fn a_signal_reaches_the_whole_tree() {
    for (kind, dialect) in DIALECTS {
        for (signal, name) in [(Signal::Kill, "KILL"), (Signal::Term, "TERM")] {
            let server = Server::start(kind);
            let session = server.session_in(dialect.clone()).await;
            let mut process = session.exec(Exec::shell(family(server.dir.path()))).await.expect("a process");
            let mut pids = pids(server.dir.path()).await;
            pids.push(process.pid());
            assert_eq!(alive(&pids), pids);
            let reached = process.signal(signal).await.expect("the signal is sent").processes;
            assert!(reached >= 6, "{kind:?}: only {reached} processes");
            dead(&pids).await;
            assert_eq!(exit(&mut process).await, signalled(name), "{kind:?}");
            assert_eq!(process.signal(signal).await, Ok(Signalled { processes: 0, detour: None }));
        }
    }
}

#[tokio::test]
async fn a_signal_can_be_caught_and_leaves_strangers_alone() {
    for (kind, dialect) in DIALECTS {
        let server = Server::start(kind);
        let session = server.session_in(dialect).await;
        let mut stranger =
            session.exec(Exec::shell("echo here; read line; echo $line").stdin()).await.expect("a process");
        assert_eq!(stranger.next().await, Ok(Some(Event::Stdout(Bytes::from_static(b"here\n")))));
        let exec = Exec::shell("trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.01; done");
        let mut process = session.exec(exec).await.expect("a process");
        assert_eq!(process.next().await, Ok(Some(Event::Stdout(Bytes::from_static(b"ready\n")))));
        process.signal(Signal::Int).await.expect("the signal is sent");
        // The server may tell of the exit before it has read all output.
        let ended = timeout(SOON, process.output(100)).await.expect("an end").expect("its output");
        assert_eq!((ended.stdout.as_slice(), ended.exit), (&b"caught\n"[..], Exit::Code(9)), "{kind:?}");
        stranger.take_stdin().expect("an input").write("still\n").await.expect("it reads");
        assert_eq!(stranger.output(100).await.expect("output").stdout, b"still\n");
    }
}

#[tokio::test]
async fn a_command_given_up_before_it_began_lets_go_of_its_channel() {
    let server = Server::start(Kind::OpenSsh);
    let timing = Timing { channels: 1, channel: Duration::from_secs(10), ..Timing::default() };
    let session = server.session_with(&timing).await;
    let command = Exec::argv(["sleep", "1000"]);
    for (exec, on) in [(command.clone(), "pipes"), (command.pty(Pty::default()), "a terminal")] {
        // At any moment of the start: before the request, before the script, and after it.
        for turns in (0..14).map(|power| 1 << power) {
            let patience = async {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                process = session.exec(exec.clone()) => drop(process.expect("a process")),
                () = patience => {}
            }
            let next = session.exec(Exec::argv(["true"])).await;
            next.unwrap_or_else(|error| panic!("given up on {on} after {turns} turns: {error}"));
        }
    }
}

#[tokio::test]
async fn a_dropped_process_is_killed_with_its_tree() {
    for kind in ALL {
        let server = Server::start(kind);
        let session = server.session().await;
        let process = session.exec(Exec::shell(family(server.dir.path()))).await.expect("a process");
        let pids = pids(server.dir.path()).await;
        drop(process);
        dead(&pids).await;
    }
}

#[tokio::test]
async fn an_exit_is_told_while_a_descendant_holds_the_output_open() {
    // Dropbear waits for the output's end before it tells.
    for kind in [Kind::OpenSsh, Kind::Busybox] {
        let server = Server::start(kind);
        let session = server.session().await;
        let mut process = session.exec(Exec::shell("sleep 1000 & echo $!; exit 5")).await.expect("a process");
        // OpenSSH tells of the exit at once, maybe before what was written last.
        let (mut pid, mut exit) = (None, None);
        while pid.is_none() || exit.is_none() {
            match timeout(SOON, process.next()).await.expect("both are told").expect("a session") {
                Some(Event::Stdout(text)) => pid = Some(String::from_utf8_lossy(&text).trim().parse().expect("a pid")),
                Some(Event::Exited(how)) => exit = Some(how),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(exit, Some(Exit::Code(5)));
        assert!(timeout(Duration::from_millis(100), process.next()).await.is_err(), "its output is still open");
        assert_eq!(process.signal(Signal::Kill).await, Ok(Signalled { processes: 1, detour: None }));
        assert_eq!(timeout(SOON, process.next()).await, Ok(Ok(None)));
        dead(&[pid.expect("it was told")]).await;
    }
}

#[tokio::test]
async fn output_is_bounded_where_it_is_collected() {
    let server = Server::start(Kind::OpenSsh);
    let session = server.session().await;
    let process = session.exec(Exec::shell("yes")).await.expect("a process");
    let error = timeout(SOON, process.output(1000)).await.expect("an end").expect_err("too much");
    assert_eq!(error, ssh::OutputError::TooLong { limit: 1000 });
}

#[tokio::test]
async fn what_another_system_cannot_do_is_refused_before_it_is_asked() {
    let server = Server::start(Kind::OpenSsh);
    let session = server.session_in(Dialect::WINDOWS).await;
    let check = |error: &dyn std::fmt::Display, expected: &str| assert_eq!(error.to_string(), expected);
    let error = session.exec(Exec::argv(["cmd"]).pty(Pty::default())).await.expect_err("refused");
    check(&error, "this guest's system has no such thing as a terminal for commands");
    let error = session.copy_in(&host(server.dir.path()), "x", &CopyOptions::default()).await.expect_err("refused");
    check(&error, "copies need sh and tar in the guest, which this guest's system has not");
    // Linux has no PowerShell, which is said in its own words.
    let error = session.exec(Exec::argv(["cmd"])).await.expect_err("it does not start");
    assert!(error.to_string().contains("powershell.exe"), "{error}");
}
