//! What the loop does for a join: it takes the invitation, or gives a rejoin up, makes the key, checks the answer,
//! and notes the peering that comes of it.

use super::{CancelRejoinError, Driver, JoinCommandError, RejoinCancelled, exchange};
use crate::audit::{AuditAction, AuditEvent};
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::machine::child::{ChildEvent, InvitationRefused, KeyUse, Rejoin, RejoinMode};
use crate::machine::join::{CancelRefused, JoinEvent, JoinState};
use crate::machine::membership::{AcceptedAnswer, KeyMaterial, Parent, StoredInvitation};
use crate::machine::past::Past;
use crate::satellite::report::Failures;

impl Driver {
    /// An equal brings an authority of its own, the same to the same parent.
    fn certify_itself(&self, invitation: &mut StoredInvitation) -> Result<(), JoinCommandError> {
        if !invitation.spawn_mode.between_equals() {
            return Ok(());
        }
        let before = self
            .machine
            .state()
            .filter(|state| state.parent().url == invitation.parent.url);
        let kept = before.and_then(|state| match (state.invitation(), state.membership()) {
            (Some(before), _) => before.own_authority.clone(),
            (None, Some(membership)) => membership.own_authority.clone(),
            (None, None) => None,
        });
        let now = self.clock.trusted().now;
        invitation.own_authority = Some(match kept {
            Some(kept) if exchange::is_good(&kept, now) => kept,
            _ => exchange::make_own_authority(now).map_err(JoinCommandError::Authority)?,
        });
        Ok(())
    }

    pub(super) async fn join(
        &mut self,
        mut invitation: Box<StoredInvitation>,
        rejoin: Option<Rejoin>,
    ) -> Result<(), JoinCommandError> {
        let (state, wall) = (self.machine.state(), self.clock.trusted().now);
        invitation.past = match (rejoin, state) {
            (Some(rejoin), Some(state)) => {
                let heard = self.facts.last_acknowledged_at;
                self.machine
                    .may_rejoin(&invitation.parent.url, rejoin, heard, wall)?;
                if rejoin.mode == RejoinMode::AsBefore {
                    invitation.spawn_mode = state.spawn_mode().unwrap_or(invitation.spawn_mode);
                }
                Past::rejoining(state, rejoin.grants)
            }
            (Some(_), None) => return Err(InvitationRefused::NothingToRejoin.into()),
            (None, state) => {
                self.machine.may_invite()?;
                Past::of(state, wall)
            }
        };
        if self
            .machine
            .state()
            .is_some_and(|state| state.is_under_way(&invitation))
        {
            tracing::info!(parent = %invitation.parent.url, "invited again; the join goes on");
            self.tell(ChildEvent::RetryNow);
            return Ok(());
        }
        self.certify_itself(&mut invitation)?;
        let state = JoinState::invited((*invitation).clone(), self.machine.state());
        self.save(&state).await.map_err(JoinCommandError::Save)?;
        tracing::info!(parent = %invitation.parent.url, "invited");
        if let Some(minted) = invitation.minted_at {
            self.learn_time(minted);
        }
        self.failures = Failures::default();
        self.tell(ChildEvent::Invited(invitation));
        Ok(())
    }

    /// Back to the membership that a rejoin was to replace.
    pub(super) async fn cancel_rejoin(&mut self) -> Result<RejoinCancelled, CancelRejoinError> {
        let state = self.machine.state().ok_or(CancelRefused::NotUnderWay)?;
        let cancelled = RejoinCancelled::of(state)?;
        let before = state.without_rejoin()?;
        self.save(&before).await.map_err(CancelRejoinError::Save)?;
        tracing::info!(peer = %cancelled.peer_id, "the rejoin is given up; the membership of before goes on");
        self.failures = Failures::default();
        self.tell(ChildEvent::RejoinCancelled);
        Ok(cancelled)
    }

    pub(super) fn generate_key(&mut self, purpose: KeyUse, common_name: &str, kept: Option<Secret>) {
        match exchange::key_and_request(common_name, kept) {
            Ok(key) => self.tell(ChildEvent::KeyGenerated(purpose, key)),
            // Without randomness the process cannot go on; the entropy check at start has passed,
            // so this is the crypto library refusing its own key.
            Err(error) => tracing::error!(%error, "no key can be made; restart the daemon"),
        }
    }

    pub(super) fn verify(&mut self, parent: &Parent, answer: &AcceptedAnswer, key: &KeyMaterial) {
        let trusted = self.clock.trusted();
        let invitation = self.machine.state().and_then(JoinState::invitation);
        let own = invitation.and_then(|invitation| invitation.own_authority.as_ref());
        let verdict = exchange::verify_accept(parent, answer, key, own, trusted);
        if let JoinEvent::CertificateVerified { not_before, .. } = &verdict
            && trusted.doubt.is_some()
        {
            self.learn_time(*not_before);
        }
        self.tell(ChildEvent::Join(verdict));
    }

    /// A time that has certainly come: the parent has signed it, or made an invitation then.
    pub(super) fn learn_time(&self, passed: UnixTime) {
        if Some(passed) > self.clock.seen_from_parent() {
            self.clock.restore_parent_time(passed);
        }
    }

    /// The peering that this box has just entered, for the audit log.
    pub(super) fn note_join(&mut self, state: &JoinState) {
        let Some(membership) = state.membership() else {
            return;
        };
        if self.joined_as.replace(membership.peer_id) != Some(membership.peer_id) {
            self.audit.record(&AuditEvent {
                federation_peer_id: Some(membership.peer_id),
                remote_subject: Some(membership.parent.url.host().host().to_owned()),
                object: Some(membership.parent.url.to_string()),
                ..AuditEvent::of(AuditAction::Joined)
            });
        }
    }
}
