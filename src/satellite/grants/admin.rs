//! The owner's commands about grants: on the admin socket of the daemon, and in the command line's own
//! process while none runs. The same function for both, so that both do the same.

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::book::{GrantBook, GrantBookError, Issue};
use super::record::{Handover, KeptGrant};
use super::report::kept_view;
use crate::audit::{AuditAction, AuditEvent};
use crate::base::id::{GrantId, PeerId};
use crate::base::limit::{error_chain, foreign_text};
use crate::base::time::UnixTime;
use crate::contract::message::{failure_body, success_body};
use crate::contract::service::ServiceName;
use crate::grant::{Grant, GrantRequest, MANAGED_CHILD_OPERATOR_KIND, NewGrant, SERVICE_KIND};
use crate::store::audit_log::AuditLog;

/// Path of the grants; one grant's is below it.
pub const GRANTS_PATH: &str = "/v1/grants";
/// Path of the emancipation.
pub const EMANCIPATE_PATH: &str = "/v1/emancipate";

/// Who acts, in the audit log: whom the socket or the file let in.
const OWNER: &str = "owner";

/// Why the parent's operator grants end when the owner gives no reason.
const EMANCIPATION: &str = "emancipation";

/// A grant as the owner asks for it. What is left out is as narrow as makes sense.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantFields {
    /// Who acts on the parent's side; may be left out for a grant to operate.
    #[serde(default)]
    pub remote_subject: String,
    /// Absent: `service`.
    #[serde(default)]
    pub resource_kind: Option<String>,
    /// The one thing of that kind.
    #[serde(default)]
    pub resource_id: Option<String>,
    /// Empty: `read` and `write`.
    #[serde(default)]
    pub permission_scopes: Vec<String>,
    /// UUIDs; empty or `*` is any.
    #[serde(default)]
    pub node_instance_ids: Vec<String>,
    /// UUIDs; empty or `*` is any.
    #[serde(default)]
    pub sdwan_network_ids: Vec<String>,
    /// CIDRs or addresses; empty or `*` is any.
    #[serde(default)]
    pub source_cidrs: Vec<String>,
    /// Absent: 30 days.
    #[serde(default)]
    pub ttl_seconds: Option<i64>,
    /// Whether the owner hands the token over, and not the tunnel.
    #[serde(default)]
    pub by_hand: bool,
}

/// Why something ends.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReasonFields {
    /// In the owner's words.
    #[serde(default)]
    pub reason: String,
}

/// What the commands work on.
#[derive(Debug, Clone)]
pub struct GrantDesk {
    /// The grants.
    pub book: GrantBook,
    /// Where each change is noted.
    pub audit: AuditLog,
    /// The peering, once there is one.
    pub peer: Option<PeerId>,
}

/// A refusal.
struct Refused(StatusCode, String);

impl From<GrantBookError> for Refused {
    fn from(error: GrantBookError) -> Self {
        let status = match &error {
            GrantBookError::Unknown(_) => StatusCode::NOT_FOUND,
            GrantBookError::Revoke(_) => StatusCode::UNPROCESSABLE_ENTITY,
            GrantBookError::Full | GrantBookError::Left => StatusCode::CONFLICT,
            GrantBookError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error_chain(&error))
    }
}

/// Answers a question about grants that were read from the store.
pub fn answer_reading(grants: &[KeptGrant], path: &str, now: UnixTime) -> (StatusCode, Value) {
    match path.strip_prefix(GRANTS_PATH).map(|rest| rest.trim_matches('/')) {
        Some("") => {
            let views: Vec<Value> = grants.iter().map(|kept| kept_view(kept, now)).collect();
            (StatusCode::OK, success_body(&views))
        }
        Some(id) => {
            let wanted = id.parse::<GrantId>().ok();
            let found = grants.iter().find(|kept| Some(kept.grant.id) == wanted);
            match found {
                Some(kept) => (StatusCode::OK, success_body(&kept_view(kept, now))),
                None => answered(Err(unknown(id))),
            }
        }
        None => answered(Err(Refused(StatusCode::NOT_FOUND, "no such resource".to_owned()))),
    }
}

impl GrantDesk {
    /// Answers one command.
    pub async fn answer(
        &self,
        method: &Method,
        path: &str,
        body: &[u8],
        now: UnixTime,
    ) -> (StatusCode, Value) {
        if method == Method::GET {
            return answer_reading(&self.book.all(), path, now);
        }
        let below = path.strip_prefix(GRANTS_PATH).map(|rest| rest.trim_matches('/'));
        answered(match (method, path, below) {
            (&Method::POST, EMANCIPATE_PATH, _) => self.emancipate(body).await,
            (&Method::POST, _, Some("")) => self.issue(body, now).await,
            (&Method::POST, _, Some(rest)) => match rest.strip_suffix("/revoke") {
                Some(id) => self.revoke(id, body, now).await,
                None => Err(wrong_method()),
            },
            _ => Err(wrong_method()),
        })
    }

