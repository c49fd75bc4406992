use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Lines of bounded length from a stream.
pub(crate) struct Lines<R> {
    stream: R,
    buffer: Vec<u8>,
    /// How much of the buffer is known to have no line end.
    searched: usize,
    max_bytes: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(stream: R, max_bytes: usize) -> Self {
        Lines { stream, buffer: Vec::new(), searched: 0, max_bytes }
    }

    /// Returns the next line without its end, `None` at the end of the stream. What follows the last line's end is no
    /// line. Cancel safe.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') {
                let rest = self.buffer.split_off(self.searched + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                line.truncate(line.trim_ascii_end().len());
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.searched > self.max_bytes {
                let text = format!("a line of more than {} bytes", self.max_bytes);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(stream: &[u8], max_bytes: usize, expected: &[&str], end: Result<(), &str>) {
        let mut lines = Lines::new(stream, max_bytes);
        let mut found = Vec::new();
        let ended = loop {
            match lines.next().await {
                Ok(Some(line)) => found.push(String::from_utf8(line).expect("tests speak ASCII")),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.to_string()),
            }
        };
        assert_eq!(
            (found, ended),
            (expected.iter().map(|&line| line.to_owned()).collect(), end.map_err(str::to_owned))
        );
    }

    #[tokio::test]
    async fn lines_end_with_or_without_carriage_return() {
        check(b"one\r\ntwo\n\nthree", 100, &["one", "two", ""], Ok(())).await;
        check(b"", 100, &[], Ok(())).await;
    }

    #[tokio::test]
    async fn a_line_without_end_is_refused() {
        check(&[b'x'; 1000], 100, &[], Err("a line of more than 100 bytes")).await;
    }
}
