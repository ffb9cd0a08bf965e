//! The tunnels of a satellite's machine: which are wanted, what their coming and going means for the
//! other machines.

use super::{ChildAction, ChildMachine, LinkPurpose, Phase};
use crate::base::time::{Moment, UnixTime};
use crate::contract::peer::PeerStatus;
use crate::machine::heartbeat::HeartbeatEvent;
use crate::machine::join::JoinEvent;
use crate::machine::membership::Candidate;
use crate::machine::renewal::{IdentityChoice, RenewalEvent};
use crate::machine::uplinks::UplinkAction;

impl ChildMachine {
    /// Another tunnel is the primary, or none: what was asked over the one before counts as lost. Whether
    /// the other machines were told, which may want something now.
    pub(super) fn follow_primary(&mut self, now: Moment, wall: UnixTime) -> bool {
        let primary = self.uplinks.primary();
        if primary == self.primary {
            return false;
        }
        if self.primary.is_some() {
            self.link_down(now, wall);
        }
        self.primary = primary;
        if primary.is_some() {
            self.link_up(now, wall);
        }
        true
    }

    fn link_up(&mut self, now: Moment, wall: UnixTime) {
        match self.purpose {
            Some(LinkPurpose::Bootstrap) => self.join_event(JoinEvent::ChannelUp, now, wall),
            Some(LinkPurpose::Member(choice)) if self.is_renewal_only() => {
                self.renewal_event(RenewalEvent::LinkUp(choice), now, wall);
                self.renewal_event(RenewalEvent::Demanded, now, wall);
            }
            Some(LinkPurpose::Member(choice)) => {
                self.heartbeat.handle_event(HeartbeatEvent::LinkUp, now);
                // A candidate is proven by a heartbeat, and a peering that was not active becomes it
                // by one: neither should wait for its minute.
                let active = self.membership().is_some_and(|m| m.status == PeerStatus::Active);
                let prove = choice == IdentityChoice::Candidate || !active;
                if prove && !self.heartbeat.is_in_flight() {
                    self.heartbeat.handle_event(HeartbeatEvent::ContentChanged, now);
                }
                self.renewal_event(RenewalEvent::LinkUp(choice), now, wall);
            }
            None => {}
        }
    }

    /// Whether the primary tunnel takes a renewal and nothing else.
    pub(super) fn is_renewal_only(&self) -> bool {
        self.primary.is_some_and(|id| self.renewal_only.contains(&id))
    }

    /// Whether the certificate that dials present has ended.
    pub(super) fn presents_expired(&self, wall: UnixTime) -> bool {
        let Some(membership) = self.membership() else {
            return false;
        };
        let presented = match (self.purpose, &membership.candidate) {
            (Some(LinkPurpose::Member(IdentityChoice::Candidate)), Some(Candidate::Issued(candidate))) => {
                candidate
            }
            _ => &membership.identity,
        };
        wall > presented.certificate.not_after
    }

    /// Whether the membership has no certificate that its parent takes or renews, so that it takes a new
    /// token to go on.
    pub const fn needs_rejoin(&self) -> bool {
        self.expired_for_good
    }

    fn link_down(&mut self, now: Moment, wall: UnixTime) {
        self.presents_committed = false;
        self.heartbeat.handle_event(HeartbeatEvent::LinkDown, now);
        self.join_event(JoinEvent::ChannelDown, now, wall);
        self.renewal_event(RenewalEvent::LinkDown, now, wall);
    }

    fn wanted_purpose(&self) -> Option<LinkPurpose> {
        match &self.phase {
            Phase::Idle => None,
            Phase::Joining { machine, .. } => machine.wants_channel().then_some(LinkPurpose::Bootstrap),
            Phase::Member(member) => match member.state.membership() {
                Some(membership) if membership.status != PeerStatus::Revoked => {
                    Some(LinkPurpose::Member(member.renewal.identity_choice()))
                }
                _ => None,
            },
        }
    }

    /// Gives up tunnels that present the wrong identity or are not wanted, and starts those that are.
    pub(super) fn align_link(&mut self, now: Moment, wall: UnixTime) {
        self.align_bridges(now);
        let wanted = self.wanted_purpose();
        let before = self.purpose;
        if wanted == before {
            return;
        }
        // A committed candidate is the membership's identity now: the tunnel already presents it.
        let same_certificate = self.purpose == Some(LinkPurpose::Member(IdentityChoice::Candidate))
            && wanted == Some(LinkPurpose::Member(IdentityChoice::Current))
            && self.presents_committed;
        self.purpose = wanted;
        if same_certificate {
            self.renewal_event(RenewalEvent::LinkUp(IdentityChoice::Current), now, wall);
            return;
        }
        match (before, wanted) {
            // The old certificate is as good as the new one for what is under way.
            (Some(LinkPurpose::Member(_)), Some(LinkPurpose::Member(_))) => self.uplinks.renew(now),
            (_, Some(purpose)) => {
                self.uplinks.disable(now);
                self.follow_primary(now, wall);
                self.uplinks.enable(purpose == LinkPurpose::Bootstrap, now);
            }
            (_, None) => self.uplinks.disable(now),
        }
    }

    /// The configuration's bridges, else those of the invitation.
    fn align_bridges(&mut self, now: Moment) {
        if !self.policy.bridges.is_empty() {
            self.uplinks.set_bridges(&self.policy.bridges, now);
        } else if let Some(state) = self.state() {
            let bridges = state.parent().dial_addresses();
            self.uplinks.set_bridges(&bridges, now);
        }
    }

    pub(super) fn drain_link(&mut self) {
        while let Some(action) = self.uplinks.poll_action() {
            let mapped = match (action, self.purpose) {
                (UplinkAction::Hangup(id), _) => {
                    self.renewal_only.retain(|held| *held != id);
                    Some(ChildAction::Hangup(id))
                }
                (UplinkAction::Retire(id), _) => Some(ChildAction::Retire(id)),
                (UplinkAction::Probe(id), _) => Some(ChildAction::Probe(id)),
                (UplinkAction::Dial(dial), Some(purpose)) => Some(ChildAction::Dial(dial, purpose)),
                (UplinkAction::Dial(_), None) => None,
            };
            self.actions.extend(mapped);
        }
    }
}
