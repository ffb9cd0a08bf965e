//! The accept decision (contract sections 3 and 11): what an accept asks, in which order it is
//! checked, and what makes it happen exactly once. Pure: the registry looks the token up, asks
//! here, and carries the decision out in one transaction.
//!
//! A token is consumed by its first accept. For a grace time afterwards it still answers, but
//! only to the key that it enrolled: an answer lost on the way costs nothing, and nobody else
//! gains anything from a token that was seen.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::base::id::PublicKeyDigest;
use crate::base::limit::{error_chain, foreign_text};
use crate::base::time::UnixTime;
use crate::contract::CONTRACT_VERSION;
use crate::contract::message::Endpoint;
use crate::contract::peer::{PeerEvent, PeerKind, PeerStatus, SpawnMode, TransitionDenied};
use crate::contract::token::TokenDigest;
use crate::identity::anchors::Anchors;
use crate::identity::succession::AUTHORITIES_MAX;

/// An accept as it was asked, checked as far as that goes without the registry.
#[derive(Debug, Clone)]
pub struct AcceptCall {
    /// Of the token; its text is not kept.
    pub token: TokenDigest,
    /// Extensions of the child.
    pub extension_slugs: Vec<String>,
    /// Whatever the child declares.
    pub capabilities: Map<String, Value>,
    /// Where the child can be reached.
    pub endpoints: Vec<Endpoint>,
    /// What is to be signed. The published agent sends none.
    pub csr_pem: Option<String>,
    /// By what the child certifies itself, where it sends nothing to be signed: where both come, the CSR
    /// wins (contract section 11).
    pub own_authority: Option<OfferedAuthority>,
}

/// The child's half of symmetric trust (contract section 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedAuthority {
    /// Its authorities.
    pub anchors: Anchors,
    /// The common name with which this side is to show itself to the child.
    pub caller_subject: Option<String>,
}

/// Why an accept is refused. None of these consumes the token.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AcceptRefusal {
    /// Not JSON, or a field of the wrong type.
    #[error("the request is not the JSON object that an accept is: {0}")]
    Malformed(String),
    /// No token, or nothing but white space.
    #[error("acceptance_token required")]
    TokenRequired,
    /// A version that is not spoken here.
    #[error("Unsupported contract_version {0}; supported: [{CONTRACT_VERSION}]")]
    UnsupportedVersion(i64),
    /// One answer for unknown, used and expired: a guesser learns nothing.
    #[error("acceptance_token not recognized or expired")]
    TokenNotRecognized,
    /// The token is good, the peer's status is not.
    #[error("accept transition failed: {0}")]
    TransitionDenied(TransitionDenied),
    /// A bundle that holds no authorities.
    #[error(
        "peer_ca_bundle_pem cannot be used: {0}. The token was not consumed; correct the bundle and send it again"
    )]
    Bundle(String),
    /// A bundle of a child that is no equal.
    #[error(
        "peer_ca_bundle_pem is taken from an autonomous_peer or out_of_band alone, and this peer is a {0}; send csr_pem, and the certificate is issued here. The token was not consumed"
    )]
    SymmetricTrust(SpawnMode),
    /// The request cannot be signed.
    #[error(
        "csr_pem cannot be signed: {0}. The token was not consumed; correct the request and send it again"
    )]
    Csr(String),
}

impl AcceptRefusal {
    /// The HTTP status of the answer.
    pub const fn http_status(&self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::TokenNotRecognized => 401,
            Self::TokenRequired
            | Self::UnsupportedVersion(_)
            | Self::TransitionDenied(_)
            | Self::Bundle(_)
            | Self::SymmetricTrust(_)
            | Self::Csr(_) => 422,
        }
    }
}

