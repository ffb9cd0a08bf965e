//! When this box's network counts as changed: which news of the kernel's are worth a look, and which
//! looks show another way to a host-bridge than before.
//!
//! The kernel tells of every link, address and route, those of containers too, and a box that moves
//! makes a burst of such news. A look waits until the burst is over, and is a change only if the way to
//! a known bridge leads over another interface, gateway or address, or if its interface lost or
//! regained its carrier. Where the kernel tells nothing, it is looked at regularly instead.
//!
//! Order: `handle_event`, then `poll_action` until `None`, then `poll_timeout`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::base::time::Moment;

/// Quiet that ends a burst of news: the kernel tells of what belongs together within a few milliseconds.
pub const SETTLED_AFTER: Duration = Duration::from_millis(150);

/// Longest that a burst puts a look off: beside a box that starts containers for minutes, a cable is
/// still noticed at once.
pub const SETTLED_AT_LAST: Duration = Duration::from_secs(1);

/// How often it looks where the kernel tells nothing. Each look is a handful of system calls.
pub const LOOK_EVERY_BLIND: Duration = Duration::from_secs(2);

/// How often it looks where the kernel does: for what its news cannot show, a rule of policy routing.
pub const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The next station of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The interface over which it leads, by its number.
    pub interface: u32,
    /// The gateway; none on the same network.
    pub gateway: Option<IpAddr>,
}

/// The way to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// From which address of this box.
    pub source: IpAddr,
    /// Over what, where the kernel says.
    pub hop: Option<Hop>,
}

impl Way {
    /// A hop that is not known is no other hop.
    fn differs(&self, other: &Self) -> bool {
        let other_hop = matches!((self.hop, other.hop), (Some(one), Some(two)) if one != two);
        self.source != other.source || other_hop
    }
}

/// The ways as a look has shown them; `None` where none leads.
pub type Ways = BTreeMap<SocketAddr, Option<Way>>;

/// What the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// An interface, and whether it carries.
    Link {
        /// Its number.
        interface: u32,
        /// Whether it is up and has a carrier.
        carries: bool,
    },
    /// An address or a route came or went, or some news were lost.
    Other,
}

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkEvent {
    /// Whether the kernel tells of changes from now on.
    Told(bool),
    /// It has told one.
    Noticed(Notice),
    /// A look has shown this.
    Looked(Ways),
    /// Time has passed.
    Timeout,
}

/// What the machine wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkAction {
    /// Look at the ways to all bridges; report `Looked`.
    Look,
    /// The network has changed.
    Changed,
}

/// See the module's text.
#[derive(Debug)]
pub struct NetworkMachine {
    told: bool,
    seen: Ways,
    /// Interfaces of ways that have lost their carrier.
    down: BTreeSet<u32>,
    /// One of those has lost or regained it since the last look.
    interrupted: bool,
    /// When the present burst began, and when its last news came.
    burst: Option<(Moment, Moment)>,
    looked_at: Moment,
    due: Option<NetworkAction>,
}

impl NetworkMachine {
    /// Nothing has been seen or told yet.
    pub const fn new(now: Moment) -> Self {
        Self {
            told: false,
            seen: Ways::new(),
            down: BTreeSet::new(),
            interrupted: false,
            burst: None,
            looked_at: now,
            due: None,
        }
    }

    /// One event.
    pub fn handle_event(&mut self, event: NetworkEvent, now: Moment) {
        match event {
            NetworkEvent::Told(told) => self.told = told,
            NetworkEvent::Noticed(notice) => {
                if let Notice::Link { interface, carries } = notice {
                    self.link(interface, carries);
                }
                let begun = self.burst.map_or(now, |(begun, _)| begun);
                self.burst = Some((begun, now));
            }
            NetworkEvent::Looked(ways) => self.looked(ways, now),
            NetworkEvent::Timeout => {
                if self.look_at() <= now {
                    self.due = Some(NetworkAction::Look);
                }
            }
        }
    }

