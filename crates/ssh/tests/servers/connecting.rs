use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use ssh::{
    ConnectError, Exec, ExecError, HostKeyPolicy, Identity, IdentityError, NotReady, Processor, Readiness, Session,
    Target, Timing, wait_until_ready,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::server::{Kind, Server, keygen};

const SOON: Duration = Duration::from_secs(20);

async fn refused(target: &Target) -> ConnectError {
    Session::connect(target, &Timing::default()).await.expect_err("no session")
}

#[tokio::test]
async fn a_host_key_that_was_learnt_is_checked_ever_after() {
    for kind in [Kind::OpenSsh, Kind::Dropbear] {
        let server = Server::start(kind);
        let mut target = Target { host_key: HostKeyPolicy::Learn, ..server.target() };
        let learnt = Session::connect(&target, &Timing::default()).await.expect("a session").host_key().clone();
        assert_eq!(learnt, server.host_key("ed25519"));
        target.host_key = HostKeyPolicy::Pinned(learnt.clone());
        Session::connect(&target, &Timing::default()).await.expect("a session");

        keygen(&server.path("host_other"), "ed25519", "");
        let other = server.host_key("other");
        target.host_key = HostKeyPolicy::Pinned(other.clone());
        let expected = ConnectError::HostKeyMismatch {
            target: target.to_string(),
            pinned: other.fingerprint(),
            presented: learnt.fingerprint(),
        };
        assert_eq!(refused(&target).await, expected);
    }
}

#[tokio::test]
async fn of_several_host_keys_the_pinned_kind_is_asked_for() {
    for kind in [Kind::OpenSsh, Kind::Dropbear] {
        let server = Server::start(kind);
        for algorithm in ["ed25519", "ecdsa"] {
            let key = server.host_key(algorithm);
            let target = Target { host_key: HostKeyPolicy::Pinned(key.clone()), ..server.target() };
            let session = Session::connect(&target, &Timing::default()).await.expect("a session");
            assert_eq!(*session.host_key(), key);
        }
    }
}

#[tokio::test]
async fn a_user_or_key_the_server_does_not_know_is_refused() {
    let server = Server::start(Kind::OpenSsh);
    let check = |target: Target, error: ConnectError| {
        let fingerprint = target.identity.fingerprint();
        assert_eq!(
            error,
            ConnectError::KeyRefused { target: target.to_string(), fingerprint, methods: "publickey".to_owned() }
        );
        assert!(!error.is_temporary());
    };
    let target = Target { user: "nobody-at-all".to_owned(), ..server.target() };
    check(target.clone(), refused(&target).await);
    let path = server.path("stranger");
    keygen(&path, "ed25519", "");
    let target = Target { identity: Identity::load(&path).expect("a key"), ..server.target() };
    check(target.clone(), refused(&target).await);
}

#[tokio::test]
async fn every_usual_kind_of_key_logs_in() {
    for algorithm in ["rsa", "ecdsa", "ed25519"] {
        for kind in [Kind::OpenSsh, Kind::Dropbear] {
            let server = Server::start(kind);
            let path = server.path("another");
            keygen(&path, algorithm, "");
            for keys in ["user.pub", "home/.ssh/authorized_keys"].map(|name| server.path(name)) {
                if keys.exists() {
                    fs::copy(server.path("another.pub"), keys).expect("copy the key");
                }
            }
            let target = Target { identity: Identity::load(&path).expect("a key"), ..server.target() };
            if let Err(error) = Session::connect(&target, &Timing::default()).await {
                panic!("{algorithm} with {kind:?}: {error}\n{}", server.log());
            }
        }
    }
}

#[test]
fn a_private_key_nobody_can_use_is_named_with_a_remedy() {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().join("key");
    let check = |expected: fn(&IdentityError) -> bool, remedy: &str| {
        let error = Identity::load(&path).expect_err("no usable key");
        assert!(expected(&error) && error.to_string().contains(remedy), "{error}");
    };
    check(|error| matches!(error, IdentityError::Unreadable { .. }), "No such file");
    fs::create_dir(&path).expect("make a directory");
    check(|error| matches!(error, IdentityError::Unreadable { .. }), "not a regular file");
    fs::remove_dir(&path).expect("remove it");
    keygen(&path, "ed25519", "secret");
    check(|error| matches!(error, IdentityError::Encrypted { .. }), "ssh-keygen -p");
    fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("chmod");
    check(|error| matches!(error, IdentityError::OpenPermissions { mode: 0o640, .. }), "chmod 600");
    fs::rename(dir.path().join("key.pub"), &path).expect("rename");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
    check(|error| matches!(error, IdentityError::NotAKey { .. }), "is it the .pub file?");
    fs::write(&path, [0xff; 100]).expect("write");
    check(|error| matches!(error, IdentityError::NotAKey { .. }), "ssh-keygen -t");
}

/// What a fake front end does with its n-th connection, counted from 1.
type Front = fn(u32) -> Treatment;

enum Treatment {
    Reset,
    Silence,
    Text(&'static str),
    Pass,
}

/// Listens in front of a server, as QEMU's user network does in front of a guest.
async fn front(server: SocketAddr, treat: Front) -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("listen on loopback");
    let address = listener.local_addr().expect("a bound address");
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut silent = Vec::new();
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            match treat(counted.fetch_add(1, Ordering::SeqCst) + 1) {
                Treatment::Reset => stream.set_zero_linger().expect("set linger"),
                Treatment::Silence => silent.push(stream),
                Treatment::Text(text) => stream.write_all(text.as_bytes()).await.expect("write"),
                Treatment::Pass => {
                    tokio::spawn(async move {
                        let mut server = TcpStream::connect(server).await.expect("connect to the server");
                        let _ = copy_bidirectional(&mut stream, &mut server).await;
                    });
                }
            }
        }
    });
    (address, count)
}

