//! A stored identity as handshakes need it: what this box shows, and the other side's authorities that came with
//! it. Knows no connection.

use std::sync::Arc;

use thiserror::Error;
use tokio::sync::watch;

use crate::identity::anchors::{Anchors, AnchorsError};
use crate::identity::certificate::{CertificateChain, PemError};
use crate::identity::key::{InvalidPrivateKey, PrivateKey};
use crate::identity::tls::{IdentityWatch, TlsIdentity, TlsIdentityError};
use crate::machine::membership::StoredIdentity;

/// Why a stored identity is unusable.
#[derive(Debug, Error)]
pub enum PresentedError {
    /// The key.
    #[error("the stored key cannot be used")]
    Key(#[from] InvalidPrivateKey),
    /// The certificate.
    #[error("the stored certificate cannot be used")]
    Certificate(#[from] PemError),
    /// The anchors.
    #[error("the stored authorities cannot be used")]
    Anchors(#[from] AnchorsError),
    /// The two together.
    #[error(transparent)]
    Pair(#[from] TlsIdentityError),
}

/// What is shown, and by what the other side is known beside the invitation.
#[derive(Debug)]
pub struct Presented {
    /// Chain and key.
    pub identity: TlsIdentity,
    /// The authorities that came with the certificate.
    pub learned: Anchors,
}

impl Presented {
    /// Reads what the store keeps.
    pub fn read(stored: &StoredIdentity) -> Result<Self, PresentedError> {
        let key = PrivateKey::from_pkcs8(stored.pkcs8.clone())?;
        let chain = CertificateChain::from_pem(&stored.certificate.cert_pem)?;
        Ok(Self {
            learned: Anchors::from_pem(&stored.certificate.ca_chain_pem)?,
            identity: TlsIdentity::new(&chain, &key)?,
        })
    }

    /// For one connection, or for a listener that is made anew with every change.
    pub fn fixed(self) -> (IdentityWatch, Anchors) {
        (watch::channel(Arc::new(self.identity)).1, self.learned)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;
    use crate::contract::message::FederationCertificate;
    use crate::identity::test_handshake::{Leaf, TestAuthority};

    #[test]
    fn each_part_that_is_of_no_use_is_named() {
        let ca = TestAuthority::new("ca");
        let key = PrivateKey::generate().unwrap();
        let chain = ca.issue(&Leaf::peer("fed:x"), &key);
        let whole = StoredIdentity {
            pkcs8: key.expose_pkcs8().clone(),
            certificate: FederationCertificate {
                cert_pem: chain.to_pem(),
                ca_chain_pem: ca.anchors().to_pem(),
                serial: String::new(),
                not_after: chain.facts().not_after,
            },
            not_before: chain.facts().not_before,
        };
        let read = Presented::read(&whole).unwrap();
        assert_eq!(read.learned, ca.anchors());
        assert_eq!(read.identity.facts(), chain.facts());

        let spoilt = |spoil: fn(&mut StoredIdentity)| {
            let mut stored = whole.clone();
            spoil(&mut stored);
            Presented::read(&stored).unwrap_err()
        };
        assert!(matches!(
            spoilt(|stored| stored.pkcs8 = Secret::new(Vec::new())),
            PresentedError::Key(_)
        ));
        assert!(matches!(
            spoilt(|stored| stored.certificate.cert_pem.clear()),
            PresentedError::Certificate(_)
        ));
        assert!(matches!(
            spoilt(|stored| stored.certificate.ca_chain_pem.clear()),
            PresentedError::Anchors(_)
        ));
        assert!(matches!(
            spoilt(|stored| stored.pkcs8 = PrivateKey::generate().unwrap().expose_pkcs8().clone()),
            PresentedError::Pair(TlsIdentityError::KeyMismatch)
        ));
    }
}
