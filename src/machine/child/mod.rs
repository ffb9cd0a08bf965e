//! A whole satellite's decisions in one machine: join, tunnels, heartbeat and renewal, and what
//! one tells the other. It owns the durable state; whoever drives it makes that state durable, dials,
//! sends, and reports back. Nothing here knows how.
//!
//! Persisting is sequential: each `Persist` carries a number, and what depends on it waits for
//! `Persisted` of that number.

mod event;
mod join;
mod link;
mod node;
mod rejoin;
mod renewal;

use std::collections::VecDeque;
use std::time::Duration;

pub use event::{ChildAction, ChildEvent, ChildPolicy, EventKind, InvitationRefused, KeyUse, LinkPurpose};
pub use rejoin::{Rejoin, RejoinMode, WorkingMembership};

use super::backoff::BackoffPolicy;
use super::heartbeat::{HeartbeatAction, HeartbeatEvent, HeartbeatMachine};
use super::join::{JoinEvent, JoinMachine, JoinState};
use super::ladder::{LadderEvent, TunnelId};
use super::membership::{Candidate, FollowedAnchors, KeptAuthority, KeyMaterial, Membership};
use super::node_identity::{NodeEvent, NodeIdentityMachine};
use super::renewal::{RenewalEvent, RenewalMachine};
use super::uplinks::{LinkState, Uplinks};
use super::watchdog::{self, Verdict, WatchdogFacts};
use crate::base::time::{Moment, UnixTime};
use crate::contract::peer::PeerStatus;

/// Delay before a failed write of the membership is tried again: a full disk is not emptied in
/// less, and the box must not wear its card out trying.
pub const PERSIST_RETRY: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Member {
    /// `Enrolled` or `Joined`, as it should be in the store.
    state: JoinState,
    renewal: RenewalMachine,
    /// The key of the renewal under way, for its request.
    renewal_key: Option<KeyMaterial>,
    /// The number of the `Persist` that the renewal waits for.
    renewal_waits_for: Option<u64>,
    node: NodeIdentityMachine,
    /// The number of the `Persist` that the node's identity waits for.
    node_waits_for: Option<u64>,
    /// When to try a failed `Persist` again.
    persist_again: Option<Moment>,
}

#[derive(Debug)]
enum Phase {
    /// Never invited.
    Idle,
    /// From invitation to certificate, or refused.
    Joining {
        machine: Box<JoinMachine>,
        /// The number of the `Persist` that the join waits for.
        waits_for: Option<u64>,
    },
    /// Has a membership.
    Member(Box<Member>),
}

/// See the module's text.
#[derive(Debug)]
pub struct ChildMachine {
    phase: Phase,
    policy: ChildPolicy,
    seed: u64,
    uplinks: Uplinks,
    /// The primary tunnel that the other machines know of.
    primary: Option<TunnelId>,
    link_since: Moment,
    heartbeat: HeartbeatMachine,
    last_outcome: Option<Moment>,
    purpose: Option<LinkPurpose>,
    /// The tunnel that is up presents a candidate that has become the membership's identity.
    presents_committed: bool,
    /// Tunnels that take a renewal and nothing else.
    renewal_only: Vec<TunnelId>,
    /// The parent was reached and did not take, nor renew, a certificate that has expired.
    expired_for_good: bool,
    /// The parent did not take the identity when it was shown last.
    refused: bool,
    sequence: u64,
    actions: VecDeque<ChildAction>,
}

impl ChildMachine {
    /// Goes on from what the store holds.
    pub fn new(
        state: Option<JoinState>,
        policy: ChildPolicy,
        seed: u64,
        now: Moment,
        wall: UnixTime,
    ) -> Self {
        let uplinks = Uplinks::new(policy.uplinks.clone(), seed.rotate_left(16));
        let mut machine = Self {
            phase: Phase::Idle,
            policy,
            seed,
            uplinks,
            primary: None,
            link_since: now,
            heartbeat: HeartbeatMachine::new(),
            last_outcome: None,
            purpose: None,
            presents_committed: false,
            renewal_only: Vec::new(),
            expired_for_good: false,
            refused: false,
            sequence: 0,
            actions: VecDeque::new(),
        };
        if let Some(state) = state {
            machine.phase = machine.phase_of(state);
        }
        machine.settle(now, wall);
        machine
    }

    /// Another policy from now on. Tunnels that it still allows stay.
    pub fn set_policy(&mut self, policy: ChildPolicy, now: Moment, wall: UnixTime) {
        self.policy = policy;
        self.uplinks.set_policy(self.policy.uplinks.clone(), now);
        let backoff = self.backoff();
        if let Phase::Joining { machine, .. } = &mut self.phase {
            machine.set_policy(backoff);
        }
        self.settle(now, wall);
    }

