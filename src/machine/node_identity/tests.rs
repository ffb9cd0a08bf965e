//! The node's identity against a platform and a store in memory: random orders of success, loss and crash,
//! then a fair world.

use proptest::prelude::*;

use super::*;
use crate::base::secret::Secret;
use crate::contract::message::FederationCertificate;
use crate::machine::membership::StoredIdentity;

const START: UnixTime = UnixTime::from_seconds(1_800_000_000);
const LIFETIME: Duration = Duration::from_secs(90 * 86_400);
const SUBJECT: &str = "0192f0c1-1111-7111-8111-111111111111";

fn enrollment() -> NodeEnrollment {
    NodeEnrollment {
        bootstrap_token: Secret::from_text("boot".into()),
        platform_url: "https://platform.example.com".parse().unwrap(),
        intended_subject: SUBJECT.into(),
        expires_at: None,
    }
}

fn failure(http_status: u16, retry_after: Option<u64>) -> ContractFailure {
    ContractFailure {
        http_status,
        error: "invalid or expired bootstrap token".into(),
        code: None,
        retry_after: retry_after.map(Duration::from_secs),
    }
}

fn issued(key: &KeyMaterial, wall: UnixTime) -> Box<IssuedNode> {
    Box::new(IssuedNode {
        names: NodeNames {
            instance_id: SUBJECT.into(),
            mtls_subject: format!("CN={SUBJECT}"),
            certificate_id: key.csr_pem.clone(),
        },
        identity: StoredIdentity {
            pkcs8: key.pkcs8.clone(),
            certificate: FederationCertificate {
                cert_pem: key.csr_pem.clone(),
                ca_chain_pem: String::new(),
                serial: String::new(),
                not_after: wall.plus(LIFETIME),
            },
            not_before: wall,
        },
    })
}

/// What happens to the oldest thing that is under way.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Succeeds,
    /// Never left, never written.
    Fails,
    /// The platform has done it, its answer never arrives.
    AnswerLost,
    CrashBefore,
    CrashAfter,
}

struct World {
    durable: Option<NodeStanding>,
    machine: NodeIdentityMachine,
    under_way: VecDeque<NodeAction>,
    /// The request that has used the token.
    used_by: Option<String>,
    refreshed: u32,
    keys: u32,
    now: Moment,
}

impl World {
    fn new() -> Self {
        let durable = Some(NodeStanding::due(enrollment(), None, START));
        let mut world = Self {
            machine: NodeIdentityMachine::new(durable.clone(), 7),
            durable,
            under_way: VecDeque::new(),
            used_by: None,
            refreshed: 0,
            keys: 0,
            now: Moment::START,
        };
        world.event(NodeEvent::Timeout);
        world
    }

    fn wall(&self) -> UnixTime {
        START.plus(self.now.since_start())
    }

    fn event(&mut self, event: NodeEvent) {
        let wall = self.wall();
        self.machine.handle_event(event, self.now, wall);
        self.under_way
            .extend(std::iter::from_fn(|| self.machine.poll_action()));
        if let (Some(used_by), Some(durable)) = (&self.used_by, &self.durable) {
            let held = match durable {
                NodeStanding::Asked { key, .. } => Some(&key.csr_pem),
                NodeStanding::Enrolled(node) if self.refreshed == 0 => Some(&node.names.certificate_id),
                NodeStanding::Due { .. } => panic!("the token is used by a key that is not stored"),
                NodeStanding::Enrolled(_) | NodeStanding::Ended { .. } => None,
            };
            assert!(held.is_none_or(|held| held == used_by), "{held:?} {used_by}");
        }
    }

    fn restart(&mut self) {
        self.under_way.clear();
        self.machine = NodeIdentityMachine::new(self.durable.clone(), 7);
        self.event(NodeEvent::Timeout);
    }

    fn step(&mut self, fate: Fate) {
        let Some(action) = self.under_way.pop_front() else {
            self.now = self.machine.poll_timeout().unwrap_or(self.now).max(self.now);
            self.event(NodeEvent::Timeout);
            return;
        };
        if matches!(fate, Fate::CrashBefore) {
            self.restart();
            return;
        }
        let report = self.carry_out(action, fate);
        if matches!(fate, Fate::CrashAfter) {
            self.restart();
        } else {
            self.event(report);
        }
    }

