//! The live tunnels: the session table with its tunnels, and the goodbyes to those that leave it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::federation_api::{Caller, CallerCertificate};
use super::peer_view::{LinkView, TurnedAway};
use super::readmissions::Readmissions;
use super::session::{BootstrapPlace, Full, Session, SessionLimits, SessionTable};
use crate::base::counter::Counter;
use crate::base::id::{CertificateDigest, PeerId, SessionId};
use crate::base::time::UnixTime;
use crate::machine::source_rate::Source;
use crate::process::supervisor::TaskScope;
use crate::tunnel::connection::Tunnel;
use crate::tunnel::transport::TunnelProtocol;
use crate::wire::{Goodbye, GoodbyeReason, RefusalCode, Refused, SessionClaim};

/// What a session is told whose peer has accepted again.
const REPLACED_KEY: &str = "another key has accepted as this peer";

/// What is told to whose certificate was issued by an authority that counts no more.
pub const AUTHORITY_RETIRED: &str = "the authority that issued its certificate was retired; without a newer one the box must rejoin with a new token";

/// Most peers of whom is known that they were turned away. Each has shown a certificate that verifies.
const TURNED_AWAY_MAX: usize = 1_024;

/// A peer's tunnel and what is told of it.
#[derive(Debug, Clone)]
pub struct Link {
    /// The tunnel.
    pub tunnel: Tunnel,
    /// Since when.
    pub since: UnixTime,
    /// Whether this side has dialled.
    pub direct: bool,
    /// Program and version at the other end.
    pub agent: String,
    /// Who is at the other end, as the handshake has verified it.
    pub caller: Caller,
}

/// What became of those who came, since the bridge was started.
#[derive(Debug, Default)]
pub struct TunnelCounters {
    handshakes: [[Counter; 2]; TunnelProtocol::ALL.len()],
    established: Counter,
    refused: [Counter; RefusalCode::ALL.len()],
}

impl TunnelCounters {
    /// A handshake is done, or has failed.
    pub fn count_handshake(&self, protocol: TunnelProtocol, done: bool) {
        self.handshakes[protocol as usize][usize::from(done)].increment();
    }

    /// A tunnel was taken, or refused.
    pub fn count_greeting<T>(&self, decided: &Result<T, Refused>) {
        match decided {
            Ok(_) => self.established.increment(),
            Err(refused) => self.refused[refused.code as usize].increment(),
        }
    }

    /// Handshakes that are done, and that have failed.
    pub fn handshakes(&self, protocol: TunnelProtocol) -> (u64, u64) {
        let [failed, done] = &self.handshakes[protocol as usize];
        (done.get(), failed.get())
    }

    /// Tunnels that were taken.
    pub fn established(&self) -> u64 {
        self.established.get()
    }

    /// Tunnels that were refused, by reason; only reasons that occurred.
    pub fn refused(&self) -> impl Iterator<Item = (RefusalCode, u64)> {
        let counts = self.refused.iter().map(Counter::get);
        RefusalCode::ALL
            .into_iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
    }
}

/// All of them.
#[derive(Debug)]
pub struct Links {
    table: Mutex<SessionTable<Link>>,
    turned_away: Mutex<BTreeMap<PeerId, TurnedAway>>,
    readmissions: Mutex<Readmissions>,
    goodbyes: TaskScope,
    counters: TunnelCounters,
}

impl Links {
    /// None yet. Goodbyes are said in tasks of the given scope.
    pub fn new(limits: SessionLimits, goodbyes: TaskScope) -> Self {
        Self {
            table: Mutex::new(SessionTable::new(limits)),
            turned_away: Mutex::default(),
            readmissions: Mutex::default(),
            goodbyes,
            counters: TunnelCounters::default(),
        }
    }

    /// What became of those who came.
    pub const fn counters(&self) -> &TunnelCounters {
        &self.counters
    }

    /// How many tunnels there are of this kind.
    pub fn count_of(&self, protocol: TunnelProtocol) -> usize {
        let table = self.table();
        let links = table.all().map(|session| &session.link);
        links.filter(|link| link.tunnel.protocol() == protocol).count()
    }

    /// Other limits from now on.
    pub fn set_limits(&self, limits: SessionLimits) {
        self.table().set_limits(limits);
    }

    /// Whether there is a place for the peer.
    pub fn check(&self, peer: PeerId) -> Result<(), Full> {
        self.table().check(peer)
    }

