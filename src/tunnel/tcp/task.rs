//! The task of one connection: drives yamux, gives streams out as they are opened from either
//! side, and ends with a last word. It belongs to its transport and outlives it by [`LINGER`] at
//! most, as QUIC's do.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_io::AsyncRead as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use yamux::{Connection, ConnectionError};

use super::half::{Incoming, byte_stream, write};
use super::link::Link;
use super::{Shared, closed_by};
use crate::base::limit::{FOREIGN_TEXT_MAX_CHARS, foreign_text};
use crate::tunnel::transport::{ByteStream, Side, TransportClosed, Urgency};

/// Time for the last word to leave. A side that takes nothing is not waited for any longer.
const LINGER: Duration = Duration::from_secs(1);

/// First byte of a yamux stream: what it is.
const KIND_OPEN: u8 = 0;
/// Four bytes follow: the number of the stream that it answers.
const KIND_ANSWER: u8 = 1;
/// Four bytes follow, the close code, and then its text.
const KIND_CLOSE: u8 = 2;

/// Longest text of a close, in bytes: a shortened text of characters of four bytes each.
const CLOSE_TEXT_BYTES: usize = 4 * (FOREIGN_TEXT_MAX_CHARS + 1);

/// A stream that is to be opened, with one of this side's places.
pub(super) struct Opening {
    pub(super) urgency: Urgency,
    pub(super) place: OwnedSemaphorePermit,
    pub(super) opened: oneshot::Sender<ByteStream>,
}

/// A stream that the other side has opened.
pub(super) struct Arrived {
    /// Finishes the stream once its user has said how urgent it is.
    pub(super) read: yamux::Stream,
    pub(super) write: yamux::Stream,
    pub(super) place: OwnedSemaphorePermit,
}

