//! The PROXY protocol header, version 2, by which a local program learns for whom a connection was made
//! (haproxy.org, proxy-protocol.txt). Written only: nobody's header is ever believed here.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, and that the connection was made for itself: a check, or nobody knows for whom.
const LOCAL: u8 = 0x20;

/// Version 2, and that it was made for the source that follows.
const PROXY: u8 = 0x21;

/// TCP over IPv4, TCP over IPv6, and neither.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
const UNSPECIFIED: u8 = 0x00;

/// The header's bytes. `source` is the asking person's program, `destination` the service's program;
/// both are written in one family, so an IPv4 address beside an IPv6 one takes its mapped form.
pub fn proxy_header(source: Option<SocketAddr>, destination: Option<SocketAddr>) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    let Some(source) = source else {
        bytes.extend([LOCAL, UNSPECIFIED, 0, 0]);
        return bytes;
    };
    let source = SocketAddr::new(source.ip().to_canonical(), source.port());
    let destination = destination.map_or_else(
        || unknown(source),
        |to| SocketAddr::new(to.ip().to_canonical(), to.port()),
    );
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([PROXY, TCP4, 0, 12]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        (from, to) => {
            bytes.extend([PROXY, TCP6, 0, 36]);
            bytes.extend(mapped(from).octets());
            bytes.extend(mapped(to).octets());
        }
    }
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes
}

/// A Unix socket has no address of this family.
fn unknown(source: SocketAddr) -> SocketAddr {
    let none: IpAddr = match source.ip() {
        IpAddr::V4(_) => [0, 0, 0, 0].into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(none, 0)
}

const fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::base::radix::HEXLOWER;

    use super::*;

    fn header(source: &str, destination: &str) -> String {
        let address = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        HEXLOWER.encode(&proxy_header(address(source), address(destination)))
    }

    #[test]
    fn golden_bytes() {
        const SIGNATURE: &str = "0d0a0d0a000d0a515549540a";
        for (source, destination, rest) in [
            ("", "127.0.0.1:22", "20000000"),
            (
                "192.0.2.9:50000",
                "127.0.0.1:22",
                "2111000cc00002097f000001c3500016",
            ),
            (
                "[::ffff:192.0.2.9]:50000",
                "127.0.0.1:22",
                "2111000cc00002097f000001c3500016",
            ),
            ("192.0.2.9:50000", "", "2111000cc000020900000000c3500000"),
            (
                "[2001:db8::9]:50000",
                "[::1]:22",
                "2121002420010db800000000000000000000000900000000000000000000000000000001c3500016",
            ),
            (
                "[2001:db8::9]:50000",
                "127.0.0.1:22",
                "2121002420010db800000000000000000000000900000000000000000000ffff7f000001c3500016",
            ),
            (
                "192.0.2.9:50000",
                "[::1]:22",
                "2121002400000000000000000000ffffc000020900000000000000000000000000000001c3500016",
            ),
        ] {
            assert_eq!(
                header(source, destination),
                format!("{SIGNATURE}{rest}"),
                "{source} {destination}"
            );
        }
    }
}
