//! Servers that somebody has narrowed, or that are old: few algorithms, and one session on a connection.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ssh::{
    ConnectError, CopyOptions, Detour, Event, Exec, Exit, HostKeyPolicy, Processor, Session, Signal, Signalled, Target,
    Timing,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use crate::commands::exit;
use crate::copies::host;
use crate::server::{Kind, Server, keygen};

/// No step of these tests should take that long.
const SOON: Duration = Duration::from_secs(30);

/// Checks that a server with these settings lets us in and runs a command, whatever it is said to have for a processor.
async fn lets_in(config: &str, processors: &[Processor]) {
    let server = Server::with(Kind::OpenSsh, config);
    for &processor in processors {
        let target = Target { processor, host_key: HostKeyPolicy::Learn, ..server.target() };
        let session = match Session::connect(&target, &Timing::default()).await {
            Ok(session) => session,
            Err(error) => panic!("{config}: {error}\n{}", server.log()),
        };
        let process = session.exec(Exec::shell("head -c 100000 /dev/zero | tr '\\0' x")).await.expect("a process");
        let output = timeout(SOON, process.output(1 << 20)).await.expect("an end").expect("its output");
        assert_eq!((output.stdout.len(), output.exit), (100_000, Exit::Code(0)), "{config}");
    }
}

#[tokio::test]
async fn a_server_with_one_key_exchange_lets_in() {
    for kex in [
        "curve25519-sha256",
        "curve25519-sha256@libssh.org",
        "ecdh-sha2-nistp256",
        "ecdh-sha2-nistp384",
        "ecdh-sha2-nistp521",
        "diffie-hellman-group14-sha256",
        "diffie-hellman-group16-sha512",
        "diffie-hellman-group-exchange-sha256",
        "diffie-hellman-group14-sha1",
        "diffie-hellman-group-exchange-sha1",
    ] {
        lets_in(&format!("KexAlgorithms {kex}"), &[Processor::Real]).await;
    }
}

#[tokio::test]
async fn a_server_with_one_cipher_lets_in() {
    for cipher in [
        "aes128-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "chacha20-poly1305@openssh.com",
        "aes128-ctr",
        "aes192-ctr",
        "aes256-ctr",
        "aes128-cbc",
        "aes192-cbc",
        "aes256-cbc",
    ] {
        lets_in(&format!("Ciphers {cipher}"), &[Processor::Real, Processor::Emulated]).await;
    }
}

#[tokio::test]
async fn a_server_with_one_mac_lets_in() {
    for mac in [
        "hmac-sha2-256-etm@openssh.com",
        "hmac-sha2-512-etm@openssh.com",
        "hmac-sha2-256",
        "hmac-sha2-512",
        "hmac-sha1-etm@openssh.com",
        "hmac-sha1",
    ] {
        lets_in(&format!("Ciphers aes128-ctr,aes256-cbc\nMACs {mac}"), &[Processor::Real]).await;
    }
}

#[tokio::test]
async fn a_server_with_one_kind_of_host_key_lets_in() {
    let directory = tempfile::tempdir().expect("a directory");
    for (kind, bits, algorithms) in [
        ("rsa", "3072", "ssh-rsa"),
        ("rsa", "2048", "rsa-sha2-256"),
        ("rsa", "4096", "rsa-sha2-512"),
        ("ecdsa", "256", "ecdsa-sha2-nistp256"),
        ("ecdsa", "384", "ecdsa-sha2-nistp384"),
        ("ecdsa", "521", "ecdsa-sha2-nistp521"),
        ("ed25519", "256", "ssh-ed25519"),
    ] {
        let file = directory.path().join(algorithms);
        keygen_of(&file, kind, bits);
        lets_in(&format!("HostKey {}\nHostKeyAlgorithms {algorithms}", file.display()), &[Processor::Real]).await;
    }
}

fn keygen_of(file: &std::path::Path, kind: &str, bits: &str) {
    let mut command = std::process::Command::new("ssh-keygen");
    crate::server::run(command.args(["-q", "-N", "", "-t", kind, "-b", bits, "-f"]).arg(file));
}

/// A server of before 2014 has SHA-1 for everything, and takes no other signature of an RSA key.
#[tokio::test]
async fn an_old_server_lets_an_rsa_key_in() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("host");
    keygen(&file, "rsa", "");
    let server = Server::with(
        Kind::OpenSsh,
        &format!(
            "HostKey {}\nHostKeyAlgorithms ssh-rsa\nKexAlgorithms diffie-hellman-group14-sha1\nCiphers aes128-cbc\nMACs hmac-sha1\n\
             PubkeyAcceptedAlgorithms ssh-rsa\nRequiredRSASize 1024",
            file.display()
        ),
    );
    keygen(&server.path("old"), "rsa", "");
    std::fs::copy(server.path("old.pub"), server.path("user.pub")).expect("copy the key");
    let identity = ssh::Identity::load(&server.path("old")).expect("a key");
    let target = Target { identity, host_key: HostKeyPolicy::Learn, ..server.target() };
    if let Err(error) = Session::connect(&target, &Timing::default()).await {
        panic!("{error}\n{}", server.log());
    }
}

