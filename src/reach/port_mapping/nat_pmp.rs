//! NAT-PMP's packets (RFC 6886), as far as they are needed: the external address and a mapping of
//! a port. Pure; sockets are elsewhere.

use std::net::{IpAddr, Ipv4Addr};

use super::Carries;
use crate::machine::mapping_lease::{Denial, Granted, MappingRecord};

const VERSION: u8 = 0;
const RESPONSE: u8 = 0x80;
const OPCODE_ADDRESS: u8 = 0;
const OPCODE_MAP_UDP: u8 = 1;
const OPCODE_MAP_TCP: u8 = 2;
const NOT_AUTHORIZED: u16 = 2;
const UNSUPPORTED: [u16; 2] = [1, 5];

/// Asks for the external address.
pub(super) fn address() -> Vec<u8> {
    vec![VERSION, OPCODE_ADDRESS]
}

/// Asks for a mapping, or for its renewal; a lease of nought removes it.
pub(super) fn map(carries: Carries, record: &MappingRecord, lease_seconds: u32) -> Vec<u8> {
    let external_port = if lease_seconds == 0 {
        0
    } else {
        record.external_port
    };
    let mut packet = vec![VERSION, opcode_of(carries), 0, 0];
    packet.extend(record.internal.port().to_be_bytes());
    packet.extend(external_port.to_be_bytes());
    packet.extend(lease_seconds.to_be_bytes());
    packet
}

/// Epoch and address, unspecified where the router has none; `None` for what is no answer to
/// [`address`].
pub(super) fn read_address(packet: &[u8]) -> Option<(u32, IpAddr)> {
    let (result, epoch) = head(packet, OPCODE_ADDRESS)?;
    // A version that is not known to the other side is no sign of this protocol.
    if UNSUPPORTED.contains(&result) {
        return None;
    }
    let address = match packet.get(8..12) {
        Some(&[a, b, c, d]) if result == 0 => Ipv4Addr::new(a, b, c, d),
        _ => Ipv4Addr::UNSPECIFIED,
    };
    Some((epoch, address.into()))
}

/// The answer to [`map`]; `None` for what is none: read on.
pub(super) fn read_map(
    packet: &[u8],
    carries: Carries,
    record: &MappingRecord,
) -> Option<Result<Granted, Denial>> {
    let (result, epoch) = head(packet, opcode_of(carries))?;
    match result {
        0 => {}
        NOT_AUTHORIZED => return Some(Err(Denial::NotAllowed)),
        other if UNSUPPORTED.contains(&other) => return Some(Err(Denial::Unsupported)),
        _ => return Some(Err(Denial::Temporary)),
    }
    let body: [u8; 8] = packet.get(8..16)?.try_into().ok()?;
    if u16::from_be_bytes([body[0], body[1]]) != record.internal.port() {
        return None;
    }
    Some(Ok(Granted {
        external_port: u16::from_be_bytes([body[2], body[3]]),
        external: None,
        lease_seconds: u32::from_be_bytes([body[4], body[5], body[6], body[7]]),
        epoch: Some(epoch),
    }))
}

const fn opcode_of(carries: Carries) -> u8 {
    match carries {
        Carries::Udp => OPCODE_MAP_UDP,
        Carries::Tcp => OPCODE_MAP_TCP,
    }
}

/// Result and epoch.
fn head(packet: &[u8], opcode: u8) -> Option<(u16, u32)> {
    match packet {
        [VERSION, of, r0, r1, e0, e1, e2, e3, ..] if *of == RESPONSE | opcode => Some((
            u16::from_be_bytes([*r0, *r1]),
            u32::from_be_bytes([*e0, *e1, *e2, *e3]),
        )),
        _ => None,
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
            protocol: MappingProtocol::NatPmp,
            internal: "192.168.1.20:41234".parse().unwrap(),
            external_port: 41_235,
            lease_seconds: 3_600,
            nonce: [0; 12],
            description: String::new(),
        }
    }

    #[test]
    fn requests_are_these_bytes() {
        assert_eq!(address(), [0, 0]);
        assert_eq!(
            map(Carries::Udp, &record(), 3_600),
            [0, 1, 0, 0, 0xa1, 0x12, 0xa1, 0x13, 0, 0, 0x0e, 0x10]
        );
        assert_eq!(map(Carries::Tcp, &record(), 3_600)[..2], [0, 2]);
        assert_eq!(
            map(Carries::Udp, &record(), 0),
            [0, 1, 0, 0, 0xa1, 0x12, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn answers_are_understood() {
        let told = [0, 128, 0, 0, 0, 0, 0, 99, 93, 184, 216, 34];
        let external: IpAddr = "93.184.216.34".parse().unwrap();
        assert_eq!(read_address(&told), Some((99, external)));
        let offline = [0, 128, 0, 3, 0, 0, 0, 99];
        let none = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        assert_eq!(read_address(&offline), Some((99, none)));
        let nowhere = [0, 128, 0, 0, 0, 0, 0, 99, 0, 0, 0, 0];
        assert_eq!(read_address(&nowhere), Some((99, none)));

        let mapped = [0, 129, 0, 0, 0, 0, 0, 7, 0xa1, 0x12, 0xc3, 0x50, 0, 0, 0, 120];
        let granted = read_map(&mapped, Carries::Udp, &record()).unwrap().unwrap();
        assert_eq!((granted.external_port, granted.lease_seconds), (50_000, 120));
        for (result, expected) in [
            (1, Denial::Unsupported),
            (2, Denial::NotAllowed),
            (3, Denial::Temporary),
            (4, Denial::Temporary),
            (5, Denial::Unsupported),
        ] {
            let refused = [0, 129, 0, result, 0, 0, 0, 7];
            assert_eq!(read_map(&refused, Carries::Udp, &record()), Some(Err(expected)));
        }
    }

    #[test]
    fn an_answer_to_something_else_is_none() {
        let other_port = [0, 129, 0, 0, 0, 0, 0, 7, 1, 1, 0xc3, 0x50, 0, 0, 0, 120];
        assert_eq!(read_map(&other_port, Carries::Udp, &record()), None);
        let udp = [0, 129, 0, 0, 0, 0, 0, 7, 0xa1, 0x12, 0xc3, 0x50, 0, 0, 0, 120];
        assert_eq!(read_map(&udp, Carries::Tcp, &record()), None);
        let pcp = [2, 129, 0, 1, 0, 0, 0, 0];
        assert_eq!(read_map(&pcp, Carries::Udp, &record()), None);
        assert_eq!(read_address(&[0, 128, 0, 1, 0, 0, 0, 0]), None);
        assert_eq!(read_address(&[0, 129, 0, 0, 0, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_read_without_a_panic(packet: Vec<u8>) {
            read_map(&packet, Carries::Udp, &record());
            read_address(&packet);
        }
    }
}
