//! Certificates as facts: PEM to DER within bounds, the fields that decisions need, and the chain
//! that a handshake shows. Reads only; whether to trust what is read is decided in `issued` and
//! `tls`.

use std::fmt::Write as _;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use crate::base::id::{PeerId, PublicKeyDigest};
use crate::base::limit::foreign_text;
use crate::base::time::UnixTime;
use crate::contract::invitation::CaFingerprint;

/// Most certificates in one chain: leaf, two intermediates, and room for the overlap of an old
/// and a new root.
pub const CHAIN_MAX_CERTIFICATES: usize = 8;

/// Longest PEM text of a chain, in bytes: eight RSA-4096 certificates stay below 20 KiB.
pub const CHAIN_PEM_MAX_BYTES: usize = 64 * 1024;

/// What a federation peer's common name begins with (contract section 3).
const PEER_SUBJECT_PREFIX: &str = "fed:";

/// The common name in the certificate of a federation peer.
pub fn peer_subject(peer_id: PeerId) -> String {
    format!("{PEER_SUBJECT_PREFIX}{peer_id}")
}

/// The peer whose certificate this is: exactly one common name, and that is exactly
/// `fed:<peer_id>` in lower case. `None` for every other certificate and for what is none.
pub fn peer_id_of(der: &[u8]) -> Option<PeerId> {
    let subject = CertificateFacts::of_der(der).ok()?.subject_cn?;
    let peer_id = subject.strip_prefix(PEER_SUBJECT_PREFIX)?.parse().ok()?;
    (peer_subject(peer_id) == subject).then_some(peer_id)
}

/// Why a PEM text is not the certificates that it should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PemError {
    /// Over the bound of its place.
    #[error("it has {bytes} bytes where at most {max} are read")]
    TooLarge {
        /// Length found.
        bytes: usize,
        /// Length allowed.
        max: usize,
    },
    /// More certificates than the bound of its place.
    #[error("it holds more than {max} certificates")]
    TooMany {
        /// Number allowed.
        max: usize,
    },
    /// Nothing between `-----BEGIN CERTIFICATE-----` and its end, or no such lines.
    #[error("it holds no certificate; PEM with -----BEGIN CERTIFICATE----- is needed")]
    Empty,
    /// A begin without an end, or something that is not base64 between them.
    #[error("its PEM is damaged in certificate {position}; copy the file again, all of it")]
    Damaged {
        /// Counted from 1.
        position: usize,
    },
    /// PEM that decodes to something that is no certificate.
    #[error("certificate {position} in it cannot be read; X.509 version 3 is needed")]
    Unreadable {
        /// Counted from 1.
        position: usize,
    },
}

/// Bytes that are no X.509 certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("these bytes are not an X.509 certificate")]
pub struct UnreadableCertificate;

/// Reads all certificates of a PEM text, at least one. Sections of other kinds are left alone.
pub(crate) fn read_pem(
    text: &str,
    max_bytes: usize,
    max_certificates: usize,
) -> Result<Vec<CertificateDer<'static>>, PemError> {
    if text.len() > max_bytes {
        return Err(PemError::TooLarge {
            bytes: text.len(),
            max: max_bytes,
        });
    }
    let mut certificates = Vec::new();
    for section in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let position = certificates.len() + 1;
        if position > max_certificates {
            return Err(PemError::TooMany {
                max: max_certificates,
            });
        }
        let certificate = section.map_err(|_| PemError::Damaged { position })?;
        CertificateFacts::of_der(&certificate).map_err(|_| PemError::Unreadable { position })?;
        certificates.push(certificate);
    }
    if certificates.is_empty() {
        return Err(PemError::Empty);
    }
    Ok(certificates)
}

/// The certificates as PEM, in order.
pub(crate) fn write_pem<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    const LINE_CHARS: usize = 64;
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let body = data_encoding::BASE64.encode(certificate);
        let mut rest = body.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(LINE_CHARS));
            text.push_str(line);
            text.push('\n');
            rest = after;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

