//! The whole satellite's decisions against a parent and a store in memory: random orders of
//! success, loss, crash and restart, then a fair world in which it must end up a member.

use proptest::prelude::*;

use super::*;
use crate::base::id::PeerId;
use crate::base::secret::Secret;
use crate::contract::delivery::Delivery;
use crate::contract::invitation::{ContractVersion, ParentTrust};
use crate::contract::message::{AcceptResponse, ContractFailure, FederationCertificate};
use crate::contract::peer::{PeerKind, SpawnMode};
use crate::contract::token::TokenDigest;
use crate::machine::ladder::{DialFailure, LadderPolicy, Loss, Rung, Setback};
use crate::machine::membership::{
    JoinRefusal, KeyMaterial, Operator, Parent, StoredIdentity, StoredInvitation,
};
use crate::machine::past::Past;
use crate::machine::renewal::IdentityChoice;
use crate::machine::uplinks::UplinksPolicy;

mod expired;
mod refused;
mod rejoin;

const START: UnixTime = UnixTime::from_seconds(1_800_000_000);
const LIFETIME: Duration = Duration::from_secs(90 * 86_400);

fn invitation(token: &str) -> StoredInvitation {
    StoredInvitation {
        parent: Parent {
            url: "https://parent.example.com".parse().unwrap(),
            bridges: vec![],
            trust: ParentTrust::SystemRoots,
        },
        operator: Operator {
            contact: "ops@example.com".into(),
            location: "DE".into(),
            data_residency: None,
        },
        token: Secret::from_text(token.into()),
        token_digest: TokenDigest::of(token.as_bytes()),
        spawn_mode: SpawnMode::ManagedChild,
        parent_peer_id: None,
        contract_version: ContractVersion::CURRENT,
        minted_at: None,
        own_authority: None,
        past: Past::default(),
    }
}

fn certificate(csr: &str, now: UnixTime) -> FederationCertificate {
    FederationCertificate {
        cert_pem: format!("certificate of {csr}"),
        ca_chain_pem: String::new(),
        serial: String::new(),
        not_after: now.plus(LIFETIME),
    }
}

/// What a parent keeps about the one token that it gave out.
#[derive(Debug, Default)]
struct ParentModel {
    /// Our host-bridge repeats its answer to the same key; the published platform does not.
    repeats_answer: bool,
    used_by: Option<(String, AcceptResponse)>,
    peers: u32,
}

impl ParentModel {
    fn accept(&mut self, csr: &str, now: UnixTime) -> Result<AcceptResponse, ContractFailure> {
        match &self.used_by {
            Some((key, response)) if self.repeats_answer && key == csr => Ok(response.clone()),
            Some(_) => Err(ContractFailure {
                http_status: 401,
                error: "acceptance_token not recognized or expired".into(),
                code: None,
                retry_after: None,
            }),
            None => {
                self.peers += 1;
                let response = AcceptResponse {
                    peer_id: PeerId::new_v7(now, [1; 10]),
                    status: PeerStatus::Enrolled,
                    peer_kind: PeerKind::Platform,
                    contract_version_agreed: 1,
                    accepted_at: Some(now),
                    handshake_at: Some(now),
                    federation_certificate: Some(certificate(csr, now)),
                    warnings: vec![],
                    delivery: Delivery::default(),
                };
                self.used_by = Some((csr.to_owned(), response.clone()));
                Ok(response)
            }
        }
    }
}

/// What happens to the oldest thing that is under way.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Succeeds,
    /// The request never arrives, the write never happens, the dial fails.
    Fails,
    /// The other side does it, but its answer never arrives (a dropped tunnel follows).
    AnswerLost,
    /// Power cut before it happens; what was under way is gone.
    CrashBefore,
    /// Power cut after it happened, before it was reported.
    CrashAfter,
}

