//! What the state directory holds and how it comes back, with and without a state key.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::base::id::PeerId;
use crate::base::secret::Secret;
use crate::contract::delivery::{NodeEnrollment, TrustExchange};
use crate::contract::invitation::{ContractVersion, ParentTrust};
use crate::contract::message::FederationCertificate;
use crate::contract::peer::{PeerStatus, SpawnMode};
use crate::contract::token::TokenDigest;
use crate::identity::key::PrivateKey;
use crate::machine::mapping_lease::MappingProtocol;
use crate::machine::membership::{
    AcceptedAnswer, Candidate, Delivered, JoinRefusal, KeyMaterial, Membership, Operator, Parent,
    StoredIdentity, StoredInvitation,
};
use crate::machine::node_identity::NodeStanding;
use crate::machine::past::Past;
use crate::store::record;
use crate::store::seal::SealError;

const NOW: UnixTime = UnixTime::from_seconds(1_800_000_000);

/// One state of each kind, with every optional field once present and once absent.
fn states() -> Vec<JoinState> {
    let node = NodeStanding::Asked {
        enrollment: NodeEnrollment {
            bootstrap_token: Secret::from_text("bootstrap token".into()),
            platform_url: "https://platform.example.com".parse().unwrap(),
            intended_subject: "instance".into(),
            expires_at: Some(NOW),
        },
        until: NOW,
        key: KeyMaterial {
            pkcs8: Secret::new(vec![5]),
            csr_pem: "CSR".into(),
        },
    };
    let delivered = Delivered {
        trust_exchange: Some(TrustExchange {
            ca_bundle_pem: "CA".into(),
            assigned_inbound_subject: "fed:me".into(),
        }),
        rest: Secret::from_text(r#"{"cluster":"token"}"#.into()),
        warnings: vec!["why".into()],
    };
    states_with(Some(&node), &delivered)
}

fn states_with(node: Option<&NodeStanding>, delivered: &Delivered) -> Vec<JoinState> {
    let parent = Parent {
        url: "https://parent.example.com".parse().unwrap(),
        bridges: vec!["192.0.2.1:8443".parse().unwrap()],
        trust: ParentTrust::Bundle("PEM".into()),
    };
    let operator = Operator {
        contact: "ops".into(),
        location: "DE".into(),
        data_residency: Some("EU".into()),
    };
    let invitation = StoredInvitation {
        parent: parent.clone(),
        operator: operator.clone(),
        token: Secret::from_text("token".into()),
        token_digest: TokenDigest::of(b"token"),
        spawn_mode: SpawnMode::ManagedChild,
        parent_peer_id: Some(PeerId::new_v7(NOW, [1; 10])),
        contract_version: ContractVersion::CURRENT,
        minted_at: Some(NOW),
        own_authority: None,
        past: Past::default(),
    };
    let key = KeyMaterial {
        pkcs8: Secret::new(vec![1, 2, 3]),
        csr_pem: "CSR".into(),
    };
    let certificate = FederationCertificate {
        cert_pem: "CERT".into(),
        ca_chain_pem: "CA".into(),
        serial: "AB".into(),
        not_after: NOW,
    };
    let answer = AcceptedAnswer {
        peer_id: PeerId::new_v7(NOW, [2; 10]),
        status: PeerStatus::Enrolled,
        contract_version: 1,
        certificate: certificate.clone(),
        accepted_at: NOW,
        node: node.cloned(),
        delivered: delivered.clone(),
    };
    let identity = StoredIdentity {
        pkcs8: Secret::new(vec![4]),
        certificate: certificate.clone(),
        not_before: NOW,
    };
    let member = |candidate| Membership {
        parent: parent.clone(),
        operator: operator.clone(),
        peer_id: PeerId::new_v7(NOW, [3; 10]),
        spawn_mode: SpawnMode::ManagedChild,
        contract_version: 1,
        identity: identity.clone(),
        candidate,
        accepted_at: NOW,
        status: PeerStatus::Active,
        node: node.cloned(),
        delivered: delivered.clone(),
        own_authority: None,
        former: Vec::new(),
        rejoin_refused: None,
    };
    let refused = |key| JoinState::Refused {
        parent: parent.clone(),
        key,
        refusal: JoinRefusal::NoCertificate {
            warnings: vec!["why".into()],
        },
        at: NOW,
        token: TokenDigest::of(b"token"),
        former: Vec::new(),
    };
    vec![
        JoinState::Invited(StoredInvitation {
            parent_peer_id: None,
            minted_at: None,
            ..invitation.clone()
        }),
        JoinState::KeyReady {
            invitation: invitation.clone(),
            key: key.clone(),
        },
        JoinState::Sent {
            invitation: invitation.clone(),
            key: key.clone(),
            first_sent_at: NOW,
        },
        JoinState::Accepted {
            invitation: invitation.used_up(),
            key: key.clone(),
            answer,
        },
        JoinState::Enrolled(member(None)),
        JoinState::Joined(member(Some(Candidate::Requested(key.clone())))),
        JoinState::Joined(member(Some(Candidate::Issued(identity.clone())))),
        refused(None),
        refused(Some(key.clone())),
    ]
}

#[test]
fn every_state_comes_back_from_the_store_and_from_the_copy() {
    for state in states() {
        let directory = tempfile::tempdir().unwrap();
        let said = format!("{state:?}");
        let (store, _) = MembershipStore::open(directory.path(), None).unwrap();
        store.save_state_blocking(&state).unwrap();
        drop(store);
        let (_, loaded) = MembershipStore::open(directory.path(), None).unwrap();
        assert_eq!(format!("{:?}", loaded.state.unwrap()), said);
        match read_copy(directory.path(), None).unwrap() {
            Copied::State(copied) => assert_eq!(format!("{copied:?}"), said),
            Copied::Nothing | Copied::Damaged => panic!("no copy of {said}"),
        }
    }
}

/// One record of each state as version 1 wrote them, each behind its length.
const VERSION_1: &[u8] = include_bytes!("../../../tests/fixtures/store/membership-version-1.records");

fn recorded_states() -> Vec<Vec<u8>> {
    let (mut records, mut rest) = (Vec::new(), VERSION_1);
    while let Some((length, after)) = rest.split_first_chunk() {
        let (record, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        records.push(record.to_vec());
        rest = after;
    }
    records
}

#[test]
fn every_state_that_version_1_wrote_is_read() {
    let expected = states_with(None, &Delivered::default());
    let recorded = recorded_states();
    assert_eq!(recorded.len(), expected.len());
    for (record, expected) in recorded.iter().zip(&expected) {
        let StoredState(read) = record::decode(record).unwrap();
        assert_eq!(format!("{read:?}"), format!("{expected:?}"));
    }
}

const KEY_BYTES: [u8; 32] = *b"\x00\x01\x02\x03the key of these state tests";

fn state_key() -> StateKey {
    StateKey::parse(&KEY_BYTES).unwrap()
}

fn other_key() -> StateKey {
    let mut bytes = KEY_BYTES;
    bytes[0] = 9;
    StateKey::parse(&bytes).unwrap()
}

/// A member with a key that is long enough to be searched for.
fn member() -> (JoinState, Vec<u8>) {
    let pkcs8 = PrivateKey::generate().unwrap().expose_pkcs8().clone();
    let mut state = states().swap_remove(4);
    if let JoinState::Enrolled(membership) = &mut state {
        membership.identity.pkcs8 = pkcs8.clone();
    }
    (state, pkcs8.expose().to_vec())
}

/// The files of the directory that hold these bytes anywhere.
fn holding(directory: &Path, bytes: &[u8]) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let content = std::fs::read(entry.path()).unwrap();
        if content.windows(bytes.len()).any(|window| window == bytes) {
            files.push(entry.file_name().into_string().unwrap());
        }
    }
    files.sort();
    files
}

