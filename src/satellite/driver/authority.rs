//! What the loop does for the box's own authority, where it certifies itself: it serves what the parent verifies it
//! by, notes what of that was fetched, and carries a change of the authority out, each step durable before it counts.

use std::time::Duration;

use super::Driver;
use crate::audit::AuditAction;
use crate::base::limit::error_chain;
use crate::base::time::{Moment, UnixTime};
use crate::contract::message::TrustBundle;
use crate::identity::anchors::Anchors;
use crate::identity::certificate::CertificateFacts;
use crate::identity::own_authority::has_issued;
use crate::machine::child::ChildEvent;
use crate::machine::membership::{KeptAuthority, Membership};
use crate::machine::own_authority::{AuthorityFacts, AuthorityStep, Succession, next_step};
use crate::satellite::own_authority::{self, AuthorityError, AuthorityReport, AuthorityWish};

/// From a step that could not be made durable to the next try: a full disk is not emptied in less.
const STEP_RETRY: Duration = Duration::from_secs(60);

/// What is known of a change of the authority.
#[derive(Debug)]
pub(super) struct AuthorityCare {
    kept: Option<Succession>,
    /// Whether the renewal under the new authority was asked for in this run.
    asked: bool,
    /// No step before then.
    due: Moment,
}

impl AuthorityCare {
    pub(super) const fn new(kept: Option<Succession>) -> Self {
        Self {
            kept,
            asked: false,
            due: Moment::START,
        }
    }
}

impl Driver {
    /// Serves what there is and does the next step of a change, if one is due. Whether the machine was told of
    /// something.
    pub(super) async fn keep_authority(&mut self) -> bool {
        let announces = self.serve_trust();
        if announces {
            // The parent hears soon that there is something to fetch.
            self.tell(ChildEvent::ContentChanged);
        }
        if self.authority.due > self.clock.now() {
            return announces;
        }
        self.forget_stale().await;
        self.take_fetched().await;
        let Some(step) = self.authority_step() else {
            return announces;
        };
        let done = self.take_step(step).await;
        if !done {
            self.authority.due = self.clock.now().plus(STEP_RETRY);
        }
        done || announces
    }

    /// What the owner asks.
    pub(super) async fn authority_wish(
        &mut self,
        wish: AuthorityWish,
    ) -> Result<AuthorityReport, AuthorityError> {
        let now = self.clock.trusted().now;
        let kept = self.authority.kept.as_ref();
        let (kept, event) = own_authority::by_wish(wish, self.machine.membership(), kept, now)?;
        self.store
            .save_succession(kept.as_ref())
            .await
            .map_err(AuthorityError::Store)?;
        self.authority = AuthorityCare::new(kept);
        self.audit.record(&event);
        tracing::info!(
            ?wish,
            authority = event.object,
            "the owner changes the box's own authority"
        );
        self.authority_report().ok_or(AuthorityError::NotJoined)
    }

    pub(super) fn authority_report(&self) -> Option<AuthorityReport> {
        AuthorityReport::of(self.machine.membership(), self.authority.kept.as_ref())
    }

    /// What issues this box's certificates now, and what goes along in their chain.
    pub(super) fn own_issuer(&self, own: &KeptAuthority) -> (KeptAuthority, Option<String>) {
        match &self.authority.kept {
            Some(succession) if succession.concerns(own) => {
                let (issuer, word) = succession.issuer(own);
                (issuer, word.map(str::to_owned))
            }
            _ => (own.clone(), None),
        }
    }

    /// Whether an equal serves others than before.
    fn serve_trust(&self) -> bool {
        let Some(surroundings) = &self.surroundings else {
            return false;
        };
        let membership = self.machine.membership();
        let bundle = membership.map_or_else(TrustBundle::default, |membership| self.bundle_of(membership));
        let before = surroundings.trust.send_replace(bundle.clone());
        let is_equal = membership.is_some_and(|membership| membership.own_authority.is_some());
        is_equal && before != bundle && !before.ca_bundle_pem.is_empty()
    }

    fn bundle_of(&self, membership: &Membership) -> TrustBundle {
        let (ca_bundle_pem, cross) = match (&membership.own_authority, &self.authority.kept) {
            (Some(own), Some(succession)) if succession.concerns(own) => {
                (succession.bundle_pem(), Some(succession.cross_pem.clone()))
            }
            // What an equal is verified by.
            (Some(own), _) => (own.certificate_pem.clone(), None),
            (None, _) => (membership.identity.certificate.ca_chain_pem.clone(), None),
        };
        TrustBundle {
            ca_bundle_pem,
            cross_certificates_pem: cross,
        }
    }

    /// Their fingerprints, for whoever verifies this box by them; none where the parent certifies it.
    pub(super) fn own_authorities(&self, membership: &Membership) -> Vec<String> {
        if membership.own_authority.is_none() {
            return Vec::new();
        }
        let anchors = Anchors::from_pem(&self.bundle_of(membership).ca_bundle_pem);
        anchors.map_or_else(
            |_| Vec::new(),
            |anchors| anchors.fingerprints().map(|held| held.to_string()).collect(),
        )
    }