/// One way and one bridge, so that one thing is under way at a time.
fn policy() -> ChildPolicy {
    ChildPolicy {
        uplinks: UplinksPolicy {
            ladder: LadderPolicy {
                rungs: vec![Rung::Quic],
                ..LadderPolicy::default()
            },
            ..UplinksPolicy::default()
        },
        bridges: vec![],
    }
}

fn failure(setback: Setback) -> DialFailure {
    DialFailure {
        setback,
        answered: true,
        why: "no".into(),
    }
}

fn loss(setback: Setback) -> Loss {
    Loss {
        setback,
        told: true,
        why: "gone".into(),
    }
}

struct World {
    durable: Option<JoinState>,
    machine: ChildMachine,
    under_way: VecDeque<ChildAction>,
    parent: ParentModel,
    keys_made: u32,
    now: Moment,
    heartbeats: u32,
    tunnels: Vec<(TunnelId, LinkPurpose)>,
}

impl World {
    fn new(repeats_answer: bool) -> Self {
        let mut world = Self {
            durable: None,
            machine: ChildMachine::new(None, policy(), 5, Moment::START, START),
            under_way: VecDeque::new(),
            parent: ParentModel {
                repeats_answer,
                ..ParentModel::default()
            },
            keys_made: 0,
            now: Moment::START,
            heartbeats: 0,
            tunnels: vec![],
        };
        // The daemon stores an invitation before it hands it to the machine.
        world.durable = Some(JoinState::Invited(invitation("t")));
        world.restart();
        world
    }

    fn wall(&self) -> UnixTime {
        START.plus(self.now.since_start())
    }

    fn restart(&mut self) {
        self.under_way.clear();
        self.tunnels.clear();
        self.machine = ChildMachine::new(self.durable.clone(), policy(), 5, self.now, self.wall());
        self.collect();
    }

    fn event(&mut self, event: ChildEvent) {
        let wall = self.wall();
        let primary = self.machine.primary();
        self.machine.handle_event(event, self.now, wall);
        if self.machine.primary() != primary {
            // What was asked over another tunnel is not reported any more.
            self.under_way.retain(|action| !needs_link(action));
        }
        self.collect();
    }

    /// What the tunnel is for that requests go over.
    fn connected_as(&self) -> Option<LinkPurpose> {
        let primary = self.machine.primary()?;
        let tunnel = self.tunnels.iter().find(|(id, _)| *id == primary);
        Some(tunnel.expect("the primary is up").1)
    }

    fn lose_tunnel(&mut self, setback: Setback) {
        if let Some(id) = self.machine.primary() {
            self.tunnels.retain(|(up, _)| *up != id);
            self.event(ChildEvent::TunnelLost(id, loss(setback)));
        }
    }

