//! Whom this host-bridge has seen: the peers whose certificates have verified against the platform's
//! authority in a tunnel, what they declare, and where they stand with the platform. In memory alone: the
//! platform has the peers, and each comes back with its tunnel.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::IgnoredAny;

use super::super::heartbeat::{Declaration, read_heartbeat};
use super::super::registry::record::{PeerCertificate, PeerRecord};
use super::standing::{Answered, AskedBy, Standing, StandingAction, StandingEvent, StandingMachine};
use super::target::Target;
use crate::base::id::PeerId;
use crate::base::time::{Moment, UnixTime};
use crate::contract::message::{ContractAnswer, HeartbeatResponse, read_answer};
use crate::contract::peer::{PeerKind, PeerStatus, SpawnMode, SpawnRole};
use crate::identity::certificate::{CertificateFacts, peer_subject};

/// Most peers that are remembered; the one that was heard of longest ago makes room. As many as a
/// standalone registry holds.
const SEEN_MAX: usize = 10_000;

/// Certificates that are remembered of a peer: the one before a renewal, and the new one.
const CERTIFICATES_MAX: usize = 2;

/// Requests of one peer that may be on their way to the platform: a satellite sends one or two, and a
/// hundred of them that misbehave must not take all connections to the platform.
const REQUESTS_PER_PEER: u32 = 8;

/// Where a peer stands, as operators see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StandingView {
    /// With the platform.
    pub standing: Standing,
    /// The platform's last answer to a heartbeat.
    pub heartbeat_answer: Option<Answered>,
    /// Its last answer to a question of this end's about the peer.
    pub question_answer: Option<Answered>,
}

/// What the platform has said of a peer that changes what the peer may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It does not take the peer: its tunnels end.
    Refused {
        /// In its words.
        words: String,
        /// Whether it is so only now.
        news: bool,
    },
    /// It takes the peer again.
    Resumed,
}

/// How the platform was found when it was last needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlatformView {
    /// Whether it answered.
    pub reachable: bool,
    /// When that was.
    #[serde(with = "crate::base::time::rfc3339")]
    pub at: UnixTime,
    /// Why not.
    pub error: Option<String>,
}

/// The platform's answer to a heartbeat.
#[derive(Debug, Clone, Copy)]
pub struct HeartbeatExchange<'a> {
    /// What the satellite sent.
    pub sent: &'a [u8],
    /// Status of the answer.
    pub http_status: u16,
    /// Its body.
    pub answer: &'a [u8],
}

/// All of them.
#[derive(Debug, Default)]
pub struct Roll {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    peers: BTreeMap<PeerId, Entry>,
    platform: Option<PlatformView>,
}

#[derive(Debug)]
struct Entry {
    record: PeerRecord,
    standing: StandingMachine,
    heard_at: UnixTime,
    requests: u32,
}

impl Entry {
    fn answered(&mut self, by: AskedBy, answered: Answered, now: Moment, words: &str) -> Option<Verdict> {
        let before = self.standing.standing();
        self.standing
            .handle_event(StandingEvent::Answered(by, answered), now);
        let is = self.standing.standing();
        if before != is {
            self.record.status_since = answered.at;
        }
        match self.standing.poll_action() {
            Some(StandingAction::CloseTunnels) => {
                let words = format!("the platform does not take this peer: {words}");
                self.record.status = PeerStatus::Suspended;
                self.record.suspended_reason = Some(words.clone());
                Some(Verdict::Refused {
                    words,
                    news: before != is,
                })
            }
            Some(StandingAction::Ask) | None => {
                (before == Standing::Refused && is == Standing::Taken).then_some(Verdict::Resumed)
            }
        }
    }
}

/// A request's place among those of its peer, until its answer has passed.
#[derive(Debug)]
pub struct RequestPlace {
    roll: Arc<Roll>,
    peer: PeerId,
}

impl Drop for RequestPlace {
    fn drop(&mut self) {
        if let Some(entry) = self.roll.seen().peers.get_mut(&self.peer) {
            entry.requests = entry.requests.saturating_sub(1);
        }
    }
}