/// What a certificate says of itself. Nothing in it is verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFacts {
    /// The subject's common name; `None` when it has none or several.
    pub subject_cn: Option<String>,
    /// The issuer's common name; `None` when it has none or several.
    pub issuer_cn: Option<String>,
    /// Valid from this time on.
    pub not_before: UnixTime,
    /// Valid up to and including this time.
    pub not_after: UnixTime,
    /// Serial number as the contract writes it: upper-case hex without leading zero bytes.
    pub serial_hex: String,
    /// Whether it may issue certificates.
    pub is_ca: bool,
    /// The key that it certifies.
    pub public_key_digest: PublicKeyDigest,
    /// SHA-256 of the whole certificate.
    pub fingerprint: CaFingerprint,
}

impl CertificateFacts {
    /// Reads one certificate in DER; bytes after it make it unreadable.
    pub fn of_der(der: &[u8]) -> Result<Self, UnreadableCertificate> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| UnreadableCertificate)?;
        if !rest.is_empty() {
            return Err(UnreadableCertificate);
        }
        Ok(Self {
            subject_cn: only_common_name(certificate.subject()),
            issuer_cn: only_common_name(certificate.issuer()),
            not_before: UnixTime::from_seconds(certificate.validity().not_before.timestamp()),
            not_after: UnixTime::from_seconds(certificate.validity().not_after.timestamp()),
            serial_hex: upper_hex(certificate.raw_serial()),
            is_ca: certificate.is_ca(),
            public_key_digest: PublicKeyDigest::of_spki(certificate.public_key().raw),
            fingerprint: CaFingerprint::of_der(der),
        })
    }

    /// The first certificate of a PEM text.
    pub fn of_pem(text: &str) -> Result<Self, PemError> {
        let certificates = read_pem(text, CHAIN_PEM_MAX_BYTES, CHAIN_MAX_CERTIFICATES)?;
        let first = certificates.first().ok_or(PemError::Empty)?;
        Self::of_der(first).map_err(|_| PemError::Unreadable { position: 1 })
    }
}

fn only_common_name(name: &X509Name<'_>) -> Option<String> {
    let mut names = name.iter_common_name();
    let first = names.next()?.as_str().ok()?;
    names.next().is_none().then(|| first.to_owned())
}

fn upper_hex(serial: &[u8]) -> String {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    let significant = serial
        .get(zeros.min(serial.len().saturating_sub(1))..)
        .unwrap_or_default();
    significant.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02X}");
        hex
    })
}

/// What a handshake shows: the certificate of the key, then those that lead to its anchor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateChain {
    leaf: CertificateDer<'static>,
    issuers: Vec<CertificateDer<'static>>,
    facts: CertificateFacts,
}

impl CertificateChain {
    /// From PEM: the first certificate is the leaf.
    pub fn from_pem(text: &str) -> Result<Self, PemError> {
        let mut certificates = read_pem(text, CHAIN_PEM_MAX_BYTES, CHAIN_MAX_CERTIFICATES)?.into_iter();
        let leaf = certificates.next().ok_or(PemError::Empty)?;
        Self::from_der(leaf, certificates.collect()).map_err(|_| PemError::Unreadable { position: 1 })
    }

    /// From DER: the leaf, then its issuers.
    pub fn from_der(
        leaf: CertificateDer<'static>,
        issuers: Vec<CertificateDer<'static>>,
    ) -> Result<Self, UnreadableCertificate> {
        let facts = CertificateFacts::of_der(&leaf)?;
        Ok(Self { leaf, issuers, facts })
    }

    /// The same leaf with other issuers.
    #[must_use]
    pub fn with_issuers(self, issuers: Vec<CertificateDer<'static>>) -> Self {
        Self { issuers, ..self }
    }

    /// The certificate of the key.
    pub const fn leaf(&self) -> &CertificateDer<'static> {
        &self.leaf
    }

    /// Those that lead to the anchor, which may be among them.
    pub fn issuers(&self) -> &[CertificateDer<'static>] {
        &self.issuers
    }

    /// What the leaf says.
    pub const fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// All of it in the order of the handshake.
    pub fn to_der(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.leaf)
            .chain(&self.issuers)
            .cloned()
            .collect()
    }

    /// All of it as PEM, as [`CertificateChain::from_pem`] reads it.
    pub fn to_pem(&self) -> String {
        write_pem(std::iter::once(&self.leaf).chain(&self.issuers))
    }
}

/// How a common name is shown in an error.
pub(crate) fn shown_name(name: Option<&str>) -> String {
    name.map_or_else(
        || "no single common name".to_owned(),
        |name| format!("`{}`", foreign_text(name)),
    )
}
