//! What a satellite tells this bridge over its own tunnel and nowhere else: the grants that it gives
//! to this side, their ends, and its last notice when it leaves. None of it is the published
//! contract's. The caller has checked whose tunnel it is.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::federation_api::{outcome_of, stored_badly};
use super::registry::record::{HeldGrant, PeerRecord};
use super::registry::{Registry, RegistryError};
use super::reply::Reply;
use crate::audit::{AuditAction, AuditEvent};
use crate::base::id::{GrantId, PeerId};
use crate::base::limit::foreign_text;
use crate::base::secret::Secret;
use crate::base::time::{UnixTime, rfc3339};
use crate::contract::{TUNNEL_GRANTS_PATH, TUNNEL_LEAVE_PATH};
use crate::grant::{BearerToken, PermissionScope};
use crate::identity::certificate::peer_subject;
use crate::store::audit_log::AuditLog;

/// What the path of everything here begins with.
const TUNNEL_PREFIX: &str = "/tunnel/";

/// What a session is told whose satellite has left.
pub const HAS_LEFT: &str = "the satellite has left";

/// Longest text of a grant that is taken, in characters (contract section 7: a subject's).
const TEXT_MAX_CHARS: usize = 256;

/// A grant as its satellite hands it over. What restricts it further is the satellite's to check.
#[derive(Deserialize)]
struct HandedOver {
    grant: HandedGrant,
    token: Zeroizing<String>,
}

#[derive(Deserialize)]
struct HandedGrant {
    id: GrantId,
    federation_peer_id: PeerId,
    remote_subject: String,
    resource_kind: String,
    resource_id: Option<String>,
    permission_scopes: BTreeSet<PermissionScope>,
    #[serde(with = "rfc3339")]
    issued_at: UnixTime,
    #[serde(with = "rfc3339")]
    expires_at: UnixTime,
}

#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    reason: String,
}

/// Whether a path is one of these.
pub fn serves(path: &str) -> bool {
    path.starts_with(TUNNEL_PREFIX)
}

/// Whose tunnel a request came through, and what it is answered and noted with.
pub struct Teller<'a> {
    /// The registry.
    pub registry: &'a Registry,
    /// The log of what was told.
    pub audit: &'a AuditLog,
    /// The peer.
    pub peer: &'a PeerRecord,
    /// Where its tunnel comes from.
    pub source: IpAddr,
    /// The time.
    pub now: UnixTime,
}

/// What was told, for the log.
struct News {
    action: AuditAction,
    grant: Option<GrantId>,
    object: Option<String>,
}

impl Teller<'_> {
    /// Answers one request and notes it. Blocks on the disk.
    pub fn answer(&self, (method, path): (&Method, &str), body: &[u8]) -> Reply {
        let (news, answered) = match (method, path) {
            (&Method::POST, TUNNEL_GRANTS_PATH) => self.take(body),
            (&Method::POST, TUNNEL_LEAVE_PATH) => self.leave(body),
            (_, TUNNEL_GRANTS_PATH | TUNNEL_LEAVE_PATH) => return Reply::wrong_method("POST"),
            (method, path) => match (method, revoked_grant(path)) {
                (&Method::POST, Some(grant)) => self.revoked(grant, body),
                (_, Some(_)) => return Reply::wrong_method("POST"),
                (_, None) => return Reply::unknown_path(path),
            },
        };
        let reply = answered.unwrap_or_else(|refused| refused);
        self.note(news, &reply);
        reply
    }

    fn note(&self, news: News, reply: &Reply) {
        self.audit.record(&AuditEvent {
            federation_peer_id: Some(self.peer.id),
            remote_subject: Some(peer_subject(self.peer.id)),
            grant: news.grant,
            object: news.object,
            source: Some(SocketAddr::new(self.source, 0)),
            outcome: outcome_of(reply),
            ..AuditEvent::of(news.action)
        });
    }

    fn take(&self, body: &[u8]) -> (News, Result<Reply, Reply>) {
        let read = fields::<HandedOver>(body);
        let news = News {
            action: AuditAction::GrantReceived,
            grant: read.as_ref().ok().map(|handed| handed.grant.id),
            object: read
                .as_ref()
                .ok()
                .map(|handed| handed.grant.resource_kind.clone()),
        };
        (news, read.and_then(|handed| self.hold(handed)))
    }

    fn hold(&self, handed: HandedOver) -> Result<Reply, Reply> {
        let held = checked(handed, self.peer)?;
        let id = held.id;
        info!(peer = %self.peer.id, grant = %id, subject = %held.remote_subject, kind = %held.resource_kind, "a satellite has given a grant");
        self.registry
            .hold_grant(self.peer.id, held, self.now)
            .map_err(|error| refused(&error))?;
        Ok(Reply::data(&json!({ "grant_id": id })))
    }

    fn revoked(&self, grant: GrantId, body: &[u8]) -> (News, Result<Reply, Reply>) {
        let told = reason_of(body);
        let news = News {
            action: AuditAction::GrantRevoked,
            grant: Some(grant),
            object: told.as_ref().ok().cloned(),
        };
        let answered = told.and_then(|reason| {
            let known = self
                .registry
                .held_grant_revoked(self.peer.id, grant, &reason, self.now)
                .map_err(|error| refused(&error))?;
            if known {
                warn!(peer = %self.peer.id, %grant, %reason, "a satellite has revoked a grant");
            }
            // One that never arrived is of no use either: the satellite need not tell it again.
            Ok(Reply::data(&json!({ "grant_id": grant, "known": known })))
        });
        (news, answered)
    }

    fn leave(&self, body: &[u8]) -> (News, Result<Reply, Reply>) {
        let told = reason_of(body);
        let news = News {
            action: AuditAction::Left,
            grant: None,
            object: told.as_ref().ok().cloned(),
        };
        let answered = told.and_then(|reason| {
            let noted = match reason.as_str() {
                "" => HAS_LEFT.to_owned(),
                reason => format!("{HAS_LEFT}: {reason}"),
            };
            let revoked = self
                .registry
                .revoke(&self.peer.id.to_string(), &noted, self.now)
                .map_err(|error| refused(&error))?;
            warn!(peer = %self.peer.id, name = revoked.name, %reason, "a satellite has left");
            Ok(Reply::data(
                &json!({ "peer_id": self.peer.id, "status": revoked.status }),
            ))
        });
        (news, answered)
    }
}

