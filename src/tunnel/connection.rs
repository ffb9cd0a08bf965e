//! The tunnel as its users hold it: opens and takes streams, ends with a reason. The same object
//! whoever dialled, and over whichever transport.
//!
//! A tunnel lives until one side says goodbye, the other side falls silent, the connection breaks
//! or its [`TunnelDriver`](super::TunnelDriver) is dropped; dropping [`Tunnel`] handles ends nothing.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Mutex, Notify, Semaphore, watch};
use zeroize::Zeroizing;

use super::close::CloseReason;
use super::driver::{ControlStream, TunnelDriver};
use super::flow::{FlowStats, Flows};
use super::frame::{FrameError, PartialFrame};
use super::quic::STREAM_WINDOW_BYTES;
use super::stream::{CountedStream, IncomingStream, StreamCount, TunnelStream, refuse};
use super::transport::{BoxFuture, ByteStream, Transport, TransportClosed, TunnelProtocol, Urgency};
use crate::machine::binding_time::BindingTime;
use crate::machine::overload::UdpArrivals;
use crate::process::clock::Clock;
use crate::wire::{DecodeError, Goodbye, RefusalCode, StreamHeader, StreamRefusal, message_text};

/// Streams that one side may hold open at once where nothing else is said. Enough for a browser
/// on a remote console and a few shells; each open stream may cost its window in memory.
pub const DEFAULT_MAX_STREAMS: u32 = 64;

/// Most streams that one side may hold open at once, whatever it was allowed: each costs a task, and
/// some KiB on both sides.
pub const MAX_STREAMS_CEILING: u32 = 4_096;

/// Time in which a greeting must be done, both messages. Several round trips of a satellite link.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// Time in which the header of an opened stream must arrive, and its reply be taken.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that a goodbye may take to be delivered before the connection is closed regardless. A
/// daemon that stops waits this long at most.
pub const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a tunnel waits for and how much it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelSettings {
    /// How many streams of the other side's the dialing side takes at once, and how many the
    /// accepting side opens at once. The other direction is in the welcome.
    pub max_streams: u32,
    /// Bytes of one stream over QUIC that may be on the way to the dialing side or unread there.
    pub stream_window: u32,
    /// Time for the greeting.
    pub greeting_timeout: Duration,
    /// Time for a stream's header and for its reply.
    pub header_timeout: Duration,
    /// Longest silence of an idle tunnel, whatever the accepting side wishes.
    pub keepalive_ceiling: Duration,
    /// What the dialing side knows of the routers on the way, where it is to find out how long they
    /// remember a silent flow.
    pub binding: Option<BindingTime>,
}

impl Default for TunnelSettings {
    fn default() -> Self {
        Self {
            max_streams: DEFAULT_MAX_STREAMS,
            stream_window: STREAM_WINDOW_BYTES,
            greeting_timeout: GREETING_TIMEOUT,
            header_timeout: HEADER_TIMEOUT,
            keepalive_ceiling: Duration::MAX,
            binding: None,
        }
    }
}

/// Numbers for status and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelStats {
    /// Streams open now.
    pub open_streams: usize,
    /// Streams opened so far, by either side.
    pub opened_streams: u64,
    /// Packets of flows.
    pub flows: FlowStats,
}

/// Why a stream could not be opened.
#[derive(Debug, Error)]
pub enum OpenStreamError {
    /// The tunnel has ended.
    #[error("no stream can be opened: the tunnel has ended")]
    Closed(#[source] CloseReason),
    /// The stream failed while its header was written.
    #[error("the other side aborted the stream before it began")]
    Aborted(#[source] io::Error),
}

/// A handle on a tunnel; clones are the same tunnel.
#[derive(Debug, Clone)]
pub struct Tunnel {
    shared: Arc<Shared>,
}

/// What handles, streams and driver share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) clock: Clock,
    pub(super) streams: Arc<StreamCount>,
    pub(super) flows: Arc<Flows>,
    pub(super) doubt: Notify,
    pub(super) moved: Notify,
    /// What was found out of the routers on the way.
    binding: watch::Sender<Option<BindingTime>>,
    close: watch::Sender<Option<CloseReason>>,
    goodbye: watch::Sender<Option<Goodbye>>,
    may_open: Arc<Semaphore>,
    acceptor: Mutex<Acceptor>,
}

/// How many streams at once, by direction.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamLimits {
    pub(super) ours: u32,
    pub(super) theirs: u32,
}

impl Tunnel {
    /// After the greeting.
    pub(super) fn new(
        transport: Arc<dyn Transport>,
        clock: Clock,
        limits: StreamLimits,
        header_timeout: Duration,
        flows: Arc<Flows>,
        control: ControlStream,
    ) -> (Self, TunnelDriver) {
        let shared = Arc::new(Shared {
            transport,
            clock,
            streams: Arc::new(StreamCount::new()),
            flows,
            doubt: Notify::new(),
            moved: Notify::new(),
            binding: watch::Sender::new(None),
            close: watch::Sender::new(None),
            goodbye: watch::Sender::new(None),
            may_open: Arc::new(Semaphore::new(permits(limits.ours))),
            acceptor: Mutex::new(Acceptor {
                may_accept: Arc::new(Semaphore::new(permits(limits.theirs))),
                arriving: Vec::new(),
                header_timeout,
            }),
        });
        let driver = TunnelDriver::new(Arc::clone(&shared), control);
        (Self { shared }, driver)
    }