    /// The next thing to do, until `None`.
    pub fn poll_action(&mut self) -> Option<NetworkAction> {
        self.due.take()
    }

    /// When to send `Timeout`.
    pub fn poll_timeout(&self) -> Moment {
        self.look_at()
    }

    fn look_at(&self) -> Moment {
        let every = if self.told { LOOK_EVERY } else { LOOK_EVERY_BLIND };
        let regular = self.looked_at.plus(every);
        self.burst.map_or(regular, |(begun, last)| {
            regular.min(last.plus(SETTLED_AFTER).min(begun.plus(SETTLED_AT_LAST)))
        })
    }

    fn link(&mut self, interface: u32, carries: bool) {
        let on_a_way = self.interfaces().any(|known| known == interface);
        self.interrupted |= match (on_a_way, carries) {
            (true, false) => self.down.insert(interface),
            (_, true) => self.down.remove(&interface),
            (false, false) => false,
        };
    }

    fn interfaces(&self) -> impl Iterator<Item = u32> {
        self.seen.values().filter_map(|way| Some((*way)?.hop?.interface))
    }

    fn looked(&mut self, ways: Ways, now: Moment) {
        let another = ways.iter().any(|(destination, way)| {
            self.seen
                .get(destination)
                .is_some_and(|known| match (known, way) {
                    (Some(known), Some(way)) => known.differs(way),
                    (known, way) => known.is_some() != way.is_some(),
                })
        });
        let interrupted = std::mem::take(&mut self.interrupted);
        self.due = (another || interrupted).then_some(NetworkAction::Changed);
        self.seen = ways;
        let used: BTreeSet<u32> = self.interfaces().collect();
        self.down.retain(|interface| used.contains(interface));
        self.burst = None;
        self.looked_at = now;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::after_start(Duration::from_millis(millis))
    }

