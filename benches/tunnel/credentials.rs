//! Certificates of a throw-away authority, handed from process to process in a directory.

use std::path::Path;
use std::sync::Arc;

use powernode_satellite::base::secret::Secret;
use powernode_satellite::contract::invitation::{CaFingerprint, ParentTrust};
use powernode_satellite::identity::anchors::Anchors;
use powernode_satellite::identity::certificate::CertificateChain;
use powernode_satellite::identity::key::PrivateKey;
use powernode_satellite::identity::tls::{
    ClientAuth, ClientTls, TimeSource, TlsIdentity, client_config, server_config,
};
use powernode_satellite::identity::tls_failure::FailureRecord;
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::wire::TUNNEL_ALPN;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ED25519,
};
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

/// The name in the server's certificate.
pub const SERVER_NAME: &str = "bridge.example";

/// What one end shows and by what it knows the other.
pub struct Credentials {
    anchors: Anchors,
    identity: Arc<TlsIdentity>,
}

impl Credentials {
    /// Makes an authority and both ends' certificates.
    pub fn create(directory: &Path) {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        std::fs::write(directory.join("ca.pem"), authority.pem()).unwrap();
        for end in ["server", "client"] {
            let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
            let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ];
            let certificate = params.signed_by(&key, &issuer).unwrap();
            std::fs::write(directory.join(end), certificate.pem()).unwrap();
            std::fs::write(directory.join(format!("{end}.key")), key.serialize_der()).unwrap();
        }
    }

    /// Those of one end.
    pub fn of(directory: &Path, end: &str) -> Self {
        let anchors = Anchors::from_pem(&std::fs::read_to_string(directory.join("ca.pem")).unwrap()).unwrap();
        let chain = CertificateChain::from_pem(&std::fs::read_to_string(directory.join(end)).unwrap())
            .unwrap()
            .with_issuers(anchors.certificates().to_vec());
        let key = PrivateKey::from_pkcs8(Secret::new(
            std::fs::read(directory.join(format!("{end}.key"))).unwrap(),
        ))
        .unwrap();
        Self {
            identity: Arc::new(TlsIdentity::new(&chain, &key).unwrap()),
            anchors,
        }
    }

    /// For the serving end.
    pub fn server(self) -> ServerConfig {
        let clients = ClientAuth::Optional(watch::channel(Arc::new(self.anchors)).1);
        server_config(watch::channel(self.identity).1, clients, &[TUNNEL_ALPN], time()).unwrap()
    }

    /// For the measuring end.
    pub fn client(self, failures: &FailureRecord) -> ClientConfig {
        client_config(ClientTls {
            trust: &ParentTrust::Pinned(CaFingerprint::of_der(&self.anchors.certificates()[0])),
            learned: None,
            identity: Some(watch::channel(self.identity).1),
            alpn: &[TUNNEL_ALPN],
            time: time(),
            failures: failures.clone(),
        })
        .unwrap()
    }
}

fn time() -> TimeSource {
    let clock = Clock::start(BUILD_TIME);
    Arc::new(move || clock.trusted().now)
}
