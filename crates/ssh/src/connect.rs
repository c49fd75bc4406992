//! One try at a connection: TCP, banner, key exchange, login.

use std::borrow::Cow;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::client::{self, ChannelOpenHandle, DisconnectReason, GexParams, Handle, Msg};
use russh::keys::{Algorithm, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{AlgorithmKind, Channel, MethodSet, Names, Preferred, cipher, compression, kex, mac};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::session::State;
use crate::{ConnectError, HostKey, HostKeyPolicy, Processor, Target, Timing, said};

/// How much one channel may receive before the guest must wait for us, in bytes.
const WINDOW: u32 = 4 << 20;

/// The largest packet we take, in bytes; OpenSSH sends at most 32 KiB at a time.
const PACKET: u32 = 65_535;

/// The fastest first. What follows AES-256 in counter mode is for guests that have nothing else: systems of before 2014,
/// appliances, servers that somebody has narrowed.
const REAL_CIPHERS: [cipher::Name; 9] = [
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_128_CTR,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CBC,
    cipher::AES_256_CBC,
    cipher::AES_192_CBC,
];

/// The fastest first, at the end of a processor that is emulated.
const EMULATED_CIPHERS: [cipher::Name; 9] = [
    cipher::AES_128_CTR,
    cipher::CHACHA20_POLY1305,
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CBC,
    cipher::AES_256_CBC,
    cipher::AES_192_CBC,
];

/// The cheapest of the safe ones first. A guest is a machine of ours at a port of this host, so that an old one is better let
/// in than shut out: SHA-1 comes last. What no server should be asked for any more is left out (a group of 1024 bits).
const KEY_EXCHANGES: [kex::Name; 15] = [
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::MLKEM768X25519_SHA256,
    kex::ECDH_SHA2_NISTP256,
    kex::DH_G16_SHA512,
    kex::DH_G14_SHA256,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_GEX_SHA256,
    kex::DH_G15_SHA512,
    kex::DH_G18_SHA512,
    kex::DH_G14_SHA1,
    kex::DH_GEX_SHA1,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];

/// Only the ciphers without a check of their own need one.
const MACS: [mac::Name; 6] = [
    mac::HMAC_SHA256_ETM,
    mac::HMAC_SHA512_ETM,
    mac::HMAC_SHA256,
    mac::HMAC_SHA512,
    mac::HMAC_SHA1_ETM,
    mac::HMAC_SHA1,
];

/// The bits of a group that the server is to choose: at least, best and at most. More than the least would cost an emulated
/// guest seconds.
const GROUP: (usize, usize, usize) = (2048, 2048, 8192);

/// How many channels a server may try to open before the session is ended. It has no reason to open a single one, and russh
/// remembers each until it can be answered.
const MOST_REFUSED: u32 = 16;

/// How much time lies between two key exchanges at least. A server may ask for one whenever it likes, and each takes a
/// processor milliseconds; of ours one is due after each GiB.
const KEYS_APART: Duration = Duration::from_millis(500);

/// What a try came to.
pub(crate) struct Connected {
    pub handle: Handle<Client>,
    pub host_key: HostKey,
}

/// Connects and waits for the server's banner, each bounded by `timing`.
pub(crate) async fn reach(target: &Target, timing: &Timing) -> Result<TcpStream, ConnectError> {
    let not_ready = |why: String| ConnectError::NotReady { target: target.to_string(), why };
    let stream = within(timing.connect, TcpStream::connect(target.address), "no TCP connection")
        .await
        .map_err(not_ready)?
        .map_err(|error| not_ready(error.to_string()))?;
    // Keystrokes and signals must not wait for Nagle's algorithm; without it the session still works.
    let _ = stream.set_nodelay(true);
    banner(&stream, target, timing).await?;
    Ok(stream)
}

/// Exchanges keys and logs in, bounded by `timing`.
pub(crate) async fn login(
    stream: TcpStream,
    target: &Target,
    timing: &Timing,
    state: watch::Sender<State>,
) -> Result<Connected, ConnectError> {
    let not_ready = |why: String| ConnectError::NotReady { target: target.to_string(), why };
    within(timing.login, handshake(stream, target, timing, state), "no login").await.map_err(not_ready)?
}

/// Waits for a future, or says for how long it was waited for in vain.
async fn within<T>(limit: Duration, future: impl Future<Output = T>, what: &str) -> Result<T, String> {
    timeout(limit, future).await.map_err(|_| format!("{what} within {limit:?}"))
}

/// Waits for the server's first bytes without consuming them, and looks whether it is an ssh server.
async fn banner(stream: &TcpStream, target: &Target, timing: &Timing) -> Result<(), ConnectError> {
    let not_ready = |why: String| ConnectError::NotReady { target: target.to_string(), why };
    let mut start = [0; 64];
    let peeked =
        within(timing.banner, stream.peek(&mut start), "connected, but no ssh banner").await.map_err(not_ready)?;
    let length = peeked.map_err(|error| not_ready(error.to_string()))?;
    let start = &start[..length];
    if length == 0 {
        return Err(not_ready("connection closed before the ssh banner".to_owned()));
    }
    if b"SSH-".starts_with(&start[..length.min(4)]) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(start).trim_end().to_owned();
    // sshd's words when it has too many connections or (9.8 and later) penalises an address.
    if said.starts_with("Exceeded") || said.starts_with("Not allowed") {
        return Err(not_ready(format!("the server says {said:?}")));
    }
    Err(ConnectError::Incompatible {
        target: target.to_string(),
        why: format!("it is no ssh server: it says {said:?}"),
    })
}

async fn handshake(
    stream: TcpStream,
    target: &Target,
    timing: &Timing,
    state: watch::Sender<State>,
) -> Result<Connected, ConnectError> {
    let seen = Arc::new(Mutex::new(None));
    let client = Client {
        policy: target.host_key.clone(),
        seen: Arc::clone(&seen),
        state: state.clone(),
        refused: 0,
        next_keys: Instant::now(),
    };
    let connected = client::connect_stream(Arc::new(config(target, timing)), stream, client).await;
    let host_key = seen.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut handle = connected.map_err(|error| match (&error, &target.host_key, &host_key) {
        (russh::Error::UnknownKey, HostKeyPolicy::Pinned(pinned), Some(presented)) => ConnectError::HostKeyMismatch {
            target: target.to_string(),
            pinned: pinned.fingerprint(),
            presented: presented.fingerprint(),
        },
        _ => broken(target, &error),
    })?;
    authenticate(&mut handle, target, &state).await?;
    let host_key = host_key.ok_or_else(|| ConnectError::Incompatible {
        target: target.to_string(),
        why: "it presented no plain host key".to_owned(),
    })?;
    Ok(Connected { handle, host_key })
}

async fn authenticate(
    handle: &mut Handle<Client>,
    target: &Target,
    state: &watch::Sender<State>,
) -> Result<(), ConnectError> {
    let ended = |error: russh::Error| match &state.borrow().ended {
        Some(why) => ConnectError::NotReady { target: target.to_string(), why: format!("during login: {why}") },
        None => broken(target, &error),
    };
    let key = target.identity.key();
    // Servers since 2021 refuse the SHA-1 signatures of plain "ssh-rsa"; which others they know, they announce.
    let hash = match key.algorithm() {
        Algorithm::Rsa { .. } => handle.best_supported_rsa_hash().await.map_err(ended)?.flatten(),
        _ => None,
    };
    let key = PrivateKeyWithHashAlg::new(key, hash);
    match handle.authenticate_publickey(&target.user, key).await.map_err(ended)? {
        client::AuthResult::Success => Ok(()),
        client::AuthResult::Failure { remaining_methods, .. } => Err(ConnectError::KeyRefused {
            target: target.to_string(),
            fingerprint: target.identity.fingerprint(),
            methods: names(&remaining_methods),
        }),
    }
}

fn names(methods: &MethodSet) -> String {
    let names: Vec<&str> = methods.iter().map(<&str>::from).collect();
    match names.is_empty() {
        true => "nothing else".to_owned(),
        false => names.join(","),
    }
}

/// Sorts a failure during the handshake: a booting guest cuts connections short at any point.
fn broken(target: &Target, error: &russh::Error) -> ConnectError {
    use russh::Error;
    let (target, why) = (target.to_string(), said::line(&error.to_string()));
    match error {
        Error::NoCommonAlgo { kind, ours, theirs } => {
            ConnectError::Incompatible { target, why: nothing_in_common(kind, ours, theirs) }
        }
        Error::IO(_)
        | Error::HUP
        | Error::Disconnect
        | Error::SendError
        | Error::RecvError
        | Error::Elapsed(_)
        | Error::Join(_) => ConnectError::NotReady { target, why },
        _ => ConnectError::Incompatible { target, why },
    }
}

/// Says what two lists of names are about that have none in common, and what to do.
fn nothing_in_common(kind: &AlgorithmKind, ours: &[String], theirs: &[String]) -> String {
    let (what, setting) = match kind {
        AlgorithmKind::Kex => ("key exchange", "KexAlgorithms"),
        AlgorithmKind::Key => ("kind of host key", "HostKeyAlgorithms, or the host keys that it has"),
        AlgorithmKind::Cipher => ("cipher", "Ciphers"),
        AlgorithmKind::Mac => ("message authentication code", "MACs"),
        AlgorithmKind::Compression => ("compression", "Compression"),
    };
    format!(
        "they have no {what} in common: the guest has {}; let it have one of {} as well (sshd_config's {setting})",
        // Who narrows a server names few.
        said::line(&theirs.join(", ")),
        ours.join(", ")
    )
}

fn config(target: &Target, timing: &Timing) -> client::Config {
    client::Config {
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        channel_buffer_size: 64,
        preferred: preferred(&target.host_key, target.processor),
        keepalive_interval: Some(timing.keepalive),
        keepalive_max: timing.keepalive_tries.max(1) as usize,
        nodelay: true,
        gex: GexParams::new(GROUP.0, GROUP.1, GROUP.2).unwrap_or_default(),
        ..client::Config::default()
    }
}

fn preferred(host_key: &HostKeyPolicy, processor: Processor) -> Preferred {
    let mut keys = Preferred::DEFAULT.key.to_vec();
    if let HostKeyPolicy::Pinned(pinned) = host_key {
        // A server with several host keys presents the kind that we name first.
        let same_kind = |kind: &Algorithm| match (kind, pinned.algorithm()) {
            (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
            (kind, pinned) => *kind == pinned,
        };
        keys.sort_by_key(|kind| !same_kind(kind));
    }
    Preferred {
        kex: Cow::Borrowed(&KEY_EXCHANGES),
        key: Cow::Owned(keys),
        cipher: Cow::Borrowed(match processor {
            Processor::Real => &REAL_CIPHERS,
            Processor::Emulated => &EMULATED_CIPHERS,
        }),
        mac: Cow::Borrowed(&MACS),
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::DEFAULT
    }
}

/// What russh's connection task asks of us.
pub(crate) struct Client {
    policy: HostKeyPolicy,
    seen: Arc<Mutex<Option<HostKey>>>,
    state: watch::Sender<State>,
    /// How many channels the server tried to open.
    refused: u32,
    /// When keys may be exchanged again.
    next_keys: Instant,
}

impl Client {
    fn ended(&self, why: String) {
        self.state.send_if_modified(|state| state.end(why));
    }

    /// Takes note of a channel that is refused.
    fn refuse(&mut self) -> Result<(), russh::Error> {
        self.refused += 1;
        if self.refused <= MOST_REFUSED {
            return Ok(());
        }
        self.ended("the guest opens channel after channel to us, which no ssh server does".to_owned());
        Err(russh::Error::Disconnect)
    }
}

/// Refuses channels that a server opens, which russh would accept: we have nothing that a guest may reach. A
/// `ChannelOpenHandle` that is dropped says so to the server.
macro_rules! refuse {
    ($($channel:ident($($what:ty),*);)*) => {$(
        async fn $channel(
            &mut self,
            _: Channel<Msg>,
            $(_: $what,)*
            _: ChannelOpenHandle,
            _: &mut client::Session,
        ) -> Result<(), russh::Error> {
            self.refuse()
        }
    )*};
}

/// What else a server may say has russh's own answer, which is to do nothing; the test below has the whole list.
impl client::Handler for Client {
    type Error = russh::Error;

    refuse! {
        server_channel_open_agent_forward();
        server_channel_open_direct_streamlocal(&str);
        server_channel_open_direct_tcpip(&str, u32, &str, u32);
        server_channel_open_forwarded_streamlocal(&str);
        server_channel_open_forwarded_tcpip(&str, u32, &str, u32);
        server_channel_open_session();
        server_channel_open_unknown();
        server_channel_open_x11(&str, u32);
    }

    async fn kex_done(&mut self, _: Option<&[u8]>, _: &Names, _: &mut client::Session) -> Result<(), russh::Error> {
        // While this waits nothing is read, so that a guest that asks without end only slows itself down.
        sleep_until(self.next_keys).await;
        self.next_keys = Instant::now() + KEYS_APART;
        Ok(())
    }

    async fn check_server_key(&mut self, presented: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = presented else {
            return Ok(false);
        };
        let presented = HostKey::new(key);
        let accepted = match &self.policy {
            HostKeyPolicy::Pinned(pinned) => *pinned == presented,
            HostKeyPolicy::Learn => true,
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(presented);
        Ok(accepted)
    }

    async fn disconnected(&mut self, reason: DisconnectReason<russh::Error>) -> Result<(), russh::Error> {
        match reason {
            DisconnectReason::ReceivedDisconnect(last) => {
                self.ended(format!("the server disconnected: {}", said::line(&last.message)));
                Ok(())
            }
            DisconnectReason::Error(error) => {
                self.ended(match &error {
                    russh::Error::HUP => "the server closed the connection".to_owned(),
                    russh::Error::KeepaliveTimeout => "the guest no longer answers keepalives".to_owned(),
                    error => said::line(&error.to_string()),
                });
                Err(error)
            }
        }
    }
}

impl Drop for Client {
    /// The task is over, whether or not `disconnected` was called.
    fn drop(&mut self) {
        self.ended("the connection was closed".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;
    use std::process::Command;

    /// All that russh asks of a client, and what we have decided: a method that is not ours must do nothing by itself.
    const REFUSED: [&str; 8] = [
        "server_channel_open_agent_forward",
        "server_channel_open_direct_streamlocal",
        "server_channel_open_direct_tcpip",
        "server_channel_open_forwarded_streamlocal",
        "server_channel_open_forwarded_tcpip",
        "server_channel_open_session",
        "server_channel_open_unknown",
        "server_channel_open_x11",
    ];
    const OURS: [&str; 3] = ["check_server_key", "disconnected", "kex_done"];
    const HARMLESS: [&str; 16] = [
        "adjust_window",
        "auth_banner",
        "channel_close",
        "channel_eof",
        "channel_failure",
        "channel_open_confirmation",
        "channel_open_failure",
        "channel_success",
        "data",
        "exit_signal",
        "exit_status",
        "extended_data",
        "openssh_ext_host_keys_announced",
        "should_accept_unknown_server_channel",
        "window_adjusted",
        "xon_xoff",
    ];

    /// Where cargo has a package's source.
    fn source_of(package: &str) -> PathBuf {
        let asked = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version=1", "--offline", "--locked", "--filter-platform"])
            // What other systems need is not there.
            .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
            .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
            .output()
            .expect("run cargo");
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        let text = String::from_utf8(asked.stdout).expect("JSON is UTF-8");
        let manifest = text
            .split("\"manifest_path\":\"")
            .filter_map(|rest| rest.split('"').next())
            .find(|path| path.contains(&format!("/{package}-")))
            .expect("it is depended on");
        PathBuf::from(manifest).parent().expect("a manifest is in a directory").to_owned()
    }

    #[test]
    fn nothing_that_a_server_may_ask_of_russh_is_undecided() {
        let source = std::fs::read_to_string(source_of("russh").join("src/client/mod.rs")).expect("russh's source");
        let handler = source.split("pub trait Handler").nth(1).and_then(|rest| rest.split("\n}\n").next());
        let asked: BTreeSet<&str> = handler
            .expect("russh has a trait of that name")
            .lines()
            .filter_map(|line| line.strip_prefix("    fn ")?.split('(').next())
            .collect();
        let decided: BTreeSet<&str> = REFUSED.into_iter().chain(OURS).chain(HARMLESS).collect();
        assert_eq!(asked, decided);
    }
}
