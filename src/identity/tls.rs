//! The TLS configurations of both daemons: TLS 1.3 alone, hybrid post-quantum key exchange
//! first, certificates that rotate without restart, time from the caller. Knows no socket:
//! QUIC and TCP are built on the same configurations by others.
//!
//! Sessions are never resumed. A resumed session would skip the certificates of both sides, and
//! with them rotation, expiry and a pin; tunnels live for days, so it would save nothing.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, KeyProvider, aws_lc_rs};
use rustls::pki_types::{self, CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DistinguishedName, OtherError, RootCertStore, ServerConfig,
    SignatureScheme, version,
};
use thiserror::Error;
use tokio::sync::watch;

use super::anchors::{Anchors, AnchorsError, NoSystemRoots, system_roots};
use super::certificate::{CertificateChain, CertificateFacts};
use super::key::PrivateKey;
use super::signatures::signatures_by;
use super::tls_failure::{FailureRecord, PinMissing, to_pki};
use crate::base::time::UnixTime;
use crate::contract::invitation::{CaFingerprint, ParentTrust};

pub use super::tls_failure::explain_tls_failure;

/// Tells the time that certificates are checked against: the trusted time of the process's clock.
pub type TimeSource = Arc<dyn Fn() -> UnixTime + Send + Sync>;

/// What is shown in a handshake: a chain and its key.
pub struct TlsIdentity {
    certified: Arc<CertifiedKey>,
    facts: CertificateFacts,
}

/// Why chain and key make no identity.
#[derive(Debug, Error)]
pub enum TlsIdentityError {
    /// The certificate is another key's.
    #[error(
        "the certificate does not belong to the private key beside it; restore both from one backup or join again"
    )]
    KeyMismatch,
    /// The TLS library does not take the key.
    #[error("the private key cannot be used for TLS; join again to make a new one")]
    Key(#[source] rustls::Error),
}

impl TlsIdentity {
    /// Puts the two together.
    pub fn new(chain: &CertificateChain, key: &PrivateKey) -> Result<Self, TlsIdentityError> {
        if chain.facts().public_key_digest != key.public_key_digest() {
            return Err(TlsIdentityError::KeyMismatch);
        }
        let der = PrivatePkcs8KeyDer::from(key.expose_pkcs8().expose());
        let signer = aws_lc_rs::sign::any_eddsa_type(&der).map_err(TlsIdentityError::Key)?;
        Ok(Self {
            certified: Arc::new(CertifiedKey::new(chain.to_der(), signer)),
            facts: chain.facts().clone(),
        })
    }

    pub(super) const fn of_certified(certified: Arc<CertifiedKey>, facts: CertificateFacts) -> Self {
        Self { certified, facts }
    }

    /// What the certificate says.
    pub const fn facts(&self) -> &CertificateFacts {
        &self.facts
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity")
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

/// The identity that the next handshake shows. Sending another into the watch rotates it.
pub type IdentityWatch = watch::Receiver<Arc<TlsIdentity>>;

/// How a satellite talks to its parent.
pub struct ClientTls<'a> {
    /// By what the parent is known.
    pub trust: &'a ParentTrust,
    /// The anchors that came with a verified certificate ([`super::issued::VerifiedCertificate`]).
    /// They take the place of a pin, so that the parent need not show its CA any more, and stand
    /// beside a bundle or the system's roots.
    pub learned: Option<&'a Anchors>,
    /// Absent until there is a certificate.
    pub identity: Option<IdentityWatch>,
    /// Application protocols, the preferred one first.
    pub alpn: &'a [&'a [u8]],
    /// The trusted time.
    pub time: TimeSource,
    /// Where the verdict on a refused server stays.
    pub failures: FailureRecord,
}

/// Whether a server asks for a certificate.
#[derive(Debug, Clone)]
pub enum ClientAuth {
    /// Asks for it and goes on without; one that is shown must be issued by these anchors.
    Optional(watch::Receiver<Arc<Anchors>>),
    /// The same, and one that ended less long ago than `grace` is let through. Whoever reads it off the
    /// connection has to look at its end: it proves the key, and no more ([`CertificateFacts::not_after`]).
    OptionalOrExpired {
        /// Whose certificates are taken.
        anchors: watch::Receiver<Arc<Anchors>>,
        /// For how long after its end; zero for never.
        grace: watch::Receiver<Duration>,
        /// Whose are taken in their place from those who certify themselves, who get no grace: they need
        /// nobody for their renewal.
        own: Arc<dyn OwnAnchors>,
    },
    /// Never asks.
    None,
}

