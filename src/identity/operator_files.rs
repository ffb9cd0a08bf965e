//! A server's certificate and key as an operator has them from elsewhere: PEM, and whichever kind of
//! key the TLS library signs with. Reads texts, no files.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::CertifiedKey;
use thiserror::Error;

use super::certificate::{CertificateChain, PemError};
use super::tls::TlsIdentity;

/// Why two texts are no server's identity. Says nothing of the key.
#[derive(Debug, Error)]
pub enum OperatorFilesError {
    /// The first is no chain.
    #[error("the certificate file cannot be used")]
    Chain(#[from] PemError),
    /// The second is no key.
    #[error(
        "the key file holds no private key; PEM with PRIVATE KEY, EC PRIVATE KEY or RSA PRIVATE KEY is needed, without a password"
    )]
    NoKey,
    /// A key of another kind.
    #[error(
        "the private key is of a kind that is not used for TLS; take Ed25519, ECDSA P-256 or RSA with 2048 bits or more"
    )]
    Kind,
    /// They are not of each other.
    #[error(
        "the certificate does not belong to the private key; the certificate file begins with the server's own certificate"
    )]
    Mismatch,
}

/// The identity of a chain, the server's own certificate first, and of its key.
pub fn identity_of_pem(chain: &str, key: &[u8]) -> Result<TlsIdentity, OperatorFilesError> {
    let chain = CertificateChain::from_pem(chain)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| OperatorFilesError::NoKey)?;
    let signer = aws_lc_rs::sign::any_supported_type(&key).map_err(|_| OperatorFilesError::Kind)?;
    let certified = CertifiedKey::new(chain.to_der(), signer);
    certified.keys_match().map_err(|_| OperatorFilesError::Mismatch)?;
    Ok(TlsIdentity::of_certified(
        Arc::new(certified),
        chain.facts().clone(),
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn made(algorithm: &'static rcgen::SignatureAlgorithm) -> (String, String) {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let params = rcgen::CertificateParams::new(vec!["bridge.example".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn keys_of_every_usual_kind_are_taken() {
        for algorithm in [
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
        ] {
            let (chain, key) = made(algorithm);
            let identity = identity_of_pem(&chain, key.as_bytes()).unwrap();
            assert!(!identity.facts().is_ca);
        }
        let rsa = include_str!("../../tests/fixtures/server/rsa.pem");
        let rsa_key = include_str!("../../tests/fixtures/server/rsa.key");
        identity_of_pem(rsa, rsa_key.as_bytes()).unwrap();
        let sec1 = include_str!("../../tests/fixtures/server/sec1.pem");
        let sec1_key = include_str!("../../tests/fixtures/server/sec1.key");
        identity_of_pem(sec1, sec1_key.as_bytes()).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_told_without_the_key() {
        let ((chain, key), (_, other)) = (made(&rcgen::PKCS_ED25519), made(&rcgen::PKCS_ED25519));
        let refused = |chain: &str, key: &str| identity_of_pem(chain, key.as_bytes()).unwrap_err();
        assert!(matches!(refused(&chain, &other), OperatorFilesError::Mismatch));
        assert!(matches!(refused(&chain, &chain), OperatorFilesError::NoKey));
        assert!(matches!(
            refused(&key, &key),
            OperatorFilesError::Chain(PemError::Empty)
        ));
        assert!(matches!(refused("", ""), OperatorFilesError::Chain(_)));
    }
}
