//! Floor 1: what both daemons note of every action across the peering (contract section 10.5).
//! Pure: knows no store, no clock and no file.
//!
//! An [`AuditEvent`] is what happened; with its time it is an [`entry::AuditEntry`], whose bytes are a
//! link of the hash [`chain`]. [`refusals`] says which events are counted instead, [`retention`] which rows
//! have been kept long enough, [`query`] which rows somebody asks for.

pub mod chain;
pub mod entry;
pub mod query;
pub mod refusals;
pub mod retention;

use std::net::SocketAddr;
use std::time::Duration;

use crate::base::id::{GrantId, PeerId, TraceId};

/// One action of the other side, or of an operator towards it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    /// What was done.
    pub action: AuditAction,
    /// The peer on whose behalf.
    pub federation_peer_id: Option<PeerId>,
    /// The grant's subject.
    pub remote_subject: Option<String>,
    /// The person or program, as the asking side authenticated them.
    pub actor: Option<String>,
    /// The grant that let it through, or that did not.
    pub grant: Option<GrantId>,
    /// The service, resource or grant that it was about.
    pub object: Option<String>,
    /// Where it came from; port 0 where the port is not known.
    pub source: Option<SocketAddr>,
    /// Ties it to the logs of both sides.
    pub trace: Option<TraceId>,
    /// Bytes from the peer to the service.
    pub bytes_in: u64,
    /// Bytes from the service to the peer.
    pub bytes_out: u64,
    /// How long it lasted.
    pub duration: Duration,
    /// How it ended.
    pub outcome: AuditOutcome,
}

impl AuditEvent {
    /// An action that was done, with nothing else known of it yet: name the rest in a struct update.
    pub const fn of(action: AuditAction) -> Self {
        Self {
            action,
            federation_peer_id: None,
            remote_subject: None,
            actor: None,
            grant: None,
            object: None,
            source: None,
            trace: None,
            bytes_in: 0,
            bytes_out: 0,
            duration: Duration::ZERO,
            outcome: AuditOutcome::Done,
        }
    }
}

/// Kinds of actions. Rows hold the word of [`AuditAction::word`], so the order here is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditAction {
    /// A service stream was opened.
    ServiceOpened,
    /// It has ended.
    ServiceClosed,
    /// A request to the federation API.
    Request,
    /// A grant was made.
    GrantIssued,
    /// The other side has handed a grant over.
    GrantReceived,
    /// A grant was ended early.
    GrantRevoked,
    /// The peering began.
    Joined,
    /// The parent's operator rights were taken back.
    Emancipated,
    /// The peering was ended.
    Left,
    /// A peer's row was made, without an invitation.
    PeerProposed,
    /// A peer was invited.
    PeerInvited,
    /// A new acceptance token was made for a peer.
    TokenMinted,
    /// A peer was paused.
    PeerSuspended,
    /// A paused peer may go on.
    PeerResumed,
    /// A key that a peer has come with was enrolled for it.
    PeerReadmitted,
    /// A peering was ended for good, by this side.
    PeerRevoked,
    /// A peer's certificate was renewed.
    CertificateRenewed,
    /// A node has its first certificate.
    NodeEnrolled,
    /// A new certificate authority has taken over.
    AuthorityRotated,
    /// The certificate authority before it counts no more.
    AuthorityRetired,
    /// A session was cut by an operator.
    SessionCut,
    /// An operator account was made.
    OperatorAdded,
    /// What an operator account may do was changed.
    OperatorChanged,
    /// An operator account has a new token.
    OperatorTokenRotated,
    /// An operator account was removed.
    OperatorRemoved,
    /// An operator asked for what they may not do.
    OperatorRefused,
    /// A caller was refused so often that only the number is noted.
    RefusalsCounted,
    /// Events came faster than they could be written, and some are not in the log.
    EventsLost,
}

impl AuditAction {
    /// The word in rows and exports. A word never changes its meaning.
    pub const fn word(self) -> &'static str {
        match self {
            Self::ServiceOpened => "service_opened",
            Self::ServiceClosed => "service_closed",
            Self::Request => "request",
            Self::GrantIssued => "grant_issued",
            Self::GrantReceived => "grant_received",
            Self::GrantRevoked => "grant_revoked",
            Self::Joined => "joined",
            Self::Emancipated => "emancipated",
            Self::Left => "left",
            Self::PeerProposed => "peer_proposed",
            Self::PeerInvited => "peer_invited",
            Self::TokenMinted => "token_minted",
            Self::PeerSuspended => "peer_suspended",
            Self::PeerResumed => "peer_resumed",
            Self::PeerReadmitted => "peer_readmitted",
            Self::PeerRevoked => "peer_revoked",
            Self::CertificateRenewed => "certificate_renewed",
            Self::NodeEnrolled => "node_enrolled",
            Self::AuthorityRotated => "authority_rotated",
            Self::AuthorityRetired => "authority_retired",
            Self::SessionCut => "session_cut",
            Self::OperatorAdded => "operator_added",
            Self::OperatorChanged => "operator_changed",
            Self::OperatorTokenRotated => "operator_token_rotated",
            Self::OperatorRemoved => "operator_removed",
            Self::OperatorRefused => "operator_refused",
            Self::RefusalsCounted => "refusals_counted",
            Self::EventsLost => "events_lost",
        }
    }
}

/// How an action ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditOutcome {
    /// As asked.
    Done,
    /// Not allowed, in the denial's words.
    Refused(String),
    /// Cut: by a revocation, an expiry, an operator, a limit.
    Cut(String),
    /// Failed, in the error's words.
    Failed(String),
}

impl AuditOutcome {
    /// The word in rows and exports.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused(_) => "refused",
            Self::Cut(_) => "cut",
            Self::Failed(_) => "failed",
        }
    }

    /// Why, where it was not done.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Done => None,
            Self::Refused(why) | Self::Cut(why) | Self::Failed(why) => Some(why),
        }
    }
}
