//! The registry on disks that lose power, and under orders of events that nobody planned.

#![allow(clippy::unwrap_used)]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use redb::StorageBackend;
use serde_json::json;

use super::*;
use crate::bridge::acceptance::{AcceptCall, AcceptRefusal};
use crate::bridge::heartbeat::Declaration;
use crate::contract::message::{AcceptResponse, ContractAnswer, read_answer};
use crate::contract::peer::{PeerKind, PeerStatus, SpawnMode, SpawnRole};
use crate::grant::GrantRequest;
use crate::identity::key::PrivateKey;

const GRACE: Duration = Duration::from_secs(86_400);
const TTL: Duration = Duration::from_secs(7 * 86_400);

fn at(seconds: i64) -> UnixTime {
    UnixTime::from_seconds(1_800_000_000 + seconds)
}

/// A disk that can lose its power: what was not synced is gone.
#[derive(Debug, Default)]
struct Platter {
    synced: Vec<u8>,
    live: Vec<u8>,
    /// Operations that still succeed; none when the power stays.
    power: Option<usize>,
}

#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    fn with_registry() -> (Self, Registry) {
        let disk = Self::default();
        let db = Database::open_with_backend(disk.clone(), &SCHEMA).unwrap();
        let registry = Registry::create_in(db, "(test)", "Test CA", at(0)).unwrap();
        (disk, registry)
    }

    fn cut_power_after(&self, operations: usize) {
        self.0.lock().unwrap().power = Some(operations);
    }

    /// What a restart finds.
    fn after_power_cut(&self) -> Self {
        let image = self.0.lock().unwrap().synced.clone();
        Self(Arc::new(Mutex::new(Platter {
            synced: image.clone(),
            live: image,
            power: None,
        })))
    }

    fn open(&self) -> Registry {
        let db = Database::open_with_backend(self.clone(), &SCHEMA).unwrap();
        Registry::open_in(db).unwrap()
    }

    fn operate<T>(&self, operation: impl FnOnce(&mut Platter) -> T) -> io::Result<T> {
        let mut platter = self.0.lock().unwrap();
        match &mut platter.power {
            Some(0) => return Err(io::Error::other("the power is out")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(operation(&mut platter))
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        out.copy_from_slice(&platter.live[start..start + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate(|platter| platter.live.resize(usize::try_from(len).unwrap(), 0))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operate(|platter| platter.synced = platter.live.clone())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        self.operate(|platter| platter.live[start..start + data.len()].copy_from_slice(data))
    }
}

fn proposal(name: &str) -> Proposal {
    Proposal {
        name: Some(name.to_owned()),
        description: None,
        remote_instance_url: None,
        kind: PeerKind::Platform,
        role: SpawnRole::Parent,
        mode: SpawnMode::ManagedChild,
    }
}

fn call(token: &crate::contract::token::AcceptanceToken, key: Option<&PrivateKey>) -> AcceptCall {
    let csr = key.map(|key| key.csr_pem("powernode-satellite").unwrap());
    let body = json!({
        "acceptance_token": token.expose().expose_text().unwrap(),
        "contract_version": 1,
        "csr_pem": csr,
    });
    AcceptCall::read(body.to_string().as_bytes()).unwrap()
}

fn response(accepted: &Accepted) -> AcceptResponse {
    match read_answer(200, &accepted.answer).unwrap() {
        ContractAnswer::Data(data) => data,
        ContractAnswer::Failure(failure) => panic!("{failure:?}"),
    }
}

fn refusal(result: Result<Accepted, AcceptError>) -> AcceptRefusal {
    match result.unwrap_err() {
        AcceptError::Refused(refusal) => refusal,
        AcceptError::Store(error) => panic!("{error}"),
    }
}

#[test]
fn an_accept_enrolls_once_and_repeats_for_its_own_key_alone() {
    let (disk, registry) = Disk::with_registry();
    let (key, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let minted = registry.invite(&proposal("shop-17"), TTL, at(0)).unwrap();
    let first = registry
        .accept(&call(&minted.token, Some(&key)), GRACE, at(1))
        .unwrap();
    assert!(!first.repeated);
    let data = response(&first);
    assert_eq!(
        (data.peer_id, data.status),
        (minted.peer.id, PeerStatus::Enrolled)
    );
    assert!(data.federation_certificate.is_some());
    drop(registry);

    let registry = disk.open();
    let again = registry
        .accept(&call(&minted.token, Some(&key)), GRACE, at(2))
        .unwrap();
    assert_eq!((again.answer, again.repeated), (first.answer, true));
    let known = AcceptRefusal::TokenNotRecognized;
    assert_eq!(
        refusal(registry.accept(&call(&minted.token, Some(&other)), GRACE, at(2))),
        known
    );
    assert_eq!(
        refusal(registry.accept(&call(&minted.token, None), GRACE, at(2))),
        known
    );
    assert_eq!(
        refusal(registry.accept(&call(&minted.token, Some(&key)), GRACE, at(86_401))),
        known
    );
    let grants = registry.grants().unwrap();
    assert_eq!(grants.len(), 1);
    assert_eq!(
        grants[0].remote_subject,
        format!("parent-operator@{}", minted.peer.id)
    );
    assert_eq!(
        grants[0].expires_at,
        at(1).plus(Duration::from_secs(365 * 86_400))
    );
}

#[test]
fn a_power_cut_at_any_write_of_an_accept_leaves_all_or_nothing() {
    let key = PrivateKey::generate().unwrap();
    let mut cuts = 0;
    loop {
        let (disk, registry) = Disk::with_registry();
        let minted = registry.invite(&proposal("shop-17"), TTL, at(0)).unwrap();
        disk.cut_power_after(cuts);
        let first = registry.accept(&call(&minted.token, Some(&key)), GRACE, at(1));
        let restarted = disk.after_power_cut();
        drop(registry);
        let registry = restarted.open();
        let peers = registry.peers().unwrap();
        assert_eq!(peers.len(), 1);
        let consumed = peers[0].used_token.is_some();
        assert_eq!(consumed, peers[0].status == PeerStatus::Enrolled, "cut {cuts}");
        assert_eq!(consumed, registry.grants().unwrap().len() == 1, "cut {cuts}");
        let retried = registry
            .accept(&call(&minted.token, Some(&key)), GRACE, at(2))
            .unwrap();
        assert_eq!(retried.repeated, consumed);
        match first {
            Ok(first) => {
                assert!(consumed, "an answer was given for an accept that is not kept");
                assert_eq!(first.answer, retried.answer);
                break;
            }
            Err(AcceptError::Store(_)) => cuts += 1,
            Err(AcceptError::Refused(refusal)) => panic!("{refusal}"),
        }
    }
    assert!(cuts >= 2, "an accept has at least one write and one sync to cut");
}

#[test]
fn four_simultaneous_accepts_enroll_one_key() {
    let (_disk, registry) = Disk::with_registry();
    for round in 0..10 {
        let minted = registry
            .invite(&proposal(&format!("box-{round}")), TTL, at(0))
            .unwrap();
        let keys: Vec<PrivateKey> = (0..4).map(|_| PrivateKey::generate().unwrap()).collect();
        let won = std::thread::scope(|scope| {
            let tries: Vec<_> = keys
                .iter()
                .map(|key| {
                    scope.spawn(|| {
                        registry
                            .accept(&call(&minted.token, Some(key)), GRACE, at(1))
                            .is_ok()
                    })
                })
                .collect();
            tries
                .into_iter()
                .filter_map(|tried| tried.join().ok())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(won, 1);
    }
}

#[test]
fn a_request_that_cannot_be_signed_does_not_consume_the_token() {
    let (_disk, registry) = Disk::with_registry();
    let minted = registry.invite(&proposal("shop-17"), TTL, at(0)).unwrap();
    let mut broken = call(&minted.token, None);
    broken.csr_pem =
        Some("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n".into());
    let refused = refusal(registry.accept(&broken, GRACE, at(1)));
    assert_eq!(refused.http_status(), 422, "{refused}");
    assert_eq!(registry.peer("shop-17").unwrap().status, PeerStatus::Proposed);
    let key = PrivateKey::generate().unwrap();
    assert!(
        registry
            .accept(&call(&minted.token, Some(&key)), GRACE, at(2))
            .is_ok()
    );
}

#[test]
fn the_published_agent_without_a_request_is_enrolled_without_a_certificate() {
    let (_disk, registry) = Disk::with_registry();
    let minted = registry.invite(&proposal("shop-17"), TTL, at(0)).unwrap();
    let accepted = registry.accept(&call(&minted.token, None), GRACE, at(1)).unwrap();
    let data = response(&accepted);
    assert_eq!(data.status, PeerStatus::Enrolled);
    assert_eq!(data.federation_certificate, None);
    assert_eq!(registry.peer("shop-17").unwrap().inbound_subject, None);
}

#[test]
fn a_suspended_peer_may_accept_again_and_its_old_key_is_out() {
    let (_disk, registry) = Disk::with_registry();
    let (old, new) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let minted = registry.invite(&proposal("shop-17"), TTL, at(0)).unwrap();
    registry
        .accept(&call(&minted.token, Some(&old)), GRACE, at(1))
        .unwrap();
    let second = registry.mint_token("shop-17", TTL, at(2)).unwrap();
    assert!(second.caution().is_some());
    let denied = refusal(registry.accept(&call(&second.token, Some(&new)), GRACE, at(2)));
    assert_eq!(denied.http_status(), 422);
    registry.suspend("shop-17", "stolen", at(3)).unwrap();
    registry
        .accept(&call(&second.token, Some(&new)), GRACE, at(4))
        .unwrap();
    let peer = registry.peer("shop-17").unwrap();
    assert_eq!(peer.certificates.len(), 1);
    assert_eq!(peer.certificates[0].key, new.public_key_digest());
    assert_eq!(
        refusal(registry.accept(&call(&minted.token, Some(&old)), GRACE, at(5))),
        AcceptRefusal::TokenNotRecognized
    );
    assert_eq!(
        registry.grants().unwrap().len(),
        1,
        "the operator grant is reused"
    );
}

#[test]
fn minting_again_replaces_the_earlier_token() {
    let (_disk, registry) = Disk::with_registry();
    let key = PrivateKey::generate().unwrap();
    let first = registry.invite(&proposal("shop-17"), TTL, at(0)).unwrap();
    let second = registry.mint_token("shop-17", TTL, at(1)).unwrap();
    assert_eq!(
        refusal(registry.accept(&call(&first.token, Some(&key)), GRACE, at(2))),
        AcceptRefusal::TokenNotRecognized
    );
    assert!(
        registry
            .accept(&call(&second.token, Some(&key)), GRACE, at(2))
            .is_ok()
    );
}

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

fn enrolled(registry: &Registry) -> (PeerId, PrivateKey) {
    let key = PrivateKey::generate().unwrap();
    let minted = registry.invite(&proposal("shop-17"), TTL, at(0)).unwrap();
    registry
        .accept(&call(&minted.token, Some(&key)), GRACE, at(0))
        .unwrap();
    (minted.peer.id, key)
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
    let admin = registry.add_operator("admin", at(0)).unwrap();
    let found = registry.operator_by_token(admin.token.expose()).unwrap().unwrap();
    assert_eq!(found.name, "admin");
    assert!(registry.operator_by_token(b"guess").unwrap().is_none());
    assert!(matches!(
        registry.revoke_operator("admin"),
        Err(RegistryError::LastOperator(_))
    ));
    registry.add_operator("second", at(1)).unwrap();
    registry.revoke_operator("admin").unwrap();
    assert!(
        registry
            .operator_by_token(admin.token.expose())
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
        Registry::open(&path),
        Err(OpenRegistryError::NotInitialised)
    ));
    let fingerprint = Registry::create(&path, "Test CA", at(0))
        .unwrap()
        .authority()
        .fingerprint();
    assert!(matches!(
        Registry::create(&path, "Other CA", at(1)),
        Err(CreateError::Exists { .. })
    ));
    assert_eq!(
        Registry::open(&path).unwrap().authority().fingerprint(),
        fingerprint
    );
    assert_eq!(
        Registry::open_read_only(&path).unwrap().authority().fingerprint(),
        fingerprint
    );
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Accept { key: usize, lost: bool },
    AcceptWithoutKey,
    Mint,
    Suspend,
    Resume,
    Wait { hours: u8 },
    Restart,
    PowerCut { after: usize },
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_usize..3, any::<bool>()).prop_map(|(key, lost)| Step::Accept { key, lost }),
        1 => Just(Step::AcceptWithoutKey),
        1 => Just(Step::Mint),
        1 => Just(Step::Suspend),
        1 => Just(Step::Resume),
        2 => (1_u8..40).prop_map(|hours| Step::Wait { hours }),
        2 => Just(Step::Restart),
        1 => (0_usize..6).prop_map(|after| Step::PowerCut { after }),
        1 => Just(Step::Sweep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever order accepts, losses, restarts and expiries come in: one peer, no consumed token
    /// without an enrolled peer, one certificate and one key per token.
    #[test]
    fn accepts_happen_exactly_once_in_any_order(steps in proptest::collection::vec(step(), 1..25)) {
        let keys: Vec<PrivateKey> = (0..3).map(|_| PrivateKey::generate().unwrap()).collect();
        let (mut disk, mut registry) = Disk::with_registry();
        let mut token = registry.invite(&proposal("shop-17"), TTL, at(0)).unwrap().token;
        let mut answered: Option<(usize, Vec<u8>)> = None;
        let mut now = 1;
        for step in steps {
            now += 1;
            match step {
                Step::Accept { key, lost } => {
                    match registry.accept(&call(&token, Some(&keys[key])), GRACE, at(now)) {
                        Ok(accepted) => {
                            if let Some((first_key, answer)) = &answered {
                                prop_assert_eq!(*first_key, key, "a token served two keys");
                                prop_assert_eq!(answer, &accepted.answer, "a token gave two answers");
                            }
                            // A lost answer binds the bridge as much as one that arrived.
                            if !lost || answered.is_none() {
                                answered = Some((key, accepted.answer));
                            }
                        }
                        Err(AcceptError::Refused(_)) => {}
                        Err(AcceptError::Store(_)) => {
                            // Without power nobody knows; what a restart finds counts.
                            disk = disk.after_power_cut();
                            drop(registry);
                            registry = disk.open();
                        }
                    }
                }
                Step::AcceptWithoutKey => {
                    let before = registry.peer("shop-17").unwrap().used_token;
                    let tried = registry.accept(&call(&token, None), GRACE, at(now));
                    if let Ok(accepted) = tried {
                        prop_assert!(before != Some(token.digest()), "a used token served a stranger");
                        answered = Some((usize::MAX, accepted.answer));
                    }
                }
                Step::Mint => {
                    if let Ok(minted) = registry.mint_token("shop-17", TTL, at(now)) {
                        token = minted.token;
                        answered = None;
                    }
                }
                Step::Suspend => drop(registry.suspend("shop-17", "test", at(now))),
                Step::Resume => drop(registry.resume("shop-17", at(now))),
                Step::Wait { hours } => now += i64::from(hours) * 3_600,
                Step::Restart => {
                    drop(registry);
                    disk.0.lock().unwrap().power = None;
                    registry = disk.open();
                }
                Step::PowerCut { after } => disk.cut_power_after(after),
                Step::Sweep => drop(registry.forget_stale_tokens(GRACE, at(now))),
            }
            if disk.0.lock().unwrap().power == Some(0) {
                disk = disk.after_power_cut();
                drop(registry);
                registry = disk.open();
            }
            let peers = registry.peers().unwrap();
            prop_assert_eq!(peers.len(), 1, "two peers");
            let consumed = peers[0].used_token == Some(token.digest());
            if consumed {
                prop_assert!(peers[0].signed_at.is_some());
                prop_assert!(peers[0].status != PeerStatus::Proposed, "a consumed token without an enrolled peer");
            }
        }
    }
}
