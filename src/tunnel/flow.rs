//! UDP associations: packets that belong to one stream of a tunnel and keep their borders.
//!
//! Packets travel as datagrams where both sides and the transport have them; the others, and those
//! that are larger than the path takes, as frames on the flow's stream, so nothing vanishes for its
//! size. Until the other side has taken the flow everything goes on the stream: a datagram would
//! find nobody. Packets may be lost or overtaken, as UDP's may; where they are more than the path takes,
//! streams have their [turn](super::turns).
//!
//! The stream is the flow's life: its end is the flow's end, on both sides.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::AsyncWrite;

use super::connection::{OpenStreamError, Tunnel};
use super::farewell::Farewell;
use super::packet::{PartialPacket, check_length, frame};
use super::stream::{IncomingStream, TunnelStream};
use super::transport::{DatagramRefused, Transport};
use super::turns::Turns;
use crate::process::clock::Clock;
use crate::wire::{End, FLOW_NUMBERS, FlowId, RefusalCode, StreamHeader, StreamRefusal};

/// Packets of a flow that wait for its reader, in number, before the oldest is dropped: a burst, and
/// what a video call sends in a quarter of a second.
pub const QUEUE_PACKETS: usize = 128;

/// The same in bytes: a few of the largest packets, or a burst of ordinary ones.
pub const QUEUE_BYTES: usize = 256 * 1024;

/// Packets of all flows of a tunnel, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowStats {
    /// Sent as datagrams.
    pub by_datagram: u64,
    /// Sent on streams: too large, too early, or over a transport without datagrams.
    pub by_stream: u64,
    /// Dropped on arrival, because the flow's reader was too slow.
    pub overflowed: u64,
    /// Dropped on arrival, because their flow is not known, or no longer.
    pub unknown: u64,
    /// Dropped before they were sent: more than the path takes, and the streams of the tunnel have their turn.
    pub yielded: u64,
}

/// The flows of one tunnel.
pub(super) struct Flows {
    transport: Arc<dyn Transport>,
    /// Which end this one is.
    end: End,
    /// Whether both sides want packets as datagrams.
    datagrams: bool,
    clock: Clock,
    turns: Mutex<Turns>,
    open: Mutex<Open>,
    counts: Counts,
}

#[derive(Default)]
struct Open {
    last_number: u32,
    inboxes: BTreeMap<FlowId, Arc<Inbox>>,
}

#[derive(Default)]
struct Counts {
    by_datagram: AtomicU64,
    by_stream: AtomicU64,
    overflowed: AtomicU64,
    unknown: AtomicU64,
    yielded: AtomicU64,
}

