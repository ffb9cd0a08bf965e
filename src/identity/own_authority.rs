//! The certificate authority of a satellite among equals (contract section 3, symmetric trust): an Ed25519 key
//! with its self-signed certificate, and the certificates that it issues for the satellite itself. Written with
//! the same few functions of DER that requests are written with, so that a satellite carries no library for
//! issuing. Time and serial numbers are given; knows no store and no peer.

use std::time::Duration;

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::certificate::{CertificateChain, CertificateFacts, Fields, write_pem};
use super::der::{self, tag};
use super::key::{
    COMMON_NAME_MAX_CHARS, GenerateKeyError, InvalidPrivateKey, PrivateKey, common_name, has_signed,
};
use super::succession::next_generation;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;

/// Life of the authority: ten years, as that of a parent.
pub const OWN_AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Life of what it issues, as of a parent's certificates (contract section 3).
pub const OWN_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(90 * 86_400);

/// How long before "now" a certificate begins, for the other side's clock.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// Random bytes for a serial number, drawn by the caller.
pub type SerialEntropy = [u8; 16];

/// Extensions by the content of their object identifiers, 2.5.29.x.
const SUBJECT_KEY_ID: &[u8] = &[0x55, 0x1d, 0x0e];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];

/// `id-kp-serverAuth` and `id-kp-clientAuth`.
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

/// Named bits of a key usage, with the number of unused ones in front: keyCertSign and cRLSign, and
/// digitalSignature and keyEncipherment.
const USAGE_OF_AUTHORITY: &[u8] = &[1, 0x06];
const USAGE_OF_PEER: &[u8] = &[5, 0xa0];

/// Bytes of a key identifier (RFC 7093, method 1).
const KEY_ID_BYTES: usize = 20;

/// The authority, ready to issue.
#[derive(Debug)]
pub struct OwnAuthority {
    key: PrivateKey,
    name: String,
    certificate: CertificateDer<'static>,
    not_after: UnixTime,
}

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum OwnAuthorityError {
    /// No key.
    #[error("the box's own certificate authority has no key")]
    Generate(#[from] GenerateKeyError),
    /// The stored key is damaged.
    #[error(
        "the stored key of the box's own certificate authority cannot be read; restore the state from a backup or join again"
    )]
    Key(#[from] InvalidPrivateKey),
    /// The stored certificate is damaged, or another key's.
    #[error(
        "the stored certificate of the box's own certificate authority cannot be used; restore the state from a backup or join again"
    )]
    Certificate,
    /// A name that no certificate can carry.
    #[error("no certificate can carry the name `{0}`; ask the parent's operator for a new invitation")]
    Name(String),
    /// A time that no certificate can hold, or after the authority's own.
    #[error("no certificate can begin at {0}; set the clock of this box, and if it is right, join again")]
    Time(UnixTime),
    /// The library failed.
    #[error("the cryptographic library did not sign; this build is broken, install another")]
    Sign,
}

/// What a certificate is for.
enum Purpose<'a> {
    Authority,
    /// For the authority that follows the one that signs.
    Successor {
        issuer: &'a PrivateKey,
    },
    Peer {
        issuer: &'a PrivateKey,
    },
}

/// The authority that is to follow another.
#[derive(Debug)]
pub struct OwnSuccession {
    /// It.
    pub next: OwnAuthority,
    cross: CertificateDer<'static>,
}

impl OwnSuccession {
    /// The other's word for it: a certificate for the same name and key.
    pub fn cross_pem(&self) -> String {
        write_pem([&self.cross])
    }
}

impl OwnAuthority {
    /// A new one with a key of its own.
    pub fn create(name: &str, now: UnixTime, serial: SerialEntropy) -> Result<Self, OwnAuthorityError> {
        let key = PrivateKey::generate()?;
        let content = Content {
            serial,
            issuer: name,
            subject: name,
            key: &key,
            not_before: now.minus(BACKDATE),
            not_after: now.plus(OWN_AUTHORITY_LIFETIME),
            purpose: Purpose::Authority,
        };
        let certificate = content.sign(&key)?;
        Self::of(key, certificate)
    }

    /// One that was kept as [`Self::expose_key`] and [`Self::certificate_pem`] gave it.
    pub fn restore(key: Secret, certificate_pem: &str) -> Result<Self, OwnAuthorityError> {
        let key = PrivateKey::from_pkcs8(key)?;
        let chain =
            CertificateChain::from_pem(certificate_pem).map_err(|_| OwnAuthorityError::Certificate)?;
        Self::of(key, chain.leaf().clone())
    }

