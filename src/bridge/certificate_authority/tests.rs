use proptest::prelude::*;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

use super::*;
use crate::contract::invitation::ParentTrust;
use crate::identity::certificate::peer_id_of;
use crate::identity::issued::{ExpectedCertificate, IssuerTrust, verify_issued};
use crate::identity::test_handshake::{Connected, Failed, NOW, at, fixed, handshake};
use crate::identity::tls::{ClientAuth, ClientTls, TlsIdentity, client_config, server_config};
use crate::identity::tls_failure::{FailureRecord, TlsFailure};

macro_rules! csr {
    ($name:literal) => {
        include_str!(concat!("../../../tests/fixtures/csr/", $name, ".pem"))
    };
}

const SERIAL: SerialEntropy = [0xff; 16];

fn authority() -> CertificateAuthority {
    CertificateAuthority::create("test authority", NOW, [7; 16]).unwrap()
}

fn peer_id() -> PeerId {
    "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e".parse().unwrap()
}

fn issue(csr_pem: &str) -> Result<IssuedCertificate, CsrRefused> {
    authority().issue_peer_certificate(csr_pem, peer_id(), NOW, SERIAL)
}

fn der_of(pem: &str) -> CertificateDer<'static> {
    CertificateChain::from_pem(pem).unwrap().leaf().clone()
}

#[test]
fn an_authority_is_what_the_contract_says_and_survives_its_store() {
    let made = authority();
    let der = der_of(&made.certificate_pem());
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(1));
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
    assert!(certificate.verify_signature(None).is_ok());
    let facts = CertificateFacts::of_der(&der).unwrap();
    assert_eq!(facts.not_after.since(NOW), AUTHORITY_LIFETIME);
    assert_eq!(facts.fingerprint, made.fingerprint());

    let restored = CertificateAuthority::restore(made.expose_key().clone(), &made.certificate_pem()).unwrap();
    assert_eq!(restored.fingerprint(), made.fingerprint());
    let csr = csr!("p256");
    let by = |authority: &CertificateAuthority| {
        authority
            .issue_peer_certificate(csr, peer_id(), NOW, SERIAL)
            .unwrap()
    };
    assert_eq!(by(&restored), by(&made), "issuing is a function of its arguments");
}

#[test]
fn parts_of_two_authorities_make_none() {
    let (one, other) = (authority(), authority());
    assert!(matches!(
        CertificateAuthority::restore(one.expose_key().clone(), &other.certificate_pem()),
        Err(RestoreAuthorityError::Mismatch)
    ));
    assert!(matches!(
        CertificateAuthority::restore(Secret::new(vec![1, 2, 3]), &one.certificate_pem()),
        Err(RestoreAuthorityError::Key(_))
    ));
    assert!(matches!(
        CertificateAuthority::restore(one.expose_key().clone(), "nothing"),
        Err(RestoreAuthorityError::Certificate(_))
    ));
    let two = format!("{}{}", one.certificate_pem(), other.certificate_pem());
    assert!(matches!(
        CertificateAuthority::restore(one.expose_key().clone(), &two),
        Err(RestoreAuthorityError::Mismatch)
    ));
}

#[test]
fn a_peer_certificate_is_what_the_contract_says() {
    let made = authority();
    let key = PrivateKey::generate().unwrap();
    let csr = key.csr_pem("fed:somebody-else").unwrap();
    let issued = made.issue_peer_certificate(&csr, peer_id(), NOW, SERIAL).unwrap();
    assert_eq!(issued.serial, "7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF");
    assert_eq!(issued.public_key_digest, key.public_key_digest());
    assert_eq!(csr_public_key_digest(&csr).unwrap(), key.public_key_digest());
    assert_eq!(issued.ca_chain_pem, made.certificate_pem());

    let der = der_of(&issued.cert_pem);
    assert_eq!(peer_id_of(&der), Some(peer_id()));
    let facts = CertificateFacts::of_der(&der).unwrap();
    assert_eq!(facts.serial_hex, issued.serial);
    assert_eq!(facts.not_before, NOW.minus(NOT_BEFORE_BACKDATE));
    assert_eq!(facts.not_after, issued.not_after);
    assert_eq!(issued.not_after.since(NOW).as_secs(), 90 * 24 * 60 * 60);
    assert!(!facts.is_ca);

    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && extended.server_auth && !extended.any);
    let names = &certificate
        .subject_alternative_name()
        .unwrap()
        .unwrap()
        .value
        .general_names;
    let uri = format!("powernode://federation-peer/{}", peer_id());
    assert_eq!(*names, [GeneralName::URI(&uri)]);

    let ca_der = der_of(&made.certificate_pem());
    let (_, ca) = X509Certificate::from_der(&ca_der).unwrap();
    assert_eq!(authority_key_id(&certificate), subject_key_id(&ca));
    assert!(subject_key_id(&certificate).is_some());
    assert_ne!(subject_key_id(&certificate), subject_key_id(&ca));
}

