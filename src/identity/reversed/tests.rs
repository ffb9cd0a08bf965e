#![allow(clippy::unwrap_used)]

use super::*;
use crate::identity::certificate::peer_id_of;
use crate::identity::test_handshake::{Failed, Leaf, NOW, TestAuthority, at, fixed, handshake};
use crate::identity::tls_failure::TlsFailure;

const ALPN: &[&[u8]] = &[b"test/1"];
const PEER: &str = "fed:0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e";
const OTHER_PEER: &str = "fed:0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8f";

fn satellite(ca: &TestAuthority, trust: ParentTrust, names: &[&str]) -> ServerConfig {
    let bridge = BridgeTrust {
        trust,
        learned: Some(ca.anchors()),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    satellite_server_config(ca.watched(&Leaf::peer(PEER)), &bridge, ALPN, at(NOW)).unwrap()
}

fn bridge(identity: IdentityWatch, ca: &TestAuthority) -> ClientConfig {
    let anchors = fixed(ca.anchors());
    bridge_client_config(identity, anchors, ALPN, at(NOW), FailureRecord::default()).unwrap()
}

fn dial(client: ClientConfig, server: ServerConfig) -> Result<Option<String>, Failed> {
    let (client, _) = handshake(client, server, "192.0.2.7")?;
    let leaf = client.peer_certificates().unwrap().first().unwrap();
    Ok(peer_id_of(leaf).map(|peer| format!("fed:{peer}")))
}

#[test]
fn the_parents_bridge_is_let_in_and_knows_whom_it_has_reached() {
    let ca = TestAuthority::new("ca");
    let client = bridge(ca.watched(&Leaf::server()), &ca);
    let server = satellite(
        &ca,
        ParentTrust::Pinned(ca.pin()),
        &["elsewhere.example", "bridge.example"],
    );
    assert_eq!(dial(client, server).unwrap().as_deref(), Some(PEER));
}

#[test]
fn nobody_else_of_the_same_parent_is_let_in() {
    let ca = TestAuthority::new("ca");
    let names = &["bridge.example"];
    let server = || satellite(&ca, ParentTrust::Pinned(ca.pin()), names);
    for (what, leaf) in [
        ("another satellite", Leaf::peer(OTHER_PEER)),
        ("the satellite itself", Leaf::peer(PEER)),
        (
            "a server of another name",
            Leaf {
                names: &["printer.example"],
                ..Leaf::server()
            },
        ),
        (
            "a satellite with the bridge's name for a common name",
            Leaf::peer("bridge.example"),
        ),
    ] {
        let failed = dial(bridge(ca.watched(&leaf), &ca), server()).unwrap_err();
        assert!(failed.server.is_some(), "{what}");
    }
    let without_names = satellite(&ca, ParentTrust::Pinned(ca.pin()), &[]);
    assert!(dial(bridge(ca.watched(&Leaf::server()), &ca), without_names).is_err());
}

#[test]
fn another_authority_convinces_neither_side() {
    let (ca, other) = (TestAuthority::new("ca"), TestAuthority::new("ca"));
    let server = satellite(&ca, ParentTrust::Pinned(ca.pin()), &["bridge.example"]);
    let failed = dial(bridge(other.watched(&Leaf::server()), &ca), server).unwrap_err();
    assert!(failed.server.is_some());

    let server = satellite(&other, ParentTrust::Pinned(other.pin()), &["bridge.example"]);
    let failed = dial(bridge(ca.watched(&Leaf::server()), &ca), server).unwrap_err();
    assert!(
        matches!(failed.client, Some(TlsFailure::UnknownIssuer)),
        "{:?}",
        failed.client
    );
}

#[test]
fn a_dialer_without_a_certificate_is_not_let_in() {
    let ca = TestAuthority::new("ca");
    let server = satellite(&ca, ParentTrust::Pinned(ca.pin()), &["bridge.example"]);
    let verifier = SatelliteAsServer {
        anchors: fixed(ca.anchors()),
        provider: provider(),
        failures: FailureRecord::default(),
    };
    let mut client = ClientConfig::builder_with_details(provider(), Arc::new(CertificateTime(at(NOW))))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    client.alpn_protocols = owned_alpn(ALPN);
    assert!(dial(client, server).unwrap_err().server.is_some());
}

#[test]
fn the_end_of_a_certificate_counts_on_either_side() {
    let ca = TestAuthority::new("ca");
    let ended = |leaf: Leaf<'static>| Leaf {
        not_after: NOW,
        ..leaf
    };
    let later = crate::base::time::UnixTime::from_seconds(NOW.as_seconds() + 60);
    let trust = BridgeTrust {
        trust: ParentTrust::Pinned(ca.pin()),
        learned: Some(ca.anchors()),
        names: vec!["bridge.example".to_owned()],
    };
    let server = |leaf| satellite_server_config(ca.watched(&leaf), &trust, ALPN, at(later)).unwrap();
    let client = |leaf| {
        let failures = FailureRecord::default();
        bridge_client_config(ca.watched(&leaf), fixed(ca.anchors()), ALPN, at(later), failures).unwrap()
    };
    assert!(dial(client(Leaf::server()), server(Leaf::peer(PEER))).is_ok());
    assert!(dial(client(ended(Leaf::server())), server(Leaf::peer(PEER))).is_err());
    assert!(dial(client(Leaf::server()), server(ended(Leaf::peer(PEER)))).is_err());
}
