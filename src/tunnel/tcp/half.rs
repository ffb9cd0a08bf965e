//! The two halves of a stream, each a yamux stream of its own that is used in one direction.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_io::{AsyncRead as _, AsyncWrite as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::Shared;
use crate::tunnel::farewell::Farewell;
use crate::tunnel::transport::{ByteStream, Urgency};

/// One of a connection's places for streams, given back when both halves are gone.
pub(super) type Place = Arc<OwnedSemaphorePermit>;

/// Puts a stream together.
pub(super) fn byte_stream(
    read: Incoming,
    write: yamux::Stream,
    urgency: Urgency,
    place: OwnedSemaphorePermit,
    shared: &Arc<Shared>,
) -> ByteStream {
    let (place, farewell) = (Arc::new(place), Farewell::default());
    ByteStream {
        read: Box::new(ReadHalf {
            incoming: read,
            farewell: farewell.clone(),
            shared: Arc::clone(shared),
            _place: Arc::clone(&place),
        }),
        write: Box::new(WriteHalf {
            stream: write,
            urgency,
            farewell: farewell.clone(),
            shared: Arc::clone(shared),
            _place: place,
        }),
        farewell,
    }
}

/// What the other side writes.
pub(super) enum Incoming {
    /// It has opened its direction.
    Open(yamux::Stream),
    /// It will when it takes the stream.
    Awaited(oneshot::Receiver<yamux::Stream>),
}

struct ReadHalf {
    incoming: Incoming,
    farewell: Farewell,
    shared: Arc<Shared>,
    _place: Place,
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let half = &mut *self;
        let stream = loop {
            match &mut half.incoming {
                Incoming::Open(stream) => break stream,
                Incoming::Awaited(answer) => {
                    let opened = ready!(Pin::new(answer).poll(cx));
                    half.incoming = Incoming::Open(opened.map_err(|_| ended())?);
                }
            }
        };
        let count = ready!(Pin::new(&mut *stream).poll_read(cx, buffer.initialize_unfilled()))?;
        buffer.advance(count);
        // A reset reads as an end; the state tells them apart.
        if count == 0 && stream.is_closed() {
            let why = half.shared.ends.take_heard(stream.id().val());
            return Poll::Ready(Err(half.farewell.hear(io::ErrorKind::ConnectionReset, why)));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for ReadHalf {
    fn drop(&mut self) {
        match &mut self.incoming {
            Incoming::Open(stream) => give_up(stream, &self.farewell, &self.shared),
            Incoming::Awaited(answer) => {
                if let Ok(stream) = answer.try_recv() {
                    give_up(&stream, &self.farewell, &self.shared);
                }
            }
        }
    }
}

struct WriteHalf {
    stream: yamux::Stream,
    urgency: Urgency,
    farewell: Farewell,
    shared: Arc<Shared>,
    _place: Place,
}

impl AsyncWrite for WriteHalf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let half = &mut *self;
        if half.stream.is_closed() {
            let why = half.shared.ends.take_heard(half.stream.id().val());
            return Poll::Ready(Err(half.farewell.hear(io::ErrorKind::BrokenPipe, why)));
        }
        if half.urgency == Urgency::Bulk {
            let number = half.stream.id().val();
            ready!(half.shared.gate.poll_enter(number, bytes.len(), cx));
        }
        let written = write(&mut half.stream, &half.shared, cx, bytes);
        if half.urgency == Urgency::Bulk && !matches!(written, Poll::Ready(Ok(_))) {
            half.shared.gate.passed_by();
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task writes what there is.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stream.is_write_closed() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        self.shared.gate.forget(self.stream.id().val());
        give_up(&self.stream, &self.farewell, &self.shared);
    }
}

/// Before a yamux stream is dropped, which resets it where it has not come to its end.
fn give_up(stream: &yamux::Stream, farewell: &Farewell, shared: &Shared) {
    let number = stream.id().val();
    shared.ends.take_heard(number);
    if let Some(why) = farewell.said()
        && !(stream.is_closed() || stream.is_write_closed())
    {
        shared.ends.say(number, why);
    }
}

/// Writes to a yamux stream and counts it at the gate.
pub(super) fn write(
    stream: &mut yamux::Stream,
    shared: &Shared,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    let count = ready!(Pin::new(stream).poll_write(cx, bytes)).map_err(|_| ended())?;
    shared.gate.entered(count);
    Poll::Ready(Ok(count))
}

fn ended() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the other side takes no more of this stream, or the connection has ended",
    )
}