    /// Takes a peer's newest tunnel; those that it displaces are told and closed. Its row goes with
    /// the guard, however the session's task ends.
    pub fn enter(
        &self,
        peer: PeerId,
        session: SessionId,
        claim: &SessionClaim,
        link: Link,
    ) -> Result<SessionGuard<'_>, Full> {
        let entering = Session {
            id: session,
            run: claim.run,
            link,
        };
        let displaced = self
            .table()
            .enter(peer, entering, &claim.replaces, claim.trial.is_some())?;
        self.turned_away().remove(&peer);
        for replaced in displaced {
            let goodbye = goodbye(
                GoodbyeReason::Superseded,
                "a newer session of this peer has taken over",
            );
            self.say(replaced.link.tunnel, goodbye);
        }
        Ok(SessionGuard {
            links: self,
            peer,
            session,
        })
    }

    /// Remembers why a peer has got no tunnel, until it has one.
    pub fn turn_away(&self, peer: PeerId, turned: TurnedAway) {
        let mut turned_away = self.turned_away();
        if turned_away.len() < TURNED_AWAY_MAX || turned_away.contains_key(&peer) {
            turned_away.insert(peer, turned);
        }
    }

    /// Why the peer has got no tunnel when it last came, if it has none since.
    pub fn why_turned_away(&self, peer: PeerId) -> Option<TurnedAway> {
        self.turned_away().get(&peer).cloned()
    }

    /// An operator says with what certificate the peer may come ([`Readmissions::expect`]).
    pub fn expect(&self, peer: PeerId, certificate: CertificateDigest, now: UnixTime) -> Option<UnixTime> {
        self.readmissions().expect(peer, certificate, now)
    }

    /// Whether the peer has come with that ([`Readmissions::take`]).
    pub fn take_expected(&self, peer: PeerId, shown: &CallerCertificate, now: UnixTime) -> bool {
        self.readmissions().take(peer, shown, now)
    }

    /// Ends the tunnels of a peer that has another key now: whoever has them has none of the peer's any more.
    pub fn close_replaced(&self, peer: PeerId) {
        self.close(peer, GoodbyeReason::Superseded, REPLACED_KEY);
    }

    /// Ends a peer's tunnels for a reason.
    pub fn close(&self, peer: PeerId, reason: GoodbyeReason, message: &str) {
        let removed = self.table().remove(peer);
        for removed in removed {
            self.say(removed.link.tunnel, goodbye(reason, message));
        }
    }

    /// Ends those tunnels whose callers are found to have no right to them any more; gives how many peers had some.
    pub fn close_those(
        &self,
        ended: impl Fn(PeerId, &Caller) -> bool,
        reason: GoodbyeReason,
        message: &str,
    ) -> usize {
        let table = self.table();
        let live = table.of_peers();
        let live: Vec<_> = live
            .map(|(peer, live)| (peer, live.id, live.link.caller.clone()))
            .collect();
        // Finding out may take its time: nobody waits for it.
        drop(table);
        let ended = live.into_iter().filter(|(peer, _, caller)| ended(*peer, caller));
        let mut peers = BTreeSet::new();
        for (peer, session, _) in ended {
            let removed = self.table().remove_session(peer, session);
            if let Some(removed) = removed {
                self.say(removed.link.tunnel, goodbye(reason, message));
                peers.insert(peer);
            }
        }
        peers.len()
    }

    /// The tunnel that carries what is opened towards a peer.
    pub fn get(&self, peer: PeerId) -> Option<Tunnel> {
        self.table().get(peer).map(|live| live.link.tunnel.clone())
    }

    /// What operators see of that tunnel.
    pub fn view(&self, peer: PeerId) -> Option<LinkView> {
        self.table().get(peer).map(|live| LinkView {
            session: live.id,
            // It moves with a satellite that does.
            address: live.link.tunnel.remote_address().to_string(),
            agent: live.link.agent.clone(),
            since: live.link.since,
            direct: live.link.direct,
            transport: live.link.tunnel.protocol().word().to_owned(),
            open_streams: live.link.tunnel.stats().open_streams,
        })
    }

    /// Who is connected, by the tunnel that carries.
    pub fn callers(&self) -> Vec<(PeerId, Caller)> {
        let table = self.table();
        table
            .carrying()
            .map(|(peer, live)| (peer, live.link.caller.clone()))
            .collect()
    }

    /// How many peers are connected.
    pub fn len(&self) -> usize {
        self.table().len()
    }

    /// Whether nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.table().is_empty()
    }

    /// How many connections without a certificate there are.
    pub fn bootstrap_len(&self) -> usize {
        self.table().bootstrap_len()
    }

    /// A connection without a certificate begins; its place is free again when the guard goes.
    pub fn enter_bootstrap(&self, source: Source) -> Result<BootstrapGuard<'_>, Full> {
        let place = self.table().enter_bootstrap(source)?;
        Ok(BootstrapGuard { links: self, place })
    }

    fn leave(&self, peer: PeerId, session: SessionId) -> bool {
        self.table().leave(peer, session)
    }

    fn say(&self, tunnel: Tunnel, goodbye: Goodbye) {
        self.goodbyes
            .spawn("goodbye", async move { tunnel.close(goodbye).await });
    }

    fn table(&self) -> MutexGuard<'_, SessionTable<Link>> {
        // Each change of the table is complete before anything that could panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn readmissions(&self) -> MutexGuard<'_, Readmissions> {
        self.readmissions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turned_away(&self) -> MutexGuard<'_, BTreeMap<PeerId, TurnedAway>> {
        self.turned_away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's row among the live ones.
#[derive(Debug)]
pub struct SessionGuard<'a> {
    links: &'a Links,
    peer: PeerId,
    session: SessionId,
}

impl SessionGuard<'_> {
    /// Ends this session for a reason, unless a newer one of the peer's has replaced it already.
    pub fn close(&self, reason: GoodbyeReason, message: &str) {
        let removed = self.links.table().remove_session(self.peer, self.session);
        if let Some(removed) = removed {
            self.links.say(removed.link.tunnel, goodbye(reason, message));
        }
    }

    /// The session's trial is over: it carries from now on.
    pub fn promote(&self) {
        self.links.table().promote(self.peer, self.session);
    }

    /// The tunnel has ended. Whether it was still one of the peer's.
    pub fn leave(self) -> bool {
        self.links.leave(self.peer, self.session)
    }
}

impl Drop for SessionGuard<'_> {
    fn drop(&mut self) {
        // Without effect after `leave`.
        self.links.leave(self.peer, self.session);
    }
}

/// A place among the connections without a certificate.
#[derive(Debug)]
pub struct BootstrapGuard<'a> {
    links: &'a Links,
    place: BootstrapPlace,
}

impl Drop for BootstrapGuard<'_> {
    fn drop(&mut self) {
        self.links.table().leave_bootstrap(&self.place);
    }
}

fn goodbye(reason: GoodbyeReason, message: &str) -> Goodbye {
    Goodbye {
        reason,
        message: message.to_owned(),
        retry_after_millis: 0,
    }
}
