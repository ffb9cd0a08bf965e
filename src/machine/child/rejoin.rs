//! When an invitation is taken: by a box that is no member, or by one that is to join the same parent anew, with
//! a new token and the key that is there (`rejoin`).

use super::{ChildMachine, InvitationRefused};
use crate::base::time::UnixTime;
use crate::contract::invitation::ParentUrl;
use crate::contract::peer::{HEARTBEAT_STALE_AFTER, PeerStatus};
use crate::machine::join::JoinState;
use crate::machine::membership::Membership;
use crate::machine::past::FormerGrants;

/// How a box is to join its parent anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejoin {
    /// What is to become of grants of the peer that this box is now.
    pub grants: FormerGrants,
    /// Whether a membership that works is given up for it.
    pub working: WorkingMembership,
    /// Whether the invitation says how the parent treats this child.
    pub mode: RejoinMode,
}

/// How the parent treats the child that joins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejoinMode {
    /// As the invitation says.
    Told,
    /// A bare token says nothing: an equal stays one, and gives no operator grant.
    AsBefore,
}

/// What to do about a membership that works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkingMembership {
    /// Keep it and refuse.
    Keep,
    /// The owner insists.
    Replace,
}

impl ChildMachine {
    /// Whether an invitation could be taken now.
    pub fn may_invite(&self) -> Result<(), InvitationRefused> {
        match self.membership() {
            Some(membership) if membership.status != PeerStatus::Revoked => {
                Err(InvitationRefused::AlreadyJoined {
                    parent: membership.parent.url.to_string(),
                    peer_id: membership.peer_id.to_string(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Whether this box could join anew: it has been invited by this parent before, and what it has of it does
    /// not work, as far as can be known here. `heard` is when the parent last acknowledged a heartbeat.
    pub fn may_rejoin(
        &self,
        parent: &ParentUrl,
        rejoin: Rejoin,
        heard: Option<UnixTime>,
        wall: UnixTime,
    ) -> Result<(), InvitationRefused> {
        let state = self.state().ok_or(InvitationRefused::NothingToRejoin)?;
        if state.parent().url != *parent {
            return Err(InvitationRefused::OtherParent {
                parent: state.parent().url.to_string(),
                invited_by: parent.to_string(),
            });
        }
        if matches!(state, JoinState::Left(_)) {
            return Err(InvitationRefused::NothingToRejoin);
        }
        let Some(membership) = state.membership() else {
            return Ok(());
        };
        if rejoin.working == WorkingMembership::Keep && self.works(membership, heard, wall) {
            return Err(InvitationRefused::WorkingMembership {
                parent: parent.to_string(),
                peer_id: membership.peer_id.to_string(),
            });
        }
        Ok(())
    }

    fn works(&self, membership: &Membership, heard: Option<UnixTime>, wall: UnixTime) -> bool {
        membership.status.inbound_allowed()
            && wall <= membership.identity.certificate.not_after
            && !self.needs_rejoin()
            && !self.refused
            && heard.is_some_and(|heard| wall.since(heard) < HEARTBEAT_STALE_AFTER)
    }
}
