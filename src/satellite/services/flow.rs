//! Moves the packets of one flow between the tunnel and a local UDP program. Packets are lost rather than
//! kept: what finds a limit reached, or a queue full, is dropped, as on any network.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::net::UdpSocket;

use super::meter::Direction;
use super::relay::Traffic;
use crate::base::time::Moment;
use crate::contract::service::LocalAddress;
use crate::process::clock::Clock;
use crate::tunnel::flow::Flow;
use crate::wire::StreamEnd;

/// Room for the largest packet that there is, in bytes.
pub(super) const PACKET_MAX_BYTES: usize = 65_535;

/// The tunnel's end of a flow.
pub(super) trait Packets: Sync {
    /// The next packet; `None` when the other side is done. Cancel safe.
    fn receive(&self) -> impl Future<Output = Option<Bytes>> + Send;

    /// Sends a packet, or drops it.
    fn send(&self, packet: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
}

impl Packets for Flow {
    async fn receive(&self) -> Option<Bytes> {
        self.recv().await
    }

    async fn send(&self, packet: &[u8]) -> io::Result<()> {
        Self::send(self, packet).await
    }
}

/// Why a flow broke off.
#[derive(Debug, Error)]
pub(super) enum FlowError {
    /// The local socket.
    #[error("the local socket of the flow failed")]
    Local(#[source] io::Error),
    /// The tunnel's end.
    #[error("the flow's stream failed")]
    Tunnel(#[source] io::Error),
}

impl FlowError {
    /// What the asking side is told; nothing where it was the one that ended it.
    pub(super) const fn stream_end(&self) -> Option<StreamEnd> {
        match self {
            Self::Local(_) => Some(StreamEnd::ProgramBroke),
            Self::Tunnel(_) => None,
        }
    }
}

/// A socket for one flow, which hears the service's program alone.
pub(super) async fn open(address: &LocalAddress) -> io::Result<UdpSocket> {
    let address: SocketAddr = match address {
        LocalAddress::Ip(address) => *address,
        LocalAddress::Localhost(port) => (Ipv4Addr::LOCALHOST, *port).into(),
        LocalAddress::Socket(_) => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    Ok(socket)
}

/// Runs until the other side is done or nothing has come from either side for long.
pub(super) async fn relay_packets(
    socket: &UdpSocket,
    packets: &impl Packets,
    traffic: &Traffic<'_>,
    idle: Duration,
) -> Result<(), FlowError> {
    let clock = traffic.clock;
    let mut gates = [Gate::new(Direction::In), Gate::new(Direction::Out)];
    let [inward, outward] = &mut gates;
    let mut last = clock.now();
    loop {
        tokio::select! {
            arrived = packets.receive() => {
                let Some(packet) = arrived else { return Ok(()) };
                if inward.may_pass(clock) {
                    match socket.try_send(&packet) {
                        Ok(count) => inward.passed(count, traffic),
                        Err(error) => lost(error).map_err(FlowError::Local)?,
                    }
                }
            }
            ready = socket.readable() => {
                ready.map_err(FlowError::Local)?;
                let mut buffer = traffic.buffers.take();
                let answered = answer(socket, packets, outward, &mut buffer, traffic).await;
                traffic.buffers.give_back(buffer);
                answered?;
            }
            () = clock.sleep_until(last.plus(idle)) => return Ok(()),
        }
        last = clock.now();
    }
}

/// One packet of the program's.
async fn answer(
    socket: &UdpSocket,
    packets: &impl Packets,
    gate: &mut Gate,
    buffer: &mut [u8],
    traffic: &Traffic<'_>,
) -> Result<(), FlowError> {
    match socket.try_recv(buffer) {
        Ok(count) if gate.may_pass(traffic.clock) => {
            let packet = buffer.get(..count).unwrap_or_default();
            packets.send(packet).await.map_err(FlowError::Tunnel)?;
            gate.passed(count, traffic);
            Ok(())
        }
        Ok(_dropped) => Ok(()),
        Err(error) => lost(error).map_err(FlowError::Local),
    }
}

/// Whether an error is a packet's own: nobody listens at this moment, its queue is full, it is too large.
fn lost(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused => Ok(()),
        // EMSGSIZE has no kind of its own; a socket that is broken for good fails at the next look, too.
        _ if error.raw_os_error() == Some(EMSGSIZE) => Ok(()),
        _ => Err(error),
    }
}

/// Linux' number for a packet that is larger than its way allows.
const EMSGSIZE: i32 = 90;

/// Drops what comes before the limits allow more.
struct Gate {
    direction: Direction,
    closed_until: Option<Moment>,
}

impl Gate {
    const fn new(direction: Direction) -> Self {
        Self {
            direction,
            closed_until: None,
        }
    }

    fn may_pass(&mut self, clock: &Clock) -> bool {
        self.closed_until = self.closed_until.filter(|until| *until > clock.now());
        self.closed_until.is_none()
    }

    fn passed(&mut self, count: usize, traffic: &Traffic<'_>) {
        let bytes = u64::try_from(count).unwrap_or(u64::MAX);
        traffic.passed.passed(self.direction, bytes);
        let charged = traffic
            .meters
            .iter()
            .filter_map(|meter| meter.charge(self.direction, bytes, traffic.clock));
        self.closed_until = charged.max();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::num::NonZeroU64;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::sync::{Mutex, mpsc};

    use super::super::buffer::BufferPool;
    use super::super::meter::Meter;
    use super::super::relay::{HeldUp, Passed};
    use super::*;
    use crate::process::clock::BUILD_TIME;

    const DEADLINE: Duration = Duration::from_secs(20);

    struct Pipe {
        arriving: Mutex<mpsc::Receiver<Bytes>>,
        leaving: mpsc::Sender<Bytes>,
    }

    impl Packets for Pipe {
        async fn receive(&self) -> Option<Bytes> {
            self.arriving.lock().await.recv().await
        }

        async fn send(&self, packet: &[u8]) -> io::Result<()> {
            let _ = self.leaving.try_send(Bytes::copy_from_slice(packet));
            Ok(())
        }
    }

    #[derive(Default)]
    struct Counts([AtomicU64; 2]);

    impl Passed for Counts {
        fn passed(&self, direction: Direction, bytes: u64) {
            self.0[usize::from(direction == Direction::Out)].fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Runs a flow to `address` while `outside` holds the other end.
    async fn run<T>(
        address: SocketAddr,
        rate: Option<u64>,
        idle: Duration,
        outside: impl AsyncFnOnce(mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) -> T,
    ) -> (Result<(), FlowError>, T, [u64; 2]) {
        let (to_flow, arriving) = mpsc::channel(1_000);
        let (leaving, from_flow) = mpsc::channel(1_000);
        let pipe = Pipe {
            arriving: Mutex::new(arriving),
            leaving,
        };
        let socket = open(&LocalAddress::Ip(address)).await.unwrap();
        let counts = Counts::default();
        let meter = Meter::new(rate.and_then(NonZeroU64::new));
        let traffic = Traffic {
            clock: &Clock::start(BUILD_TIME),
            buffers: &BufferPool::of(PACKET_MAX_BYTES),
            held_up: &HeldUp::default(),
            meters: &[&meter],
            passed: &counts,
        };
        let both = async {
            tokio::join!(
                relay_packets(&socket, &pipe, &traffic, idle),
                outside(to_flow, from_flow)
            )
        };
        let (ended, told) = tokio::time::timeout(DEADLINE, both).await.unwrap();
        (ended, told, counts.0.map(AtomicU64::into_inner))
    }

    /// A program that gives each packet back.
    async fn echo(socket: &UdpSocket) {
        let mut buffer = vec![0; PACKET_MAX_BYTES];
        loop {
            let (count, from) = socket.recv_from(&mut buffer).await.unwrap();
            socket.send_to(&buffer[..count], from).await.unwrap();
        }
    }

    #[tokio::test]
    async fn packets_keep_their_bounds_and_the_end_is_passed_on() {
        let program = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = program.local_addr().unwrap();
        let flow = run(address, None, DEADLINE, async |to_flow, mut from_flow| {
            for size in [1, 0, 1_200, 1_500, 9_000, 65_507] {
                to_flow.send(Bytes::from(vec![7; size])).await.unwrap();
                assert_eq!(from_flow.recv().await.unwrap().len(), size);
            }
        });
        let (ended, (), counts) = tokio::select! {
            flow = flow => flow,
            () = echo(&program) => unreachable!("it never ends"),
        };
        ended.unwrap();
        assert_eq!(counts, [77_208, 77_208]);
    }

    #[tokio::test]
    async fn nobody_there_is_no_end_but_long_silence_is() {
        let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = gone.local_addr().unwrap();
        drop(gone);
        let idle = Duration::from_millis(300);
        let (ended, to_flow, _) = run(address, None, idle, async |to_flow, _from| {
            for _ in 0..3 {
                to_flow.send(Bytes::from_static(b"anybody?")).await.unwrap();
                tokio::task::yield_now().await;
            }
            to_flow
        })
        .await;
        ended.unwrap();
        drop(to_flow);
    }

    #[tokio::test]
    async fn a_stranger_is_not_heard() {
        let program = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = program.local_addr().unwrap();
        let (ended, (), _) = run(address, None, DEADLINE, async |to_flow, mut from_flow| {
            to_flow.send(Bytes::from_static(b"hello")).await.unwrap();
            let (_, flow) = program.recv_from(&mut [0; 16]).await.unwrap();
            stranger.send_to(b"forged", flow).await.unwrap();
            program.send_to(b"true", flow).await.unwrap();
            assert_eq!(from_flow.recv().await.unwrap(), "true");
        })
        .await;
        ended.unwrap();
    }

    #[tokio::test]
    async fn what_is_beyond_the_limit_is_dropped() {
        let program = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = program.local_addr().unwrap();
        let (ended, (), counts) = run(address, Some(100_000), DEADLINE, async |to_flow, _from| {
            for _ in 0..200 {
                to_flow.send(Bytes::from(vec![0; 1_000])).await.unwrap();
            }
        })
        .await;
        ended.unwrap();
        // A burst of a quarter of a second, and what comes during the test.
        assert!((20_000..150_000).contains(&counts[0]), "{counts:?}");
    }
}
