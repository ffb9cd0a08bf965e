//! Rotation of the authority: one step or none, also without power, and an end that harms nobody unless
//! it is forced to.

use super::*;
use crate::bridge::certificate_authority::PEER_CERTIFICATE_LIFETIME;
use crate::identity::anchors::Anchors;
use crate::identity::certificate::CertificateChain;
use crate::identity::succession::{ServedBundle, follow};

const OVERLAP: Duration = Duration::from_secs(100 * 86_400);

fn names() -> Vec<String> {
    vec!["bridge.example.com".to_owned()]
}

fn days(count: i64) -> UnixTime {
    at(count * 86_400)
}

/// A peer that accepted then; its id and its answer's certificate chain.
fn joined(registry: &Registry, name: &str, now: UnixTime) -> (PeerId, String) {
    let minted = registry.invite(&proposal(name), TTL, now).unwrap();
    let key = PrivateKey::generate().unwrap();
    let call = call(&minted.token, Some(&key));
    let accepted = registry.accept(&call, GRACE, now).unwrap();
    let certificate = response(&accepted).federation_certificate.unwrap();
    (minted.peer.id, certificate.ca_chain_pem)
}

#[test]
fn both_authorities_count_until_the_old_one_is_retired() {
    let (disk, registry) = Disk::with_registry();
    let old = registry.authority().fingerprint();
    let before = registry.server_certificate(&names(), at(0)).unwrap();
    let anchors = registry.anchors();
    registry.rotate_authority(OVERLAP, at(1)).unwrap();
    let new = registry.authority().fingerprint();
    assert_ne!(old, new);
    assert!(anchors.has_changed().unwrap());
    assert!(anchors.borrow().contains(old) && anchors.borrow().contains(new));
    for registry in [&registry, &disk.after_power_cut().open()] {
        let authorities = registry.authorities();
        assert_eq!(authorities.current().fingerprint(), new);
        assert_eq!(authorities.predecessor().unwrap().fingerprint(), old);
        let server = registry.server_certificate(&names(), at(2)).unwrap();
        assert!(server.renewed);
        assert_ne!(server.record.chain_pem, before.record.chain_pem);
        let chain = CertificateChain::from_pem(&server.record.chain_pem).unwrap();
        assert_eq!(chain.issuers(), authorities.issuers());
        assert!(!registry.server_certificate(&names(), at(3)).unwrap().renewed);
    }
    let (_, chain) = joined(&registry, "shop-17", at(4));
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 3);

    registry.retire_authority(Retirement::Forced, at(5)).unwrap();
    for registry in [&registry, &disk.after_power_cut().open()] {
        assert!(registry.authorities().predecessor().is_none());
        assert!(!registry.anchors().borrow().contains(old));
        assert!(registry.server_certificate(&names(), at(6)).unwrap().renewed);
    }
    assert!(matches!(
        registry.retire_authority(Retirement::Forced, at(7)),
        Err(RetireError::Nothing)
    ));
}

#[test]
fn a_satellite_follows_the_bundle_of_each_stage() {
    let (_, registry) = Disk::with_registry();
    let mut known = Anchors::from_pem(&registry.authority().certificate_pem()).unwrap();
    let mut follow_now = |now| {
        let authorities = registry.authorities();
        let (bundle, cross) = (authorities.anchors().to_pem(), authorities.cross_pem());
        let served = ServedBundle {
            ca_bundle_pem: &bundle,
            cross_certificates_pem: cross.as_deref(),
        };
        let followed = follow(&known, served, now).unwrap();
        assert!(followed.unvouched.is_empty());
        known = followed.anchors;
        assert_eq!(known, **authorities.anchors());
    };
    follow_now(at(1));
    for round in 1..=3 {
        let start = days(round * 200);
        registry.rotate_authority(OVERLAP, start).unwrap();
        follow_now(start);
        registry
            .retire_authority(Retirement::InTime, start.plus(OVERLAP))
            .unwrap();
        follow_now(start.plus(OVERLAP));
    }
}

#[test]
fn a_second_rotation_waits_for_the_end_of_the_first() {
    let (_, registry) = Disk::with_registry();
    registry.rotate_authority(OVERLAP, at(0)).unwrap();
    let first = registry.authority().fingerprint();
    let refused = registry.rotate_authority(OVERLAP, at(1)).unwrap_err();
    assert!(matches!(refused, RotateError::UnderWay { .. }), "{refused}");
    assert_eq!(registry.authority().fingerprint(), first);
}

#[test]
fn the_old_authority_stays_while_a_certificate_of_its_is_in_use() {
    let (_, registry) = Disk::with_registry();
    let (old, _) = joined(&registry, "old", days(0));
    let (gone, _) = joined(&registry, "gone", days(0));
    registry
        .rotate_authority(Duration::from_secs(86_400), days(10))
        .unwrap();
    joined(&registry, "new", days(11));
    registry.revoke(&gone.to_string(), "sold", days(11)).unwrap();
    let early = registry
        .retire_authority(Retirement::InTime, days(10))
        .unwrap_err();
    assert!(
        matches!(&early, RetireError::Overlap { peers, .. } if *peers == ["old"]),
        "{early}"
    );
    let in_use = registry
        .retire_authority(Retirement::InTime, days(12))
        .unwrap_err();
    assert!(
        matches!(&in_use, RetireError::InUse { peers } if *peers == ["old"]),
        "{in_use}"
    );
    assert_eq!(registry.depending_on_predecessor(days(12)).unwrap(), ["old"]);
    let after_its_end = days(0)
        .plus(PEER_CERTIFICATE_LIFETIME)
        .plus(Duration::from_secs(1));
    registry
        .retire_authority(Retirement::InTime, after_its_end)
        .unwrap();
    assert!(registry.peer(&old.to_string()).is_ok());
}

#[test]
fn power_that_fails_at_any_moment_leaves_one_authority_or_the_other() {
    for operations in 0..40 {
        let (disk, registry) = Disk::with_registry();
        let old = registry.authority().fingerprint();
        disk.cut_power_after(operations);
        let rotated = registry.rotate_authority(OVERLAP, at(1));
        let after = disk.after_power_cut().open();
        let (fingerprint, rotation) = (after.authority().fingerprint(), after.authorities());
        if fingerprint == old {
            assert!(
                rotated.is_err(),
                "{operations}: what was said to be done was lost"
            );
            assert!(rotation.predecessor().is_none());
        } else {
            assert_eq!(rotation.predecessor().unwrap().fingerprint(), old);
        }
        if rotated.is_err() {
            assert_eq!(
                registry.authority().fingerprint(),
                old,
                "nothing is issued by what is not stored"
            );
        }
        after.server_certificate(&names(), at(2)).unwrap();
    }
}
