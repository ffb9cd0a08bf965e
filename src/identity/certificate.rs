//! Certificates as facts: PEM to DER within bounds, the fields that decisions need, and the chain
//! that a handshake shows. Reads only; whether to trust what is read is decided in `issued` and
//! `tls`.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::der::{NotDer, Reader, tag};
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

/// `id-at-commonName` (2.5.4.3), the content of its object identifier.
pub(super) const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// `id-ce-basicConstraints` (2.5.29.19).
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

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
    certificates
        .into_iter()
        .map(|certificate| pem_section("CERTIFICATE", certificate))
        .collect()
}

/// One section of PEM.
pub(super) fn pem_section(label: &str, der: &[u8]) -> String {
    const LINE_CHARS: usize = 64;
    let mut text = format!("-----BEGIN {label}-----\n");
    let body = crate::base::radix::BASE64.encode(der);
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE_CHARS));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
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
        let certificate = Fields::read(der).map_err(|NotDer| UnreadableCertificate)?;
        Ok(Self {
            subject_cn: only_common_name(certificate.subject),
            issuer_cn: only_common_name(certificate.issuer),
            not_before: UnixTime::from_seconds(certificate.not_before),
            not_after: UnixTime::from_seconds(certificate.not_after),
            serial_hex: upper_hex(certificate.serial),
            is_ca: certificate.is_ca,
            public_key_digest: PublicKeyDigest::of_spki(certificate.public_key),
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

/// Whether it may issue certificates and names itself as its issuer; for what is no certificate, neither.
pub(super) fn authority_standing(der: &[u8]) -> AuthorityStanding {
    match Fields::read(der) {
        Ok(certificate) if certificate.is_ca && certificate.subject == certificate.issuer => {
            AuthorityStanding::Root
        }
        Ok(certificate) if certificate.is_ca => AuthorityStanding::Intermediate,
        _ => AuthorityStanding::None,
    }
}

/// What a certificate is to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AuthorityStanding {
    /// May issue, and issued itself.
    Root,
    /// May issue.
    Intermediate,
    /// May not issue.
    None,
}

/// The fields of a certificate as they lie in its bytes (RFC 5280, section 4.1).
pub(super) struct Fields<'a> {
    /// What is signed, with its tag and length.
    pub(super) signed: &'a [u8],
    /// How it is signed, with its tag and length.
    pub(super) algorithm: &'a [u8],
    /// The signature, as a bit string's content.
    pub(super) signature: &'a [u8],
    serial: &'a [u8],
    pub(super) issuer: &'a [u8],
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    pub(super) subject: &'a [u8],
    /// With its tag and length.
    pub(super) public_key: &'a [u8],
    pub(super) is_ca: bool,
}

impl<'a> Fields<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, NotDer> {
        let mut certificate = Reader::new(Reader::only(bytes, tag::SEQUENCE)?.content);
        let whole = certificate.expect(tag::SEQUENCE)?;
        let algorithm = certificate.expect(tag::SEQUENCE)?.whole;
        let signature = certificate.expect(tag::BIT_STRING)?.content;
        certificate.end()?;
        let mut signed = Reader::new(whole.content);

        // Version 1 says nothing of its version. Old roots have it, and rustls takes them for anchors.
        if let Some(version) = signed.optional(tag::context(0))? {
            Reader::only(version.content, tag::INTEGER)?;
        }
        let serial = signed.expect(tag::INTEGER)?.content;
        signed.expect(tag::SEQUENCE)?;
        let issuer = signed.expect(tag::SEQUENCE)?.content;
        let mut validity = signed.enter(tag::SEQUENCE)?;
        let not_before = validity.next()?.time()?;
        let not_after = validity.next()?.time()?;
        validity.end()?;
        let subject = signed.expect(tag::SEQUENCE)?.content;
        let public_key = signed.expect(tag::SEQUENCE)?;
        // Its algorithm and its bits, and nothing behind them that another reader would leave out.
        let mut key = Reader::new(public_key.content);
        key.expect(tag::SEQUENCE)?;
        key.expect(tag::BIT_STRING)?;
        key.end()?;
        let mut is_ca = false;
        // Unique identifiers, which nobody uses any more, may come before the extensions.
        while !signed.is_empty() {
            let element = signed.next()?;
            if element.tag == tag::context(3) {
                is_ca = read_extensions(element.content)?;
                signed.end()?;
                break;
            }
        }
        Ok(Self {
            signed: whole.whole,
            algorithm,
            signature,
            serial,
            issuer,
            not_before,
            not_after,
            subject,
            public_key: public_key.whole,
            is_ca,
        })
    }
}