#[tokio::test]
async fn what_is_no_ssh_server_yet_is_told_from_what_is_none() {
    let server = Server::start(Kind::OpenSsh);
    let timing = Timing { banner: Duration::from_millis(200), ..Timing::default() };
    let check = async |treat: Front, temporary: bool, words: &str| {
        let (address, _) = front(server.address, treat).await;
        let target = Target { address, ..server.target() };
        let error = Session::connect(&target, &timing).await.expect_err("no session");
        assert!(error.is_temporary() == temporary && error.to_string().contains(words), "{error}");
    };
    check(|_| Treatment::Reset, true, "Connection reset").await;
    check(|_| Treatment::Silence, true, "no ssh banner within 200ms").await;
    check(|_| Treatment::Text(""), true, "closed before the ssh banner").await;
    check(|_| Treatment::Text("SSH-2.0-x\r\n"), true, "does not answer ssh").await;
    check(|_| Treatment::Text("Exceeded MaxStartups\r\n"), true, "Exceeded MaxStartups").await;
    check(|_| Treatment::Text("HTTP/1.1 400 Bad Request\r\n"), false, "it is no ssh server: it says \"HTTP/1.1").await;
}

#[tokio::test]
async fn a_booting_guest_is_waited_for() {
    let server = Server::start(Kind::OpenSsh);
    let treat: Front = |number| match number {
        1 | 2 => Treatment::Reset,
        3 => Treatment::Silence,
        4 => Treatment::Text("SSH-2.0-x\r\n"),
        _ => Treatment::Pass,
    };
    let (address, count) = front(server.address, treat).await;
    let target = Target { address, ..server.target() };
    let ready = wait_until_ready(&target, &Timing::default(), &Readiness::within(SOON)).await.expect("ready");
    assert_eq!((ready.tries, count.load(Ordering::SeqCst)), (5, 5));
    assert!(ready.waited < Timing::default().banner, "the silent connection was waited for: {:?}", ready.waited);
    assert!(!ready.session.is_lost());
}

