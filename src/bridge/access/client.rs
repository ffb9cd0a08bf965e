//! The connection of a client whose bytes are carried as they are. It tells the client's end from its
//! break, and lets the client tell them apart: what was cut is never taken for the whole.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use hyper::upgrade::{Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::super::attended::Attended;

/// See the module's text. Unless it has come to its end its program sees a break when it is dropped, as far as its
/// kind has one; also where the host-bridge does not wait any longer.
#[derive(Debug)]
pub struct Client {
    io: Io,
    /// Sent before the connection was the client's own.
    early: Bytes,
    /// Whether its end was passed on.
    shut: bool,
    finished: bool,
}

#[derive(Debug)]
enum Io {
    /// Has no break of its own: a program that is killed leaves what looks like an end.
    Socket(UnixStream),
    Tcp(TcpStream),
    /// TLS, which knows an end that was not said from one that was.
    Other(Box<TokioIo<Upgraded>>),
}

impl Client {
    /// Of a connection that was HTTP's.
    pub(super) fn of_upgraded(upgraded: Upgraded) -> Self {
        let upgraded = match upgraded.downcast::<TokioIo<Attended<UnixStream>>>() {
            Ok(Parts { io, read_buf, .. }) => {
                return Self::new(Io::Socket(io.into_inner().into_inner()), read_buf);
            }
            Err(upgraded) => upgraded,
        };
        match upgraded.downcast::<TokioIo<Attended<TcpStream>>>() {
            Ok(Parts { io, read_buf, .. }) => Self::new(Io::Tcp(io.into_inner().into_inner()), read_buf),
            Err(upgraded) => Self::new(Io::Other(Box::new(TokioIo::new(upgraded))), Bytes::new()),
        }
    }

    /// Of a TCP connection on which this was read already.
    pub(super) const fn of_tcp(stream: TcpStream, early: Bytes) -> Self {
        Self::new(Io::Tcp(stream), early)
    }

    const fn new(io: Io, early: Bytes) -> Self {
        Self {
            io,
            early,
            shut: false,
            finished: false,
        }
    }

    /// Both directions have come to their end.
    pub(super) fn finish(mut self) {
        self.finished = true;
    }

    /// Whether the client's program is gone, and has not just nothing more to send. After the end was
    /// passed on to it, nobody can tell.
    fn is_gone(&self) -> bool {
        match &self.io {
            Io::Socket(socket) if !self.shut => {
                matches!(socket.try_write(&[]), Err(error) if error.kind() == io::ErrorKind::BrokenPipe)
            }
            Io::Socket(_) | Io::Tcp(_) | Io::Other(_) => false,
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.finished
            && let Io::Tcp(stream) = &self.io
            && let Err(error) = stream.set_zero_linger()
        {
            tracing::debug!(%error, "a client's connection is closed instead of reset");
        }
    }
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.has_remaining() {
            let count = self.early.len().min(buffer.remaining());
            buffer.put_slice(&self.early.split_to(count));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(match &mut self.io {
            Io::Socket(socket) => Pin::new(socket).poll_read(cx, buffer),
            Io::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Io::Other(upgraded) => Pin::new(upgraded).poll_read(cx, buffer),
        })?;
        if buffer.filled().len() == before && buffer.remaining() > 0 && self.is_gone() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Socket(socket) => Pin::new(socket).poll_write(cx, bytes),
            Io::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Io::Other(upgraded) => Pin::new(upgraded).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Socket(socket) => Pin::new(socket).poll_flush(cx),
            Io::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Io::Other(upgraded) => Pin::new(upgraded).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut = true;
        match &mut self.io {
            Io::Socket(socket) => Pin::new(socket).poll_shutdown(cx),
            Io::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Other(upgraded) => Pin::new(upgraded).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn on_socket() -> (Client, UnixStream) {
        let (here, there) = UnixStream::pair().unwrap();
        (
            Client::new(Io::Socket(here), Bytes::from_static(b"early ")),
            there,
        )
    }

    #[tokio::test]
    async fn a_program_that_has_sent_all_is_told_from_one_that_is_gone() {
        let (mut client, mut program) = on_socket();
        program.write_all(b"and late").await.unwrap();
        program.shutdown().await.unwrap();
        let mut read = String::new();
        client.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "early and late");
        // It still hears the answer.
        client.write_all(b"answer").await.unwrap();
        client.shutdown().await.unwrap();
        program.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "early and lateanswer");

        let (mut client, mut program) = on_socket();
        program.write_all(b"and no more").await.unwrap();
        drop(program);
        let mut read = Vec::new();
        let error = client.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(read, b"early and no more");
    }

    #[tokio::test]
    async fn a_program_that_hangs_up_after_the_answer_has_come_to_its_end() {
        let (mut client, program) = on_socket();
        client.shutdown().await.unwrap();
        drop(program);
        client.read_to_end(&mut Vec::new()).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_cut_over_tcp_is_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut program = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut client = Client::of_tcp(stream, Bytes::new());
        client.write_all(b"half").await.unwrap();
        let mut half = [0; 4];
        program.read_exact(&mut half).await.unwrap();
        // Whoever drops it, as where the bridge does not wait any longer.
        drop(client);
        let error = program.read(&mut half).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
