//! Who is connected: the live sessions of each peer, one of which *carries* what is opened towards it;
//! and the bounds on connections that have no certificate yet. A pure table: what a session is made of (`H`, in
//! the daemon a tunnel) is handed in and handed out, never looked at. Whatever the table hands
//! out is the caller's to close.
//!
//! A peer's newest authenticated session displaces the others, so that a half-open one is in nobody's
//! way, unless the satellite says that it holds them all (`wire::SessionClaim`): those of one run of its
//! program live beside each other, but for those that it has lost.
//!
//! Nothing accumulates: a row exists exactly as long as its connection does, and a connection
//! that was replaced cannot remove its successor's row.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::base::id::{PeerId, SessionId};
use crate::machine::source_rate::Source;

/// Most sessions of one peer: two addresses of this bridge, each with one that carries, one on trial and
/// one that drains.
pub const SESSIONS_PER_PEER: usize = 6;

/// Bounds on connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// Most peers with a session.
    pub sessions: usize,
    /// Most connections without a certificate, or with one that has expired.
    pub bootstrap: usize,
    /// Most of these from one source.
    pub bootstrap_per_source: usize,
}

/// Why a connection is not taken now. It may try again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Full {
    /// [`SessionLimits::sessions`] is reached.
    #[error("this host-bridge holds as many sessions as limits.sessions allows")]
    Sessions,
    /// [`SessionLimits::bootstrap`] is reached.
    #[error("too many satellites are joining or coming back at this moment")]
    Bootstrap,
    /// [`SessionLimits::bootstrap_per_source`] is reached.
    #[error("too many satellites are joining or coming back from this address at this moment")]
    BootstrapSource,
}

/// A taken place among the bootstrap connections; given back with
/// [`SessionTable::leave_bootstrap`].
#[derive(Debug, PartialEq, Eq)]
pub struct BootstrapPlace(Source);

/// A peer's live session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session<H> {
    /// Its id, in both sides' logs.
    pub id: SessionId,
    /// The run of the satellite's program that holds it, where it says so.
    pub run: Option<u64>,
    /// What it is made of.
    pub link: H,
}

/// The table.
#[derive(Debug)]
pub struct SessionTable<H> {
    limits: SessionLimits,
    /// Never an empty list; the last one carries.
    sessions: BTreeMap<PeerId, Vec<Session<H>>>,
    bootstrap: BTreeMap<Source, usize>,
    bootstrap_total: usize,
}

impl<H> SessionTable<H> {
    /// An empty table.
    pub const fn new(limits: SessionLimits) -> Self {
        Self {
            limits,
            sessions: BTreeMap::new(),
            bootstrap: BTreeMap::new(),
            bootstrap_total: 0,
        }
    }

    /// Other limits from now on; who is in stays in.
    pub const fn set_limits(&mut self, limits: SessionLimits) {
        self.limits = limits;
    }

    /// Whether [`Self::enter`] would take the peer.
    pub fn check(&self, peer: PeerId) -> Result<(), Full> {
        if self.sessions.contains_key(&peer) || self.sessions.len() < self.limits.sessions {
            Ok(())
        } else {
            Err(Full::Sessions)
        }
    }

    /// Takes a peer's newest session, which carries from now on unless it is on trial beside another,
    /// and hands out those that it displaces, to be closed. A peer that is in already always gets in: its
    /// old session may be half-open.
    pub fn enter(
        &mut self,
        peer: PeerId,
        session: Session<H>,
        replaces: &[SessionId],
        on_trial: bool,
    ) -> Result<Vec<Session<H>>, Full> {
        self.check(peer)?;
        let live = self.sessions.entry(peer).or_default();
        let stays =
            |old: &Session<H>| session.run.is_some() && old.run == session.run && !replaces.contains(&old.id);
        let (mut kept, mut displaced): (Vec<_>, Vec<_>) = live.drain(..).partition(stays);
        if kept.len() >= SESSIONS_PER_PEER {
            displaced.push(kept.remove(0));
        }
        let at = if on_trial {
            kept.len().saturating_sub(1)
        } else {
            kept.len()
        };
        kept.insert(at, session);
        *live = kept;
        Ok(displaced)
    }

