//! The private key of a satellite, of a server or of a certificate authority: always Ed25519,
//! because its signatures are deterministic, so that the same key makes the same request byte
//! for byte, and because that is what the contract's parents issue with. Knows no certificate.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use rustls::pki_types::PrivatePkcs8KeyDer;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::base::id::PublicKeyDigest;
use crate::base::secret::Secret;

/// Longest PKCS#8 text that is read as a key, in bytes. An Ed25519 key has 48 or 83, with
/// attributes a little more; anything longer is another thing.
const PKCS8_MAX_BYTES: usize = 256;

/// Longest common name in characters: the upper bound of X.520.
const COMMON_NAME_MAX_CHARS: usize = 64;

/// An Ed25519 private key. Redacted; its PKCS#8 form is wiped on drop.
pub struct PrivateKey {
    pkcs8: Secret,
    pair: Zeroizing<KeyPair>,
}

/// The system's random source gave nothing.
#[derive(Debug, Error)]
#[error("no private key could be generated; does the system provide /dev/urandom or getrandom?")]
pub struct GenerateKeyError(#[source] rcgen::Error);

/// Bytes that are no Ed25519 key in PKCS#8. Says nothing of them.
#[derive(Debug, Error)]
#[error(
    "the stored private key is not an Ed25519 key in PKCS#8; restore the state from a backup or join again"
)]
pub struct InvalidPrivateKey;

/// Why no certificate signing request was made.
#[derive(Debug, Error)]
pub enum CsrError {
    /// X.520 allows no such name.
    #[error(
        "the name `{name}` is empty or longer than {COMMON_NAME_MAX_CHARS} characters, so no certificate can carry it"
    )]
    CommonName {
        /// The name, shortened.
        name: String,
    },
    /// The library failed to encode or sign.
    #[error("the certificate signing request could not be signed with the private key")]
    Sign(#[source] rcgen::Error),
}

impl PrivateKey {
    /// A new key. The cryptographic library draws the randomness from the operating system.
    pub fn generate() -> Result<Self, GenerateKeyError> {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(GenerateKeyError)?;
        Ok(Self {
            pkcs8: Secret::new(pair.serialize_der()),
            pair: Zeroizing::new(pair),
        })
    }

    /// A key that was kept as [`PrivateKey::expose_pkcs8`] gave it.
    pub fn from_pkcs8(pkcs8: Secret) -> Result<Self, InvalidPrivateKey> {
        if pkcs8.len() > PKCS8_MAX_BYTES {
            return Err(InvalidPrivateKey);
        }
        let der = PrivatePkcs8KeyDer::from(pkcs8.expose());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519)
            .map_err(|_| InvalidPrivateKey)?;
        drop(der);
        Ok(Self {
            pkcs8,
            pair: Zeroizing::new(pair),
        })
    }

    /// The key in PKCS#8 DER, for the store alone.
    pub const fn expose_pkcs8(&self) -> &Secret {
        &self.pkcs8
    }

    /// By what the key is known again in requests and certificates.
    pub fn public_key_digest(&self) -> PublicKeyDigest {
        PublicKeyDigest::of_spki(&self.pair.subject_public_key_info())
    }

    /// A PKCS#10 request for `common_name` as PEM: a function of the key and the name, so a
    /// retry sends the same bytes.
    pub fn csr_pem(&self, common_name: &str) -> Result<String, CsrError> {
        if common_name.is_empty() || common_name.chars().nth(COMMON_NAME_MAX_CHARS).is_some() {
            return Err(CsrError::CommonName {
                name: common_name.chars().take(COMMON_NAME_MAX_CHARS).collect(),
            });
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params
            .serialize_request(self.signing_key())
            .and_then(|request| request.pem())
            .map_err(CsrError::Sign)
    }

    /// For those who issue certificates with the key.
    pub(crate) fn signing_key(&self) -> &KeyPair {
        &self.pair
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PrivateKey")
            .field(&self.public_key_digest())
            .finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_same_key_makes_the_same_request() {
        let key = PrivateKey::generate().unwrap();
        let restored = PrivateKey::from_pkcs8(key.expose_pkcs8().clone()).unwrap();
        assert_eq!(
            key.csr_pem("shop-17").unwrap(),
            restored.csr_pem("shop-17").unwrap()
        );
        assert_eq!(key.public_key_digest(), restored.public_key_digest());
    }

    #[test]
    fn two_keys_differ() {
        let (one, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        assert_ne!(one.public_key_digest(), other.public_key_digest());
        assert_ne!(one.csr_pem("shop-17").unwrap(), other.csr_pem("shop-17").unwrap());
    }

    #[test]
    fn names_that_no_certificate_carries_are_refused() {
        let key = PrivateKey::generate().unwrap();
        assert!(matches!(key.csr_pem(""), Err(CsrError::CommonName { .. })));
        assert!(matches!(
            key.csr_pem(&"x".repeat(65)),
            Err(CsrError::CommonName { .. })
        ));
        assert!(key.csr_pem(&"x".repeat(64)).is_ok());
    }

    #[test]
    fn debug_shows_the_public_key_alone() {
        let key = PrivateKey::generate().unwrap();
        assert_eq!(
            format!("{key:?}"),
            format!("PrivateKey({})", key.public_key_digest())
        );
    }

    proptest! {
        #[test]
        fn other_bytes_are_no_key(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(PrivateKey::from_pkcs8(Secret::new(bytes)).is_err());
        }
    }
}