#[tokio::test]
async fn a_guest_that_never_gets_ready_is_given_up_with_the_last_reason() {
    let server = Server::start(Kind::OpenSsh);
    let (address, _) = front(server.address, |_| Treatment::Reset).await;
    let target = Target { address, ..server.target() };
    let readiness = Readiness::within(Duration::from_millis(500));
    let error = wait_until_ready(&target, &Timing::default(), &readiness).await.expect_err("not ready");
    let NotReady::TimedOut { tries, last, .. } = &error else { panic!("{error}") };
    assert!(*tries > 2 && last.contains("Connection reset"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_port_that_nobody_answers_is_tried_often() {
    let server = Server::start(Kind::OpenSsh);
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let target = Target { address: port.local_addr().expect("it has one"), ..server.target() };
    drop(port);
    // The system refuses at once, so that no time passes but between the tries.
    let error = wait_until_ready(&target, &Timing::default(), &Readiness::within(SOON)).await.expect_err("not ready");
    let NotReady::TimedOut { tries, .. } = error else { panic!("{error}") };
    assert!(SOON / tries <= Duration::from_millis(100), "{tries} tries");
}

#[tokio::test]
async fn the_readiness_command_must_succeed() {
    let server = Server::start(Kind::OpenSsh);
    let flag = server.path("flag");
    // Fails until it has been run three times.
    let command = format!("echo x >>{0}; [ $(wc -l <{0}) -ge 3 ]", flag.display());
    let readiness = Readiness { command: Some(command), ..Readiness::within(SOON) };
    let ready = wait_until_ready(&server.target(), &Timing::default(), &readiness).await.expect("ready");
    assert_eq!(ready.tries, 3);
    let readiness = Readiness { command: Some("exit 3".to_owned()), ..Readiness::within(Duration::from_secs(3)) };
    let error = wait_until_ready(&server.target(), &Timing::default(), &readiness).await.expect_err("not ready");
    assert!(error.to_string().contains("readiness command \"exit 3\" ended with exit code 3"), "{error}");
}

#[tokio::test]
async fn a_readiness_command_that_is_stuck_is_asked_anew() {
    let server = Server::start(Kind::OpenSsh);
    // Stuck the first time.
    let command = format!("mkdir {} || exit 0; exec sleep 1000", server.path("flag").display());
    let readiness =
        Readiness { command: Some(command), command_timeout: Duration::from_secs(2), ..Readiness::within(SOON) };
    let ready = wait_until_ready(&server.target(), &Timing::default(), &readiness).await.expect("ready");
    // More than once again on a busy host.
    assert!(ready.tries >= 2, "{} tries", ready.tries);
}

#[tokio::test]
async fn what_waiting_cannot_change_ends_the_wait() {
    let server = Server::start(Kind::OpenSsh);
    let wrong_host = Target { host_key: HostKeyPolicy::Pinned(server.host_key("ecdsa")), ..server.target() };
    fs::remove_file(server.path("host_ecdsa")).expect("remove");
    fs::remove_file(server.path("host_ecdsa.pub")).expect("remove");
    let wrong_user = Target { user: "nobody-at-all".to_owned(), ..server.target() };
    let readiness = Readiness { refusal_grace: Duration::from_millis(300), ..Readiness::within(SOON) };
    for (target, words) in [(wrong_host, "is pinned"), (wrong_user, "refuses key")] {
        let waited = timeout(SOON / 2, wait_until_ready(&target, &Timing::default(), &readiness)).await;
        let error = waited.expect("an answer long before the deadline").expect_err("not ready");
        assert!(matches!(error, NotReady::Refused(_)) && error.to_string().contains(words), "{error}");
    }
}

/// Passes one connection on until it is frozen: then nothing moves, and nothing is closed.
async fn freezable(server: SocketAddr) -> (SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("listen on loopback");
    let address = listener.local_addr().expect("a bound address");
    let (freeze, mut frozen) = watch::channel(false);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut server = TcpStream::connect(server).await.expect("connect to the server");
        tokio::select! {
            _ = copy_bidirectional(&mut stream, &mut server) => {}
            () = async { drop(frozen.wait_for(|frozen| *frozen).await) } => std::future::pending().await,
        }
    });
    (address, freeze)
}

#[tokio::test]
async fn a_dead_guest_is_noticed_and_every_process_learns_it() {
    let server = Server::start(Kind::OpenSsh);
    let (address, freeze) = freezable(server.address).await;
    let timing = Timing { keepalive: Duration::from_millis(200), keepalive_tries: 2, ..Timing::default() };
    let target = Target { address, ..server.target() };
    let session = Session::connect(&target, &timing).await.expect("a session");
    let mut process = session.exec(Exec::shell("sleep 60")).await.expect("a process");
    freeze.send(true).expect("the connection lives");
    let lost = timeout(SOON, session.lost()).await.expect("the loss is noticed");
    assert_eq!(lost.to_string(), format!("ssh connection to {target} lost: the guest no longer answers keepalives"));
    assert_eq!(process.next().await, Err(lost.clone()));
    assert_eq!(process.next().await, Err(lost.clone()));
    assert_eq!(session.exec(Exec::shell("true")).await.expect_err("no process"), lost.into());
}

/// Passes one connection on until the server has said so many bytes more than it had when the number was set: then both
/// ends are closed.
async fn cuttable(server: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("listen on loopback");
    let address = listener.local_addr().expect("a bound address");
    let room = Arc::new(AtomicUsize::new(usize::MAX));
    let left = Arc::clone(&room);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut server = TcpStream::connect(server).await.expect("connect to the server");
        let ((mut from_us, mut to_us), (mut said, mut to_server)) = (stream.split(), server.split());
        let answers = async {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = said.read(&mut bytes).await {
                let passed = count.min(left.load(Ordering::Relaxed));
                to_us.write_all(&bytes[..passed]).await.expect("we read");
                left.fetch_sub(passed, Ordering::Relaxed);
                if passed < count {
                    return;
                }
            }
        };
        tokio::select! {
            () = answers => {}
            _ = tokio::io::copy(&mut from_us, &mut to_server) => {}
        }
    });
    (address, room)
}

