//! Whom this side dials again by itself: satellites that it has reached at an endpoint and whose last tunnel the
//! network has ended. They dial, too; where their way out is gone, or this side has moved, theirs is the one that
//! does not come up. Pure.
//!
//! Known are the endpoints of this run alone: at each, this side was greeted by the very satellite. What a
//! satellite only says of itself is never dialled from here.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use crate::base::id::PeerId;
use crate::base::time::Moment;
use crate::machine::backoff::{Backoff, BackoffPolicy};

/// Satellites that are known at once, in number; 4,096 rows take some 600 KiB. Those beyond dial for themselves.
const ROWS_MAX: usize = 4_096;

/// From the loss to the first dial: the satellite notices later than this side, and its own dials come first.
const FIRST_AFTER: Duration = Duration::from_secs(15);

/// Ceilings of the waits between two dials.
const WAITS: BackoffPolicy = BackoffPolicy {
    initial: Duration::from_secs(30),
    max: Duration::from_secs(1_800),
};

/// From the loss to the last dial: a box that is gone for so long has another address by then.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(24 * 3_600);

/// Dials under way at once, in number: a few, beside those that satellites ask for.
const UNDER_WAY_MAX: usize = 8;

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedialEvent {
    /// A tunnel that this side has dialled is up.
    Reached(Redial),
    /// A tunnel is up, whoever has dialled.
    Connected(PeerId),
    /// The network has ended the peer's last tunnel.
    Gone(PeerId),
    /// Its last tunnel was ended on purpose, or it may not come any more.
    Left(PeerId),
    /// A `Redial` came to nothing.
    Failed(PeerId),
    /// Time has passed.
    Timeout,
}

/// Dial this peer there, and report `Reached` or `Failed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redial {
    /// Whom.
    pub peer: PeerId,
    /// Where.
    pub endpoint: SocketAddr,
    /// By which name it knows this side.
    pub bridge: String,
}

#[derive(Debug)]
struct Row {
    redial: Redial,
    waits: Backoff,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Connected,
    Waiting { until: Moment, since: Moment },
    Dialling { since: Moment },
}

/// See the module's text.
#[derive(Debug)]
pub struct Redials {
    seed: u64,
    rows: BTreeMap<PeerId, Row>,
    actions: VecDeque<Redial>,
}

impl Redials {
    /// Knows nobody.
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            rows: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// One event. Those of peers that are not known change nothing.
    pub fn handle_event(&mut self, event: RedialEvent, now: Moment) {
        match event {
            RedialEvent::Reached(redial) => self.reached(redial),
            RedialEvent::Connected(peer) => {
                if let Some(row) = self.rows.get_mut(&peer) {
                    row.stage = Stage::Connected;
                    row.waits.reset();
                }
            }
            RedialEvent::Gone(peer) => {
                if let Some(row) = self.rows.get_mut(&peer)
                    && matches!(row.stage, Stage::Connected)
                {
                    let until = now.plus(FIRST_AFTER);
                    row.stage = Stage::Waiting { until, since: now };
                }
            }
            RedialEvent::Left(peer) => drop(self.rows.remove(&peer)),
            RedialEvent::Failed(peer) => self.failed(peer, now),
            RedialEvent::Timeout => {}
        }
        self.advance(now);
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<Redial> {
        self.actions.pop_front()
    }

    /// When to send `Timeout`.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let waiting = self.rows.values().filter_map(Row::due);
        waiting.min().filter(|_| self.under_way() < UNDER_WAY_MAX)
    }

    fn reached(&mut self, redial: Redial) {
        if self.rows.len() >= ROWS_MAX && !self.rows.contains_key(&redial.peer) {
            return;
        }
        self.seed = self.seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let row = Row {
            waits: Backoff::new(WAITS, self.seed),
            stage: Stage::Connected,
            redial,
        };
        self.rows.insert(row.redial.peer, row);
    }

    fn failed(&mut self, peer: PeerId, now: Moment) {
        let Some(row) = self.rows.get_mut(&peer) else {
            return;
        };
        let Stage::Dialling { since } = row.stage else {
            return;
        };
        let until = now.plus(row.waits.next_delay());
        if until.since(since) > GIVEN_UP_AFTER {
            self.rows.remove(&peer);
        } else {
            row.stage = Stage::Waiting { until, since };
        }
    }

    fn advance(&mut self, now: Moment) {
        let mut room = UNDER_WAY_MAX.saturating_sub(self.under_way());
        for row in self.rows.values_mut() {
            if room == 0 {
                break;
            }
            if let Stage::Waiting { until, since } = row.stage
                && until <= now
            {
                row.stage = Stage::Dialling { since };
                self.actions.push_back(row.redial.clone());
                room -= 1;
            }
        }
    }