    fn collect(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                ChildAction::Hangup(id) => {
                    self.tunnels.retain(|(up, _)| *up != id);
                    self.under_way
                        .retain(|action| !matches!(action, ChildAction::Dial(dial, _) if dial.id == id));
                }
                ChildAction::Retire(_) | ChildAction::Probe(_) => {}
                action => self.under_way.push_back(action),
            }
        }
        if let Some((key, _)) = &self.parent.used_by {
            let held = match &self.durable {
                Some(
                    JoinState::Sent { key, .. }
                    | JoinState::Accepted { key, .. }
                    | JoinState::Refused { key: Some(key), .. },
                ) => key.csr_pem.clone(),
                Some(JoinState::Enrolled(m) | JoinState::Joined(m)) => m
                    .identity
                    .certificate
                    .cert_pem
                    .trim_start_matches("certificate of ")
                    .to_owned(),
                other => panic!("a consumed token and no key in the store: {other:?}"),
            };
            if self.wall().since(START) < LIFETIME / 2 {
                assert_eq!(&held, key, "the key that used the token is the one that is kept");
            }
        }
        assert!(self.parent.peers <= 1, "two peers for one token");
    }

    /// One step: the oldest thing under way meets its fate, or time passes.
    fn step(&mut self, fate: Fate) {
        let Some(action) = self.under_way.pop_front() else {
            let timeout = self.machine.poll_timeout();
            self.now = timeout.unwrap_or(self.now).max(self.now);
            self.event(ChildEvent::Timeout);
            return;
        };
        if matches!(fate, Fate::CrashBefore) {
            self.restart();
            return;
        }
        if needs_link(&action) && self.machine.primary().is_none() {
            return;
        }
        let done = !matches!(fate, Fate::Fails);
        let report = self.carry_out(action, done, matches!(fate, Fate::AnswerLost));
        if matches!(fate, Fate::CrashAfter) {
            self.restart();
        } else {
            self.event(report);
            if matches!(fate, Fate::AnswerLost) {
                self.lose_tunnel(Setback::Transient);
            }
        }
    }

    fn carry_out(&mut self, action: ChildAction, done: bool, answer_lost: bool) -> ChildEvent {
        let wall = self.wall();
        match action {
            ChildAction::GenerateKey { purpose, kept, .. } => {
                let kept = kept.map(|kept| kept.expose_text().unwrap().to_owned());
                let name = kept.unwrap_or_else(|| {
                    self.keys_made += 1;
                    format!("key {}", self.keys_made)
                });
                let key = KeyMaterial {
                    pkcs8: Secret::from_text(name.clone()),
                    csr_pem: name,
                };
                ChildEvent::KeyGenerated(purpose, key)
            }
            ChildAction::Persist(sequence, state) => {
                if done {
                    self.durable = Some(*state);
                    ChildEvent::Persisted(sequence)
                } else {
                    ChildEvent::PersistFailed(sequence)
                }
            }
            ChildAction::Dial(dial, purpose) => {
                if done {
                    self.tunnels.push((dial.id, purpose));
                    ChildEvent::Connected(dial.id)
                } else {
                    ChildEvent::DialFailed(dial.id, failure(Setback::Transient))
                }
            }
            ChildAction::SendAccept { csr_pem, .. } => {
                assert_eq!(self.connected_as(), Some(LinkPurpose::Bootstrap));
                let lost = ChildEvent::Join(JoinEvent::AnswerLost);
                if !done {
                    return lost;
                }
                match (self.parent.accept(&csr_pem, wall), answer_lost) {
                    (_, true) => lost,
                    (Ok(response), false) => ChildEvent::Join(JoinEvent::Answered(Box::new(response))),
                    (Err(failure), false) => ChildEvent::Join(JoinEvent::Failed(failure)),
                }
            }
            ChildAction::VerifyCertificate { answer, .. } => {
                ChildEvent::Join(JoinEvent::CertificateVerified {
                    not_before: answer.accepted_at,
                    certificate: answer.certificate,
                })
            }
            ChildAction::SendHeartbeat => {
                assert!(matches!(self.connected_as(), Some(LinkPurpose::Member(_))));
                if done && !answer_lost {
                    self.heartbeats += 1;
                    ChildEvent::HeartbeatAcknowledged(PeerStatus::Active)
                } else {
                    ChildEvent::HeartbeatFailed(None)
                }
            }
            ChildAction::SendRefresh { key } => {
                if done && !answer_lost {
                    ChildEvent::RefreshIssued(StoredIdentity {
                        pkcs8: key.pkcs8.clone(),
                        certificate: certificate(&key.csr_pem, wall),
                        not_before: wall,
                    })
                } else {
                    ChildEvent::RefreshFailed
                }
            }
            ChildAction::EnrollNode { .. } | ChildAction::RefreshNode { .. } => {
                unreachable!("nothing was delivered for it")
            }
            ChildAction::Hangup(_) | ChildAction::Retire(_) | ChildAction::Probe(_) => {
                unreachable!("carried out when it is collected")
            }
        }
    }
}

fn needs_link(action: &ChildAction) -> bool {
    matches!(
        action,
        ChildAction::SendAccept { .. } | ChildAction::SendHeartbeat | ChildAction::SendRefresh { .. }
    )
}

fn is_joined(world: &World) -> bool {
    matches!(&world.durable, Some(JoinState::Joined(m)) if m.status == PeerStatus::Active)
}