#[tokio::test]
async fn a_guest_that_dies_while_a_command_starts_is_noticed_at_once() {
    let server = Server::start(Kind::OpenSsh);
    // From nothing at all to all that is said of a start. In between the server has opened the channel, and has not taken
    // what is to go through it.
    for said in (0..).step_by(30) {
        let (address, room) = cuttable(server.address).await;
        let target = Target { address, ..server.target() };
        let session = Session::connect(&target, &Timing::default()).await.expect("a session");
        room.store(said, Ordering::Relaxed);
        match timeout(SOON, session.exec(Exec::shell("sleep 60"))).await.expect("it is noticed") {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, ExecError::Lost(_)), "after {said} bytes: {error}"),
        }
    }
}

#[tokio::test]
async fn a_session_ends_when_closed_or_when_its_last_handle_is_dropped() {
    let server = Server::start(Kind::OpenSsh);
    let session = server.session().await;
    let other = session.clone();
    session.close().await;
    let lost = timeout(SOON, other.lost()).await.expect("both handles are of one connection");
    assert_eq!(lost.why, "closed by us");
    server.ended().await;

    let session = server.session().await;
    drop(session.clone());
    assert!(!session.is_lost());
    drop(session);
    server.ended().await;
}

#[tokio::test]
async fn the_cipher_suits_the_guests_processor() {
    let server = Server::with(Kind::OpenSsh, "LogLevel DEBUG1");
    for (processor, cipher) in [
        (Processor::Real, "aes128-gcm@openssh.com MAC: <implicit>"),
        (Processor::Emulated, "aes128-ctr MAC: hmac-sha2-256-etm@openssh.com"),
    ] {
        let target = Target { processor, ..server.target() };
        let session = Session::connect(&target, &Timing::default()).await.expect("a session");
        assert_eq!(session.processor(), processor);
        let chosen = format!("kex: server->client cipher: {cipher}");
        assert!(server.log().contains(&chosen), "{chosen} is not in\n{}", server.log());
    }
}
