//! The federation peer's states and what may move it (contract section 6). Pure: no clock, no
//! store; every refused transition is a typed error and leaves the state as it was.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How often a child sends a heartbeat (contract section 5).
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(60);

/// Age of the last heartbeat above which an active peer is degraded (contract section 5).
pub const HEARTBEAT_STALE_AFTER: Duration = Duration::from_secs(300);

/// A name that is none of the contract's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{given}` is not a {what}; known are: {known}")]
pub struct UnknownName {
    what: &'static str,
    given: String,
    known: String,
}

macro_rules! contract_names {
    ($(#[$doc:meta])* $name:ident, $what:literal, { $($(#[$vdoc:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$vdoc])* $variant,)+
        }

        impl $name {
            /// All of them, in the contract's order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The contract's word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                Self::ALL.iter().copied().find(|name| name.as_str() == text).ok_or_else(|| UnknownName {
                    what: $what,
                    given: text.chars().take(64).collect(),
                    known: Self::ALL.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

contract_names!(
    /// Where a peering stands (contract section 6).
    PeerStatus, "peer status", {
        /// Invited; nothing has come from the child yet.
        Proposed => "proposed",
        /// The token was presented.
        Accepted => "accepted",
        /// The certificate was issued.
        Enrolled => "enrolled",
        /// Heartbeats arrive.
        Active => "active",
        /// Heartbeats have stopped.
        Degraded => "degraded",
        /// Paused by an operator.
        Suspended => "suspended",
        /// Ended for good.
        Revoked => "revoked",
    }
);

contract_names!(
    /// What the other side is.
    PeerKind, "peer kind", {
        /// A whole platform: what a satellite is.
        Platform => "platform",
        /// A network only; it gets no certificate and stays accepted.
        SdwanOnly => "sdwan_only",
    }
);

contract_names!(
    /// The role of the row's owner in the pair.
    SpawnRole, "spawn role", {
        /// The owner invites.
        Parent => "parent",
        /// The owner was invited.
        Child => "child",
        /// Equals.
        Symmetric => "symmetric",
    }
);

contract_names!(
    /// How the child came to be and what follows from it.
    SpawnMode, "spawn mode", {
        /// The parent operates the child under a 365-day grant.
        ManagedChild => "managed_child",
        /// An equal; no operator grant.
        AutonomousPeer => "autonomous_peer",
        /// A member of the parent's cluster.
        ClusterMember => "cluster_member",
        /// Agreed outside of the platform.
        OutOfBand => "out_of_band",
    }
);

impl SpawnMode {
    /// Whether the two sides are equals, each of which certifies itself (contract section 3, symmetric trust).
    pub const fn between_equals(self) -> bool {
        matches!(self, Self::AutonomousPeer | Self::OutOfBand)
    }
}

/// Something that may move a peering from one status to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerEvent {
    /// The acceptance token was presented.
    Accept,
    /// The federation certificate was issued.
    Enroll,
    /// A heartbeat arrived over mTLS.
    Heartbeat,
    /// The last heartbeat is older than [`HEARTBEAT_STALE_AFTER`].
    HeartbeatStale,
    /// An operator pauses the peering.
    Suspend,
    /// An operator lets a suspended peering go on; it has to prove itself by a heartbeat.
    Resume,
    /// Either side ends the peering.
    Revoke,
}

impl PeerEvent {
    /// All events, for exhaustive tests.
    pub const ALL: &'static [Self] = &[
        Self::Accept,
        Self::Enroll,
        Self::Heartbeat,
        Self::HeartbeatStale,
        Self::Suspend,
        Self::Resume,
        Self::Revoke,
    ];
}

impl fmt::Display for PeerEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept",
            Self::Enroll => "enroll",
            Self::Heartbeat => "heartbeat",
            Self::HeartbeatStale => "stale heartbeat",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Revoke => "revoke",
        })
    }
}