/// What every Ed25519 key in PKCS#8 has: the algorithm, and the head of the private key.
const PKCS8_MARK: &[u8] = b"\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

fn in_sealed(error: &OpenStateError) -> Option<SealError> {
    match error {
        OpenStateError::Open {
            source: OpenError::Sealed { source, .. },
            ..
        }
        | OpenStateError::CopySeal { source, .. } => Some(*source),
        _ => None,
    }
}

#[test]
fn under_a_key_no_file_holds_a_private_key_or_a_token() {
    let directory = tempfile::tempdir().unwrap();
    let (member, pkcs8) = member();
    assert_eq!(holding(directory.path(), PKCS8_MARK), [""; 0]);
    let key = state_key();
    let (store, _) = MembershipStore::open(directory.path(), Some(&key)).unwrap();
    for state in states().into_iter().chain([member]) {
        store.save_state_blocking(&state).unwrap();
        assert_eq!(holding(directory.path(), b"token"), [""; 0]);
    }
    assert!(store.report(None).sealed);
    drop(store);
    assert_eq!(holding(directory.path(), &pkcs8), [""; 0]);
    assert_eq!(holding(directory.path(), PKCS8_MARK), [""; 0]);
    let (loaded, _) = MembershipStore::peek(directory.path(), Some(&key)).unwrap();
    assert!(loaded.state.is_some() && loaded.sealed);
    for (key, expected) in [
        (
            None,
            SealError::NoKey {
                sealed_with: key.id(),
            },
        ),
        (
            Some(other_key()),
            SealError::OtherKey {
                sealed_with: key.id(),
                given: other_key().id(),
            },
        ),
    ] {
        let peeked = MembershipStore::peek(directory.path(), key.as_ref()).unwrap_err();
        assert_eq!(in_sealed(&peeked), Some(expected));
        let opened = MembershipStore::open(directory.path(), key.as_ref()).unwrap_err();
        assert_eq!(in_sealed(&opened), Some(expected));
        let told = error_chain(&opened);
        assert!(told.contains(&state_key().id().to_string()), "{told}");
    }
}

