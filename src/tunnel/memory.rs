//! A transport in memory, for tests of what stands above: bounded pipes, the same rules for
//! half-close, abort and stop as every transport, and a [`Cut`] that silences the link.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};

use super::farewell::Farewell;
use super::transport::{
    BoxFuture, ByteStream, CloseCode, DatagramRefused, Transport, TransportClosed, TunnelProtocol, Urgency,
};
use crate::wire::StreamEnd;

/// Bytes that a pipe holds before its writer waits.
pub const PIPE_BYTES: usize = 16 * 1024;

/// Streams that wait to be accepted before the opener waits.
const BACKLOG: usize = 8;

/// Datagrams that wait to be received before further ones are lost.
const DATAGRAM_BACKLOG: usize = 1_024;

/// Two connected transports.
pub fn pair() -> (Arc<MemoryTransport>, Arc<MemoryTransport>, Cut) {
    connect(None)
}

/// The same with datagrams of at most so many bytes, of which each `lose_every`th is lost.
pub fn pair_with_datagrams(
    max_bytes: usize,
    lose_every: u64,
) -> (Arc<MemoryTransport>, Arc<MemoryTransport>, Cut) {
    connect(Some((max_bytes, lose_every)))
}

fn connect(path: Option<(usize, u64)>) -> (Arc<MemoryTransport>, Arc<MemoryTransport>, Cut) {
    let cut = Cut::default();
    let (to_right, from_left) = mpsc::channel(BACKLOG);
    let (to_left, from_right) = mpsc::channel(BACKLOG);
    let (left, right) = (End::new(1), End::new(2));
    let (datagrams_right, from_left_datagrams) = mpsc::channel(DATAGRAM_BACKLOG);
    let (datagrams_left, from_right_datagrams) = mpsc::channel(DATAGRAM_BACKLOG);
    let datagrams = |send, receive| {
        path.map(|(max_bytes, lose_every)| Datagrams {
            max_bytes,
            lose_every,
            sent: AtomicU64::new(0),
            send,
            receive: tokio::sync::Mutex::new(receive),
        })
    };
    let (left_datagrams, right_datagrams) = (
        datagrams(datagrams_right, from_right_datagrams),
        datagrams(datagrams_left, from_left_datagrams),
    );
    let side = |near: &Arc<End>, far: &Arc<End>, open, accept, datagrams| {
        Arc::new(MemoryTransport {
            datagrams,
            near: Arc::clone(near),
            far: Arc::clone(far),
            cut: cut.clone(),
            open,
            accept: tokio::sync::Mutex::new(accept),
        })
    };
    let left_side = side(&left, &right, to_right, from_right, left_datagrams);
    let right_side = side(&right, &left, to_left, from_left, right_datagrams);
    (left_side, right_side, cut)
}

/// Silences a link: what is written no longer arrives, and nobody is told.
#[derive(Debug, Clone, Default)]
pub struct Cut(Arc<AtomicBool>);

impl Cut {
    /// From now on.
    pub fn now(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_cut(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// One side.
#[derive(Debug)]
pub struct MemoryTransport {
    near: Arc<End>,
    far: Arc<End>,
    cut: Cut,
    open: mpsc::Sender<ByteStream>,
    accept: tokio::sync::Mutex<mpsc::Receiver<ByteStream>>,
    datagrams: Option<Datagrams>,
}

#[derive(Debug)]
struct Datagrams {
    max_bytes: usize,
    lose_every: u64,
    sent: AtomicU64,
    send: mpsc::Sender<Bytes>,
    receive: tokio::sync::Mutex<mpsc::Receiver<Bytes>>,
}

#[derive(Debug)]
struct End {
    closed: watch::Sender<Option<TransportClosed>>,
    arrivals: AtomicU64,
    host: u8,
    /// To be told of the close.
    pipes: Mutex<Vec<std::sync::Weak<Pipe>>>,
}

impl End {
    fn new(host: u8) -> Arc<Self> {
        Arc::new(Self {
            closed: watch::Sender::new(None),
            arrivals: AtomicU64::new(0),
            host,
            pipes: Mutex::default(),
        })
    }

    fn close(&self, reason: TransportClosed) {
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert(reason);
            first
        });
        for pipe in &*self.pipes.lock().unwrap_or_else(PoisonError::into_inner) {
            if let Some(pipe) = pipe.upgrade() {
                pipe.wake();
            }
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }
}

impl Transport for MemoryTransport {
    fn open(&self, _: Urgency) -> BoxFuture<'_, Result<ByteStream, TransportClosed>> {
        Box::pin(async {
            let (there, back) = (
                Pipe::new(&self.near, &self.far, &self.cut),
                Pipe::new(&self.far, &self.near, &self.cut),
            );
            let theirs = stream(Arc::clone(&there), Arc::clone(&back));
            tokio::select! {
                biased;
                closed = self.closed() => return Err(closed),
                sent = self.open.send(theirs), if !self.cut.is_cut() => if sent.is_err() {
                    return Err(TransportClosed::Reset);
                },
            }
            Ok(stream(back, there))
        })
    }

    fn accept(&self, _: Urgency) -> BoxFuture<'_, Result<ByteStream, TransportClosed>> {
        Box::pin(async {
            let mut accept = self.accept.lock().await;
            tokio::select! {
                biased;
                closed = self.closed() => Err(closed),
                stream = accept.recv() => stream.ok_or(TransportClosed::Reset),
            }
        })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        if self.near.is_closed() {
            return;
        }
        self.near.close(TransportClosed::ByUs);
        if !self.cut.is_cut() {
            self.far.close(TransportClosed::ByPeer {
                code: code.0.into(),
                reason: reason.to_owned(),
            });
        }
    }

