//! A TCP proxy between worker and master.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, net};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A proxy on a port of loopback. Ends with the value.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    state: watch::Sender<State>,
    _runtime: Runtime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    /// Connections stand, but nothing passes, as behind a router that has lost its power.
    Dead,
}

/// A certificate authority and a certificate of it for `localhost`.
#[derive(Debug)]
pub struct Certificates {
    ca_pem: String,
    server_pem: String,
    server: Arc<ServerConfig>,
}

impl Line {
    /// A proxy for a port of loopback.
    pub fn to(port: u16) -> Result<Line> {
        Line::start(port, None)
    }

    /// A proxy that is spoken to in TLS.
    pub fn tls_to(port: u16, certificates: &Certificates) -> Result<Line> {
        Line::start(port, Some(TlsAcceptor::from(certificates.server.clone())))
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Lets nothing pass any more, in either direction, on old connections and on new ones, without closing any.
    pub fn cut(&self) {
        self.state.send_replace(State::Dead);
    }

    /// Lets everything pass again, what was held up included.
    pub fn mend(&self) {
        self.state.send_replace(State::Up);
    }

    fn start(port: u16, tls: Option<TlsAcceptor>) -> Result<Line> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = net::TcpListener::bind((net::Ipv4Addr::LOCALHOST, 0)).context("listen for a proxy")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (state, watched) = watch::channel(State::Up);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                let (tls, watched) = (tls.clone(), watched.clone());
                tokio::spawn(async move {
                    let target = TcpStream::connect((net::Ipv4Addr::LOCALHOST, port)).await?;
                    match tls {
                        None => pass(stream, target, watched).await,
                        Some(tls) => pass(tls.accept(stream).await?, target, watched).await,
                    }
                });
            }
            #[allow(unreachable_code)]
            std::io::Result::Ok(())
        });
        Ok(Line { address, state, _runtime: runtime })
    }
}

/// Copies in both directions until one ends.
async fn pass<S>(client: S, server: TcpStream, state: watch::Receiver<State>) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (client_reads, client_writes) = split(client);
    let (server_reads, server_writes) = split(server);
    tokio::select! {
        done = copy(client_reads, server_writes, state.clone()) => done,
        done = copy(server_reads, client_writes, state) => done,
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        // The end of a connection doesn't pass either while the line is dead.
        if state.wait_for(|state| *state == State::Up).await.is_err() || length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
    }
}

impl Certificates {
    /// Makes both.
    pub fn new() -> Result<Certificates> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "CA of a test");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &ca)?;
        let server_pem = key.serialize_pem() + &certificate.pem();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let server =
            ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key)?;
        Ok(Certificates { ca_pem: ca.pem(), server_pem, server: Arc::new(server) })
    }

    /// The key and the certificate of `localhost`, one after the other.
    pub(crate) fn server_pem(&self) -> &str {
        &self.server_pem
    }

    /// Writes the authority's certificate for whom it is to trust.
    pub fn write_ca(&self, directory: &Path) -> Result<PathBuf> {
        let path = directory.join("ca.pem");
        fs::write(&path, &self.ca_pem).context("write the certificate of the CA")?;
        Ok(path)
    }
}