impl Roll {
    /// A peer shows a certificate that has verified.
    pub fn shown(&self, peer: PeerId, certificate: &CertificateFacts, now: UnixTime) {
        let mut seen = self.seen();
        if !seen.peers.contains_key(&peer) && seen.peers.len() >= SEEN_MAX {
            let oldest = seen.peers.iter().min_by_key(|(_, entry)| entry.heard_at);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                seen.peers.remove(&oldest);
            }
        }
        let entry = seen.peers.entry(peer).or_insert_with(|| Entry {
            record: seen_first(peer, now),
            standing: StandingMachine::default(),
            heard_at: now,
            requests: 0,
        });
        entry.heard_at = now;
        let certificates = &mut entry.record.certificates;
        certificates.retain(|known| known.key != certificate.public_key_digest);
        certificates.push(PeerCertificate {
            serial: certificate.serial_hex.clone(),
            not_after: certificate.not_after,
            key: certificate.public_key_digest,
        });
        if certificates.len() > CERTIFICATES_MAX {
            certificates.remove(0);
        }
    }

    /// Whether a request of a peer's may go to the platform.
    pub fn may_send(&self, peer: PeerId, target: Target) -> bool {
        let seen = self.seen();
        seen.peers
            .get(&peer)
            .is_none_or(|entry| entry.standing.may_send(target))
    }

    /// Whether a peer may be reached through its tunnel.
    pub fn may_be_reached(&self, peer: PeerId) -> bool {
        let seen = self.seen();
        seen.peers
            .get(&peer)
            .is_none_or(|entry| entry.standing.may_be_reached())
    }

    /// A request of a peer's is on its way, unless as many are already as may be.
    pub fn begin_request(self: &Arc<Self>, peer: PeerId) -> Option<RequestPlace> {
        let mut seen = self.seen();
        let entry = seen.peers.get_mut(&peer)?;
        if entry.requests >= REQUESTS_PER_PEER {
            return None;
        }
        entry.requests += 1;
        let roll = Arc::clone(self);
        Some(RequestPlace { roll, peer })
    }

    /// The platform has answered a heartbeat.
    pub fn heartbeat_answered(
        &self,
        peer: PeerId,
        exchange: HeartbeatExchange<'_>,
        (at, now): (UnixTime, Moment),
    ) -> Option<Verdict> {
        let mut seen = self.seen();
        let entry = seen.peers.get_mut(&peer)?;
        entry.heard_at = at;
        let words = take_answer(&mut entry.record, exchange, at);
        let answered = Answered {
            http_status: exchange.http_status,
            at,
        };
        entry.answered(AskedBy::Heartbeat, answered, now, &words)
    }

    /// The platform has answered a question about a peer.
    pub fn question_answered(
        &self,
        peer: PeerId,
        (http_status, answer): (u16, &[u8]),
        (at, now): (UnixTime, Moment),
    ) -> Option<Verdict> {
        let words = words_of(http_status, answer);
        let mut seen = self.seen();
        let entry = seen.peers.get_mut(&peer)?;
        entry.answered(AskedBy::Bridge, Answered { http_status, at }, now, &words)
    }

    /// A peer has a tunnel. Whether the platform is to be asked about it now.
    pub fn connected(&self, peer: PeerId, ask_after: Duration, now: Moment) -> bool {
        let mut seen = self.seen();
        let Some(entry) = seen.peers.get_mut(&peer) else {
            return false;
        };
        let event = StandingEvent::Connected { ask_after };
        entry.standing.handle_event(event, now);
        entry.standing.poll_action() == Some(StandingAction::Ask)
    }

    /// The platform was needed, and answered or did not.
    pub fn platform_found(&self, error: Option<String>, now: UnixTime) {
        self.seen().platform = Some(PlatformView {
            reachable: error.is_none(),
            at: now,
            error,
        });
    }

    /// How it was found; nothing while nobody has asked for it.
    pub fn platform(&self) -> Option<PlatformView> {
        self.seen().platform.clone()
    }

    /// All peers.
    pub fn peers(&self) -> Vec<PeerRecord> {
        let seen = self.seen();
        seen.peers.values().map(|entry| entry.record.clone()).collect()
    }

    /// One of them.
    pub fn peer(&self, peer: PeerId) -> Option<PeerRecord> {
        self.seen().peers.get(&peer).map(|entry| entry.record.clone())
    }

    /// Where one of them stands.
    pub fn standing(&self, peer: PeerId) -> Option<StandingView> {
        self.seen().peers.get(&peer).map(|entry| StandingView {
            standing: entry.standing.standing(),
            heartbeat_answer: entry.standing.heartbeat(),
            question_answer: entry.standing.question(),
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Each change is whole before anything that could panic.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes over what an exchange says of the peer; the answer's words, where it is a failure.
fn take_answer(record: &mut PeerRecord, exchange: HeartbeatExchange<'_>, now: UnixTime) -> String {
    if let Ok(ContractAnswer::Data(response)) =
        read_answer::<HeartbeatResponse>(exchange.http_status, exchange.answer)
    {
        record.status = response.status;
        record.last_heartbeat_at = Some(now);
        record.suspended_reason = None;
        if let Ok(sent) = read_heartbeat(exchange.sent) {
            // What is not taken of it is the platform's to say.
            record.declared.update(Declaration::from(sent));
        }
        return String::new();
    }
    words_of(exchange.http_status, exchange.answer)
}

/// Why an answer is a failure, in its words.
fn words_of(http_status: u16, answer: &[u8]) -> String {
    match read_answer::<IgnoredAny>(http_status, answer) {
        Ok(ContractAnswer::Failure(failure)) if !failure.error.is_empty() => failure.error,
        Ok(_) | Err(_) => format!("HTTP {http_status}"),
    }
}

/// A peer of which nothing is known but its certificate: it has one, so it was enrolled.
fn seen_first(peer: PeerId, now: UnixTime) -> PeerRecord {
    PeerRecord {
        id: peer,
        name: None,
        description: None,
        remote_instance_url: None,
        kind: PeerKind::Platform,
        role: SpawnRole::Parent,
        mode: SpawnMode::ManagedChild,
        status: PeerStatus::Enrolled,
        status_since: now,
        declared: Declaration::default(),
        contract_version_agreed: None,
        proposed_at: now,
        signed_at: None,
        last_handshake_at: None,
        last_heartbeat_at: None,
        inbound_subject: Some(peer_subject(peer)),
        degraded_reason: None,
        suspended_reason: None,
        revocation_reason: None,
        certificates: Vec::new(),
        live_token: None,
        used_token: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::identity::certificate::CertificateFacts;
    use crate::identity::key::PrivateKey;
    use crate::identity::test_handshake::{Leaf, TestAuthority};

    const NOW: UnixTime = UnixTime::from_seconds(1_800_000_000);
    const TIMES: (UnixTime, Moment) = (NOW, Moment::START);

    fn peer() -> PeerId {
        "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e".parse().unwrap()
    }

    fn facts() -> CertificateFacts {
        let chain = TestAuthority::new("ca").issue(
            &Leaf::peer(&peer_subject(peer())),
            &PrivateKey::generate().unwrap(),
        );
        chain.facts().clone()
    }

    fn answered(http_status: u16, answer: &str) -> HeartbeatExchange<'_> {
        HeartbeatExchange {
            sent: br#"{"capabilities":{"services":[{"name":"web","protocol":"http"}]},"platform_version":"1.2.3"}"#,
            http_status,
            answer: answer.as_bytes(),
        }
    }

    #[test]
    fn nobody_is_known_who_was_not_seen() {
        let roll = Arc::new(Roll::default());
        assert!(roll.peers().is_empty() && roll.peer(peer()).is_none());
        assert_eq!(roll.heartbeat_answered(peer(), answered(200, "{}"), TIMES), None);
        assert!(roll.peers().is_empty(), "an answer makes no peer");
        assert!(roll.begin_request(peer()).is_none());
        assert!(roll.may_send(peer(), Target::Other));
    }

    #[test]
    fn a_peer_is_what_the_platform_says_of_it() {
        let roll = Roll::default();
        roll.shown(peer(), &facts(), NOW);
        assert_eq!(roll.peer(peer()).unwrap().status, PeerStatus::Enrolled);
        let taken =
            r#"{"success":true,"data":{"status":"active","last_heartbeat_at":"2027-01-15T08:00:00Z"}}"#;
        assert_eq!(roll.heartbeat_answered(peer(), answered(200, taken), TIMES), None);
        let known = roll.peer(peer()).unwrap();
        assert_eq!(
            (known.status, known.last_heartbeat_at),
            (PeerStatus::Active, Some(NOW))
        );
        assert_eq!(known.declared.capabilities["services"][0]["name"], "web");

        let refused = r#"{"error":"No reachable FederationPeer for mTLS subject","code":"UNAUTHORIZED"}"#;
        let refused_now = roll.heartbeat_answered(peer(), answered(401, refused), TIMES);
        let Some(Verdict::Refused { words, news: true }) = refused_now else {
            panic!("{refused_now:?}");
        };
        assert!(words.contains("No reachable FederationPeer"), "{words}");
        let again = roll.question_answered(peer(), (401, b"{}"), TIMES);
        assert!(
            matches!(again, Some(Verdict::Refused { news: false, .. })),
            "{again:?}"
        );
        assert_eq!(roll.peer(peer()).unwrap().status, PeerStatus::Suspended);
        assert!(!roll.may_send(peer(), Target::Other) && !roll.may_be_reached(peer()));
        assert_eq!(
            roll.standing(peer())
                .unwrap()
                .heartbeat_answer
                .unwrap()
                .http_status,
            401
        );

        assert_eq!(
            roll.heartbeat_answered(peer(), answered(502, "<html>"), TIMES),
            None
        );
        assert_eq!(roll.peer(peer()).unwrap().status, PeerStatus::Suspended);
        assert_eq!(
            roll.heartbeat_answered(peer(), answered(200, taken), TIMES),
            Some(Verdict::Resumed)
        );
        let resumed = roll.peer(peer()).unwrap();
        assert_eq!(
            (resumed.status, resumed.suspended_reason),
            (PeerStatus::Active, None)
        );
        assert!(roll.may_be_reached(peer()));
    }

    #[test]
    fn a_peers_requests_and_certificates_are_bounded() {
        let roll = Arc::new(Roll::default());
        for _ in 0..4 {
            roll.shown(peer(), &facts(), NOW);
        }
        let newest = facts();
        roll.shown(peer(), &newest, NOW);
        roll.shown(peer(), &newest, NOW);
        let known = roll.peer(peer()).unwrap().certificates;
        assert_eq!(known.len(), CERTIFICATES_MAX);
        assert_eq!(known[1].key, newest.public_key_digest);
        let places: Vec<_> = (0..REQUESTS_PER_PEER)
            .map(|_| roll.begin_request(peer()).unwrap())
            .collect();
        assert!(roll.begin_request(peer()).is_none());
        drop(places);
        assert!(roll.begin_request(peer()).is_some());
    }

    #[test]
    fn the_longest_unheard_makes_room() {
        let roll = Roll::default();
        let facts = facts();
        let id = |n: usize| {
            PeerId::new_v7(NOW, {
                let mut entropy = [0; 10];
                entropy[..8].copy_from_slice(&n.to_be_bytes());
                entropy
            })
        };
        for n in 0..=SEEN_MAX {
            let at = UnixTime::from_seconds(NOW.as_seconds() + i64::try_from(n).unwrap());
            roll.shown(id(n), &facts, at);
        }
        assert!(roll.peer(id(0)).is_none());
        assert_eq!(roll.peers().len(), SEEN_MAX);
    }
}
