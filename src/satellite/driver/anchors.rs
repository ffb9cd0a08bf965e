//! What the loop does for the parent's authorities: it looks at the served trust bundle daily, and at once
//! when a heartbeat's answer hints that it is another one; what follows from it is durable before it counts.

use std::time::Duration;

use super::{Driver, exchange};
use crate::base::limit::error_chain;
use crate::base::time::Moment;
use crate::contract::invitation::CaFingerprint;
use crate::contract::message::TrustBundle;
use crate::identity::anchors::Anchors;
use crate::identity::succession::{self, Followed, ServedBundle};
use crate::machine::child::ChildEvent;
use crate::machine::membership::FollowedAnchors;

/// How often the bundle is looked at without a hint.
const LOOK_AT_BUNDLE: Duration = Duration::from_secs(24 * 3_600);

/// When it is looked at first in a run: a start has more urgent things to do.
const FIRST_LOOK: Duration = Duration::from_secs(3_600);

/// Least distance of two looks, whatever is hinted: a parent whose bundle cannot be followed hints each minute.
const LOOKS_DISTANCE: Duration = Duration::from_secs(600);

/// Most hints of one heartbeat's answer that are read.
const HINTS_MAX: usize = succession::AUTHORITIES_MAX * 2;

/// What is known of the parent's bundle.
#[derive(Debug)]
pub(super) struct BundleWatch {
    /// When to look again without a hint.
    due: Moment,
    /// When it was last asked for.
    asked: Option<Moment>,
    /// As it was served, until it was followed.
    served: Option<TrustBundle>,
    /// Authorities in it that no known one has vouched for, or what else is wrong with it, in words.
    pub(super) trouble: Option<String>,
}

impl BundleWatch {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            due: now.plus(FIRST_LOOK),
            asked: None,
            served: None,
            trouble: None,
        }
    }

    pub(super) fn take(&mut self, bundle: TrustBundle) {
        self.served = Some(bundle);
    }
}

impl Driver {
    /// A heartbeat was acknowledged: over the same tunnel the bundle is asked for where that is due.
    pub(super) fn look_at_bundle(&mut self, hints: &[String]) {
        let now = self.clock.now();
        let hinted = !hints.is_empty() && self.differs(hints);
        let rested = self
            .bundle
            .asked
            .is_none_or(|asked| now >= asked.plus(LOOKS_DISTANCE));
        if !(self.bundle.due <= now || (hinted && rested)) {
            return;
        }
        let Some(parent) = self
            .machine
            .membership()
            .map(|membership| membership.parent.clone())
        else {
            return;
        };
        self.bundle.asked = Some(now);
        self.bundle.due = now.plus(LOOK_AT_BUNDLE);
        self.with_tunnel(|tunnel, reporter| exchange::trust_bundle(tunnel, reporter, parent));
    }

    /// Whether the parent names other authorities than those that are trusted.
    fn differs(&self, hints: &[String]) -> bool {
        let Some(known) = self.known_anchors() else {
            return false;
        };
        let hinted: Vec<CaFingerprint> = hints
            .iter()
            .take(HINTS_MAX)
            .filter_map(|hint| hint.parse().ok())
            .collect();
        !hinted.iter().all(|hint| known.contains(*hint))
            || !known.fingerprints().all(|held| hinted.contains(&held))
    }

    fn known_anchors(&self) -> Option<Anchors> {
        let membership = self.machine.membership()?;
        Anchors::from_pem(&membership.identity.certificate.ca_chain_pem).ok()
    }

    /// Follows a bundle that has come in.
    pub(super) async fn follow_bundle(&mut self) {
        let (Some(bundle), Some(known)) = (self.bundle.served.take(), self.known_anchors()) else {
            return;
        };
        let served = ServedBundle {
            ca_bundle_pem: &bundle.ca_bundle_pem,
            cross_certificates_pem: bundle.cross_certificates_pem.as_deref(),
        };
        let trouble = match succession::follow(&known, served, self.clock.trusted().now) {
            Ok(Followed { anchors, unvouched }) => {
                self.adopt(&known, &anchors).await;
                (!unvouched.is_empty()).then(|| {
                    let unvouched: Vec<_> = unvouched.iter().map(ToString::to_string).collect();
                    format!(
                        "the parent serves an authority that none of the known ones has vouched for, and which is not \
                         trusted: {}",
                        unvouched.join(", ")
                    )
                })
            }
            Err(error) => Some(error_chain(&error)),
        };
        if let Some(trouble) = trouble
            .as_ref()
            .filter(|trouble| self.bundle.trouble.as_ref() != Some(*trouble))
        {
            tracing::warn!(reason = %trouble, "the parent's trust bundle is not followed");
        }
        self.bundle.trouble = trouble;
    }

    /// Makes the anchors durable, in the store and in the second copy, and only then takes them.
    async fn adopt(&mut self, known: &Anchors, anchors: &Anchors) {
        if anchors == known {
            return;
        }
        let Some(mut state) = self.machine.state().cloned() else {
            return;
        };
        let followed = FollowedAnchors {
            pem: anchors.to_pem(),
            fingerprints: anchors.fingerprints().collect(),
        };
        if let Some(membership) = state.membership_mut() {
            membership.follow(&followed);
        }
        if let Err(error) = self.save(&state).await {
            tracing::error!(error = %error_chain(&error), "the parent's new authorities could not be stored; trying again later");
            return;
        }
        let shown: Vec<_> = followed.fingerprints.iter().map(ToString::to_string).collect();
        tracing::info!(anchors = %shown.join(", "), "the parent's authorities are others now, vouched for by the ones before");
        self.tell(ChildEvent::AnchorsFollowed(followed));
    }
}