    fn of(key: PrivateKey, certificate: CertificateDer<'static>) -> Result<Self, OwnAuthorityError> {
        let facts = CertificateFacts::of_der(&certificate).map_err(|_| OwnAuthorityError::Certificate)?;
        if !facts.is_ca || facts.public_key_digest != key.public_key_digest() {
            return Err(OwnAuthorityError::Certificate);
        }
        Ok(Self {
            name: facts.subject_cn.ok_or(OwnAuthorityError::Certificate)?,
            not_after: facts.not_after,
            key,
            certificate,
        })
    }

    /// The authority to follow this one, which vouches for it as long as both last.
    pub fn succeed(
        &self,
        now: UnixTime,
        [serial, cross_serial]: [SerialEntropy; 2],
    ) -> Result<OwnSuccession, OwnAuthorityError> {
        if now >= self.not_after {
            return Err(OwnAuthorityError::Time(now));
        }
        let next = Self::create(&next_generation(&self.name, COMMON_NAME_MAX_CHARS), now, serial)?;
        let content = Content {
            serial: cross_serial,
            issuer: &self.name,
            subject: &next.name,
            key: &next.key,
            not_before: now.minus(BACKDATE),
            not_after: next.not_after.min(self.not_after),
            purpose: Purpose::Successor { issuer: &self.key },
        };
        let cross = content.sign(&self.key)?;
        Ok(OwnSuccession { next, cross })
    }

    /// Its key in PKCS#8, for the store alone.
    pub const fn expose_key(&self) -> &Secret {
        self.key.expose_pkcs8()
    }

    /// What the other side verifies by.
    pub fn certificate_pem(&self) -> String {
        write_pem([&self.certificate])
    }

    /// A certificate for a key of this box, under the name that the other side has assigned.
    pub fn issue(
        &self,
        subject: &str,
        key: &PrivateKey,
        now: UnixTime,
        serial: SerialEntropy,
    ) -> Result<CertificateChain, OwnAuthorityError> {
        if now >= self.not_after {
            return Err(OwnAuthorityError::Time(now));
        }
        let content = Content {
            serial,
            issuer: &self.name,
            subject,
            key,
            not_before: now.minus(BACKDATE),
            not_after: now.plus(OWN_CERTIFICATE_LIFETIME).min(self.not_after),
            purpose: Purpose::Peer { issuer: &self.key },
        };
        let leaf = content.sign(&self.key)?;
        CertificateChain::from_der(leaf, Vec::new()).map_err(|_| OwnAuthorityError::Sign)
    }
}

/// Whether the authority of this certificate has issued the leaf of a chain, whatever the time.
pub fn has_issued(authority_pem: &str, chain_pem: &str) -> bool {
    let read = |pem| CertificateChain::from_pem(pem).ok();
    let (Some(authority), Some(chain)) = (read(authority_pem), read(chain_pem)) else {
        return false;
    };
    match (Fields::read(authority.leaf()), Fields::read(chain.leaf())) {
        (Ok(authority), Ok(leaf)) => {
            authority.subject == leaf.issuer
                && has_signed(authority.public_key, leaf.algorithm, leaf.signed, leaf.signature)
        }
        _ => false,
    }
}

struct Content<'a> {
    serial: SerialEntropy,
    issuer: &'a str,
    subject: &'a str,
    key: &'a PrivateKey,
    not_before: UnixTime,
    not_after: UnixTime,
    purpose: Purpose<'a>,
}

