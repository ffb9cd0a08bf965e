//! Streams to published services, over QUIC on loopback and through a real local TCP program: throughput
//! of one and of eight streams in each direction, connections each second, and the round trip of 64 bytes,
//! idle and beside a bulk transfer. Plain TCP to the same program stands beside it for comparison.
//!
//! `cargo bench --bench service`, on a machine that does nothing else. Both ends, the program and the bench
//! share the cores, so the numbers are for comparison with each other and with other builds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "not a part of the programs"
)]
#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![allow(clippy::cast_precision_loss, reason = "numbers for people")]

#[path = "../tests/services/program.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod program;
#[path = "../tests/services/shop.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod shop;

use std::time::{Duration, Instant};

use powernode_satellite::tunnel::TunnelStream;
use program::{Program, echo, flood};
use shop::{Shop, Ticket, limits, with};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Bytes that one measurement of throughput moves.
const BULK_BYTES: u64 = 256 * 1024 * 1024;

/// Round trips that one measurement of latency makes.
const ROUND_TRIPS: usize = 2_000;

/// Connections that are opened and closed one after the other.
const CONNECTIONS: u32 = 500;

const PIECE: usize = 64 * 1024;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    let (flooding, echoing) = (Program::tcp(flood).await, Program::tcp(echo).await);
    let draining = Program::tcp(drain).await;
    let wide =
        |name: &str, address: &str| with(name, "tcp", address, |fields| fields.max_connections = 1_000);
    let services = vec![
        wide("flood", &flooding.address),
        wide("echo", &echoing.address),
        wide("drain", &draining.address),
    ];
    let shop = Shop::open_with(services, limits(), 1_024).await;
    let ticket = shop.ticket(None).await;

    for streams in [1, 8] {
        let direct = each(streams, async || {
            TcpStream::connect(&flooding.address).await.unwrap()
        });
        report_bulk("TCP alone, down", streams, download(direct.await).await);
        let relayed = each(streams, async || shop.ask("flood", Some(&ticket)).await);
        report_bulk("service, down", streams, download(relayed.await).await);
        let relayed = each(streams, async || shop.ask("drain", Some(&ticket)).await);
        report_bulk("service, up", streams, upload(relayed.await).await);
    }
    connections(&shop, &ticket).await;
    report_trips(
        "TCP alone, idle",
        &trips(TcpStream::connect(&echoing.address).await.unwrap()).await,
    );
    report_trips(
        "service, idle",
        &trips(shop.ask("echo", Some(&ticket)).await).await,
    );
    let mut bulk = shop.ask("flood", Some(&ticket)).await;
    let beside = async {
        tokio::select! {
            biased;
            measured = trips(shop.ask("echo", Some(&ticket)).await) => measured,
            () = drained(&mut bulk) => Vec::new(),
        }
    };
    report_trips("service, beside a download", &beside.await);
    idle(&shop, &ticket).await;
}

/// Takes all and counts nothing.
async fn drain(mut stream: TcpStream) {
    let mut piece = vec![0; PIECE];
    while stream.read(&mut piece).await.is_ok_and(|got| got > 0) {}
    let _ = stream.shutdown().await;
}

/// Reads on for ever.
async fn drained(stream: &mut TunnelStream) {
    let mut piece = vec![0; PIECE];
    while stream.read(&mut piece).await.is_ok_and(|got| got > 0) {}
}

async fn each<T>(count: usize, open: impl AsyncFn() -> T) -> Vec<T> {
    let mut opened = Vec::new();
    for _ in 0..count {
        opened.push(open().await);
    }
    opened
}

async fn download<S: AsyncRead + Unpin + Send + 'static>(streams: Vec<S>) -> Duration {
    let share = BULK_BYTES / streams.len() as u64;
    let started = Instant::now();
    let mut all = JoinSet::new();
    for mut stream in streams {
        all.spawn(async move {
            let mut piece = vec![0; PIECE];
            let mut left = share;
            while left > 0 {
                let got = stream.read(&mut piece).await.unwrap() as u64;
                assert!(got > 0);
                left = left.saturating_sub(got);
            }
        });
    }
    all.join_all().await;
    started.elapsed()
}

async fn upload(streams: Vec<TunnelStream>) -> Duration {
    let share = BULK_BYTES / streams.len() as u64;
    let started = Instant::now();
    let mut all = JoinSet::new();
    for mut stream in streams {
        all.spawn(async move {
            let piece = vec![1; PIECE];
            for _ in 0..share / PIECE as u64 {
                stream.write_all(&piece).await.unwrap();
            }
            stream.shutdown().await.unwrap();
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        });
    }
    all.join_all().await;
    started.elapsed()
}

async fn connections(shop: &Shop, ticket: &Ticket) {
    let started = Instant::now();
    for _ in 0..CONNECTIONS {
        let mut stream = shop.ask("echo", Some(ticket)).await;
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
    }
    let each = started.elapsed() / CONNECTIONS;
    println!(
        "{:<30} {:>8.0} each second, one after the other",
        "service, connections",
        1.0 / each.as_secs_f64()
    );
}

/// Sorted.
async fn trips(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Vec<Duration> {
    let (sent, mut back) = ([3; 64], [0; 64]);
    let mut taken = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let started = Instant::now();
        stream.write_all(&sent).await.unwrap();
        stream.read_exact(&mut back).await.unwrap();
        taken.push(started.elapsed());
    }
    taken.sort();
    taken
}

/// Memory of this process that a thousand idle streams take, both ends together.
async fn idle(shop: &Shop, ticket: &Ticket) {
    const STREAMS: usize = 900;
    let before = resident_kib();
    let mut streams = each(STREAMS, async || shop.ask("echo", Some(ticket)).await).await;
    for stream in &mut streams {
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
    }
    let grown = resident_kib().saturating_sub(before);
    println!(
        "{:<30} {:>8.1} KiB for each of {STREAMS}, both ends and the program",
        "service, idle streams",
        grown as f64 / STREAMS as f64
    );
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn report_bulk(what: &str, streams: usize, took: Duration) {
    let rate = BULK_BYTES as f64 / took.as_secs_f64() / (1024.0 * 1024.0);
    println!("{what:<30} {rate:>8.0} MiB/s, {streams} stream(s)");
}

fn report_trips(what: &str, taken: &[Duration]) {
    if taken.is_empty() {
        println!("{what:<30} the download ended first");
        return;
    }
    let at = |part: usize| taken[(taken.len() - 1) * part / 100].as_micros();
    println!("{what:<30} {:>8} µs p50, {} µs p99", at(50), at(99));
}