/// The grant of `/tunnel/v1/grants/<id>/revoked`.
fn revoked_grant(path: &str) -> Option<GrantId> {
    let id = path.strip_prefix(TUNNEL_GRANTS_PATH)?.strip_prefix('/')?;
    id.strip_suffix("/revoked")?.parse().ok()
}

/// The words with which an end is told.
fn reason_of(body: &[u8]) -> Result<String, Reply> {
    Ok(foreign_text(fields::<Told>(body)?.reason.trim()))
}

/// What may be held of what was handed over.
fn checked(handed: HandedOver, peer: &PeerRecord) -> Result<HeldGrant, Reply> {
    let HandedOver { grant, token } = handed;
    if grant.federation_peer_id != peer.id {
        return Err(unusable("the grant is another peer's"));
    }
    // The text is not ours to look into, but it must be a token, and this grant's.
    match BearerToken::parse(&token) {
        Ok(parsed) if parsed.grant() == grant.id => {}
        Ok(_) | Err(_) => return Err(unusable("the token is not this grant's")),
    }
    let texts = [
        Some(&grant.remote_subject),
        Some(&grant.resource_kind),
        grant.resource_id.as_ref(),
    ];
    for text in texts.into_iter().flatten() {
        let bad = text.trim().is_empty()
            || text.chars().any(char::is_control)
            || text.chars().nth(TEXT_MAX_CHARS).is_some();
        if bad {
            return Err(unusable("a text of the grant is empty, too long or not plain"));
        }
    }
    Ok(HeldGrant {
        id: grant.id,
        remote_subject: grant.remote_subject,
        resource_kind: grant.resource_kind,
        resource_id: grant.resource_id,
        permission_scopes: grant.permission_scopes,
        issued_at: grant.issued_at,
        expires_at: grant.expires_at,
        revocation: None,
        token: Secret::from_text(token.as_str().to_owned()),
    })
}

fn fields<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Reply> {
    serde_json::from_slice(body).map_err(|error| {
        let error = foreign_text(&error.to_string());
        Reply::failure(
            StatusCode::BAD_REQUEST,
            &format!("the request cannot be read: {error}"),
        )
    })
}

fn unusable(why: &str) -> Reply {
    Reply::failure(StatusCode::UNPROCESSABLE_ENTITY, why)
}

fn refused(error: &RegistryError) -> Reply {
    match error {
        RegistryError::Store(source) => stored_badly("a peer's grants", source),
        error => {
            let status =
                StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::UNPROCESSABLE_ENTITY);
            Reply::failure(status, &error.to_string())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_an_end_names_its_grant() {
        let id = "0192f0c1-7c1e-7a53-9d0e-000000000001";
        assert_eq!(
            revoked_grant(&format!("/tunnel/v1/grants/{id}/revoked")),
            Some(id.parse().unwrap())
        );
        for other in [
            "/tunnel/v1/grants",
            "/tunnel/v1/grants//revoked",
            "/tunnel/v1/grantsx/revoked",
        ] {
            assert_eq!(revoked_grant(other), None, "{other}");
        }
    }
}