    /// Opens a stream and writes its header; content may be written at once. Waits while as many
    /// streams are open as the other side allows.
    pub async fn open_stream(&self, header: StreamHeader) -> Result<TunnelStream, OpenStreamError> {
        let shared = &self.shared;
        let opened = async {
            // The semaphore is never closed, so the permit fails only with the tunnel.
            let permit = Arc::clone(&shared.may_open).acquire_owned().await.ok()?;
            let io = shared.transport.open(Urgency::Bulk).await.ok()?;
            let counted = CountedStream::new(&shared.streams, permit);
            Some(write_header(header, io, counted).await)
        };
        tokio::select! {
            biased;
            reason = self.closed() => Err(OpenStreamError::Closed(reason)),
            opened = opened => match opened {
                Some(Ok(stream)) => Ok(stream),
                Some(Err(error)) if shared.transport.close_reason().is_none() => Err(OpenStreamError::Aborted(error)),
                // The driver knows better than the transport why it ended.
                Some(Err(_)) | None => Err(OpenStreamError::Closed(self.closed().await)),
            },
        }
    }

    /// The next stream that the other side has opened, its header read. Headers of several
    /// streams are awaited at once, and streams whose header cannot be read, or not in time, are
    /// refused without a word here. Cancel safe.
    pub async fn accept_stream(&self) -> Result<IncomingStream, CloseReason> {
        let next = async {
            let mut acceptor = self.shared.acceptor.lock().await;
            acceptor.next(&self.shared).await.ok()
        };
        tokio::select! {
            biased;
            reason = self.closed() => Err(reason),
            next = next => match next {
                Some(stream) => Ok(stream),
                None => Err(self.closed().await),
            },
        }
    }

    /// Takes leave: sends the goodbye, waits at most [`GOODBYE_TIMEOUT`] for its delivery and
    /// closes the connection with all streams. Dropping the future does not take it back.
    pub async fn close(&self, goodbye: Goodbye) {
        let goodbye = Goodbye {
            message: message_text(&goodbye.message),
            ..goodbye
        };
        self.shared.goodbye.send_if_modified(|asked| {
            let first = asked.is_none();
            asked.get_or_insert_with(|| goodbye.clone());
            first
        });
        // The driver does the work; it has this and one timer's lateness to do it.
        let patience = GOODBYE_TIMEOUT.saturating_add(Duration::from_millis(500));
        if tokio::time::timeout(patience, self.closed()).await.is_err() {
            self.shared.finish(CloseReason::Local(goodbye));
        }
    }

    /// Asks the other side for a sign of life now, and ends the tunnel soon if none comes: for when the
    /// network has changed, or before the tunnel is relied on.
    pub fn probe(&self) {
        self.shared.doubt.notify_one();
    }

    /// Says that this box is in another network: the other side is asked as by [`probe`](Self::probe), and
    /// what was found out of the routers on the way holds no more.
    pub fn network_changed(&self) {
        self.shared.moved.notify_one();
    }

    /// How long the routers on the way remember a silent flow, as far as this tunnel has found out.
    pub fn binding(&self) -> Option<BindingTime> {
        *self.shared.binding.borrow()
    }

    /// Waits until no stream is open.
    pub async fn idle(&self) {
        let mut streams = self.shared.streams.subscribe();
        // The sender lives as long as this handle.
        let _ = streams.wait_for(|open| *open == 0).await;
    }

    /// Waits for the end and says why.
    pub async fn closed(&self) -> CloseReason {
        self.shared.closed().await
    }

    /// Why the tunnel has ended, if it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.shared.close.borrow().clone()
    }

    /// Whether the tunnel has ended.
    pub fn is_closed(&self) -> bool {
        self.shared.close.borrow().is_some()
    }

    /// When the other side asked to come back, if it did as the tunnel ended.
    pub fn retry_after(&self) -> Option<Duration> {
        self.close_reason().as_ref().and_then(CloseReason::retry_after)
    }

    /// The largest packet that the path is known to take so far, without IP and UDP headers; `None` over
    /// a transport that does not find it out.
    pub fn path_mtu(&self) -> Option<u16> {
        self.shared.transport.path_mtu()
    }

    /// What it runs over.
    pub fn protocol(&self) -> TunnelProtocol {
        self.shared.transport.protocol()
    }

    /// What has come to the UDP socket of this tunnel's own, and what of it the system has dropped.
    pub fn udp_arrivals(&self) -> Option<UdpArrivals> {
        self.shared.transport.udp_arrivals()
    }

    /// The other side's address.
    pub fn remote_address(&self) -> SocketAddr {
        self.shared.transport.remote_address()
    }

    /// The other side's certificate, verified by the handshake.
    pub fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        self.shared.transport.peer_certificate()
    }

    /// Numbers for status and metrics.
    pub fn stats(&self) -> TunnelStats {
        TunnelStats {
            open_streams: self.shared.streams.open(),
            opened_streams: self.shared.streams.opened(),
            flows: self.shared.flows.stats(),
        }
    }

    pub(super) fn flows(&self) -> &Arc<Flows> {
        &self.shared.flows
    }
}