    async fn issue(&self, body: &[u8], now: UnixTime) -> Result<(StatusCode, Value), Refused> {
        let asked: GrantFields = fields(body)?;
        let peer = self.peer.ok_or_else(not_joined)?;
        let kind = asked.resource_kind.unwrap_or_else(|| SERVICE_KIND.to_owned());
        let subject = match asked.remote_subject.trim() {
            "" if kind == MANAGED_CHILD_OPERATOR_KIND => format!("parent-operator@{peer}"),
            subject => subject.to_owned(),
        };
        let scopes = if asked.permission_scopes.is_empty() {
            vec!["read".to_owned(), "write".to_owned()]
        } else {
            asked.permission_scopes
        };
        let resource_id = match asked.resource_id {
            Some(name) if kind == SERVICE_KIND => service_name(&name)?,
            id => id,
        };
        let new = NewGrant::check(GrantRequest {
            federation_peer_id: peer,
            remote_subject: subject,
            resource_kind: kind,
            resource_id,
            permission_scopes: scopes,
            node_instance_ids: asked.node_instance_ids,
            sdwan_network_ids: asked.sdwan_network_ids,
            source_cidrs: asked.source_cidrs,
            ttl_seconds: asked.ttl_seconds,
        });
        let new = new.map_err(|error| Refused(StatusCode::UNPROCESSABLE_ENTITY, error_chain(&error)))?;
        let handover = if asked.by_hand {
            Handover::ByHand
        } else {
            Handover::Due
        };
        let issued = self.book.issue(Issue::of(new, handover)).await?;
        self.note(AuditAction::GrantIssued, &issued.grant);
        let kept = KeptGrant {
            grant: issued.grant,
            handover,
            derived_from: None,
        };
        let data = json!({
            "grant": kept_view(&kept, now),
            "bearer_token": issued.token.to_secret().expose_text(),
        });
        Ok((StatusCode::CREATED, data))
    }

    async fn revoke(&self, id: &str, body: &[u8], now: UnixTime) -> Result<(StatusCode, Value), Refused> {
        let asked: ReasonFields = fields(body)?;
        let id: GrantId = id.parse().map_err(|_| unknown(id))?;
        let revoked = self.book.revoke(id, &asked.reason).await?;
        self.note(AuditAction::GrantRevoked, &revoked);
        let kept = self.book.get(id).ok_or_else(|| unknown(&id.to_string()))?;
        Ok((StatusCode::OK, kept_view(&kept, now)))
    }

    async fn emancipate(&self, body: &[u8]) -> Result<(StatusCode, Value), Refused> {
        let asked: ReasonFields = fields(body)?;
        let peer = self.peer.ok_or_else(not_joined)?;
        let reason = match asked.reason.trim() {
            "" => EMANCIPATION,
            reason => reason,
        };
        let revoked = self.book.emancipate(peer, reason).await?;
        for grant in &revoked {
            self.note(AuditAction::GrantRevoked, grant);
        }
        self.audit.record(&AuditEvent {
            federation_peer_id: Some(peer),
            actor: Some(OWNER.to_owned()),
            object: Some(reason.to_owned()),
            ..AuditEvent::of(AuditAction::Emancipated)
        });
        let ids: Vec<GrantId> = revoked.iter().map(|grant| grant.id).collect();
        Ok((
            StatusCode::OK,
            json!({ "peer_id": peer, "revoked": ids, "emancipated": self.book.is_emancipated(peer) }),
        ))
    }

    fn note(&self, action: AuditAction, grant: &Grant) {
        let reason = grant
            .revocation
            .as_ref()
            .map(|revocation| revocation.reason.clone());
        self.audit.record(&AuditEvent {
            federation_peer_id: Some(grant.federation_peer_id),
            remote_subject: Some(grant.remote_subject.clone()),
            actor: Some(OWNER.to_owned()),
            grant: Some(grant.id),
            object: reason.or_else(|| grant.resource_id.clone()),
            ..AuditEvent::of(action)
        });
    }
}

fn answered(outcome: Result<(StatusCode, Value), Refused>) -> (StatusCode, Value) {
    match outcome {
        Ok((status, data)) => (status, success_body(&data)),
        Err(Refused(status, why)) => (status, failure_body(&why, None)),
    }
}

fn fields<'b, T: Deserialize<'b> + Default>(body: &'b [u8]) -> Result<T, Refused> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    serde_json::from_slice(body)
        .map_err(|error| Refused(StatusCode::BAD_REQUEST, foreign_text(&error.to_string())))
}

/// The name as services have it, by which the gate compares; none where the field is blank.
fn service_name(given: &str) -> Result<Option<String>, Refused> {
    match given.trim() {
        "" => Ok(None),
        name => match name.parse::<ServiceName>() {
            Ok(name) => Ok(Some(name.to_string())),
            Err(error) => Err(Refused(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())),
        },
    }
}

fn unknown(id: &str) -> Refused {
    let id = foreign_text(id);
    Refused(
        StatusCode::NOT_FOUND,
        format!("there is no grant `{id}`; `powernode-satellite grants list` shows all"),
    )
}

fn not_joined() -> Refused {
    Refused(
        StatusCode::CONFLICT,
        "this box has not joined a parent, so there is nobody to give a grant to".to_owned(),
    )
}

fn wrong_method() -> Refused {
    Refused(
        StatusCode::METHOD_NOT_ALLOWED,
        "this method is not allowed here".to_owned(),
    )
}