/// What the registry knows about a presented token.
#[derive(Debug, Clone, Copy)]
pub enum TokenState<'a> {
    /// Minted and not presented yet.
    Live {
        /// From then on it is not known.
        expires_at: UnixTime,
    },
    /// Consumed by an accept.
    Used {
        /// When.
        used_at: UnixTime,
        /// The key that was enrolled; none when no CSR came.
        key: Option<PublicKeyDigest>,
        /// The whole answer that was given.
        answer: &'a [u8],
    },
}

/// The peer that a presented token belongs to.
#[derive(Debug, Clone, Copy)]
pub struct TokenOwner {
    /// Where the peering stands.
    pub status: PeerStatus,
    /// Network peers stay accepted and get no certificate.
    pub kind: PeerKind,
}

/// What is to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptDecision<'a> {
    /// Consume the token and move the peer to this status.
    Enroll(PeerStatus),
    /// Give the earlier answer again, byte for byte; nothing changes.
    Repeat(&'a [u8]),
}

#[derive(Deserialize)]
struct AcceptBody {
    #[serde(default)]
    acceptance_token: Option<Zeroizing<String>>,
    #[serde(default)]
    contract_version: Value,
    #[serde(default)]
    extension_slugs: Option<Vec<String>>,
    #[serde(default)]
    capabilities: Option<Map<String, Value>>,
    #[serde(default)]
    endpoints: Option<Vec<Endpoint>>,
    #[serde(default)]
    csr_pem: Option<String>,
    #[serde(default)]
    peer_ca_bundle_pem: Option<String>,
    #[serde(default)]
    caller_inbound_subject: Option<String>,
}

impl AcceptCall {
    /// Reads a request's body: token, then version, as the published platform does.
    pub fn read(body: &[u8]) -> Result<Self, AcceptRefusal> {
        let body: AcceptBody = serde_json::from_slice(body)
            .map_err(|error| AcceptRefusal::Malformed(foreign_text(&error.to_string())))?;
        let token = body.acceptance_token.unwrap_or_default();
        if token.trim().is_empty() {
            return Err(AcceptRefusal::TokenRequired);
        }
        let version = lenient_version(&body.contract_version);
        if version != i64::from(CONTRACT_VERSION) {
            return Err(AcceptRefusal::UnsupportedVersion(version));
        }
        let present = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
        let csr_pem = present(body.csr_pem);
        let own_authority = match present(body.peer_ca_bundle_pem) {
            Some(bundle) if csr_pem.is_none() => Some(OfferedAuthority {
                anchors: read_bundle(&bundle)?,
                caller_subject: present(body.caller_inbound_subject).map(|subject| foreign_text(&subject)),
            }),
            _ => None,
        };
        Ok(Self {
            token: TokenDigest::of(token.trim().as_bytes()),
            extension_slugs: body.extension_slugs.unwrap_or_default(),
            capabilities: body.capabilities.unwrap_or_default(),
            endpoints: body.endpoints.unwrap_or_default(),
            csr_pem,
            own_authority,
        })
    }
}

/// The authorities of a bundle, few as those of one peer are.
fn read_bundle(pem: &str) -> Result<Anchors, AcceptRefusal> {
    let anchors = Anchors::from_pem(pem).map_err(|error| AcceptRefusal::Bundle(error_chain(&error)))?;
    match anchors.certificates().len() {
        0..=AUTHORITIES_MAX => Ok(anchors),
        more => Err(AcceptRefusal::Bundle(format!(
            "it holds {more} authorities where at most {AUTHORITIES_MAX} are kept"
        ))),
    }
}

/// The version as the published platform reads it: `1`, `"1"` and `1.9` are 1; `"v1"`, null and
/// a missing one are 0.
fn lenient_version(value: &Value) -> i64 {
    match value {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "dropping the fraction is the rule; `as` saturates"
        )]
        Value::Number(number) => number
            .as_i64()
            .unwrap_or_else(|| number.as_f64().map_or(0, |float| float as i64)),
        Value::String(text) => {
            let text = text.trim_start();
            let digits = text.bytes().take_while(u8::is_ascii_digit).count();
            text.get(..digits)
                .and_then(|digits| digits.parse().ok())
                .unwrap_or(0)
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => 0,
    }
}

