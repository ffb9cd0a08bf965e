//! The embedded certificate authority: an Ed25519 key, its self-signed certificate, and the two
//! kinds of certificates that it issues, for federation peers and for the bridge's own
//! listeners. What may be asked of it is `request`'s. Knows no registry, no clock and no files: key, time and serial number are given.

mod request;

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, ServerName};
use thiserror::Error;
use time::OffsetDateTime;

use self::request::CheckedRequest;
pub use self::request::{CSR_PEM_MAX_BYTES, CsrRefused, csr_public_key_digest};
use crate::base::id::{PeerId, PublicKeyDigest};
use crate::base::limit::foreign_text;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::contract::invitation::CaFingerprint;
use crate::identity::anchors::{Anchors, AnchorsError};
use crate::identity::certificate::{CertificateChain, CertificateFacts, PemError, peer_subject, write_pem};
use crate::identity::key::{GenerateKeyError, InvalidPrivateKey, PrivateKey};
use crate::identity::succession::next_generation;

/// Life of a federation certificate (contract section 3).
pub const PEER_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(90 * DAY_SECONDS);

/// Life of the certificate of the bridge's own listeners: as long as a peer's, so that renewal is
/// exercised as often.
pub const SERVER_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(90 * DAY_SECONDS);

/// Life of the authority itself: ten years. Satellites pin it, so it should outlive the boxes.
pub const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * DAY_SECONDS);

/// How long before "now" every certificate begins, so that a box whose clock lags a little can
/// use it at once.
pub const NOT_BEFORE_BACKDATE: Duration = Duration::from_secs(5 * 60);

/// Most names in a server certificate: a bridge with DNS names and addresses of both families in
/// some networks has a dozen.
pub const SERVER_NAMES_MAX: usize = 32;

/// Longest name of an authority, in characters: the upper bound of X.520.
const AUTHORITY_NAME_MAX_CHARS: usize = 64;

/// Subject of the bridge's own certificate; the names that count are in the SAN.
const SERVER_SUBJECT: &str = "powernode-host-bridge";

const DAY_SECONDS: u64 = 24 * 60 * 60;

/// Random bytes for a serial number, drawn by the caller.
pub type SerialEntropy = [u8; 16];

/// The authority, ready to issue.
#[derive(Debug)]
pub struct CertificateAuthority {
    key: PrivateKey,
    certificate: CertificateDer<'static>,
    anchors: Anchors,
    fingerprint: CaFingerprint,
    certified_key: PublicKeyDigest,
    not_after: UnixTime,
}

/// What a rotation begins with.
#[derive(Debug)]
pub struct Succession {
    /// The next authority.
    pub next: CertificateAuthority,
    cross: CertificateDer<'static>,
}

impl Succession {
    /// The certificate by which the authority before vouches for the next.
    pub fn cross_pem(&self) -> String {
        write_pem([&self.cross])
    }
}

/// Why no authority was made.
#[derive(Debug, Error)]
pub enum CreateAuthorityError {
    /// X.520 allows no such name.
    #[error(
        "the authority's name `{name}` is empty or longer than {AUTHORITY_NAME_MAX_CHARS} characters; choose another"
    )]
    Name {
        /// The name, shortened.
        name: String,
    },
    /// No key.
    #[error("the authority has no key")]
    Key(#[from] GenerateKeyError),
    /// No validity can begin now.
    #[error("no authority can begin now")]
    Validity(#[from] NoValidity),
    /// The library failed.
    #[error("the authority's certificate could not be signed")]
    Sign(#[source] rcgen::Error),
    /// What was signed is not usable.
    #[error("the authority's certificate cannot be used")]
    Certificate(#[source] AnchorsError),
}

/// Why a stored authority does not work.
#[derive(Debug, Error)]
pub enum RestoreAuthorityError {
    /// The key is damaged.
    #[error("the certificate authority's key in the registry is damaged; restore the registry from a backup")]
    Key(#[from] InvalidPrivateKey),
    /// The certificate is damaged.
    #[error(
        "the certificate authority's certificate in the registry is damaged; restore the registry from a backup"
    )]
    Certificate(#[source] AnchorsError),
    /// They do not belong together.
    #[error(
        "the certificate authority's key and certificate do not belong together; restore the registry from a backup"
    )]
    Mismatch,
}

/// Why a certificate cannot begin now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NoValidity {
    /// The time cannot stand in a certificate.
    #[error("no certificate can hold the time {now}; set the clock of this machine")]
    Time {
        /// The time given.
        now: UnixTime,
    },
    /// The authority has ended.
    #[error(
        "this host-bridge's certificate authority ended at {ended}, and the clock of this machine says {now}; set the clock if it is ahead, otherwise a new authority is needed and every satellite has to join again"
    )]
    AuthorityEnded {
        /// The time given.
        now: UnixTime,
        /// End of the authority's validity.
        ended: UnixTime,
    },
}

