//! What a satellite's machine is told and what it wants done: the whole surface between the
//! decisions and the driver that carries them out.

use std::time::Duration;

use crate::base::secret::Secret;
use crate::contract::delivery::NodeEnrollment;
use crate::contract::invitation::HostPort;
use crate::contract::peer::PeerStatus;
use crate::machine::join::{Farewell, JoinEvent, JoinState};
use crate::machine::ladder::{DialFailure, Loss, TunnelId, WayIn};
use crate::machine::membership::{
    AcceptedAnswer, FollowedAnchors, KeptAuthority, KeyMaterial, Parent, StoredIdentity, StoredInvitation,
};
use crate::machine::node_identity::{NodeEvent, NodeMembership};
use crate::machine::renewal::IdentityChoice;
use crate::machine::uplinks::{UplinkDial, UplinksPolicy};

/// What a tunnel is for, and so which identity it presents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkPurpose {
    /// Accept: no certificate yet.
    Bootstrap,
    /// Membership: this certificate.
    Member(IdentityChoice),
}

/// Which of a box's two identities a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyUse {
    /// The federation peer's.
    Federation,
    /// The platform's node's.
    Node,
}

/// What an operator decides about the tunnels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChildPolicy {
    /// How many, which ways, and how eagerly.
    pub uplinks: UplinksPolicy,
    /// The bridges, which outrank the invitation's; empty leaves it at those.
    pub bridges: Vec<HostPort>,
}

/// What the machine is told.
#[derive(Debug)]
pub enum ChildEvent {
    /// An operator or a payload invites this box.
    Invited(Box<StoredInvitation>),
    /// The last `GenerateKey` is done.
    KeyGenerated(KeyUse, KeyMaterial),
    /// The `Persist` of this number is durable.
    Persisted(u64),
    /// The `Persist` of this number failed.
    PersistFailed(u64),
    /// A `Dial` gave a tunnel.
    Connected(TunnelId),
    /// The tunnel that is about to be reported takes the renewal of the certificate, which the parent counts
    /// as expired, and nothing else.
    RenewalOnly(TunnelId),
    /// A `Dial` failed.
    DialFailed(TunnelId, DialFailure),
    /// A `Dial` failed because the parent did not take the identity that it presented.
    DialRefused(TunnelId, DialFailure),
    /// A tunnel ended.
    TunnelLost(TunnelId, Loss),
    /// A retired tunnel has no open stream.
    TunnelDrained(TunnelId),
    /// A tunnel's socket is overrun, in words.
    TunnelOverrun(TunnelId, String),
    /// The box's addresses or routes are others now.
    NetworkChanged,
    /// Whether host-bridges could dial this box, from now on.
    WayIn(WayIn),
    /// This host-bridge has dialled by itself, and waits to be greeted.
    Called(HostPort),
    /// The endpoint at which a host-bridge's dial came in is not proven any more.
    WayInWithdrawn(TunnelId),
    /// The parent told, over an authenticated tunnel, that the peering was suspended or revoked.
    StatusTold(PeerStatus),
    /// What became of the accept, or of the check of its certificate.
    Join(JoinEvent),
    /// The parent acknowledged a heartbeat and told the peering's status.
    HeartbeatAcknowledged(PeerStatus),
    /// The parent answered a heartbeat with 401.
    HeartbeatRefused,
    /// No usable answer to a heartbeat.
    HeartbeatFailed(Option<Duration>),
    /// The parent issued a renewed certificate, and it was checked.
    RefreshIssued(StoredIdentity),
    /// It did not.
    RefreshFailed,
    /// What became of the node's enrollment or its renewal.
    Node(NodeEvent),
    /// It refused to.
    RefreshRefused,
    /// The parent's authorities are others now; that is durable.
    AnchorsFollowed(FollowedAnchors),
    /// The certificate is to be renewed though it is not due: this box's own authority changes.
    RenewalWanted,
    /// This box certifies itself by another authority, which is durable already.
    AuthorityAdopted(Box<KeptAuthority>),
    /// The owner gives a rejoin up, which is durable already: the membership of before goes on.
    RejoinCancelled,
    /// The owner has ended the peering, and that is durable.
    Left(Box<Farewell>),
    /// What a heartbeat would say has changed.
    ContentChanged,
    /// Try to connect at once.
    RetryNow,
    /// Time has passed.
    Timeout,
}

/// Of what an event tells, for logs and status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A heartbeat was not acknowledged.
    Heartbeat,
    /// The certificate was not renewed.
    Renewal,
    /// The accept was not answered with a membership.
    Accept,
    /// A tunnel was lost.
    Tunnel,
    /// The parent told the peering's status.
    Status(PeerStatus),
    /// A dial failed, or anything else.
    Other,
}

