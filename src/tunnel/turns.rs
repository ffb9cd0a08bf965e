//! When datagrams make room for streams. A transport sends datagrams before everything else: who has more of
//! them than the path takes would silence the streams of the tunnel, the control stream among them.

use std::time::Duration;

use crate::base::time::Moment;

/// Bytes of datagrams that may wait to be sent: a burst, as a picture of a video call. More that come while
/// these leave are lost.
const WAITING_BYTES: usize = 64 * 1024;

/// Bytes at which all have as good as left: less than a packet, and a queue's own place.
const LEFT_BYTES: usize = 1_024;

/// Of the time that so many take to leave, streams have a half of it again for themselves.
const TURN_SHARE: u32 = 2;

/// The longest turn: a slow path must not look as if it took no datagrams at all.
const TURN_MAX: Duration = Duration::from_millis(250);

/// Pause between two packets after which there is no flood any more.
const CALM: Duration = Duration::from_millis(50);

/// See the module's text. Asked for every datagram.
#[derive(Debug, Default)]
pub(super) struct Turns {
    phase: Phase,
    asked: Option<Moment>,
}

#[derive(Debug, Default)]
enum Phase {
    /// There is room.
    #[default]
    Open,
    /// There is none until all that wait have left.
    Leaving { since: Moment },
    /// The streams' turn.
    Streams { until: Moment },
}

impl Turns {
    /// Whether one more may be sent while so many bytes of datagrams wait.
    pub(super) fn may_send(&mut self, waiting: usize, now: Moment) -> bool {
        let calm = self.asked.is_none_or(|asked| now.since(asked) > CALM);
        self.asked = Some(now);
        if calm && waiting < WAITING_BYTES {
            self.phase = Phase::Open;
        }
        loop {
            self.phase = match self.phase {
                Phase::Open if waiting < WAITING_BYTES => return true,
                Phase::Open => Phase::Leaving { since: now },
                Phase::Leaving { .. } if waiting > LEFT_BYTES => return false,
                Phase::Leaving { since } => {
                    let turn = (now.since(since) / TURN_SHARE).min(TURN_MAX);
                    Phase::Streams {
                        until: now.plus(turn),
                    }
                }
                Phase::Streams { until } if now < until => return false,
                Phase::Streams { .. } => Phase::Open,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::after_start(Duration::from_millis(millis))
    }

    #[test]
    fn a_flood_leaves_streams_their_turn() {
        let mut turns = Turns::default();
        assert!(turns.may_send(0, at(0)));
        assert!(turns.may_send(WAITING_BYTES - 1, at(1)));
        assert!(!turns.may_send(WAITING_BYTES, at(2)), "full");
        assert!(!turns.may_send(LEFT_BYTES + 1, at(40)), "they leave");
        assert!(
            !turns.may_send(0, at(42)),
            "40 ms later they have left: 20 ms for the streams"
        );
        assert!(!turns.may_send(0, at(61)));
        assert!(turns.may_send(0, at(62)));
    }

    #[test]
    fn a_slow_path_is_given_back_before_long() {
        let mut turns = Turns::default();
        assert!(!turns.may_send(WAITING_BYTES, at(0)));
        for millis in (10..3_000).step_by(10) {
            assert!(!turns.may_send(LEFT_BYTES + 1, at(millis)));
        }
        assert!(!turns.may_send(0, at(3_000)));
        for millis in (3_010..3_250).step_by(10) {
            assert!(!turns.may_send(0, at(millis)));
        }
        assert!(turns.may_send(0, at(3_250)));
    }

    #[test]
    fn who_begins_anew_after_a_flood_is_not_held_up() {
        let mut turns = Turns::default();
        assert!(!turns.may_send(WAITING_BYTES, at(0)));
        assert!(turns.may_send(0, at(10_000)));
        assert!(!turns.may_send(WAITING_BYTES, at(10_001)));
        assert!(!turns.may_send(WAITING_BYTES, at(20_000)), "nothing has left");
    }
}
