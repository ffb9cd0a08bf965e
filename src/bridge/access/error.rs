//! Why an access was not given, in the words of the person who asked, and what each way of asking
//! answers: an HTTP status, a SOCKS reply, an exit code (by the status).

use std::time::Duration;

use http::StatusCode;
use thiserror::Error;

use super::super::registry::record::PeerRecord;
use super::super::reply::Reply;
use crate::audit::AuditOutcome;
use crate::base::limit::foreign_text;
use crate::contract::peer::PeerStatus;
use crate::wire::{RefusalCode, StreamRefusal};

/// When one who found no place should come again.
const BUSY_RETRY: Duration = Duration::from_secs(2);

/// Why there is no stream to the service.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AccessError {
    /// No such peer; the words name those that are near.
    #[error("{0}")]
    UnknownPeer(String),
    /// The peer has no tunnel.
    #[error("{peer} is not connected: {why}")]
    Offline {
        /// Its name.
        peer: String,
        /// In words.
        why: String,
    },
    /// What was asked for cannot be a service.
    #[error("`{asked}` is not the name of a service; names have up to 63 letters, digits and `-`")]
    NoServiceName {
        /// As it was written.
        asked: String,
    },
    /// A host name that leads nowhere from here.
    #[error("`{asked}` is not the name of a service here; names read <service>.<peer>.{suffix}")]
    NoTarget {
        /// As it was written.
        asked: String,
        /// What names end with.
        suffix: String,
    },
    /// The operator's own rights do not reach there.
    #[error("{0}")]
    NotPermitted(String),
    /// The peer publishes no such service; it says which it does.
    #[error("{peer} has no service `{service}`: {said}")]
    UnknownService {
        /// The peer.
        peer: String,
        /// What was asked for.
        service: String,
        /// The satellite's words.
        said: String,
    },
    /// No grant, or none that holds.
    #[error("{peer} does not let this bridge in: {said}{hint}")]
    Unauthorized {
        /// The peer.
        peer: String,
        /// The satellite's words, which are the contract's.
        said: String,
        /// What to do.
        hint: &'static str,
    },
    /// The grant does not reach so far.
    #[error("the grant of {peer} does not allow this: {said}")]
    Forbidden {
        /// The peer.
        peer: String,
        /// The satellite's words, which are the contract's.
        said: String,
    },
    /// The local program does not answer.
    #[error("{peer} publishes `{service}`, but its program does not answer: {said}")]
    ServiceUnavailable {
        /// The peer.
        peer: String,
        /// The service.
        service: String,
        /// The satellite's words.
        said: String,
    },
    /// The satellite's limit.
    #[error("{peer} takes no further session now: {said}")]
    Busy {
        /// The peer.
        peer: String,
        /// The satellite's words.
        said: String,
    },
    /// The satellite's build.
    #[error("{peer} runs a program that does not know services yet; update powernode-satellite there")]
    TooOld {
        /// The peer.
        peer: String,
    },
    /// Another protocol is needed.
    #[error("`{service}` of {peer} speaks {protocol}, not HTTP; use `connect`, `forward` or the proxy")]
    NotHttp {
        /// The peer.
        peer: String,
        /// The service.
        service: String,
        /// What it says of itself.
        protocol: String,
    },
    /// No answer.
    #[error("{peer} did not answer within {} s; its network may be gone", .within.as_secs())]
    TimedOut {
        /// The peer.
        peer: String,
        /// The patience.
        within: Duration,
    },
    /// The tunnel or the stream went while it was opened.
    #[error("the tunnel of {peer} failed: {why}")]
    Lost {
        /// The peer.
        peer: String,
        /// In words.
        why: String,
    },
    /// This bridge's limit.
    #[error(
        "this host-bridge carries {max} sessions already, which is what limits.access_sessions allows; `powernode-host-bridge sessions list` shows them"
    )]
    Full {
        /// The limit.
        max: usize,
    },
    /// Somebody cut it before it began.
    #[error("the session was cut: {0}")]
    Cut(String),
    /// Ours.
    #[error("the host-bridge could not look this up; its log says why")]
    Internal,
}