    fn carry_out(&mut self, action: NodeAction, fate: Fate) -> NodeEvent {
        let wall = self.wall();
        let answered = |event| match fate {
            Fate::AnswerLost => NodeEvent::AnswerLost,
            _ => event,
        };
        match action {
            NodeAction::GenerateKey { common_name } => {
                assert_eq!(common_name, SUBJECT);
                self.keys += 1;
                let name = format!("key {}", self.keys);
                NodeEvent::KeyGenerated(KeyMaterial {
                    pkcs8: Secret::from_text(name.clone()),
                    csr_pem: name,
                })
            }
            // Whoever drives the machine writes until it is written.
            NodeAction::Store(standing) => {
                self.durable = Some(*standing);
                NodeEvent::Stored
            }
            NodeAction::Enroll { .. } | NodeAction::Refresh { .. } if matches!(fate, Fate::Fails) => {
                NodeEvent::NotSent
            }
            NodeAction::Enroll { enrollment, key } => {
                assert_eq!(enrollment.bootstrap_token.expose(), b"boot");
                if self.used_by.is_some() {
                    return answered(NodeEvent::Failed(failure(422, None)));
                }
                self.used_by = Some(key.csr_pem.clone());
                answered(NodeEvent::Issued(issued(&key, wall)))
            }
            NodeAction::Refresh { node, key } => {
                assert!(
                    wall <= node.identity.certificate.not_after,
                    "shown while it holds"
                );
                assert!(!node.identity.pkcs8.matches(&key.pkcs8), "a new key each time");
                self.refreshed += 1;
                answered(NodeEvent::Issued(issued(&key, wall)))
            }
        }
    }

    fn until_settled(&mut self) {
        for _ in 0..30 {
            if matches!(
                self.durable,
                Some(
                    NodeStanding::Enrolled(NodeMembership { renewal: None, .. }) | NodeStanding::Ended { .. }
                )
            ) && self.under_way.is_empty()
            {
                return;
            }
            self.step(Fate::Succeeds);
        }
    }

    fn refusal(&self) -> Option<&NodeRefusal> {
        match &self.durable {
            Some(NodeStanding::Ended { refusal, .. }) => Some(refusal),
            _ => None,
        }
    }

    /// Up to the first request.
    fn asking() -> Self {
        let mut world = Self::new();
        while !matches!(world.under_way.front(), Some(NodeAction::Enroll { .. })) {
            world.step(Fate::Succeeds);
        }
        world.under_way.clear();
        world
    }
}

