//! Hands grants to the parent through the tunnel, and tells it of those that were revoked. What the
//! parent has acknowledged is noted durably; until then it is tried again, at each tunnel anew.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use super::book::{GrantBook, GrantBookError};
use super::record::{Handover, KeptGrant};
use crate::base::id::PeerId;
use crate::base::limit::error_chain;
use crate::base::time::UnixTime;
use crate::contract::message::{ContractAnswer, ContractFailure, HeartbeatRequest};
use crate::contract::{TUNNEL_GRANTS_PATH, TUNNEL_LEAVE_PATH};
use crate::grant::{GrantState, GrantView};
use crate::machine::backoff::{Backoff, BackoffPolicy};
use crate::machine::membership::Parent;
use crate::process::clock::Clock;
use crate::process::entropy;
use crate::satellite::parent_client::{self, ExchangeError};
use crate::tunnel::Tunnel;

/// Waits between tries: a bridge that restarts is back in seconds, one whose disk is full in minutes.
const BACKOFF: BackoffPolicy = BackoffPolicy {
    initial: Duration::from_secs(1),
    max: Duration::from_secs(300),
};

/// Why grants are not handed over, in words; `None` while all goes well.
pub type Trouble = Option<String>;

/// One way to the parent.
#[derive(Debug, Clone)]
pub struct Courier {
    /// The tunnel.
    pub tunnel: Tunnel,
    /// At its other end.
    pub parent: Parent,
    /// The peering.
    pub peer: PeerId,
    /// The grants.
    pub book: GrantBook,
    /// For waits and states.
    pub clock: Clock,
    /// Told what stands in the way.
    pub trouble: Arc<watch::Sender<Trouble>>,
}

/// A grant on its way.
#[derive(Serialize)]
struct Handing<'a> {
    grant: GrantView<'a>,
    token: &'a str,
}

#[derive(Serialize)]
struct Telling<'a> {
    reason: &'a str,
}

/// What became of one delivery.
enum Outcome {
    Delivered,
    /// This parent takes no grants.
    NotServed,
    Failed(String),
}

