//! A connection whose client takes what it is sent, in whatever time: TCP alone waits for ever for one that
//! does not, and keeps its place. Knows nothing of what is spoken.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Time for which a client may take nothing at all of what waits for it: a download that a person has paused for
/// a moment goes on, one that was forgotten does not.
pub(super) const UNTAKEN_MAX: Duration = Duration::from_secs(300);

/// See the module's text.
#[derive(Debug)]
pub(super) struct Attended<S> {
    io: S,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
    watched: Watched,
}

/// Whether a connection is still looked after.
#[derive(Debug, Clone)]
pub(super) struct Watched(Arc<AtomicBool>);

impl Watched {
    /// What stalls from now on is the business of whoever speaks over the connection now.
    pub(super) fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl<S> Attended<S> {
    pub(super) fn new(io: S) -> (Self, Watched) {
        let watched = Watched(Arc::new(AtomicBool::new(true)));
        let attended = Self {
            io,
            waiting: None,
            watched: watched.clone(),
        };
        (attended, watched)
    }

    pub(super) fn into_inner(self) -> S {
        self.io
    }

    fn within_bounds<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() || !self.watched.0.load(Ordering::Relaxed) {
            self.waiting = None;
            return written;
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(UNTAKEN_MAX)));
        waiting
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Attended<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Attended<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.within_bounds(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, pieces);
        self.within_bounds(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.within_bounds(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.io).poll_shutdown(cx);
        self.within_bounds(cx, shut)
    }
}
