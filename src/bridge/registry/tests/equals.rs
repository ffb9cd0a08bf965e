//! Peers that certify themselves: what an accept of theirs keeps, and what it does not change for others.

use super::*;
use crate::bridge::acceptance::OfferedAuthority;
use crate::contract::peer::PeerKind;
use crate::identity::anchors::Anchors;
use crate::identity::own_authority::OwnAuthority;
use crate::identity::succession::ServedBundle;

fn authority(name: &str) -> OwnAuthority {
    OwnAuthority::create(name, at(0), [7; 16]).unwrap()
}

fn invited(registry: &Registry, name: &str, mode: SpawnMode, kind: PeerKind) -> (PeerId, AcceptCall) {
    let proposal = Proposal {
        kind,
        mode,
        ..proposal(name)
    };
    let minted = registry.invite(&proposal, TTL, at(0)).unwrap();
    (minted.peer.id, call(&minted.token, None))
}

/// The same accept with an authority of the child's own.
fn with(call: &AcceptCall, authority: &OwnAuthority) -> AcceptCall {
    AcceptCall {
        own_authority: Some(OfferedAuthority {
            anchors: Anchors::from_pem(&authority.certificate_pem()).unwrap(),
            caller_subject: Some("parent-of-shop-17".to_owned()),
        }),
        ..call.clone()
    }
}

#[test]
fn an_equal_is_known_by_its_own_authority_also_after_a_restart() {
    let (disk, registry) = Disk::with_registry();
    for (name, mode) in [
        ("equal", SpawnMode::AutonomousPeer),
        ("agreed", SpawnMode::OutOfBand),
    ] {
        let (peer, call) = invited(&registry, name, mode, PeerKind::Platform);
        let own = authority(name);
        let accepted = registry.accept(&with(&call, &own), GRACE, at(1)).unwrap();
        let response = response(&accepted);
        assert_eq!(response.status, PeerStatus::Enrolled);
        assert!(response.federation_certificate.is_none());
        let answer: serde_json::Value = serde_json::from_slice(&accepted.answer).unwrap();
        let exchange = &answer["data"]["trust_exchange"];
        assert_eq!(exchange["assigned_inbound_subject"], format!("fed:{peer}"));
        assert_eq!(
            exchange["ca_bundle_pem"],
            registry.authorities().anchors().to_pem()
        );
        for registry in [&registry, &disk.after_power_cut().open()] {
            let known = registry.peer_anchors().get(peer).unwrap();
            assert_eq!(known.to_pem(), own.certificate_pem());
            let row = registry.peer_by_id(peer).unwrap().unwrap();
            assert_eq!(row.inbound_subject, Some(format!("fed:{peer}")));
            assert!(registry.is_enrolled(&row, PrivateKey::generate().unwrap().public_key_digest()));
        }
        assert!(
            registry.grants().unwrap().is_empty(),
            "an equal gets no operator grant"
        );
    }
}

#[test]
fn a_lost_answer_is_given_again_to_the_same_authority_alone() {
    let (_, registry) = Disk::with_registry();
    let (peer, call) = invited(&registry, "equal", SpawnMode::AutonomousPeer, PeerKind::Platform);
    let own = authority("equal");
    let first = registry.accept(&with(&call, &own), GRACE, at(1)).unwrap();
    let again = registry.accept(&with(&call, &own), GRACE, at(2)).unwrap();
    assert!(again.repeated);
    assert_eq!(again.answer, first.answer);
    let stranger = registry.accept(&with(&call, &authority("equal")), GRACE, at(3));
    assert_eq!(refusal(stranger), AcceptRefusal::TokenNotRecognized);
    let known = registry.peer_anchors().get(peer).unwrap();
    assert_eq!(known.to_pem(), own.certificate_pem());
}

#[test]
fn who_is_no_equal_is_refused_and_keeps_its_token() {
    let (_, registry) = Disk::with_registry();
    for mode in [SpawnMode::ManagedChild, SpawnMode::ClusterMember] {
        let (peer, call) = invited(&registry, mode.as_str(), mode, PeerKind::Platform);
        let refused = registry.accept(&with(&call, &authority("x")), GRACE, at(1));
        assert_eq!(refusal(refused), AcceptRefusal::SymmetricTrust(mode));
        assert!(registry.peer_anchors().get(peer).is_none());
        let key = PrivateKey::generate().unwrap();
        let signed = AcceptCall {
            csr_pem: Some(key.csr_pem("x").unwrap()),
            ..call
        };
        registry.accept(&signed, GRACE, at(2)).unwrap();
    }
    let (peer, call) = invited(&registry, "network", SpawnMode::OutOfBand, PeerKind::SdwanOnly);
    registry
        .accept(&with(&call, &authority("x")), GRACE, at(1))
        .unwrap();
    assert!(registry.peer_anchors().get(peer).is_none());
}

#[test]
fn with_a_request_to_be_signed_it_is_a_peer_of_this_authority_again() {
    let (disk, registry) = Disk::with_registry();
    let (peer, call) = invited(&registry, "equal", SpawnMode::AutonomousPeer, PeerKind::Platform);
    registry
        .accept(&with(&call, &authority("x")), GRACE, at(1))
        .unwrap();
    let csr = PrivateKey::generate().unwrap().csr_pem("x").unwrap();
    let refused = registry.refresh_certificate(
        peer,
        PrivateKey::generate().unwrap().public_key_digest(),
        &csr,
        at(2),
    );
    assert!(matches!(refused, Err(RefreshError::CertifiesItself)));
    registry.suspend(&peer.to_string(), "moving", at(2)).unwrap();
    let minted = registry.mint_token(&peer.to_string(), TTL, at(3)).unwrap();
    let key = PrivateKey::generate().unwrap();
    registry
        .accept(&super::call(&minted.token, Some(&key)), GRACE, at(4))
        .unwrap();
    for registry in [&registry, &disk.after_power_cut().open()] {
        assert!(registry.peer_anchors().get(peer).is_none());
        let row = registry.peer_by_id(peer).unwrap().unwrap();
        assert!(registry.is_enrolled(&row, key.public_key_digest()));
        assert!(!registry.is_enrolled(&row, PrivateKey::generate().unwrap().public_key_digest()));
    }
}

#[test]
fn an_equals_bundle_is_followed_by_the_same_rule_as_ours() {
    let (disk, registry) = Disk::with_registry();
    let (peer, call) = invited(&registry, "equal", SpawnMode::AutonomousPeer, PeerKind::Platform);
    let old = CertificateAuthority::create("equal", at(0), [1; 16]).unwrap();
    let offered = OfferedAuthority {
        anchors: old.anchors().clone(),
        caller_subject: None,
    };
    let call = AcceptCall {
        own_authority: Some(offered),
        ..call
    };
    registry.accept(&call, GRACE, at(1)).unwrap();
    let succession = old.succeed(at(1), [[2; 16], [3; 16]]).unwrap();
    let pem = old.certificate_pem() + &succession.next.certificate_pem();
    let follow = |cross: Option<&str>| {
        let served = ServedBundle {
            ca_bundle_pem: &pem,
            cross_certificates_pem: cross,
        };
        registry.follow_peer(peer, served, at(2))
    };
    assert!(!follow(None).unwrap(), "not by the word of the connection");
    assert!(follow(Some(&succession.cross_pem())).unwrap());
    for registry in [&registry, &disk.after_power_cut().open()] {
        assert_eq!(registry.peer_anchors().get(peer).unwrap().to_pem(), pem);
    }
}