/// Whether the extensions make it an authority. The same extension twice makes a certificate unreadable.
fn read_extensions(content: &[u8]) -> Result<bool, NotDer> {
    let mut extensions = Reader::new(Reader::only(content, tag::SEQUENCE)?.content);
    let mut is_ca = None;
    while !extensions.is_empty() {
        let mut extension = extensions.enter(tag::SEQUENCE)?;
        let id = extension.expect(tag::OBJECT_IDENTIFIER)?.content;
        extension.optional(tag::BOOLEAN)?;
        let value = extension.expect(tag::OCTET_STRING)?.content;
        extension.end()?;
        if id == BASIC_CONSTRAINTS {
            let mut constraints = Reader::new(Reader::only(value, tag::SEQUENCE)?.content);
            let flag = constraints.optional(tag::BOOLEAN)?;
            constraints.optional(tag::INTEGER)?;
            constraints.end()?;
            let flag = flag.map_or(Ok(false), |flag| flag.boolean())?;
            if is_ca.replace(flag).is_some() {
                return Err(NotDer);
            }
        }
    }
    Ok(is_ca.unwrap_or(false))
}

/// The common name in a name, if there is exactly one.
fn only_common_name(name: &[u8]) -> Option<String> {
    let mut names = Reader::new(name);
    let mut found = None;
    while !names.is_empty() {
        let mut set = names.enter(tag::SET).ok()?;
        while !set.is_empty() {
            let mut attribute = set.enter(tag::SEQUENCE).ok()?;
            let kind = attribute.expect(tag::OBJECT_IDENTIFIER).ok()?;
            let value = attribute.next().ok()?;
            attribute.end().ok()?;
            if kind.content == COMMON_NAME && found.replace(value.text().ok()?).is_some() {
                return None;
            }
        }
    }
    found.map(str::to_owned)
}

