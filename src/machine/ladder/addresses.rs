//! One rung, many addresses ("happy eyeballs", RFC 8305): addresses of both families take turns, a
//! new one is dialled each [`STAGGER`] or as soon as one has failed, and the first that answers wins.
//! Addresses that worked before are dialled while the resolver is still asked, so that a dead one
//! costs nothing.
//!
//! One machine is one attempt: names are resolved anew for the next.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::Setback;
use crate::base::time::Moment;

/// Head start of an address before the next is dialled beside it (RFC 8305, section 5).
pub const STAGGER: Duration = Duration::from_millis(250);

/// Most addresses tried in one attempt; names that resolve to more are cut.
pub const ADDRESSES_MAX: usize = 16;

/// Most dials at once: more would look like a scan, and each holds a socket.
pub const DIALS_MAX: usize = 6;

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressEvent {
    /// The resolver's answer, in its order; empty when it has none.
    Resolved(Vec<SocketAddr>),
    /// A dial failed.
    Failed(SocketAddr, Setback),
    /// Time has passed.
    Timeout,
}

/// How far the attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressVerdict {
    /// Something is under way.
    Open,
    /// No address is left.
    Exhausted {
        /// What the next attempt depends on.
        setback: Setback,
        /// Whether there was any address at all.
        dialled: bool,
    },
}

/// See the module's text.
#[derive(Debug)]
pub struct AddressRace {
    resolving: bool,
    waiting: VecDeque<SocketAddr>,
    seen: Vec<SocketAddr>,
    dialling: Vec<SocketAddr>,
    /// When the next is dialled beside those under way.
    next_at: Moment,
    worst: Option<Setback>,
    actions: VecDeque<SocketAddr>,
}

impl AddressRace {
    /// Begins, with the addresses that worked before, the latest first. The resolver is to be asked.
    pub fn new(remembered: &[SocketAddr], now: Moment) -> Self {
        let mut race = Self {
            resolving: true,
            waiting: VecDeque::new(),
            seen: Vec::new(),
            dialling: Vec::new(),
            next_at: now,
            worst: None,
            actions: VecDeque::new(),
        };
        race.add(remembered);
        race.advance(now);
        race
    }

    /// One event.
    pub fn handle_event(&mut self, event: AddressEvent, now: Moment) {
        match event {
            AddressEvent::Resolved(addresses) => {
                if std::mem::take(&mut self.resolving) {
                    // What the resolver says now comes before what was true once.
                    let remembered: Vec<_> = self.waiting.drain(..).collect();
                    self.seen.retain(|seen| !remembered.contains(seen));
                    let mut all = interleaved(&addresses);
                    all.extend(remembered);
                    self.add(&all);
                }
            }
            AddressEvent::Failed(address, setback) => {
                let before = self.dialling.len();
                self.dialling.retain(|dialled| *dialled != address);
                if self.dialling.len() < before {
                    self.worst = Some(combine(self.worst, setback));
                    self.next_at = now;
                }
            }
            AddressEvent::Timeout => {}
        }
        self.advance(now);
    }

    /// The next address to dial.
    pub fn poll_dial(&mut self) -> Option<SocketAddr> {
        self.actions.pop_front()
    }

    /// When to send `Timeout`.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let may = !self.waiting.is_empty() && self.dialling.len() < DIALS_MAX;
        may.then_some(self.next_at)
    }

    /// Whether anything may still come of it.
    pub fn verdict(&self) -> AddressVerdict {
        if self.resolving || !self.waiting.is_empty() || !self.dialling.is_empty() {
            return AddressVerdict::Open;
        }
        AddressVerdict::Exhausted {
            setback: self.worst.unwrap_or(Setback::Transient),
            dialled: !self.seen.is_empty(),
        }
    }

    fn add(&mut self, addresses: &[SocketAddr]) {
        for address in addresses {
            if self.seen.len() < ADDRESSES_MAX && !self.seen.contains(address) {
                self.seen.push(*address);
                self.waiting.push_back(*address);
            }
        }
    }

    fn advance(&mut self, now: Moment) {
        while self.dialling.len() < DIALS_MAX && self.next_at <= now {
            let Some(address) = self.waiting.pop_front() else {
                return;
            };
            self.dialling.push(address);
            self.actions.push_back(address);
            self.next_at = now.plus(STAGGER);
        }
    }
}

/// Families take turns, the resolver's first choice first: it knows the host's own addresses.
fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut second): (VecDeque<SocketAddr>, VecDeque<SocketAddr>) = addresses
        .iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let mut all = Vec::with_capacity(addresses.len());
    while !first.is_empty() || !second.is_empty() {
        all.extend(first.pop_front());
        all.extend(second.pop_front());
    }
    all
}

