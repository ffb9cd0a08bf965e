//! Certificates as a platform makes them: an Ed25519 authority, client certificates with a common name alone.
//! Shares no code with the library.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test support")]
#![allow(
    clippy::disallowed_methods,
    reason = "it is another program, with a clock of its own"
)]

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
    SanType, SignatureAlgorithm,
};

/// A certificate authority.
pub struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pub pem: String,
}

/// A certificate and its key, as PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// A key and the request for its certificate, as PEM.
pub struct Request {
    pub csr: String,
    pub key: String,
}

impl Request {
    /// With a key that every TLS library reads from a file: older ones know no Ed25519 key beside its public half.
    pub fn new(name: &str) -> Self {
        Self::of(&PKCS_ECDSA_P256_SHA256, name)
    }

    /// With a key of another kind.
    pub fn of(algorithm: &'static SignatureAlgorithm, name: &str) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        Self {
            csr: params.serialize_request(&key).unwrap().pem().unwrap(),
            key: key.serialize_pem(),
        }
    }

    /// With the certificate that was issued for it.
    pub fn issued(self, certificate: &str) -> Identity {
        Identity {
            certificate: certificate.to_owned(),
            key: self.key,
        }
    }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    /// A client's certificate as the platform issues them: a common name and no other.
    pub fn client(&self, name: &str) -> Identity {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = client_params(name).signed_by(&key, &self.issuer()).unwrap();
        Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    /// A server's, with an ECDSA key.
    pub fn server(&self, names: &[&str]) -> Identity {
        self.server_for(names, time::Duration::days(90))
    }

    /// The same that is still good for so long.
    pub fn server_for(&self, names: &[&str], left: time::Duration) -> Identity {
        let end = time::OffsetDateTime::now_utc() + left;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = named("bridge");
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = end - time::Duration::days(91);
        params.not_after = end;
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    /// Signs a request; the name in it is not asked for. `None` for what is no request.
    pub fn sign(&self, csr: &str, name: &str) -> Option<String> {
        self.sign_as(csr, client_params(name))
    }

    /// The same for a node: its instance is named as platforms name it, too.
    pub fn sign_node(&self, csr: &str, instance: &str) -> Option<String> {
        let mut params = client_params(instance);
        let uri = format!("powernode://instance/{instance}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        self.sign_as(csr, params)
    }

    fn sign_as(&self, csr: &str, params: CertificateParams) -> Option<String> {
        let mut request = CertificateSigningRequestParams::from_pem(csr).ok()?;
        request.params = params;
        Some(request.signed_by(&self.issuer()).ok()?.pem())
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn client_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::hours(1);
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(90);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    params
}