fn subject_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
}

fn authority_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
            _ => None,
        })
}

#[test]
fn requests_with_every_accepted_key_are_signed_and_hold() {
    for csr in [
        csr!("rsa2048_extensions"),
        csr!("rsa4096_sha512"),
        csr!("rsa2048_pss"),
        csr!("p256"),
        csr!("p384"),
        csr!("p384_sha256"),
        csr!("ed25519_no_subject"),
    ] {
        let made = authority();
        let issued = made.issue_peer_certificate(csr, peer_id(), NOW, SERIAL).unwrap();
        let expected = ExpectedCertificate {
            subject_cn: &peer_subject(peer_id()),
            key: csr_public_key_digest(csr).unwrap(),
            trust: IssuerTrust::Pinned(made.fingerprint()),
            now: NOW,
        };
        let verified = verify_issued(&issued.cert_pem, &issued.ca_chain_pem, &expected);
        assert!(verified.is_ok(), "{csr}: {verified:?}");
        let (_, certificate) = X509Certificate::from_der(verified.as_ref().unwrap().chain.leaf()).unwrap();
        let names = certificate
            .subject_alternative_name()
            .unwrap()
            .unwrap()
            .value
            .general_names
            .len();
        assert_eq!(names, 1, "names asked for in the request are not taken");
    }
}

#[test]
fn other_keys_and_weak_signatures_are_refused_by_name() {
    for csr in [
        csr!("rsa1024"),
        csr!("p521"),
        csr!("k256"),
        csr!("p256_explicit"),
        csr!("ed448"),
    ] {
        let refused = issue(csr).unwrap_err();
        assert!(
            matches!(refused, CsrRefused::UnsupportedKey { .. }),
            "{csr}: {refused}"
        );
    }
    assert!(matches!(
        issue(csr!("rsa2048_sha1")),
        Err(CsrRefused::UnsupportedSignature { .. })
    ));
}

#[test]
fn what_is_no_request_is_refused_by_kind() {
    let good = csr!("p256");
    assert!(matches!(issue(""), Err(CsrRefused::NotPem)));
    assert!(matches!(
        issue(&good.replace("CERTIFICATE REQUEST", "CERTIFICATE")),
        Err(CsrRefused::NotPem)
    ));
    assert!(matches!(
        issue("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"),
        Err(CsrRefused::Unreadable)
    ));
    assert!(matches!(
        issue(&"x".repeat(CSR_PEM_MAX_BYTES + 1)),
        Err(CsrRefused::TooLarge { .. })
    ));
}

fn pem_of_request(der: &[u8]) -> String {
    format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        data_encoding::BASE64.encode(der)
    )
}

fn request_der(pem: &str) -> Vec<u8> {
    CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .unwrap()
        .to_vec()
}

#[test]
fn a_request_with_another_subject_than_was_signed_is_refused() {
    let der = request_der(csr!("p256"));
    let at = der.windows(4).position(|window| window == b"p256").unwrap();
    let mut tampered = der.clone();
    tampered[at] = b'q';
    assert!(issue(&pem_of_request(&der)).is_ok());
    assert!(matches!(
        issue(&pem_of_request(&tampered)),
        Err(CsrRefused::BadSignature)
    ));
}

proptest! {
    #[test]
    fn no_changed_request_is_signed(position in any::<proptest::sample::Index>(), flip in 1_u8..) {
        let mut der = request_der(csr!("ed25519_no_subject"));
        // What is signed, and the signature itself; the type and algorithm bytes around them
        // are read with some tolerance and change no meaning.
        let signed = 2..55;
        let signature = der.len() - 64..der.len();
        let positions: Vec<usize> = signed.chain(signature).collect();
        der[*position.get(&positions)] ^= flip;
        prop_assert!(csr_public_key_digest(&pem_of_request(&der)).is_err());
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in any::<String>(), der in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(csr_public_key_digest(&text).is_err());
        prop_assert!(csr_public_key_digest(&pem_of_request(&der)).is_err());
    }
}

fn server_names(names: &[&str]) -> Result<ServerCertificate, ServerCertificateError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    authority().issue_server_certificate(&names, NOW, SERIAL)
}