    const fn backoff(&self) -> BackoffPolicy {
        self.policy.uplinks.ladder.backoff
    }

    /// The state as it should be in the store; `None` when never invited.
    pub fn state(&self) -> Option<&JoinState> {
        match &self.phase {
            Phase::Idle => None,
            Phase::Joining { machine, .. } => Some(machine.state()),
            Phase::Member(member) => Some(&member.state),
        }
    }

    /// The membership, once there is one.
    pub fn membership(&self) -> Option<&Membership> {
        self.state().and_then(JoinState::membership)
    }

    /// Where the link stands, all tunnels together.
    pub fn link(&self) -> LinkState {
        self.uplinks.state()
    }

    /// The host-bridges and how each is reached.
    pub const fn uplinks(&self) -> &Uplinks {
        &self.uplinks
    }

    /// The tunnel that the satellite's own requests go over.
    pub const fn primary(&self) -> Option<TunnelId> {
        self.uplinks.primary()
    }

    /// What the present or next tunnels are for.
    pub const fn purpose(&self) -> Option<LinkPurpose> {
        self.purpose
    }

    /// When the parent last acknowledged a heartbeat.
    pub const fn last_acknowledged(&self) -> Option<Moment> {
        self.heartbeat.last_acknowledged()
    }

    /// Whether the service manager should go on believing in this process.
    pub fn watchdog(&self, now: Moment) -> Verdict {
        let facts = WatchdogFacts {
            link: self.uplinks.state(),
            link_since: self.link_since,
            last_acknowledged: self.heartbeat.last_acknowledged(),
            last_outcome: self.last_outcome,
            heartbeats_expected: matches!(self.purpose, Some(LinkPurpose::Member(_))),
        };
        watchdog::judge(&facts, now)
    }

