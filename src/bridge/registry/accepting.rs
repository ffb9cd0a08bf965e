//! The accept as one transaction: token, peer, certificate, answer and grant are written
//! together or not at all.

use std::time::Duration;

use serde_json::json;
use thiserror::Error;

use super::access::managed_child_grant;
use super::record::{PEERS, PeerCertificate, PeerRecord, StoredTokenState, TOKENS, TokenRecord};
use super::{Registry, equals};
use crate::base::id::{PeerId, PublicKeyDigest};
use crate::base::time::UnixTime;
use crate::bridge::acceptance::{self, AcceptCall, AcceptDecision, AcceptRefusal, TokenOwner, TokenState};
use crate::bridge::certificate_authority::{IssuedCertificate, csr_public_key_digest};
use crate::bridge::heartbeat::Declaration;
use crate::contract::CONTRACT_VERSION;
use crate::contract::delivery::Delivery;
use crate::contract::message::{AcceptResponse, FederationCertificate, success_body};
use crate::contract::peer::{PeerKind, PeerStatus, SpawnMode};
use crate::identity::anchors::Anchors;
use crate::identity::certificate::{CertificateFacts, peer_subject};
use crate::process::entropy;
use crate::store::database::{Reader, StoreError, Writer};

/// What an accept came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The peer.
    pub peer: PeerId,
    /// The whole answer.
    pub answer: Vec<u8>,
    /// Whether this is an earlier answer given again.
    pub repeated: bool,
    /// By what the peer certifies itself from now on, if it does.
    pub own_authority: Option<Anchors>,
}

