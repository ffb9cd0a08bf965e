//! TLS of a satellite's own HTTPS listener: who calls is the parent, or ends in the handshake.
//!
//! Two certificates are the parent's: the one of a bridge, as where a bridge dials the satellite
//! ([`super::reversed`]), and one that the parent's authority has issued for this peering, which a
//! platform that calls by itself shows (contract sections 8 and 11: the common name alone, exact, without
//! SAN and key identifiers). The satellite's own certificate has that name, too, and is not the parent's.

use std::sync::Arc;

use rustls::pki_types::{self, CertificateDer};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DistinguishedName, ServerConfig, version};

use super::anchors::Anchors;
use super::certificate::CertificateFacts;
use super::reversed::{BridgeAsClient, BridgeTrust, bridge_as_client};
use super::signatures::signatures_by;
use super::tls::{
    CertificateTime, IdentityWatch, TimeSource, TlsConfigError, WatchedIdentity, owned_alpn, provider,
    verify_client_certificate,
};
use crate::base::id::PublicKeyDigest;

/// How a satellite takes its parent's calls. `subject` is the common name that stands for the peering.
/// Reads the system's roots from files where the trust says so: not to be called where blocking is not
/// allowed.
pub fn parent_server_config(
    identity: IdentityWatch,
    bridge: &BridgeTrust,
    subject: String,
    alpn: &[&[u8]],
    time: TimeSource,
) -> Result<ServerConfig, TlsConfigError> {
    let verifier = ParentAsClient {
        bridge: bridge_as_client(bridge)?,
        learned: bridge.learned.clone(),
        subject,
        own_key: identity.borrow().facts().public_key_digest,
    };
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

#[derive(Debug)]
struct ParentAsClient {
    bridge: BridgeAsClient,
    learned: Option<Anchors>,
    subject: String,
    own_key: PublicKeyDigest,
}

impl ParentAsClient {
    fn is_of_the_peering(&self, end_entity: &CertificateDer<'_>) -> bool {
        CertificateFacts::of_der(end_entity).is_ok_and(|facts| {
            facts.subject_cn.as_deref() == Some(&*self.subject) && facts.public_key_digest != self.own_key
        })
    }
}

impl ClientCertVerifier for ParentAsClient {
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
        let as_bridge = match self.bridge.verify_client_cert(end_entity, intermediates, now) {
            Ok(verified) => return Ok(verified),
            Err(refused) => refused,
        };
        let Some(learned) = &self.learned else {
            return Err(as_bridge);
        };
        if !self.is_of_the_peering(end_entity) {
            return Err(as_bridge);
        }
        let roots = learned.roots();
        verify_client_certificate(end_entity, intermediates, roots, &provider(), now).map_err(|error| {
            match error {
                rustls::Error::InvalidCertificate(_) => error,
                _ => CertificateError::ApplicationVerificationFailure.into(),
            }
        })
    }

    signatures_by!(self => self.bridge.provider());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::ExtendedKeyUsagePurpose;

    use super::*;
    use crate::contract::invitation::ParentTrust;
    use crate::identity::key::PrivateKey;
    use crate::identity::reversed::bridge_client_config;
    use crate::identity::test_handshake::{Leaf, NOW, TestAuthority, at, fixed, handshake};
    use crate::identity::tls::TlsIdentity;
    use crate::identity::tls_failure::FailureRecord;

    const PEER: &str = "fed:0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e";
    const OTHER_PEER: &str = "fed:0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8f";

    /// Whether a caller with this identity is let in.
    fn calls(ca: &TestAuthority, satellite: &PrivateKey, caller: TlsIdentity) -> bool {
        let bridge = BridgeTrust {
            trust: ParentTrust::Pinned(ca.pin()),
            learned: Some(ca.anchors()),
            names: vec!["bridge.example".to_owned()],
        };
        let own = TlsIdentity::new(&ca.issue(&Leaf::peer(PEER), satellite), satellite).unwrap();
        let server =
            parent_server_config(fixed(own), &bridge, PEER.to_owned(), &[b"http/1.1"], at(NOW)).unwrap();
        let client = bridge_client_config(
            fixed(caller),
            fixed(ca.anchors()),
            &[b"http/1.1"],
            at(NOW),
            FailureRecord::default(),
        );
        handshake(client.unwrap(), server, "192.0.2.7").is_ok()
    }

    #[test]
    fn the_parents_certificates_are_let_in_and_no_others() {
        let (ca, stranger) = (TestAuthority::new("ca"), TestAuthority::new("ca"));
        let satellite = PrivateKey::generate().unwrap();
        let ends = Leaf {
            not_after: NOW,
            ..Leaf::peer(PEER)
        };
        let ended = Leaf {
            not_after: crate::base::time::UnixTime::from_seconds(NOW.as_seconds() - 1),
            ..Leaf::peer(PEER)
        };
        let serves = Leaf {
            usages: &[ExtendedKeyUsagePurpose::ServerAuth],
            ..Leaf::peer(PEER)
        };
        for (what, leaf, let_in) in [
            ("a bridge", Leaf::server(), true),
            ("the parent in this peering", Leaf::peer(PEER), true),
            ("the same in its last second", ends, true),
            ("the same after its end", ended, false),
            ("another satellite", Leaf::peer(OTHER_PEER), false),
            ("no certificate for clients", serves, false),
            (
                "a name in capital letters",
                Leaf::peer("FED:0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e"),
                false,
            ),
        ] {
            assert_eq!(calls(&ca, &satellite, ca.identity(&leaf)), let_in, "{what}");
        }
        for leaf in [Leaf::peer(PEER), Leaf::server()] {
            assert!(
                !calls(&ca, &satellite, stranger.identity(&leaf)),
                "of another authority"
            );
        }
        let own = ca.issue(&Leaf::peer(PEER), &satellite);
        let own = TlsIdentity::new(&own, &satellite).unwrap();
        assert!(!calls(&ca, &satellite, own), "the satellite itself");
    }
}