#[tokio::test]
async fn a_server_with_nothing_in_common_is_told_what_it_needs() {
    let check = async |config: &str, expected: &[&str]| {
        let server = Server::with(Kind::OpenSsh, config);
        let error = Session::connect(&server.target(), &Timing::default()).await.expect_err("no session");
        let text = error.to_string();
        assert!(matches!(error, ConnectError::Incompatible { .. }), "{text}");
        for expected in expected {
            assert!(text.contains(expected), "{expected:?} is not in {text:?}");
        }
    };
    let kex = "they have no key exchange in common: the guest has diffie-hellman-group1-sha1";
    check("KexAlgorithms diffie-hellman-group1-sha1", &[kex, "curve25519-sha256", "KexAlgorithms"]).await;
    check(
        "Ciphers 3des-cbc",
        &["no cipher in common: the guest has 3des-cbc; ", "aes128-ctr", "sshd_config's Ciphers"],
    )
    .await;
    let mac = "no message authentication code in common: the guest has hmac-md5; ";
    check("Ciphers aes128-ctr\nMACs hmac-md5", &[mac, "hmac-sha2-256", "sshd_config's MACs"]).await;
}

const ONE: &str = "MaxSessions 1";

/// What a signal reaches that goes over another connection to a server with [`ONE`] session on each.
fn beside(processes: u32) -> Signalled {
    Signalled { processes, detour: Some(Detour::Connection { most: 1 }) }
}

#[tokio::test]
async fn a_command_is_signalled_though_its_server_allows_one_session() {
    let server = Server::with(Kind::OpenSsh, ONE);
    let session = server.session().await;
    let mut process = session.exec(Exec::shell("trap '' TERM; sleep 1000 & wait")).await.expect("a process");
    let begun = Instant::now();
    let signalled = timeout(SOON, process.signal(Signal::Term)).await.expect("an answer").expect("it is sent");
    assert_eq!(signalled, beside(2));
    assert_eq!(timeout(SOON, process.signal(Signal::Kill)).await.expect("an answer"), Ok(beside(2)));
    assert_eq!(exit(&mut process).await, Exit::Signal { name: "KILL".to_owned(), core_dumped: false });
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop(process);
    session.close().await;
    server.ended().await;
}

#[tokio::test]
async fn a_dropped_command_is_killed_though_its_server_allows_one_session() {
    let server = Server::with(Kind::OpenSsh, ONE);
    let session = server.session().await;
    let mut process = session.exec(Exec::shell("echo $$; exec sleep 1000")).await.expect("a process");
    let Ok(Ok(Some(Event::Stdout(pid)))) = timeout(SOON, process.next()).await else { panic!("no output") };
    let pid = String::from_utf8_lossy(&pid).trim().to_owned();
    drop(process);
    drop(session);
    // The session lives for as long as the command has to be killed.
    server.ended().await;
    assert!(!std::path::Path::new("/proc").join(pid).exists());
}

#[tokio::test]
async fn commands_and_copies_run_beside_each_other_though_the_server_allows_one_session() {
    let server = Server::with(Kind::OpenSsh, ONE);
    let session = server.session().await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(session.exec(Exec::shell("read line; echo $line").stdin()).await.expect("a process"));
    }
    std::fs::write(server.path("from"), "text").expect("written");
    let to = server.path("to").into_os_string().into_encoded_bytes();
    timeout(SOON, session.copy_in(&host(server.path("from")), to, &CopyOptions::default()))
        .await
        .expect("soon")
        .expect("copied");
    assert_eq!(std::fs::read_to_string(server.path("to")).expect("it is there"), "text");
    for mut process in waiting {
        let mut stdin = process.take_stdin().expect("it was asked for");
        stdin.write("said\n").await.expect("it reads");
        stdin.close().await;
        let output = timeout(SOON, process.output(100)).await.expect("an end").expect("its output");
        assert_eq!(output.stdout, b"said\n");
    }
    // One after the other they need no other connection.
    let before = server.connections();
    for _ in 0..20 {
        let process = session.exec(Exec::shell("exit 0")).await.expect("a process");
        timeout(SOON, process.output(100)).await.expect("an end").expect("its output");
    }
    assert_eq!(server.connections(), before);
    session.close().await;
    server.ended().await;
}

/// Passes so many connections on to a server; whoever comes later finds nobody.
async fn only(server: SocketAddr, connections: usize) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("listen");
    let address = listener.local_addr().expect("a bound address");
    tokio::spawn(async move {
        for _ in 0..connections {
            let (mut client, _) = listener.accept().await.expect("accept");
            let mut server = TcpStream::connect(server).await.expect("connect");
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
        }
    });
    address
}

#[tokio::test]
async fn a_command_is_asked_to_end_over_its_own_channel_where_nothing_else_is_let_in() {
    let server = Server::with(Kind::OpenSsh, ONE);
    let target = Target { address: only(server.address, 1).await, ..server.target() };
    let session = Session::connect(&target, &Timing::default()).await.expect("a session");
    let mut process = session.exec(Exec::shell("sleep 1000 & wait")).await.expect("a process");
    let signalled = timeout(SOON, process.signal(Signal::Kill)).await.expect("an answer").expect("it is sent");
    let Some(Detour::Request { why }) = signalled.detour else { panic!("{signalled:?}") };
    assert!(why.contains("no more than 1 sessions") || why.contains("MaxSessions"), "{why}");
    assert_eq!(exit(&mut process).await, Exit::Signal { name: "KILL".to_owned(), core_dumped: false });
    // Its whole group is gone, so nothing holds the output open.
    assert_eq!(timeout(SOON, process.next()).await.expect("an end"), Ok(None));
}
