//! How far a join has come: the record in the store, and what a new invitation makes of it.

use serde::{Deserialize, Serialize};

use crate::base::id::PeerId;
use crate::base::time::UnixTime;
use crate::contract::peer::SpawnMode;
use crate::contract::token::TokenDigest;
use crate::machine::membership::{
    AcceptedAnswer, JoinRefusal, KeyMaterial, Membership, Parent, StoredInvitation,
};
use crate::machine::past::FormerPeer;

/// How far a join has come: the record in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum JoinState {
    /// Told whom to join; nothing done yet.
    Invited(StoredInvitation),
    /// The key and its CSR exist; nothing has left the box.
    KeyReady {
        /// The invitation.
        invitation: StoredInvitation,
        /// The key.
        key: KeyMaterial,
    },
    /// The request may have left the box at least once.
    Sent {
        /// The invitation.
        invitation: StoredInvitation,
        /// The key.
        key: KeyMaterial,
        /// When it first may have left.
        first_sent_at: UnixTime,
    },
    /// The parent's answer is stored; its certificate is not checked yet.
    Accepted {
        /// The invitation; its token is used up and wiped.
        invitation: StoredInvitation,
        /// The key.
        key: KeyMaterial,
        /// The answer.
        answer: AcceptedAnswer,
    },
    /// The certificate is checked; no heartbeat has been acknowledged yet.
    Enrolled(Membership),
    /// A heartbeat has been acknowledged: member for good.
    Joined(Membership),
    /// The parent said no. A new invitation starts over with the same key.
    Refused {
        /// Who refused.
        parent: Parent,
        /// The key, for the next try.
        key: Option<KeyMaterial>,
        /// Why.
        refusal: JoinRefusal,
        /// When.
        at: UnixTime,
        /// Of which token, so that a payload that still names it is not tried again at each start.
        token: TokenDigest,
        /// Which peers this box was before.
        former: Vec<FormerPeer>,
    },
    /// The owner has ended the peering. No key is left.
    Left(Farewell),
}

/// How a peering was ended by the owner of the box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Farewell {
    /// With whom.
    pub parent: Parent,
    /// As which peer.
    pub peer_id: PeerId,
    /// In the owner's words.
    pub reason: String,
    /// When.
    pub at: UnixTime,
    /// Whether the parent has acknowledged the last notice.
    pub told: bool,
    /// Whether the files were made anew since, so that nothing of the keys is left in them.
    pub erased: bool,
    /// Which peers this box was before that one.
    pub former: Vec<FormerPeer>,
}

/// Why a rejoin cannot be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CancelRefused {
    /// There is none.
    #[error(
        "no rejoin is under way, so there is none to give up; `powernode-satellite status` shows how this box stands"
    )]
    NotUnderWay,
    /// There is nothing to go back to.
    #[error(
        "this box had no membership before this join, so there is none to go back to; a join with another code takes \
         the place of this one"
    )]
    NoMembership,
    /// The parent has said yes.
    #[error("the parent has just taken this box anew; see in `powernode-satellite status` what comes of it")]
    Answered,
}

impl JoinState {
    /// The membership, once there is one.
    pub const fn membership(&self) -> Option<&Membership> {
        match self {
            Self::Enrolled(membership) | Self::Joined(membership) => Some(membership),
            Self::Invited(_)
            | Self::KeyReady { .. }
            | Self::Sent { .. }
            | Self::Accepted { .. }
            | Self::Refused { .. }
            | Self::Left(_) => None,
        }
    }

    /// The membership, for renewals and status changes.
    pub const fn membership_mut(&mut self) -> Option<&mut Membership> {
        match self {
            Self::Enrolled(membership) | Self::Joined(membership) => Some(membership),
            Self::Invited(_)
            | Self::KeyReady { .. }
            | Self::Sent { .. }
            | Self::Accepted { .. }
            | Self::Refused { .. }
            | Self::Left(_) => None,
        }
    }

    /// Whom this state is about.
    pub const fn parent(&self) -> &Parent {
        match self {
            Self::Invited(invitation)
            | Self::KeyReady { invitation, .. }
            | Self::Sent { invitation, .. }
            | Self::Accepted { invitation, .. } => &invitation.parent,
            Self::Enrolled(membership) | Self::Joined(membership) => &membership.parent,
            Self::Refused { parent, .. } => parent,
            Self::Left(farewell) => &farewell.parent,
        }
    }