fn any_fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        3 => Just(Fate::Succeeds),
        2 => Just(Fate::Fails),
        1 => Just(Fate::AnswerLost),
        1 => Just(Fate::CrashBefore),
        1 => Just(Fate::CrashAfter),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A node, or told that an answer was lost; and that only when one was.
    #[test]
    fn every_story_ends_in_a_node_or_in_what_happened(fates in proptest::collection::vec(any_fate(), 0..40)) {
        let mut world = World::new();
        for fate in fates {
            world.step(fate);
        }
        world.until_settled();
        match &world.durable {
            Some(NodeStanding::Enrolled(_)) => {}
            Some(NodeStanding::Ended { refusal: NodeRefusal::TokenSpent { .. }, .. }) => {
                prop_assert!(world.used_by.is_some());
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }

    /// A renewal that is lost in whatever way is had in the end, and the certificate before is kept until then.
    #[test]
    fn a_renewal_survives_any_order_of_loss_and_crash(fates in proptest::collection::vec(any_fate(), 0..60)) {
        let mut world = World::new();
        world.until_settled();
        let first = world.machine.standing.as_ref().unwrap().membership().unwrap().clone();
        world.now = world.now.plus(LIFETIME / 100 * 76);
        world.event(NodeEvent::Timeout);
        for fate in fates {
            world.step(fate);
            prop_assert!(world.durable.as_ref().unwrap().membership().is_some());
        }
        world.until_settled();
        let node = world.durable.as_ref().unwrap().membership().unwrap();
        prop_assert!(node.identity.certificate.not_after > first.identity.certificate.not_after);
    }
}

#[test]
fn a_fair_world_makes_a_node_with_one_key_and_one_request() {
    let mut world = World::new();
    world.until_settled();
    assert!(world.durable.as_ref().unwrap().membership().is_some());
    assert_eq!((world.keys, world.used_by.as_deref()), (1, Some("key 1")));
    let due = world.machine.poll_timeout().unwrap();
    assert!(due > world.now && due <= world.now.plus(CLOCK_CHECK));
}

#[test]
fn nothing_delivered_means_nothing_done() {
    let mut machine = NodeIdentityMachine::new(None, 1);
    machine.handle_event(NodeEvent::Timeout, Moment::START, START);
    assert!(machine.poll_action().is_none() && machine.poll_timeout().is_none());
}

#[test]
fn a_refusal_is_final_and_says_whether_an_answer_was_lost() {
    for (http_status, lost, words) in [
        (401, false, "does not take the bootstrap token (HTTP 401"),
        (422, false, "does not take the bootstrap token (HTTP 422"),
        (401, true, "answer to an earlier try was lost"),
        (422, true, "answer to an earlier try was lost"),
        (400, true, "refused the enrollment (HTTP 400"),
        (404, false, "refused the enrollment (HTTP 404"),
    ] {
        let mut world = World::asking();
        if lost {
            world.event(NodeEvent::AnswerLost);
            world.step(Fate::Succeeds);
            world.under_way.clear();
        }
        world.event(NodeEvent::Failed(failure(http_status, None)));
        world.step(Fate::Succeeds);
        let said = world.refusal().unwrap().to_string();
        assert!(said.contains(words) && said.contains("rejoin"), "{said}");
        world.restart();
        assert!(world.machine.poll_timeout().is_none(), "not tried again");
    }
}

#[test]
fn a_platform_that_is_busy_is_asked_when_it_says_and_once_more_before_the_end() {
    let mut world = World::asking();
    let (asked_at, until) = (world.now, START.plus(BOOTSTRAP_TOKEN_LIFETIME));
    world.event(NodeEvent::Failed(failure(503, Some(600))));
    assert!(world.machine.poll_timeout().unwrap() >= asked_at.plus(Duration::from_secs(600)));
    world.step(Fate::Succeeds);
    assert!(matches!(
        world.under_way.pop_front(),
        Some(NodeAction::Enroll { .. })
    ));
    world.event(NodeEvent::Failed(failure(429, Some(86_400))));
    world.step(Fate::Succeeds);
    assert!(matches!(
        world.under_way.pop_front(),
        Some(NodeAction::Enroll { .. })
    ));
    assert!(world.wall() < until && until.since(world.wall()) <= LAST_TRY);
    world.event(NodeEvent::NotSent);
    while world.refusal().is_none() {
        world.step(Fate::Fails);
    }
    assert_eq!(
        world.refusal(),
        Some(&NodeRefusal::TimeOver { answer_lost: false })
    );
}

#[test]
fn the_tokens_time_is_counted_by_this_clock() {
    let told = NodeEnrollment {
        expires_at: Some(START.plus(Duration::from_secs(900))),
        ..enrollment()
    };
    let ahead = START.plus(Duration::from_secs(86_400));
    let NodeStanding::Due { until, .. } = NodeStanding::due(told, Some(START), ahead) else {
        unreachable!("it is due");
    };
    assert_eq!(until, ahead.plus(Duration::from_secs(900)));
}

#[test]
fn an_answer_that_cannot_be_used_ends_an_enrollment_and_not_a_node() {
    for (event, words) in [
        (NodeEvent::Unusable("it is not JSON".into()), "it is not JSON"),
        (
            NodeEvent::CertificateRejected("another key".into()),
            "must not be used: another key",
        ),
    ] {
        let mut world = World::asking();
        world.event(event);
        world.step(Fate::Succeeds);
        assert!(world.refusal().unwrap().to_string().contains(words));
    }
    let mut world = World::new();
    world.until_settled();
    world.now = world.now.plus(LIFETIME / 100 * 76);
    world.event(NodeEvent::Timeout);
    for event in [
        NodeEvent::Unusable(String::new()),
        NodeEvent::CertificateRejected(String::new()),
        NodeEvent::Failed(failure(401, None)),
    ] {
        while !matches!(world.under_way.front(), Some(NodeAction::Refresh { .. })) {
            world.step(Fate::Succeeds);
        }
        world.under_way.clear();
        world.event(event);
        assert!(world.machine.poll_timeout().unwrap() > world.now);
    }
    world.until_settled();
    assert_eq!((world.keys, world.refreshed), (2, 1));
}

#[test]
fn an_expired_node_asks_nobody() {
    let mut world = World::new();
    world.until_settled();
    world.now = world.now.plus(LIFETIME * 2);
    world.event(NodeEvent::Timeout);
    assert!(world.under_way.is_empty());
    assert!(
        world.machine.poll_timeout().unwrap() > world.now,
        "the clock may be set back"
    );
}

#[test]
fn an_answer_to_another_key_changes_nothing() {
    let mut world = World::asking();
    let other = KeyMaterial {
        pkcs8: Secret::from_text("other".into()),
        csr_pem: "other".into(),
    };
    let stray = issued(&other, START);
    world.event(NodeEvent::Issued(stray));
    assert!(world.under_way.is_empty());
    assert!(matches!(world.durable, Some(NodeStanding::Asked { .. })));
}
