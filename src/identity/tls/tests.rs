use rcgen::ExtendedKeyUsagePurpose;
use rustls::{NamedGroup, ProtocolVersion};

use super::*;
use crate::identity::certificate::peer_id_of;
use crate::identity::test_handshake::{Failed, Leaf, NOW, TestAuthority, at, fixed, handshake};
use crate::identity::tls_failure::{RefusalReason, TlsFailure};

const ALPN: &[&[u8]] = &[b"test/1"];
const PEER: &str = "fed:0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e";
const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

/// One side's settings, changed by each test where it matters.
struct Dial {
    trust: ParentTrust,
    learned: Option<Anchors>,
    identity: Option<IdentityWatch>,
    now: UnixTime,
    name: &'static str,
    failures: FailureRecord,
}

impl Dial {
    fn new(trust: ParentTrust) -> Self {
        Self {
            trust,
            learned: None,
            identity: None,
            now: NOW,
            name: "bridge.example",
            failures: FailureRecord::default(),
        }
    }

    fn client(&self) -> ClientConfig {
        client_config(ClientTls {
            trust: &self.trust,
            learned: self.learned.as_ref(),
            identity: self.identity.clone(),
            alpn: ALPN,
            time: at(self.now),
            failures: self.failures.clone(),
        })
        .unwrap()
    }

    fn to(&self, server: ServerConfig) -> Result<crate::identity::test_handshake::Connected, Failed> {
        handshake(self.client(), server, self.name)
    }

    /// The failure that this side saw, which the record must hold as well.
    fn refusal(&self, server: ServerConfig) -> TlsFailure {
        let failure = self.to(server).unwrap_err().client.unwrap();
        assert_eq!(self.failures.take(), Some(failure.clone()));
        failure
    }
}

fn listen(identity: IdentityWatch, authority: &TestAuthority) -> ServerConfig {
    let client_auth = ClientAuth::Optional(fixed(authority.anchors()));
    server_config(identity, client_auth, ALPN, at(NOW)).unwrap()
}

fn pinned(authority: &TestAuthority) -> Dial {
    Dial::new(ParentTrust::Pinned(authority.pin()))
}

#[test]
fn a_pinned_parent_is_reached_over_tls_13_with_the_hybrid_group() {
    let ca = TestAuthority::new("ca");
    let (client, server) = pinned(&ca).to(listen(ca.watched(&Leaf::server()), &ca)).unwrap();
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let group = |group: Option<&dyn rustls::crypto::SupportedKxGroup>| {
        group.map(rustls::crypto::SupportedKxGroup::name)
    };
    assert_eq!(
        group(client.negotiated_key_exchange_group()),
        Some(NamedGroup::X25519MLKEM768)
    );
    assert_eq!(server.alpn_protocol(), Some(b"test/1".as_slice()));
    assert!(server.peer_certificates().is_none());
}

#[test]
fn a_pin_of_another_authority_is_told_from_an_unknown_issuer() {
    let (ca, other) = (TestAuthority::new("ca"), TestAuthority::new("ca"));
    assert_eq!(
        pinned(&other).refusal(listen(ca.watched(&Leaf::server()), &ca)),
        TlsFailure::PinNotInChain {
            pin: other.pin(),
            shown: 2
        }
    );
    let bundle = Dial::new(ParentTrust::Bundle(other.anchors().to_pem()));
    assert_eq!(
        bundle.refusal(listen(ca.watched(&Leaf::server()), &ca)),
        TlsFailure::UnknownIssuer,
        "although the names of the two authorities are the same"
    );
}

#[test]
fn a_pinned_authority_that_did_not_issue_the_leaf_is_no_proof() {
    let (ca, attacker) = (TestAuthority::new("ca"), TestAuthority::new("attacker"));
    let key = PrivateKey::generate().unwrap();
    let forged = attacker
        .issue(&Leaf::server(), &key)
        .with_issuers(vec![attacker.certificate.clone(), ca.certificate.clone()]);
    let identity = fixed(TlsIdentity::new(&forged, &key).unwrap());
    assert_eq!(
        pinned(&ca).refusal(listen(identity, &ca)),
        TlsFailure::UnknownIssuer
    );
}

