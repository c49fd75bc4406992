//! MessagePack over WebSocket: the handshake with its login, and the messages.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::{SinkExt, StreamExt};
use protocol::msgpack::{self, DecodeError, MAX_MESSAGE_SIZE};
use protocol::{Call, Reply, SeqNumber};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::http::header::{AUTHORIZATION, USER_AGENT};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tracing::{debug, trace, warn};

use super::connect::{ConnectError, Stream};
use super::wire::{Over, Received};
use crate::config::{MasterAddress, Password};

/// A WebSocket on which the login has succeeded.
pub(super) struct WebSocket(WebSocketStream<Box<dyn Stream>>);

impl WebSocket {
    /// Logs in on a connection that has just been made.
    pub(super) async fn open(
        master: &MasterAddress,
        name: &str,
        password: &Password,
        stream: Box<dyn Stream>,
    ) -> Result<Self, ConnectError> {
        let failed = |reason: String| ConnectError::Handshake { authority: master.authority(), reason };
        // Inside TLS the request is the same.
        let url = format!("ws://{}{}", master.authority(), master.path);
        let mut request = url.into_client_request().map_err(|error| failed(error.to_string()))?;
        let credentials = BASE64_STANDARD.encode(format!("{name}:{}", password.reveal()));
        let authorization = HeaderValue::try_from(format!("Basic {credentials}"));
        let mut authorization = authorization.map_err(|error| failed(error.to_string()))?;
        authorization.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, authorization);
        let agent = concat!("kvm-worker/", env!("CARGO_PKG_VERSION"));
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(agent));
        let limits =
            WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE_SIZE)).max_frame_size(Some(MAX_MESSAGE_SIZE));
        match tokio_tungstenite::client_async_with_config(request, stream, Some(limits)).await {
            Ok((socket, _)) => Ok(WebSocket(socket)),
            Err(WsError::Http(response)) if response.status() == StatusCode::UNAUTHORIZED => {
                Err(ConnectError::Login { authority: master.authority(), name: name.to_owned() })
            }
            Err(WsError::Http(response)) => Err(failed(format!("it answered {}", response.status()))),
            Err(error) => Err(failed(describe(&error))),
        }
    }

    pub(super) async fn receive(&mut self) -> Result<Received, Over> {
        match self.0.next().await {
            None | Some(Ok(Message::Close(_))) => Err(Over("the master closed the connection".to_owned())),
            Some(Err(error)) => Err(broken(&error)),
            Some(Ok(Message::Binary(bytes))) => {
                trace!(bytes = bytes.len(), "message from the master");
                received(&bytes)
            }
            Some(Ok(Message::Text(_))) => {
                debug!("ignored a text message from the master");
                Ok(Received::SignOfLife)
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(Received::SignOfLife),
        }
    }

    pub(super) async fn call(&mut self, seq: SeqNumber, call: &Call) -> Result<(), Over> {
        self.send(Message::Binary(msgpack::encode_call(seq, call).into())).await
    }

    pub(super) async fn reply(&mut self, seq: SeqNumber, reply: &Reply) -> Result<(), Over> {
        self.send(Message::Binary(msgpack::encode_reply(seq, reply).into())).await
    }

    pub(super) async fn ask_for_life(&mut self) -> Result<(), Over> {
        self.send(Message::Ping(Default::default())).await
    }

    pub(super) async fn close(&mut self) -> Result<(), Over> {
        self.0.close(None).await.map_err(|error| broken(&error))
    }

    async fn send(&mut self, message: Message) -> Result<(), Over> {
        self.0.send(message).await.map_err(|error| broken(&error))
    }
}

fn received(bytes: &[u8]) -> Result<Received, Over> {
    match msgpack::decode(bytes) {
        Ok(incoming) => Ok(Received::Incoming(incoming)),
        Err(DecodeError::Ignored(why)) => {
            warn!("ignored a message from the master: {why}");
            Ok(Received::SignOfLife)
        }
        Err(DecodeError::Refused { seq, message }) => Ok(Received::Senseless { seq, message }),
        Err(violation @ DecodeError::Violation(_)) => Err(Over(violation.to_string())),
    }
}

fn broken(error: &WsError) -> Over {
    Over(format!("the line to the master broke: {}", describe(error)))
}

/// What went wrong on a WebSocket, for people.
fn describe(error: &WsError) -> String {
    match error {
        WsError::ConnectionClosed | WsError::AlreadyClosed => "it closed the connection".to_owned(),
        WsError::Io(error) => error.to_string(),
        WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => "it cut the connection".to_owned(),
        other => other.to_string(),
    }
}