/// Replies of SOCKS version 5 (RFC 1928, section 6).
pub(super) mod socks {
    /// It works.
    pub const SUCCEEDED: u8 = 0;
    /// Nothing more exact fits.
    pub const GENERAL_FAILURE: u8 = 1;
    /// Somebody says no.
    pub const NOT_ALLOWED: u8 = 2;
    /// The way there is down.
    pub const NETWORK_UNREACHABLE: u8 = 3;
    /// There is no such host, or it does not answer.
    pub const HOST_UNREACHABLE: u8 = 4;
    /// The host is there, the program is not.
    pub const CONNECTION_REFUSED: u8 = 5;
    /// Only CONNECT is spoken.
    pub const COMMAND_NOT_SUPPORTED: u8 = 7;
    /// Only names are known.
    pub const ADDRESS_NOT_SUPPORTED: u8 = 8;
}

/// What kind of answer each way gives.
struct Class {
    status: StatusCode,
    socks: u8,
    code: &'static str,
}

impl AccessError {
    pub(super) fn of_refusal(refusal: &StreamRefusal, peer: &str, service: &str, has_grant: bool) -> Self {
        let (peer, said) = (peer.to_owned(), foreign_text(&refusal.message));
        let service = service.to_owned();
        match refusal.code {
            RefusalCode::UnknownService => Self::UnknownService { peer, service, said },
            RefusalCode::Unauthorized => Self::Unauthorized {
                peer,
                said,
                hint: if has_grant {
                    ""
                } else {
                    " (this bridge holds no grant for it; the owner of the box issues one with `powernode-satellite grants issue`)"
                },
            },
            RefusalCode::Forbidden => Self::Forbidden { peer, said },
            RefusalCode::ServiceUnavailable => Self::ServiceUnavailable { peer, service, said },
            RefusalCode::UnsupportedKind | RefusalCode::UnsupportedVersion => Self::TooOld { peer },
            RefusalCode::Busy | RefusalCode::ShuttingDown => Self::Busy { peer, said },
            RefusalCode::NotAdmitted | RefusalCode::CertificateRequired | RefusalCode::Malformed => {
                Self::Lost { peer, why: said }
            }
        }
    }

    const fn class(&self) -> Class {
        let (status, socks, code) = match self {
            Self::UnknownPeer(_) => (StatusCode::NOT_FOUND, socks::HOST_UNREACHABLE, "UNKNOWN_PEER"),
            Self::Offline { .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                socks::NETWORK_UNREACHABLE,
                "PEER_OFFLINE",
            ),
            Self::NoServiceName { .. } | Self::NoTarget { .. } => {
                (StatusCode::NOT_FOUND, socks::HOST_UNREACHABLE, "UNKNOWN_SERVICE")
            }
            Self::UnknownService { .. } => {
                (StatusCode::NOT_FOUND, socks::HOST_UNREACHABLE, "UNKNOWN_SERVICE")
            }
            Self::NotPermitted(_) => (StatusCode::FORBIDDEN, socks::NOT_ALLOWED, "NOT_PERMITTED"),
            // Not 401: the operator's own token is good, and another would not help.
            Self::Unauthorized { .. } => (StatusCode::FORBIDDEN, socks::NOT_ALLOWED, "GRANT_REQUIRED"),
            Self::Forbidden { .. } => (StatusCode::FORBIDDEN, socks::NOT_ALLOWED, "GRANT_FORBIDS"),
            Self::ServiceUnavailable { .. } => (
                StatusCode::BAD_GATEWAY,
                socks::CONNECTION_REFUSED,
                "SERVICE_UNAVAILABLE",
            ),
            Self::Busy { .. } => (StatusCode::SERVICE_UNAVAILABLE, socks::GENERAL_FAILURE, "BUSY"),
            Self::Full { .. } => (StatusCode::SERVICE_UNAVAILABLE, socks::GENERAL_FAILURE, "BUSY"),
            Self::TooOld { .. } => (StatusCode::BAD_GATEWAY, socks::GENERAL_FAILURE, "TOO_OLD"),
            Self::NotHttp { .. } => (StatusCode::BAD_REQUEST, socks::GENERAL_FAILURE, "NOT_HTTP"),
            Self::TimedOut { .. } => (StatusCode::GATEWAY_TIMEOUT, socks::HOST_UNREACHABLE, "TIMED_OUT"),
            Self::Lost { .. } => (StatusCode::BAD_GATEWAY, socks::NETWORK_UNREACHABLE, "TUNNEL_LOST"),
            Self::Cut(_) => (StatusCode::FORBIDDEN, socks::NOT_ALLOWED, "CUT"),
            Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                socks::GENERAL_FAILURE,
                "INTERNAL",
            ),
        };
        Class { status, socks, code }
    }

    /// The kind of reason, in a word.
    pub const fn code(&self) -> &'static str {
        self.class().code
    }

    /// The HTTP status; the command line makes its exit code of it.
    pub const fn status(&self) -> StatusCode {
        self.class().status
    }

    /// The SOCKS reply.
    pub const fn socks_reply(&self) -> u8 {
        self.class().socks
    }

    /// As an answer of the HTTP interfaces.
    pub fn reply(&self) -> Reply {
        let class = self.class();
        let reply = Reply::coded(class.status, class.code, &self.to_string());
        match self {
            Self::Busy { .. } | Self::Full { .. } => reply.retry_after(BUSY_RETRY),
            _ => reply,
        }
    }

    pub(super) fn audit_outcome(&self) -> AuditOutcome {
        let said = self.to_string();
        match self {
            Self::UnknownPeer(_)
            | Self::NoServiceName { .. }
            | Self::NoTarget { .. }
            | Self::NotPermitted(_)
            | Self::UnknownService { .. }
            | Self::Unauthorized { .. }
            | Self::Forbidden { .. }
            | Self::NotHttp { .. }
            | Self::Busy { .. }
            | Self::Full { .. } => AuditOutcome::Refused(said),
            Self::Cut(_) => AuditOutcome::Cut(said),
            Self::Offline { .. }
            | Self::ServiceUnavailable { .. }
            | Self::TooOld { .. }
            | Self::TimedOut { .. }
            | Self::Lost { .. }
            | Self::Internal => AuditOutcome::Failed(said),
        }
    }
}

