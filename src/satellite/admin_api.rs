//! The satellite's admin socket: status, join, leave, services, grants and the audit log for the command
//! line, and metrics, over HTTP on a Unix socket.
//! Who may connect is decided by the socket's directory and by the caller's user id.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::driver::{CancelRejoinError, DriverHandle, LeaveError};
use super::grants::admin::{EMANCIPATE_PATH, GRANTS_PATH, GrantDesk, ReasonFields};
use super::own_authority::{AuthorityError, AuthorityWish};
use super::services::{self, SERVICES_PATH, Services};
use crate::base::limit::{JSON_BODY_MAX_BYTES, error_chain};
use crate::base::time::UnixTime;
use crate::contract::invitation::{ContractVersion, HostPort, Invitation, ParentTrust, ParentUrl};
use crate::contract::message::{failure_body, success_body};
use crate::contract::peer::SpawnMode;
use crate::contract::token::{AcceptanceToken, InvalidToken};
use crate::machine::child::{Rejoin, RejoinMode, WorkingMembership};
use crate::machine::membership::{Operator, StoredInvitation};
use crate::machine::own_authority::Retirement;
use crate::machine::past::FormerGrants;
use crate::process::admin_socket::{AdminSocket, Caller, STRANGER_REFUSED};
use crate::process::blocking;
use crate::process::http_server;
use crate::process::observation::{self, Observed};
use crate::process::supervisor::TaskScope;
use crate::store::audit_log::reading::{self, AskError};
use crate::store::database::Database;

/// Path of the status report.
pub const STATUS_PATH: &str = "/v1/status";
/// Path of the join command.
pub const JOIN_PATH: &str = "/v1/join";
/// Path of the leave command.
pub const LEAVE_PATH: &str = "/v1/leave";
/// Path of the command that gives a rejoin up.
pub const CANCEL_REJOIN_PATH: &str = "/v1/rejoin/cancel";
/// Path of the change to a new authority of the box's own.
pub const ROTATE_AUTHORITY_PATH: &str = "/v1/authority/rotate";
/// Path of the end of the authority before.
pub const RETIRE_AUTHORITY_PATH: &str = "/v1/authority/retire";
/// What the paths of the audit log begin with.
pub const AUDIT_PREFIX: &str = "/v1/audit/";

/// Connections to the admin socket at a time; each is one command line.
const CONNECTIONS_MAX: usize = 16;

/// A join as it travels over the admin socket. The token is in clear in it: it never leaves the box,
/// and the socket is for the daemon's user and root alone.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// Whom to join.
    pub parent_url: ParentUrl,
    /// Its host-bridges.
    pub bridges: Vec<HostPort>,
    /// By what it is known.
    pub trust: ParentTrust,
    /// Who runs this box.
    pub operator: Operator,
    /// The single-use credential.
    pub token: Zeroizing<String>,
    /// The parent's time when it invited, seconds since 1970.
    pub minted_at: Option<UnixTime>,
    /// How the parent means to treat this child.
    #[serde(default = "managed_child")]
    pub spawn_mode: SpawnMode,
    /// Set where a membership is to be replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejoin: Option<RejoinRequest>,
}

/// How a membership is to be replaced.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RejoinRequest {
    /// What becomes of its grants.
    pub grants: FormerGrants,
    /// Whether one that works is replaced, too.
    pub force: bool,
    /// Whether the token came without a word on how the parent treats this child.
    #[serde(default)]
    pub mode_as_before: bool,
}

impl From<Rejoin> for RejoinRequest {
    fn from(rejoin: Rejoin) -> Self {
        Self {
            grants: rejoin.grants,
            force: rejoin.working == WorkingMembership::Replace,
            mode_as_before: rejoin.mode == RejoinMode::AsBefore,
        }
    }
}

impl From<RejoinRequest> for Rejoin {
    fn from(asked: RejoinRequest) -> Self {
        let working = if asked.force {
            WorkingMembership::Replace
        } else {
            WorkingMembership::Keep
        };
        let mode = if asked.mode_as_before {
            RejoinMode::AsBefore
        } else {
            RejoinMode::Told
        };
        Self {
            grants: asked.grants,
            working,
            mode,
        }
    }
}

const fn managed_child() -> SpawnMode {
    SpawnMode::ManagedChild
}

impl JoinRequest {
    /// What the command line sends.
    pub fn of(invitation: &StoredInvitation, rejoin: Option<Rejoin>) -> Option<Self> {
        Some(Self {
            parent_url: invitation.parent.url.clone(),
            bridges: invitation.parent.bridges.clone(),
            trust: invitation.parent.trust.clone(),
            operator: invitation.operator.clone(),
            token: Zeroizing::new(invitation.token.expose_text()?.to_owned()),
            minted_at: invitation.minted_at,
            spawn_mode: invitation.spawn_mode,
            rejoin: rejoin.map(RejoinRequest::from),
        })
    }

