//! The UDP sockets of QUIC: for IPv6 and IPv4 at once, with buffers as large as the system grants.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, Protocol, Socket, Type};

/// UDP socket buffers that are asked for, in bytes; the system may grant less (packaging/sysctl raises its
/// limit). The usual default of 208 KiB loses packets in a burst of 17 ms at 100 Mbit/s.
const SOCKET_BUFFER_BYTES: usize = 2 * 1024 * 1024;

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