/// Knows who certifies themselves.
pub trait OwnAnchors: Send + Sync + fmt::Debug {
    /// The authorities that count for certificates of this name, and no others; `None` where the
    /// listener's own do.
    fn of(&self, certificate: &CertificateDer<'_>) -> Option<Arc<Anchors>>;
}

/// Why no configuration could be made.
#[derive(Debug, Error)]
pub enum TlsConfigError {
    /// The CA file is not usable.
    #[error("the parent's CA certificates cannot be used")]
    Bundle(#[source] AnchorsError),
    /// There is nothing to trust.
    #[error(transparent)]
    SystemRoots(#[from] NoSystemRoots),
    /// The TLS library refused; not a matter of configuration.
    #[error("the TLS library refused its own settings; this build is broken, install another")]
    Library(#[source] rustls::Error),
}

/// The configuration of one dial, or of any number of them in a row. Reads the system's roots
/// from files where the trust says so: not to be called where blocking is not allowed.
pub fn client_config(tls: ClientTls<'_>) -> Result<ClientConfig, TlsConfigError> {
    let verifier = ServerVerifier {
        trust: server_trust(tls.trust, tls.learned)?,
        provider: provider(),
        failures: tls.failures,
    };
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(CertificateTime(tls.time)))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsConfigError::Library)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match tls.identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(WatchedIdentity(identity))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = owned_alpn(tls.alpn);
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The configuration of a listener.
pub fn server_config(
    identity: IdentityWatch,
    client_auth: ClientAuth,
    alpn: &[&[u8]],
    time: TimeSource,
) -> Result<ServerConfig, TlsConfigError> {
    let builder = ServerConfig::builder_with_details(provider(), Arc::new(CertificateTime(time)))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsConfigError::Library)?;
    let verified = |anchors, lenience| {
        Arc::new(PeerVerifier {
            anchors,
            lenience,
            provider: provider(),
        })
    };
    let builder = match client_auth {
        ClientAuth::Optional(anchors) => builder.with_client_cert_verifier(verified(anchors, None)),
        ClientAuth::OptionalOrExpired { anchors, grace, own } => {
            builder.with_client_cert_verifier(verified(anchors, Some(Lenience { grace, own })))
        }
        ClientAuth::None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(WatchedIdentity(identity)));
    config.alpn_protocols = owned_alpn(alpn);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The cryptography of every connection. The order of the groups is stated here rather than left
/// to a feature of the library that another dependency could change.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        key_provider: &Ed25519Keys,
        ..aws_lc_rs::default_provider()
    })
}

/// Loads keys of the one kind that both sides make for themselves ([`PrivateKey`]). The library's own brings along
/// all that signs with any other.
#[derive(Debug)]
struct Ed25519Keys;

impl KeyProvider for Ed25519Keys {
    fn load_private_key(&self, key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        match key {
            PrivateKeyDer::Pkcs8(key) => aws_lc_rs::sign::any_eddsa_type(&key),
            _ => Err(rustls::Error::General("the key is not in PKCS #8".to_owned())),
        }
    }
}

pub(super) fn owned_alpn(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.to_vec()).collect()
}

pub(super) struct CertificateTime(pub(super) TimeSource);

impl TimeProvider for CertificateTime {
    fn current_time(&self) -> Option<pki_types::UnixTime> {
        to_pki((self.0)())
    }
}

impl fmt::Debug for CertificateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateTime")
    }
}

#[derive(Debug)]
pub(super) struct WatchedIdentity(pub(super) IdentityWatch);

impl ResolvesClientCert for WatchedIdentity {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let certified = Arc::clone(&self.0.borrow().certified);
        certified
            .key
            .choose_scheme(schemes)
            .is_some()
            .then_some(certified)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for WatchedIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.borrow().certified))
    }
}

#[derive(Debug)]
pub(super) enum ServerTrust {
    Pinned(CaFingerprint),
    Roots(Arc<RootCertStore>),
}

pub(super) fn server_trust(
    trust: &ParentTrust,
    learned: Option<&Anchors>,
) -> Result<ServerTrust, TlsConfigError> {
    let mut roots = match (trust, learned) {
        (ParentTrust::Pinned(pin), None) => return Ok(ServerTrust::Pinned(*pin)),
        (ParentTrust::Pinned(_), Some(learned)) => return Ok(ServerTrust::Roots(learned.roots())),
        (ParentTrust::Bundle(pem), _) => {
            let bundle = Anchors::from_pem(pem).map_err(TlsConfigError::Bundle)?;
            RootCertStore::clone(&bundle.roots())
        }
        (ParentTrust::SystemRoots, Some(_)) => system_roots().unwrap_or_else(|_| RootCertStore::empty()),
        (ParentTrust::SystemRoots, None) => system_roots()?,
    };
    if let Some(learned) = learned {
        roots.extend(learned.roots().roots.iter().cloned());
    }
    Ok(ServerTrust::Roots(Arc::new(roots)))
}

