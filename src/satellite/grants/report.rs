//! Grants as a person or a script sees them.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::book::is_emancipated;
use super::record::{Handover, KeptGrant};
use crate::base::id::PeerId;
use crate::base::time::{UnixTime, rfc3339};
use crate::grant::GrantState;

/// The grants in the status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "crate::satellite::status::reading::Fields")]
pub struct GrantsReport {
    /// How many let something through now.
    pub active: usize,
    /// How many are of earlier peerings, so that nobody can use them.
    pub of_former_peers: usize,
    /// Whether the owner has taken the parent's operator rights back.
    pub emancipated: bool,
    /// How many the parent has yet to be told of, or of whose end.
    pub undelivered: usize,
    /// Why they are not handed over, in words.
    pub trouble: Option<String>,
    /// The parent's own last heartbeat to this box.
    #[serde(with = "rfc3339::option")]
    pub parent_heard_at: Option<UnixTime>,
}

impl GrantsReport {
    /// What the kept grants tell.
    pub fn of(grants: &[KeptGrant], peer: Option<PeerId>, now: UnixTime) -> Self {
        let live = |kept: &&KeptGrant| kept.grant.state(now) == GrantState::Active;
        let is_present = |kept: &&KeptGrant| peer.is_none_or(|peer| kept.grant.federation_peer_id == peer);
        let undelivered = |kept: &&KeptGrant| {
            Some(kept.grant.federation_peer_id) == peer
                && match kept.handover {
                    Handover::Due => kept.grant.state(now) != GrantState::Expired,
                    Handover::RevocationDue => true,
                    Handover::ByHand | Handover::Done | Handover::RevocationDone => false,
                }
        };
        Self {
            active: grants.iter().filter(live).filter(is_present).count(),
            of_former_peers: grants
                .iter()
                .filter(live)
                .filter(|kept| !is_present(kept))
                .count(),
            emancipated: peer.is_some_and(|peer| is_emancipated(grants.iter(), peer, now)),
            undelivered: grants.iter().filter(undelivered).count(),
            trouble: None,
            parent_heard_at: None,
        }
    }
}

/// A grant in JSON output: the contract's fields, and what became of it on the other side.
pub fn kept_view(kept: &KeptGrant, now: UnixTime) -> Value {
    let mut view = json!(kept.grant.view(now));
    view["handover"] = json!(kept.handover);
    view["derived_from"] = json!(kept.derived_from);
    view
}
