//! The private key of a satellite, of a server or of a certificate authority: always Ed25519,
//! because its signatures are deterministic, so that the same key makes the same request byte
//! for byte, and because that is what the contract's parents issue with. Knows no certificate.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use thiserror::Error;
use zeroize::Zeroizing;

use super::certificate::{COMMON_NAME, pem_section};
use super::der::{self, tag};
use crate::base::id::PublicKeyDigest;
use crate::base::secret::Secret;
use crate::process::entropy;

/// Longest PKCS#8 text that is read as a key, in bytes. An Ed25519 key has 48 or 83, with
/// attributes a little more; anything longer is another thing.
const PKCS8_MAX_BYTES: usize = 256;

/// Longest common name in characters: the upper bound of X.520.
pub(super) const COMMON_NAME_MAX_CHARS: usize = 64;

/// What precedes the 32 bytes of the seed in PKCS#8 version 1 (RFC 8410, section 7). Version 1,
/// because other toolkits and agents that may be handed the key do not all read version 2.
const PKCS8_V1_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// `AlgorithmIdentifier` of Ed25519 keys and signatures (RFC 8410, section 3).
const ED25519_ALGORITHM: [u8; 7] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];

/// What precedes the 32 bytes of a public key where certificates hold it (RFC 8410, section 4).
const ED25519_PUBLIC_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Random bytes that a key is made of.
const SEED_BYTES: usize = 32;

/// An Ed25519 private key. Redacted; its PKCS#8 form is wiped on drop.
pub struct PrivateKey {
    pkcs8: Secret,
    /// Kept by the cryptographic library, which wipes what it frees.
    pair: Ed25519KeyPair,
}

/// The cryptographic library made no key of random bytes, which it does only when it is broken.
#[derive(Debug, Error)]
#[error("the cryptographic library cannot make an Ed25519 key; this build is broken, install another")]
pub struct GenerateKeyError;

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
    /// The library failed to sign, which it does only when it is broken.
    #[error("the certificate signing request could not be signed with the private key")]
    Sign,
}

impl PrivateKey {
    /// A new key from the operating system's randomness.
    pub fn generate() -> Result<Self, GenerateKeyError> {
        Self::from_seed(&entropy::secret_bytes()).map_err(|InvalidPrivateKey| GenerateKeyError)
    }

    fn from_seed(seed: &Zeroizing<[u8; SEED_BYTES]>) -> Result<Self, InvalidPrivateKey> {
        let mut pkcs8 = Vec::with_capacity(PKCS8_V1_PREFIX.len() + SEED_BYTES);
        pkcs8.extend_from_slice(&PKCS8_V1_PREFIX);
        pkcs8.extend_from_slice(seed.as_slice());
        Self::from_pkcs8(Secret::new(pkcs8))
    }

    /// A key that was kept as [`PrivateKey::expose_pkcs8`] gave it.
    pub fn from_pkcs8(pkcs8: Secret) -> Result<Self, InvalidPrivateKey> {
        if pkcs8.len() > PKCS8_MAX_BYTES {
            return Err(InvalidPrivateKey);
        }
        let pair =
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8.expose()).map_err(|_| InvalidPrivateKey)?;
        Ok(Self { pkcs8, pair })
    }

    /// The key in PKCS#8 DER, for the store alone.
    pub const fn expose_pkcs8(&self) -> &Secret {
        &self.pkcs8
    }

    /// By what the key is known again in requests and certificates.
    pub fn public_key_digest(&self) -> PublicKeyDigest {
        PublicKeyDigest::of_spki(&self.public_key_info())
    }

    /// A PKCS#10 request for `common_name` as PEM: a function of the key and the name, so a
    /// retry sends the same bytes.
    pub fn csr_pem(&self, common_name: &str) -> Result<String, CsrError> {
        // RFC 2986: version 0, the name, the key, no attributes; then how it is signed, and the signature.
        let subject = self::common_name(common_name)?;
        let version = der::write(tag::INTEGER, &[&[0]]);
        let attributes = der::write(tag::context(0), &[]);
        let info = der::write(
            tag::SEQUENCE,
            &[&version, &subject, &self.public_key_info(), &attributes],
        );
        let signature = self.sign(&info)?;
        let signature = der::write(tag::BIT_STRING, &[&[0], &signature]);
        let request = der::write(tag::SEQUENCE, &[&info, &ED25519_ALGORITHM, &signature]);
        Ok(pem_section("CERTIFICATE REQUEST", &request))
    }

    /// `AlgorithmIdentifier` of the key and of its signatures.
    pub(super) const ALGORITHM: &'static [u8] = &ED25519_ALGORITHM;

    /// The public key as certificates and requests hold it.
    pub(super) fn public_key_info(&self) -> Vec<u8> {
        let key = der::write(tag::BIT_STRING, &[&[0], self.public_key_bytes()]);
        der::write(tag::SEQUENCE, &[&ED25519_ALGORITHM, &key])
    }

    /// The public key itself.
    pub(super) fn public_key_bytes(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CsrError> {
        let signature = self.pair.try_sign(message).map_err(|_| CsrError::Sign)?;
        Ok(signature.as_ref().to_vec())
    }
}