    fn into_invitation(self) -> Result<StoredInvitation, InvalidToken> {
        let invitation = Invitation {
            parent_url: self.parent_url,
            bridges: self.bridges,
            token: AcceptanceToken::parse(self.token.to_string())?,
            trust: self.trust,
            spawn_mode: self.spawn_mode,
            parent_peer_id: None,
            contract_version: ContractVersion::CURRENT,
            minted_at: self.minted_at,
        };
        Ok(StoredInvitation::new(invitation, self.operator))
    }
}

/// What the commands are about.
#[derive(Clone)]
pub struct Parts {
    /// The driver.
    pub handle: DriverHandle,
    /// What is published.
    pub services: Services,
    /// The grants.
    pub desk: GrantDesk,
    /// The store, for the audit log.
    pub database: Database,
    /// What monitoring sees.
    pub observed: Arc<dyn Observed>,
}

/// Serves until the scope is cancelled.
pub async fn serve(socket: AdminSocket, scope: TaskScope, parts: Parts) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let (stream, caller) = socket.accept().await;
        let parts = parts.clone();
        scope.spawn_until_cancelled("admin connection", async move {
            let answer = move |request| -> http_server::Answer {
                let parts = parts.clone();
                Box::pin(async move {
                    match caller {
                        Caller::Admitted => answer(request, parts).await,
                        Caller::Stranger => refuse(StatusCode::FORBIDDEN, STRANGER_REFUSED),
                    }
                })
            };
            http_server::serve(Box::new(stream), Box::new(answer)).await;
            drop(place);
        });
    }
}

async fn answer(request: Request<Incoming>, parts: Parts) -> Response<Full<Bytes>> {
    let Parts {
        handle,
        services,
        desk,
        database,
        observed,
    } = parts;
    if let Some(answered) = observation::answer(observed, request.method(), request.uri().path()).await {
        return answered;
    }
    if let Some(what) = request.uri().path().strip_prefix(AUDIT_PREFIX) {
        let (what, query) = (
            what.to_owned(),
            request.uri().query().unwrap_or_default().to_owned(),
        );
        return match *request.method() {
            Method::GET => audit(database, what, query).await,
            _ => refuse(
                StatusCode::METHOD_NOT_ALLOWED,
                "the audit log can be read, nothing else",
            ),
        };
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET, STATUS_PATH) => {
            let report = handle.status.borrow().clone();
            reply(StatusCode::OK, &success_body(&report))
        }
        (&Method::POST, JOIN_PATH) => join(request, &handle).await,
        (&Method::POST, LEAVE_PATH) => leave(request, &handle).await,
        (&Method::POST, CANCEL_REJOIN_PATH) => cancel_rejoin(&handle).await,
        (&Method::POST, ROTATE_AUTHORITY_PATH) => authority(AuthorityWish::Rotate, &handle).await,
        (&Method::POST, RETIRE_AUTHORITY_PATH) => retire_authority(request, &handle).await,
        (_, path) if is_below(path, GRANTS_PATH) || path == EMANCIPATE_PATH => {
            grants(request, &handle, desk).await
        }
        (_, path) if is_below(path, SERVICES_PATH) => {
            let (head, body) = request.into_parts();
            match read_body(body).await {
                Ok(body) => {
                    let (status, answer) =
                        services::admin::answer(&head.method, head.uri.path(), &body, &services).await;
                    reply(status, &answer)
                }
                Err(refused) => refused,
            }
        }
        (
            _,
            STATUS_PATH
            | JOIN_PATH
            | LEAVE_PATH
            | CANCEL_REJOIN_PATH
            | ROTATE_AUTHORITY_PATH
            | RETIRE_AUTHORITY_PATH,
        ) => refuse(StatusCode::METHOD_NOT_ALLOWED, "this method is not allowed here"),
        _ => refuse(
            StatusCode::NOT_FOUND,
            "no such resource; known are /v1/status, /v1/join, /v1/rejoin/cancel, /v1/leave, /v1/services, /v1/grants, \
             /v1/emancipate, /v1/authority/rotate, /v1/authority/retire, /v1/audit/…, /metrics, /healthz and /readyz",
        ),
    }
}

async fn grants(
    request: Request<Incoming>,
    handle: &DriverHandle,
    mut desk: GrantDesk,
) -> Response<Full<Bytes>> {
    let (now, joined) = {
        let report = handle.status.borrow();
        (report.clock.trusted, report.peer.as_ref().map(|peer| peer.id))
    };
    desk.peer = joined;
    let (head, body) = request.into_parts();
    match read_body(body).await {
        Ok(body) => {
            let (status, answer) = desk.answer(&head.method, head.uri.path(), &body, now).await;
            reply(status, &answer)
        }
        Err(refused) => refused,
    }
}

