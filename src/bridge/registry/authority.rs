//! Rotation of the certificate authority. One transaction puts the new authority in the old one's place
//! and keeps the old one's certificate with its word for the new one; the old key is gone with it. After the
//! overlap the old certificate goes, too, as soon as no certificate under it is of use any more.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;

use super::record::{AUTHORITY, AuthorityRecord, PEERS, PREDECESSOR, PredecessorRecord, SERVER};
use super::{OpenRegistryError, Registry};
use crate::base::time::UnixTime;
use crate::bridge::authorities::{Authorities, Predecessor};
use crate::bridge::certificate_authority::{
    CertificateAuthority, CreateAuthorityError, PEER_CERTIFICATE_LIFETIME, RestoreAuthorityError,
};
use crate::contract::peer::PeerStatus;
use crate::identity::anchors::Anchors;
use crate::process::entropy;
use crate::store::database::{Reader, StoreError};
use crate::store::record::Only;

/// A certificate that was issued while the rotation was under way may be of either authority: within this
/// time it counts as the old one's.
const ROTATION_MARGIN: Duration = Duration::from_secs(60);

/// Most peers that a refusal names.
const NAMED_MAX: usize = 5;

/// Why the authority was not rotated. Nothing was changed.
#[derive(Debug, Error)]
pub enum RotateError {
    /// The one before is still served.
    #[error(
        "a rotation is under way since {since}, and its overlap ends at {overlap_ends}: the old authority has to be retired \
         (ca retire) before the next rotation"
    )]
    UnderWay {
        /// When it began.
        since: UnixTime,
        /// When its overlap ends.
        overlap_ends: UnixTime,
    },
    /// No new one.
    #[error("the new authority could not be made; the present one stays")]
    Create(#[from] CreateAuthorityError),
    /// What was made cannot be used.
    #[error("the new authority cannot be used; the present one stays")]
    Unusable,
    /// The disk.
    #[error("the rotation could not be recorded; the present authority stays")]
    Store(#[from] StoreError),
}

/// Why the old authority was not retired. Nothing was changed.
#[derive(Debug, Error)]
pub enum RetireError {
    /// There is none.
    #[error("there is no authority to retire: the last rotation, if there was one, is complete")]
    Nothing,
    /// Satellites may not have heard of the new one.
    #[error(
        "the overlap ends at {overlap_ends}. With --force it ends now, and who has not heard of the new authority must \
         rejoin with a new token, as must who has a certificate of the old one: {}", in_words(.peers)
    )]
    Overlap {
        /// When it ends.
        overlap_ends: UnixTime,
        /// Who has certificates of the old one: names, or ids.
        peers: Vec<String>,
    },
    /// Certificates.
    #[error("certificates of the old authority are still in use by {}; with --force those peers must rejoin with a new token", in_words(.peers))]
    InUse {
        /// By whom: names, or ids.
        peers: Vec<String>,
    },
    /// The disk.
    #[error("the retirement could not be recorded; both authorities stay")]
    Store(#[from] StoreError),
}

fn in_words(peers: &[String]) -> String {
    if peers.is_empty() {
        return "nobody".to_owned();
    }
    let named = peers
        .iter()
        .take(NAMED_MAX)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match peers.len().saturating_sub(NAMED_MAX) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// Whether the overlap and the certificates are heeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retirement {
    /// Only when it harms nobody.
    InTime,
    /// Whatever it does.
    Forced,
}

impl Registry {
    /// Those that count now.
    pub fn authorities(&self) -> Arc<Authorities> {
        Arc::clone(&self.authorities.borrow())
    }

    /// The one that issues.
    pub fn authority(&self) -> Arc<CertificateAuthority> {
        Arc::clone(self.authorities.borrow().current())
    }

    /// What listeners verify peers by; changes with a rotation.
    pub fn anchors(&self) -> watch::Receiver<Arc<Anchors>> {
        self.anchors.subscribe()
    }