impl Content<'_> {
    /// RFC 5280, section 4.1: version 3.
    fn sign(&self, key: &PrivateKey) -> Result<CertificateDer<'static>, OwnAuthorityError> {
        let name = |text: &str| common_name(text).map_err(|_| OwnAuthorityError::Name(text.to_owned()));
        let time = |at: UnixTime| der::write_time(at.as_seconds()).map_err(|_| OwnAuthorityError::Time(at));
        let version = der::write(tag::context(0), &[&der::write(tag::INTEGER, &[&[2]])]);
        let serial = der::write(tag::INTEGER, &[&positive(self.serial)]);
        let validity = der::write(tag::SEQUENCE, &[&time(self.not_before)?, &time(self.not_after)?]);
        let extensions = self.extensions();
        let parts: Vec<&[u8]> = extensions.iter().map(Vec::as_slice).collect();
        let extensions = der::write(tag::context(3), &[&der::write(tag::SEQUENCE, &parts)]);
        let content = der::write(
            tag::SEQUENCE,
            &[
                &version,
                &serial,
                PrivateKey::ALGORITHM,
                &name(self.issuer)?,
                &validity,
                &name(self.subject)?,
                &self.key.public_key_info(),
                &extensions,
            ],
        );
        let signature = key.sign(&content).map_err(|_| OwnAuthorityError::Sign)?;
        let signature = der::write(tag::BIT_STRING, &[&[0], &signature]);
        Ok(der::write(tag::SEQUENCE, &[&content, PrivateKey::ALGORITHM, &signature]).into())
    }

    fn extensions(&self) -> Vec<Vec<u8>> {
        let own_id = der::write(tag::OCTET_STRING, &[&key_id(self.key)]);
        let usage = |bits: &[u8]| critical(KEY_USAGE, &der::write(tag::BIT_STRING, &[bits]));
        let of_authority = || {
            let is_ca = der::write(tag::BOOLEAN, &[&[0xff]]);
            let constraints = der::write(tag::SEQUENCE, &[&is_ca]);
            vec![
                critical(BASIC_CONSTRAINTS, &constraints),
                usage(USAGE_OF_AUTHORITY),
            ]
        };
        let issued_by = |issuer| {
            // `keyIdentifier` is `[0]` in place of its tag.
            let issuer_id = der::write(tag::implicit(0), &[&key_id(issuer)]);
            extension(AUTHORITY_KEY_ID, &der::write(tag::SEQUENCE, &[&issuer_id]))
        };
        match self.purpose {
            Purpose::Authority => {
                let mut extensions = of_authority();
                extensions.push(extension(SUBJECT_KEY_ID, &own_id));
                extensions
            }
            Purpose::Successor { issuer } => {
                let mut extensions = of_authority();
                extensions.push(extension(SUBJECT_KEY_ID, &own_id));
                extensions.push(issued_by(issuer));
                extensions
            }
            Purpose::Peer { issuer } => {
                let oid = |content: &[u8]| der::write(tag::OBJECT_IDENTIFIER, &[content]);
                let uses = der::write(tag::SEQUENCE, &[&oid(CLIENT_AUTH), &oid(SERVER_AUTH)]);
                vec![
                    critical(BASIC_CONSTRAINTS, &der::write(tag::SEQUENCE, &[])),
                    usage(USAGE_OF_PEER),
                    extension(EXTENDED_KEY_USAGE, &uses),
                    extension(SUBJECT_KEY_ID, &own_id),
                    issued_by(issuer),
                ]
            }
        }
    }
}

fn extension(id: &[u8], value: &[u8]) -> Vec<u8> {
    let id = der::write(tag::OBJECT_IDENTIFIER, &[id]);
    der::write(tag::SEQUENCE, &[&id, &der::write(tag::OCTET_STRING, &[value])])
}

fn critical(id: &[u8], value: &[u8]) -> Vec<u8> {
    let id = der::write(tag::OBJECT_IDENTIFIER, &[id]);
    let is_critical = der::write(tag::BOOLEAN, &[&[0xff]]);
    let value = der::write(tag::OCTET_STRING, &[value]);
    der::write(tag::SEQUENCE, &[&id, &is_critical, &value])
}

fn key_id(key: &PrivateKey) -> Vec<u8> {
    let digest = Sha256::digest(key.public_key_bytes());
    digest.iter().copied().take(KEY_ID_BYTES).collect()
}