    fn closed(&self) -> BoxFuture<'_, TransportClosed> {
        Box::pin(async {
            let mut closed = self.near.closed.subscribe();
            let reason = closed
                .wait_for(Option::is_some)
                .await
                .ok()
                .and_then(|reason| reason.clone());
            reason.unwrap_or(TransportClosed::Reset)
        })
    }

    fn close_reason(&self) -> Option<TransportClosed> {
        self.near.closed.borrow().clone()
    }

    fn arrivals(&self) -> u64 {
        self.near.arrivals.load(Ordering::SeqCst)
    }

    fn protocol(&self) -> TunnelProtocol {
        TunnelProtocol::Quic
    }

    fn remote_address(&self) -> SocketAddr {
        (Ipv4Addr::new(192, 0, 2, self.far.host), 4_433).into()
    }

    fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        None
    }

    fn has_datagrams(&self) -> bool {
        self.datagrams.is_some()
    }

    fn send_datagram(&self, datagram: Bytes) -> Result<(), DatagramRefused> {
        let open = self.datagrams.as_ref().filter(|_| !self.near.is_closed());
        let datagrams = open.ok_or(DatagramRefused::Unavailable)?;
        if datagram.len() > datagrams.max_bytes {
            return Err(DatagramRefused::TooLarge);
        }
        let sent = datagrams.sent.fetch_add(1, Ordering::SeqCst) + 1;
        if !sent.is_multiple_of(datagrams.lose_every) && !self.cut.is_cut() {
            self.far.arrivals.fetch_add(1, Ordering::SeqCst);
            // A full queue loses it.
            datagrams.send.try_send(datagram).ok();
        }
        Ok(())
    }

    fn receive_datagram(&self) -> BoxFuture<'_, Result<Bytes, TransportClosed>> {
        Box::pin(async {
            let Some(datagrams) = &self.datagrams else {
                return std::future::pending().await;
            };
            let mut receive = datagrams.receive.lock().await;
            tokio::select! {
                biased;
                closed = self.closed() => Err(closed),
                datagram = receive.recv() => datagram.ok_or(TransportClosed::Reset),
            }
        })
    }
}

fn stream(read: Arc<Pipe>, write: Arc<Pipe>) -> ByteStream {
    let farewell = Farewell::default();
    ByteStream {
        read: Box::new(ReadEnd(read, farewell.clone())),
        write: Box::new(WriteEnd(write, farewell.clone())),
        farewell,
    }
}

/// One direction of one stream.
#[derive(Debug)]
struct Pipe {
    writer: Arc<End>,
    reader: Arc<End>,
    cut: Cut,
    state: Mutex<PipeState>,
}

#[derive(Debug, Default)]
struct PipeState {
    bytes: VecDeque<u8>,
    finished: bool,
    aborted: Option<StreamEnd>,
    stopped: Option<StreamEnd>,
    read_waker: Option<Waker>,
    write_waker: Option<Waker>,
}

impl Pipe {
    fn new(writer: &Arc<End>, reader: &Arc<End>, cut: &Cut) -> Arc<Self> {
        let pipe = Arc::new(Self {
            writer: Arc::clone(writer),
            reader: Arc::clone(reader),
            cut: cut.clone(),
            state: Mutex::default(),
        });
        for end in [writer, reader] {
            let mut pipes = end.pipes.lock().unwrap_or_else(PoisonError::into_inner);
            pipes.retain(|pipe| pipe.strong_count() > 0);
            pipes.push(Arc::downgrade(&pipe));
        }
        pipe
    }

    fn state(&self) -> MutexGuard<'_, PipeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut PipeState)) {
        if !self.cut.is_cut() {
            change(&mut self.state());
            self.wake();
        }
    }

    fn wake(&self) {
        let mut state = self.state();
        let wakers = [state.read_waker.take(), state.write_waker.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

struct ReadEnd(Arc<Pipe>, Farewell);

impl AsyncRead for ReadEnd {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let pipe = &self.0;
        let mut state = pipe.state();
        if !state.bytes.is_empty() && buffer.remaining() > 0 {
            let count = state.bytes.len().min(buffer.remaining());
            let bytes: Vec<u8> = state.bytes.drain(..count).collect();
            buffer.put_slice(&bytes);
            let waker = state.write_waker.take();
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
            return Poll::Ready(Ok(()));
        }
        if state.finished {
            return Poll::Ready(Ok(()));
        }
        if let Some(why) = state.aborted {
            return Poll::Ready(Err(self.1.hear(io::ErrorKind::ConnectionReset, why)));
        }
        if pipe.reader.is_closed() {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        state.read_waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for ReadEnd {
    fn drop(&mut self) {
        let why = self.1.said().unwrap_or(StreamEnd::Abandoned);
        self.0.change(|state| state.stopped = Some(why));
    }
}

struct WriteEnd(Arc<Pipe>, Farewell);

impl AsyncWrite for WriteEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let pipe = &self.0;
        let mut state = pipe.state();
        if pipe.writer.is_closed() {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        if let Some(why) = state.stopped {
            return Poll::Ready(Err(self.1.hear(io::ErrorKind::BrokenPipe, why)));
        }
        if state.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let count = bytes.len().min(PIPE_BYTES.saturating_sub(state.bytes.len()));
        if count == 0 || pipe.cut.is_cut() {
            state.write_waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.bytes.extend(&bytes[..count]);
        pipe.reader.arrivals.fetch_add(1, Ordering::SeqCst);
        drop(state);
        pipe.wake();
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.change(|state| state.finished = true);
        Poll::Ready(Ok(()))
    }
}

impl Drop for WriteEnd {
    fn drop(&mut self) {
        let why = self.1.said().unwrap_or(StreamEnd::Abandoned);
        self.0.change(|state| state.aborted = Some(why));
    }
}