/// A peer's name, or its id where it has none.
pub(in crate::bridge) fn called(peer: &PeerRecord) -> String {
    peer.name.clone().unwrap_or_else(|| peer.id.to_string())
}

/// Why a peer has no tunnel, as far as the registry knows.
pub(in crate::bridge) fn why_offline(peer: &PeerRecord) -> String {
    match (peer.status, peer.last_heartbeat_at) {
        (PeerStatus::Proposed, _) => "it has not joined yet".to_owned(),
        (PeerStatus::Suspended | PeerStatus::Revoked, _) => format!("it is {}", peer.status),
        (_, Some(heard)) => format!("it is offline since about {heard}, its last heartbeat"),
        (_, None) => "it has joined but never sent a heartbeat".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: RefusalCode, has_grant: bool) -> AccessError {
        let refusal = StreamRefusal {
            code,
            message: "grant has expired".to_owned(),
        };
        AccessError::of_refusal(&refusal, "shop-17", "ssh", has_grant)
    }

    #[test]
    fn the_satellites_words_reach_the_user_and_its_code_the_program() {
        let table = [
            (RefusalCode::UnknownService, 404, socks::HOST_UNREACHABLE),
            (RefusalCode::Unauthorized, 403, socks::NOT_ALLOWED),
            (RefusalCode::Forbidden, 403, socks::NOT_ALLOWED),
            (RefusalCode::ServiceUnavailable, 502, socks::CONNECTION_REFUSED),
            (RefusalCode::Busy, 503, socks::GENERAL_FAILURE),
            (RefusalCode::ShuttingDown, 503, socks::GENERAL_FAILURE),
        ];
        for (code, status, socks) in table {
            let error = refused(code, true);
            assert!(error.to_string().contains("grant has expired"), "{error}");
            assert_eq!(
                (error.status().as_u16(), error.socks_reply()),
                (status, socks),
                "{code:?}"
            );
        }
        let error = refused(RefusalCode::UnsupportedKind, true);
        assert!(
            error.to_string().contains("update powernode-satellite"),
            "{error}"
        );
    }

    #[test]
    fn who_holds_no_grant_is_told_how_to_get_one() {
        let with = refused(RefusalCode::Unauthorized, true).to_string();
        let without = refused(RefusalCode::Unauthorized, false).to_string();
        assert!(!with.contains("grants issue"), "{with}");
        assert!(without.contains("grants issue"), "{without}");
    }
}