/// A positive number that fills all its bytes.
const fn positive(mut serial: SerialEntropy) -> SerialEntropy {
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use x509_parser::prelude::{FromDer as _, X509Certificate};

    use super::*;
    use crate::contract::invitation::ParentTrust;
    use crate::identity::anchors::Anchors;
    use crate::identity::succession::vouches;
    use crate::identity::test_handshake::{Leaf, NOW, TestAuthority, at, fixed, handshake};
    use crate::identity::tls::{
        ClientAuth, ClientTls, TlsIdentity, client_config, is_client_of, server_config,
    };
    use crate::identity::tls_failure::{FailureRecord, TlsFailure};

    const SUBJECT: &str = "fed:0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e";

    fn authority() -> OwnAuthority {
        OwnAuthority::create("powernode-satellite", NOW, [0xff; 16]).unwrap()
    }

    #[test]
    fn another_parser_reads_what_was_meant() {
        let authority = authority();
        let (rest, own) = X509Certificate::from_der(&authority.certificate).unwrap();
        assert!(rest.is_empty());
        assert!(own.verify_signature(None).is_ok());
        assert!(own.basic_constraints().unwrap().unwrap().value.ca);
        let usage = own.key_usage().unwrap().unwrap().value;
        assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());

        let key = PrivateKey::generate().unwrap();
        let chain = authority.issue(SUBJECT, &key, NOW, [1; 16]).unwrap();
        let (rest, leaf) = X509Certificate::from_der(chain.leaf()).unwrap();
        assert!(rest.is_empty());
        assert!(leaf.verify_signature(Some(own.public_key())).is_ok());
        let usage = leaf.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
        let extended = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.client_auth && extended.server_auth);
        assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
        assert_eq!(leaf.version().0, 2);
        let facts = chain.facts();
        assert_eq!(facts.subject_cn.as_deref(), Some(SUBJECT));
        assert_eq!(facts.issuer_cn.as_deref(), Some("powernode-satellite"));
        assert_eq!(facts.not_after.since(NOW), OWN_CERTIFICATE_LIFETIME);
        assert_eq!(facts.public_key_digest, key.public_key_digest());
    }

    #[test]
    fn it_survives_its_store_and_a_handshake_and_nobody_elses_does() {
        let made = authority();
        let authority = OwnAuthority::restore(made.expose_key().clone(), &made.certificate_pem()).unwrap();
        let parent = TestAuthority::new("parent");
        let dial = |anchors: &OwnAuthority| {
            let key = PrivateKey::generate().unwrap();
            let chain = authority.issue(SUBJECT, &key, NOW, [1; 16]).unwrap();
            let client = client_config(ClientTls {
                trust: &ParentTrust::Pinned(parent.pin()),
                learned: None,
                identity: Some(fixed(TlsIdentity::new(&chain, &key).unwrap())),
                alpn: &[],
                time: at(NOW),
                failures: FailureRecord::default(),
            })
            .unwrap();
            let anchors = Anchors::from_pem(&anchors.certificate_pem()).unwrap();
            let server = server_config(
                parent.watched(&Leaf::server()),
                ClientAuth::Optional(fixed(anchors)),
                &[],
                at(NOW),
            );
            handshake(client, server.unwrap(), "bridge.example")
        };
        assert!(dial(&made).is_ok());
        let other = self::authority();
        assert_eq!(dial(&other).unwrap_err().server, Some(TlsFailure::UnknownIssuer));
        assert!(matches!(
            OwnAuthority::restore(other.expose_key().clone(), &made.certificate_pem()),
            Err(OwnAuthorityError::Certificate)
        ));
    }

    #[test]
    fn its_successor_is_vouched_for_and_known_to_whoever_knows_one_of_the_two() {
        let old = authority();
        let succession = old.succeed(NOW, [[5; 16], [6; 16]]).unwrap();
        let next = &succession.next;
        assert_eq!(next.name, "powernode-satellite G2");
        assert!(vouches(
            &old.certificate,
            &succession.cross,
            &next.certificate,
            NOW
        ));
        let (_, cross) = X509Certificate::from_der(&succession.cross).unwrap();
        let (_, signer) = X509Certificate::from_der(&old.certificate).unwrap();
        assert!(cross.verify_signature(Some(signer.public_key())).is_ok());
        assert!(cross.basic_constraints().unwrap().unwrap().value.ca);

        let key = PrivateKey::generate().unwrap();
        let bare = next.issue(SUBJECT, &key, NOW, [1; 16]).unwrap();
        let chain = bare.clone().with_issuers(vec![succession.cross.clone()]);
        assert!(has_issued(&next.certificate_pem(), &chain.to_pem()));
        assert!(!has_issued(&old.certificate_pem(), &chain.to_pem()));
        let known = |authority: &OwnAuthority, chain: &CertificateChain| {
            let anchors = Anchors::from_pem(&authority.certificate_pem()).unwrap();
            is_client_of(&chain.to_der(), &anchors, NOW)
        };
        assert!(known(next, &bare) && known(next, &chain) && known(&old, &chain));
        assert!(!known(&old, &bare), "without the word in the chain");
        let late = old.not_after;
        assert!(matches!(
            old.succeed(late, [[7; 16]; 2]),
            Err(OwnAuthorityError::Time(_))
        ));
    }

    #[test]
    fn nothing_outlives_it_and_no_name_is_cut() {
        let authority = authority();
        let key = PrivateKey::generate().unwrap();
        let late = authority.not_after.minus(Duration::from_secs(60));
        let chain = authority.issue(SUBJECT, &key, late, [1; 16]).unwrap();
        assert_eq!(chain.facts().not_after, authority.not_after);
        let ended = authority.issue(SUBJECT, &key, authority.not_after, [1; 16]);
        assert!(matches!(ended, Err(OwnAuthorityError::Time(_))));
        for name in ["", &"x".repeat(65)] {
            let refused = authority.issue(name, &key, NOW, [1; 16]);
            assert!(matches!(refused, Err(OwnAuthorityError::Name(_))), "{name}");
        }
    }

    proptest! {
        /// Beyond 2050 the form of times is another one.
        #[test]
        fn times_are_read_as_they_were_written(seconds in 0_i64..250_000_000_000) {
            let written = der::write_time(seconds).unwrap();
            let read = der::Reader::new(&written).next().unwrap().time().unwrap();
            prop_assert_eq!(read, seconds);
        }
    }
}
