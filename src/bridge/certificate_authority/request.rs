//! Certificate signing requests as they are taken: bounded, whole, signed by the key that they are for, and that key
//! one that TLS 1.3 verifies. Issues nothing.

use rcgen::SubjectPublicKeyInfo;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::der_parser::asn1_rs::Oid;
use x509_parser::oid_registry as oid;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509;

use super::NoValidity;
use crate::base::id::PublicKeyDigest;

/// Longest CSR that is read, in bytes: one with an RSA-8192 key and a few names stays below 8 KiB.
pub const CSR_PEM_MAX_BYTES: usize = 16 * 1024;

/// Smallest and largest RSA modulus that is certified, in bits: what TLS 1.3 libraries verify.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;

/// Why a certificate signing request is not signed. The requester's fault, but for the last two
/// ([`CsrRefused::is_ours`]).
#[derive(Debug, Error)]
pub enum CsrRefused {
    /// Over [`CSR_PEM_MAX_BYTES`].
    #[error("the CSR has {bytes} bytes where at most {CSR_PEM_MAX_BYTES} are read")]
    TooLarge {
        /// Length found.
        bytes: usize,
    },
    /// No such PEM section, or a damaged one.
    #[error("the CSR is not PEM; -----BEGIN CERTIFICATE REQUEST----- with a PKCS#10 request is needed")]
    NotPem,
    /// PEM of something else.
    #[error("the CSR is not a PKCS#10 certificate request")]
    Unreadable,
    /// The request was changed, or its maker does not hold the key.
    #[error("the CSR's signature does not fit its public key; make a new CSR with the private key")]
    BadSignature,
    /// A key that is not certified.
    #[error(
        "the CSR's key cannot be certified ({found}); use Ed25519, P-256, P-384, or RSA with 2048 to 8192 bits"
    )]
    UnsupportedKey {
        /// What it is instead.
        found: String,
    },
    /// A signature that is too weak to prove possession of the key.
    #[error(
        "the CSR is signed with an algorithm that is not accepted ({algorithm}); use SHA-256 or stronger"
    )]
    UnsupportedSignature {
        /// Its object identifier.
        algorithm: String,
    },
    /// No validity can begin now.
    #[error("no certificate can be issued now")]
    Validity(#[from] NoValidity),
    /// The library failed.
    #[error("the certificate could not be signed")]
    Sign(#[source] rcgen::Error),
}

impl CsrRefused {
    /// Whether no other request would fare better: the fault is this side's.
    pub const fn is_ours(&self) -> bool {
        match self {
            Self::Validity(_) | Self::Sign(_) => true,
            Self::TooLarge { .. }
            | Self::NotPem
            | Self::Unreadable
            | Self::BadSignature
            | Self::UnsupportedKey { .. }
            | Self::UnsupportedSignature { .. } => false,
        }
    }
}

/// The key that a request asks to certify, without issuing anything. Refuses what
/// [`super::CertificateAuthority::issue_peer_certificate`] refuses.
pub fn csr_public_key_digest(csr_pem: &str) -> Result<PublicKeyDigest, CsrRefused> {
    CheckedRequest::read(csr_pem).map(|request| request.digest)
}

/// A request whose maker holds the key and whose key may be certified.
pub(super) struct CheckedRequest {
    pub(super) key: SubjectPublicKeyInfo,
    pub(super) digest: PublicKeyDigest,
}

impl CheckedRequest {
    pub(super) fn read(csr_pem: &str) -> Result<Self, CsrRefused> {
        if csr_pem.len() > CSR_PEM_MAX_BYTES {
            return Err(CsrRefused::TooLarge { bytes: csr_pem.len() });
        }
        let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes())
            .map_err(|_| CsrRefused::NotPem)?;
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrRefused::Unreadable)?;
        if !rest.is_empty() {
            return Err(CsrRefused::Unreadable);
        }
        let public_key = &request.certification_request_info.subject_pki;
        let kind = KeyKind::of(public_key)?;
        kind.check_signature_algorithm(&request.signature_algorithm.algorithm)?;
        request.verify_signature().map_err(|_| CsrRefused::BadSignature)?;
        let key = SubjectPublicKeyInfo::from_der(public_key.raw).map_err(|_| CsrRefused::UnsupportedKey {
            found: public_key.algorithm.algorithm.to_id_string(),
        })?;
        Ok(Self {
            key,
            digest: PublicKeyDigest::of_spki(public_key.raw),
        })
    }
}

/// The keys that are certified.
#[derive(Clone, Copy)]
enum KeyKind {
    Ed25519,
    EllipticCurve,
    Rsa,
}

impl KeyKind {
    fn of(key: &x509::SubjectPublicKeyInfo<'_>) -> Result<Self, CsrRefused> {
        let unsupported = |found: String| CsrRefused::UnsupportedKey { found };
        let algorithm = &key.algorithm.algorithm;
        if *algorithm == oid::OID_SIG_ED25519 {
            return Ok(Self::Ed25519);
        }
        match key.parsed() {
            Ok(PublicKey::RSA(rsa)) if RSA_BITS.contains(&rsa.key_size()) => Ok(Self::Rsa),
            Ok(PublicKey::RSA(rsa)) => Err(unsupported(format!("RSA with {} bits", rsa.key_size()))),
            Ok(PublicKey::EC(_)) => {
                let curve = key
                    .algorithm
                    .parameters
                    .as_ref()
                    .and_then(|any| any.as_oid().ok());
                match curve {
                    Some(curve) if curve == oid::OID_EC_P256 || curve == oid::OID_NIST_EC_P384 => {
                        Ok(Self::EllipticCurve)
                    }
                    Some(curve) => Err(unsupported(format!("curve {curve}"))),
                    None => Err(unsupported("a curve without a name".to_owned())),
                }
            }
            Ok(_) => Err(unsupported(format!("key type {algorithm}"))),
            Err(_) => Err(unsupported("a damaged key".to_owned())),
        }
    }

    /// Only signatures that fit the key's kind: what the verifier is asked must be what the key says.
    fn check_signature_algorithm(self, algorithm: &Oid<'_>) -> Result<(), CsrRefused> {
        let accepted: &[Oid<'_>] = match self {
            Self::Ed25519 => &[oid::OID_SIG_ED25519],
            Self::EllipticCurve => &[oid::OID_SIG_ECDSA_WITH_SHA256, oid::OID_SIG_ECDSA_WITH_SHA384],
            Self::Rsa => &[
                oid::OID_PKCS1_SHA256WITHRSA,
                oid::OID_PKCS1_SHA384WITHRSA,
                oid::OID_PKCS1_SHA512WITHRSA,
                oid::OID_PKCS1_RSASSAPSS,
            ],
        };
        if accepted.contains(algorithm) {
            return Ok(());
        }
        Err(CsrRefused::UnsupportedSignature {
            algorithm: algorithm.to_id_string(),
        })
    }
}
