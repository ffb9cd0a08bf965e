//! Grants that peers have given: which one is shown, and what their end changes.

use super::*;
use crate::base::id::GrantId;
use crate::base::secret::Secret;
use crate::bridge::registry::record::{HELD_GRANTS, HeldGrant, PEER_NAMES, PEERS, PeerNameRecord};
use crate::grant::{MANAGED_CHILD_OPERATOR_KIND, PermissionScope, SERVICE_KIND};
use crate::store::database::Schema;

const YEAR: i64 = 365 * 86_400;

fn held(number: u8, kind: &str, subject: &str, service: Option<&str>) -> HeldGrant {
    HeldGrant {
        id: GrantId::new_v7(at(0), [number; 10]),
        remote_subject: subject.to_owned(),
        resource_kind: kind.to_owned(),
        resource_id: service.map(str::to_owned),
        permission_scopes: [PermissionScope::Read, PermissionScope::Write].into(),
        issued_at: at(0),
        expires_at: at(YEAR),
        revocation: None,
        token: Secret::from_text(format!("token {number}")),
    }
}

#[test]
fn the_operators_own_grant_to_the_service_goes_before_the_one_for_all() {
    let (disk, registry) = Disk::with_registry();
    let (peer, _) = enrolled(&registry);
    let operator = held(1, MANAGED_CHILD_OPERATOR_KIND, "parent-operator@x", None);
    let anna = held(2, SERVICE_KIND, "anna", Some("ssh"));
    let reader = HeldGrant {
        permission_scopes: [PermissionScope::Read].into(),
        ..held(3, SERVICE_KIND, "carla", None)
    };
    for grant in [&operator, &anna, &reader] {
        registry.hold_grant(peer, grant.clone(), at(1)).unwrap();
    }
    let registry = disk.after_power_cut().open();
    let picked = |service: &str, operator: &str, time| {
        let held = registry
            .held_grant_for(peer, service, operator, at(time))
            .unwrap();
        held.map(|grant| grant.id)
    };
    assert_eq!(picked("ssh", "anna", 2), Some(anna.id));
    assert_eq!(picked("web", "anna", 2), Some(operator.id));
    assert_eq!(picked("ssh", "berta", 2), Some(operator.id));
    assert_eq!(picked("ssh", "carla", 2), Some(operator.id));
    assert_eq!(picked("ssh", "anna", YEAR), None, "all are over");
    let token = registry.held_grant_for(peer, "ssh", "anna", at(2)).unwrap();
    assert_eq!(token.unwrap().token.expose(), b"token 2");
    let nobody = PeerId::new_v7(at(0), [9; 10]);
    assert!(
        registry
            .held_grant_for(nobody, "ssh", "anna", at(2))
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_revocation_wipes_the_token_ends_the_managing_and_is_not_undone() {
    let (_disk, registry) = Disk::with_registry();
    let (peer, _) = enrolled(&registry);
    let grant = held(1, MANAGED_CHILD_OPERATOR_KIND, "parent-operator@x", None);
    let mode = || registry.peer_by_id(peer).unwrap().unwrap().mode;
    assert!(!registry.held_grant_revoked(peer, grant.id, "no", at(1)).unwrap());
    registry.hold_grant(peer, grant.clone(), at(1)).unwrap();
    assert_eq!(mode(), SpawnMode::ManagedChild);
    assert!(
        registry
            .held_grant_revoked(peer, grant.id, "on our own", at(2))
            .unwrap()
    );
    assert_eq!(mode(), SpawnMode::AutonomousPeer);
    // The hand-over comes a second time, late.
    registry.hold_grant(peer, grant.clone(), at(3)).unwrap();
    let kept = registry.held_grants(peer).unwrap().remove(0);
    assert!(kept.token.is_empty());
    assert_eq!(kept.revocation.unwrap().reason, "on our own");
    assert!(
        registry
            .held_grant_for(peer, "ssh", "anna", at(4))
            .unwrap()
            .is_none()
    );
}

#[test]
fn what_is_held_is_bounded_and_goes_with_the_peer() {
    let (_disk, registry) = Disk::with_registry();
    let (peer, _) = enrolled(&registry);
    for number in 0..HELD_GRANTS_MAX {
        let mut grant = held(0, SERVICE_KIND, "anna", None);
        let mut entropy = [0; 10];
        entropy[8..].copy_from_slice(&u16::try_from(number).unwrap().to_be_bytes());
        grant.id = GrantId::new_v7(at(0), entropy);
        registry.hold_grant(peer, grant, at(1)).unwrap();
    }
    let more = || held(7, SERVICE_KIND, "berta", None);
    let full = registry.hold_grant(peer, more(), at(1)).unwrap_err();
    assert_eq!(full.http_status(), 507);
    registry.hold_grant(peer, more(), at(YEAR)).unwrap();
    assert_eq!(registry.held_grants(peer).unwrap().len(), HELD_GRANTS_MAX);
    registry.revoke(&peer.to_string(), "closed", at(2)).unwrap();
    assert!(registry.held_grants(peer).unwrap().is_empty());
    assert_eq!(
        registry.db.read(|r| r.count(&HELD_GRANTS)).unwrap(),
        0,
        "nothing of it stays"
    );
}

/// The schema of the programs before held grants.
static FIRST: Schema = Schema {
    name: "powernode-host-bridge",
    version: 1,
    migrations: &[],
    sealed: &["authority", "server"],
};

fn recorded() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store/registry-schema-1.redb")
}

/// Writes the fixture. Not run with the others: a fixture that is made anew proves nothing.
#[test]
#[ignore = "writes tests/fixtures/store/registry-schema-1.redb"]
fn record_the_first_schema() {
    let (_disk, registry) = Disk::with_registry();
    let (id, _) = enrolled(&registry);
    let peer = registry.peer_by_id(id).unwrap().unwrap();
    // Without the authority: no private key belongs into a repository.
    let db = Database::open(&recorded(), &FIRST).unwrap();
    db.write(|w| {
        w.put(&PEER_NAMES, &"shop-17".to_owned(), &PeerNameRecord { peer: id })?;
        w.put(&PEERS, &id, &peer)
    })
    .unwrap();
}

#[test]
fn a_recorded_registry_of_the_first_schema_keeps_its_peers_and_holds_grants() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(REGISTRY_FILE);
    std::fs::copy(recorded(), &path).unwrap();
    let db = Database::open(&path, &SCHEMA).unwrap();
    let registry = Registry::create_in(db, "(test)", "Test CA", at(0)).unwrap();
    let peer = registry.peer("shop-17").unwrap();
    assert_eq!(peer.status, PeerStatus::Enrolled);
    let grant = held(1, SERVICE_KIND, "anna", None);
    registry.hold_grant(peer.id, grant, at(1)).unwrap();
    drop(registry);
    let registry = Registry::open(&path, None, Opening::ReadWrite).unwrap();
    assert_eq!(registry.held_grants(peer.id).unwrap().len(), 1);
}