#[test]
fn names_of_a_server_are_dns_names_and_addresses() {
    assert!(
        server_names(&[
            "bridge.example",
            "*.example",
            "localhost",
            "192.0.2.1",
            "2001:db8::1"
        ])
        .is_ok()
    );
    assert!(matches!(server_names(&[]), Err(ServerCertificateError::NoNames)));
    assert!(matches!(
        server_names(&["a.example"; SERVER_NAMES_MAX + 1]),
        Err(ServerCertificateError::TooManyNames { .. })
    ));
    for bad in [
        "",
        "https://bridge.example",
        "bridge:8443",
        "[::1]",
        "a b",
        "*.192.0.2.1",
        "*",
        "ä.example",
    ] {
        assert!(
            matches!(
                server_names(&[bad]),
                Err(ServerCertificateError::InvalidName { .. })
            ),
            "{bad}"
        );
    }
}

#[test]
fn times_that_no_certificate_can_hold_are_refused() {
    let never = UnixTime::from_seconds(i64::MAX);
    assert!(matches!(
        CertificateAuthority::create("ca", never, SERIAL),
        Err(CreateAuthorityError::Validity(NoValidity::Time { .. }))
    ));
    assert!(matches!(
        CertificateAuthority::create(" ", NOW, SERIAL),
        Err(CreateAuthorityError::Name { .. })
    ));
    let early = UnixTime::from_seconds(i64::MIN);
    let refused = authority().issue_peer_certificate(csr!("p256"), peer_id(), early, SERIAL);
    assert!(refused.unwrap_err().is_ours());
}

#[test]
fn no_certificate_outlives_its_authority() {
    let made = authority();
    let ended = NOW.plus(AUTHORITY_LIFETIME);
    let issue = |now| made.issue_peer_certificate(csr!("p256"), peer_id(), now, SERIAL);
    let last_day = ended.minus(Duration::from_secs(DAY_SECONDS));
    let issued = issue(last_day).unwrap();
    assert_eq!(issued.not_after, ended);
    let facts = CertificateFacts::of_der(&der_of(&issued.cert_pem)).unwrap();
    assert_eq!(facts.not_after, ended);
    assert!(matches!(
        issue(ended),
        Err(CsrRefused::Validity(NoValidity::AuthorityEnded { .. }))
    ));
    assert!(matches!(
        made.issue_server_certificate(&["bridge.example".to_owned()], ended, SERIAL),
        Err(ServerCertificateError::Validity(
            NoValidity::AuthorityEnded { .. }
        ))
    ));
}

/// A satellite that joined `home` dials a bridge that belongs to `bridge`.
fn dial(home: &CertificateAuthority, bridge: &CertificateAuthority, name: &str) -> Result<Connected, Failed> {
    let key = PrivateKey::generate().unwrap();
    let csr = key.csr_pem("satellite").unwrap();
    let issued = home.issue_peer_certificate(&csr, peer_id(), NOW, SERIAL).unwrap();
    let chain = CertificateChain::from_pem(&issued.cert_pem).unwrap();
    let client = client_config(ClientTls {
        trust: &ParentTrust::Pinned(bridge.fingerprint()),
        learned: None,
        identity: Some(fixed(TlsIdentity::new(&chain, &key).unwrap())),
        alpn: &[],
        time: at(NOW),
        failures: FailureRecord::default(),
    })
    .unwrap();
    let names: Vec<String> = ["bridge.example", "*.wild.example", "192.0.2.1", "2001:db8::1"]
        .map(str::to_owned)
        .into();
    let server = bridge.issue_server_certificate(&names, NOW, SERIAL).unwrap();
    let identity = fixed(TlsIdentity::new(&server.chain, &server.key).unwrap());
    let client_auth = ClientAuth::Optional(fixed(bridge.anchors().clone()));
    handshake(
        client,
        server_config(identity, client_auth, &[], at(NOW)).unwrap(),
        name,
    )
}

#[test]
fn issued_certificates_carry_a_handshake_under_every_name() {
    let made = authority();
    for name in ["bridge.example", "a.wild.example", "192.0.2.1", "2001:db8::1"] {
        let (_, server) = dial(&made, &made, name).unwrap();
        assert_eq!(
            peer_id_of(&server.peer_certificates().unwrap()[0]),
            Some(peer_id()),
            "{name}"
        );
    }
    let failed = dial(&made, &made, "192.0.2.2").unwrap_err();
    assert!(matches!(failed.client, Some(TlsFailure::NameMismatch { .. })));
}

#[test]
fn another_authoritys_peer_is_refused() {
    let failed = dial(&authority(), &authority(), "bridge.example").unwrap_err();
    assert_eq!(failed.server, Some(TlsFailure::UnknownIssuer));
}