#[test]
fn a_self_signed_server_is_not_its_own_pinned_authority() {
    let ca = TestAuthority::new("ca");
    let key = PrivateKey::generate().unwrap();
    let lone = ca.issue(&Leaf::server(), &key).with_issuers(Vec::new());
    let pin = CaFingerprint::of_der(lone.leaf());
    let identity = fixed(TlsIdentity::new(&lone, &key).unwrap());
    assert_eq!(
        Dial::new(ParentTrust::Pinned(pin)).refusal(listen(identity, &ca)),
        TlsFailure::PinNotInChain { pin, shown: 1 }
    );
}

#[test]
fn learned_anchors_take_the_place_of_a_pin() {
    let ca = TestAuthority::new("ca");
    let key = PrivateKey::generate().unwrap();
    let short = ca.issue(&Leaf::server(), &key).with_issuers(Vec::new());
    let identity = fixed(TlsIdentity::new(&short, &key).unwrap());
    let mut dial = pinned(&ca);
    assert!(matches!(
        dial.refusal(listen(identity.clone(), &ca)),
        TlsFailure::PinNotInChain { .. }
    ));
    dial.learned = Some(ca.anchors());
    assert!(dial.to(listen(identity, &ca)).is_ok());
}

#[test]
fn learned_anchors_stand_beside_a_bundle() {
    let (public, internal) = (TestAuthority::new("public"), TestAuthority::new("internal"));
    let mut dial = Dial::new(ParentTrust::Bundle(public.anchors().to_pem()));
    dial.learned = Some(internal.anchors());
    assert!(dial.to(listen(public.watched(&Leaf::server()), &public)).is_ok());
    assert!(
        dial.to(listen(internal.watched(&Leaf::server()), &public))
            .is_ok()
    );
}

#[test]
fn an_intermediate_leads_to_the_pinned_root() {
    let root = TestAuthority::new("root");
    let intermediate = root.intermediate("intermediate");
    let key = PrivateKey::generate().unwrap();
    let chain = intermediate
        .issue(&Leaf::server(), &key)
        .with_issuers(vec![intermediate.certificate.clone(), root.certificate.clone()]);
    let identity = fixed(TlsIdentity::new(&chain, &key).unwrap());
    assert!(pinned(&root).to(listen(identity, &root)).is_ok());
}

#[test]
fn a_wrong_name_is_told_with_the_names_in_the_certificate() {
    let ca = TestAuthority::new("ca");
    let mut dial = pinned(&ca);
    dial.name = "elsewhere.example";
    let failure = dial.refusal(listen(ca.watched(&Leaf::server()), &ca));
    assert_eq!(
        failure,
        TlsFailure::NameMismatch {
            expected: "elsewhere.example".into(),
            presented: vec!["bridge.example".into(), "other.example".into()],
        }
    );
    dial.name = "192.0.2.1";
    assert!(matches!(
        dial.refusal(listen(ca.watched(&Leaf::server()), &ca)),
        TlsFailure::NameMismatch { expected, .. } if expected == "192.0.2.1"
    ));
}

#[test]
fn a_peer_certificate_is_no_server_certificate() {
    let ca = TestAuthority::new("ca");
    assert!(matches!(
        pinned(&ca).refusal(listen(ca.watched(&Leaf::peer("bridge.example")), &ca)),
        TlsFailure::NameMismatch { presented, .. } if presented.is_empty()
    ));
    let client_only = Leaf {
        usages: &[ExtendedKeyUsagePurpose::ClientAuth],
        ..Leaf::server()
    };
    assert_eq!(
        pinned(&ca).refusal(listen(ca.watched(&client_only), &ca)),
        TlsFailure::WrongPurpose {
            purpose: "server authentication"
        }
    );
}

