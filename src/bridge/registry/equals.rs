//! Peers that certify themselves: by what, as the store and the listeners know it.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use thiserror::Error;

use super::Registry;
use super::record::{PEER_AUTHORITIES, PeerAuthorityRecord, PeerRecord};
use crate::base::id::{PeerId, PublicKeyDigest};
use crate::base::time::UnixTime;
use crate::bridge::acceptance::OfferedAuthority;
use crate::bridge::peer_anchors::PeerAnchors;
use crate::identity::anchors::Anchors;
use crate::identity::succession::{self, BundleError, Followed, ServedBundle, has_issued};
use crate::store::database::{Reader, StoreError, Writer};

/// Why a peer's bundle was not followed. Its anchors are as they were.
#[derive(Debug, Error)]
pub enum FollowError {
    /// The peer does not certify itself.
    #[error("the peer does not certify itself")]
    NoEqual,
    /// The bundle.
    #[error("the peer's trust bundle cannot be followed")]
    Bundle(#[from] BundleError),
    /// The disk.
    #[error("the peer's new authorities could not be recorded")]
    Store(#[from] StoreError),
}

/// Those of the store. A row that does not read lets nobody in.
pub(super) fn load(r: &Reader) -> Result<PeerAnchors, StoreError> {
    let rows = r.list(&PEER_AUTHORITIES)?;
    let readable = rows.into_iter().filter_map(|(peer, record)| match Anchors::from_pem(&record.anchors_pem) {
        Ok(anchors) => Some((peer, anchors)),
        Err(error) => {
            tracing::error!(%peer, %error, "a peer's own authorities cannot be read; it is not let in until it accepts again");
            None
        }
    });
    Ok(PeerAnchors::new(readable))
}

/// Keeps what a peer has accepted with; a peer whose key was certified here has none.
pub(super) fn keep(
    w: &mut Writer<'_>,
    peer: PeerId,
    offered: Option<&OfferedAuthority>,
) -> Result<(), StoreError> {
    match offered {
        Some(offered) => {
            let record = PeerAuthorityRecord {
                anchors_pem: offered.anchors.to_pem(),
                caller_subject: offered.caller_subject.clone(),
            };
            w.put(&PEER_AUTHORITIES, &peer, &record)
        }
        None => w.remove(&PEER_AUTHORITIES, &peer).map(|_| ()),
    }
}

impl Registry {
    /// What listeners know such peers by.
    pub const fn peer_anchors(&self) -> &Arc<PeerAnchors> {
        &self.peer_anchors
    }

    /// Whether a verified certificate's key is one that the peer has enrolled. Who certifies itself enrols
    /// its keys by signing them, which the handshake has verified.
    pub fn is_enrolled(&self, peer: &PeerRecord, key: PublicKeyDigest) -> bool {
        self.peer_anchors.get(peer.id).is_some()
            || peer.certificates.iter().any(|certificate| certificate.key == key)
    }

    /// Whether the authority that has issued a verified certificate counts still: connections outlive a retired one.
    pub fn has_authority(&self, peer: PeerId, certificate: &CertificateDer<'_>) -> bool {
        self.peer_anchors.get(peer).is_some()
            || self
                .authorities()
                .anchors()
                .certificates()
                .iter()
                .any(|authority| has_issued(authority, certificate))
    }

    /// Follows a peer's own trust bundle, as satellites follow this bridge's. Whether its anchors changed.
    pub fn follow_peer(
        &self,
        peer: PeerId,
        served: ServedBundle<'_>,
        now: UnixTime,
    ) -> Result<bool, FollowError> {
        let known = self.peer_anchors.get(peer).ok_or(FollowError::NoEqual)?;
        let Followed { anchors, .. } = succession::follow(&known, served, now)?;
        if anchors == *known {
            return Ok(false);
        }
        self.db.write(|w| {
            let mut record = w.get(&PEER_AUTHORITIES, &peer)?.ok_or(FollowError::NoEqual)?;
            record.anchors_pem = anchors.to_pem();
            w.put(&PEER_AUTHORITIES, &peer, &record)?;
            Ok::<_, FollowError>(())
        })?;
        self.peer_anchors.set(peer, Some(anchors));
        Ok(true)
    }
}