    /// One event. Reports that do not fit the state change nothing.
    pub fn handle_event(&mut self, event: ChildEvent, now: Moment, wall: UnixTime) {
        let link_before = self.uplinks.state();
        match event {
            ChildEvent::Invited(invitation) => self.invited(*invitation, now, wall),
            ChildEvent::KeyGenerated(KeyUse::Federation, key) => self.key_generated(key, now, wall),
            ChildEvent::KeyGenerated(KeyUse::Node, key) => {
                self.node_event(NodeEvent::KeyGenerated(key), now, wall);
            }
            ChildEvent::Persisted(sequence) => self.persisted(sequence, now, wall),
            ChildEvent::PersistFailed(sequence) => self.persist_failed(sequence, now, wall),
            ChildEvent::Connected(id) => self.uplinks.handle_event(id, LadderEvent::Connected(id), now),
            ChildEvent::DialFailed(id, failure) => {
                self.uplinks
                    .handle_event(id, LadderEvent::DialFailed(id, failure), now);
            }
            ChildEvent::DialRefused(id, failure) => {
                self.uplinks
                    .handle_event(id, LadderEvent::DialFailed(id, failure), now);
                // Where another bridge takes it, this one does not know the peer.
                if self.uplinks.primary().is_none() {
                    self.identity_refused(now, wall);
                    self.expired_for_good |= self.presents_expired(wall);
                }
            }
            ChildEvent::RenewalOnly(id) => self.renewal_only.push(id),
            ChildEvent::TunnelLost(id, loss) => {
                self.renewal_only.retain(|held| *held != id);
                self.uplinks.handle_event(id, LadderEvent::Lost(id, loss), now);
            }
            ChildEvent::TunnelDrained(id) => self.uplinks.handle_event(id, LadderEvent::Drained(id), now),
            ChildEvent::TunnelOverrun(id, why) => {
                self.uplinks.handle_event(id, LadderEvent::Overrun(id, why), now);
            }
            ChildEvent::NetworkChanged => self.uplinks.tell_all(&LadderEvent::NetworkChanged, now),
            ChildEvent::WayIn(way_in) => self.uplinks.set_way_in(way_in, now),
            ChildEvent::Called(bridge) => self.uplinks.called(&bridge, now),
            ChildEvent::WayInWithdrawn(id) => {
                self.uplinks.handle_event(id, LadderEvent::Withdrawn(id), now);
            }
            ChildEvent::StatusTold(status) => self.status_told(status),
            ChildEvent::Join(event) => self.join_event(event, now, wall),
            ChildEvent::HeartbeatAcknowledged(status) => self.acknowledged(status, now, wall),
            ChildEvent::HeartbeatRefused => {
                self.last_outcome = Some(now);
                self.heartbeat.handle_event(HeartbeatEvent::Refused, now);
                self.identity_refused(now, wall);
            }
            ChildEvent::HeartbeatFailed(retry_after) => {
                self.last_outcome = Some(now);
                self.heartbeat
                    .handle_event(HeartbeatEvent::Failed(retry_after), now);
            }
            ChildEvent::RefreshIssued(mut identity) => {
                self.expired_for_good = false;
                if let Some(membership) = self.membership() {
                    // The authorities may be others than when it was asked for.
                    let anchors = &membership.identity.certificate.ca_chain_pem;
                    anchors.clone_into(&mut identity.certificate.ca_chain_pem);
                }
                self.renewal_event(RenewalEvent::Issued(identity), now, wall);
            }
            ChildEvent::RefreshFailed => self.renewal_event(RenewalEvent::RefreshFailed, now, wall),
            ChildEvent::Node(event) => self.node_event(event, now, wall),
            ChildEvent::RefreshRefused => {
                self.expired_for_good |= self.is_renewal_only();
                self.renewal_event(RenewalEvent::RefreshFailed, now, wall);
            }
            ChildEvent::AnchorsFollowed(followed) => self.anchors_followed(&followed),
            ChildEvent::RejoinCancelled => self.rejoin_cancelled(now, wall),
            ChildEvent::RenewalWanted => self.renewal_event(RenewalEvent::Wanted, now, wall),
            ChildEvent::AuthorityAdopted(authority) => self.authority_adopted(*authority),
            ChildEvent::Left(farewell) => self.left(*farewell, now, wall),
            ChildEvent::ContentChanged => self.heartbeat.handle_event(HeartbeatEvent::ContentChanged, now),
            ChildEvent::RetryNow => self.uplinks.tell_all(&LadderEvent::RetryNow, now),
            ChildEvent::Timeout => self.timeout(now, wall),
        }
        self.settle(now, wall);
        if self.uplinks.state() != link_before {
            self.link_since = now;
        }
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<ChildAction> {
        self.actions.pop_front()
    }

    /// When to send `Timeout`.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let of_phase = match &self.phase {
            Phase::Idle => None,
            Phase::Joining { machine, .. } => machine.poll_timeout(),
            Phase::Member(member) => [
                member.renewal.poll_timeout(),
                member.node.poll_timeout(),
                member.persist_again,
            ]
            .into_iter()
            .flatten()
            .min(),
        };
        [
            of_phase,
            self.uplinks.poll_timeout(),
            self.heartbeat.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn phase_of(&self, state: JoinState) -> Phase {
        match &state {
            JoinState::Enrolled(membership) | JoinState::Joined(membership) => {
                let candidate = membership.candidate.clone();
                let renewal_key = match &candidate {
                    Some(Candidate::Requested(key)) => Some(key.clone()),
                    Some(Candidate::Issued(_)) | None => None,
                };
                let renewal = RenewalMachine::new(&membership.identity, candidate, self.seed.rotate_left(32))
                    .unaided(membership.own_authority.is_some());
                let node = NodeIdentityMachine::new(membership.node.clone(), self.seed.rotate_left(48));
                Phase::Member(Box::new(Member {
                    state,
                    renewal,
                    renewal_key,
                    renewal_waits_for: None,
                    node,
                    node_waits_for: None,
                    persist_again: None,
                }))
            }
            JoinState::Invited(_)
            | JoinState::KeyReady { .. }
            | JoinState::Sent { .. }
            | JoinState::Accepted { .. }
            | JoinState::Refused { .. }
            | JoinState::Left(_) => Phase::Joining {
                machine: Box::new(JoinMachine::new(state, self.backoff(), self.seed)),
                waits_for: None,
            },
        }
    }

    fn key_generated(&mut self, key: KeyMaterial, now: Moment, wall: UnixTime) {
        match &mut self.phase {
            Phase::Idle => {}
            Phase::Joining { machine, .. } => machine.handle_event(JoinEvent::KeyGenerated(key), now, wall),
            Phase::Member(member) => {
                member.renewal_key = Some(key.clone());
                self.renewal_event(RenewalEvent::KeyGenerated(key), now, wall);
            }
        }
    }

    fn persisted(&mut self, sequence: u64, now: Moment, wall: UnixTime) {
        match &mut self.phase {
            Phase::Joining { machine, waits_for } if *waits_for == Some(sequence) => {
                *waits_for = None;
                machine.handle_event(JoinEvent::Persisted, now, wall);
            }
            Phase::Member(member) => {
                // One that was repeated may be for both.
                let of_renewal = member.renewal_waits_for.take_if(|waited| *waited == sequence);
                let of_node = member.node_waits_for.take_if(|waited| *waited == sequence);
                if of_renewal.is_some() {
                    self.renewal_event(RenewalEvent::Stored, now, wall);
                }
                if of_node.is_some() {
                    self.node_event(NodeEvent::Stored, now, wall);
                }
            }
            Phase::Idle | Phase::Joining { .. } => {}
        }
    }

    fn persist_failed(&mut self, sequence: u64, now: Moment, wall: UnixTime) {
        match &mut self.phase {
            Phase::Joining { machine, waits_for } if *waits_for == Some(sequence) => {
                *waits_for = None;
                machine.handle_event(JoinEvent::PersistFailed, now, wall);
            }
            Phase::Member(member) => member.persist_again = Some(now.plus(PERSIST_RETRY)),
            Phase::Idle | Phase::Joining { .. } => {}
        }
    }

    fn status_told(&mut self, status: PeerStatus) {
        self.update_member(|state| {
            let Some(membership) = state.membership_mut() else {
                return false;
            };
            let changed = membership.status != status;
            membership.status = status;
            changed
        });
    }

    fn acknowledged(&mut self, status: PeerStatus, now: Moment, wall: UnixTime) {
        self.refused = false;
        self.last_outcome = Some(now);
        self.expired_for_good = false;
        self.heartbeat.handle_event(HeartbeatEvent::Acknowledged, now);
        if let Some(LinkPurpose::Member(choice)) = self.purpose {
            self.renewal_event(RenewalEvent::HeartbeatAcknowledged(choice), now, wall);
        }
        self.update_member(|state| {
            let first = matches!(state, JoinState::Enrolled(_));
            if let JoinState::Enrolled(membership) = state {
                *state = JoinState::Joined(membership.clone());
            }
            let Some(membership) = state.membership_mut() else {
                return first;
            };
            let changed = membership.status != status;
            membership.status = status;
            first || changed
        });
    }

    /// Changes the membership and, when the change says so, orders it to be made durable.
    fn update_member(&mut self, change: impl FnOnce(&mut JoinState) -> bool) -> Option<u64> {
        let Phase::Member(member) = &mut self.phase else {
            return None;
        };
        if !change(&mut member.state) {
            return None;
        }
        self.sequence += 1;
        self.actions.push_back(ChildAction::Persist(
            self.sequence,
            Box::new(member.state.clone()),
        ));
        Some(self.sequence)
    }

    /// The driver has made it durable already.
    fn anchors_followed(&mut self, followed: &FollowedAnchors) {
        self.update_member(|state| {
            if let Some(membership) = state.membership_mut() {
                membership.follow(followed);
            }
            false
        });
    }

    /// The driver has made it durable already.
    fn authority_adopted(&mut self, authority: KeptAuthority) {
        self.update_member(|state| {
            if let Some(membership) = state.membership_mut() {
                membership.own_authority = Some(authority);
            }
            false
        });
    }

    fn timeout(&mut self, now: Moment, wall: UnixTime) {
        self.uplinks.tell_all(&LadderEvent::Timeout, now);
        self.heartbeat.handle_event(HeartbeatEvent::Timeout, now);
        self.join_event(JoinEvent::Timeout, now, wall);
        self.renewal_event(RenewalEvent::Timeout, now, wall);
        self.node_event(NodeEvent::Timeout, now, wall);
        let again = match &mut self.phase {
            Phase::Member(member) if member.persist_again.is_some_and(|at| at <= now) => {
                member.persist_again = None;
                true
            }
            Phase::Idle | Phase::Joining { .. } | Phase::Member(_) => false,
        };
        if again {
            let sequence = self.update_member(|_| true);
            if let Phase::Member(member) = &mut self.phase {
                member.renewal_waits_for = member.renewal_waits_for.and(sequence);
                member.node_waits_for = member.node_waits_for.and(sequence);
            }
        }
    }

    /// Carries the parts' actions on until none is left, and makes the link serve the phase.
    fn settle(&mut self, now: Moment, wall: UnixTime) {
        loop {
            let before = self.actions.len();
            self.drain_join();
            self.drain_renewal();
            self.drain_node();
            let graduated = match &self.phase {
                Phase::Joining { machine, .. } => machine.state().membership().is_some(),
                Phase::Idle | Phase::Member(_) => false,
            };
            if graduated {
                let state = match std::mem::replace(&mut self.phase, Phase::Idle) {
                    Phase::Joining { machine, .. } => Some(machine.into_state()),
                    Phase::Idle | Phase::Member(_) => None,
                };
                if let Some(state) = state {
                    self.phase = self.phase_of(state);
                }
            }
            self.align_link(now, wall);
            let told = self.follow_primary(now, wall);
            self.drain_link();
            while let Some(HeartbeatAction::Send) = self.heartbeat.poll_action() {
                self.actions.push_back(ChildAction::SendHeartbeat);
            }
            if self.actions.len() == before && !graduated && !told {
                break;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