    /// A session's trial is over: it carries, if it is still there.
    pub fn promote(&mut self, peer: PeerId, session: SessionId) {
        if let Some(live) = self.sessions.get_mut(&peer)
            && let Some(at) = live.iter().position(|live| live.id == session)
        {
            live[at..].rotate_left(1);
        }
    }

    /// The session's connection is gone. Whether it was still one of the peer's: a displaced session
    /// ends later than its successor begins.
    pub fn leave(&mut self, peer: PeerId, session: SessionId) -> bool {
        self.remove_session(peer, session).is_some()
    }

    /// Hands out all sessions of a peer, to be closed: the peer was suspended or revoked.
    pub fn remove(&mut self, peer: PeerId) -> Vec<Session<H>> {
        self.sessions.remove(&peer).unwrap_or_default()
    }

    /// Hands out one of them: what speaks against one session does not speak against its successor.
    pub fn remove_session(&mut self, peer: PeerId, session: SessionId) -> Option<Session<H>> {
        let live = self.sessions.get_mut(&peer)?;
        let at = live.iter().position(|live| live.id == session)?;
        let removed = live.remove(at);
        if live.is_empty() {
            self.sessions.remove(&peer);
        }
        Some(removed)
    }

    /// The session that carries what is opened towards a peer.
    pub fn get(&self, peer: PeerId) -> Option<&Session<H>> {
        self.sessions.get(&peer)?.last()
    }

    /// Of each peer the session that carries.
    pub fn carrying(&self) -> impl Iterator<Item = (PeerId, &Session<H>)> {
        self.sessions
            .iter()
            .filter_map(|(peer, live)| Some((*peer, live.last()?)))
    }

    /// All sessions of all peers.
    pub fn all(&self) -> impl Iterator<Item = &Session<H>> {
        self.sessions.values().flatten()
    }

    /// The same, with whose they are.
    pub fn of_peers(&self) -> impl Iterator<Item = (PeerId, &Session<H>)> {
        let sessions = self.sessions.iter();
        sessions.flat_map(|(peer, live)| live.iter().map(|live| (*peer, live)))
    }

    /// How many sessions a peer has.
    pub fn count(&self, peer: PeerId) -> usize {
        self.sessions.get(&peer).map_or(0, Vec::len)
    }

    /// How many peers have a session.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// How many connections without a certificate there are.
    pub const fn bootstrap_len(&self) -> usize {
        self.bootstrap_total
    }

    /// A connection without a certificate begins.
    pub fn enter_bootstrap(&mut self, source: Source) -> Result<BootstrapPlace, Full> {
        if self.bootstrap_total >= self.limits.bootstrap {
            return Err(Full::Bootstrap);
        }
        let count = self.bootstrap.get(&source).copied().unwrap_or(0);
        if count >= self.limits.bootstrap_per_source {
            return Err(Full::BootstrapSource);
        }
        self.bootstrap.insert(source, count + 1);
        self.bootstrap_total += 1;
        Ok(BootstrapPlace(source))
    }

