//! Floor 1: what both daemons note of every action across the peering (contract section 10.5).
//! Pure: knows no store, no clock and no file.

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
    /// Where it came from.
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

/// Kinds of actions; new ones at the end.
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
    /// A grant was ended early.
    GrantRevoked,
    /// The peering began.
    Joined,
    /// The parent's operator rights were taken back.
    Emancipated,
    /// The peering was ended.
    Left,
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
