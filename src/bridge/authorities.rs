//! The authorities of this bridge: the one that issues and, for a time after a rotation, the one before
//! it, whose certificates are still out. What handshakes show, bundles serve and listeners verify by is
//! composed here. Knows no registry and no clock.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::certificate_authority::{
    CertificateAuthority, CsrRefused, IssuedCertificate, SerialEntropy, ServerCertificate,
    ServerCertificateError,
};
use crate::base::id::PeerId;
use crate::base::time::UnixTime;
use crate::contract::invitation::CaFingerprint;
use crate::identity::anchors::{Anchors, AnchorsError};
use crate::identity::certificate::write_pem;
use crate::identity::succession::vouches;

/// The authority before the present one. Its key is destroyed.
#[derive(Debug, Clone)]
pub struct Predecessor {
    certificate: CertificateDer<'static>,
    cross: CertificateDer<'static>,
    /// When the present one took over.
    pub rotated_at: UnixTime,
    /// Until when both are served.
    pub overlap_ends: UnixTime,
}

/// Those that count.
#[derive(Debug)]
pub struct Authorities {
    current: Arc<CertificateAuthority>,
    predecessor: Option<Predecessor>,
    anchors: Arc<Anchors>,
}

impl Predecessor {
    /// Of the certificates as the registry keeps them. `None` where they are not one authority's and its
    /// word for the next.
    pub fn read(
        certificate_pem: &str,
        cross_pem: &str,
        rotated_at: UnixTime,
        overlap_ends: UnixTime,
    ) -> Result<Option<Self>, AnchorsError> {
        let certificate = Anchors::from_pem(certificate_pem)?;
        let cross = Anchors::from_pem(cross_pem)?;
        let ([certificate], [cross]) = (certificate.certificates(), cross.certificates()) else {
            return Ok(None);
        };
        Ok(Some(Self {
            certificate: certificate.clone(),
            cross: cross.clone(),
            rotated_at,
            overlap_ends,
        }))
    }

    /// What satellites knew the bridge by.
    pub fn fingerprint(&self) -> CaFingerprint {
        CaFingerprint::of_der(&self.certificate)
    }
}

impl Authorities {
    /// The present one and the one before it, which must have vouched for it at the rotation.
    pub fn new(
        current: CertificateAuthority,
        predecessor: Option<Predecessor>,
    ) -> Result<Option<Self>, AnchorsError> {
        if let Some(before) = &predecessor
            && !vouches(
                &before.certificate,
                &before.cross,
                current.certificate(),
                before.rotated_at,
            )
        {
            return Ok(None);
        }
        let older = predecessor.iter().map(|before| before.certificate.clone());
        let anchors = Anchors::from_der(older.chain([current.certificate().clone()]).collect())?;
        Ok(Some(Self {
            current: Arc::new(current),
            predecessor,
            anchors: Arc::new(anchors),
        }))
    }

    /// The one that issues.
    pub const fn current(&self) -> &Arc<CertificateAuthority> {
        &self.current
    }

    /// The one before it, while its certificates are out.
    pub const fn predecessor(&self) -> Option<&Predecessor> {
        self.predecessor.as_ref()
    }

    /// What listeners verify peers by, and bundles serve: the oldest first.
    pub const fn anchors(&self) -> &Arc<Anchors> {
        &self.anchors
    }

    /// By what the one before vouches for the present one.
    pub fn cross_pem(&self) -> Option<String> {
        self.predecessor.as_ref().map(|before| write_pem([&before.cross]))
    }

    /// What follows a certificate in its chain, so that whoever knows either authority finds a way to it.
    pub fn issuers(&self) -> Vec<CertificateDer<'static>> {
        let mut issuers = vec![self.current.certificate().clone()];
        if let Some(before) = &self.predecessor {
            issuers.extend([before.cross.clone(), before.certificate.clone()]);
        }
        issuers
    }

    /// A certificate for a peer ([`CertificateAuthority::issue_peer_certificate`]).
    pub fn issue_peer_certificate(
        &self,
        csr_pem: &str,
        peer_id: PeerId,
        now: UnixTime,
        serial: SerialEntropy,
    ) -> Result<IssuedCertificate, CsrRefused> {
        let issued = self
            .current
            .issue_peer_certificate(csr_pem, peer_id, now, serial)?;
        Ok(IssuedCertificate {
            ca_chain_pem: write_pem(&self.issuers()),
            ..issued
        })
    }

    /// A certificate for the bridge itself ([`CertificateAuthority::issue_server_certificate`]).
    pub fn issue_server_certificate(
        &self,
        names: &[String],
        now: UnixTime,
        serial: SerialEntropy,
    ) -> Result<ServerCertificate, ServerCertificateError> {
        let issued = self.current.issue_server_certificate(names, now, serial)?;
        Ok(ServerCertificate {
            chain: issued.chain.with_issuers(self.issuers()),
            ..issued
        })
    }
}