    /// The invitation, until there is a membership.
    pub const fn invitation(&self) -> Option<&StoredInvitation> {
        match self {
            Self::Invited(invitation)
            | Self::KeyReady { invitation, .. }
            | Self::Sent { invitation, .. }
            | Self::Accepted { invitation, .. } => Some(invitation),
            Self::Enrolled(_) | Self::Joined(_) | Self::Refused { .. } | Self::Left(_) => None,
        }
    }

    /// How the parent treats this child, or means to.
    pub const fn spawn_mode(&self) -> Option<SpawnMode> {
        match (self.invitation(), self.membership()) {
            (Some(invitation), _) => Some(invitation.spawn_mode),
            (None, Some(membership)) => Some(membership.spawn_mode),
            (None, None) => None,
        }
    }

    /// Which peers this box was before, the latest first.
    pub fn former(&self) -> &[FormerPeer] {
        match self {
            Self::Enrolled(membership) | Self::Joined(membership) => &membership.former,
            Self::Refused { former, .. } => former,
            Self::Left(farewell) => &farewell.former,
            Self::Invited(_) | Self::KeyReady { .. } | Self::Sent { .. } | Self::Accepted { .. } => self
                .invitation()
                .map_or(&[], |invitation| &invitation.past.former),
        }
    }

    /// One word for status and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Invited(_) => "invited",
            Self::KeyReady { .. } => "key_ready",
            Self::Sent { .. } => "sent",
            Self::Accepted { .. } => "accepted",
            Self::Enrolled(_) => "enrolled",
            Self::Joined(_) => "joined",
            Self::Refused { .. } => "refused",
            Self::Left(_) => "left",
        }
    }

    /// The state from which a new invitation starts. A key that was made for an earlier try with
    /// the same parent is kept, so a parent that knows it recognises the box; and that a token may
    /// have been used stays known when the same one is given again.
    pub fn invited(invitation: StoredInvitation, previous: Option<&Self>) -> Self {
        let same_parent = previous.is_some_and(|state| state.parent().url == invitation.parent.url);
        let kept = match previous {
            Some(Self::Sent {
                invitation: sent,
                key,
                first_sent_at,
            }) if sent.is_same(&invitation) => {
                return Self::Sent {
                    invitation,
                    key: key.clone(),
                    first_sent_at: *first_sent_at,
                };
            }
            Some(
                Self::KeyReady { key, .. }
                | Self::Sent { key, .. }
                | Self::Accepted { key, .. }
                | Self::Refused { key: Some(key), .. },
            ) if same_parent => Some(key),
            Some(
                Self::Invited(_)
                | Self::KeyReady { .. }
                | Self::Sent { .. }
                | Self::Accepted { .. }
                | Self::Enrolled(_)
                | Self::Joined(_)
                | Self::Refused { .. }
                | Self::Left(_),
            )
            | None => None,
        };
        match kept {
            Some(key) => Self::KeyReady {
                invitation,
                key: key.clone(),
            },
            None => Self::Invited(invitation),
        }
    }

    /// The membership that a rejoin under way was to replace, which goes on as if there had been none.
    pub fn without_rejoin(&self) -> Result<Self, CancelRefused> {
        match self {
            Self::Invited(invitation) | Self::KeyReady { invitation, .. } | Self::Sent { invitation, .. } => {
                match &invitation.past.membership {
                    Some(membership) => Ok(Self::Joined(Membership::clone(membership))),
                    None => Err(CancelRefused::NoMembership),
                }
            }
            Self::Accepted { .. } => Err(CancelRefused::Answered),
            Self::Enrolled(_) | Self::Joined(_) | Self::Refused { .. } | Self::Left(_) => {
                Err(CancelRefused::NotUnderWay)
            }
        }
    }

    /// Whether a join with this very invitation is under way. With a used-up token it is the same
    /// join whatever else the invitation says: nothing but the answer's check is left to be done.
    pub fn is_under_way(&self, invitation: &StoredInvitation) -> bool {
        match self {
            Self::Invited(mine)
            | Self::KeyReady { invitation: mine, .. }
            | Self::Sent { invitation: mine, .. } => {
                mine.is_same(invitation)
                    && mine.parent == invitation.parent
                    && mine.operator == invitation.operator
            }
            Self::Accepted { invitation: mine, .. } => mine.is_same(invitation),
            Self::Enrolled(_) | Self::Joined(_) | Self::Refused { .. } | Self::Left(_) => false,
        }
    }
}