/// Decides about a presented token. `key` is the key of the CSR, where one came and can be read.
pub fn decide(
    found: Option<(TokenState<'_>, TokenOwner)>,
    key: Option<PublicKeyDigest>,
    grace: Duration,
    now: UnixTime,
) -> Result<AcceptDecision<'_>, AcceptRefusal> {
    let Some((token, owner)) = found else {
        return Err(AcceptRefusal::TokenNotRecognized);
    };
    match token {
        TokenState::Live { expires_at } if now >= expires_at => Err(AcceptRefusal::TokenNotRecognized),
        TokenState::Live { .. } => {
            let accepted = owner
                .status
                .apply(PeerEvent::Accept)
                .map_err(AcceptRefusal::TransitionDenied)?;
            match owner.kind {
                PeerKind::SdwanOnly => Ok(AcceptDecision::Enroll(accepted)),
                PeerKind::Platform => accepted
                    .apply(PeerEvent::Enroll)
                    .map(AcceptDecision::Enroll)
                    .map_err(AcceptRefusal::TransitionDenied),
            }
        }
        TokenState::Used {
            used_at,
            key: enrolled,
            answer,
        } => {
            let same_key = key.is_some() && key == enrolled;
            if !same_key || now >= used_at.plus(grace) {
                return Err(AcceptRefusal::TokenNotRecognized);
            }
            match owner.status {
                PeerStatus::Suspended | PeerStatus::Revoked | PeerStatus::Proposed => {
                    Err(AcceptRefusal::TransitionDenied(TransitionDenied {
                        from: owner.status,
                        event: PeerEvent::Accept,
                    }))
                }
                PeerStatus::Accepted | PeerStatus::Enrolled | PeerStatus::Active | PeerStatus::Degraded => {
                    Ok(AcceptDecision::Repeat(answer))
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    const GRACE: Duration = Duration::from_secs(86_400);

    fn read(body: &Value) -> Result<AcceptCall, AcceptRefusal> {
        AcceptCall::read(body.to_string().as_bytes())
    }

    fn at(seconds: i64) -> UnixTime {
        UnixTime::from_seconds(seconds)
    }

    fn key(byte: u8) -> PublicKeyDigest {
        PublicKeyDigest::from_bytes([byte; 32])
    }

    fn owner(status: PeerStatus) -> TokenOwner {
        TokenOwner {
            status,
            kind: PeerKind::Platform,
        }
    }

    #[test]
    fn blank_tokens_come_before_versions() {
        for body in [
            json!({}),
            json!({"acceptance_token": " \n"}),
            json!({"acceptance_token": null}),
        ] {
            assert_eq!(read(&body).unwrap_err(), AcceptRefusal::TokenRequired);
        }
        let refusal = read(&json!({"acceptance_token": "x", "contract_version": 99})).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "Unsupported contract_version 99; supported: [1]"
        );
        assert_eq!(refusal.http_status(), 422);
    }

    #[test]
    fn versions_are_read_as_leniently_as_published() {
        for taken in [json!(1), json!("1"), json!(1.9), json!("1.9"), json!(" 1")] {
            assert_eq!(lenient_version(&taken), 1, "{taken}");
        }
        for (refused, number) in [
            (json!("v1"), 0),
            (json!(null), 0),
            (json!(true), 0),
            (json!(2), 2),
            (json!(-1), -1),
            (json!(1e300), i64::MAX),
            (json!("99999999999999999999"), 0),
        ] {
            assert_eq!(lenient_version(&refused), number, "{refused}");
        }
    }

    #[test]
    fn wrong_types_are_told_and_never_panic() {
        for body in [
            r#"{"acceptance_token":5}"#,
            r#"{"acceptance_token":"x","endpoints":["https://a"]}"#,
            "[1]",
            "{",
            "",
        ] {
            let refusal = AcceptCall::read(body.as_bytes()).unwrap_err();
            assert_eq!(refusal.http_status(), 400, "{body}");
        }
    }

    #[test]
    fn a_csr_wins_over_a_bundle_and_a_bundle_must_be_one() {
        let both =
            json!({"acceptance_token":"x","contract_version":1,"csr_pem":"c","peer_ca_bundle_pem":"b"});
        let read_both = read(&both).unwrap();
        assert_eq!(read_both.csr_pem.as_deref(), Some("c"));
        assert_eq!(read_both.own_authority, None);
        let bundle = json!({"acceptance_token":"x","contract_version":1,"peer_ca_bundle_pem":"b"});
        let refused = read(&bundle).unwrap_err();
        assert!(matches!(refused, AcceptRefusal::Bundle(_)), "{refused}");
        assert_eq!(refused.http_status(), 422);
    }

    #[test]
    fn a_live_token_enrolls_until_it_expires() {
        let live = TokenState::Live { expires_at: at(100) };
        let decided = |status, now| decide(Some((live, owner(status))), None, GRACE, at(now));
        assert_eq!(
            decided(PeerStatus::Proposed, 99),
            Ok(AcceptDecision::Enroll(PeerStatus::Enrolled))
        );
        assert_eq!(
            decided(PeerStatus::Suspended, 99),
            Ok(AcceptDecision::Enroll(PeerStatus::Enrolled))
        );
        assert_eq!(
            decided(PeerStatus::Proposed, 100),
            Err(AcceptRefusal::TokenNotRecognized)
        );
        let denied = decided(PeerStatus::Active, 1).unwrap_err();
        assert_eq!(denied.http_status(), 422);
        assert!(denied.to_string().starts_with("accept transition failed: "));
        let network = TokenOwner {
            status: PeerStatus::Proposed,
            kind: PeerKind::SdwanOnly,
        };
        assert_eq!(
            decide(Some((live, network)), None, GRACE, at(1)),
            Ok(AcceptDecision::Enroll(PeerStatus::Accepted))
        );
    }

    #[test]
    fn a_used_token_answers_its_own_key_alone_and_for_the_grace_time_alone() {
        let used = |enrolled| TokenState::Used {
            used_at: at(1_000),
            key: enrolled,
            answer: b"answer",
        };
        let decided = |enrolled, asked, now| {
            decide(
                Some((used(enrolled), owner(PeerStatus::Active))),
                asked,
                GRACE,
                at(now),
            )
        };
        let repeat = Ok(AcceptDecision::Repeat(b"answer".as_slice()));
        assert_eq!(decided(Some(key(1)), Some(key(1)), 1_001), repeat);
        assert_eq!(decided(Some(key(1)), Some(key(1)), 1_000 + 86_399), repeat);
        let refused = Err(AcceptRefusal::TokenNotRecognized);
        assert_eq!(decided(Some(key(1)), Some(key(1)), 1_000 + 86_400), refused);
        assert_eq!(decided(Some(key(1)), Some(key(2)), 1_001), refused);
        assert_eq!(decided(Some(key(1)), None, 1_001), refused);
        assert_eq!(decided(None, None, 1_001), refused);
        assert_eq!(decided(None, Some(key(1)), 1_001), refused);
        assert_eq!(decide(None, Some(key(1)), GRACE, at(0)), refused);
    }

    #[test]
    fn a_repeat_does_not_call_a_suspended_peer_enrolled() {
        let used = TokenState::Used {
            used_at: at(0),
            key: Some(key(1)),
            answer: b"answer",
        };
        for status in [PeerStatus::Suspended, PeerStatus::Revoked] {
            let refusal = decide(Some((used, owner(status))), Some(key(1)), GRACE, at(1)).unwrap_err();
            assert_eq!(refusal.http_status(), 422);
        }
    }
}
