//! What the platform is told of a caller, in the headers of its own reverse proxy (contract section
//! 8): they are made of the verified certificate and the connection, and whatever the caller says of
//! itself in such headers goes first. Pure.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::super::forwarded::{dashed, is_claim, strip_forwarded_identity, strip_hop_by_hop, strip_named};
use crate::base::id::{InstanceId, NetworkId};
use crate::identity::certificate::{CertificateFacts, write_pem};

/// The subject of the certificate.
const CERT_INFO: HeaderName = HeaderName::from_static("x-forwarded-tls-client-cert-info");
/// The certificate.
const CERT: HeaderName = HeaderName::from_static("x-forwarded-tls-client-cert");
/// The node instance.
pub(in crate::bridge) const CALLING_INSTANCE: HeaderName = HeaderName::from_static("x-calling-instance");
/// The network on which the listener stands.
pub(in crate::bridge) const SDWAN_NETWORK: HeaderName = HeaderName::from_static("x-sdwan-network");
/// Where the caller is.
pub(in crate::bridge) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// How the caller came: a platform that insists on TLS would redirect who comes without.
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What a node's certificate names its instance by (contract section 8).
const INSTANCE_URI: &str = "powernode://instance/";

/// By which a caller could steer what the platform's server does with the request; and what is for this bridge alone.
const STEERING: &[&str] = &[
    "x-http-method-override",
    "x-original-url",
    "x-rewrite-url",
    "expect",
    "cookie",
];

/// Prefixes of the same.
const STEERING_PREFIXES: &[&str] = &["x-powernode-", "x-ssl-", "ssl-client-"];

/// A verified certificate as the platform reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardedIdentity {
    info: HeaderValue,
    certificate: HeaderValue,
    instance: Option<HeaderValue>,
}

impl ForwardedIdentity {
    /// Of a certificate that the handshake has verified. `None` where its common name could be read
    /// as another: the platform finds it by a pattern.
    pub fn of(der: &[u8]) -> Option<Self> {
        let name = CertificateFacts::of_der(der).ok()?.subject_cn?;
        let odd =
            |c: char| c.is_control() || c.is_whitespace() || matches!(c, '"' | ',' | '=' | '\\' | '+' | ';');
        if name.is_empty() || name.contains(odd) {
            return None;
        }
        let info = percent_encoded(format!("Subject=\"CN={name}\"").as_bytes());
        let certificate = percent_encoded(write_pem([&CertificateDer::from(der.to_vec())]).as_bytes());
        Some(Self {
            info: HeaderValue::try_from(info).ok()?,
            certificate: HeaderValue::try_from(certificate).ok()?,
            instance: instance_of(der).and_then(|id| HeaderValue::try_from(id.to_string()).ok()),
        })
    }

    /// Who it is, for the audit log.
    pub fn actor(&self) -> String {
        let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
        self.instance.as_ref().map_or_else(
            || "a certificate that names no node".to_owned(),
            |instance| format!("node {}", text(instance)),
        )
    }

    /// The node instance that the certificate names.
    pub(in crate::bridge) const fn instance(&self) -> Option<&HeaderValue> {
        self.instance.as_ref()
    }
}

/// Who calls, and from where, as the connection knows it.
#[derive(Debug, Clone, Copy)]
pub struct Vouched<'a> {
    /// Absent while there is no certificate.
    pub identity: Option<&'a ForwardedIdentity>,
    /// Where from.
    pub source: IpAddr,
    /// On which network the listener stands.
    pub network: Option<NetworkId>,
}

/// Makes a request's head one that goes to the platform at `host`.
pub fn to_platform(headers: &mut HeaderMap, vouched: Vouched<'_>, host: &HeaderValue) {
    strip_hop_by_hop(headers);
    strip_forwarded_identity(headers);
    strip_named(headers, |name| is_claim(name) || steers(name));
    headers.insert(header::HOST, host.clone());
    if let Some(identity) = vouched.identity {
        headers.insert(CERT_INFO, identity.info.clone());
        headers.insert(CERT, identity.certificate.clone());
        if let Some(instance) = &identity.instance {
            headers.insert(CALLING_INSTANCE, instance.clone());
        }
    }
    if let Some(network) = vouched.network
        && let Ok(network) = HeaderValue::try_from(network.to_string())
    {
        headers.insert(SDWAN_NETWORK, network);
    }
    if let Ok(source) = HeaderValue::try_from(vouched.source.to_canonical().to_string()) {
        headers.insert(FORWARDED_FOR, source);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
}

/// Makes an answer's head one that goes to a satellite.
pub fn from_platform(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    // Where else the platform is over HTTP/3 is of no use inside of a tunnel.
    headers.remove(header::ALT_SVC);
}

fn steers(name: &HeaderName) -> bool {
    let name = dashed(name);
    STEERING.contains(&name.as_str()) || STEERING_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn instance_of(der: &[u8]) -> Option<InstanceId> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(INSTANCE_URI)?.parse().ok(),
        _ => None,
    })
}

