//! A guest whose ssh server is its owner's: it has the right host key, and does what no honest server would.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use russh::server::{self, Auth, Handle, VerifiedPublicKey};
use russh::{ChannelOpenFailure, Disconnect, Error};
use ssh::{Exec, Session, Target, Timing};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::server::{Kind, Server};

const SOON: Duration = Duration::from_secs(20);

/// Lets everybody in, and hands out what it is steered by.
struct Hostile(mpsc::UnboundedSender<Handle>);

impl server::Handler for Hostile {
    type Error = Error;

    async fn auth_publickey(&mut self, _: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        Ok(Auth::Accept)
    }

    async fn auth_succeeded(&mut self, session: &mut server::Session) -> Result<(), Error> {
        self.0.send(session.handle()).map_err(|_| Error::SendError)
    }
}

/// A session with a server, and what that is steered by.
async fn attacked() -> (Session, Handle) {
    // For its keys.
    let honest = Server::start(Kind::OpenSsh);
    let key = russh::keys::load_secret_key(honest.path("host_ed25519"), None).expect("a host key");
    let config = Arc::new(server::Config { keys: vec![key], ..server::Config::default() });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("listen on loopback");
    let target = Target { address: listener.local_addr().expect("a bound address"), ..honest.target() };
    let (handles, mut handed) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accept a connection");
        let running = server::run_stream(config, stream, Hostile(handles)).await.expect("begin");
        let _ = running.await;
    });
    let session = Session::connect(&target, &Timing::default()).await.expect("a session");
    let handle = timeout(SOON, handed.recv()).await.expect("soon").expect("it let us in");
    (session, handle)
}

#[tokio::test]
async fn no_channel_that_a_guest_opens_is_accepted() {
    let (session, guest) = attacked().await;
    let refused = |kind: &str, opened: Result<russh::Channel<server::Msg>, Error>| {
        let refused = matches!(opened, Err(Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited)));
        assert!(refused, "{kind}: {:?}", opened.map(|_| "accepted"));
    };
    refused("session", guest.channel_open_session().await);
    refused("agent", guest.channel_open_agent().await);
    refused("direct-tcpip", guest.channel_open_direct_tcpip("127.0.0.1", 22, "127.0.0.1", 1).await);
    refused("direct-streamlocal", guest.channel_open_direct_streamlocal("/run/docker.sock").await);
    refused("forwarded-tcpip", guest.channel_open_forwarded_tcpip("127.0.0.1", 22, "127.0.0.1", 1).await);
    refused("forwarded-streamlocal", guest.channel_open_forwarded_streamlocal("/run/docker.sock").await);
    refused("x11", guest.channel_open_x11("127.0.0.1", 1).await);
    assert!(!session.is_lost());
}

#[tokio::test]
async fn a_guest_that_opens_channel_after_channel_is_left() {
    let (session, guest) = attacked().await;
    let attack = async {
        while !session.is_lost() {
            let _ = guest.channel_open_session().await;
        }
    };
    let (lost, _) = tokio::join!(timeout(SOON, session.lost()), timeout(SOON, attack));
    assert!(lost.expect("soon").why.starts_with("the guest opens channel after channel"));
}

#[tokio::test]
async fn what_a_guest_says_last_is_short_and_printable() {
    let (session, guest) = attacked().await;
    let words = format!("\u{1b}[2Jforged\n{}", "a".repeat(100_000));
    guest.disconnect(Disconnect::ByApplication, words, String::new()).await.expect("it is said");
    let lost = timeout(SOON, session.lost()).await.expect("soon");
    let said = lost.why.strip_prefix("the server disconnected: ").expect("its words");
    assert!(said.starts_with(r"\u{1b}[2Jforged\naaa") && said.len() < 300, "{said:?}");
}

#[tokio::test]
async fn a_guest_that_asks_for_new_keys_without_end_slows_down_itself_only() {
    // Some ten exchanges.
    let server = Server::with(Kind::OpenSsh, "RekeyLimit 100K");
    let session = server.session().await;
    let began = Instant::now();
    let process = session.exec(Exec::shell("head -c 1000000 /dev/zero")).await.expect("a process");
    let output =
        timeout(Duration::from_secs(60), process.output(2_000_000)).await.expect("an end").expect("its output");
    assert_eq!(output.stdout.len(), 1_000_000);
    assert!(began.elapsed() >= Duration::from_secs(2), "after {:?}", began.elapsed());
}