impl ChildEvent {
    /// Whether it tells of a dial or a tunnel, rather than of what was asked over one.
    pub const fn is_of_a_tunnel(&self) -> bool {
        matches!(
            self,
            Self::Connected(_)
                | Self::RenewalOnly(_)
                | Self::DialFailed(..)
                | Self::DialRefused(..)
                | Self::TunnelLost(..)
                | Self::TunnelDrained(_)
                | Self::TunnelOverrun(..)
                | Self::StatusTold(_)
        )
    }

    /// Of what it tells.
    pub const fn kind(&self) -> EventKind {
        match self {
            Self::HeartbeatFailed(_) | Self::HeartbeatRefused => EventKind::Heartbeat,
            Self::RefreshFailed | Self::RefreshRefused => EventKind::Renewal,
            Self::Join(
                JoinEvent::Failed(_) | JoinEvent::AnswerLost | JoinEvent::NotSent | JoinEvent::Unusable(_),
            ) => EventKind::Accept,
            Self::TunnelLost(..) => EventKind::Tunnel,
            Self::StatusTold(status) => EventKind::Status(*status),
            _ => EventKind::Other,
        }
    }
}

/// What the machine wants done.
#[derive(Debug)]
pub enum ChildAction {
    /// Make a key and its CSR for this common name, or the CSR of the key that is kept; report `KeyGenerated`.
    GenerateKey {
        /// For which identity.
        purpose: KeyUse,
        /// The CN of the request.
        common_name: String,
        /// The key, where it is not to be a new one.
        kept: Option<Secret>,
    },
    /// Make this state durable; report `Persisted` or `PersistFailed` with the number.
    Persist(u64, Box<JoinState>),
    /// Dial; report `Connected` or `DialFailed`, and once connected `TunnelLost`.
    Dial(UplinkDial, LinkPurpose),
    /// Close the tunnel or give up the dial; nothing is to be reported.
    Hangup(TunnelId),
    /// Open nothing more on the tunnel; report `TunnelDrained` when it has no open stream.
    Retire(TunnelId),
    /// Ask the other side of the tunnel for a sign of life now.
    Probe(TunnelId),
    /// Send accept over the primary tunnel; report a `Join` event.
    SendAccept {
        /// The invitation with the token.
        invitation: Box<StoredInvitation>,
        /// The CSR.
        csr_pem: String,
    },
    /// Check a certificate; report a `Join` event.
    VerifyCertificate {
        /// By what the parent is known.
        parent: Box<Parent>,
        /// The answer.
        answer: Box<AcceptedAnswer>,
        /// The key that it must belong to.
        key: Box<KeyMaterial>,
    },
    /// Ask the platform for this box's first certificate as a node; report a `Node` event.
    EnrollNode {
        /// Where, with what.
        enrollment: Box<NodeEnrollment>,
        /// The key that the certificate must belong to.
        key: Box<KeyMaterial>,
    },
    /// Ask the platform for the node's next certificate; report a `Node` event.
    RefreshNode {
        /// Where, as whom.
        node: Box<NodeMembership>,
        /// The key that the certificate must belong to.
        key: Box<KeyMaterial>,
    },
    /// Send a heartbeat over the primary tunnel with what is true now; report its outcome.
    SendHeartbeat,
    /// Ask over the primary tunnel for a renewed certificate; report `RefreshIssued`, `RefreshFailed`
    /// or `RefreshRefused`.
    SendRefresh {
        /// The key that the new certificate must belong to.
        key: Box<KeyMaterial>,
    },
}

/// An invitation that cannot be taken now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvitationRefused {
    /// Member already.
    #[error(
        "this satellite has already joined {parent} as peer {peer_id}; to join another parent, leave this one first \
         with `powernode-satellite leave`"
    )]
    AlreadyJoined {
        /// Of whom.
        parent: String,
        /// As whom.
        peer_id: String,
    },
    /// There is nothing to join anew.
    #[error("this box has joined no parent yet; run `powernode-satellite join -` with a join code")]
    NothingToRejoin,
    /// The invitation is of somebody else.
    #[error(
        "this box belongs to {parent}, and the invitation is of {invited_by}; to join another parent, leave this one \
         first with `powernode-satellite leave`"
    )]
    OtherParent {
        /// Whose it is.
        parent: String,
        /// Who has invited it.
        invited_by: String,
    },
    /// The membership works.
    #[error(
        "this box is a member of {parent} as peer {peer_id}, its certificate is good and its heartbeats are \
         acknowledged: there is nothing to join anew. With `--force` it does so all the same, and may be another peer \
         from then on"
    )]
    WorkingMembership {
        /// Of whom.
        parent: String,
        /// As whom.
        peer_id: String,
    },
}