impl Flows {
    pub(super) fn new(transport: Arc<dyn Transport>, end: End, datagrams: bool, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            transport,
            end,
            datagrams,
            clock,
            turns: Mutex::default(),
            open: Mutex::default(),
            counts: Counts::default(),
        })
    }

    pub(super) fn stats(&self) -> FlowStats {
        let Counts {
            by_datagram,
            by_stream,
            overflowed,
            unknown,
            yielded,
        } = &self.counts;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        FlowStats {
            by_datagram: read(by_datagram),
            by_stream: read(by_stream),
            overflowed: read(overflowed),
            unknown: read(unknown),
            yielded: read(yielded),
        }
    }

    /// Gives datagrams to their flows until the connection ends, and waits for ever then.
    pub(super) async fn deliver(&self) -> std::convert::Infallible {
        while let Ok(datagram) = self.transport.receive_datagram().await {
            self.arrived(&datagram);
            tokio::task::consume_budget().await;
        }
        std::future::pending().await
    }

    fn arrived(&self, datagram: &Bytes) {
        let inbox = FlowId::take(datagram)
            .and_then(|(id, length)| Some((self.open().inboxes.get(&id).cloned()?, length)));
        let (count, dropped) = match inbox {
            Some((inbox, length)) => (&self.counts.overflowed, inbox.put(datagram.slice(length..))),
            None => (&self.counts.unknown, 1),
        };
        count.fetch_add(dropped, Ordering::Relaxed);
    }

    /// A place for a flow of this side's, under a number that none of its flows has.
    fn enter_own(self: &Arc<Self>) -> Entered {
        let mut open = self.open();
        loop {
            let id = FlowId {
                opener: self.end,
                number: open.last_number,
            };
            open.last_number = (open.last_number + 1) % FLOW_NUMBERS;
            // Streams are bounded far below the numbers.
            if !open.inboxes.contains_key(&id) {
                return Entered::new(self, &mut open, id);
            }
        }
    }

    /// A place for a flow of the other side's, unless its id is none of that side's, or taken.
    fn enter_theirs(self: &Arc<Self>, id: FlowId) -> Option<Entered> {
        let mut open = self.open();
        let free = id.opener == self.end.other() && !open.inboxes.contains_key(&id);
        free.then(|| Entered::new(self, &mut open, id))
    }

    fn may_send_datagram(&self) -> bool {
        let waiting = self.transport.datagrams_waiting();
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.may_send(waiting, self.clock.now())
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flows")
            .field("datagrams", &self.datagrams)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// A flow's place among the tunnel's, until it is dropped.
struct Entered {
    flows: Arc<Flows>,
    id: FlowId,
    inbox: Arc<Inbox>,
}

impl Entered {
    fn new(flows: &Arc<Flows>, open: &mut Open, id: FlowId) -> Self {
        let inbox = Arc::<Inbox>::default();
        open.inboxes.insert(id, Arc::clone(&inbox));
        Self {
            flows: Arc::clone(flows),
            id,
            inbox,
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.flows.open().inboxes.remove(&self.id);
    }
}

/// Datagrams of a flow that its reader has not taken.
#[derive(Default)]
struct Inbox(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    packets: VecDeque<Bytes>,
    bytes: usize,
    reader: Option<Waker>,
}

impl Inbox {
    /// Takes a packet in; how many older ones it has displaced.
    fn put(&self, packet: Bytes) -> u64 {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.bytes += packet.len();
        waiting.packets.push_back(packet);
        let mut displaced = 0;
        while waiting.packets.len() > QUEUE_PACKETS || waiting.bytes > QUEUE_BYTES {
            let Some(oldest) = waiting.packets.pop_front() else {
                break;
            };
            waiting.bytes -= oldest.len();
            displaced += 1;
        }
        let reader = waiting.reader.take();
        drop(waiting);
        if let Some(reader) = reader {
            reader.wake();
        }
        displaced
    }

    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(packet) = waiting.packets.pop_front() else {
            waiting.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        waiting.bytes -= packet.len();
        Poll::Ready(packet)
    }
}

impl Tunnel {
    /// Opens a flow. It may be used at once; [`Flow::accepted`] says whether the other side takes it.
    pub async fn open_flow(&self, header: StreamHeader) -> Result<Flow, OpenStreamError> {
        let entered = self.flows().enter_own();
        let stream = self.open_stream(header).await?;
        let mut id = Vec::new();
        entered.id.put(&mut id);
        let flow = Flow::new(stream, entered);
        flow.send_on_stream(&id).await.map_err(OpenStreamError::Aborted)?;
        Ok(flow)
    }
}

impl IncomingStream {
    /// Takes the stream as a flow and tells the other side so. One that does not say which flow it is
    /// is refused, and an error here.
    pub async fn accept_flow(mut self) -> io::Result<Flow> {
        let mut number = PartialPacket::default();
        let within = self.reply_timeout();
        let read = number.read(&mut *self.io_mut().read);
        let number = match tokio::time::timeout(within, read).await {
            Ok(number) => number?,
            Err(_) => None,
        };
        let entered = number
            .and_then(|content| FlowId::decode(&content).ok())
            .and_then(|id| self.flows().enter_theirs(id));
        let Some(entered) = entered else {
            let refusal = StreamRefusal {
                code: RefusalCode::Malformed,
                message: "the flow has no number of its own".to_owned(),
            };
            self.refuse(refusal).await;
            return Err(io::ErrorKind::InvalidData.into());
        };
        // Entered before the other side knows: its first datagram may follow the reply at once.
        Ok(Flow::new(self.accept().await?, entered))
    }
}

/// A flow. Sending and receiving are independent of each other, and both cancel safe. Dropping it
/// ends it.
pub struct Flow {
    header: StreamHeader,
    stream: Mutex<TunnelStream>,
    reader: tokio::sync::Mutex<Reader>,
    writer: tokio::sync::Mutex<Writer>,
    entered: Entered,
}

#[derive(Default)]
struct Reader {
    packet: PartialPacket,
    ended: bool,
    /// Whether the stream is looked at first the next time: a flood of one kind must not keep the
    /// other kind waiting.
    stream_first: bool,
}

#[derive(Default)]
struct Writer {
    frame: Vec<u8>,
    written: usize,
}

impl Flow {
    fn new(stream: TunnelStream, entered: Entered) -> Self {
        Self {
            header: stream.header().clone(),
            stream: Mutex::new(stream),
            reader: tokio::sync::Mutex::default(),
            writer: tokio::sync::Mutex::default(),
            entered,
        }
    }

    /// The header it was opened with.
    pub const fn header(&self) -> &StreamHeader {
        &self.header
    }

    /// What the two sides say where one of them gives the flow up.
    pub fn farewell(&self) -> Farewell {
        self.stream().farewell().clone()
    }

    /// Waits until the other side has taken the flow, or says why it does not:
    /// [`refusal_in`](super::stream::refusal_in) the error. Nobody needs to call it. Cancel safe.
    pub async fn accepted(&self) -> io::Result<()> {
        // The reader's place: the reply is the first that is read.
        let _reader = self.reader.lock().await;
        poll_fn(|cx| self.stream().poll_accepted(cx)).await
    }

    /// Sends a packet of at most [`PACKET_MAX_BYTES`](crate::wire::PACKET_MAX_BYTES). It waits only where the packet has to go on the
    /// stream and the stream is full; a datagram may be dropped where many wait. When the
    /// future is dropped the packet was taken whole or not at all. An error ends the flow.
    pub async fn send(&self, packet: &[u8]) -> io::Result<()> {
        check_length(packet)?;
        let flows = &self.entered.flows;
        if flows.datagrams && self.stream().is_accepted() {
            if !flows.may_send_datagram() {
                flows.counts.yielded.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            let mut datagram = Vec::with_capacity(packet.len() + size_of::<u32>());
            self.entered.id.put(&mut datagram);
            datagram.extend_from_slice(packet);
            match flows.transport.send_datagram(datagram.into()) {
                Ok(()) => {
                    flows.counts.by_datagram.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                // The stream takes it, or knows why the connection has ended.
                Err(DatagramRefused::TooLarge | DatagramRefused::Unavailable) => {}
            }
        }
        self.send_on_stream(packet).await?;
        flows.counts.by_stream.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The next packet; `None` when the flow has ended. Cancel safe.
    pub async fn recv(&self) -> Option<Bytes> {
        let mut reader = self.reader.lock().await;
        poll_fn(|cx| self.poll_recv(&mut reader, cx)).await
    }

    /// Ends the flow in order: what was sent on its stream is delivered.
    pub async fn finish(self) {
        let mut writer = self.writer.lock().await;
        let finished = async {
            self.write_out(&mut writer).await?;
            poll_fn(|cx| Pin::new(&mut *self.stream()).poll_shutdown(cx)).await
        };
        if let Err(error) = finished.await {
            tracing::debug!(%error, "a flow ended before its last packet was sent");
        }
    }

    async fn send_on_stream(&self, packet: &[u8]) -> io::Result<()> {
        let frame = frame(packet)?;
        let mut writer = self.writer.lock().await;
        // What somebody has left who did not wait.
        self.write_out(&mut writer).await?;
        writer.frame = frame;
        self.write_out(&mut writer).await
    }

    async fn write_out(&self, writer: &mut Writer) -> io::Result<()> {
        while writer.written < writer.frame.len() {
            let left = &writer.frame[writer.written..];
            match poll_fn(|cx| Pin::new(&mut *self.stream()).poll_write(cx, left)).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => writer.written += count,
            }
        }
        *writer = Writer::default();
        poll_fn(|cx| Pin::new(&mut *self.stream()).poll_flush(cx)).await
    }

    fn poll_recv(&self, reader: &mut Reader, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let inbox = &self.entered.inbox;
        if !reader.stream_first
            && let Poll::Ready(packet) = inbox.poll_take(cx)
        {
            reader.stream_first = true;
            return Poll::Ready(Some(packet));
        }
        reader.stream_first = false;
        if !reader.ended {
            match reader.packet.poll_read(&mut *self.stream(), cx) {
                Poll::Ready(Ok(Some(packet))) => return Poll::Ready(Some(packet)),
                Poll::Ready(Ok(None)) => reader.ended = true,
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "a flow was cut");
                    reader.ended = true;
                }
                Poll::Pending => {}
            }
        }
        // What came before the end is still heard.
        match inbox.poll_take(cx) {
            Poll::Ready(packet) => Poll::Ready(Some(packet)),
            Poll::Pending if reader.ended => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    fn stream(&self) -> MutexGuard<'_, TunnelStream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow")
            .field("id", &self.entered.id)
            .finish_non_exhaustive()
    }
}