    fn bridge(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 8443))
    }

    #[allow(clippy::unnecessary_wraps, reason = "as a look tells it")]
    fn way(source: u8, interface: u32, gateway: u8) -> Option<Way> {
        let hop = Hop {
            interface,
            gateway: Some([10, 0, 0, gateway].into()),
        };
        over(source, Some(hop))
    }

    #[allow(clippy::unnecessary_wraps, reason = "as a look tells it")]
    fn over(source: u8, hop: Option<Hop>) -> Option<Way> {
        let source = [10, 0, 0, source].into();
        Some(Way { source, hop })
    }

    fn machine(first: Option<Way>) -> NetworkMachine {
        let mut machine = NetworkMachine::new(at(0));
        machine.handle_event(NetworkEvent::Told(true), at(0));
        assert!(!shows(&mut machine, &[(bridge(1), first)], 0), "the first look");
        machine
    }

    /// Whether a look that shows this is a change.
    fn shows(machine: &mut NetworkMachine, ways: &[(SocketAddr, Option<Way>)], millis: u64) -> bool {
        let ways = ways.iter().copied().collect();
        machine.handle_event(NetworkEvent::Looked(ways), at(millis));
        let action = machine.poll_action();
        assert_ne!(action, Some(NetworkAction::Look));
        action.is_some()
    }

    fn notice(machine: &mut NetworkMachine, notice: Notice, millis: u64) {
        machine.handle_event(NetworkEvent::Noticed(notice), at(millis));
    }

    #[test]
    fn a_change_is_one_of_a_way_that_was_known() {
        let mut machine = machine(way(2, 3, 1));
        let same = (bridge(1), way(2, 3, 1));
        assert!(!shows(&mut machine, &[same, (bridge(2), way(2, 3, 1))], 1));
        for (other, why) in [
            (way(2, 3, 254), "the same address behind another gateway"),
            (way(2, 4, 254), "another interface"),
            (way(9, 4, 254), "another address"),
            (None, "no way at all"),
            (way(9, 4, 254), "a way again"),
        ] {
            assert!(shows(&mut machine, &[(bridge(1), other)], 2), "{why}");
            assert!(!shows(&mut machine, &[(bridge(1), other)], 3), "{why}, told once");
        }
        assert!(!shows(&mut machine, &[(bridge(1), over(9, None))], 4));
        assert!(!shows(&mut machine, &[(bridge(1), way(9, 4, 254))], 5));
    }

    #[test]
    fn a_carrier_that_goes_or_comes_is_a_change_though_the_way_is_the_same() {
        let mut machine = machine(way(2, 3, 1));
        let same = [(bridge(1), way(2, 3, 1))];
        let link = |interface, carries| Notice::Link { interface, carries };
        for (news, changes) in [
            (link(3, true), false),
            (link(3, false), true),
            (link(3, false), false),
            (link(3, true), true),
            (link(7, false), false),
            (link(7, true), false),
            (Notice::Other, false),
        ] {
            notice(&mut machine, news, 10);
            assert_eq!(shows(&mut machine, &same, 20), changes, "{news:?}");
        }
        // Out and in again within one burst: the router may have been another one meanwhile.
        notice(&mut machine, link(3, false), 30);
        notice(&mut machine, link(3, true), 31);
        assert!(shows(&mut machine, &same, 40));
    }

    #[test]
    fn a_burst_is_looked_at_once_it_is_over_and_no_later_than_its_bound() {
        let mut machine = machine(way(2, 3, 1));
        assert_eq!(machine.poll_timeout(), at(60_000));
        notice(&mut machine, Notice::Other, 1_000);
        notice(&mut machine, Notice::Other, 1_100);
        assert_eq!(machine.poll_timeout(), at(1_250));
        machine.handle_event(NetworkEvent::Timeout, at(1_200));
        assert_eq!(machine.poll_action(), None, "too early");
        machine.handle_event(NetworkEvent::Timeout, at(1_250));
        assert_eq!(machine.poll_action(), Some(NetworkAction::Look));
        assert!(!shows(&mut machine, &[(bridge(1), way(2, 3, 1))], 1_250));
        assert_eq!(machine.poll_timeout(), at(61_250));

        for millis in (2_000..4_000).step_by(50) {
            notice(&mut machine, Notice::Other, millis);
        }
        assert_eq!(machine.poll_timeout(), at(3_000));
    }

    #[test]
    fn where_the_kernel_tells_nothing_it_looks_regularly() {
        let mut machine = machine(way(2, 3, 1));
        machine.handle_event(NetworkEvent::Told(false), at(10));
        assert_eq!(machine.poll_timeout(), at(2_000));
    }

    proptest! {
        #[test]
        fn it_neither_spins_nor_grows(
            events in proptest::collection::vec((0u8..4, 0u32..200, any::<bool>(), 0u64..3_000), 1..80),
        ) {
            let mut machine = machine(way(2, 3, 1));
            let mut now = at(0);
            for (kind, interface, carries, later) in events {
                now = now.plus(Duration::from_millis(later));
                let interface = interface % 8;
                match kind {
                    0 => {
                        let link = Notice::Link { interface, carries };
                        machine.handle_event(NetworkEvent::Noticed(link), now);
                    }
                    1 => machine.handle_event(NetworkEvent::Noticed(Notice::Other), now),
                    2 => machine.handle_event(NetworkEvent::Told(carries), now),
                    _ => {
                        now = now.max(machine.poll_timeout());
                        machine.handle_event(NetworkEvent::Timeout, now);
                        prop_assert_eq!(machine.poll_action(), Some(NetworkAction::Look));
                        let ways = [(bridge(1), way(2, interface, 1))].into_iter().collect();
                        machine.handle_event(NetworkEvent::Looked(ways), now);
                        prop_assert_ne!(machine.poll_action(), Some(NetworkAction::Look));
                        prop_assert!(machine.poll_timeout() > now);
                    }
                }
                prop_assert!(machine.down.len() <= 1);
            }
        }
    }
}
