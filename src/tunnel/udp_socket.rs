//! The UDP sockets of QUIC: for IPv6 and IPv4 at once, with buffers as large as the system grants.

use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// UDP socket buffers that are asked for, in bytes; the system may grant less (packaging/sysctl raises its
/// limit). The usual default of 208 KiB loses packets in a burst of 17 ms at 100 Mbit/s.
const SOCKET_BUFFER_BYTES: usize = 2 * 1024 * 1024;

/// Times that a host is asked whether anybody listens at a port, and time for each answer. Systems say
/// so to one asker about once a second, and what QUIC sends to the same port asks, too.
const KNOCKS: u32 = 3;
const KNOCK_ANSWERED_WITHIN: Duration = Duration::from_millis(600);

/// What is sent to ask: no packet of QUIC, so that nobody answers who listens.
const KNOCK: [u8; 1] = [0];

/// The system's tables of UDP sockets, and the bytes of each that are read: some thousands of sockets.
const TABLES: [&str; 2] = ["/proc/self/net/udp6", "/proc/self/net/udp"];
const TABLE_MAX_BYTES: u64 = 1024 * 1024;

/// Columns of such a table, from 0 on: local address and port, and the count of dropped packets.
const LOCAL_COLUMN: usize = 1;
const DROPS_COLUMN: usize = 12;

/// Whether it has been said that the system grants less.
static SMALL_BUFFERS_TOLD: AtomicBool = AtomicBool::new(false);

/// A socket at this address; `[::]` takes IPv4 too, and gives way to `0.0.0.0` on a host without IPv6.
pub(super) fn udp_socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let bound = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6()
            && let Err(error) = socket.set_only_v6(false)
        {
            tracing::debug!(%error, "the UDP socket is for IPv6 alone");
        }
        socket.bind(&address.into())?;
        Ok(socket)
    };
    let socket = bound(address).or_else(|error: io::Error| {
        // A host without IPv6.
        if address.ip() == std::net::Ipv6Addr::UNSPECIFIED {
            bound((Ipv4Addr::UNSPECIFIED, address.port()).into()).map_err(|_| error)
        } else {
            Err(error)
        }
    })?;
    grow_buffers(&socket);
    Ok(socket.into())
}

/// Whether a host says that nobody listens at a UDP port (ICMP "port unreachable"). The system tells that to
/// connected sockets alone, which those of QUIC are not.
pub(super) async fn is_shut(address: SocketAddr) -> io::Result<bool> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = tokio::net::UdpSocket::bind((any, 0)).await?;
    socket.connect(address).await?;
    let shut = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    for _ in 0..KNOCKS {
        let asked = async {
            socket.send(&KNOCK).await?;
            socket.recv(&mut [0; 1]).await
        };
        match tokio::time::timeout(KNOCK_ANSWERED_WITHIN, asked).await {
            Ok(Err(error)) if shut(&error) => return Ok(true),
            Ok(Err(error)) => return Err(error),
            // Whoever answers is there.
            Ok(Ok(_)) => return Ok(false),
            Err(_) => {}
        }
    }
    Ok(false)
}

/// Packets that the system has dropped because the sockets at this port did not take them; `None` where
/// it does not say.
pub(super) fn dropped(port: u16) -> Option<u64> {
    let read = |path| {
        let mut table = String::new();
        let file = std::fs::File::open(path)?;
        file.take(TABLE_MAX_BYTES).read_to_string(&mut table)?;
        Ok::<_, io::Error>(dropped_in(&table, port))
    };
    TABLES
        .into_iter()
        .filter_map(|path| read(path).ok()?)
        .reduce(u64::saturating_add)
}

fn dropped_in(table: &str, port: u16) -> Option<u64> {
    let of_socket = |line: &str| {
        let local = line.split_whitespace().nth(LOCAL_COLUMN)?;
        let (_, its_port) = local.rsplit_once(':')?;
        if u16::from_str_radix(its_port, 16).ok()? != port {
            return None;
        }
        line.split_whitespace().nth(DROPS_COLUMN)?.parse::<u64>().ok()
    };
    table
        .lines()
        .skip(1)
        .filter_map(of_socket)
        .reduce(u64::saturating_add)
}

/// Asks for large buffers, and says once what the system grants.
fn grow_buffers(socket: &Socket) {
    let asked = socket
        .set_recv_buffer_size(SOCKET_BUFFER_BYTES)
        .and(socket.set_send_buffer_size(SOCKET_BUFFER_BYTES));
    if let Err(error) = asked {
        tracing::debug!(%error, "the UDP socket keeps its default buffers");
    }
    // Linux tells twice of what it counts: half of it is for its own records.
    let granted = socket.recv_buffer_size().unwrap_or(SOCKET_BUFFER_BYTES) / 2;
    if granted < SOCKET_BUFFER_BYTES && !SMALL_BUFFERS_TOLD.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            granted_kib = granted / 1_024,
            wanted_kib = SOCKET_BUFFER_BYTES / 1_024,
            "UDP receive buffers are small, and bursts will be lost; raise net.core.rmem_max and net.core.wmem_max"
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_socket_does_not_take_is_counted() {
        let full = udp_socket((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = full.local_addr().unwrap();
        assert_eq!(dropped(address.port()), Some(0));
        let sender = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // Twice of what any buffer holds that the programs ask for.
        for _ in 0..8 * SOCKET_BUFFER_BYTES / 1_400 {
            sender.send_to(&[0; 1_400], address).unwrap();
        }
        assert!(dropped(address.port()).unwrap() > 0);
        assert_eq!(dropped_in("", 1), None);
    }

    #[tokio::test]
    async fn a_port_is_shut_when_its_host_says_so_and_not_when_nobody_answers() {
        let listening = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listening.local_addr().unwrap();
        assert!(
            !is_shut(address).await.unwrap(),
            "it listens, and does not answer"
        );
        drop(listening);
        assert!(is_shut(address).await.unwrap());
    }
}
