//! TLS where the bridge dials the satellite: the same two certificates, shown from the other ends.
//!
//! The satellite listens with its peer certificate, which names it in its subject alone; the bridge
//! dials with its server certificate, which names the hosts under which satellites look for it.
//! Each side checks of the other exactly what it checks when the satellite dials: the bridge a
//! chain to its authority (whose certificate it is, it then reads from it), the satellite the
//! parent's trust and a name of the parent's bridges. Another satellite of the same parent has no
//! such name and is not let in.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{self, CertificateDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{ClientConfig, DistinguishedName, ServerConfig, version};
use tokio::sync::watch;

use super::anchors::Anchors;
use super::signatures::signatures_by;
use super::tls::{
    CertificateTime, IdentityWatch, ServerVerifier, TimeSource, TlsConfigError, WatchedIdentity, owned_alpn,
    provider, server_trust, verify_client_certificate,
};
use super::tls_failure::FailureRecord;
use crate::contract::invitation::ParentTrust;

/// By what a satellite that listens knows its parent's bridge.
#[derive(Debug, Clone)]
pub struct BridgeTrust {
    /// By what the parent is known.
    pub trust: ParentTrust,
    /// The anchors that came with the certificate.
    pub learned: Option<Anchors>,
    /// Hosts under which this satellite looks for bridges.
    pub names: Vec<String>,
}

/// How a satellite takes a bridge's dial. Reads the system's roots from files where the trust says
/// so: not to be called where blocking is not allowed.
pub fn satellite_server_config(
    identity: IdentityWatch,
    bridge: &BridgeTrust,
    alpn: &[&[u8]],
    time: TimeSource,
) -> Result<ServerConfig, TlsConfigError> {
    let verifier = bridge_as_client(bridge)?;
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(CertificateTime(time)))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsConfigError::Library)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(WatchedIdentity(identity)));
    config.alpn_protocols = owned_alpn(alpn);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// How a bridge dials a satellite.
pub fn bridge_client_config(
    identity: IdentityWatch,
    anchors: watch::Receiver<Arc<Anchors>>,
    alpn: &[&[u8]],
    time: TimeSource,
    failures: FailureRecord,
) -> Result<ClientConfig, TlsConfigError> {
    let verifier = SatelliteAsServer {
        anchors,
        provider: provider(),
        failures,
    };
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(CertificateTime(time)))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsConfigError::Library)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(WatchedIdentity(identity)));
    config.alpn_protocols = owned_alpn(alpn);
    config.resumption = Resumption::disabled();
    // The satellite is known by its certificate; the name of a dial to an address means nothing.
    config.enable_sni = false;
    Ok(config)
}

/// What lets in who would do as a bridge of this parent.
pub(super) fn bridge_as_client(bridge: &BridgeTrust) -> Result<BridgeAsClient, TlsConfigError> {
    let names = bridge
        .names
        .iter()
        .filter_map(|name| ServerName::try_from(name.clone()).ok())
        .collect();
    Ok(BridgeAsClient {
        names,
        verifier: ServerVerifier {
            trust: server_trust(&bridge.trust, bridge.learned.as_ref())?,
            provider: provider(),
            failures: FailureRecord::default(),
        },
    })
}

/// Verifies a bridge that dials as one is verified that is dialled.
#[derive(Debug)]
pub(super) struct BridgeAsClient {
    names: Vec<ServerName<'static>>,
    verifier: ServerVerifier,
}

impl BridgeAsClient {
    pub(super) const fn provider(&self) -> &Arc<CryptoProvider> {
        &self.verifier.provider
    }
}

impl ClientCertVerifier for BridgeAsClient {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: pki_types::UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let mut refused = rustls::CertificateError::NotValidForName.into();
        for name in &self.names {
            match self
                .verifier
                .verify_server_cert(end_entity, intermediates, name, &[], now)
            {
                Ok(_) => return Ok(ClientCertVerified::assertion()),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    signatures_by!(self => self.verifier.provider);
}

/// Verifies a satellite that is dialled as one is verified that dials.
#[derive(Debug)]
struct SatelliteAsServer {
    anchors: watch::Receiver<Arc<Anchors>>,
    provider: Arc<CryptoProvider>,
    failures: FailureRecord,
}

impl ServerCertVerifier for SatelliteAsServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let roots = self.anchors.borrow().roots();
        verify_client_certificate(end_entity, intermediates, roots, &self.provider, now)
            .map(|_| ServerCertVerified::assertion())
            .inspect_err(|error| self.failures.note(error))
    }

    signatures_by!(self => self.provider);
}

#[cfg(test)]
mod tests;
