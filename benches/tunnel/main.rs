//! Throughput, stream rate and latency of the tunnel itself, next to plain TCP over the same way:
//! on loopback, and (as root, with `ip` and `python3`) between two namespaces whose link delays
//! packets by 25 ms each way and loses 1 % of them.
//!
//!     cargo bench --bench tunnel            both ways
//!     cargo bench --bench tunnel -- loopback
//!
//! Read the ratios of one run; the numbers of two runs on a shared machine say little.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a benchmark: a panic is how it fails, and it reads the clock"
)]

mod client;
mod credentials;
mod link;
mod server;

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use credentials::Credentials;
use link::ImpairedLink;

/// What carries the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// The tunnel over QUIC.
    Quic,
    /// A plain TCP connection for each stream, without TLS.
    Tcp,
}

impl Carrier {
    const ALL: [Self; 2] = [Self::Tcp, Self::Quic];

    fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }

    fn parse(name: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|carrier| carrier.name() == name)
            .expect("a carrier's name")
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", carrier, directory, ip] => {
            server::run(Carrier::parse(carrier), Path::new(directory), ip.parse().unwrap());
        }
        ["measure", carrier, directory, address, seconds] => client::run(
            Carrier::parse(carrier),
            Path::new(directory),
            address.parse().unwrap(),
            seconds.parse().unwrap(),
        ),
        [] => {
            loopback();
            impaired();
        }
        ["loopback"] => loopback(),
        ["impaired"] => impaired(),
        _ => panic!("usage: tunnel [loopback | impaired]"),
    }
}

fn loopback() {
    println!("on loopback");
    for carrier in Carrier::ALL {
        compare(carrier, Ipv4Addr::LOCALHOST.into(), 4, |_| {
            Command::new(std::env::current_exe().unwrap())
        });
    }
}

fn impaired() {
    let link = match ImpairedLink::new(25, 1) {
        Ok(link) => link,
        Err(why) => return println!("SKIPPED: the impaired link, because {why}"),
    };
    println!("with 50 ms round trip and 1 % loss each way");
    let measure = |carrier| compare(carrier, ImpairedLink::far_address(), 10, |end| link.command(end));
    for algorithm in ["reno", "bbr"] {
        match link.set_tcp_congestion_control(algorithm) {
            Ok(()) => {
                println!(" TCP with {algorithm}");
                measure(Carrier::Tcp);
            }
            Err(why) => println!(" SKIPPED: TCP with {algorithm}, because {why}"),
        }
    }
    measure(Carrier::Quic);
}

/// Which side of the link a process stands on.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// The measuring one.
    Near,
    /// The serving one.
    Far,
}

fn compare(carrier: Carrier, far: IpAddr, seconds: u32, command: impl Fn(End) -> Command) {
    let directory = tempfile::tempdir().unwrap();
    Credentials::create(directory.path());
    let mut server = Running(
        command(End::Far)
            .args(["serve", carrier.name()])
            .arg(directory.path())
            .arg(far.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut ready = String::new();
    BufReader::new(server.0.stdout.take().unwrap())
        .read_line(&mut ready)
        .unwrap();
    let address: SocketAddr = ready.trim().parse().expect("the server tells its address");
    let measured = command(End::Near)
        .args(["measure", carrier.name()])
        .arg(directory.path())
        .args([address.to_string(), seconds.to_string()])
        .status()
        .unwrap();
    assert!(measured.success(), "the measuring side failed");
}

/// A process of ours, ended when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
