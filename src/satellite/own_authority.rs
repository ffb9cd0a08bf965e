//! The authority of a box that certifies itself: how the next one is made, what the owner may ask, and how both are
//! told. When what happens is decided by [`crate::machine::own_authority`].

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::exchange::make_next_authority;
use super::status::AnchorReport;
use crate::audit::{AuditAction, AuditEvent};
use crate::base::id::PeerId;
use crate::base::time::{UnixTime, rfc3339};
use crate::identity::certificate::CertificateFacts;
use crate::identity::own_authority::OwnAuthorityError;
use crate::machine::membership::{KeptAuthority, Membership};
use crate::machine::own_authority::{
    Retirement, Succession, SuccessionRefused, SuccessionStage, rotation_due,
};
use crate::store::database::StoreError;

/// Why an authority was not changed.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// The box has not joined.
    #[error("this box has not joined a parent, so it has no authority of its own")]
    NotJoined,
    /// Its parent certifies it.
    #[error(
        "this box is certified by its parent and has no authority of its own; the parent's operator rotates the parent's"
    )]
    CertifiedByParent,
    /// Not now.
    #[error(transparent)]
    Refused(#[from] SuccessionRefused),
    /// There is no new one.
    #[error("the new authority could not be made; nothing was changed")]
    Make(#[source] OwnAuthorityError),
    /// It is not durable.
    #[error("the change of the authority could not be stored; nothing was changed")]
    Store(#[source] StoreError),
}

/// What the owner asks of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorityWish {
    /// Go over to a new one.
    Rotate,
    /// Serve the old one no more.
    Retire(Retirement),
}

/// The authority of a membership that has one.
pub(super) fn own_of(membership: Option<&Membership>) -> Result<(PeerId, &KeptAuthority), AuthorityError> {
    let membership = membership.ok_or(AuthorityError::NotJoined)?;
    let own = membership.own_authority.as_ref();
    Ok((membership.peer_id, own.ok_or(AuthorityError::CertifiedByParent)?))
}

/// A change that begins.
pub(super) fn announce(own: &KeptAuthority, now: UnixTime) -> Result<Succession, OwnAuthorityError> {
    let (next, cross_pem) = make_next_authority(own, now)?;
    Ok(Succession::announced(
        next,
        own.certificate_pem.clone(),
        cross_pem,
        now,
    ))
}

/// What becomes of a change by the owner's wish: as it is to be kept, none where nothing is; and the event that
/// tells it.
pub(super) fn by_wish(
    wish: AuthorityWish,
    membership: Option<&Membership>,
    under_way: Option<&Succession>,
    now: UnixTime,
) -> Result<(Option<Succession>, AuditEvent), AuthorityError> {
    let (peer, own) = own_of(membership)?;
    let under_way = under_way.filter(|succession| succession.concerns(own));
    let event = |action, certificate_pem: &str| AuditEvent {
        actor: Some("owner".to_owned()),
        ..changed(peer, action, certificate_pem)
    };
    match (wish, under_way) {
        (AuthorityWish::Rotate, None) => {
            let begun = announce(own, now).map_err(AuthorityError::Make)?;
            let event = event(AuditAction::AuthorityRotated, &begun.next_pem);
            Ok((Some(begun), event))
        }
        (AuthorityWish::Rotate, Some(under_way)) => Err(SuccessionRefused::UnderWay {
            begun_at: under_way.begun_at,
        }
        .into()),
        (AuthorityWish::Retire(_), None) => Err(SuccessionRefused::NothingToRetire.into()),
        (AuthorityWish::Retire(how), Some(under_way)) => {
            under_way.may_retire(how)?;
            Ok((
                None,
                event(AuditAction::AuthorityRetired, &under_way.previous_pem),
            ))
        }
    }
}

/// For the audit log.
pub(super) fn changed(peer: PeerId, action: AuditAction, certificate_pem: &str) -> AuditEvent {
    let facts = CertificateFacts::of_pem(certificate_pem).ok();
    AuditEvent {
        federation_peer_id: Some(peer),
        object: facts.map(|facts| facts.fingerprint.to_string()),
        ..AuditEvent::of(action)
    }
}

/// How the box's own authority stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityReport {
    /// The one that issues, as long as it is not being changed.
    pub issuing: AnchorReport,
    /// When the next one follows by itself.
    #[serde(with = "rfc3339")]
    pub rotation_due: UnixTime,
    /// A change under way.
    #[serde(default)]
    pub succession: Option<SuccessionReport>,
}

/// A change of the authority that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuccessionReport {
    /// `announced`: the parent may fetch the new one; `proving`: a certificate of the new one is tried; `overlap`:
    /// the new one issues, and the old one is still served.
    pub stage: String,
    /// The new one; in the overlap, the old one.
    pub other: AnchorReport,
    /// Since when.
    #[serde(with = "rfc3339")]
    pub begun_at: UnixTime,
    /// When the parent fetched both first.
    #[serde(default, with = "rfc3339::option")]
    pub fetched_at: Option<UnixTime>,
    /// When the new one is tried, fetched or not.
    #[serde(default, with = "rfc3339::option")]
    pub try_at: Option<UnixTime>,
}

impl AuthorityReport {
    /// `None` where the parent certifies this box.
    pub fn of(membership: Option<&Membership>, succession: Option<&Succession>) -> Option<Self> {
        let own = membership?.own_authority.as_ref()?;
        let facts = CertificateFacts::of_pem(&own.certificate_pem).ok()?;
        let succession = succession.filter(|succession| succession.concerns(own));
        Some(Self {
            rotation_due: rotation_due(facts.not_before, facts.not_after),
            issuing: AnchorReport::of_facts(&facts),
            succession: succession.and_then(SuccessionReport::of),
        })
    }
}

impl SuccessionReport {
    fn of(succession: &Succession) -> Option<Self> {
        let (stage, other, try_at) = match &succession.stage {
            SuccessionStage::Announced { try_at, .. } => ("announced", &succession.next_pem, Some(*try_at)),
            SuccessionStage::Proving { .. } => ("proving", &succession.next_pem, None),
            SuccessionStage::Overlap { .. } => ("overlap", &succession.previous_pem, None),
        };
        let other = CertificateFacts::of_pem(other).ok()?;
        Some(Self {
            stage: stage.to_owned(),
            other: AnchorReport::of_facts(&other),
            begun_at: succession.begun_at,
            fetched_at: succession.fetched_at,
            try_at,
        })
    }
}
