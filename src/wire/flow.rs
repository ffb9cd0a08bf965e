//! Which flow a packet belongs to. A datagram begins with the flow's id, and the opener's first
//! packet frame on the flow's stream holds it, so that both sides agree on it. A packet frame is a
//! big-endian `u16` length and so many bytes.

use thiserror::Error;

/// Name of the feature: packets of flows may come as datagrams.
pub const DATAGRAMS_FEATURE: &str = "datagrams";

/// Longest packet, in bytes: what a packet frame can hold, and more than UDP does (65,507 over IPv4,
/// 65,527 over IPv6).
pub const PACKET_MAX_BYTES: usize = u16::MAX as usize;

/// Bytes of a packet frame's length.
pub const PACKET_PREFIX_BYTES: usize = 2;

/// Flows of one side, in number, before numbers come again: what four bytes hold beside the side.
pub const FLOW_NUMBERS: u32 = 1 << 29;

/// Which end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The one that dialled.
    Dialer,
    /// The one that was dialled.
    Acceptor,
}

impl End {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Dialer => Self::Acceptor,
            Self::Acceptor => Self::Dialer,
        }
    }
}

/// A flow of a tunnel: each end numbers those that it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowId {
    /// Who has opened it.
    pub opener: End,
    /// Its number, below [`FLOW_NUMBERS`].
    pub number: u32,
}

/// A frame that holds no flow's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the flow does not say its number")]
pub struct NoFlowId;

impl FlowId {
    /// Appends it: one bit for the opener, in a QUIC variable-length integer (RFC 9000, section 16) of
    /// one, two or four bytes.
    pub fn put(self, into: &mut Vec<u8>) {
        let value = (self.number % FLOW_NUMBERS) << 1 | u32::from(self.opener == End::Acceptor);
        let [a, b, c, d] = value.to_be_bytes();
        match value {
            0..0x40 => into.push(d),
            0x40..0x4000 => into.extend([0x40 | c, d]),
            _ => into.extend([0x80 | a, b, c, d]),
        }
    }

    /// Takes it from the front: the id and how many bytes it had.
    pub fn take(bytes: &[u8]) -> Option<(Self, usize)> {
        let &first = bytes.first()?;
        let length = match first >> 6 {
            0 => 1,
            1 => 2,
            2 => 4,
            // A later build's, if anybody's.
            _ => return None,
        };
        let rest = bytes.get(1..length)?;
        let value = rest.iter().fold(u32::from(first & 0x3f), |value, byte| {
            value << 8 | u32::from(*byte)
        });
        let opener = if value & 1 == 0 {
            End::Dialer
        } else {
            End::Acceptor
        };
        let number = value >> 1;
        Some((Self { opener, number }, length))
    }

    /// The id in the opener's first frame. Bytes behind it are additions of a later build.
    pub fn decode(content: &[u8]) -> Result<Self, NoFlowId> {
        Self::take(content).map(|(id, _)| id).ok_or(NoFlowId)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(opener: End, number: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        FlowId { opener, number }.put(&mut bytes);
        bytes
    }

    #[test]
    fn golden_bytes() {
        for (opener, number, expected) in [
            (End::Dialer, 0, &[0][..]),
            (End::Acceptor, 0, &[1]),
            (End::Dialer, 31, &[62]),
            (End::Acceptor, 31, &[63]),
            (End::Dialer, 32, &[0x40, 64]),
            (End::Acceptor, 8_191, &[0x7f, 0xff]),
            (End::Dialer, 8_192, &[0x80, 0, 0x40, 0]),
            (End::Acceptor, FLOW_NUMBERS - 1, &[0xbf, 0xff, 0xff, 0xff]),
        ] {
            assert_eq!(bytes(opener, number), expected);
        }
        assert_eq!(
            FlowId::take(&[0xc0, 0, 0, 0, 0, 0, 0, 0]),
            None,
            "a later build's"
        );
    }

    proptest! {
        #[test]
        fn what_was_put_is_taken_and_nothing_panics(
            number in 0..FLOW_NUMBERS,
            dialer in any::<bool>(),
            noise in proptest::collection::vec(any::<u8>(), 0..8),
        ) {
            let opener = if dialer { End::Dialer } else { End::Acceptor };
            let mut datagram = bytes(opener, number);
            let length = datagram.len();
            datagram.extend(&noise);
            prop_assert_eq!(FlowId::take(&datagram), Some((FlowId { opener, number }, length)));
            for cut in 0..length {
                prop_assert_eq!(FlowId::take(&datagram[..cut]), None);
            }
            let _ = FlowId::take(&noise);
        }
    }
}
