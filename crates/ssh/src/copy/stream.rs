//! The joint between a blocking thread that packs or unpacks and the async side that owns the channel.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::mpsc;

/// How many bytes are handed over at once.
const CHUNK: usize = 256 * 1024;

/// How many chunks may be under way.
const QUEUE: usize = 8;

/// Returns both ends of a stream from a thread to a task.
pub(super) fn to_task() -> (ChunkWriter, mpsc::Receiver<Bytes>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (ChunkWriter { sender, chunk: BytesMut::with_capacity(CHUNK) }, receiver)
}

/// Returns both ends of a stream from a task to a thread. The task's chunks are as small as packets, so more of them
/// may be under way.
pub(super) fn to_thread() -> (mpsc::Sender<Bytes>, ChunkReader) {
    let (sender, receiver) = mpsc::channel(QUEUE * 8);
    (sender, ChunkReader { receiver, chunk: Bytes::new() })
}

/// Writes into a stream; fails when nobody takes it any more.
pub(super) struct ChunkWriter {
    sender: mpsc::Sender<Bytes>,
    chunk: BytesMut,
}

impl Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let taken = data.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&data[..taken]);
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, BytesMut::with_capacity(CHUNK)).freeze();
        self.sender.blocking_send(chunk).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Reads from a stream, until its sender is dropped.
pub(super) struct ChunkReader {
    receiver: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let taken = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..taken]);
        Ok(taken)
    }
}
