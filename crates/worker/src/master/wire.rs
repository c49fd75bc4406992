//! A conversation with the master, whatever the protocol: what it says comes out, what we say goes in.

use protocol::{Call, Incoming, Reply, SeqNumber, Settings};
use thiserror::Error;

use super::broker::Broker;
use super::websocket::WebSocket;

/// A connection that speaks one of the protocols.
pub(super) enum Wire {
    WebSocket(Box<WebSocket>),
    Broker(Box<Broker>),
}

/// What came from the master.
#[derive(Debug)]
pub(super) enum Received {
    /// It asks, or answers.
    Incoming(Incoming),
    /// It asks something that makes no sense; this is to be said to it.
    Senseless { seq: SeqNumber, message: String },
    /// It has let this worker in. Over MessagePack the connection says so.
    LoggedIn,
    /// It does not let this worker in.
    Refused(Refused),
    /// It is there, and that is all.
    SignOfLife,
}

/// Why the master does not let a worker in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// It does not know the name, or another password.
    Login,
    /// It has a worker of this name.
    Duplicate,
    /// Something else, in its own words.
    Other(String),
}

/// The conversation is over; the text says why.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub(super) struct Over(pub String);

impl Wire {
    /// How the master wants output if it does not say.
    pub(super) fn settings(&self) -> Settings {
        match self {
            Wire::WebSocket(_) => Settings::default(),
            Wire::Broker(_) => Settings::for_pb(),
        }
    }

    /// The next thing the master says. Cancel-safe.
    pub(super) async fn receive(&mut self) -> Result<Received, Over> {
        match self {
            Wire::WebSocket(wire) => wire.receive().await,
            Wire::Broker(wire) => wire.receive().await,
        }
    }

    /// Makes a call on the master.
    pub(super) async fn call(&mut self, seq: SeqNumber, call: &Call) -> Result<(), Over> {
        match self {
            Wire::WebSocket(wire) => wire.call(seq, call).await,
            Wire::Broker(wire) => wire.call(seq, call).await,
        }
    }

    /// Answers the master.
    pub(super) async fn reply(&mut self, seq: SeqNumber, reply: &Reply) -> Result<(), Over> {
        match self {
            Wire::WebSocket(wire) => wire.reply(seq, reply).await,
            Wire::Broker(wire) => wire.reply(seq, reply).await,
        }
    }

    /// Gives the master reason to say something.
    pub(super) async fn ask_for_life(&mut self) -> Result<(), Over> {
        match self {
            Wire::WebSocket(wire) => wire.ask_for_life().await,
            Wire::Broker(wire) => wire.ask_for_life().await,
        }
    }

    /// Asks the master for no more builds, and to be shut down after the last one. False if it can't be asked: over
    /// MessagePack, or before it has let this worker in.
    pub(super) async fn ask_shutdown(&mut self) -> Result<bool, Over> {
        match self {
            Wire::WebSocket(_) => Ok(false),
            Wire::Broker(wire) => wire.ask_shutdown().await,
        }
    }

    /// Says goodbye.
    pub(super) async fn close(&mut self) -> Result<(), Over> {
        match self {
            Wire::WebSocket(wire) => wire.close().await,
            Wire::Broker(wire) => wire.close().await,
        }
    }
}
