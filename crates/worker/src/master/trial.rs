//! Whether a master would let this worker in, found out without being its worker for a moment.
//!
//! A login of a worker has the master ask another one of its name whether it is alive, drop that if it does not answer, and
//! start builds on the new one. A trial goes no further than the master's look at the password:
//!
//! * Over PB the login comes [without the object](protocol::pb::Connection::trial) that the master calls.
//! * Over MessagePack the request for a WebSocket has an offer of an extension in it that makes no sense. A 4.3.0 master looks
//!   at the password first (`onConnect`) and then at the offers, and refuses that one with a status of its own
//!   (autobahn, `WebSocketServerProtocol.succeedHandshake`).

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use protocol::pb::{Connection, Event, Refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connect::{ConnectError, Stream, connect, reach};
use crate::config::{MasterAddress, Password, Scheme};

/// The longest head of an answer to a request for a WebSocket, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// The extension that is offered, with a parameter that it does not have.
const OFFER: &str = "permessage-deflate; trial";

/// Finds out whether a master takes a name and a password, within `timeout` for all of it.
///
/// # Errors
/// It does not, or it is not reached; the text ends in a remedy where there is one.
pub(crate) async fn try_login(
    master: &MasterAddress,
    ca_file: Option<&Path>,
    name: &str,
    password: &Password,
    timeout: Duration,
) -> Result<(), String> {
    let attempt = async {
        let stream = reach(master, ca_file).await.map_err(|error| error.to_string())?;
        match master.scheme {
            Scheme::Pb | Scheme::Pbs => over_pb(master, name, password, stream).await,
            Scheme::Ws | Scheme::Wss => match over_websocket(master, name, password, stream).await? {
                Answer::Accepted => Ok(()),
                Answer::Refused => Err(refused(master, name)),
                // By something between us and the master, which has words of its own for a refusal.
                Answer::Malformed => {
                    let connected = connect(master, ca_file, name, password, timeout).await;
                    let mut wire = connected.map_err(|error| error.to_string())?;
                    let _ = wire.close().await;
                    Ok(())
                }
                Answer::Other(status) => Err(handshake(master, format!("it answered {status}"))),
            },
        }
    };
    tokio::time::timeout(timeout, attempt)
        .await
        .unwrap_or_else(|_| Err(ConnectError::Timeout { authority: master.authority(), timeout }.to_string()))
}

async fn over_pb(
    master: &MasterAddress,
    name: &str,
    password: &Password,
    mut stream: Box<dyn Stream>,
) -> Result<(), String> {
    let strange = |why: &str| {
        format!("{why}; does {} speak the protocol of worker.master, {}?", master.authority(), master.scheme)
    };
    let mut connection = Connection::trial(name, password.reveal());
    let mut input = bytes::BytesMut::with_capacity(4096);
    loop {
        while let Some(event) = connection.next_event() {
            match event {
                Event::LoggedIn | Event::LoginRefused { refusal: Refusal::Nobody | Refusal::Duplicate, .. } => {
                    return Ok(());
                }
                Event::LoginRefused { refusal: Refusal::Unauthorized, .. } => return Err(refused(master, name)),
                Event::LoginRefused { refusal: Refusal::Other, message } => {
                    return Err(format!(
                        "the master refused the login of worker '{name}': {message}; its twistd.log says more"
                    ));
                }
                Event::Violation(violation) => {
                    return Err(strange(&format!("it says what PB does not know: {violation}")));
                }
                Event::Incoming(_) | Event::ShutdownNoted(_) | Event::Warning(_) => {}
            }
        }
        let broken = |error: std::io::Error| strange(&format!("the connection broke: {error}"));
        stream.write_all(&connection.take_output()).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        if stream.read_buf(&mut input).await.map_err(broken)? == 0 {
            return Err(strange("the connection was closed during the login"));
        }
        connection.input(&input);
        input.clear();
    }
}

/// What came of a request for a WebSocket.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The password is right.
    Accepted,
    Refused,
    /// Something is wrong with the request, and it is not said what.
    Malformed,
    /// Something else, as its status says.
    Other(String),
}

async fn over_websocket(
    master: &MasterAddress,
    name: &str,
    password: &Password,
    mut stream: Box<dyn Stream>,
) -> Result<Answer, String> {
    let credentials = BASE64_STANDARD.encode(format!("{name}:{}", password.reveal()));
    let key = BASE64_STANDARD.encode(rand::random::<[u8; 16]>());
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Extensions: {OFFER}\r\nAuthorization: Basic {credentials}\r\n\
         User-Agent: kvm-worker/{}\r\n\r\n",
        master.path,
        master.authority(),
        env!("CARGO_PKG_VERSION")
    );
    let broken = |error: std::io::Error| handshake(master, error.to_string());
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    let mut head = Vec::new();
    while !head.windows(2).any(|end| end == b"\r\n") && head.len() < MAX_HEAD {
        if stream.read_buf(&mut head).await.map_err(broken)? == 0 {
            break;
        }
    }
    answer(&String::from_utf8_lossy(&head)).ok_or_else(|| handshake(master, "it does not answer like one".to_owned()))
}

/// What an answer's first line says.
fn answer(head: &str) -> Option<Answer> {
    let status = head.split("\r\n").next()?.strip_prefix("HTTP/1.")?.get(2..)?;
    let (code, reason) = status.split_once(' ').unwrap_or((status, ""));
    Some(match code {
        "101" => Answer::Accepted,
        "401" => Answer::Refused,
        "400" if reason.contains("permessage-deflate") => Answer::Accepted,
        "400" => Answer::Malformed,
        _ => Answer::Other(status.chars().filter(|char| !char.is_control()).take(80).collect()),
    })
}

fn refused(master: &MasterAddress, name: &str) -> String {
    ConnectError::Login { authority: master.authority(), name: name.to_owned() }.to_string()
}

fn handshake(master: &MasterAddress, reason: String) -> String {
    ConnectError::Handshake { authority: master.authority(), reason }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_what_the_master_makes_of_the_password() {
        let check = |head: &str, expected: Option<Answer>| assert_eq!(answer(head), expected, "{head:?}");
        check("HTTP/1.1 101 Switching Protocols\r\nServer: x\r\n", Some(Answer::Accepted));
        check("HTTP/1.1 401 Unauthorized\r\n\r\n", Some(Answer::Refused));
        check(
            "HTTP/1.1 400 illegal extension parameter 'trial' for extension 'permessage-deflate'\r\n\r\n",
            Some(Answer::Accepted),
        );
        check("HTTP/1.1 400 Bad Request\r\n\r\n", Some(Answer::Malformed));
        check("HTTP/1.0 200 OK\r\n", Some(Answer::Other("200 OK".to_owned())));
        check("HTTP/1.1 502\r\n", Some(Answer::Other("502".to_owned())));
        check("\u{2}pb", None);
        check("HTTP/1.", None);
        check("", None);
    }
}