fn any_fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => Just(Fate::Succeeds),
        1 => Just(Fate::Fails),
        1 => Just(Fate::AnswerLost),
        1 => Just(Fate::CrashBefore),
        1 => Just(Fate::CrashAfter),
    ]
}

/// Steps that a fair world may take until the satellite must be a member.
const FAIR_STEPS: usize = 60;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Never a consumed token without a member, never two peers, whatever is lost or crashes.
    #[test]
    fn with_a_bridge_that_repeats_its_answer_every_story_ends_in_a_member(
        fates in proptest::collection::vec(any_fate(), 0..60)
    ) {
        let mut world = World::new(true);
        for fate in fates {
            world.step(fate);
        }
        for _ in 0..FAIR_STEPS {
            world.step(Fate::Succeeds);
        }
        prop_assert!(is_joined(&world), "{:?}", world.durable.as_ref().map(JoinState::name));
        prop_assert_eq!(world.parent.peers, 1);
    }

    /// A platform that does not repeat its answer: a member, or told exactly what happened.
    #[test]
    fn with_a_platform_that_forgets_the_operator_is_told_what_happened(
        fates in proptest::collection::vec(any_fate(), 0..60)
    ) {
        let mut world = World::new(false);
        for fate in fates {
            world.step(fate);
        }
        for _ in 0..FAIR_STEPS {
            world.step(Fate::Succeeds);
        }
        match &world.durable {
            Some(JoinState::Refused { refusal: JoinRefusal::TokenSpent { .. }, key: Some(_), .. }) => {}
            Some(JoinState::Joined(_)) => {}
            other => prop_assert!(false, "{other:?}"),
        }
    }

    /// A year of membership under chaos: the certificate never runs out while the world is fair
    /// enough, and a crash never leaves the box without a working identity.
    #[test]
    fn renewal_survives_any_order_of_loss_and_crash(fates in proptest::collection::vec(any_fate(), 0..120)) {
        let mut world = World::new(true);
        for _ in 0..FAIR_STEPS {
            world.step(Fate::Succeeds);
        }
        let first = world.machine.membership().unwrap().identity.clone();
        world.now = world.now.plus(LIFETIME / 100 * 76);
        for fate in fates {
            world.step(fate);
        }
        for _ in 0..FAIR_STEPS * 3 {
            world.step(Fate::Succeeds);
            let membership = world.machine.membership().unwrap();
            if membership.identity.certificate != first.certificate && membership.candidate.is_none() {
                break;
            }
        }
        let membership = world.machine.membership().unwrap();
        prop_assert!(membership.identity.certificate.not_after > first.certificate.not_after);
        prop_assert!(!membership.identity.pkcs8.matches(&first.pkcs8), "a new key each time");
    }
}

#[test]
fn a_tunnel_that_is_up_is_used_at_once() {
    let mut world = World::new(true);
    for _ in 0..2 {
        while !matches!(world.under_way.front(), Some(ChildAction::Dial(..))) {
            world.step(Fate::Succeeds);
        }
        world.step(Fate::Succeeds);
        assert!(!world.under_way.is_empty(), "{:?}", world.connected_as());
    }
}

#[test]
fn a_fair_world_makes_a_member_with_one_key_and_one_accept() {
    let mut world = World::new(true);
    for _ in 0..FAIR_STEPS {
        world.step(Fate::Succeeds);
    }
    assert!(is_joined(&world));
    assert_eq!((world.keys_made, world.parent.peers), (1, 1));
    assert!(world.heartbeats > 5);
}

#[test]
fn a_crash_at_every_single_step_is_followed_by_a_member() {
    for crash in [Fate::CrashBefore, Fate::CrashAfter, Fate::AnswerLost, Fate::Fails] {
        for at in 0..20 {
            let mut world = World::new(true);
            for step in 0..FAIR_STEPS {
                world.step(if step == at { crash } else { Fate::Succeeds });
            }
            assert!(
                is_joined(&world),
                "{crash:?} at step {at}: {:?}",
                world.durable.map(|s| s.name())
            );
            assert_eq!(world.parent.peers, 1);
        }
    }
}

