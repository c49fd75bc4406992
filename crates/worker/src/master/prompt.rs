use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A TCP connection that keeps neither side waiting for more to come.
///
/// The master (Twisted 26.10.0) sends a short message only when its previous one is acknowledged, and a kernel whose program
/// has nothing to say leaves an acknowledgement for up to 40 ms. So what is read is acknowledged at once: without that
/// each file of a few blocks takes those 40 ms more, and whatever else the master says twice in a row.
#[derive(Debug)]
pub(super) struct Prompt(TcpStream);

impl Prompt {
    /// Takes over a connection.
    ///
    /// # Errors
    /// It is gone already.
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Prompt(stream))
    }
}

impl AsyncRead for Prompt {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.0).poll_read(context, buffer))?;
        // The kernel forgets this wish after a while, so it is said each time. If it can't be met things are only slower.
        let _ = self.0.set_quickack(true);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_was_read_is_not_left_without_acknowledgement() -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut here = Prompt::new(TcpStream::connect(listener.local_addr()?).await?)?;
        let (mut there, _) = listener.accept().await?;
        // Who answers each message is one whose kernel waits for the next answer, to acknowledge with it.
        for _ in 0..8 {
            there.write_all(b"question").await?;
            here.read_exact(&mut [0; 8]).await?;
            assert!(here.0.quickack()?);
            here.write_all(b"answer").await?;
            there.read_exact(&mut [0; 6]).await?;
        }
        Ok(())
    }
}