    /// Makes a new authority for which the present one vouches, and destroys the present one's key.
    pub fn rotate_authority(&self, overlap: Duration, now: UnixTime) -> Result<(), RotateError> {
        let next = self.db.write(|w| {
            if let Some(before) = w.get(&PREDECESSOR, &Only)? {
                return Err(RotateError::UnderWay {
                    since: before.rotated_at,
                    overlap_ends: before.overlap_ends,
                });
            }
            let current = self.authority();
            let succession = current.succeed(now, [entropy::bytes(), entropy::bytes()])?;
            let predecessor = PredecessorRecord {
                certificate_pem: current.certificate_pem(),
                cross_pem: succession.cross_pem(),
                rotated_at: now,
                overlap_ends: now.plus(overlap),
            };
            let record = AuthorityRecord {
                key: succession.next.expose_key().clone(),
                certificate_pem: succession.next.certificate_pem(),
                grant_secret: self.grant_key.to_secret(),
            };
            let authorities = with_predecessor(succession.next, Some(&predecessor))
                .ok()
                .flatten()
                .ok_or(RotateError::Unusable)?;
            w.put(&AUTHORITY, &Only, &record)?;
            w.put(&PREDECESSOR, &Only, &predecessor)?;
            // Of the old one; the next look at it issues another.
            w.remove(&SERVER, &Only)?;
            Ok(authorities)
        })?;
        self.announce(next);
        Ok(())
    }

    /// Ends the overlap: what the old authority has issued is not let in any more.
    pub fn retire_authority(&self, retirement: Retirement, now: UnixTime) -> Result<(), RetireError> {
        let alone = self.db.write(|w| {
            let before = w.get(&PREDECESSOR, &Only)?.ok_or(RetireError::Nothing)?;
            if retirement == Retirement::InTime {
                let peers = depending(w, before.rotated_at, now)?;
                if now < before.overlap_ends {
                    return Err(RetireError::Overlap {
                        overlap_ends: before.overlap_ends,
                        peers,
                    });
                }
                if !peers.is_empty() {
                    return Err(RetireError::InUse { peers });
                }
            }
            let record = w.get(&AUTHORITY, &Only)?.ok_or(RetireError::Nothing)?;
            let current = CertificateAuthority::restore(record.key, &record.certificate_pem)
                .map_err(|_| RetireError::Nothing)?;
            w.remove(&PREDECESSOR, &Only)?;
            Authorities::new(current, None)
                .ok()
                .flatten()
                .ok_or(RetireError::Nothing)
        })?;
        self.announce(alone);
        Ok(())
    }

    /// Peers that would have to rejoin if the old authority was retired now.
    pub fn depending_on_predecessor(&self, now: UnixTime) -> Result<Vec<String>, StoreError> {
        match self.authorities().predecessor() {
            Some(before) => self.db.read(|r| depending(r, before.rotated_at, now)),
            None => Ok(Vec::new()),
        }
    }

    fn announce(&self, authorities: Authorities) {
        let anchors = Arc::clone(authorities.anchors());
        self.authorities.send_replace(Arc::new(authorities));
        self.anchors.send_replace(anchors);
    }
}

/// The authorities of a store.
pub(super) fn restore(r: &Reader, current: CertificateAuthority) -> Result<Authorities, OpenRegistryError> {
    let predecessor = r.get(&PREDECESSOR, &Only)?;
    with_predecessor(current, predecessor.as_ref())
        .map_err(OpenRegistryError::Authority)?
        .ok_or(OpenRegistryError::Authority(RestoreAuthorityError::Mismatch))
}

fn with_predecessor(
    current: CertificateAuthority,
    predecessor: Option<&PredecessorRecord>,
) -> Result<Option<Authorities>, RestoreAuthorityError> {
    let before = match predecessor {
        None => None,
        Some(record) => {
            let read = Predecessor::read(
                &record.certificate_pem,
                &record.cross_pem,
                record.rotated_at,
                record.overlap_ends,
            );
            match read.map_err(RestoreAuthorityError::Certificate)? {
                Some(before) => Some(before),
                None => return Ok(None),
            }
        }
    };
    Authorities::new(current, before).map_err(RestoreAuthorityError::Certificate)
}

/// A certificate's life is the same for all, so that its end tells who has issued it.
fn depending(r: &Reader, rotated_at: UnixTime, now: UnixTime) -> Result<Vec<String>, StoreError> {
    let last_of_old = rotated_at.plus(PEER_CERTIFICATE_LIFETIME).plus(ROTATION_MARGIN);
    let peers = r.list(&PEERS)?.into_iter().map(|(_, peer)| peer);
    Ok(peers
        .filter(|peer| peer.status != PeerStatus::Revoked)
        .filter(|peer| {
            peer.certificates
                .iter()
                .any(|issued| issued.not_after >= now && issued.not_after <= last_of_old)
        })
        .map(|peer| peer.name.unwrap_or_else(|| peer.id.to_string()))
        .collect())
}