/// A certificate for a federation peer, as the contract's answer holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// The leaf.
    pub cert_pem: String,
    /// The authority.
    pub ca_chain_pem: String,
    /// Upper-case hex.
    pub serial: String,
    /// End of validity.
    pub not_after: UnixTime,
    /// The key that was certified.
    pub public_key_digest: PublicKeyDigest,
}

/// Key and chain of the bridge's own listeners.
#[derive(Debug)]
pub struct ServerCertificate {
    /// The key.
    pub key: PrivateKey,
    /// Leaf and authority: a satellite that pins the authority finds it in the handshake.
    pub chain: CertificateChain,
}

/// Why the bridge gets no certificate for its listeners.
#[derive(Debug, Error)]
pub enum ServerCertificateError {
    /// Nothing to certify.
    #[error("a server certificate needs at least one name; set public.names")]
    NoNames,
    /// Over [`SERVER_NAMES_MAX`].
    #[error("a server certificate holds at most {SERVER_NAMES_MAX} names, not {found}; shorten public.names")]
    TooManyNames {
        /// Number found.
        found: usize,
    },
    /// Neither a DNS name nor an address.
    #[error(
        "`{name}` in public.names is neither a DNS name nor an IP address; write it without scheme and port"
    )]
    InvalidName {
        /// The name, shortened.
        name: String,
    },
    /// No key.
    #[error("the server has no key")]
    Key(#[from] GenerateKeyError),
    /// No validity can begin now.
    #[error("no certificate can be issued now")]
    Validity(#[from] NoValidity),
    /// The library failed.
    #[error("the server's certificate could not be signed")]
    Sign(#[source] rcgen::Error),
}

impl CertificateAuthority {
    /// A new authority with a key of its own.
    pub fn create(name: &str, now: UnixTime, serial: SerialEntropy) -> Result<Self, CreateAuthorityError> {
        if name.trim().is_empty() || name.chars().nth(AUTHORITY_NAME_MAX_CHARS).is_some() {
            return Err(CreateAuthorityError::Name {
                name: name.chars().take(AUTHORITY_NAME_MAX_CHARS).collect(),
            });
        }
        let key = PrivateKey::generate()?;
        let mut params = params(name, now, now.plus(AUTHORITY_LIFETIME), serial)?;
        // Room for one more: the cross certificate of a rotation.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.use_authority_key_identifier_extension = false;
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params
            .self_signed(&key)
            .map_err(CreateAuthorityError::Sign)?
            .into();
        Self::assemble(key, certificate).map_err(CreateAuthorityError::Certificate)
    }

    /// The authority to follow this one, and this one's word for it: a certificate for the same name and key
    /// under its own signature, as good for as long as itself.
    pub fn succeed(
        &self,
        now: UnixTime,
        [serial, cross_serial]: [SerialEntropy; 2],
    ) -> Result<Succession, CreateAuthorityError> {
        let next = Self::create(&self.next_name(), now, serial)?;
        let not_after = self.end_of(AUTHORITY_LIFETIME, now)?;
        let mut params = params(&self.next_name(), now, not_after, cross_serial)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cross = self
            .issuer()
            .and_then(|issuer| params.signed_by(&next.key, &issuer))
            .map_err(CreateAuthorityError::Sign)?
            .into();
        Ok(Succession { next, cross })
    }

    fn next_name(&self) -> String {
        let facts = CertificateFacts::of_der(&self.certificate).ok();
        let name = facts.and_then(|facts| facts.subject_cn).unwrap_or_default();
        next_generation(&name, AUTHORITY_NAME_MAX_CHARS)
    }

    /// An authority that was kept as [`CertificateAuthority::expose_key`] and
    /// [`CertificateAuthority::certificate_pem`] gave it.
    pub fn restore(key: Secret, certificate_pem: &str) -> Result<Self, RestoreAuthorityError> {
        let key = PrivateKey::from_pkcs8(key)?;
        let anchors = Anchors::from_pem(certificate_pem).map_err(RestoreAuthorityError::Certificate)?;
        let [certificate] = anchors.certificates() else {
            return Err(RestoreAuthorityError::Mismatch);
        };
        let authority =
            Self::assemble(key, certificate.clone()).map_err(RestoreAuthorityError::Certificate)?;
        if authority.certified_key != authority.key.public_key_digest() {
            return Err(RestoreAuthorityError::Mismatch);
        }
        Ok(authority)
    }

    fn assemble(key: PrivateKey, certificate: CertificateDer<'static>) -> Result<Self, AnchorsError> {
        let facts =
            CertificateFacts::of_der(&certificate).map_err(|_| PemError::Unreadable { position: 1 })?;
        Ok(Self {
            key,
            fingerprint: facts.fingerprint,
            certified_key: facts.public_key_digest,
            not_after: facts.not_after,
            anchors: Anchors::from_der(vec![certificate.clone()])?,
            certificate,
        })
    }

    /// The authority's key in PKCS#8, for the registry alone.
    pub const fn expose_key(&self) -> &Secret {
        self.key.expose_pkcs8()
    }

    /// Its certificate.
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The end of its certificate.
    pub const fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// Its certificate as PEM.
    pub fn certificate_pem(&self) -> String {
        self.anchors.to_pem()
    }

    /// What join codes pin.
    pub const fn fingerprint(&self) -> CaFingerprint {
        self.fingerprint
    }

    /// What listeners verify peers by.
    pub const fn anchors(&self) -> &Anchors {
        &self.anchors
    }

    /// A certificate for the key of a request. Of the request nothing but the key is taken: the
    /// name is the peer's, whatever was asked for (contract section 3).
    pub fn issue_peer_certificate(
        &self,
        csr_pem: &str,
        peer_id: PeerId,
        now: UnixTime,
        serial: SerialEntropy,
    ) -> Result<IssuedCertificate, CsrRefused> {
        let request = CheckedRequest::read(csr_pem)?;
        let not_after = self.end_of(PEER_CERTIFICATE_LIFETIME, now)?;
        let mut params = params(&peer_subject(peer_id), now, not_after, serial)?;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let uri = format!("powernode://federation-peer/{peer_id}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(CsrRefused::Sign)?)];
        let certificate = self
            .issuer()
            .and_then(|issuer| params.signed_by(&request.key, &issuer))
            .map_err(CsrRefused::Sign)?;
        Ok(IssuedCertificate {
            cert_pem: certificate.pem(),
            ca_chain_pem: self.certificate_pem(),
            serial: crate::base::radix::HEXUPPER.encode(&positive(serial)),
            not_after,
            public_key_digest: request.digest,
        })
    }

    /// A new key and certificate for the bridge's listeners, for DNS names and addresses.
    pub fn issue_server_certificate(
        &self,
        names: &[String],
        now: UnixTime,
        serial: SerialEntropy,
    ) -> Result<ServerCertificate, ServerCertificateError> {
        if names.is_empty() {
            return Err(ServerCertificateError::NoNames);
        }
        if names.len() > SERVER_NAMES_MAX {
            return Err(ServerCertificateError::TooManyNames { found: names.len() });
        }
        let key = PrivateKey::generate()?;
        let not_after = self.end_of(SERVER_CERTIFICATE_LIFETIME, now)?;
        let mut params = params(SERVER_SUBJECT, now, not_after, serial)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = names
            .iter()
            .map(|name| server_name(name))
            .collect::<Result<_, _>>()?;
        let leaf = self
            .issuer()
            .and_then(|issuer| params.signed_by(&key, &issuer))
            .map_err(ServerCertificateError::Sign)?;
        let chain = CertificateChain::from_der(leaf.into(), vec![self.certificate.clone()])
            .map_err(|_| ServerCertificateError::Sign(rcgen::Error::CouldNotParseCertificate))?;
        Ok(ServerCertificate { key, chain })
    }

    /// No certificate outlives its authority.
    fn end_of(&self, lifetime: Duration, now: UnixTime) -> Result<UnixTime, NoValidity> {
        if now >= self.not_after {
            return Err(NoValidity::AuthorityEnded {
                now,
                ended: self.not_after,
            });
        }
        Ok(now.plus(lifetime).min(self.not_after))
    }

    fn issuer(&self) -> Result<Issuer<'static, &PrivateKey>, rcgen::Error> {
        Issuer::from_ca_cert_der(&self.certificate, &self.key)
    }
}

/// What all certificates have in common.
fn params(
    subject: &str,
    now: UnixTime,
    not_after: UnixTime,
    serial: SerialEntropy,
) -> Result<CertificateParams, NoValidity> {
    let date = |time: UnixTime| {
        OffsetDateTime::from_unix_timestamp(time.as_seconds()).map_err(|_| NoValidity::Time { now })
    };
    let mut params = CertificateParams::default();
    params.not_before = date(now.minus(NOT_BEFORE_BACKDATE))?;
    params.not_after = date(not_after)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    params.serial_number = Some(SerialNumber::from_slice(&positive(serial)));
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A positive number that fills all its bytes, so that it reads the same in every notation.
const fn positive(mut serial: SerialEntropy) -> SerialEntropy {
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

fn server_name(name: &str) -> Result<SanType, ServerCertificateError> {
    let invalid = || ServerCertificateError::InvalidName {
        name: foreign_text(name),
    };
    let concrete = name.strip_prefix("*.").unwrap_or(name);
    match ServerName::try_from(concrete).map_err(|_| invalid())? {
        ServerName::IpAddress(_) => name
            .parse::<IpAddr>()
            .map(SanType::IpAddress)
            .map_err(|_| invalid()),
        _ => name.try_into().map(SanType::DnsName).map_err(|_| invalid()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