fn upper_hex(serial: &[u8]) -> String {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    let start = zeros.min(serial.len().saturating_sub(1));
    crate::base::radix::HEXUPPER.encode(serial.get(start..).unwrap_or_default())
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::key::PrivateKey;
    use crate::identity::test_handshake::{Leaf, TestAuthority};

    fn chain(cn: &str) -> CertificateChain {
        TestAuthority::new("ca").issue(&Leaf::peer(cn), &PrivateKey::generate().unwrap())
    }

    #[test]
    fn a_chain_survives_pem() {
        let written = chain("fed:x");
        assert_eq!(CertificateChain::from_pem(&written.to_pem()).unwrap(), written);
        assert_eq!(written.to_der().len(), 2);
    }

    #[test]
    fn facts_are_those_of_the_certificate() {
        let ca = TestAuthority::new("the ca");
        let key = PrivateKey::generate().unwrap();
        let leaf = Leaf::peer("shop-17");
        let facts = ca.issue(&leaf, &key).facts().clone();
        assert_eq!(facts.subject_cn.as_deref(), Some("shop-17"));
        assert_eq!(facts.issuer_cn.as_deref(), Some("the ca"));
        assert_eq!(
            (facts.not_before, facts.not_after),
            (leaf.not_before, leaf.not_after)
        );
        assert_eq!(facts.public_key_digest, key.public_key_digest());
        assert!(!facts.is_ca);
        let ca_facts = CertificateFacts::of_der(&ca.certificate).unwrap();
        assert!(ca_facts.is_ca);
        assert_eq!(ca_facts.fingerprint, ca.pin());
    }

    /// What another parser reads in the same bytes.
    fn facts_of_another_parser(der: &[u8]) -> Option<CertificateFacts> {
        use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};
        let only_name = |name: &X509Name<'_>| {
            let mut names = name.iter_common_name();
            let first = names.next()?.as_str().ok()?.to_owned();
            names.next().is_none().then_some(first)
        };
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        rest.is_empty().then(|| CertificateFacts {
            subject_cn: only_name(certificate.subject()),
            issuer_cn: only_name(certificate.issuer()),
            not_before: UnixTime::from_seconds(certificate.validity().not_before.timestamp()),
            not_after: UnixTime::from_seconds(certificate.validity().not_after.timestamp()),
            serial_hex: upper_hex(certificate.raw_serial()),
            is_ca: certificate.is_ca(),
            public_key_digest: PublicKeyDigest::of_spki(certificate.public_key().raw),
            fingerprint: CaFingerprint::of_der(der),
        })
    }

    /// Old encodings of names are not read here.
    fn without_names(facts: CertificateFacts) -> CertificateFacts {
        CertificateFacts {
            subject_cn: None,
            issuer_cn: None,
            ..facts
        }
    }

    #[test]
    fn nothing_hides_behind_the_bits_of_a_key() {
        let der = chain("fed:x").leaf().to_vec();
        let bits = der
            .windows(3)
            .position(|bytes| bytes == [tag::BIT_STRING, 0x21, 0])
            .unwrap();
        for length in 1..0x21 {
            let mut shortened = der.clone();
            shortened[bits + 1] = length;
            assert!(CertificateFacts::of_der(&shortened).is_err(), "{length}");
        }
    }

    /// Certificates of other authorities, with all that the world puts into one.
    #[test]
    fn the_system_s_authorities_are_read_as_another_parser_reads_them() {
        let roots = rustls_native_certs::load_native_certs().certs;
        let ca = TestAuthority::new("Zweigstelle Köln");
        let own = [ca.certificate.clone(), chain("fed:x").leaf().clone()];
        for der in roots.iter().chain(&own) {
            let facts = CertificateFacts::of_der(der).unwrap();
            let other = facts_of_another_parser(der).unwrap();
            assert_eq!(without_names(facts), without_names(other));
        }
        for der in &own {
            assert_eq!(CertificateFacts::of_der(der).ok(), facts_of_another_parser(der));
        }
    }

    #[test]
    fn only_the_exact_name_is_a_peer() {
        const ID: &str = "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e";
        let peer = |cn: &str| peer_id_of(chain(cn).leaf()).map(|id| id.to_string());
        assert_eq!(peer(&format!("fed:{ID}")).as_deref(), Some(ID));
        for other in [
            ID.to_owned(),
            format!("FED:{ID}"),
            format!("fed:{}", ID.to_uppercase()),
            format!("fed: {ID}"),
            format!("fed:{ID} "),
            format!("fed:{}", ID.replace('-', "")),
            format!("fed:{{{ID}}}"),
            "fed:".to_owned(),
        ] {
            assert_eq!(peer(&other), None, "{other}");
        }
        assert_eq!(peer_id_of(b"no certificate"), None);
    }

    #[test]
    fn serials_are_upper_case_without_leading_zeros() {
        assert_eq!(upper_hex(&[0, 0xab, 0x0c]), "AB0C");
        assert_eq!(upper_hex(&[0, 0]), "00");
        assert_eq!(upper_hex(&[]), "");
    }

    #[test]
    fn each_kind_of_bad_pem_has_its_error() {
        let good = chain("x").to_pem();
        let read = |text: &str| CertificateChain::from_pem(text).unwrap_err();
        assert_eq!(read(""), PemError::Empty);
        assert_eq!(read(&good.replace("CERTIFICATE", "PUBLIC KEY")), PemError::Empty);
        assert_eq!(
            read(&good.replace("-----END", "-----DNE")),
            PemError::Damaged { position: 1 }
        );
        let second_cut = &good[..good.len() - 40];
        assert_eq!(read(second_cut), PemError::Damaged { position: 2 });
        let other = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(read(other), PemError::Unreadable { position: 1 });
        assert_eq!(
            read(&good.repeat(CHAIN_MAX_CERTIFICATES)),
            PemError::TooMany {
                max: CHAIN_MAX_CERTIFICATES
            }
        );
        assert!(matches!(
            read(&" ".repeat(CHAIN_PEM_MAX_BYTES + 1)),
            PemError::TooLarge { .. }
        ));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>()) {
            let _ = CertificateChain::from_pem(&text);
        }

        #[test]
        fn no_content_between_the_lines_makes_the_reader_panic(der in proptest::collection::vec(any::<u8>(), 0..400)) {
            let text = write_pem([&CertificateDer::from(der)]);
            prop_assert!(CertificateChain::from_pem(&text).is_err());
        }

        #[test]
        fn no_changed_byte_makes_the_reader_panic(position in any::<proptest::sample::Index>(), byte in any::<u8>()) {
            let mut der = chain("fed:x").leaf().to_vec();
            let position = position.index(der.len());
            der[position] = byte;
            let _ = peer_id_of(&der);
            // What both can read, both read alike; a name that is read nowhere else is read here neither.
            if let (Ok(here), Some(there)) = (CertificateFacts::of_der(&der), facts_of_another_parser(&der)) {
                prop_assert!(here.subject_cn.is_none() || here.subject_cn == there.subject_cn);
                prop_assert!(here.issuer_cn.is_none() || here.issuer_cn == there.issuer_cn);
                prop_assert_eq!(without_names(here), without_names(there));
            }
        }
    }
}
