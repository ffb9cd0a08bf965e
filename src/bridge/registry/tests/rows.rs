//! Names, heartbeats, certificates, operators, grants: what is kept and for how long.

use super::*;
use crate::base::secret::Secret;
use crate::bridge::heartbeat::Declaration;
use crate::grant::GrantRequest;

#[test]
fn names_are_unique_until_revoked_and_near_ones_are_offered() {
    let (_disk, registry) = Disk::with_registry();
    let first = registry.propose(&proposal("shop-17"), at(0)).unwrap();
    assert!(matches!(
        registry.propose(&proposal("shop-17"), at(1)),
        Err(RegistryError::NameTaken(_))
    ));
    let error = registry.peer("shop-71").unwrap_err().to_string();
    assert!(error.contains("did you mean shop-17?"), "{error}");
    assert!(matches!(
        registry.propose(&proposal("a b"), at(1)),
        Err(RegistryError::InvalidName(_))
    ));
    assert!(
        registry.revoke("shop-17", " ", at(2)).is_err(),
        "a reason is required"
    );
    registry.revoke("shop-17", "closed", at(2)).unwrap();
    assert_eq!(
        registry.peer("shop-17").unwrap().id,
        first.id,
        "a revoked peer is still found"
    );
    let second = registry.propose(&proposal("shop-17"), at(3)).unwrap();
    assert_eq!(registry.peer("shop-17").unwrap().id, second.id);
    assert_eq!(
        registry.peer(&first.id.to_string()).unwrap().status,
        PeerStatus::Revoked
    );
}

#[test]
fn heartbeats_are_written_when_something_changes_and_every_ten_minutes() {
    let (disk, registry) = Disk::with_registry();
    let (peer, _) = enrolled(&registry);
    let beat = |declared: &Declaration, time| registry.heartbeat(peer, declared, at(time)).unwrap();
    let same = Declaration {
        platform_version: Some("0.1.0".into()),
        ..Declaration::default()
    };
    let taken = beat(&same, 60);
    assert_eq!(
        (taken.was, taken.peer.status),
        (PeerStatus::Enrolled, PeerStatus::Active)
    );
    let stored = || disk.after_power_cut().open().peer_by_id(peer).unwrap().unwrap();
    for minute in 2..=10 {
        beat(&same, minute * 60);
    }
    assert_eq!(
        stored().last_heartbeat_at,
        Some(at(60)),
        "unchanged heartbeats stay in memory"
    );
    assert_eq!(
        registry.peer_by_id(peer).unwrap().unwrap().last_heartbeat_at,
        Some(at(600))
    );
    beat(&same, 660);
    assert_eq!(stored().last_heartbeat_at, Some(at(660)));
    let moved = Declaration {
        data_residency: Some("DE".into()),
        ..same.clone()
    };
    beat(&moved, 720);
    assert_eq!(stored().declared.data_residency.as_deref(), Some("DE"));
    beat(&same, 780);
    registry.write_presence().unwrap();
    assert_eq!(
        stored().last_heartbeat_at,
        Some(at(780)),
        "a shutdown writes the rest"
    );
}

#[test]
fn stale_peers_are_degraded_with_a_reason_and_recover() {
    let (_disk, registry) = Disk::with_registry();
    let (peer, _) = enrolled(&registry);
    let stale_after = Duration::from_secs(300);
    registry.heartbeat(peer, &Declaration::default(), at(60)).unwrap();
    assert!(registry.sweep(stale_after, at(0), at(360)).unwrap().is_empty());
    assert!(
        registry.sweep(stale_after, at(300), at(500)).unwrap().is_empty(),
        "a bridge that was away itself waits"
    );
    let degraded = registry.sweep(stale_after, at(0), at(361)).unwrap();
    assert_eq!(degraded.len(), 1);
    let reason = degraded[0].degraded_reason.clone().unwrap();
    assert!(reason.contains(&at(60).to_string()), "{reason}");
    let taken = registry
        .heartbeat(peer, &Declaration::default(), at(400))
        .unwrap();
    assert_eq!(
        (taken.was, taken.peer.status),
        (PeerStatus::Degraded, PeerStatus::Active)
    );
    assert_eq!(taken.peer.degraded_reason, Some(reason), "the reason stays");
    registry.suspend("shop-17", "maintenance", at(500)).unwrap();
    assert!(matches!(
        registry.heartbeat(peer, &Declaration::default(), at(501)),
        Err(HeartbeatError::Denied(_))
    ));
    registry.resume("shop-17", at(502)).unwrap();
    let taken = registry
        .heartbeat(peer, &Declaration::default(), at(503))
        .unwrap();
    assert_eq!(taken.peer.status, PeerStatus::Active);
}