    /// It ends.
    pub fn leave_bootstrap(&mut self, place: &BootstrapPlace) {
        if let Some(count) = self.bootstrap.get_mut(&place.0) {
            *count = count.saturating_sub(1);
            self.bootstrap_total = self.bootstrap_total.saturating_sub(1);
            if *count == 0 {
                self.bootstrap.remove(&place.0);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::time::UnixTime;

    const LIMITS: SessionLimits = SessionLimits {
        sessions: 3,
        bootstrap: 4,
        bootstrap_per_source: 2,
    };

    fn peer(n: u8) -> PeerId {
        PeerId::new_v7(UnixTime::EPOCH, [n; 10])
    }

    fn session(n: u32) -> Session<u32> {
        let mut entropy = [0; 10];
        entropy[..4].copy_from_slice(&n.to_be_bytes());
        Session {
            id: SessionId::new_v7(UnixTime::EPOCH, entropy),
            run: None,
            link: n,
        }
    }

    fn of_run(run: u64, n: u32) -> Session<u32> {
        Session {
            run: Some(run),
            ..session(n)
        }
    }

    fn enter(table: &mut SessionTable<u32>, session: Session<u32>) -> Vec<u32> {
        let displaced = table.enter(peer(1), session, &[], false).unwrap();
        displaced.into_iter().map(|session| session.link).collect()
    }

    fn carrying(table: &SessionTable<u32>) -> Option<u32> {
        table.get(peer(1)).map(|live| live.link)
    }

    #[test]
    fn the_newest_session_wins_and_the_old_one_cannot_remove_it() {
        let mut table = SessionTable::new(LIMITS);
        assert!(enter(&mut table, session(1)).is_empty());
        assert_eq!(enter(&mut table, session(2)), [1]);
        assert!(!table.leave(peer(1), session(1).id));
        assert_eq!(carrying(&table), Some(2));
        assert!(table.leave(peer(1), session(2).id));
        assert!(table.is_empty());
    }

    #[test]
    fn sessions_of_one_run_live_beside_each_other_and_those_of_another_are_displaced() {
        let mut table = SessionTable::new(LIMITS);
        assert!(enter(&mut table, of_run(7, 1)).is_empty());
        assert!(enter(&mut table, of_run(7, 2)).is_empty());
        assert_eq!((table.len(), table.count(peer(1))), (1, 2));
        assert_eq!(carrying(&table), Some(2));
        assert!(table.leave(peer(1), session(2).id));
        assert_eq!(carrying(&table), Some(1), "at once");
        assert!(enter(&mut table, of_run(7, 3)).is_empty());
        assert_eq!(
            enter(&mut table, of_run(8, 4)),
            [1, 3],
            "the box was cloned, or has restarted"
        );
        assert_eq!(enter(&mut table, session(5)), [4], "an earlier build");
    }

    #[test]
    fn a_session_that_the_satellite_has_lost_goes_at_once() {
        let mut table = SessionTable::new(LIMITS);
        enter(&mut table, of_run(7, 1));
        enter(&mut table, of_run(7, 2));
        let displaced = table
            .enter(peer(1), of_run(7, 3), &[session(1).id], false)
            .unwrap();
        assert_eq!(displaced, [of_run(7, 1)]);
        assert_eq!(table.count(peer(1)), 2);
    }

    #[test]
    fn a_session_on_trial_carries_only_afterwards_or_when_it_is_the_last() {
        let mut table = SessionTable::new(LIMITS);
        table.enter(peer(1), of_run(7, 1), &[], true).unwrap();
        assert_eq!(carrying(&table), Some(1), "there is no other");
        table.enter(peer(1), of_run(7, 2), &[], true).unwrap();
        assert_eq!(carrying(&table), Some(1));
        table.promote(peer(1), session(2).id);
        assert_eq!(carrying(&table), Some(2));
        table.promote(peer(1), session(9).id);
        table.enter(peer(1), of_run(7, 3), &[], true).unwrap();
        table.leave(peer(1), session(2).id);
        table.leave(peer(1), session(1).id);
        assert_eq!(carrying(&table), Some(3));
    }

    #[test]
    fn one_peer_cannot_pile_sessions_up() {
        let mut table = SessionTable::new(LIMITS);
        for n in 0..20 {
            enter(&mut table, of_run(7, n));
            assert!(table.count(peer(1)) <= SESSIONS_PER_PEER);
        }
        assert_eq!(carrying(&table), Some(19));
    }

    #[test]
    fn an_objection_to_one_session_leaves_its_successor() {
        let mut table = SessionTable::new(LIMITS);
        enter(&mut table, session(1));
        enter(&mut table, session(2));
        assert_eq!(table.remove_session(peer(1), session(1).id), None);
        assert_eq!(table.len(), 1);
        let removed = table.remove_session(peer(1), session(2).id);
        assert_eq!(removed.map(|removed| removed.link), Some(2));
        assert!(table.is_empty());
    }

    #[test]
    fn a_full_table_still_takes_the_peers_that_are_in() {
        let mut table = SessionTable::new(LIMITS);
        for n in 0..3 {
            let entered = table.enter(peer(n), session(u32::from(n)), &[], false);
            assert_eq!(entered, Ok(vec![]));
        }
        let ninth = table.enter(peer(9), session(9), &[], false);
        assert_eq!(ninth, Err(Full::Sessions));
        assert_eq!(table.enter(peer(0), session(10), &[], false).unwrap().len(), 1);
    }

    #[test]
    fn bootstrap_connections_are_bounded_in_total_and_per_source() {
        let mut table = SessionTable::<u32>::new(LIMITS);
        let source = |text: &str| Source::of(text.parse().unwrap());
        let first = table.enter_bootstrap(source("2001:db8::1")).unwrap();
        table.enter_bootstrap(source("2001:db8::ffff")).unwrap();
        assert_eq!(
            table.enter_bootstrap(source("2001:db8::2")),
            Err(Full::BootstrapSource),
            "one /64 is one source"
        );
        table.enter_bootstrap(source("192.0.2.1")).unwrap();
        table.enter_bootstrap(source("::ffff:192.0.2.1")).unwrap();
        assert_eq!(table.enter_bootstrap(source("192.0.2.9")), Err(Full::Bootstrap));
        table.leave_bootstrap(&first);
        assert!(table.enter_bootstrap(source("192.0.2.9")).is_ok());
    }

    #[test]
    fn thousands_of_reconnects_leave_nothing_behind() {
        let mut table = SessionTable::new(LIMITS);
        let source = Source::of("192.0.2.1".parse().unwrap());
        for n in 0..20_000_u32 {
            let place = table.enter_bootstrap(source).unwrap();
            table.leave_bootstrap(&place);
            for old in table.enter(peer(1), session(n), &[], false).unwrap() {
                assert!(!table.leave(peer(1), old.id));
            }
            assert_eq!((table.len(), table.bootstrap_len()), (1, 0));
        }
        assert!(table.bootstrap.is_empty());
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_the_connections_in_any_order(
            steps in proptest::collection::vec((0_u8..5, 0_u8..4, 0_u64..3, any::<bool>()), 0..200),
        ) {
            let mut table = SessionTable::new(LIMITS);
            let mut connected: Vec<(u8, Session<u32>)> = Vec::new();
            for (number, (who, what, run, on_trial)) in (0_u32..).zip(steps) {
                match what {
                    0 | 1 => {
                        let new = if run == 0 { session(number) } else { of_run(run, number) };
                        let lost: Vec<_> = connected.last().map(|(_, lost)| lost.id).into_iter().collect();
                        let lost = if what == 1 { lost } else { Vec::new() };
                        let entered = table.enter(peer(who), new.clone(), &lost, on_trial);
                        if let Ok(displaced) = entered {
                            for old in displaced {
                                prop_assert!(connected.contains(&(who, old)));
                            }
                            connected.push((who, new));
                        }
                    }
                    2 => {
                        if let Some(at) = connected.iter().position(|(of, _)| *of == who) {
                            let (_, gone) = connected.remove(at);
                            table.leave(peer(who), gone.id);
                        }
                    }
                    _ => {
                        for removed in table.remove(peer(who)) {
                            prop_assert!(connected.contains(&(who, removed)));
                        }
                    }
                }
                prop_assert!(table.len() <= LIMITS.sessions);
                for n in 0..5 {
                    if let Some(live) = table.get(peer(n)) {
                        prop_assert!(connected.contains(&(n, live.clone())), "a row without a connection");
                    }
                }
            }
        }
    }
}