async fn leave(request: Request<Incoming>, handle: &DriverHandle) -> Response<Full<Bytes>> {
    let body = match read_body(request.into_body()).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let Ok(asked) = serde_json::from_slice::<ReasonFields>(&body) else {
        return refuse(
            StatusCode::BAD_REQUEST,
            "the request is not what this daemon's version understands",
        );
    };
    match handle.leave(asked.reason).await {
        Ok(Ok(departure)) => reply(StatusCode::OK, &success_body(&departure)),
        Ok(Err(error @ LeaveError::NotJoined)) => refuse(StatusCode::CONFLICT, &error.to_string()),
        Ok(Err(error @ LeaveError::Save(_))) => {
            refuse(StatusCode::INTERNAL_SERVER_ERROR, &error_chain(&error))
        }
        Err(stopping) => refuse(StatusCode::SERVICE_UNAVAILABLE, &stopping.to_string()),
    }
}

async fn cancel_rejoin(handle: &DriverHandle) -> Response<Full<Bytes>> {
    match handle.cancel_rejoin().await {
        Ok(Ok(cancelled)) => reply(StatusCode::OK, &success_body(&cancelled)),
        Ok(Err(error @ CancelRejoinError::Refused(_))) => refuse(StatusCode::CONFLICT, &error.to_string()),
        Ok(Err(error @ CancelRejoinError::Save(_))) => {
            refuse(StatusCode::INTERNAL_SERVER_ERROR, &error_chain(&error))
        }
        Err(stopping) => refuse(StatusCode::SERVICE_UNAVAILABLE, &stopping.to_string()),
    }
}

/// How the authority of before is to end.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetireFields {
    /// Though the parent has not fetched the new one.
    #[serde(default)]
    pub force: bool,
}

impl From<RetireFields> for AuthorityWish {
    fn from(asked: RetireFields) -> Self {
        Self::Retire(if asked.force {
            Retirement::Forced
        } else {
            Retirement::InTime
        })
    }
}

async fn retire_authority(request: Request<Incoming>, handle: &DriverHandle) -> Response<Full<Bytes>> {
    let body = match read_body(request.into_body()).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let Ok(asked) = serde_json::from_slice::<RetireFields>(&body) else {
        return refuse(
            StatusCode::BAD_REQUEST,
            "the request is not what this daemon's version understands",
        );
    };
    authority(asked.into(), handle).await
}

async fn authority(wish: AuthorityWish, handle: &DriverHandle) -> Response<Full<Bytes>> {
    match handle.authority(wish).await {
        Ok(Ok(report)) => reply(StatusCode::OK, &success_body(&report)),
        Ok(Err(error @ (AuthorityError::Make(_) | AuthorityError::Store(_)))) => {
            refuse(StatusCode::INTERNAL_SERVER_ERROR, &error_chain(&error))
        }
        Ok(Err(error)) => refuse(StatusCode::CONFLICT, &error.to_string()),
        Err(stopping) => refuse(StatusCode::SERVICE_UNAVAILABLE, &stopping.to_string()),
    }
}

async fn audit(database: Database, what: String, query: String) -> Response<Full<Bytes>> {
    let asked = move || reading::answer(&database, &what, &query, |_| true);
    match blocking::start(asked).await {
        Ok(Ok(data)) => reply(StatusCode::OK, &success_body(&data)),
        Ok(Err(error)) => refuse(
            match &error {
                AskError::Unknown(_) => StatusCode::NOT_FOUND,
                AskError::Query(_) | AskError::Pin(_) => StatusCode::BAD_REQUEST,
                AskError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
            &error_chain(&error),
        ),
        Err(_) => refuse(StatusCode::SERVICE_UNAVAILABLE, "the satellite is stopping"),
    }
}

async fn join(request: Request<Incoming>, handle: &DriverHandle) -> Response<Full<Bytes>> {
    let body = match read_body(request.into_body()).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let Ok(request) = serde_json::from_slice::<JoinRequest>(&body) else {
        return refuse(
            StatusCode::BAD_REQUEST,
            "the join request is not what this daemon's version understands",
        );
    };
    let rejoin = request.rejoin.map(Rejoin::from);
    let invitation = match request.into_invitation() {
        Ok(invitation) => invitation,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match handle.join_as(invitation, rejoin).await {
        Ok(Ok(())) => reply(StatusCode::ACCEPTED, &success_body(&"stored")),
        Ok(Err(error)) => refuse(StatusCode::CONFLICT, &error_chain(&error)),
        Err(stopping) => refuse(StatusCode::SERVICE_UNAVAILABLE, &stopping.to_string()),
    }
}

fn is_below(path: &str, resource: &str) -> bool {
    path.strip_prefix(resource)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

async fn read_body(body: Incoming) -> Result<Bytes, Response<Full<Bytes>>> {
    match Limited::new(body, JSON_BODY_MAX_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, &error.to_string())),
    }
}

fn refuse(status: StatusCode, error: &str) -> Response<Full<Bytes>> {
    reply(status, &failure_body(error, None))
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response
}
