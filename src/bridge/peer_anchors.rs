//! The authorities of peers that certify themselves (contract section 3, symmetric trust), each for its own peer
//! alone: what listeners look up by the name in a certificate while a handshake runs. In memory; the registry
//! keeps them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::CertificateDer;
use tokio::sync::Notify;

use crate::base::id::PeerId;
use crate::contract::invitation::CaFingerprint;
use crate::identity::anchors::Anchors;
use crate::identity::certificate::peer_id_of;
use crate::identity::tls::OwnAnchors;

/// See the module's text.
#[derive(Debug, Default)]
pub struct PeerAnchors {
    known: RwLock<BTreeMap<PeerId, Arc<Anchors>>>,
    differing: Notify,
}

impl PeerAnchors {
    /// Of the peers that the registry has.
    pub fn new(known: impl IntoIterator<Item = (PeerId, Anchors)>) -> Self {
        let known = known.into_iter().map(|(peer, anchors)| (peer, Arc::new(anchors)));
        Self {
            known: RwLock::new(known.collect()),
            differing: Notify::new(),
        }
    }

    /// What a peer certifies itself by, if it does.
    pub fn get(&self, peer: PeerId) -> Option<Arc<Anchors>> {
        // Each change is one insert or remove.
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&peer).cloned()
    }

    /// Those that certify themselves.
    pub fn peers(&self) -> Vec<PeerId> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.keys().copied().collect()
    }

    /// A peer that certifies itself names its authorities: whoever follows bundles hears of it where they are others.
    pub fn hint(&self, peer: PeerId, named: &[CaFingerprint]) {
        let Some(known) = self.get(peer) else { return };
        let same = known.fingerprints().all(|held| named.contains(&held))
            && named.iter().all(|named| known.contains(*named));
        if !named.is_empty() && !same {
            self.differing.notify_one();
        }
    }

    /// Waits for such a hint. Cancel safe.
    pub async fn differing(&self) {
        self.differing.notified().await;
    }

    /// The peer certifies itself by these from now on, or does not any more.
    pub fn set(&self, peer: PeerId, anchors: Option<Anchors>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match anchors {
            Some(anchors) => known.insert(peer, Arc::new(anchors)),
            None => known.remove(&peer),
        };
    }
}

impl OwnAnchors for PeerAnchors {
    fn of(&self, certificate: &CertificateDer<'_>) -> Option<Arc<Anchors>> {
        self.get(peer_id_of(certificate)?)
    }
}