#[test]
fn a_lost_renewal_locks_nobody_out() {
    let (_disk, registry) = Disk::with_registry();
    let (peer, first) = enrolled(&registry);
    let held = || registry.peer_by_id(peer).unwrap().unwrap().certificates;
    let mut lost = Vec::new();
    for n in 0..3 {
        let next = PrivateKey::generate().unwrap();
        let csr = next.csr_pem("powernode-satellite").unwrap();
        registry
            .refresh_certificate(peer, first.public_key_digest(), &csr, at(n))
            .unwrap();
        lost.push(next);
        assert_eq!(held().len(), 2);
        assert!(held().iter().any(|kept| kept.key == first.public_key_digest()));
    }
    let used = lost.pop().unwrap();
    let csr = PrivateKey::generate()
        .unwrap()
        .csr_pem("powernode-satellite")
        .unwrap();
    registry
        .refresh_certificate(peer, used.public_key_digest(), &csr, at(9))
        .unwrap();
    assert!(!held().iter().any(|kept| kept.key == first.public_key_digest()));
}

#[test]
fn the_servers_certificate_is_renewed_for_new_names_and_in_time() {
    let (_disk, registry) = Disk::with_registry();
    let names = vec!["bridge.example.com".to_owned()];
    assert!(registry.server_certificate(&names, at(0)).unwrap().renewed);
    assert!(!registry.server_certificate(&names, at(1)).unwrap().renewed);
    let more = vec!["bridge.example.com".to_owned(), "192.0.2.1".to_owned()];
    assert!(registry.server_certificate(&more, at(2)).unwrap().renewed);
    assert!(
        !registry
            .server_certificate(&more, at(66 * 86_400))
            .unwrap()
            .renewed
    );
    assert!(
        registry
            .server_certificate(&more, at(68 * 86_400))
            .unwrap()
            .renewed
    );
}

#[test]
fn operators_and_grants_are_shown_once_and_revoked() {
    let (_disk, registry) = Disk::with_registry();
    let admin = registry
        .add_operator(&NewOperator::admin("admin"), at(0))
        .unwrap();
    let found = registry
        .operator_by_token(admin.token.expose(), at(1))
        .unwrap()
        .unwrap();
    assert_eq!(found.name, "admin");
    assert!(registry.operator_by_token(b"guess", at(1)).unwrap().is_none());
    assert!(matches!(
        registry.remove_operator("admin"),
        Err(RegistryError::LastOperator(_))
    ));
    registry
        .add_operator(&NewOperator::admin("second"), at(1))
        .unwrap();
    registry.remove_operator("admin").unwrap();
    assert!(
        registry
            .operator_by_token(admin.token.expose(), at(2))
            .unwrap()
            .is_none()
    );

    let (peer, _) = enrolled(&registry);
    let request = GrantRequest::new(peer, "ops@example.com", "node_instance", &["read"]);
    let new = crate::grant::NewGrant::check(request).unwrap();
    let (grant, token) = registry.create_grant(new, at(2)).unwrap();
    assert!(token.to_secret().expose_text().unwrap().starts_with("fgs."));
    assert!(registry.revoke_grant(&grant.id.to_string(), "", at(3)).is_err());
    registry
        .revoke_grant(&grant.id.to_string(), "left the company", at(3))
        .unwrap();
    assert!(registry.revoke_grant("nonsense", "x", at(3)).is_err());
    assert_eq!(registry.archive_grants(at(3 + 89 * 86_400)).unwrap(), 0);
    assert_eq!(registry.archive_grants(at(3 + 90 * 86_400)).unwrap(), 1);
    assert_eq!(registry.archive_grants(at(3 + 91 * 86_400)).unwrap(), 0);
}