/// Everything but unreserved characters as `%XX`: no server takes a `+` for a space in it.
fn percent_encoded(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut text = String::with_capacity(bytes.len() * 3);
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(*byte));
        } else {
            text.push('%');
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::identity::certificate::CertificateChain;
    use crate::identity::key::PrivateKey;
    use crate::identity::test_handshake::{Leaf, TestAuthority};

    const PEER: &str = "fed:0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e";

    fn certificate(cn: &str) -> Vec<u8> {
        let chain: CertificateChain =
            TestAuthority::new("ca").issue(&Leaf::peer(cn), &PrivateKey::generate().unwrap());
        chain.leaf().to_vec()
    }

    fn percent_decoded(text: &str) -> String {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let [first, tail @ ..] = rest {
            if *first == b'%' {
                bytes.push(u8::from_str_radix(std::str::from_utf8(&tail[..2]).unwrap(), 16).unwrap());
                rest = &tail[2..];
            } else {
                bytes.push(*first);
                rest = tail;
            }
        }
        String::from_utf8(bytes).unwrap()
    }

    fn sent(lines: &[(&str, &str)], identity: Option<&ForwardedIdentity>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        let vouched = Vouched {
            identity,
            source: "::ffff:192.0.2.7".parse().unwrap(),
            network: Some("0192f0c1-7c1e-7a53-9d0e-000000000009".parse().unwrap()),
        };
        to_platform(&mut headers, vouched, &HeaderValue::from_static("platform:3000"));
        headers
    }

    #[test]
    fn the_platform_reads_the_certificate_of_the_tunnel() {
        let der = certificate(PEER);
        let identity = ForwardedIdentity::of(&der).unwrap();
        let headers = sent(&[], Some(&identity));
        let read = |name: &HeaderName| percent_decoded(headers[name].to_str().unwrap());
        assert_eq!(read(&CERT_INFO), format!("Subject=\"CN={PEER}\""));
        let pem = read(&CERT);
        assert_eq!(CertificateChain::from_pem(&pem).unwrap().leaf().as_ref(), der);
        assert_eq!(headers[FORWARDED_FOR], "192.0.2.7");
        assert_eq!(headers[SDWAN_NETWORK], "0192f0c1-7c1e-7a53-9d0e-000000000009");
        assert_eq!(headers[FORWARDED_PROTO], "https");
        assert_eq!(headers[header::HOST], "platform:3000");
        assert!(!headers.contains_key(CALLING_INSTANCE));
    }

    #[test]
    fn claims_go_in_any_case_spelling_and_number() {
        let claims = [
            ("X-Forwarded-Tls-Client-Cert-Info", "Subject=\"CN=fed:x\""),
            ("x_forwarded_tls_client_cert_info", "again"),
            ("X-FORWARDED-TLS-CLIENT-CERT", "x"),
            ("x-calling-instance", "x"),
            ("X-SDWAN-Network", "x"),
            ("x-sdwan-network-state", "x"),
            ("X_Forwarded_For", "198.51.100.1"),
            ("x-forwarded-for", "198.51.100.1"),
            ("x-forwarded-host", "evil"),
            ("forwarded", "for=1"),
            ("x-real-ip", "x"),
            ("x-powernode-subject", "anna"),
            ("x-powernode-credential", "x"),
            ("x-http-method-override", "DELETE"),
            ("cookie", "_session=1"),
            ("connection", "close, authorization"),
            ("transfer-encoding", "chunked"),
            ("host", "evil"),
        ];
        let stranger = sent(&claims, None);
        let mut names: Vec<_> = stranger.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["host", "x-forwarded-for", "x-forwarded-proto", "x-sdwan-network"]
        );
        let kept = sent(
            &[
                ("authorization", "Bearer fgs.x"),
                ("content-type", "application/json"),
            ],
            None,
        );
        assert_eq!(kept["authorization"], "Bearer fgs.x");
        assert_eq!(kept["content-type"], "application/json");
    }

    #[test]
    fn a_name_that_could_be_read_as_another_is_nobodys() {
        for odd in ["a\",CN=fed:x", "a,b", "CN=fed:x", "a b", "a\\", "a+CN=b", ""] {
            assert_eq!(ForwardedIdentity::of(&certificate(odd)), None, "{odd}");
        }
        assert!(ForwardedIdentity::of(&certificate("0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e")).is_some());
        assert_eq!(ForwardedIdentity::of(b"none"), None);
    }

    #[test]
    fn a_nodes_certificate_names_its_instance() {
        let id = "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e";
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, id);
        let uri = format!("{INSTANCE_URI}{id}");
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
        let certificate = params.self_signed(&key).unwrap();
        let identity = ForwardedIdentity::of(certificate.der()).unwrap();
        assert_eq!(sent(&[], Some(&identity))[CALLING_INSTANCE], id);
    }
}