/// An event that the peer's status does not allow. The status is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{event} is not allowed while the peer is {from}")]
pub struct TransitionDenied {
    /// The status that stays.
    pub from: PeerStatus,
    /// What was refused.
    pub event: PeerEvent,
}

impl PeerStatus {
    /// The table of contract section 6: what this status may become in one step.
    pub const fn may_become(self) -> &'static [Self] {
        match self {
            Self::Proposed => &[Self::Accepted, Self::Revoked],
            Self::Accepted => &[Self::Enrolled, Self::Suspended, Self::Revoked],
            Self::Enrolled => &[Self::Active, Self::Suspended, Self::Revoked],
            Self::Active => &[Self::Degraded, Self::Suspended, Self::Revoked],
            Self::Degraded => &[Self::Active, Self::Suspended, Self::Revoked],
            Self::Suspended => &[Self::Accepted, Self::Revoked],
            Self::Revoked => &[],
        }
    }

    /// Whether a tunnel and heartbeats are to come: nobody is to be told that one who is paused stays away.
    pub const fn is_awaited(self) -> bool {
        match self {
            Self::Accepted | Self::Enrolled | Self::Active | Self::Degraded => true,
            Self::Proposed | Self::Suspended | Self::Revoked => false,
        }
    }

    /// Applies one event. A heartbeat takes an accepted peer through enrolled to active, as
    /// the published platform records it; an active peer stays active.
    pub fn apply(self, event: PeerEvent) -> Result<Self, TransitionDenied> {
        let denied = TransitionDenied { from: self, event };
        let next = match event {
            PeerEvent::Heartbeat => {
                return match self {
                    Self::Accepted | Self::Enrolled | Self::Active | Self::Degraded => Ok(Self::Active),
                    Self::Proposed | Self::Suspended | Self::Revoked => Err(denied),
                };
            }
            PeerEvent::Resume if self != Self::Suspended => return Err(denied),
            PeerEvent::Accept | PeerEvent::Resume => Self::Accepted,
            PeerEvent::Enroll => Self::Enrolled,
            PeerEvent::HeartbeatStale => Self::Degraded,
            PeerEvent::Suspend => Self::Suspended,
            PeerEvent::Revoke => Self::Revoked,
        };
        if self.may_become().contains(&next) {
            Ok(next)
        } else {
            Err(denied)
        }
    }

    /// Whether calls of this peer are let in (contract section 6).
    pub const fn inbound_allowed(self) -> bool {
        matches!(self, Self::Enrolled | Self::Active | Self::Degraded)
    }

    /// Whether a heartbeat of this peer is taken: the inbound states, and accepted, which is
    /// what a resumed peer is until its next heartbeat.
    pub fn heartbeat_allowed(self) -> bool {
        self.apply(PeerEvent::Heartbeat).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transition_stays_within_the_table() {
        for &from in PeerStatus::ALL {
            for &event in PeerEvent::ALL {
                match from.apply(event) {
                    Ok(to) => {
                        let through_enrolled = from == PeerStatus::Accepted && to == PeerStatus::Active;
                        let stays = from == to && event == PeerEvent::Heartbeat;
                        assert!(
                            from.may_become().contains(&to) || through_enrolled || stays,
                            "{from} {event}"
                        );
                    }
                    Err(denied) => assert_eq!(denied, TransitionDenied { from, event }),
                }
            }
        }
    }

    #[test]
    fn revoked_is_terminal() {
        for &event in PeerEvent::ALL {
            assert!(PeerStatus::Revoked.apply(event).is_err());
        }
    }

    #[test]
    fn resume_needs_a_suspended_peer_and_a_heartbeat_makes_it_active() {
        assert!(PeerStatus::Proposed.apply(PeerEvent::Resume).is_err());
        let resumed = PeerStatus::Suspended.apply(PeerEvent::Resume);
        assert_eq!(resumed, Ok(PeerStatus::Accepted));
        assert_eq!(
            PeerStatus::Accepted.apply(PeerEvent::Heartbeat),
            Ok(PeerStatus::Active)
        );
    }
}