#[test]
fn revoked_means_silence_until_a_new_invitation() {
    let mut world = World::new(true);
    for _ in 0..FAIR_STEPS {
        world.step(Fate::Succeeds);
    }
    assert!(world.machine.may_invite().is_err());
    world.event(ChildEvent::StatusTold(PeerStatus::Revoked));
    world.step(Fate::Succeeds);
    assert_eq!(world.machine.link(), LinkState::Off);
    assert!(world.machine.may_invite().is_ok());
    world.parent = ParentModel {
        repeats_answer: true,
        ..ParentModel::default()
    };
    world.event(ChildEvent::Invited(Box::new(invitation("second"))));
    for _ in 0..FAIR_STEPS {
        world.step(Fate::Succeeds);
    }
    assert!(is_joined(&world));
}

#[test]
fn a_resumed_peer_proves_itself_as_soon_as_it_is_back() {
    let mut world = World::new(true);
    while !is_joined(&world) {
        world.step(Fate::Succeeds);
    }
    let heartbeats = world.heartbeats;
    world.event(ChildEvent::StatusTold(PeerStatus::Suspended));
    world.lose_tunnel(Setback::Persistent);
    let lost_at = world.now;
    while world.heartbeats == heartbeats {
        world.step(Fate::Succeeds);
        if world.machine.poll_timeout().is_some() && world.under_way.is_empty() {
            world.event(ChildEvent::RetryNow);
        }
    }
    assert!(
        world.now.since(lost_at) <= Duration::from_secs(5),
        "{:?}",
        world.now.since(lost_at)
    );
}

#[test]
fn a_new_members_first_heartbeat_is_followed_by_one_a_minute_later() {
    let mut world = World::new(true);
    while !is_joined(&world) {
        world.step(Fate::Succeeds);
    }
    let (heartbeats, joined_at) = (world.heartbeats, world.now);
    while world.heartbeats == heartbeats {
        world.step(Fate::Succeeds);
    }
    assert!(
        world.now.since(joined_at) >= Duration::from_secs(55),
        "{:?}",
        world.now.since(joined_at)
    );
}

#[test]
fn an_answer_without_a_certificate_is_a_failed_join() {
    let mut world = World::new(true);
    let response = AcceptResponse {
        federation_certificate: None,
        warnings: vec!["federation_csr_signing_failed: bad key".into()],
        ..world.parent.accept("other", START).unwrap()
    };
    world.parent.used_by = None;
    while !matches!(world.under_way.front(), Some(ChildAction::SendAccept { .. })) {
        world.step(Fate::Succeeds);
    }
    world.under_way.clear();
    world.event(ChildEvent::Join(JoinEvent::Answered(Box::new(response))));
    world.step(Fate::Succeeds);
    match &world.durable {
        Some(JoinState::Refused { refusal, .. }) => {
            assert!(
                refusal.to_string().contains("federation_csr_signing_failed"),
                "{refusal}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_token_after_a_spent_one_goes_on_with_the_same_key() {
    let mut world = World::new(false);
    for step in 0..FAIR_STEPS {
        let sending = matches!(world.under_way.front(), Some(ChildAction::SendAccept { .. }));
        world.step(if sending && step < 12 {
            Fate::AnswerLost
        } else {
            Fate::Succeeds
        });
    }
    assert!(matches!(
        world.durable,
        Some(JoinState::Refused {
            refusal: JoinRefusal::TokenSpent { .. },
            ..
        })
    ));
    world.parent = ParentModel::default();
    world.event(ChildEvent::Invited(Box::new(invitation("second"))));
    for _ in 0..FAIR_STEPS {
        world.step(Fate::Succeeds);
    }
    assert!(is_joined(&world));
    assert_eq!(world.keys_made, 1);
}
