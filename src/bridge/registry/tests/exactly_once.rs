//! An accept happens once, whatever is lost on the way and whenever the power goes.

use proptest::prelude::*;

use super::*;

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
