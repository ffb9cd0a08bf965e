//! What earlier peerings of this box left behind, carried through joins: the membership that a rejoin is to
//! replace, and which peers this box has been. Plain data and what follows from a state.

use serde::{Deserialize, Serialize};

use super::join::{Farewell, JoinState};
use super::membership::{JoinRefusal, Membership};
use crate::base::id::PeerId;
use crate::base::time::UnixTime;
use crate::contract::invitation::ParentUrl;
use crate::contract::token::TokenDigest;

/// Most earlier peerings that are kept: whoever looks further back has the audit log.
pub const FORMER_PEERS_MAX: usize = 8;

/// See the module's text.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Past {
    /// The membership that a rejoin is to replace. It goes on when the rejoin is refused, and its key is the
    /// one that is certified anew.
    pub membership: Option<Box<Membership>>,
    /// What is to become of its grants, should this box be another peer from then on.
    pub grants: FormerGrants,
    /// Peerings before, the latest first.
    pub former: Vec<FormerPeer>,
}

/// What becomes of the grants of a peering when the next one has another id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FormerGrants {
    /// They stay that peer's, which nobody is any more: kept, and of no effect.
    #[default]
    Kept,
    /// The owner has said that they are for the new peer.
    Rebound,
}

/// A peer that this box has been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerPeer {
    /// The id.
    pub peer_id: PeerId,
    /// Whose.
    pub parent_url: ParentUrl,
    /// Since when, where that is still known.
    pub accepted_at: Option<UnixTime>,
    /// Until when.
    pub ended_at: UnixTime,
    /// What became of its grants.
    pub grants: FormerGrants,
}

impl FormerPeer {
    /// The end of a membership.
    pub fn of(membership: &Membership, grants: FormerGrants, ended_at: UnixTime) -> Self {
        Self {
            peer_id: membership.peer_id,
            parent_url: membership.parent.url.clone(),
            accepted_at: Some(membership.accepted_at),
            ended_at,
            grants,
        }
    }

    fn left(farewell: &Farewell) -> Self {
        Self {
            peer_id: farewell.peer_id,
            parent_url: farewell.parent.url.clone(),
            accepted_at: None,
            ended_at: farewell.at,
            grants: FormerGrants::Kept,
        }
    }
}

/// One more, before those that are known.
pub fn with_former(latest: FormerPeer, known: &[FormerPeer]) -> Vec<FormerPeer> {
    let mut all = vec![latest];
    for peer in known {
        if all.len() < FORMER_PEERS_MAX && all.iter().all(|other| other.peer_id != peer.peer_id) {
            all.push(peer.clone());
        }
    }
    all
}

impl Past {
    /// For a join with any parent: a membership that is there is over.
    pub fn of(state: Option<&JoinState>, wall: UnixTime) -> Self {
        let mut past = Self::gathered(state);
        if let Some(JoinState::Enrolled(membership) | JoinState::Joined(membership)) = state {
            let ended = FormerPeer::of(membership, FormerGrants::Kept, wall);
            past.former = with_former(ended, &membership.former);
        }
        past
    }

    /// For a join anew with the same parent: a membership that is there is kept until the parent has answered.
    pub fn rejoining(state: &JoinState, grants: FormerGrants) -> Self {
        let mut past = Self::gathered(Some(state));
        if let Some(membership) = state.membership() {
            past.membership = Some(Box::new(membership.clone()));
            past.former.clone_from(&membership.former);
        }
        Self { grants, ..past }
    }

    fn gathered(state: Option<&JoinState>) -> Self {
        match state {
            None | Some(JoinState::Enrolled(_) | JoinState::Joined(_)) => Self::default(),
            Some(
                JoinState::Invited(invitation)
                | JoinState::KeyReady { invitation, .. }
                | JoinState::Sent { invitation, .. }
                | JoinState::Accepted { invitation, .. },
            ) => invitation.past.clone(),
            Some(JoinState::Refused { former, .. }) => Self {
                former: former.clone(),
                ..Self::default()
            },
            Some(JoinState::Left(farewell)) => Self {
                former: with_former(FormerPeer::left(farewell), &farewell.former),
                ..Self::default()
            },
        }
    }
}

/// A rejoin that the parent did not grant: the membership from before goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejoinRefused {
    /// Why.
    pub refusal: JoinRefusal,
    /// When.
    pub at: UnixTime,
    /// Of which token.
    pub token: TokenDigest,
}