#[test]
fn both_times_are_told_when_a_server_certificate_is_out_of_time() {
    let ca = TestAuthority::new("ca");
    let leaf = Leaf::server();
    let mut dial = pinned(&ca);
    dial.now = leaf.not_after.plus(DAY);
    assert_eq!(
        dial.refusal(listen(ca.watched(&leaf), &ca)),
        TlsFailure::Expired {
            now: dial.now,
            not_after: leaf.not_after
        }
    );
    dial.now = UnixTime::EPOCH;
    assert_eq!(
        dial.refusal(listen(ca.watched(&leaf), &ca)),
        TlsFailure::NotYetValid {
            now: UnixTime::EPOCH,
            not_before: leaf.not_before
        }
    );
    let shown = dial
        .to(listen(ca.watched(&leaf), &ca))
        .unwrap_err()
        .client
        .unwrap()
        .to_string();
    assert!(
        shown.contains("the clock of this box says 1970-01-01T00:00:00Z"),
        "{shown}"
    );
}

#[test]
fn a_peer_without_san_and_key_identifiers_is_accepted_and_known_by_its_name() {
    let ca = TestAuthority::new("ca");
    let mut dial = pinned(&ca);
    dial.identity = Some(ca.watched(&Leaf::peer(PEER)));
    let (_, server) = dial.to(listen(ca.watched(&Leaf::server()), &ca)).unwrap();
    let shown = server.peer_certificates().unwrap();
    assert_eq!(
        peer_id_of(&shown[0]).map(|id| format!("fed:{id}")).as_deref(),
        Some(PEER)
    );
}

#[test]
fn a_peer_of_a_foreign_authority_is_refused_in_the_handshake() {
    let (ca, foreign) = (TestAuthority::new("ca"), TestAuthority::new("foreign"));
    let mut dial = pinned(&ca);
    dial.identity = Some(foreign.watched(&Leaf::peer(PEER)));
    let failed = dial.to(listen(ca.watched(&Leaf::server()), &ca)).unwrap_err();
    assert_eq!(failed.server, Some(TlsFailure::UnknownIssuer));
    assert_eq!(
        failed.client,
        Some(TlsFailure::CertificateRefused {
            reason: RefusalReason::UnknownCa
        })
    );
}

#[test]
fn a_foreign_authority_of_the_same_name_does_not_pass_either() {
    let (ca, foreign) = (TestAuthority::new("ca"), TestAuthority::new("ca"));
    let mut dial = pinned(&ca);
    dial.identity = Some(foreign.watched(&Leaf::peer(PEER)));
    let failed = dial.to(listen(ca.watched(&Leaf::server()), &ca)).unwrap_err();
    assert_eq!(failed.server, Some(TlsFailure::UnknownIssuer));
    assert_eq!(
        failed.client,
        Some(TlsFailure::CertificateRefused {
            reason: RefusalReason::UnknownCa
        })
    );
}

#[test]
fn an_expired_peer_and_a_server_in_a_peers_place_are_refused() {
    let ca = TestAuthority::new("ca");
    let mut dial = pinned(&ca);
    let expired = Leaf {
        not_after: NOW.minus(DAY),
        ..Leaf::peer(PEER)
    };
    dial.identity = Some(ca.watched(&expired));
    let failed = dial.to(listen(ca.watched(&Leaf::server()), &ca)).unwrap_err();
    assert!(matches!(failed.server, Some(TlsFailure::Expired { .. })));
    assert_eq!(
        failed.client,
        Some(TlsFailure::CertificateRefused {
            reason: RefusalReason::Expired
        })
    );

    dial.identity = Some(ca.watched(&Leaf::server()));
    let failed = dial.to(listen(ca.watched(&Leaf::server()), &ca)).unwrap_err();
    assert_eq!(
        failed.server,
        Some(TlsFailure::WrongPurpose {
            purpose: "client authentication"
        })
    );
}