    fn under_way(&self) -> usize {
        let dialling = |row: &&Row| matches!(row.stage, Stage::Dialling { .. });
        self.rows.values().filter(dialling).count()
    }
}

impl Row {
    const fn due(&self) -> Option<Moment> {
        match self.stage {
            Stage::Waiting { until, .. } => Some(until),
            Stage::Connected | Stage::Dialling { .. } => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::time::UnixTime;

    fn at(seconds: u64) -> Moment {
        Moment::after_start(Duration::from_secs(seconds))
    }

    fn peer(n: u8) -> PeerId {
        PeerId::new_v7(UnixTime::EPOCH, [n; 10])
    }

    fn redial(n: u8) -> Redial {
        Redial {
            peer: peer(n),
            endpoint: ([93, 184, 216, n], 41_234).into(),
            bridge: "bridge.example.com:8443".into(),
        }
    }

    fn actions(redials: &mut Redials) -> Vec<Redial> {
        std::iter::from_fn(|| redials.poll_action()).collect()
    }

    #[test]
    fn who_was_reached_and_is_lost_is_dialled_until_it_is_back() {
        let mut redials = Redials::new(1);
        redials.handle_event(RedialEvent::Reached(redial(1)), at(0));
        redials.handle_event(RedialEvent::Gone(peer(1)), at(100));
        assert_eq!(actions(&mut redials), []);
        let first = redials.poll_timeout().unwrap();
        assert_eq!(first, at(100).plus(FIRST_AFTER));
        redials.handle_event(RedialEvent::Timeout, first);
        assert_eq!(actions(&mut redials), [redial(1)]);
        redials.handle_event(RedialEvent::Failed(peer(1)), first);
        let second = redials.poll_timeout().unwrap();
        assert!(second > first && second <= first.plus(WAITS.initial));
        redials.handle_event(RedialEvent::Connected(peer(1)), second);
        assert_eq!(redials.poll_timeout(), None, "it came by itself");
        redials.handle_event(RedialEvent::Gone(peer(1)), second);
        assert!(redials.poll_timeout().is_some(), "and is known still");
    }

    #[test]
    fn who_was_never_reached_or_has_left_is_not() {
        let mut redials = Redials::new(1);
        redials.handle_event(RedialEvent::Gone(peer(1)), at(0));
        assert_eq!(redials.poll_timeout(), None);
        redials.handle_event(RedialEvent::Reached(redial(2)), at(0));
        redials.handle_event(RedialEvent::Left(peer(2)), at(10));
        redials.handle_event(RedialEvent::Gone(peer(2)), at(10));
        assert_eq!(redials.poll_timeout(), None);
    }

    #[test]
    fn a_box_that_does_not_come_back_is_given_up() {
        let mut redials = Redials::new(1);
        redials.handle_event(RedialEvent::Reached(redial(1)), at(0));
        redials.handle_event(RedialEvent::Gone(peer(1)), at(0));
        let (mut dials, mut now) = (0, at(0));
        while let Some(next) = redials.poll_timeout() {
            now = next;
            redials.handle_event(RedialEvent::Timeout, now);
            dials += actions(&mut redials).len();
            redials.handle_event(RedialEvent::Failed(peer(1)), now);
        }
        assert!(now <= at(0).plus(GIVEN_UP_AFTER));
        assert!(dials > 40 && dials < 300, "{dials}");
    }

    proptest! {
        #[test]
        fn few_are_dialled_at_once_and_nobody_twice(
            events in proptest::collection::vec((0_u8..6, 0_u8..30, 0_u64..100), 0..300),
        ) {
            let mut redials = Redials::new(9);
            let (mut now, mut under_way) = (at(0), std::collections::BTreeSet::new());
            for (kind, n, seconds) in events {
                now = now.plus(Duration::from_secs(seconds));
                let event = match kind {
                    0 => RedialEvent::Reached(redial(n)),
                    1 => RedialEvent::Connected(peer(n)),
                    2 => RedialEvent::Gone(peer(n)),
                    3 => RedialEvent::Left(peer(n)),
                    4 => RedialEvent::Failed(peer(n)),
                    _ => RedialEvent::Timeout,
                };
                if matches!(kind, 0 | 1 | 3 | 4) {
                    under_way.remove(&peer(n));
                }
                redials.handle_event(event, now);
                for redial in actions(&mut redials) {
                    prop_assert!(under_way.insert(redial.peer));
                }
                prop_assert!(under_way.len() <= UNDER_WAY_MAX);
                redials.handle_event(RedialEvent::Timeout, now);
                for redial in actions(&mut redials) {
                    prop_assert!(under_way.insert(redial.peer));
                }
                prop_assert!(redials.poll_timeout().is_none_or(|next| next > now), "it spins");
            }
        }
    }
}