#[test]
fn stale_tokens_are_forgotten() {
    let (_disk, registry) = Disk::with_registry();
    enrolled(&registry);
    registry
        .invite(&proposal("never-came"), Duration::from_secs(60), at(0))
        .unwrap();
    assert_eq!(registry.forget_stale_tokens(GRACE, at(59)).unwrap(), 0);
    assert_eq!(registry.forget_stale_tokens(GRACE, at(60)).unwrap(), 1);
    assert_eq!(registry.forget_stale_tokens(GRACE, at(86_400)).unwrap(), 1);
    assert!(
        registry
            .peers()
            .unwrap()
            .iter()
            .all(|peer| peer.live_token.is_none() && peer.used_token.is_none())
    );
}

#[test]
fn a_registry_is_made_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("registry.redb");
    assert!(matches!(
        Registry::open(&path, None, Opening::ReadWrite),
        Err(OpenRegistryError::NotThere { .. })
    ));
    let fingerprint = Registry::create(&path, None, "Test CA", at(0))
        .unwrap()
        .authority()
        .fingerprint();
    assert!(matches!(
        Registry::create(&path, None, "Other CA", at(1)),
        Err(CreateError::Exists { .. })
    ));
    assert_eq!(
        Registry::open(&path, None, Opening::ReadWrite)
            .unwrap()
            .authority()
            .fingerprint(),
        fingerprint
    );
    assert_eq!(
        Registry::open(&path, None, Opening::ReadOnly)
            .unwrap()
            .authority()
            .fingerprint(),
        fingerprint
    );
}

#[test]
fn under_a_state_key_the_registry_holds_no_readable_private_key() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(REGISTRY_FILE);
    let names = ["bridge.example.com".to_owned()];
    let registry = Registry::create(&path, None, "Test CA", at(0)).unwrap();
    let server = registry.server_certificate(&names, at(0)).unwrap().record;
    let authority = registry.authority().expose_key().clone();
    let grant_secret = registry.grant_key.to_secret();
    let fingerprint = registry.authority().fingerprint();
    drop(registry);
    // The algorithm and the head of the private key, as every Ed25519 key has them in PKCS#8.
    let mark = Secret::new(b"\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20".to_vec());
    let found = || {
        let bytes = std::fs::read(&path).unwrap();
        [&authority, &grant_secret, &server.key, &mark]
            .into_iter()
            .filter(|secret| {
                bytes
                    .windows(secret.len())
                    .any(|window| window == secret.expose())
            })
            .count()
    };
    assert_eq!(found(), 4);
    let key: Vec<u8> = (0..32).collect();
    let key = StateKey::parse(&key).unwrap();
    let registry = Registry::open(&path, Some(&key), Opening::ReadWrite).unwrap();
    assert!(registry.is_sealed());
    assert_eq!(registry.authority().fingerprint(), fingerprint);
    registry.invite(&proposal("shop-17"), TTL, at(0)).unwrap();
    // A new certificate, and a new key with it.
    let renewed = registry.server_certificate(&["other.example.com".to_owned()], at(1));
    let renewed = renewed.unwrap().record.key;
    drop(registry);
    assert_eq!(found(), 0);
    let bytes = std::fs::read(&path).unwrap();
    assert!(
        !bytes
            .windows(renewed.len())
            .any(|window| window == renewed.expose())
    );
    assert!(
        Registry::open(&path, Some(&key), Opening::ReadOnly)
            .unwrap()
            .is_sealed()
    );
    for refused in [
        Registry::open(&path, None, Opening::ReadWrite),
        Registry::open(&path, None, Opening::ReadOnly),
    ] {
        assert!(matches!(
            refused,
            Err(OpenRegistryError::Open(OpenError::Sealed { .. }))
        ));
    }
    assert!(Registry::create(&path, None, "Other CA", at(1)).is_err());
    assert!(Registry::unseal(&path, &key).unwrap());
    let registry = Registry::open(&path, None, Opening::ReadWrite).unwrap();
    assert!(!registry.is_sealed());
    assert_eq!(registry.authority().fingerprint(), fingerprint);
    assert_eq!(registry.peers().unwrap().len(), 1);
}