impl Shared {
    /// Ends the tunnel; the first reason stays.
    pub(super) fn finish(&self, reason: CloseReason) {
        let code = reason.close_code();
        let text = reason.to_string();
        let first = self.close.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(reason);
            first
        });
        if first {
            self.transport.close(code, &text);
        }
    }

    pub(super) async fn closed(&self) -> CloseReason {
        let mut close = self.close.subscribe();
        let reason = match close.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone(),
            Err(_) => None,
        };
        reason.unwrap_or(CloseReason::Abandoned)
    }

    pub(super) fn learned(&self, binding: Option<BindingTime>) {
        self.binding.send_replace(binding);
    }

    /// Tells the driver of a goodbye to be said.
    pub(super) fn goodbye(&self) -> watch::Receiver<Option<Goodbye>> {
        self.goodbye.subscribe()
    }
}

fn permits(streams: u32) -> usize {
    usize::try_from(streams.clamp(1, MAX_STREAMS_CEILING)).unwrap_or(1)
}

async fn write_header(
    header: StreamHeader,
    mut io: ByteStream,
    counted: CountedStream,
) -> io::Result<TunnelStream> {
    // A service request holds a token.
    let frame = Zeroizing::new(header.encode().map_err(io::Error::other)?);
    io.write.write_all(&frame).await?;
    io.write.flush().await?;
    Ok(TunnelStream::opened(header, io, counted))
}

/// Streams of the other side's whose headers are being read. It holds at most as many as there
/// are permits; beyond that the transport is not asked for more.
struct Acceptor {
    may_accept: Arc<Semaphore>,
    arriving: Vec<Arriving>,
    header_timeout: Duration,
}

/// Ends with a stream, or with nothing when it was refused.
type Arriving = BoxFuture<'static, Option<IncomingStream>>;

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor")
            .field("arriving", &self.arriving.len())
            .finish_non_exhaustive()
    }
}

impl Acceptor {
    /// Cancel safe: what was begun stays in `arriving`.
    async fn next(&mut self, shared: &Shared) -> Result<IncomingStream, TransportClosed> {
        loop {
            let accepted = async {
                let permit = Arc::clone(&self.may_accept).acquire_owned().await;
                (permit, shared.transport.accept(Urgency::Bulk).await)
            };
            tokio::select! {
                biased;
                arrived = first_ready(&mut self.arriving) => {
                    if let Some(stream) = arrived {
                        return Ok(stream);
                    }
                }
                (permit, io) = accepted => {
                    let io = io?;
                    if let Ok(permit) = permit {
                        let counted = CountedStream::new(&shared.streams, permit);
                        let flows = Arc::clone(&shared.flows);
                        self.arriving.push(Box::pin(read_header(io, counted, self.header_timeout, flows)));
                    }
                }
            }
        }
    }
}

/// Polls all and takes the first that is ready out; never ready while there are none.
fn first_ready(arriving: &mut Vec<Arriving>) -> impl Future<Output = Option<IncomingStream>> + '_ {
    poll_fn(|cx| {
        for index in 0..arriving.len() {
            if let Poll::Ready(stream) = arriving[index].as_mut().poll(cx) {
                drop(arriving.remove(index));
                return Poll::Ready(stream);
            }
        }
        Poll::Pending
    })
}

async fn read_header(
    mut io: ByteStream,
    counted: CountedStream,
    within: Duration,
    flows: Arc<Flows>,
) -> Option<IncomingStream> {
    let mut frame = PartialFrame::new();
    let read = frame.read(&mut *io.read);
    let refusal = match tokio::time::timeout(within, read).await {
        Ok(Ok(content)) => match StreamHeader::decode(&content) {
            Ok(header) => return Some(IncomingStream::new(header, io, counted, within, flows)),
            Err(error) => error.refusal(),
        },
        Ok(Err(FrameError::TooLong(error))) => StreamRefusal {
            code: RefusalCode::Malformed,
            message: error.to_string(),
        },
        Ok(Err(FrameError::Cut | FrameError::Ended)) => {
            DecodeError::Malformed("the stream ended in its header").refusal()
        }
        Ok(Err(FrameError::Stream(_))) => return None,
        Err(_) => StreamRefusal {
            code: RefusalCode::Malformed,
            message: format!("the stream header did not arrive within {} s", within.as_secs()),
        },
    };
    tracing::debug!(code = ?refusal.code, reason = %refusal.message, "a stream was refused");
    refuse(&mut io, refusal, within).await;
    None
}