impl Courier {
    /// Delivers whatever is due, for as long as the tunnel is there. Drop it when the tunnel ends.
    pub async fn run(self) {
        let mut changes = self.book.changes();
        let mut backoff = Backoff::new(BACKOFF, entropy::seed());
        loop {
            changes.mark_unchanged();
            match self.deliver_all().await {
                Ok(()) => {
                    self.trouble.send_replace(None);
                    backoff.reset();
                    // The sender lives in the book.
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
                Err(Outcome::NotServed) => {
                    let why = "this parent takes no grants through the tunnel; give it the tokens by hand";
                    if self.trouble.send_replace(Some(why.to_owned())).as_deref() != Some(why) {
                        tracing::warn!("{why}");
                    }
                    return;
                }
                Err(Outcome::Delivered) => {}
                Err(Outcome::Failed(why)) => {
                    tracing::warn!(reason = %why, "a grant could not be handed over; trying again");
                    self.trouble.send_replace(Some(why));
                    self.clock
                        .sleep_until(self.clock.now().plus(backoff.next_delay()))
                        .await;
                }
            }
        }
    }

    async fn deliver_all(&self) -> Result<(), Outcome> {
        let now = self.clock.trusted().now;
        for kept in self.book.all() {
            let Some(told) = due(&kept, self.peer, now) else {
                continue;
            };
            match self.deliver(&kept, told, now).await {
                Outcome::Delivered => {}
                other => return Err(other),
            }
            let noted = self.book.acknowledged(kept.grant.id, told).await;
            if let Err(error) = noted
                && !matches!(error, GrantBookError::Unknown(_))
            {
                return Err(Outcome::Failed(error_chain(&error)));
            }
            tracing::info!(grant = %kept.grant.id, ?told, "the parent has acknowledged");
        }
        Ok(())
    }

    async fn deliver(&self, kept: &KeptGrant, told: Handover, now: UnixTime) -> Outcome {
        let id = kept.grant.id;
        if told == Handover::RevocationDue {
            let reason = kept.grant.revocation.as_ref().map_or("", |r| r.reason.as_str());
            let path = format!("{TUNNEL_GRANTS_PATH}/{id}/revoked");
            return outcome(self.send(&path, &Telling { reason }).await);
        }
        let Some(token) = self.book.token_of(id) else {
            return Outcome::Failed("the key of the grants is gone".to_owned());
        };
        let token = token.to_secret();
        let handing = Handing {
            grant: kept.grant.view(now),
            token: token.expose_text().unwrap_or_default(),
        };
        outcome(self.send(TUNNEL_GRANTS_PATH, &handing).await)
    }

    async fn send(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<ContractAnswer<serde_json::Value>, ExchangeError> {
        parent_client::post(&self.tunnel, &self.parent, path, body).await
    }
}

/// How the parent has heard that this satellite leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LastNotice {
    /// It has ended the peering on its side.
    Taken,
    /// Its operators alone end peerings there; its row of this peer tells them that the box has left.
    Declared,
    /// Not at all: what it answered.
    NotGiven(String),
    /// Perhaps not: the tunnel broke before an answer came.
    Lost(String),
}

/// Tells the parent that this satellite leaves: by the tunnel's own notice, and where that ends no peering (a platform's
/// host-bridge), in the form that every parent understands, a heartbeat whose capabilities say so.
pub async fn last_notice(
    tunnel: &Tunnel,
    parent: &Parent,
    reason: &str,
    farewell: &HeartbeatRequest,
) -> LastNotice {
    let why = match parent_client::post(tunnel, parent, TUNNEL_LEAVE_PATH, &Telling { reason }).await {
        // A bridge or parent that knows of no such notice, or may not act on it.
        Ok(ContractAnswer::Failure(failure)) if failure.http_status < 500 => failure.error,
        Err(error @ ExchangeError::Lost(_)) => return LastNotice::Lost(error_chain(&error)),
        told => match outcome(told) {
            Outcome::Delivered => return LastNotice::Taken,
            Outcome::NotServed => "it takes no such notice through the tunnel".to_owned(),
            Outcome::Failed(why) => return LastNotice::NotGiven(why),
        },
    };
    tracing::info!(
        why,
        "the parent does not end the peering itself; it is told in a last heartbeat"
    );
    match parent_client::heartbeat(tunnel, parent, farewell).await {
        Ok(ContractAnswer::Data(_)) => LastNotice::Declared,
        Ok(ContractAnswer::Failure(failure)) => LastNotice::NotGiven(format!(
            "the parent answered with HTTP {}: {}",
            failure.http_status, failure.error
        )),
        Err(error @ ExchangeError::Lost(_)) => LastNotice::Lost(error_chain(&error)),
        Err(error) => LastNotice::NotGiven(error_chain(&error)),
    }
}

/// What the parent is to be told of a grant now, if anything.
fn due(kept: &KeptGrant, peer: PeerId, now: UnixTime) -> Option<Handover> {
    if kept.grant.federation_peer_id != peer {
        return None;
    }
    match (kept.handover, kept.grant.state(now)) {
        (Handover::Due, GrantState::Active) => Some(Handover::Due),
        // Nobody knows whether it arrived before it was revoked.
        (Handover::Due, GrantState::Revoked | GrantState::Archived) => Some(Handover::RevocationDue),
        (Handover::RevocationDue, _) => Some(Handover::RevocationDue),
        (Handover::Due, GrantState::Expired) => None,
        (Handover::ByHand | Handover::Done | Handover::RevocationDone, _) => None,
    }
}

fn outcome(answer: Result<ContractAnswer<serde_json::Value>, ExchangeError>) -> Outcome {
    match answer {
        Ok(ContractAnswer::Data(_)) => Outcome::Delivered,
        Ok(ContractAnswer::Failure(ContractFailure {
            http_status: 404 | 405,
            ..
        })) => Outcome::NotServed,
        Ok(ContractAnswer::Failure(failure)) => Outcome::Failed(format!(
            "the parent answered with HTTP {}: {}",
            failure.http_status, failure.error
        )),
        // Acknowledged, in whatever words.
        Err(ExchangeError::Unusable(answer)) if (200..300).contains(&answer.http_status) => {
            Outcome::Delivered
        }
        Err(error) => Outcome::Failed(error_chain(&error)),
    }
}
