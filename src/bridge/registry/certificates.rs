//! Renewal of a peer's certificate, and the certificate of the bridge's own listeners.

use std::time::Duration;

use thiserror::Error;

use super::peers::find;
use super::record::{PEERS, PeerCertificate, PeerRecord, SERVER, ServerRecord};
use super::{Registry, RegistryError};
use crate::base::id::{PeerId, PublicKeyDigest};
use crate::base::time::UnixTime;
use crate::bridge::authorities::Authorities;
use crate::bridge::certificate_authority::CsrRefused;
use crate::bridge::federation_api::CallerCertificate;
use crate::contract::message::FederationCertificate;
use crate::identity::certificate::{CertificateChain, CertificateFacts};
use crate::process::entropy;
use crate::store::database::StoreError;
use crate::store::record::Only;

/// Part of a certificate's life, in percent, after which it is renewed (contract section 4).
const RENEW_AFTER_PERCENT: u64 = 75;

/// Key and chain of the listeners, as the store has them.
#[derive(Debug, Clone)]
pub struct ServerMaterial {
    /// The record.
    pub record: ServerRecord,
    /// Whether it was issued just now.
    pub renewed: bool,
}

/// Why a peer got no new certificate.
#[derive(Debug, Error)]
pub enum RefreshError {
    /// The row is gone, or the peer may not call.
    #[error("No reachable FederationPeer for mTLS subject")]
    UnknownPeer,
    /// The request cannot be signed.
    #[error("csr_pem cannot be signed: {0}")]
    Csr(CsrRefused),
    /// Nothing is signed for this peer.
    #[error("this peer certifies itself; it renews its certificate by its own authority")]
    CertifiesItself,
    /// The disk.
    #[error("the new certificate could not be recorded; the old one stays valid")]
    Store(#[from] StoreError),
}

impl Registry {
    /// Signs a peer's new request. The certificate that the peer called with stays valid beside
    /// the new one, so that an answer lost on the way locks nobody out.
    pub fn refresh_certificate(
        &self,
        peer: PeerId,
        called_with: PublicKeyDigest,
        csr_pem: &str,
        now: UnixTime,
    ) -> Result<FederationCertificate, RefreshError> {
        if self.peer_anchors.get(peer).is_some() {
            return Err(RefreshError::CertifiesItself);
        }
        self.db.write(|w| {
            let mut record = w.get(&PEERS, &peer)?.ok_or(RefreshError::UnknownPeer)?;
            if !record.status.heartbeat_allowed() {
                return Err(RefreshError::UnknownPeer);
            }
            let issued = self
                .authorities()
                .issue_peer_certificate(csr_pem, peer, now, entropy::bytes())
                .map_err(RefreshError::Csr)?;
            record
                .certificates
                .retain(|kept| kept.key == called_with && kept.key != issued.public_key_digest);
            record.certificates.push(PeerCertificate {
                serial: issued.serial.clone(),
                not_after: issued.not_after,
                key: issued.public_key_digest,
            });
            w.put(&PEERS, &peer, &record)?;
            Ok(FederationCertificate {
                cert_pem: issued.cert_pem,
                ca_chain_pem: issued.ca_chain_pem,
                serial: issued.serial,
                not_after: issued.not_after,
            })
        })
    }

    /// Enrols the key of a verified certificate in the place of those that the peer has, by an operator's word.
    pub fn readmit(&self, peer: &str, shown: &CallerCertificate) -> Result<PeerRecord, RegistryError> {
        let refuse = |why: &str| RegistryError::InvalidField(why.to_owned());
        let facts = CertificateFacts::of_der(&shown.der)
            .map_err(|_| refuse("the certificate that the box has shown cannot be read"))?;
        self.db.write(|w| {
            let mut record = find(w, peer)?;
            if !record.status.heartbeat_allowed() {
                let status = record.status;
                return Err(refuse(&format!(
                    "the peer is {status}, which is why it is turned away; no other key changes that"
                )));
            }
            if self.is_enrolled(&record, shown.key) {
                return Err(refuse("the peer has enrolled this key already"));
            }
            record.certificates = vec![PeerCertificate {
                serial: facts.serial_hex.clone(),
                not_after: facts.not_after,
                key: shown.key,
            }];
            w.put(&PEERS, &record.id, &record)?;
            Ok(record)
        })
    }

    /// The listeners' certificate for these names: the stored one, or a new one when the names or the
    /// authorities are others or three quarters of its life are over.
    pub fn server_certificate(
        &self,
        names: &[String],
        now: UnixTime,
    ) -> Result<ServerMaterial, RegistryError> {
        let authorities = self.authorities();
        let stored = self.db.read(|r| r.get(&SERVER, &Only))?;
        if let Some(record) = stored
            && record.names == names
            && !due(&record, now)
            && leads_to(&record, &authorities)
        {
            return Ok(ServerMaterial {
                record,
                renewed: false,
            });
        }
        let issued = authorities.issue_server_certificate(names, now, entropy::bytes())?;
        let facts = issued.chain.facts();
        let record = ServerRecord {
            key: issued.key.expose_pkcs8().clone(),
            chain_pem: issued.chain.to_pem(),
            names: names.to_vec(),
            not_before: facts.not_before,
            not_after: facts.not_after,
        };
        self.db.write(|w| {
            w.put(&SERVER, &Only, &record)?;
            Ok::<_, RegistryError>(())
        })?;
        Ok(ServerMaterial {
            record,
            renewed: true,
        })
    }
}

/// Whether it is shown with the authorities that count now. One that cannot be read is not replaced: its
/// key may be all that a backup is missing.
fn leads_to(record: &ServerRecord, authorities: &Authorities) -> bool {
    CertificateChain::from_pem(&record.chain_pem)
        .map_or(true, |chain| chain.issuers() == authorities.issuers())
}

fn due(record: &ServerRecord, now: UnixTime) -> bool {
    let life = record.not_after.since(record.not_before).as_secs();
    let renew_at = record
        .not_before
        .plus(Duration::from_secs(life / 100 * RENEW_AFTER_PERCENT));
    now >= renew_at || now < record.not_before
}