/// Why an accept was not carried out.
#[derive(Debug, Error)]
pub enum AcceptError {
    /// The caller's fault; the token is as it was.
    #[error(transparent)]
    Refused(#[from] AcceptRefusal),
    /// Ours.
    #[error("the accept could not be recorded; the token was not consumed")]
    Store(#[from] StoreError),
}

impl Registry {
    /// Carries an accept out, exactly once per token: a used token gives its own key the same
    /// answer again for the grace time, and is unknown to everyone else.
    pub fn accept(&self, call: &AcceptCall, grace: Duration, now: UnixTime) -> Result<Accepted, AcceptError> {
        let key = enrolled_key(call);
        // A guess or a repeat costs no write transaction.
        if let Verdict::Repeat(repeated) = self.db.read(|r| look_up(r, call, key, grace, now))? {
            return Ok(repeated);
        }
        self.db
            .write(|w| match look_up(w, call, key, grace, now)? {
                Verdict::Repeat(repeated) => Ok(repeated),
                Verdict::Enroll(mut peer, status) => self.enroll(w, call, &mut peer, status, now),
            })
            .inspect(|accepted| {
                if !accepted.repeated {
                    self.peer_anchors
                        .set(accepted.peer, accepted.own_authority.clone());
                }
            })
    }

    fn enroll(
        &self,
        w: &mut Writer<'_>,
        call: &AcceptCall,
        peer: &mut PeerRecord,
        status: PeerStatus,
        now: UnixTime,
    ) -> Result<Accepted, AcceptError> {
        let platform = peer.kind == PeerKind::Platform;
        let issued = match &call.csr_pem {
            Some(csr) if platform => Some(
                self.authorities()
                    .issue_peer_certificate(csr, peer.id, now, entropy::bytes())
                    .map_err(|refused| AcceptRefusal::Csr(refused.to_string()))?,
            ),
            Some(_) | None => None,
        };
        let equal = call.own_authority.as_ref().filter(|_| platform);
        if equal.is_some() && !peer.mode.between_equals() {
            return Err(AcceptRefusal::SymmetricTrust(peer.mode).into());
        }
        equals::keep(w, peer.id, equal)?;
        // The peer's earlier tokens let nobody in any more: their keys are not this one.
        let live = peer.live_token.take().map(|live| live.digest);
        for earlier in [live, peer.used_token].into_iter().flatten() {
            w.remove(&TOKENS, &earlier)?;
        }
        let warnings = accepted_row(peer, call, issued.as_ref(), status, now);
        let key = match equal {
            Some(_) => enrolled_key(call),
            None => issued.as_ref().map(|issued| issued.public_key_digest),
        };
        let response = AcceptResponse {
            peer_id: peer.id,
            status,
            peer_kind: peer.kind,
            contract_version_agreed: CONTRACT_VERSION,
            accepted_at: Some(now),
            handshake_at: peer.last_handshake_at,
            federation_certificate: issued.map(|issued| FederationCertificate {
                cert_pem: issued.cert_pem,
                ca_chain_pem: issued.ca_chain_pem,
                serial: issued.serial,
                not_after: issued.not_after,
            }),
            warnings,
            delivery: Delivery::default(),
        };
        let mut answer = success_body(&response);
        if equal.is_some() {
            answer["data"]["trust_exchange"] = json!({
                "ca_bundle_pem": self.authorities().anchors().to_pem(),
                "assigned_inbound_subject": peer_subject(peer.id),
            });
        }
        let answer = answer.to_string().into_bytes();
        let used = TokenRecord {
            peer: peer.id,
            state: StoredTokenState::Used {
                used_at: now,
                key,
                answer: answer.clone(),
            },
        };
        w.put(&TOKENS, &call.token, &used)?;
        if platform && peer.mode == SpawnMode::ManagedChild {
            managed_child_grant(w, peer.id, now)?;
        }
        w.put(&PEERS, &peer.id, peer)?;
        Ok(Accepted {
            peer: peer.id,
            answer,
            repeated: false,
            own_authority: equal.map(|equal| equal.anchors.clone()),
        })
    }

    /// Forgets tokens that are of no use any more. How many there were.
    pub fn forget_stale_tokens(&self, grace: Duration, now: UnixTime) -> Result<usize, StoreError> {
        let stale = |token: &TokenRecord| match token.state {
            StoredTokenState::Live { expires_at } => now >= expires_at,
            StoredTokenState::Used { used_at, .. } => now >= used_at.plus(grace),
        };
        let any = self
            .db
            .read(|r| Ok::<_, StoreError>(r.list(&TOKENS)?.iter().any(|(_, token)| stale(token))))?;
        if !any {
            return Ok(0);
        }
        self.db.write(|w| {
            let tokens = w.list(&TOKENS)?;
            let mut forgotten = 0;
            for (digest, token) in tokens.iter().filter(|(_, token)| stale(token)) {
                w.remove(&TOKENS, digest)?;
                if let Some(mut peer) = w.get(&PEERS, &token.peer)? {
                    peer.live_token = peer.live_token.filter(|live| live.digest != *digest);
                    peer.used_token = peer.used_token.filter(|used| used != digest);
                    w.put(&PEERS, &peer.id, &peer)?;
                }
                forgotten += 1;
            }
            Ok(forgotten)
        })
    }
}

/// What an accept changes in the peer's row; gives what was not taken of the declaration.
fn accepted_row(
    peer: &mut PeerRecord,
    call: &AcceptCall,
    issued: Option<&IssuedCertificate>,
    status: PeerStatus,
    now: UnixTime,
) -> Vec<String> {
    peer.status = status;
    peer.status_since = now;
    peer.suspended_reason = None;
    peer.contract_version_agreed = Some(CONTRACT_VERSION);
    peer.signed_at = Some(now);
    peer.last_handshake_at = (peer.kind == PeerKind::Platform).then_some(now);
    let equal = peer.kind == PeerKind::Platform && call.own_authority.is_some();
    let known_by_name = issued.is_some() || equal;
    peer.inbound_subject = known_by_name.then(|| peer_subject(peer.id));
    peer.certificates = issued
        .into_iter()
        .map(|issued| PeerCertificate {
            serial: issued.serial.clone(),
            not_after: issued.not_after,
            key: issued.public_key_digest,
        })
        .collect();
    peer.used_token = Some(call.token);
    peer.declared.update(Declaration {
        capabilities: call.capabilities.clone(),
        endpoints: call.endpoints.clone(),
        extension_slugs: call.extension_slugs.clone(),
        ..Declaration::default()
    })
}

/// By what a repeated accept is known to be the same child's: the key to be signed, or the one that it signs
/// its own with.
fn enrolled_key(call: &AcceptCall) -> Option<PublicKeyDigest> {
    if let Some(csr) = &call.csr_pem {
        return csr_public_key_digest(csr).ok();
    }
    let authority = call.own_authority.as_ref()?.anchors.certificates().first()?;
    CertificateFacts::of_der(authority)
        .ok()
        .map(|facts| facts.public_key_digest)
}

enum Verdict {
    Repeat(Accepted),
    Enroll(Box<PeerRecord>, PeerStatus),
}

fn look_up(
    r: &Reader,
    call: &AcceptCall,
    key: Option<PublicKeyDigest>,
    grace: Duration,
    now: UnixTime,
) -> Result<Verdict, AcceptError> {
    let token = r.get(&TOKENS, &call.token)?;
    let peer = match &token {
        Some(token) => r.get(&PEERS, &token.peer)?,
        None => None,
    };
    let (Some(token), Some(peer)) = (token, peer) else {
        return Err(AcceptRefusal::TokenNotRecognized.into());
    };
    let state = match &token.state {
        StoredTokenState::Live { expires_at } => TokenState::Live {
            expires_at: *expires_at,
        },
        StoredTokenState::Used { used_at, key, answer } => TokenState::Used {
            used_at: *used_at,
            key: *key,
            answer,
        },
    };
    let owner = TokenOwner {
        status: peer.status,
        kind: peer.kind,
    };
    Ok(match acceptance::decide(Some((state, owner)), key, grace, now)? {
        AcceptDecision::Enroll(status) => Verdict::Enroll(Box::new(peer), status),
        AcceptDecision::Repeat(answer) => Verdict::Repeat(Accepted {
            peer: peer.id,
            answer: answer.to_vec(),
            repeated: true,
            own_authority: None,
        }),
    })
}
