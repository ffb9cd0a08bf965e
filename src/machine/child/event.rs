//! What a satellite's machine is told and what it wants done: the whole surface between the
//! decisions and the driver that carries them out.

use std::time::Duration;

use crate::contract::peer::PeerStatus;
use crate::machine::join::{Farewell, JoinEvent, JoinState};
use crate::machine::membership::{AcceptedAnswer, KeyMaterial, Parent, StoredIdentity, StoredInvitation};
use crate::machine::reconnect::{DialTarget, Setback};
use crate::machine::renewal::IdentityChoice;

/// What a tunnel is for, and so which identity it presents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkPurpose {
    /// Accept: no certificate yet.
    Bootstrap,
    /// Membership: this certificate.
    Member(IdentityChoice),
}

/// What the machine is told.
#[derive(Debug)]
pub enum ChildEvent {
    /// An operator or a payload invites this box.
    Invited(Box<StoredInvitation>),
    /// The last `GenerateKey` is done.
    KeyGenerated(KeyMaterial),
    /// The `Persist` of this number is durable.
    Persisted(u64),
    /// The `Persist` of this number failed.
    PersistFailed(u64),
    /// The names' addresses.
    Resolved(Vec<DialTarget>),
    /// The last `Dial` gave a tunnel.
    Connected,
    /// The last `Dial` failed.
    DialFailed(Setback),
    /// The last `Dial` failed because the parent did not take the identity that it presented.
    DialRefused(Setback),
    /// The tunnel ended.
    TunnelLost(Setback),
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
    /// The owner has ended the peering, and that is durable.
    Left(Box<Farewell>),
    /// What a heartbeat would say has changed.
    ContentChanged,
    /// Try to connect at once.
    RetryNow,
    /// Time has passed.
    Timeout,
}

/// What the machine wants done.
#[derive(Debug)]
pub enum ChildAction {
    /// Make a key and its CSR for this common name; report `KeyGenerated`.
    GenerateKey {
        /// The CN of the request.
        common_name: String,
    },
    /// Make this state durable; report `Persisted` or `PersistFailed` with the number.
    Persist(u64, Box<JoinState>),
    /// Resolve the parent's addresses; report `Resolved`.
    Resolve(Box<Parent>),
    /// Dial; report `Connected` or `DialFailed`.
    Dial(DialTarget, LinkPurpose),
    /// Close the tunnel or give up the dial; nothing is to be reported.
    Hangup,
    /// Send accept; report a `Join` event.
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
    /// Send a heartbeat with what is true now; report its outcome.
    SendHeartbeat,
    /// Ask for a renewed certificate; report `RefreshIssued` or `RefreshFailed`.
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
}
