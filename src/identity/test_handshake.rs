//! For tests: a throw-away authority, and whole TLS handshakes in memory, over real `rustls`
//! connections but without a socket.

#![allow(clippy::unwrap_used)]

use std::io;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::anchors::Anchors;
use super::certificate::CertificateChain;
use super::key::PrivateKey;
use super::tls::{IdentityWatch, TimeSource, TlsIdentity};
use super::tls_failure::{TlsFailure, explain_tls_failure};
use crate::base::time::UnixTime;
use crate::contract::invitation::CaFingerprint;

/// 2026-05-17, the middle of the validity that [`Leaf`] gives.
pub(crate) const NOW: UnixTime = UnixTime::from_seconds(1_779_000_000);

const DAY: i64 = 24 * 60 * 60;

/// A clock that stands still.
pub(crate) fn at(time: UnixTime) -> TimeSource {
    Arc::new(move || time)
}

/// The watch of something that does not change.
pub(crate) fn fixed<T>(value: T) -> watch::Receiver<Arc<T>> {
    watch::channel(Arc::new(value)).1
}

/// An authority as published platforms have it: Ed25519, nothing special.
pub(crate) struct TestAuthority {
    key: PrivateKey,
    params: CertificateParams,
    pub(crate) certificate: CertificateDer<'static>,
}

/// What a certificate to issue should be like.
pub(crate) struct Leaf<'a> {
    pub(crate) cn: &'a str,
    pub(crate) names: &'a [&'a str],
    pub(crate) usages: &'a [ExtendedKeyUsagePurpose],
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
}

impl Leaf<'_> {
    /// A client certificate as contract section 11 describes it: a common name, no SAN, no key
    /// identifiers.
    pub(crate) const fn peer(cn: &str) -> Leaf<'_> {
        Leaf {
            cn,
            names: &[],
            usages: &[
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ],
            not_before: UnixTime::from_seconds(NOW.as_seconds() - 30 * DAY),
            not_after: UnixTime::from_seconds(NOW.as_seconds() + 60 * DAY),
        }
    }

    /// A server certificate for `bridge.example`.
    pub(crate) const fn server() -> Leaf<'static> {
        Leaf {
            names: &["bridge.example", "other.example"],
            usages: &[ExtendedKeyUsagePurpose::ServerAuth],
            ..Leaf::peer("bridge")
        }
    }
}

impl TestAuthority {
    pub(crate) fn new(name: &str) -> Self {
        Self::from_params(&Self::params(name), None)
    }

    /// An authority below this one.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        Self::from_params(&Self::params(name), Some(self))
    }

    /// One whose certificate ends then.
    pub(crate) fn ending(name: &str, not_after: UnixTime) -> Self {
        let mut params = Self::params(name);
        params.not_after = OffsetDateTime::from_unix_timestamp(not_after.as_seconds()).unwrap();
        Self::from_params(&params, None)
    }

    /// This one's word for another: a certificate for its name and key.
    pub(crate) fn vouch_for(&self, next: &Self) -> CertificateDer<'static> {
        let cross = next.params.clone().signed_by(&next.key, &self.issuer());
        cross.unwrap().into()
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    fn from_params(params: &CertificateParams, issuer: Option<&Self>) -> Self {
        let key = PrivateKey::generate().unwrap();
        let certificate = match issuer {
            None => params.self_signed(&key),
            Some(issuer) => params.signed_by(&key, &issuer.issuer()),
        };
        Self {
            key,
            params: params.clone(),
            certificate: certificate.unwrap().into(),
        }
    }

    fn issuer(&self) -> Issuer<'_, &PrivateKey> {
        Issuer::from_params(&self.params, &self.key)
    }

    pub(crate) fn pin(&self) -> CaFingerprint {
        CaFingerprint::of_der(&self.certificate)
    }

    pub(crate) fn anchors(&self) -> Anchors {
        Anchors::from_der(vec![self.certificate.clone()]).unwrap()
    }

    /// Certifies `key`; the chain ends with this authority.
    pub(crate) fn issue(&self, leaf: &Leaf<'_>, key: &PrivateKey) -> CertificateChain {
        let date = |time: UnixTime| OffsetDateTime::from_unix_timestamp(time.as_seconds()).unwrap();
        let names: Vec<String> = leaf.names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date(leaf.not_before);
        params.not_after = date(leaf.not_after);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, leaf.cn);
        params.extended_key_usages = leaf.usages.to_vec();
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        CertificateChain::from_der(certificate.into(), vec![self.certificate.clone()]).unwrap()
    }

    /// A certificate with a key of its own.
    pub(crate) fn identity(&self, leaf: &Leaf<'_>) -> TlsIdentity {
        let key = PrivateKey::generate().unwrap();
        TlsIdentity::new(&self.issue(leaf, &key), &key).unwrap()
    }

    pub(crate) fn watched(&self, leaf: &Leaf<'_>) -> IdentityWatch {
        fixed(self.identity(leaf))
    }
}

/// Why a handshake did not succeed, as each side saw it.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) client: Option<TlsFailure>,
    pub(crate) server: Option<TlsFailure>,
}

/// Two connections after their handshake.
pub(crate) type Connected = (ClientConnection, ServerConnection);

/// A handshake for `name`, to its end on both sides.
pub(crate) fn handshake(client: ClientConfig, server: ServerConfig, name: &str) -> Result<Connected, Failed> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    while client.wants_write() || server.wants_write() {
        let to_server = drain(|buffer| client.write_tls(buffer), client_error.is_some());
        feed(&to_server, |bytes| {
            server.read_tls(bytes)?;
            if let Err(error) = server.process_new_packets() {
                server_error.get_or_insert_with(|| explain_tls_failure(&error));
            }
            Ok(())
        });
        let to_client = drain(|buffer| server.write_tls(buffer), server_error.is_some());
        feed(&to_client, |bytes| {
            client.read_tls(bytes)?;
            if let Err(error) = client.process_new_packets() {
                client_error.get_or_insert_with(|| explain_tls_failure(&error));
            }
            Ok(())
        });
    }
    if client_error.is_some() || server_error.is_some() {
        return Err(Failed {
            client: client_error,
            server: server_error,
        });
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

fn drain(mut write: impl FnMut(&mut Vec<u8>) -> io::Result<usize>, failed: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    while write(&mut bytes).unwrap() > 0 && !failed {}
    bytes
}

fn feed(mut bytes: &[u8], mut read: impl FnMut(&mut &[u8]) -> io::Result<()>) {
    while !bytes.is_empty() {
        let before = bytes.len();
        // After a fatal error a connection reads no more; what is left is of no interest.
        if read(&mut bytes).is_err() || bytes.len() == before {
            return;
        }
    }
}
