//! The measuring end.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use powernode_satellite::base::id::TraceId;
use powernode_satellite::identity::tls_failure::FailureRecord;
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::tunnel::quic::{QuicEndpoint, QuicSettings};
use powernode_satellite::tunnel::tcp::{self, TcpSettings};
use powernode_satellite::tunnel::{Tunnel, TunnelSettings};
use powernode_satellite::wire::{Hello, StreamHeader, StreamKind, TUNNEL_VERSION};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::Carrier;
use crate::credentials::{Credentials, SERVER_NAME};
use crate::server::{CHUNK_BYTES, ECHO, GIVE, STREAMS_MAX, TAKE};

trait Bytes: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Bytes for T {}

/// What opens streams.
#[derive(Clone)]
enum Way {
    Tcp(SocketAddr),
    Tunnel(Tunnel),
}

impl Way {
    async fn open(&self) -> Box<dyn Bytes> {
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await.unwrap();
                stream.set_nodelay(true).unwrap();
                Box::new(stream)
            }
            Self::Tunnel(tunnel) => {
                let header = StreamHeader {
                    kind: StreamKind::Http,
                    trace: TraceId(0),
                };
                Box::new(tunnel.open_stream(header).await.unwrap())
            }
        }
    }
}

/// The default of the host-bridge's `limits.stream_window_kib`.
const STREAM_WINDOW_KIB: u32 = 8 * 1024;

/// Tunnels that are opened to see what an idle one costs.
const IDLE_TUNNELS: u32 = 200;

/// Time in which the other end must listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(20);

pub fn run(carrier: Carrier, directory: &Path, address: SocketAddr, seconds: u64, server: u32) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let way = match carrier {
            Carrier::Tcp | Carrier::Ssh => {
                listening(address).await;
                Way::Tcp(address)
            }
            Carrier::Quic | Carrier::Tls => Way::Tunnel(dial(carrier, directory, address).await),
        };
        if let Way::Tunnel(_) = way {
            // Before anything has made room for more.
            idle(carrier, directory, address, server).await;
        }
        let name = carrier.name();
        let time = Duration::from_secs(seconds);
        for streams in [1, 8] {
            println!(
                "  {name:5} {streams} down     {:9.1} Mbit/s",
                down(&way, streams, time).await
            );
            println!(
                "  {name:5} {streams} up       {:9.1} Mbit/s",
                up(&way, streams, time).await
            );
        }
        println!("  {name:5} streams    {:9.0} /s", rate(&way, time).await);
        latency(name, "idle", &way, time).await;
        let busy = way.clone();
        let bulk = tokio::spawn(async move { down(&busy, 1, time + Duration::from_secs(1)).await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        latency(name, "bulk", &way, time).await;
        bulk.await.unwrap();
    });
}

/// Waits until somebody listens.
async fn listening(address: SocketAddr) {
    let listens = async {
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LISTENS_WITHIN, listens).await.unwrap();
}

async fn dial(carrier: Carrier, directory: &Path, address: SocketAddr) -> Tunnel {
    let failures = FailureRecord::default();
    let tls = Credentials::of(directory, "client").client(&failures);
    // As a host-bridge reads what a satellite gives.
    let settings = QuicSettings {
        stream_window: 1024 * STREAM_WINDOW_KIB,
        ..QuicSettings::default()
    };
    let transport = if carrier == Carrier::Quic {
        let endpoint = QuicEndpoint::client(settings).unwrap();
        endpoint.dial(address, SERVER_NAME, tls, &failures).await.unwrap()
    } else {
        let stream = TcpStream::connect(address).await.unwrap();
        tcp::tune(&stream);
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let connected = tcp::connect(
            Box::new(stream),
            address,
            name,
            tls,
            &failures,
            TcpSettings::default(),
        );
        connected.await.unwrap()
    };
    let hello = Hello {
        version: TUNNEL_VERSION,
        agent: "bench".into(),
        features: Vec::new(),
    };
    let settings = TunnelSettings {
        max_streams: STREAMS_MAX,
        ..TunnelSettings::default()
    };
    let (tunnel, _, driver) = Tunnel::dial(transport, hello, settings, Clock::start(BUILD_TIME))
        .await
        .unwrap();
    tokio::spawn(driver.run());
    tunnel
}