/// What several failures come to: one that may pass outweighs one that will not, and a told delay
/// outweighs both.
pub(super) fn combine(known: Option<Setback>, latest: Setback) -> Setback {
    match (known, latest) {
        (Some(told @ Setback::RetryAfter(_)), _) => told,
        (Some(Setback::Transient), Setback::Persistent) => Setback::Transient,
        (_, latest) => latest,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(n: u8) -> SocketAddr {
        ([192, 0, 2, n], 8443).into()
    }

    fn v6(n: u16) -> SocketAddr {
        ([0x2001, 0xdb8, 0, 0, 0, 0, 0, n], 8443).into()
    }

    fn at(millis: u64) -> Moment {
        Moment::after_start(Duration::from_millis(millis))
    }

    fn dials(race: &mut AddressRace) -> Vec<SocketAddr> {
        std::iter::from_fn(|| race.poll_dial()).collect()
    }

    #[test]
    fn families_take_turns_a_quarter_of_a_second_apart() {
        let mut race = AddressRace::new(&[], at(0));
        assert_eq!(race.poll_timeout(), None, "the resolver is awaited");
        race.handle_event(AddressEvent::Resolved(vec![v6(1), v6(2), v4(1), v4(2)]), at(40));
        let mut order = Vec::new();
        let mut now = at(40);
        loop {
            order.extend(dials(&mut race).into_iter().map(|address| (address, now)));
            let Some(next) = race.poll_timeout() else { break };
            now = next;
            race.handle_event(AddressEvent::Timeout, now);
        }
        let expected = [
            (v6(1), at(40)),
            (v4(1), at(290)),
            (v6(2), at(540)),
            (v4(2), at(790)),
        ];
        assert_eq!(order, expected);
    }

    #[test]
    fn a_failure_starts_the_next_at_once() {
        let mut race = AddressRace::new(&[], at(0));
        race.handle_event(AddressEvent::Resolved(vec![v6(1), v4(1)]), at(10));
        assert_eq!(dials(&mut race), [v6(1)]);
        race.handle_event(AddressEvent::Failed(v6(1), Setback::Persistent), at(11));
        assert_eq!(dials(&mut race), [v4(1)]);
        race.handle_event(AddressEvent::Failed(v4(1), Setback::Transient), at(12));
        assert_eq!(
            race.verdict(),
            AddressVerdict::Exhausted {
                setback: Setback::Transient,
                dialled: true
            }
        );
    }

    #[test]
    fn a_dead_resolver_costs_nothing_where_an_address_is_remembered() {
        let mut race = AddressRace::new(&[v4(7)], at(0));
        assert_eq!(dials(&mut race), [v4(7)]);
        race.handle_event(AddressEvent::Failed(v4(7), Setback::Transient), at(100));
        assert_eq!(
            race.verdict(),
            AddressVerdict::Open,
            "the resolver may yet answer"
        );
        race.handle_event(AddressEvent::Resolved(vec![v4(7), v4(8)]), at(3_000));
        assert_eq!(dials(&mut race), [v4(8)], "what has failed is not dialled twice");
    }

    #[test]
    fn what_is_resolved_comes_before_what_is_remembered() {
        let mut race = AddressRace::new(&[v4(1), v4(2)], at(0));
        assert_eq!(dials(&mut race), [v4(1)]);
        race.handle_event(AddressEvent::Resolved(vec![v4(9)]), at(20));
        race.handle_event(AddressEvent::Timeout, at(250));
        race.handle_event(AddressEvent::Timeout, at(500));
        assert_eq!(dials(&mut race), [v4(9), v4(2)]);
    }

    #[test]
    fn no_name_and_no_memory_is_said() {
        let mut race = AddressRace::new(&[], at(0));
        race.handle_event(AddressEvent::Resolved(vec![]), at(20));
        assert_eq!(
            race.verdict(),
            AddressVerdict::Exhausted {
                setback: Setback::Transient,
                dialled: false
            }
        );
    }

    proptest! {
        /// Whatever fails in whatever order: it ends, dials no address twice, never more than it may
        /// at once, and is never open without something under way or a time named.
        #[test]
        fn every_race_ends(
            remembered in proptest::collection::vec(0u8..6, 0..4),
            resolved in proptest::collection::vec((any::<bool>(), 0u8..12), 0..30),
            resolve_at in 0u64..3_000,
            order in proptest::collection::vec(any::<prop::sample::Index>(), 64),
        ) {
            let remembered: Vec<_> = remembered.into_iter().map(v4).collect();
            let resolved: Vec<_> = resolved
                .into_iter()
                .map(|(six, n)| if six { v6(n.into()) } else { v4(n) })
                .collect();
            let mut race = AddressRace::new(&remembered, at(0));
            let (mut now, mut open, mut all) = (at(0), Vec::new(), Vec::new());
            let mut asked = true;
            for pick in order {
                let dialled = dials(&mut race);
                for address in &dialled {
                    prop_assert!(!all.contains(address), "{address} twice");
                }
                all.extend(dialled.iter().copied());
                open.extend(dialled);
                prop_assert!(open.len() <= DIALS_MAX);
                if race.verdict() != AddressVerdict::Open {
                    break;
                }
                match race.poll_timeout() {
                    Some(next) if pick.index(2) == 0 => {
                        now = now.max(next);
                        race.handle_event(AddressEvent::Timeout, now);
                    }
                    _ if !open.is_empty() && pick.index(3) > 0 => {
                        let failed = open.remove(pick.index(open.len()));
                        race.handle_event(AddressEvent::Failed(failed, Setback::Transient), now);
                    }
                    _ if std::mem::take(&mut asked) => {
                        now = now.max(at(resolve_at));
                        race.handle_event(AddressEvent::Resolved(resolved.clone()), now);
                    }
                    Some(next) => {
                        now = now.max(next);
                        race.handle_event(AddressEvent::Timeout, now);
                    }
                    None => prop_assert!(!open.is_empty() || asked, "open with nothing under way"),
                }
            }
            prop_assert!(all.len() <= ADDRESSES_MAX);
        }
    }
}
