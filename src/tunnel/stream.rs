//! One stream of a tunnel: header, reply, then content.
//!
//! The opening side writes its header and may write content at once; the reply is read when
//! content is, so a stream costs no round trip. A refusal surfaces as an [`io::Error`] that holds
//! the [`StreamRefusal`]: [`refusal_in`] finds it.

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::farewell::Farewell;
use super::flow::Flows;
use super::frame::PartialFrame;
use super::transport::ByteStream;
use crate::wire::{RefusalCode, StreamHeader, StreamRefusal, StreamReply, message_text};

/// A stream that both sides may use; `shutdown` ends what this side writes, dropping the stream
/// before that aborts it.
#[derive(Debug)]
pub struct TunnelStream {
    header: StreamHeader,
    io: ByteStream,
    reply: Reply,
    _counted: CountedStream,
}

/// A stream that the other side has opened and that awaits a decision. Dropping it aborts it.
#[derive(Debug)]
pub struct IncomingStream {
    header: StreamHeader,
    io: ByteStream,
    counted: CountedStream,
    reply_timeout: Duration,
    flows: Arc<Flows>,
}

impl TunnelStream {
    /// The header it was opened with.
    pub const fn header(&self) -> &StreamHeader {
        &self.header
    }

    /// What the two sides say where one of them gives the stream up.
    pub const fn farewell(&self) -> &Farewell {
        &self.io.farewell
    }

    /// The same as a poll, for the reading half's task.
    pub(super) fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_reply(Half::Read, cx)
    }

    /// Whether the other side is known to have taken the stream.
    pub(super) const fn is_accepted(&self) -> bool {
        matches!(self.reply, Reply::Accepted)
    }

    /// Waits until the other side has taken the stream, or says why it does not: [`refusal_in`] the
    /// error. Whoever writes at once need not call this. Cancel safe.
    pub async fn accepted(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_reply(Half::Read, cx)).await
    }

    /// The opening side's view: the header is written, the reply is not yet read.
    pub(super) fn opened(header: StreamHeader, io: ByteStream, counted: CountedStream) -> Self {
        Self {
            header,
            io,
            reply: Reply::Awaited {
                frame: PartialFrame::new(),
                wakers: Arc::default(),
            },
            _counted: counted,
        }
    }

    /// Reads the reply if it has not been read. `half` is the one that asks.
    fn poll_reply(&mut self, half: Half, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (frame, wakers) = match &mut self.reply {
            Reply::Accepted => return Poll::Ready(Ok(())),
            Reply::Refused(refusal) => return Poll::Ready(Err(refused(refusal.clone()))),
            Reply::Unreadable => return Poll::Ready(Err(no_reply())),
            Reply::Awaited { frame, wakers } => (frame, Arc::clone(wakers)),
        };
        wakers.register(half, cx.waker());
        let both = Waker::from(wakers);
        let content = ready!(frame.poll_read(&mut *self.io.read, &mut Context::from_waker(&both)));
        self.reply = Reply::Unreadable;
        let reply = content.map_err(|error| io::Error::new(io::ErrorKind::ConnectionAborted, error))?;
        match StreamReply::decode(&reply)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?
        {
            StreamReply::Accepted => {
                self.reply = Reply::Accepted;
                Poll::Ready(Ok(()))
            }
            StreamReply::Refused(refusal) => {
                self.reply = Reply::Refused(refusal.clone());
                Poll::Ready(Err(refused(refusal)))
            }
        }
    }
}

impl IncomingStream {
    pub(super) fn new(
        header: StreamHeader,
        io: ByteStream,
        counted: CountedStream,
        reply_timeout: Duration,
        flows: Arc<Flows>,
    ) -> Self {
        Self {
            header,
            io,
            counted,
            reply_timeout,
            flows,
        }
    }

    pub(super) const fn flows(&self) -> &Arc<Flows> {
        &self.flows
    }

    pub(super) const fn io_mut(&mut self) -> &mut ByteStream {
        &mut self.io
    }

    pub(super) const fn reply_timeout(&self) -> Duration {
        self.reply_timeout
    }

    /// What the other side wants.
    pub const fn header(&self) -> &StreamHeader {
        &self.header
    }

    /// Takes the stream and tells the other side so.
    pub async fn accept(mut self) -> io::Result<TunnelStream> {
        let sent = tokio::time::timeout(
            self.reply_timeout,
            send_reply(&mut self.io, &StreamReply::Accepted),
        );
        sent.await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(TunnelStream {
            header: self.header,
            io: self.io,
            reply: Reply::Accepted,
            _counted: self.counted,
        })
    }

    /// Turns down a stream of a kind that this side does not serve.
    pub async fn refuse_kind(self) {
        let refusal = StreamRefusal {
            code: RefusalCode::UnsupportedKind,
            message: "streams of this kind are not served here".to_owned(),
        };
        self.refuse(refusal).await;
    }

