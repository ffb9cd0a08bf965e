//! The two halves of a QUIC stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::{ReadError, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::CONTROL_PRIORITY;
use super::send_window::SendWindow;
use crate::tunnel::farewell::Farewell;
use crate::tunnel::transport::{ByteStream, Urgency};
use crate::wire::StreamEnd;

/// Puts a stream together.
pub(super) fn byte_stream(
    urgency: Urgency,
    (send, read): (quinn::SendStream, quinn::RecvStream),
    window: &Arc<SendWindow>,
) -> ByteStream {
    match urgency {
        // It fails only for a stream that is closed already, which its user learns by itself.
        Urgency::Control => drop(send.set_priority(CONTROL_PRIORITY)),
        Urgency::Bulk => {}
    }
    let farewell = Farewell::default();
    ByteStream {
        read: Box::new(QuicRead {
            receive: read,
            farewell: farewell.clone(),
        }),
        write: Box::new(QuicWrite {
            send,
            window: Arc::clone(window),
            finished: false,
            farewell: farewell.clone(),
        }),
        farewell,
    }
}

struct QuicRead {
    receive: quinn::RecvStream,
    farewell: Farewell,
}

impl AsyncRead for QuicRead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match ready!(self.receive.poll_read_buf(cx, buffer)) {
            Err(ReadError::Reset(code)) => Poll::Ready(Err(self.farewell.hear(
                io::ErrorKind::ConnectionReset,
                StreamEnd::from_code(code.into_inner()),
            ))),
            read => Poll::Ready(read.map_err(Into::into)),
        }
    }
}

impl Drop for QuicRead {
    fn drop(&mut self) {
        if let Some(why) = self.farewell.said() {
            // It fails only for a stream that is closed already. Without a word quinn stops it.
            drop(self.receive.stop(VarInt::from_u32(why.code())));
        }
    }
}

/// quinn finishes a stream that is dropped; here an end must be meant.
struct QuicWrite {
    send: quinn::SendStream,
    window: Arc<SendWindow>,
    finished: bool,
    farewell: Farewell,
}

impl AsyncWrite for QuicWrite {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match ready!(Pin::new(&mut self.send).poll_write(cx, bytes)) {
            Ok(written) => {
                self.window.wrote(written);
                Poll::Ready(Ok(written))
            }
            Err(WriteError::Stopped(code)) => Poll::Ready(Err(self.farewell.hear(
                io::ErrorKind::ConnectionReset,
                StreamEnd::from_code(code.into_inner()),
            ))),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        self.finished = true;
        AsyncWrite::poll_shutdown(Pin::new(&mut self.send), cx)
    }
}

impl Drop for QuicWrite {
    fn drop(&mut self) {
        if !self.finished {
            let why = self.farewell.said().unwrap_or(StreamEnd::Abandoned);
            // It fails only for a stream that is closed already.
            drop(self.send.reset(VarInt::from_u32(why.code())));
        }
    }
}
