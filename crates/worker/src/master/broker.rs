//! Perspective Broker over a byte stream. The protocol itself is [`protocol::pb`]; here is its socket.

use bytes::{Buf, BytesMut};
use protocol::pb::{Connection, Event, Refusal};
use protocol::{Call, Reply, SeqNumber};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tracing::{debug, warn};

use super::connect::Stream;
use super::wire::{Over, Received, Refused};
use crate::config::Password;

/// How much may wait to be written before those who say something wait, in bytes.
const UNWRITTEN: usize = 1 << 20;

/// A connection on which the login takes place, or has.
pub(super) struct Broker {
    connection: Connection,
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    /// What has come and not been understood yet.
    input: BytesMut,
    /// What is on its way out.
    output: BytesMut,
    /// Whether what was written may still be held back by TLS.
    unflushed: bool,
}

impl Broker {
    /// Begins on a connection that has just been made. The master speaks first.
    pub(super) fn new(name: &str, password: &Password, stream: Box<dyn Stream>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let connection = Connection::new(name, password.reveal());
        Broker {
            connection,
            reader,
            writer,
            input: BytesMut::with_capacity(64 * 1024),
            output: BytesMut::new(),
            unflushed: false,
        }
    }

    pub(super) async fn receive(&mut self) -> Result<Received, Over> {
        loop {
            while let Some(event) = self.connection.next_event() {
                if let Some(received) = received(event)? {
                    return Ok(received);
                }
            }
            self.output.extend_from_slice(&self.connection.take_output());
            tokio::select! {
                read = self.reader.read_buf(&mut self.input) => {
                    if read.map_err(|error| broken(&error))? == 0 {
                        return Err(Over("the master closed the connection".to_owned()));
                    }
                    self.connection.input(&self.input);
                    self.input.clear();
                    if let Some(received) = self.connection.next_event().map(received).transpose()?.flatten() {
                        return Ok(received);
                    }
                    return Ok(Received::SignOfLife);
                }
                written = write(&mut self.writer, &mut self.output, &mut self.unflushed),
                    if self.output.has_remaining() || self.unflushed =>
                {
                    written.map_err(|error| broken(&error))?;
                }
            }
        }
    }

    pub(super) async fn call(&mut self, seq: SeqNumber, call: &Call) -> Result<(), Over> {
        self.connection.call(seq, call);
        self.make_room().await
    }

    pub(super) async fn reply(&mut self, seq: SeqNumber, reply: &Reply) -> Result<(), Over> {
        self.connection.reply(seq, reply);
        self.make_room().await
    }

    pub(super) async fn ask_for_life(&mut self) -> Result<(), Over> {
        if !self.connection.keepalive() {
            debug!("the master owes an answer already");
        }
        self.make_room().await
    }

    pub(super) async fn ask_shutdown(&mut self) -> Result<bool, Over> {
        let asked = self.connection.ask_shutdown();
        self.make_room().await?;
        Ok(asked)
    }

    pub(super) async fn close(&mut self) -> Result<(), Over> {
        self.output.extend_from_slice(&self.connection.take_output());
        self.writer.write_all(&self.output).await.map_err(|error| broken(&error))?;
        self.writer.shutdown().await.map_err(|error| broken(&error))
    }

    /// Writes what has gathered, as far as the master takes it; waits only if it takes too little.
    async fn make_room(&mut self) -> Result<(), Over> {
        self.output.extend_from_slice(&self.connection.take_output());
        while self.output.len() > UNWRITTEN {
            write(&mut self.writer, &mut self.output, &mut self.unflushed).await.map_err(|error| broken(&error))?;
        }
        Ok(())
    }
}

/// Writes some of what is on its way out, or, once nothing is left, has it leave TLS. Cancel-safe.
async fn write(
    writer: &mut WriteHalf<Box<dyn Stream>>,
    output: &mut BytesMut,
    unflushed: &mut bool,
) -> std::io::Result<()> {
    if output.has_remaining() {
        *unflushed = true;
        writer.write_buf(output).await?;
    } else {
        writer.flush().await?;
        *unflushed = false;
    }
    Ok(())
}

fn received(event: Event) -> Result<Option<Received>, Over> {
    Ok(match event {
        Event::Incoming(incoming) => Some(Received::Incoming(incoming)),
        Event::LoggedIn => Some(Received::LoggedIn),
        Event::LoginRefused { refusal, message } => Some(Received::Refused(match refusal {
            Refusal::Unauthorized => Refused::Login,
            Refusal::Duplicate => Refused::Duplicate,
            Refusal::Nobody | Refusal::Other => Refused::Other(message),
        })),
        Event::ShutdownNoted(Ok(())) => None,
        Event::ShutdownNoted(Err(why)) => {
            warn!("the master does not let this worker go: {why}");
            None
        }
        Event::Warning(warning) => {
            warn!("from the master: {warning}");
            None
        }
        Event::Violation(violation) => return Err(Over(format!("protocol violation by the master: {violation}"))),
    })
}

fn broken(error: &std::io::Error) -> Over {
    Over(format!("the line to the master broke: {error}"))
}