/// Verifies the parent: chain up to the trust, validity, usage and name.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) trust: ServerTrust,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) failures: FailureRecord,
}

impl ServerVerifier {
    fn roots(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<Arc<RootCertStore>, rustls::Error> {
        let pin = match &self.trust {
            ServerTrust::Roots(roots) => return Ok(Arc::clone(roots)),
            ServerTrust::Pinned(pin) => *pin,
        };
        // The leaf is not looked at: a server that is its own authority is not what was pinned.
        let pinned = intermediates
            .iter()
            .find(|shown| CaFingerprint::of_der(shown) == pin)
            .ok_or_else(|| {
                let shown = intermediates.len() + usize::from(!end_entity.is_empty());
                CertificateError::Other(OtherError(Arc::new(PinMissing { pin, shown })))
            })?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        Ok(Arc::new(roots))
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.roots(end_entity, intermediates)
            .and_then(|roots| {
                WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
                    .build()
                    .map_err(|error| rustls::Error::General(error.to_string()))
            })
            .and_then(|webpki| {
                webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            })
            .map_err(namesake_is_unknown)
            .inspect_err(|error| self.failures.note(error))
    }

    signatures_by!(self => self.provider);
}

/// Verifies a federation peer that shows a certificate: chain, validity and usage. Whose it is
/// comes from its common name (contract section 11: no SAN and no key identifier in it).
#[derive(Debug)]
struct PeerVerifier {
    anchors: watch::Receiver<Arc<Anchors>>,
    /// What else is let through than valid certificates of the anchors.
    lenience: Option<Lenience>,
    provider: Arc<CryptoProvider>,
}

/// See [`ClientAuth::OptionalOrExpired`].
#[derive(Debug)]
struct Lenience {
    grace: watch::Receiver<Duration>,
    own: Arc<dyn OwnAnchors>,
}

impl PeerVerifier {
    /// The last moment at which the certificate held, where its end is all that speaks against it.
    fn within_grace(
        &self,
        end_entity: &CertificateDer<'_>,
        error: &rustls::Error,
        now: pki_types::UnixTime,
    ) -> Option<pki_types::UnixTime> {
        let expired = matches!(
            error,
            rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            )
        );
        let grace = *self.lenience.as_ref().filter(|_| expired)?.grace.borrow();
        let ended = to_pki(CertificateFacts::of_der(end_entity).ok()?.not_after)?;
        let age = now.as_secs().checked_sub(ended.as_secs())?;
        (age <= grace.as_secs()).then_some(ended)
    }
}

/// A certificate for client authentication that leads to one of `roots`.
pub(super) fn verify_client_certificate(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    now: pki_types::UnixTime,
) -> Result<ClientCertVerified, rustls::Error> {
    WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider))
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?
        .verify_client_cert(end_entity, intermediates, now)
        .map_err(namesake_is_unknown)
}

/// Whether a chain that a client has shown leads to one of these anchors and may authenticate clients.
pub fn is_client_of(shown: &[CertificateDer<'_>], anchors: &Anchors, now: UnixTime) -> bool {
    let (Some((end_entity, intermediates)), Some(now)) = (shown.split_first(), to_pki(now)) else {
        return false;
    };
    verify_client_certificate(end_entity, intermediates, anchors.roots(), &provider(), now).is_ok()
}

/// An authority that was replaced by one of the same name shows as a signature that does not
/// hold. For the operator, and in the alert to the other side, it is an unknown authority.
fn namesake_is_unknown(error: rustls::Error) -> rustls::Error {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::BadSignature) => {
            CertificateError::UnknownIssuer.into()
        }
        other => other,
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Hints would have to be borrowed from here for as long as the anchors may change.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: pki_types::UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if let Some(own) = self
            .lenience
            .as_ref()
            .and_then(|lenience| lenience.own.of(end_entity))
        {
            return verify_client_certificate(end_entity, intermediates, own.roots(), &self.provider, now);
        }
        let roots = self.anchors.borrow().roots();
        let verify =
            |at| verify_client_certificate(end_entity, intermediates, Arc::clone(&roots), &self.provider, at);
        verify(now).or_else(|error| match self.within_grace(end_entity, &error, now) {
            Some(ended) => verify(ended),
            None => Err(error),
        })
    }

    signatures_by!(self => self.provider);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