/// A name of one common name, as certificates and requests hold it.
pub(super) fn common_name(text: &str) -> Result<Vec<u8>, CsrError> {
    if text.is_empty() || text.chars().nth(COMMON_NAME_MAX_CHARS).is_some() {
        return Err(CsrError::CommonName {
            name: text.chars().take(COMMON_NAME_MAX_CHARS).collect(),
        });
    }
    let name = der::write(tag::UTF8_STRING, &[text.as_bytes()]);
    let kind = der::write(tag::OBJECT_IDENTIFIER, &[COMMON_NAME]);
    let attribute = der::write(tag::SEQUENCE, &[&kind, &name]);
    Ok(der::write(tag::SEQUENCE, &[&der::write(tag::SET, &[&attribute])]))
}

/// Whether the Ed25519 key of a certificate has signed the message. Algorithm, key and signature (a bit string's
/// content) as certificates hold them; anything but Ed25519 has not.
pub(super) fn has_signed(public_key: &[u8], algorithm: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let (Some(key), [0, signature @ ..]) = (public_key.strip_prefix(&ED25519_PUBLIC_PREFIX), signature)
    else {
        return false;
    };
    algorithm == ED25519_ALGORITHM
        && UnparsedPublicKey::new(&ED25519, key)
            .verify(message, signature)
            .is_ok()
}

impl rcgen::PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

/// For those who issue certificates with the key.
impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.pair.try_sign(message);
        signature
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PrivateKey")
            .field(&self.public_key_digest())
            .finish()
    }
}

/// A key of [`PrivateKey::expose_pkcs8`] as PEM, for other programs.
pub fn pkcs8_pem(pkcs8: &Secret) -> Secret {
    Secret::from_text(pem_section("PRIVATE KEY", pkcs8.expose()))
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

    proptest! {
        /// By another library: a request that was sent before an update is the same after it.
        #[test]
        fn a_request_is_what_another_library_makes(name in "[a-zA-Z0-9:. äöü€-]{1,64}") {
            let key = PrivateKey::generate().unwrap();
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::CommonName, name.as_str());
            let pair = rcgen::KeyPair::try_from(key.expose_pkcs8().expose()).unwrap();
            let request = params.serialize_request(&pair).unwrap().pem().unwrap();
            prop_assert_eq!(key.csr_pem(&name).unwrap(), request);
            let spki = rcgen::PublicKeyData::subject_public_key_info(&pair);
            prop_assert_eq!(key.public_key_digest(), PublicKeyDigest::of_spki(&spki));
        }
    }

    #[test]
    fn a_seed_makes_the_key_that_the_standard_says() {
        // RFC 8032, section 7.1, test 1.
        let hex = |text: &str| crate::base::radix::HEXLOWER.decode(text.as_bytes()).unwrap();
        let seed = hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let key = PrivateKey::from_seed(&Zeroizing::new(seed.try_into().unwrap())).unwrap();
        let public = hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        assert_eq!(key.pair.public_key().as_ref(), public);
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
