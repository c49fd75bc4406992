//! Servers that somebody has narrowed, or that are old.

use std::time::Duration;

use ssh::{ConnectError, Exec, Exit, HostKeyPolicy, Processor, Session, Target, Timing};
use tokio::time::timeout;

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
