//! The join within a satellite's machine: what begins and ends it, and its machine's actions.

use super::{ChildAction, ChildMachine, KeyUse, Phase};
use crate::base::time::{Moment, UnixTime};
use crate::machine::join::{Farewell, JoinAction, JoinEvent, JoinState};
use crate::machine::ladder::LadderEvent;
use crate::machine::membership::StoredInvitation;

impl ChildMachine {
    pub(super) fn invited(&mut self, invitation: StoredInvitation, now: Moment, wall: UnixTime) {
        if invitation.past.membership.is_none() && self.may_invite().is_err() {
            return;
        }
        if self.state().is_some_and(|state| state.is_under_way(&invitation)) {
            self.uplinks.tell_all(&LadderEvent::RetryNow, now);
            return;
        }
        self.uplinks.disable(now);
        self.purpose = None;
        self.follow_primary(now, wall);
        let state = JoinState::invited(invitation, self.state());
        self.phase = self.phase_of(state);
        self.expired_for_good = false;
    }

    pub(super) fn rejoin_cancelled(&mut self, now: Moment, wall: UnixTime) {
        let Some(Ok(state)) = self.state().map(JoinState::without_rejoin) else {
            return;
        };
        self.uplinks.disable(now);
        self.purpose = None;
        self.follow_primary(now, wall);
        self.phase = self.phase_of(state);
    }

    /// What is left of the membership is the record of it; the driver has made that durable.
    pub(super) fn left(&mut self, farewell: Farewell, now: Moment, wall: UnixTime) {
        self.uplinks.disable(now);
        self.purpose = None;
        self.follow_primary(now, wall);
        self.phase = self.phase_of(JoinState::Left(farewell));
    }

    pub(super) fn join_event(&mut self, event: JoinEvent, now: Moment, wall: UnixTime) {
        if let Phase::Joining { machine, .. } = &mut self.phase {
            machine.handle_event(event, now, wall);
        }
    }

    pub(super) fn drain_join(&mut self) {
        let Phase::Joining { machine, waits_for } = &mut self.phase else {
            return;
        };
        while let Some(action) = machine.poll_action() {
            self.actions.push_back(match action {
                JoinAction::GenerateKey { kept } => ChildAction::GenerateKey {
                    kept,
                    purpose: KeyUse::Federation,
                    common_name: "powernode-satellite".to_owned(),
                },
                JoinAction::Persist(state) => {
                    self.sequence += 1;
                    *waits_for = Some(self.sequence);
                    ChildAction::Persist(self.sequence, state)
                }
                JoinAction::SendAccept { invitation, csr_pem } => {
                    ChildAction::SendAccept { invitation, csr_pem }
                }
                JoinAction::VerifyCertificate { parent, answer, key } => {
                    ChildAction::VerifyCertificate { parent, answer, key }
                }
            });
        }
    }
}
