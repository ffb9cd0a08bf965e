//! Who calls: what the connection and its handshake say of it, and nothing that the caller says itself.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use crate::base::id::{CertificateDigest, NetworkId, PeerId, PublicKeyDigest};
use crate::base::time::UnixTime;
use crate::bridge::reply::Reply;
use crate::contract::CERTIFICATE_REFRESH_PATH;
use crate::identity::certificate::{CertificateFacts, peer_id_of};

/// Who calls, as the connection knows it.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Where from.
    pub source: IpAddr,
    /// On which network the listener stands.
    pub network: Option<NetworkId>,
    /// What the handshake verified, if anything.
    pub certificate: Option<CallerCertificate>,
}

/// A verified certificate, as far as it says who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerCertificate {
    /// The peer in its common name; none in a certificate that is no peer's.
    pub peer: Option<PeerId>,
    /// Its key.
    pub key: PublicKeyDigest,
    /// All of it.
    pub der: Arc<CertificateDer<'static>>,
    /// What it was good for when the connection began.
    pub standing: Standing,
}

/// What a verified certificate is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// All that its peer may do.
    Valid,
    /// Its end has passed, and the handshake let it through: it asks for its renewal and nothing else.
    Expired,
}

impl CallerCertificate {
    /// Of a certificate that the handshake has verified, now.
    pub fn read(der: &CertificateDer<'_>, now: UnixTime) -> Option<Self> {
        let facts = CertificateFacts::of_der(der).ok()?;
        Some(Self {
            peer: peer_id_of(der),
            key: facts.public_key_digest,
            standing: if now > facts.not_after {
                Standing::Expired
            } else {
                Standing::Valid
            },
            der: Arc::new(der.clone().into_owned()),
        })
    }

    /// By what people know it.
    pub fn digest(&self) -> CertificateDigest {
        CertificateDigest::of_der(&self.der)
    }
}

impl Caller {
    pub(super) fn is_expired(&self) -> bool {
        self.certificate
            .as_ref()
            .is_some_and(|certificate| certificate.standing == Standing::Expired)
    }

    /// Refuses what an ended certificate is not good for.
    pub(super) fn check_standing(&self, path: &str) -> Result<(), Reply> {
        if self.is_expired() && path != CERTIFICATE_REFRESH_PATH {
            return Err(Reply::unauthorized(
                "the client certificate has expired; it can be renewed, and nothing else be asked with it",
            ));
        }
        Ok(())
    }
}