fn megabits(bytes: u64, time: Duration) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let bits = bytes as f64 * 8.0;
    bits / time.as_secs_f64() / 1e6
}

async fn down(way: &Way, streams: usize, time: Duration) -> f64 {
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for _ in 0..streams {
        let way = way.clone();
        tasks.spawn(async move {
            let mut stream = way.open().await;
            stream.write_u8(GIVE).await.unwrap();
            let mut buffer = vec![0; CHUNK_BYTES];
            let mut got = 0_u64;
            while started.elapsed() < time {
                got += stream.read(&mut buffer).await.unwrap() as u64;
            }
            got
        });
    }
    let bytes: u64 = tasks.join_all().await.iter().sum();
    megabits(bytes, started.elapsed())
}

async fn up(way: &Way, streams: usize, time: Duration) -> f64 {
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for _ in 0..streams {
        let way = way.clone();
        tasks.spawn(async move {
            let mut stream = way.open().await;
            stream.write_u8(TAKE).await.unwrap();
            let buffer = vec![0; CHUNK_BYTES];
            while started.elapsed() < time {
                stream.write_all(&buffer).await.unwrap();
            }
            stream.shutdown().await.unwrap();
            stream.read_u64().await.unwrap()
        });
    }
    let bytes: u64 = tasks.join_all().await.iter().sum();
    megabits(bytes, started.elapsed())
}

/// Streams opened, used for one exchange and closed, in a second, 32 at a time.
async fn rate(way: &Way, time: Duration) -> f64 {
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for _ in 0..32 {
        let way = way.clone();
        tasks.spawn(async move {
            let mut done = 0_u32;
            while started.elapsed() < time {
                let mut stream = way.open().await;
                stream.write_all(&[ECHO, 1]).await.unwrap();
                stream.shutdown().await.unwrap();
                assert_eq!(stream.read_u8().await.unwrap(), 1);
                done += 1;
            }
            done
        });
    }
    let done: u32 = tasks.join_all().await.iter().sum();
    f64::from(done) / started.elapsed().as_secs_f64()
}

async fn latency(name: &str, load: &str, way: &Way, time: Duration) {
    let mut stream = way.open().await;
    stream.write_u8(ECHO).await.unwrap();
    let mut buffer = [7; 64];
    let mut round_trips = Vec::new();
    let started = Instant::now();
    while started.elapsed() < time {
        let sent = Instant::now();
        stream.write_all(&buffer).await.unwrap();
        stream.read_exact(&mut buffer).await.unwrap();
        round_trips.push(sent.elapsed());
    }
    round_trips.sort_unstable();
    let at = |percent: usize| round_trips[(round_trips.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "  {name:5} ping {load}  {:9.3} ms p50 {:9.3} ms p99",
        at(50),
        at(99)
    );
}

/// What one more idle tunnel takes, at either end.
async fn idle(carrier: Carrier, directory: &Path, address: SocketAddr, server: u32) {
    let resident = || [resident_kib(std::process::id()), resident_kib(server)];
    let before = resident();
    let mut tunnels = Vec::new();
    for _ in 0..IDLE_TUNNELS {
        tunnels.push(dial(carrier, directory, address).await);
    }
    let after = resident();
    let [here, there] =
        [0, 1].map(|end| f64::from(after[end].saturating_sub(before[end])) / f64::from(IDLE_TUNNELS));
    println!(
        "  {:5} idle tunnel {here:7.1} KiB here {there:7.1} KiB there",
        carrier.name()
    );
}

fn resident_kib(process: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap().split_whitespace().next().unwrap().parse().unwrap()
}
