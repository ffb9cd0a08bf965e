//! Trust anchors: the certificate authorities whose word is taken, from PEM or from the system.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls_native_certs::CertificateResult;
use thiserror::Error;

use super::certificate::{CertificateFacts, PemError, read_pem, write_pem};
use crate::contract::invitation::CaFingerprint;

/// Most anchors in one set. A system's whole bundle has about 150; a parent's own one to four.
pub const ANCHORS_MAX: usize = 512;

/// Longest PEM text of anchors, in bytes: a system's whole bundle has about 230 KiB.
pub const ANCHORS_PEM_MAX_BYTES: usize = 1024 * 1024;

/// A set of CA certificates, at least one. Cheap to clone.
#[derive(Clone)]
pub struct Anchors {
    certificates: Arc<[CertificateDer<'static>]>,
    roots: Arc<RootCertStore>,
}

/// Why certificates cannot serve as anchors.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AnchorsError {
    /// The text is not what it should be.
    #[error("the CA certificates cannot be read")]
    Pem(#[from] PemError),
    /// A certificate in it may not issue others.
    #[error(
        "certificate {position} is not a certificate authority's; give the CA that issued the parent's certificate, not the parent's own"
    )]
    NotACa {
        /// Counted from 1.
        position: usize,
    },
    /// A certificate in it has a form that the verifier does not know.
    #[error("certificate {position} cannot be used as a trust anchor; X.509 version 3 is needed")]
    Unusable {
        /// Counted from 1.
        position: usize,
    },
}

impl Anchors {
    /// From PEM (`--ca-file`, a trust bundle, the store).
    pub fn from_pem(text: &str) -> Result<Self, AnchorsError> {
        Self::from_der(read_pem(text, ANCHORS_PEM_MAX_BYTES, ANCHORS_MAX)?)
    }

    /// From DER.
    pub fn from_der(certificates: Vec<CertificateDer<'static>>) -> Result<Self, AnchorsError> {
        if certificates.is_empty() {
            return Err(PemError::Empty.into());
        }
        let mut roots = RootCertStore::empty();
        for (index, certificate) in certificates.iter().enumerate() {
            let position = index + 1;
            let facts =
                CertificateFacts::of_der(certificate).map_err(|_| PemError::Unreadable { position })?;
            if !facts.is_ca {
                return Err(AnchorsError::NotACa { position });
            }
            roots
                .add(certificate.clone())
                .map_err(|_| AnchorsError::Unusable { position })?;
        }
        Ok(Self {
            certificates: certificates.into(),
            roots: Arc::new(roots),
        })
    }

    /// These and others.
    #[must_use]
    pub fn with(&self, more: &Self) -> Self {
        let mut roots = RootCertStore::clone(&self.roots);
        roots.extend(more.roots.roots.iter().cloned());
        Self {
            certificates: self
                .certificates
                .iter()
                .chain(more.certificates.iter())
                .cloned()
                .collect(),
            roots: Arc::new(roots),
        }
    }

    /// The certificates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// Their fingerprints, in the same order.
    pub fn fingerprints(&self) -> impl Iterator<Item = CaFingerprint> + '_ {
        self.certificates.iter().map(|der| CaFingerprint::of_der(der))
    }

    /// Whether the CA with this fingerprint is one of them.
    pub fn contains(&self, fingerprint: CaFingerprint) -> bool {
        self.fingerprints().any(|held| held == fingerprint)
    }

    /// As PEM, as [`Anchors::from_pem`] reads it.
    pub fn to_pem(&self) -> String {
        write_pem(self.certificates.iter())
    }

    /// What the verifier takes.
    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }
}

impl fmt::Debug for Anchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.fingerprints()).finish()
    }
}

impl PartialEq for Anchors {
    fn eq(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }
}

impl Eq for Anchors {}

/// The box has no trust anchors of its own.
#[derive(Debug, Error)]
#[error(
    "this system has no trusted root certificates; install the package ca-certificates, or name the parent's CA with --ca-file or --ca-sha256"
)]
pub struct NoSystemRoots {
    /// What reading them ran into, if anything.
    #[source]
    source: Option<rustls_native_certs::Error>,
}

/// The system's roots. Reads files: not to be called where blocking is not allowed.
pub(super) fn system_roots() -> Result<RootCertStore, NoSystemRoots> {
    usable_roots(rustls_native_certs::load_native_certs())
}

/// A system's bundle may hold what the verifier does not know; one usable root is enough to try.
fn usable_roots(found: CertificateResult) -> Result<RootCertStore, NoSystemRoots> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(NoSystemRoots {
            source: found.errors.into_iter().next(),
        });
    }
    Ok(roots)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::identity::key::PrivateKey;
    use crate::identity::test_handshake::{Leaf, TestAuthority};

    #[test]
    fn anchors_survive_pem_and_are_known_by_fingerprint() {
        let (one, other) = (TestAuthority::new("one"), TestAuthority::new("other"));
        let anchors = Anchors::from_der(vec![one.certificate.clone(), other.certificate.clone()]).unwrap();
        assert_eq!(Anchors::from_pem(&anchors.to_pem()).unwrap(), anchors);
        assert!(anchors.contains(other.pin()));
        assert!(!one.anchors().contains(other.pin()));
    }

    #[test]
    fn a_certificate_that_may_not_issue_is_no_anchor() {
        let chain = TestAuthority::new("ca").issue(&Leaf::server(), &PrivateKey::generate().unwrap());
        assert_eq!(
            Anchors::from_pem(&chain.to_pem()).unwrap_err(),
            AnchorsError::NotACa { position: 1 }
        );
        assert_eq!(Anchors::from_der(Vec::new()).unwrap_err(), PemError::Empty.into());
    }
    #[test]
    fn a_system_without_usable_roots_is_told_what_to_do() {
        let mut found = CertificateResult::default();
        let shown = usable_roots(CertificateResult::default())
            .unwrap_err()
            .to_string();
        assert!(shown.contains("ca-certificates"), "{shown}");
        found.certs = vec![
            CertificateDer::from(vec![0; 9]),
            TestAuthority::new("ca").certificate.clone(),
        ];
        assert_eq!(usable_roots(found).unwrap().len(), 1);
    }
}
