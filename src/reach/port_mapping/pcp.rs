//! The Port Control Protocol's packets (RFC 6887), as far as they are needed: ANNOUNCE and MAP. Pure;
//! sockets are elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Carries;
use crate::machine::mapping_lease::{Denial, Granted, MappingRecord};

/// Longest packet of the protocol, in bytes.
pub(super) const PACKET_MAX_BYTES: usize = 1_100;

const VERSION: u8 = 2;
const RESPONSE: u8 = 0x80;
const OPCODE_ANNOUNCE: u8 = 0;
const OPCODE_MAP: u8 = 1;
const UDP: u8 = 17;
const TCP: u8 = 6;
const HEADER_BYTES: usize = 24;
const MAP_BYTES: usize = 36;
const NOT_AUTHORIZED: u8 = 2;
const USER_QUOTA: u8 = 8;
const UNSUPPORTED: [u8; 3] = [1, 4, 9];
const ADDRESS_MISMATCH: u8 = 12;

/// Asks for a sign of life, from this address.
pub(super) fn announce(local: IpAddr) -> Vec<u8> {
    header(OPCODE_ANNOUNCE, 0, local)
}

/// Asks for a mapping, or for its renewal; a lease of nought removes it.
pub(super) fn map(carries: Carries, record: &MappingRecord, lease_seconds: u32) -> Vec<u8> {
    let local = record.internal.ip();
    let mut packet = header(OPCODE_MAP, lease_seconds, local);
    packet.extend(record.nonce);
    packet.extend([number_of(carries), 0, 0, 0]);
    packet.extend(record.internal.port().to_be_bytes());
    let external_port = if lease_seconds == 0 {
        0
    } else {
        record.external_port
    };
    packet.extend(external_port.to_be_bytes());
    // Any address of the family.
    let any = match local {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED,
    };
    packet.extend(any.octets());
    packet
}

/// The protocol's number in IP.
const fn number_of(carries: Carries) -> u8 {
    match carries {
        Carries::Udp => UDP,
        Carries::Tcp => TCP,
    }
}

