//! What a satellite tells this bridge over its own tunnel and nowhere else: the grants that it gives
//! to this side, their ends, and its last notice when it leaves. None of it is the published
//! contract's. The caller has checked whose tunnel it is.

use std::collections::BTreeSet;
use std::net::IpAddr;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::federation_api::{of_peer, outcome_of, stored_badly};
use super::registry::record::{HeldGrant, PeerRecord};
use super::registry::{Ledger, Registry, RegistryError};
use super::reply::Reply;
use crate::audit::{AuditAction, AuditEvent, AuditOutcome};
use crate::base::id::{GrantId, PeerId};
use crate::base::limit::foreign_text;
use crate::base::secret::Secret;
use crate::base::time::{UnixTime, rfc3339};
use crate::contract::{TUNNEL_GRANTS_PATH, TUNNEL_LEAVE_PATH};
use crate::grant::{BearerToken, PermissionScope};

/// What the path of everything here begins with.
const TUNNEL_PREFIX: &str = "/tunnel/";

/// What a session is told whose satellite has left.
pub const HAS_LEFT: &str = "the satellite has left";

/// What a satellite is told that wants to leave a platform.
const PLATFORM_ENDS: &str =
    "the platform alone ends a peering: tell it in a last heartbeat, and have its operators revoke the peer";

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

/// Answers one request about grants of the peer whose tunnel it came through. Blocks on the disk.
pub fn answer(
    ledger: &Ledger,
    peer: &PeerRecord,
    (method, path): (&Method, &str),
    body: &[u8],
    now: UnixTime,
) -> Reply {
    let answered = match (method, path) {
        (&Method::POST, TUNNEL_GRANTS_PATH) => take(ledger, peer, body, now),
        (_, TUNNEL_GRANTS_PATH) => Ok(Reply::wrong_method("POST")),
        (method, path) => match (method, revoked_grant(path)) {
            (&Method::POST, Some(grant)) => revoked(ledger, peer, grant, body, now),
            (_, Some(_)) => Ok(Reply::wrong_method("POST")),
            (_, None) => Ok(Reply::unknown_path(path)),
        },
    };
    answered.unwrap_or_else(|refused| refused)
}

/// What was told, and what became of it, for the audit log; nothing where it is no news.
pub fn noted(
    peer: PeerId,
    source: IpAddr,
    path: &str,
    body: &[u8],
    status: StatusCode,
) -> Option<AuditEvent> {
    let reason = || {
        let told: Told = serde_json::from_slice(body).ok()?;
        Some(foreign_text(told.reason.trim()))
    };
    let (action, grant, object) = match path {
        TUNNEL_GRANTS_PATH => {
            let handed = serde_json::from_slice::<HandedOver>(body)
                .ok()
                .map(|handed| handed.grant);
            let (grant, kind) = handed.map(|grant| (grant.id, grant.resource_kind)).unzip();
            (AuditAction::GrantReceived, grant, kind)
        }
        TUNNEL_LEAVE_PATH => (AuditAction::Left, None, reason()),
        path => (AuditAction::GrantRevoked, Some(revoked_grant(path)?), reason()),
    };
    Some(AuditEvent {
        grant,
        object,
        outcome: match (action, status) {
            // That the platform has to end the peering makes it no less left.
            (AuditAction::Left, StatusCode::CONFLICT) => AuditOutcome::Done,
            _ => outcome_of(status),
        },
        ..of_peer(action, peer, source)
    })
}

/// The grant of `/tunnel/v1/grants/<id>/revoked`.
fn revoked_grant(path: &str) -> Option<GrantId> {
    let id = path.strip_prefix(TUNNEL_GRANTS_PATH)?.strip_prefix('/')?;
    id.strip_suffix("/revoked")?.parse().ok()
}

fn take(ledger: &Ledger, peer: &PeerRecord, body: &[u8], now: UnixTime) -> Result<Reply, Reply> {
    let HandedOver { grant, token } = fields(body)?;
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
    let id = grant.id;
    let held = HeldGrant {
        id,
        remote_subject: grant.remote_subject,
        resource_kind: grant.resource_kind,
        resource_id: grant.resource_id,
        permission_scopes: grant.permission_scopes,
        issued_at: grant.issued_at,
        expires_at: grant.expires_at,
        revocation: None,
        token: Secret::from_text(token.as_str().to_owned()),
    };
    info!(peer = %peer.id, grant = %id, subject = %held.remote_subject, kind = %held.resource_kind, "a satellite has given a grant");
    ledger
        .hold_grant(peer.id, held, now)
        .map_err(|error| refused(&error))?;
    Ok(Reply::data(&json!({ "grant_id": id })))
}

fn revoked(
    ledger: &Ledger,
    peer: &PeerRecord,
    grant: GrantId,
    body: &[u8],
    now: UnixTime,
) -> Result<Reply, Reply> {
    let reason = foreign_text(fields::<Told>(body)?.reason.trim());
    let known = ledger
        .held_grant_revoked(peer.id, grant, &reason, now)
        .map_err(|error| refused(&error))?;
    if known {
        warn!(peer = %peer.id, %grant, %reason, "a satellite has revoked a grant");
    }
    // One that never arrived is of no use either: the satellite need not tell it again.
    Ok(Reply::data(&json!({ "grant_id": grant, "known": known })))
}

/// Ends the peering of a satellite that says its last word. Blocks on the disk.
pub fn leave(registry: &Registry, peer: &PeerRecord, method: &Method, body: &[u8], now: UnixTime) -> Reply {
    if method != Method::POST {
        return Reply::wrong_method("POST");
    }
    left(registry, peer, body, now).unwrap_or_else(|refused| refused)
}

fn left(registry: &Registry, peer: &PeerRecord, body: &[u8], now: UnixTime) -> Result<Reply, Reply> {
    let reason = foreign_text(fields::<Told>(body)?.reason.trim());
    let noted = match reason.as_str() {
        "" => HAS_LEFT.to_owned(),
        reason => format!("{HAS_LEFT}: {reason}"),
    };
    let revoked = registry
        .revoke(&peer.id.to_string(), &noted, now)
        .map_err(|error| refused(&error))?;
    warn!(peer = %peer.id, name = revoked.name, %reason, "a satellite has left");
    Ok(Reply::data(
        &json!({ "peer_id": peer.id, "status": revoked.status }),
    ))
}

/// Hears the last word of a satellite whose peering only a platform can end: what it gave is of no use any more. Blocks
/// on the disk.
pub fn leave_platform(ledger: &Ledger, peer: PeerId, method: &Method, body: &[u8]) -> Reply {
    if method != Method::POST {
        return Reply::wrong_method("POST");
    }
    let heard = fields::<Told>(body).and_then(|told| {
        ledger
            .forget_held_grants(peer)
            .map_err(|error| stored_badly("a peer's grants", &error))?;
        Ok(foreign_text(told.reason.trim()))
    });
    match heard {
        Ok(reason) => {
            warn!(%peer, %reason, "a satellite leaves; its peer has to be revoked at the platform");
            Reply::coded(StatusCode::CONFLICT, "PLATFORM_DECIDES", PLATFORM_ENDS)
        }
        Err(refused) => refused,
    }
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