/// See the module.
pub(super) struct Task<T> {
    connection: Connection<Link<T>>,
    shared: Arc<Shared>,
    openings: mpsc::Receiver<Opening>,
    /// One that waits until yamux has room.
    opening: Option<Opening>,
    arrived: mpsc::Sender<Arrived>,
    places: Arc<Semaphore>,
    /// Streams that this side has opened and the other has not answered.
    awaited: BTreeMap<u32, oneshot::Sender<yamux::Stream>>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Task<T> {
    pub(super) fn new(
        connection: Connection<Link<T>>,
        shared: Arc<Shared>,
        openings: mpsc::Receiver<Opening>,
        arrived: mpsc::Sender<Arrived>,
        places: usize,
    ) -> Self {
        Self {
            connection,
            shared,
            openings,
            opening: None,
            arrived,
            places: Arc::new(Semaphore::new(places)),
            awaited: BTreeMap::new(),
        }
    }

    /// Runs until the connection has ended.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let ended = tokio::select! {
            biased;
            asked = shared.asked_to_close() => Err(asked),
            ended = poll_fn(|cx| self.poll(cx)) => Ok(ended),
        };
        match ended {
            Ok(reason) => shared.end(reason),
            Err((code, reason)) => {
                let farewell = self.farewell(code, &reason);
                if tokio::time::timeout(LINGER, farewell).await.is_err() {
                    tracing::debug!("the other side did not take the close of a TCP connection");
                }
            }
        }
        // Streams learn of the end when the connection is gone; those at the gate are called.
        drop(self);
        shared.gate.left(usize::MAX);
    }

    /// Ready at the end of the connection.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<TransportClosed> {
        loop {
            match self.connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => match self.inbound(stream, cx) {
                    Ok(()) => continue,
                    Err(reason) => return Poll::Ready(reason),
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(closed_by(error)),
                Poll::Ready(None) => return Poll::Ready(TransportClosed::Reset),
                Poll::Pending => {}
            }
            if self.opening.is_none() {
                match self.openings.poll_recv(cx) {
                    Poll::Ready(Some(opening)) => self.opening = Some(opening),
                    // Without a transport nobody opens streams; the close follows.
                    Poll::Ready(None) | Poll::Pending => return Poll::Pending,
                }
            }
            match ready!(self.connection.poll_new_outbound(cx)) {
                // Yamux has to look at its streams again.
                Ok(stream) => self.opened(stream, cx),
                Err(error) => return Poll::Ready(closed_by(error)),
            }
        }
    }

    fn opened(&mut self, mut stream: yamux::Stream, cx: &mut Context<'_>) {
        let Some(opening) = self.opening.take() else {
            return;
        };
        // A fresh stream takes its first frame at once. The user of a stream that was lost
        // meanwhile learns it from its first write.
        let _ = write(&mut stream, &self.shared, cx, &[KIND_OPEN]);
        let (answer, answered) = oneshot::channel();
        self.awaited.retain(|_, awaiting| !awaiting.is_closed());
        self.awaited.insert(stream.id().val(), answer);
        let read = Incoming::Awaited(answered);
        let stream = byte_stream(read, stream, opening.urgency, opening.place, &self.shared);
        // Whoever does not want it any more has dropped it.
        let _ = opening.opened.send(stream);
    }

    /// Sorts a yamux stream of the other side's, whose first frame is there with it.
    fn inbound(&mut self, mut stream: yamux::Stream, cx: &mut Context<'_>) -> Result<(), TransportClosed> {
        // Yamux lets 256 streams be unacknowledged at most, and acknowledges with the first bytes
        // in the other direction. Nobody reads them.
        let _ = write(&mut stream, &self.shared, cx, &[0]);
        let [kind] = first_bytes(&mut stream, cx)?;
        match kind {
            KIND_OPEN => self.offered(stream, cx),
            KIND_ANSWER => {
                let number = u32::from_be_bytes(first_bytes(&mut stream, cx)?);
                if let Some(awaiting) = self.awaited.remove(&number) {
                    // Dropped where the reader is gone, which stops the writer.
                    let _ = awaiting.send(stream);
                }
                Ok(())
            }
            KIND_CLOSE => Err(last_word(stream, cx)?),
            _ => Err(violation("a stream of a kind that this build does not know")),
        }
    }

    /// Answers a stream that the other side has opened: in its number, then with its content.
    fn offered(&mut self, read: yamux::Stream, cx: &mut Context<'_>) -> Result<(), TransportClosed> {
        let write_half = match self.connection.poll_new_outbound(cx) {
            Poll::Ready(Ok(stream)) => Some(stream),
            Poll::Ready(Err(error)) => return Err(closed_by(error)),
            // The other side acknowledges none of 256 streams: its streams are dropped.
            Poll::Pending => None,
        };
        let Some(mut write_half) = write_half else {
            return Ok(());
        };
        let [a, b, c, d] = read.id().val().to_be_bytes();
        let _ = write(&mut write_half, &self.shared, cx, &[KIND_ANSWER, a, b, c, d]);
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            let arrived = Arrived {
                read,
                write: write_half,
                place,
            };
            // There is room for as many as there are places.
            let _ = self.arrived.try_send(arrived);
        }
        // Without a place both directions are reset as they are dropped here.
        Ok(())
    }

    async fn farewell(&mut self, code: u32, reason: &str) {
        let opened = poll_fn(|cx| {
            loop {
                match self.connection.poll_new_outbound(cx) {
                    Poll::Ready(opened) => return Poll::Ready(opened.ok()),
                    Poll::Pending => match ready!(self.connection.poll_next_inbound(cx)) {
                        Some(Ok(stream)) => drop(stream),
                        Some(Err(_)) | None => return Poll::Ready(None),
                    },
                }
            }
        });
        let Some(mut stream) = opened.await else {
            return;
        };
        let mut word = vec![KIND_CLOSE];
        word.extend_from_slice(&code.to_be_bytes());
        word.extend_from_slice(foreign_text(reason).as_bytes());
        let _ = poll_fn(|cx| Poll::Ready(write(&mut stream, &self.shared, cx, &word))).await;
        if let Err(error) = poll_fn(|cx| self.connection.poll_close(cx)).await {
            tracing::debug!(%error, "a TCP connection did not close in order");
        }
    }
}

/// Bytes that must have come with a stream's first frame.
fn first_bytes<const COUNT: usize>(
    stream: &mut yamux::Stream,
    cx: &mut Context<'_>,
) -> Result<[u8; COUNT], TransportClosed> {
    let mut bytes = [0; COUNT];
    match Pin::new(stream).poll_read(cx, &mut bytes) {
        Poll::Ready(Ok(count)) if count == COUNT => Ok(bytes),
        Poll::Ready(_) | Poll::Pending => Err(violation("a stream that does not say what it is")),
    }
}

fn last_word(mut stream: yamux::Stream, cx: &mut Context<'_>) -> Result<TransportClosed, TransportClosed> {
    let code = u32::from_be_bytes(first_bytes(&mut stream, cx)?);
    let mut text = [0; CLOSE_TEXT_BYTES];
    let count = match Pin::new(&mut stream).poll_read(cx, &mut text) {
        Poll::Ready(Ok(count)) => count,
        Poll::Ready(Err(_)) | Poll::Pending => 0,
    };
    Ok(TransportClosed::ByPeer {
        code: code.into(),
        reason: foreign_text(&String::from_utf8_lossy(&text[..count])),
    })
}

fn violation(what: &'static str) -> TransportClosed {
    TransportClosed::Protocol {
        found_by: Side::Ours,
        cause: Arc::new(ConnectionError::Io(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            what,
        ))),
    }
}
