//! The authorities of peers that certify themselves (contract section 3, symmetric trust), each for its own peer
//! alone: what listeners look up by the name in a certificate while a handshake runs. In memory; the registry
//! keeps them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::CertificateDer;

use crate::base::id::PeerId;
use crate::identity::anchors::Anchors;
use crate::identity::certificate::peer_id_of;
use crate::identity::tls::OwnAnchors;

/// See the module's text.
#[derive(Debug, Default)]
pub struct PeerAnchors(RwLock<BTreeMap<PeerId, Arc<Anchors>>>);

impl PeerAnchors {
    /// Of the peers that the registry has.
    pub fn new(known: impl IntoIterator<Item = (PeerId, Anchors)>) -> Self {
        let known = known.into_iter().map(|(peer, anchors)| (peer, Arc::new(anchors)));
        Self(RwLock::new(known.collect()))
    }

    /// What a peer certifies itself by, if it does.
    pub fn get(&self, peer: PeerId) -> Option<Arc<Anchors>> {
        // Each change is one insert or remove.
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&peer).cloned()
    }

    /// Those that certify themselves.
    pub fn peers(&self) -> Vec<PeerId> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.keys().copied().collect()
    }

    /// The peer certifies itself by these from now on, or does not any more.
    pub fn set(&self, peer: PeerId, anchors: Option<Anchors>) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
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