/// Who certify themselves: a name and an authority each.
#[derive(Debug)]
struct Equals(Vec<(&'static str, Anchors)>);

impl OwnAnchors for Equals {
    fn of(&self, certificate: &CertificateDer<'_>) -> Option<Arc<Anchors>> {
        let name = CertificateFacts::of_der(certificate).ok()?.subject_cn?;
        let found = self.0.iter().find(|(own, _)| *own == name);
        found.map(|(_, anchors)| Arc::new(anchors.clone()))
    }
}

#[test]
fn who_certifies_themselves_is_known_by_their_own_authority_and_for_their_own_name_alone() {
    const EQUAL: &str = "fed:0192f0c1-7c1e-7a53-9d0e-000000000001";
    const OTHER_EQUAL: &str = "fed:0192f0c1-7c1e-7a53-9d0e-000000000002";
    let names = ["parent", "equal", "other"];
    let [parent, equal, other] = names.map(TestAuthority::new);
    let dialled = |authority: &TestAuthority, leaf: Leaf<'_>| {
        let mut dial = pinned(&parent);
        dial.identity = Some(authority.watched(&leaf));
        let own = vec![(EQUAL, equal.anchors()), (OTHER_EQUAL, other.anchors())];
        let client_auth = ClientAuth::OptionalOrExpired {
            anchors: fixed(parent.anchors()),
            grace: watch::channel(DAY * 30).1,
            own: Arc::new(Equals(own)),
        };
        let server = server_config(parent.watched(&Leaf::server()), client_auth, ALPN, at(NOW)).unwrap();
        dial.to(server).map(|_| ()).map_err(|failed| failed.server)
    };
    let unknown = Err(Some(TlsFailure::UnknownIssuer));
    assert_eq!(dialled(&equal, Leaf::peer(EQUAL)), Ok(()));
    assert_eq!(dialled(&parent, Leaf::peer(PEER)), Ok(()));
    for (authority, name) in [
        (&equal, OTHER_EQUAL),
        (&equal, PEER),
        (&equal, "fed:0192F0C1-7C1E-7A53-9D0E-000000000001"),
        // Not even the listener's own authority speaks for an equal.
        (&parent, EQUAL),
        (&other, EQUAL),
    ] {
        assert_eq!(dialled(authority, Leaf::peer(name)), unknown, "{name}");
    }
    let ended = Leaf {
        not_after: NOW.minus(DAY),
        ..Leaf::peer(EQUAL)
    };
    assert!(matches!(
        dialled(&equal, ended),
        Err(Some(TlsFailure::Expired { .. }))
    ));
}

#[test]
fn a_certificate_past_its_end_is_let_through_within_the_grace_alone() {
    let (ca, other) = (TestAuthority::new("ca"), TestAuthority::new("ca"));
    let ended = |authority: &TestAuthority, ago| {
        authority.watched(&Leaf {
            not_after: NOW.minus(ago),
            ..Leaf::peer(PEER)
        })
    };
    let dialled = |identity, grace| {
        let mut dial = pinned(&ca);
        dial.identity = Some(identity);
        let client_auth = ClientAuth::OptionalOrExpired {
            anchors: fixed(ca.anchors()),
            grace: watch::channel(grace).1,
            own: Arc::new(Equals(Vec::new())),
        };
        let server = server_config(ca.watched(&Leaf::server()), client_auth, ALPN, at(NOW)).unwrap();
        dial.to(server)
    };
    let (_, server) = dialled(ended(&ca, DAY), DAY).unwrap();
    assert!(server.peer_certificates().is_some());
    for grace in [std::time::Duration::ZERO, DAY / 2] {
        let failed = dialled(ended(&ca, DAY), grace).unwrap_err();
        assert!(
            matches!(failed.server, Some(TlsFailure::Expired { .. })),
            "{failed:?}"
        );
    }
    let failed = dialled(ended(&other, DAY), DAY).unwrap_err();
    assert_eq!(failed.server, Some(TlsFailure::UnknownIssuer));
    let server_only = Leaf {
        not_after: NOW.minus(DAY),
        ..Leaf::server()
    };
    let failed = dialled(ca.watched(&server_only), DAY * 2).unwrap_err();
    assert!(
        matches!(failed.server, Some(TlsFailure::WrongPurpose { .. })),
        "{failed:?}"
    );
}

#[test]
fn a_server_that_does_not_ask_sees_no_certificate() {
    let ca = TestAuthority::new("ca");
    let mut dial = pinned(&ca);
    dial.identity = Some(ca.watched(&Leaf::peer(PEER)));
    let server = server_config(ca.watched(&Leaf::server()), ClientAuth::None, ALPN, at(NOW)).unwrap();
    let (_, server) = dial.to(server).unwrap();
    assert!(server.peer_certificates().is_none());
}

#[test]
fn the_next_handshake_shows_the_identity_that_the_watch_holds() {
    let ca = TestAuthority::new("ca");
    let (server_sender, server_identity) = watch::channel(Arc::new(ca.identity(&Leaf::server())));
    let (client_sender, client_identity) = watch::channel(Arc::new(ca.identity(&Leaf::peer(PEER))));
    let (anchors_sender, anchors) = watch::channel(Arc::new(ca.anchors()));
    let mut dial = pinned(&ca);
    dial.identity = Some(client_identity);
    let client = dial.client();
    let server = server_config(server_identity, ClientAuth::Optional(anchors), ALPN, at(NOW)).unwrap();
    let serials = || {
        let (client, server) = handshake(client.clone(), server.clone(), "bridge.example").unwrap();
        let serial = |shown: Option<&[CertificateDer<'_>]>| {
            CertificateFacts::of_der(&shown.unwrap()[0])
                .unwrap()
                .public_key_digest
        };
        (
            serial(client.peer_certificates()),
            serial(server.peer_certificates()),
        )
    };

    let before = serials();
    assert_eq!(before, serials());
    server_sender.send_replace(Arc::new(ca.identity(&Leaf::server())));
    let after_server = serials();
    assert_ne!(after_server.0, before.0);
    assert_eq!(after_server.1, before.1);
    client_sender.send_replace(Arc::new(ca.identity(&Leaf::peer(PEER))));
    assert_ne!(serials().1, before.1);

    anchors_sender.send_replace(Arc::new(TestAuthority::new("next").anchors()));
    let failed = handshake(client, server, "bridge.example").unwrap_err();
    assert_eq!(failed.server, Some(TlsFailure::UnknownIssuer));
}

#[test]
fn sessions_are_not_resumed() {
    let ca = TestAuthority::new("ca");
    let client = pinned(&ca).client();
    let server = listen(ca.watched(&Leaf::server()), &ca);
    for _ in 0..2 {
        let (client, _) = handshake(client.clone(), server.clone(), "bridge.example").unwrap();
        assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[test]
fn no_common_application_protocol_is_said() {
    let ca = TestAuthority::new("ca");
    let server = server_config(
        ca.watched(&Leaf::server()),
        ClientAuth::None,
        &[b"other/1"],
        at(NOW),
    )
    .unwrap();
    let failed = pinned(&ca).to(server).unwrap_err();
    assert!(
        matches!(failed.client, Some(TlsFailure::Incompatible { .. })),
        "{failed:?}"
    );
    assert!(
        matches!(failed.server, Some(TlsFailure::Incompatible { .. })),
        "{failed:?}"
    );
}

#[test]
fn a_certificate_of_another_key_makes_no_identity() {
    let ca = TestAuthority::new("ca");
    let (key, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let chain = ca.issue(&Leaf::server(), &key);
    assert!(matches!(
        TlsIdentity::new(&chain, &other),
        Err(TlsIdentityError::KeyMismatch)
    ));
}

#[test]
fn a_bundle_that_cannot_be_used_is_refused_before_any_dial() {
    let refused = |pem: &str| {
        let trust = ParentTrust::Bundle(pem.to_owned());
        let made = client_config(ClientTls {
            trust: &trust,
            learned: None,
            identity: None,
            alpn: ALPN,
            time: at(NOW),
            failures: FailureRecord::default(),
        });
        matches!(made, Err(TlsConfigError::Bundle(_)))
    };
    let ca = TestAuthority::new("ca");
    let leaf = ca.issue(&Leaf::server(), &PrivateKey::generate().unwrap());
    assert!(refused(""));
    assert!(refused("no PEM"));
    assert!(refused(&leaf.with_issuers(Vec::new()).to_pem()));
    assert!(!refused(&ca.anchors().to_pem()));
}
