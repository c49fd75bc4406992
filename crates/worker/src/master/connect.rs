//! One attempt to reach the master: TCP, TLS if asked for, and the protocol's beginning.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::broker::Broker;
use super::prompt::Prompt;
use super::websocket::WebSocket;
use super::wire::Wire;
use crate::config::{MasterAddress, Password, Scheme};
use crate::plain_file;

/// A byte stream to the master.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Why the master was not reached. Each text ends in a remedy where there is one.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    #[error("connect to {authority}: {source}; is the master running, and is this a port of its protocols?")]
    Tcp { authority: String, source: io::Error },
    #[error("nothing answered at {authority} within {} s; check the address and any firewall between", .timeout.as_secs())]
    Timeout { authority: String, timeout: Duration },
    #[error(
        "TLS with {authority}: {source}; if the master's certificate is private, give its authority in worker.ca_file"
    )]
    Tls { authority: String, source: io::Error },
    #[error("read the certificates of worker.ca_file {}: {reason}", .file.display())]
    CaFile { file: PathBuf, reason: String },
    #[error(
        "the master at {authority} refused the login of worker '{name}': no worker of that name in its configuration, \
         or another password"
    )]
    Login { authority: String, name: String },
    #[error(
        "{authority} does not speak Buildbot's WebSocket protocol ({reason}); is this the port of msgpack_experimental_v7?"
    )]
    Handshake { authority: String, reason: String },
}

/// Connects, within `timeout` for all of it. Over WebSocket the login is part of it; over PB it is the first thing said.
pub(super) async fn connect(
    master: &MasterAddress,
    ca_file: Option<&Path>,
    name: &str,
    password: &Password,
    timeout: Duration,
) -> Result<Wire, ConnectError> {
    let attempt = async {
        let stream = reach(master, ca_file).await?;
        match master.scheme {
            Scheme::Ws | Scheme::Wss => {
                let socket = WebSocket::open(master, name, password, stream).await?;
                Ok(Wire::WebSocket(Box::new(socket)))
            }
            Scheme::Pb | Scheme::Pbs => Ok(Wire::Broker(Box::new(Broker::new(name, password, stream)))),
        }
    };
    tokio::time::timeout(timeout, attempt)
        .await
        .unwrap_or_else(|_| Err(ConnectError::Timeout { authority: master.authority(), timeout }))
}

/// Makes a connection on which nothing was said yet, in TLS if the address says so.
pub(super) async fn reach(master: &MasterAddress, ca_file: Option<&Path>) -> Result<Box<dyn Stream>, ConnectError> {
    let stream = tcp(master).await?;
    Ok(match master.scheme {
        Scheme::Ws | Scheme::Pb => Box::new(stream),
        Scheme::Wss | Scheme::Pbs => Box::new(tls(master, ca_file, stream).await?),
    })
}

async fn tcp(master: &MasterAddress) -> Result<Prompt, ConnectError> {
    let failed = |source| ConnectError::Tcp { authority: master.authority(), source };
    let stream = TcpStream::connect((master.host.as_str(), master.port)).await.map_err(failed)?;
    // A name may stand for several.
    tracing::Span::current().record("peer", tracing::field::display(stream.peer_addr().map_err(failed)?));
    Prompt::new(stream).map_err(failed)
}

async fn tls(
    master: &MasterAddress,
    ca_file: Option<&Path>,
    stream: Prompt,
) -> Result<impl Stream + use<>, ConnectError> {
    let failed = |source| ConnectError::Tls { authority: master.authority(), source };
    let roots = match ca_file {
        Some(file) => roots_from(file)?,
        None => system_roots().map_err(failed)?,
    };
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(io::Error::other(error)))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = ServerName::try_from(master.host.clone()).map_err(|error| failed(io::Error::other(error)))?;
    TlsConnector::from(Arc::new(config)).connect(server, stream).await.map_err(failed)
}

/// The largest `worker.ca_file`, in bytes. All authorities that browsers trust take a quarter of a megabyte.
const MAX_CA_FILE: u64 = 16 << 20;

fn roots_from(file: &Path) -> Result<RootCertStore, ConnectError> {
    let failed = |reason: String| ConnectError::CaFile { file: file.to_owned(), reason };
    let mut roots = RootCertStore::empty();
    let text = plain_file::read(file, MAX_CA_FILE).map_err(|error| failed(error.to_string()))?;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        roots.add(certificate).map_err(|error| failed(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(failed("there is no PEM certificate in it".to_owned()));
    }
    Ok(roots)
}

fn system_roots() -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    // The system's store may hold a certificate that rustls does not take; the others still count.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(io::Error::other("this system has no certificate authorities; install ca-certificates"));
    }
    Ok(roots)
}