    /// A change that was under way in a peering before this one is over with that, and so is its key.
    async fn forget_stale(&mut self) {
        let (Some(membership), Some(kept)) = (self.machine.membership(), &self.authority.kept) else {
            return;
        };
        let own = membership.own_authority.as_ref();
        if own.is_some_and(|own| kept.concerns(own)) {
            return;
        }
        match self.store.save_succession(None).await {
            Ok(()) => self.authority = AuthorityCare::new(None),
            Err(error) => {
                self.authority.due = self.clock.now().plus(STEP_RETRY);
                tracing::warn!(error = %error_chain(&error), "the next authority of a peering before could not be forgotten");
            }
        }
    }

    /// Notes that the parent has fetched the new authority.
    async fn take_fetched(&mut self) {
        let Some(surroundings) = &self.surroundings else {
            return;
        };
        let fetched = surroundings.trust_fetched.send_replace(None);
        let Some(kept) = &mut self.authority.kept else {
            return;
        };
        if fetched.is_some_and(|pem| pem.contains(&kept.next_pem)) && kept.fetched(self.clock.trusted().now) {
            tracing::info!("the parent has fetched this box's new authority");
            if let Err(error) = self.store.save_succession(Some(kept)).await {
                // It is fetched again, and a step that is due stores it, too.
                tracing::warn!(error = %error_chain(&error), "that the new authority was fetched could not be stored");
            }
        }
    }

    fn authority_step(&self) -> Option<AuthorityStep> {
        let membership = self.machine.membership()?;
        let own = membership.own_authority.as_ref()?;
        let kept = self.authority.kept.as_ref();
        let facts = CertificateFacts::of_pem(&own.certificate_pem).ok()?;
        let in_use = &membership.identity.certificate.cert_pem;
        let facts = AuthorityFacts {
            not_before: facts.not_before,
            not_after: facts.not_after,
            previous_ends: kept.and_then(|kept| ends(&kept.previous_pem)),
            is_next_in_use: kept.is_some_and(|kept| has_issued(&kept.next_pem, in_use)),
            renewal: membership.candidate.is_some(),
            asked: self.authority.asked,
        };
        next_step(kept, &facts, self.clock.trusted().now)
    }

    /// Whether it is done, and durable.
    async fn take_step(&mut self, step: AuthorityStep) -> bool {
        let now = self.clock.trusted().now;
        let Some((peer, own)) = own_authority::own_of(self.machine.membership())
            .ok()
            .map(|(peer, own)| (peer, own.clone()))
        else {
            return false;
        };
        if step == AuthorityStep::Renew {
            self.authority.asked = true;
            self.tell(ChildEvent::RenewalWanted);
            return true;
        }
        let kept = match (step, self.authority.kept.clone()) {
            (AuthorityStep::Announce, _) => match own_authority::announce(&own, now) {
                Ok(begun) => Some(begun),
                Err(error) => {
                    tracing::error!(error = %error_chain(&error), "the box's next authority could not be made; trying again");
                    return false;
                }
            },
            (_, Some(kept)) => {
                if step == AuthorityStep::Adopt && !self.adopt_authority(&kept, &own).await {
                    return false;
                }
                kept.after(step, now)
            }
            (_, None) => return false,
        };
        if let Err(error) = self.store.save_succession(kept.as_ref()).await {
            tracing::error!(error = %error_chain(&error), "the change of the box's own authority could not be stored; trying again");
            return false;
        }
        let before = std::mem::replace(&mut self.authority, AuthorityCare::new(kept)).kept;
        match (step, &self.authority.kept, before) {
            (AuthorityStep::Announce, Some(begun), _) => {
                let event = own_authority::changed(peer, AuditAction::AuthorityRotated, &begun.next_pem);
                self.audit.record(&event);
                tracing::info!(
                    next = event.object,
                    "the box's own authority is to be followed by the next"
                );
            }
            (AuthorityStep::Retire, _, Some(ended)) => {
                let event = own_authority::changed(peer, AuditAction::AuthorityRetired, &ended.previous_pem);
                self.audit.record(&event);
                tracing::info!(
                    retired = event.object,
                    "the box's authority of before is served no more"
                );
            }
            (AuthorityStep::Postpone { try_at }, ..) => {
                tracing::warn!(%try_at, "the parent did not take a certificate of this box's new authority; the old one goes on until then");
            }
            _ => tracing::info!(?step, "the box's own authority is being changed"),
        }
        true
    }

    /// The new authority becomes the membership's, durably.
    async fn adopt_authority(&mut self, succession: &Succession, own: &KeptAuthority) -> bool {
        let (Some(next), Some(mut state)) = (succession.next(), self.machine.state().cloned()) else {
            return false;
        };
        if own.certificate_pem == next.certificate_pem {
            return true;
        }
        if let Some(membership) = state.membership_mut() {
            membership.own_authority = Some(next.clone());
        }
        if let Err(error) = self.save(&state).await {
            tracing::error!(error = %error_chain(&error), "the box's new authority could not be stored; trying again");
            return false;
        }
        self.tell(ChildEvent::AuthorityAdopted(Box::new(next)));
        true
    }
}

fn ends(certificate_pem: &str) -> Option<UnixTime> {
    let facts = CertificateFacts::of_pem(certificate_pem).ok()?;
    Some(facts.not_after)
}
