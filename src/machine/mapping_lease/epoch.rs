//! Whether a gateway has lost its mappings, by the seconds that it counts since it began (RFC 6887,
//! section 8.5; RFC 6886, section 3.6).

use std::time::Duration;

use super::types::MappingProtocol;
use crate::base::time::Moment;

/// Seconds by which a gateway's count may lag behind: the answer's way, and whole seconds on both
/// sides.
const TOLERANCE_SECONDS: u64 = 2;

/// A count and when it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Epoch {
    pub(super) seconds: u32,
    pub(super) at: Moment,
}

impl Epoch {
    /// Whether a later count shows that the gateway began anew in between. Its clock may be slow, by a
    /// sixteenth under PCP, by an eighth under NAT-PMP. One that is fast shows nothing: who loses
    /// state begins at nought.
    pub(super) fn is_lost_by(self, seconds: u32, now: Moment, protocol: MappingProtocol) -> bool {
        let slowness = match protocol {
            MappingProtocol::Pcp => 16,
            MappingProtocol::NatPmp | MappingProtocol::Upnp => 8,
        };
        let passed = now.since(self.at);
        let slow = passed.saturating_sub(passed / slowness);
        let expected = Duration::from_secs(u64::from(self.seconds)).saturating_add(slow);
        u64::from(seconds) + TOLERANCE_SECONDS < expected.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_falls_behind_is_a_new_beginning() {
        let at = |seconds| Moment::after_start(Duration::from_secs(seconds));
        let told = Epoch {
            seconds: 1_000,
            at: at(50),
        };
        for (count, later, lost) in [
            (1_000, 50, false),
            (999, 50, false),
            (1_800, 850, false),
            (1_700, 850, false),
            (1_690, 850, true),
            (0, 51, true),
            (40, 3_600, true),
            (9_000, 60, false),
            (u32::MAX, 60, false),
        ] {
            assert_eq!(
                told.is_lost_by(count, at(later), MappingProtocol::NatPmp),
                lost,
                "{count} at {later}"
            );
        }
        let young = |seconds| Epoch { seconds, at: at(0) };
        assert!(
            !young(1).is_lost_by(0, at(1), MappingProtocol::Pcp),
            "two seconds decide nothing"
        );
        // A gateway that began anew when it had hardly begun.
        assert!(young(7).is_lost_by(45, at(46), MappingProtocol::Pcp));
        assert!(!young(7).is_lost_by(52, at(46), MappingProtocol::Pcp));
    }
}
