//! Throughput, stream rate, latency and memory of the tunnel itself over QUIC and over TLS, next to plain TCP and to
//! `ssh -L` over the same way: on loopback, and (as root, with `ip` and `python3`) between two namespaces whose
//! link delays packets by 25 ms each way and loses 1 % of them. What goes over TCP is measured there with CUBIC,
//! Linux' default, and with BBR, where the kernel has them.
//!
//!     cargo bench --bench tunnel                            both ways, 10 s for each figure
//!     cargo bench --bench tunnel -- loopback 4              one way, 4 s for each
//!     cargo bench --bench tunnel -- impaired 10 tls quic    some carriers
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
mod ssh;

use std::ffi::OsStr;
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
    /// The tunnel over TLS on TCP.
    Tls,
    /// OpenSSH, which forwards a port.
    Ssh,
    /// A plain TCP connection for each stream, without TLS.
    Tcp,
}

impl Carrier {
    const ALL: [Self; 4] = [Self::Tcp, Self::Ssh, Self::Tls, Self::Quic];

    fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tls => "tls",
            Self::Ssh => "ssh",
            Self::Tcp => "tcp",
        }
    }

    fn parse(name: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|carrier| carrier.name() == name)
            .expect("a carrier's name")
    }

    /// What the serving end serves: SSH forwards to plain TCP.
    const fn served(self) -> Self {
        match self {
            Self::Ssh => Self::Tcp,
            other => other,
        }
    }
}

/// Time for each figure, unless it is said.
const SECONDS: u64 = 10;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", carrier, directory, ip] => {
            server::run(Carrier::parse(carrier), Path::new(directory), ip.parse().unwrap());
        }
        ["measure", carrier, directory, address, seconds, server] => client::run(
            Carrier::parse(carrier),
            Path::new(directory),
            address.parse().unwrap(),
            seconds.parse().unwrap(),
            server.parse().unwrap(),
        ),
        [] => {
            loopback(SECONDS, &Carrier::ALL);
            impaired(SECONDS, &Carrier::ALL);
        }
        [way, ref more @ ..] => {
            let seconds = more
                .first()
                .map_or(SECONDS, |text| text.parse().expect("seconds"));
            let named: Vec<Carrier> = more.iter().skip(1).map(|name| Carrier::parse(name)).collect();
            let carriers = if named.is_empty() {
                &Carrier::ALL[..]
            } else {
                &named
            };
            match way {
                "loopback" => loopback(seconds, carriers),
                "impaired" => impaired(seconds, carriers),
                _ => panic!("usage: tunnel [loopback | impaired] [SECONDS [tcp | ssh | tls | quic]...]"),
            }
        }
    }
}

fn loopback(seconds: u64, carriers: &[Carrier]) {
    println!("on loopback");
    for carrier in carriers {
        compare(*carrier, Ipv4Addr::LOCALHOST.into(), seconds, &|_, program| {
            Command::new(program)
        });
    }
}

fn impaired(seconds: u64, carriers: &[Carrier]) {
    let link = match ImpairedLink::new(25, 1) {
        Ok(link) => link,
        Err(why) => return println!("SKIPPED: the impaired link, because {why}"),
    };
    println!("with 50 ms round trip and 1 % loss each way");
    let measure = |carrier: &Carrier| {
        let far = ImpairedLink::far_address();
        compare(*carrier, far, seconds, &|end, program| link.command(end, program));
    };
    let over_tcp = |carrier: &&Carrier| **carrier != Carrier::Quic;
    for algorithm in ["cubic", "bbr"] {
        match link.set_tcp_congestion_control(algorithm) {
            Ok(()) => {
                println!(" TCP with {algorithm}");
                carriers.iter().filter(over_tcp).for_each(measure);
            }
            Err(why) => println!(" SKIPPED: TCP with {algorithm}, because {why}"),
        }
    }
    carriers
        .iter()
        .filter(|carrier| !over_tcp(carrier))
        .for_each(measure);
}

/// Which side of the link a process stands on.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// The measuring one.
    Near,
    /// The serving one.
    Far,
}

/// A program at one end.
type Start<'a> = &'a dyn Fn(End, &OsStr) -> Command;

fn compare(carrier: Carrier, far: IpAddr, seconds: u64, start: Start<'_>) {
    let directory = tempfile::tempdir().unwrap();
    Credentials::create(directory.path());
    let this = std::env::current_exe().unwrap();
    let mut server = Running(
        start(End::Far, this.as_os_str())
            .args(["serve", carrier.served().name()])
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
    let forwarded = match carrier {
        Carrier::Ssh => match ssh::forward(directory.path(), address, start) {
            Ok(forwarded) => Some(forwarded),
            Err(why) => return println!("  SKIPPED: ssh, because {why}"),
        },
        Carrier::Quic | Carrier::Tls | Carrier::Tcp => None,
    };
    let address = forwarded.as_ref().map_or(address, |forwarded| forwarded.address);
    let measured = start(End::Near, this.as_os_str())
        .args(["measure", carrier.name()])
        .arg(directory.path())
        .args([
            address.to_string(),
            seconds.to_string(),
            server.0.id().to_string(),
        ])
        .status()
        .unwrap();
    assert!(measured.success(), "the measuring side failed");
}

/// A process of ours, ended when it is dropped.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