fn header(opcode: u8, lifetime: u32, local: IpAddr) -> Vec<u8> {
    let mut packet = Vec::with_capacity(HEADER_BYTES + MAP_BYTES);
    packet.extend([VERSION, opcode, 0, 0]);
    packet.extend(lifetime.to_be_bytes());
    let local = match local {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    packet.extend(local.octets());
    packet
}

/// The epoch of an answer to [`announce`]; `None` for what is no such answer.
pub(super) fn read_announce(packet: &[u8]) -> Option<u32> {
    let head = Head::read(packet, OPCODE_ANNOUNCE)?;
    // A refusal is a sign of life, too, if the version is this one.
    Some(head.epoch)
}

/// The answer to [`map`]; `None` for what is none, another mapping's for one: read on.
pub(super) fn read_map(
    packet: &[u8],
    carries: Carries,
    record: &MappingRecord,
) -> Option<Result<Granted, Denial>> {
    if is_older_version(packet) {
        return Some(Err(Denial::Unsupported));
    }
    let head = Head::read(packet, OPCODE_MAP)?;
    let body = packet.get(HEADER_BYTES..HEADER_BYTES + MAP_BYTES)?;
    let (nonce, rest) = body.split_first_chunk::<12>()?;
    let internal_port = u16::from_be_bytes([rest[4], rest[5]]);
    if *nonce != record.nonce || rest[0] != number_of(carries) || internal_port != record.internal.port() {
        return None;
    }
    if head.result != 0 {
        return Some(Err(denial(head.result)));
    }
    let external: [u8; 16] = rest[8..].try_into().ok()?;
    Some(Ok(Granted {
        external_port: u16::from_be_bytes([rest[6], rest[7]]),
        external: Some(Ipv6Addr::from(external).to_canonical()),
        lease_seconds: head.lifetime,
        epoch: Some(head.epoch),
    }))
}

fn denial(result: u8) -> Denial {
    match result {
        NOT_AUTHORIZED | USER_QUOTA => Denial::NotAllowed,
        // An address mismatch means another NAT on the way, which this protocol cannot pass.
        ADDRESS_MISMATCH => Denial::Unsupported,
        other if UNSUPPORTED.contains(&other) => Denial::Unsupported,
        _ => Denial::Temporary,
    }
}

/// Whether a router that speaks NAT-PMP alone says that it does not know this protocol (RFC 6886,
/// section 3.5).
pub(super) fn is_older_version(packet: &[u8]) -> bool {
    matches!(packet, [0, opcode, 0, 1, ..] if *opcode & RESPONSE != 0)
}

struct Head {
    result: u8,
    lifetime: u32,
    epoch: u32,
}

impl Head {
    fn read(packet: &[u8], opcode: u8) -> Option<Self> {
        if packet.len() < HEADER_BYTES || packet.len() > PACKET_MAX_BYTES {
            return None;
        }
        if packet[0] != VERSION || packet[1] != RESPONSE | opcode {
            return None;
        }
        Some(Self {
            result: packet[3],
            lifetime: u32::from_be_bytes([packet[4], packet[5], packet[6], packet[7]]),
            epoch: u32::from_be_bytes([packet[8], packet[9], packet[10], packet[11]]),
        })
    }
}

/// The port of PCP and NAT-PMP servers.
pub(super) const SERVER_PORT: u16 = 5_351;

/// Where a gateway's server is.
pub(super) fn server(gateway: IpAddr, interface: u32) -> SocketAddr {
    match gateway {
        IpAddr::V4(v4) => (v4, SERVER_PORT).into(),
        IpAddr::V6(v6) => std::net::SocketAddrV6::new(v6, SERVER_PORT, 0, interface).into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::machine::mapping_lease::MappingProtocol;

    fn record() -> MappingRecord {
        MappingRecord {
            gateway: "192.168.1.1".parse().unwrap(),
            interface: 0,
            protocol: MappingProtocol::Pcp,
            internal: "192.168.1.20:41234".parse().unwrap(),
            external_port: 41_235,
            lease_seconds: 3_600,
            nonce: *b"twelve bytes",
            description: String::new(),
        }
    }

    fn answer(result: u8) -> Vec<u8> {
        let mut packet = vec![2, 0x81, 0, result];
        packet.extend(1_800_u32.to_be_bytes());
        packet.extend(77_u32.to_be_bytes());
        packet.extend([0; 12]);
        packet.extend(b"twelve bytes");
        packet.extend([17, 0, 0, 0]);
        packet.extend(41_234_u16.to_be_bytes());
        packet.extend(50_000_u16.to_be_bytes());
        packet.extend(Ipv4Addr::new(93, 184, 216, 34).to_ipv6_mapped().octets());
        packet
    }

    #[test]
    fn requests_are_these_bytes() {
        let local = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 20];
        let mut expected = vec![2, 0, 0, 0, 0, 0, 0, 0];
        expected.extend(local);
        assert_eq!(announce("192.168.1.20".parse().unwrap()), expected);

        let mut expected = vec![2, 1, 0, 0, 0, 0, 0x0e, 0x10];
        expected.extend(local);
        expected.extend(b"twelve bytes");
        expected.extend([17, 0, 0, 0, 0xa1, 0x12, 0xa1, 0x13]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]);
        assert_eq!(map(Carries::Udp, &record(), 3_600), expected);
        let removal = map(Carries::Udp, &record(), 0);
        assert_eq!(removal[4..8], [0; 4]);
        assert_eq!(removal[42..44], [0; 2]);

        let tcp = map(Carries::Tcp, &record(), 3_600);
        assert_eq!((tcp[36], tcp.len()), (6, expected.len()));

        let pinhole = MappingRecord {
            internal: "[2a00:1::20]:41234".parse().unwrap(),
            ..record()
        };
        assert_eq!(map(Carries::Udp, &pinhole, 60)[44..], [0; 16]);
    }

    #[test]
    fn answers_are_understood() {
        let granted = read_map(&answer(0), Carries::Udp, &record()).unwrap().unwrap();
        assert_eq!(granted.external_port, 50_000);
        assert_eq!(granted.external, Some("93.184.216.34".parse().unwrap()));
        assert_eq!((granted.lease_seconds, granted.epoch), (1_800, Some(77)));
        for (result, expected) in [
            (1, Denial::Unsupported),
            (2, Denial::NotAllowed),
            (4, Denial::Unsupported),
            (7, Denial::Temporary),
            (8, Denial::NotAllowed),
            (12, Denial::Unsupported),
        ] {
            assert_eq!(
                read_map(&answer(result), Carries::Udp, &record()),
                Some(Err(expected))
            );
        }
        let mut announced = vec![2, 0x80, 0, 0, 0, 0, 0, 0];
        announced.extend(9_u32.to_be_bytes());
        announced.extend([0; 12]);
        assert_eq!(read_announce(&announced), Some(9));
    }

    #[test]
    fn an_answer_to_something_else_is_none() {
        for changed in [0, 1, 24, 35, 36, 40] {
            let mut other = answer(0);
            other[changed] ^= 0x40;
            assert_eq!(read_map(&other, Carries::Udp, &record()), None, "byte {changed}");
        }
        assert_eq!(read_map(&answer(0)[..59], Carries::Udp, &record()), None);
        assert_eq!(read_map(&answer(0), Carries::Tcp, &record()), None);
        let natpmp = [0, 0x81, 0, 1, 0, 0, 0, 5];
        assert_eq!(
            read_map(&natpmp, Carries::Udp, &record()),
            Some(Err(Denial::Unsupported))
        );
        assert_eq!(read_announce(&natpmp), None);
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_read_without_a_panic(packet: Vec<u8>) {
            read_map(&packet, Carries::Udp, &record());
            read_announce(&packet);
        }
    }
}