#[test]
fn a_key_that_comes_later_leaves_nothing_of_the_old_files() {
    let directory = tempfile::tempdir().unwrap();
    let (member, pkcs8) = member();
    let (store, _) = MembershipStore::open(directory.path(), None).unwrap();
    for state in [&states()[2], &member] {
        store.save_state_blocking(state).unwrap();
    }
    drop(store);
    assert_eq!(holding(directory.path(), &pkcs8), [COPY_FILE, STORE_FILE]);
    let (store, loaded) = MembershipStore::open(directory.path(), Some(&state_key())).unwrap();
    assert_eq!(format!("{:?}", loaded.state.unwrap()), format!("{member:?}"));
    assert!(store.report(None).sealed);
    drop(store);
    for secret in [&pkcs8[..], PKCS8_MARK, b"token"] {
        assert_eq!(holding(directory.path(), secret), [""; 0]);
    }
    assert!(matches!(
        read_copy(directory.path(), Some(&state_key())).unwrap(),
        Copied::State(_)
    ));
}

#[test]
fn a_sealed_copy_helps_with_its_key_and_is_not_forgotten_without() {
    for lost in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let key = state_key();
        let (member, pkcs8) = member();
        let (store, _) = MembershipStore::open(directory.path(), Some(&key)).unwrap();
        store.save_state_blocking(&member).unwrap();
        drop(store);
        let path = directory.path().join(STORE_FILE);
        if lost {
            std::fs::remove_file(&path).unwrap();
        } else {
            std::fs::write(&path, b"").unwrap();
        }
        for attempt in 0..2 {
            let error = MembershipStore::open(directory.path(), None).unwrap_err();
            assert_eq!(
                in_sealed(&error),
                Some(SealError::NoKey {
                    sealed_with: key.id()
                }),
                "attempt {attempt}"
            );
        }
        let (store, loaded) = MembershipStore::open(directory.path(), Some(&key)).unwrap();
        assert!(loaded.recovered.is_some());
        assert_eq!(format!("{:?}", loaded.state.unwrap()), format!("{member:?}"));
        drop(store);
        assert_eq!(holding(directory.path(), &pkcs8), [""; 0]);
    }
}

