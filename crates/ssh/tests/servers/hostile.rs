//! A guest whose ssh server is its owner's: it has the right host key, and does what no honest server would.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use russh::server::{self, Auth, ChannelOpenHandle, Handle, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Disconnect, Error};
use ssh::{Exec, ExecError, Session, Target, Timing};
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
    let (handles, mut handed) = mpsc::unbounded_channel();
    let session = session_with(Hostile(handles)).await;
    let handle = timeout(SOON, handed.recv()).await.expect("soon").expect("it let us in");
    (session, handle)
}

async fn session_with(handler: impl server::Handler<Error = Error> + Send + 'static) -> Session {
    // For its keys.
    let honest = Server::start(Kind::OpenSsh);
    let key = russh::keys::load_secret_key(honest.path("host_ed25519"), None).expect("a host key");
    let config = Arc::new(server::Config { keys: vec![key], ..server::Config::default() });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("listen on loopback");
    let target = Target { address: listener.local_addr().expect("a bound address"), ..honest.target() };
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accept a connection");
        let running = server::run_stream(config, stream, handler).await.expect("begin");
        let _ = running.await;
    });
    Session::connect(&target, &Timing::default()).await.expect("a session")
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

/// Says that the first command runs, and of the next one nothing that could be understood, with which the first one ends.
struct Mumbling {
    channels: Vec<Channel<server::Msg>>,
    said: Vec<u8>,
    ended: mpsc::UnboundedSender<()>,
}

impl server::Handler for Mumbling {
    type Error = Error;

    async fn auth_publickey(&mut self, _: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<server::Msg>,
        reply: ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), Error> {
        self.channels.push(channel);
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(&mut self, channel: ChannelId, _: &[u8], session: &mut server::Session) -> Result<(), Error> {
        session.channel_success(channel)
    }

    async fn data(&mut self, channel: ChannelId, data: &[u8], session: &mut server::Session) -> Result<(), Error> {
        let first = self.channels[0].id();
        if channel != first {
            session.data(channel, "what?\n")?;
            session.exit_status_request(channel, 0)?;
            session.close(channel)?;
            session.close(first)?;
            return self.ended.send(()).map_err(|_| Error::SendError);
        }
        self.said.extend(data);
        match nonce_in(&self.said) {
            Some(nonce) => session.extended_data(channel, 1, format!("{nonce} run 45 6\n")),
            None => Ok(()),
        }
    }
}

/// Closes so many channels when it is asked for a command on them, as dropbear does when another channel's command ends.
struct Closing(usize);

impl server::Handler for Closing {
    type Error = Error;

    async fn auth_publickey(&mut self, _: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<server::Msg>,
        reply: ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(&mut self, channel: ChannelId, _: &[u8], session: &mut server::Session) -> Result<(), Error> {
        match self.0.checked_sub(1) {
            Some(left) => {
                self.0 = left;
                session.eof(channel)?;
                session.close(channel)
            }
            None => session.channel_success(channel),
        }
    }

    async fn data(&mut self, channel: ChannelId, data: &[u8], session: &mut server::Session) -> Result<(), Error> {
        assert_eq!(self.0, 0, "data for a command that was not taken");
        match nonce_in(data) {
            Some(nonce) => session.extended_data(channel, 1, format!("{nonce} run 45 6\n")),
            None => Ok(()),
        }
    }
}

/// Finds what marks our lines: a word of x and sixteen digits.
fn nonce_in(script: &[u8]) -> Option<String> {
    let nonce = script.windows(17).find(|word| word[0] == b'x' && word[1..].iter().all(u8::is_ascii_hexdigit))?;
    Some(String::from_utf8_lossy(nonce).into_owned())
}

#[tokio::test]
async fn a_command_is_started_though_channels_close_before_it_is_taken() {
    for (closed, started) in [(1, true), (4, true), (5, false)] {
        let session = session_with(Closing(closed)).await;
        let process = timeout(SOON, session.exec(Exec::shell("true"))).await.expect("soon");
        match (&process, started) {
            (Ok(process), true) => assert_eq!(process.pid(), 45),
            (Err(ExecError::NotStarted { why, .. }), false) => assert!(why.contains("closed each channel"), "{why}"),
            _ => panic!("{closed}: {process:?}"),
        }
    }
}

/// Counts the warnings of this crate.
struct Warnings(Arc<AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN && metadata.target().starts_with("ssh")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn nobody_is_warned_of_a_command_that_has_ended() {
    let warnings = Arc::new(AtomicUsize::new(0));
    let _guard = tracing::subscriber::set_default(Warnings(Arc::clone(&warnings)));
    let (ended, mut end) = mpsc::unbounded_channel();
    let session = session_with(Mumbling { channels: Vec::new(), said: Vec::new(), ended }).await;
    let process = timeout(SOON, session.exec(Exec::shell("true"))).await.expect("soon").expect("a process");
    drop(process);
    timeout(SOON, end.recv()).await.expect("it is killed").expect("the server lives");
    // Whoever warns does so when the command's channel is closed, which is before the next one is answered.
    let next = timeout(SOON, session.exec(Exec::shell("true")));
    let _ = tokio::time::timeout(Duration::from_secs(1), next).await;
    assert_eq!(warnings.load(Ordering::SeqCst), 0);
}
