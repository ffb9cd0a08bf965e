//! The renewal within a satellite's machine: its machine's actions, and what it keeps in the membership.

use super::{ChildAction, ChildMachine, KeyUse, LinkPurpose, Phase};
use crate::base::time::{Moment, UnixTime};
use crate::machine::membership::Membership;
use crate::machine::renewal::{IdentityChoice, RenewalAction, RenewalEvent};

impl ChildMachine {
    /// A refusal speaks against a candidate, if it was one that was presented; an absent network does
    /// not.
    pub(super) fn identity_refused(&mut self, now: Moment, wall: UnixTime) {
        self.refused = true;
        if self.purpose == Some(LinkPurpose::Member(IdentityChoice::Candidate)) {
            self.renewal_event(RenewalEvent::CandidateRefused, now, wall);
        }
    }

    pub(super) fn renewal_event(&mut self, event: RenewalEvent, now: Moment, wall: UnixTime) {
        if let Phase::Member(member) = &mut self.phase {
            member.renewal.handle_event(event, now, wall);
        }
    }

    pub(super) fn drain_renewal(&mut self) {
        loop {
            let Phase::Member(member) = &mut self.phase else {
                return;
            };
            let Some(action) = member.renewal.poll_action() else {
                return;
            };
            match action {
                RenewalAction::GenerateKey => {
                    let common_name = member
                        .state
                        .membership()
                        .map_or_else(String::new, |m| format!("fed:{}", m.peer_id));
                    self.actions.push_back(ChildAction::GenerateKey {
                        purpose: KeyUse::Federation,
                        common_name,
                        kept: None,
                    });
                }
                RenewalAction::SendRefresh { .. } => {
                    if let Some(key) = &member.renewal_key {
                        self.actions.push_back(ChildAction::SendRefresh {
                            key: Box::new(key.clone()),
                        });
                    }
                }
                RenewalAction::Store(candidate) => self.store_candidate(move |membership| {
                    membership.candidate = candidate;
                }),
                RenewalAction::Commit(identity) => {
                    self.presents_committed = self.uplinks.primary().is_some();
                    self.store_candidate(move |membership| {
                        membership.identity = identity;
                        membership.candidate = None;
                    });
                }
            }
        }
    }

    pub(super) fn store_candidate(&mut self, change: impl FnOnce(&mut Membership)) {
        let sequence = self.update_member(|state| {
            if let Some(membership) = state.membership_mut() {
                change(membership);
            }
            true
        });
        if let Phase::Member(member) = &mut self.phase {
            member.renewal_waits_for = sequence;
        }
    }
}