#[test]
fn the_seals_come_off_both_files() {
    let directory = tempfile::tempdir().unwrap();
    let key = state_key();
    let (member, pkcs8) = member();
    let (store, _) = MembershipStore::open(directory.path(), Some(&key)).unwrap();
    store.save_state_blocking(&member).unwrap();
    drop(store);
    assert!(MembershipStore::unseal(directory.path(), &key).unwrap());
    assert!(!MembershipStore::unseal(directory.path(), &key).unwrap());
    assert_eq!(holding(directory.path(), &pkcs8), [COPY_FILE, STORE_FILE]);
    let (store, loaded) = MembershipStore::open(directory.path(), None).unwrap();
    assert!(loaded.state.is_some() && !store.report(None).sealed);
}

/// The schema of the programs before grants.
static FIRST: Schema = Schema {
    name: "powernode-satellite",
    version: 1,
    migrations: &[],
    sealed: &["membership"],
};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store/satellite-schema-1.redb")
}

/// Writes the fixture. Not run with the others: a fixture that is made anew proves nothing.
#[test]
#[ignore = "writes tests/fixtures/store/satellite-schema-1.redb"]
fn record_the_first_schema() {
    let database = Database::open(&recorded(), &FIRST).unwrap();
    let state = StoredState(states().remove(5));
    database.write(|w| w.put(&MEMBERSHIP, &Only, &state)).unwrap();
}

#[test]
fn a_recorded_store_of_the_first_schema_keeps_its_membership_and_takes_grants() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(recorded(), dir.path().join(STORE_FILE)).unwrap();
    let (peeked, _) = MembershipStore::peek(dir.path(), None).unwrap();
    assert_eq!(peeked.state.unwrap().name(), "joined");
    for _ in 0..2 {
        let (store, loaded) = MembershipStore::open(dir.path(), None).unwrap();
        let membership = loaded.state.unwrap().membership().cloned().unwrap();
        assert_eq!(membership.operator.contact, "ops");
        let clock = crate::process::clock::Clock::start(NOW);
        grants::GrantBook::open(store.database().clone(), false, clock).unwrap();
    }
    let error = Database::open(&dir.path().join(STORE_FILE), &FIRST).unwrap_err();
    assert!(
        matches!(error, OpenError::NewerSchema { found, .. } if found == SCHEMA.version),
        "{error:?}"
    );
}

#[test]
fn the_key_of_the_grants_is_sealed_like_the_membership() {
    let dir = tempfile::tempdir().unwrap();
    let key = StateKey::parse(&(0..32).collect::<Vec<u8>>()).unwrap();
    let clock = crate::process::clock::Clock::start(NOW);
    let (store, _) = MembershipStore::open(dir.path(), None).unwrap();
    grants::GrantBook::open(store.database().clone(), false, clock).unwrap();
    assert!(!store.report(None).sealed);
    drop(store);
    let (store, _) = MembershipStore::open(dir.path(), Some(&key)).unwrap();
    assert!(store.report(None).sealed);
}

#[tokio::test]
async fn what_may_exist_on_routers_is_kept_by_family_and_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let record = MappingRecord {
        gateway: "192.168.1.1".parse().unwrap(),
        interface: 0,
        protocol: MappingProtocol::Upnp,
        internal: "192.168.1.20:41234".parse().unwrap(),
        external_port: 41_234,
        lease_seconds: 0,
        nonce: [7; 12],
        description: "powernode 0123456789ab".to_owned(),
    };
    {
        let (store, _) = MembershipStore::open(dir.path(), None).unwrap();
        assert_eq!(
            store.mappings(MappingFamily::V4).await.unwrap(),
            [],
            "a store of before has none"
        );
        let records = vec![record.clone()];
        store.save_mappings(MappingFamily::V4, records).await.unwrap();
    }
    let (store, _) = MembershipStore::open(dir.path(), None).unwrap();
    assert_eq!(store.mappings(MappingFamily::V4).await.unwrap(), [record]);
    assert_eq!(store.mappings(MappingFamily::V6).await.unwrap(), []);
    store.save_mappings(MappingFamily::V4, Vec::new()).await.unwrap();
    assert_eq!(store.mappings(MappingFamily::V4).await.unwrap(), []);
}