    /// Turns the stream down. A side that does not take the answer is not waited for long.
    pub async fn refuse(mut self, refusal: StreamRefusal) {
        refuse(&mut self.io, refusal, self.reply_timeout).await;
    }
}

/// Sends a refusal on a stream, as far as the other side takes it within the time.
pub(super) async fn refuse(io: &mut ByteStream, refusal: StreamRefusal, within: Duration) {
    let reply = StreamReply::Refused(StreamRefusal {
        code: refusal.code,
        message: message_text(&refusal.message),
    });
    let sent = async {
        send_reply(io, &reply).await?;
        io.write.shutdown().await
    };
    if !matches!(tokio::time::timeout(within, sent).await, Ok(Ok(()))) {
        tracing::debug!(code = ?refusal.code, "the other side did not take a refusal");
    }
}

async fn send_reply(io: &mut ByteStream, reply: &StreamReply) -> io::Result<()> {
    let frame = reply.encode().map_err(io::Error::other)?;
    io.write.write_all(&frame).await?;
    io.write.flush().await
}

/// The other side's refusal, if it is why `error` happened.
pub fn refusal_in<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a StreamRefusal> {
    let mut next = Some(error);
    while let Some(error) = next {
        // An io::Error passes over what it wraps when asked for its source.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(wrapped) = wrapped {
            let wrapped: &(dyn Error + 'static) = wrapped;
            if let Some(refusal) = refusal_in(wrapped) {
                return Some(refusal);
            }
        }
        if let Some(refusal) = error.downcast_ref() {
            return Some(refusal);
        }
        next = error.source();
    }
    None
}

fn refused(refusal: StreamRefusal) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, refusal)
}

fn no_reply() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the stream failed before the other side had taken it",
    )
}

/// What the other side has said to the stream.
#[derive(Debug)]
enum Reply {
    Accepted,
    Refused(StreamRefusal),
    /// Its stream ended, or said something else.
    Unreadable,
    Awaited {
        frame: PartialFrame,
        wakers: Arc<BothWakers>,
    },
}

/// Which half of the stream asks.
#[derive(Debug, Clone, Copy)]
enum Half {
    Read,
    Write,
}

/// The reply is read for both halves, whose tasks may differ, and the transport remembers one
/// waker: this one, which wakes both.
#[derive(Debug, Default)]
struct BothWakers(Mutex<[Option<Waker>; 2]>);

impl BothWakers {
    fn register(&self, half: Half, waker: &Waker) {
        let mut wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [read, write] = &mut *wakers;
        let slot = match half {
            Half::Read => read,
            Half::Write => write,
        };
        *slot = Some(waker.clone());
    }
}

impl Wake for BothWakers {
    fn wake(self: Arc<Self>) {
        let wakers = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_reply(Half::Read, cx))?;
        Pin::new(&mut *self.io.read).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match ready!(Pin::new(&mut *self.io.write).poll_write(cx, bytes)) {
            Ok(count) => Poll::Ready(Ok(count)),
            Err(error) => {
                // The other side stops what it refuses; its refusal says why and may come later.
                ready!(self.poll_reply(Half::Write, cx))?;
                Poll::Ready(Err(error))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.write).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.write).poll_shutdown(cx)
    }
}

/// The streams of one tunnel, counted.
#[derive(Debug)]
pub(super) struct StreamCount {
    open: watch::Sender<usize>,
    opened: AtomicU64,
}

impl StreamCount {
    pub(super) fn new() -> Self {
        Self {
            open: watch::Sender::new(0),
            opened: AtomicU64::new(0),
        }
    }

    /// Streams open now.
    pub(super) fn open(&self) -> usize {
        *self.open.borrow()
    }

    /// Streams opened so far, by either side.
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Notified when the first stream opens and when the last one ends.
    pub(super) fn subscribe(&self) -> watch::Receiver<usize> {
        self.open.subscribe()
    }
}

/// One stream that counts until it is dropped.
pub(super) struct CountedStream {
    count: Arc<StreamCount>,
    _permit: OwnedSemaphorePermit,
}

impl CountedStream {
    pub(super) fn new(count: &Arc<StreamCount>, permit: OwnedSemaphorePermit) -> Self {
        count.opened.fetch_add(1, Ordering::Relaxed);
        count.open.send_if_modified(|open| {
            *open += 1;
            *open == 1
        });
        Self {
            count: Arc::clone(count),
            _permit: permit,
        }
    }
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        self.count.open.send_if_modified(|open| {
            *open = open.saturating_sub(1);
            *open == 0
        });
    }
}

impl fmt::Debug for CountedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CountedStream")
    }
}
