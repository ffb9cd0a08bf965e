//! What operators ask of the bridge (contract section 9), over HTTPS with a bearer token, over
//! the admin socket as a local user, or in the command line's own process while no daemon runs:
//! one function of a request and a known caller, whatever it came over.

mod access;
mod audit;
mod authority;
mod operators;
mod peers;
mod relay;
mod sessions;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper::body::Body;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tracing::info;

pub(super) use self::peers::ProposalFields;
pub(super) use self::relay::{PASSED_ON, copy_headers, passed_back};
use super::access::Access;
use super::federation_api::{internal_error, stored_badly};
use super::forwarded::strip_forwarded_identity;
use super::links::Links;
use super::mcp;
use super::peer_view::{PeerView, Presence};
use super::permission::{Action, NotPermitted, OperatorIdentity, PeerAction, PeerRef};
use super::registry::record::PeerRecord;
use super::registry::{Books, Ledger, Recognised, Registry, RegistryError, visible};
use super::reply::{Reply, ReplyBody};
use super::request_body::read_body;
use super::settings::BridgeSettings;
use crate::audit::{AuditAction, AuditEvent, AuditOutcome};
use crate::base::id::PeerId;
use crate::base::limit::{error_chain, foreign_text};
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::contract::FEDERATION_PEERS_PATH;
use crate::contract::peer::PeerStatus;
use crate::process::clock::Clock;
use crate::store::audit_log::AuditLog;

/// The code of a refusal that asks for a change of this host-bridge's configuration.
pub const NOT_CONFIGURED: &str = "NOT_CONFIGURED";

/// Path of the grants.
pub const ACCESS_GRANTS_PATH: &str = "/api/v1/system/sdwan/access_grants";
/// Path of the health report.
pub const HEALTH_PATH: &str = "/api/v1/system/sdwan/health";
/// Path of the certificate authority's certificate.
pub const CA_PATH: &str = "/api/v1/system/sdwan/ca";
/// Path of the operators.
pub const OPERATORS_PATH: &str = "/api/v1/system/sdwan/operators";
/// Path of the accesses in flight.
pub const SESSIONS_PATH: &str = "/api/v1/system/sdwan/sessions";
/// What the paths of the audit log begin with.
pub const AUDIT_PREFIX: &str = "/api/v1/system/sdwan/audit/";
/// Path of the tools for assistants.
pub const MCP_PATH: &str = "/mcp";
/// What the path of a request to a peer's own interface begins with.
pub const PEER_PREFIX: &str = "/peers/";

/// A caller who has proven who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    /// A user of this machine whom the socket or the file let in.
    Local,
    /// By bearer token.
    Named(OperatorIdentity),
}

static LOCAL: LazyLock<OperatorIdentity> = LazyLock::new(OperatorIdentity::local);

impl Operator {
    /// Who it is, and what they may do.
    pub fn identity(&self) -> &OperatorIdentity {
        match self {
            Self::Local => &LOCAL,
            Self::Named(identity) => identity,
        }
    }
}

impl std::fmt::Display for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.identity().name)
    }
}

/// Where a request came from, as its connection knows it; among the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct RequestSource(pub IpAddr);

/// The interface.
#[derive(Debug)]
pub struct OperatorApi {
    pub(super) books: Books,
    /// None in a command line's own process: nobody is connected there.
    links: Option<Arc<Links>>,
    /// None where `links` is.
    access: Option<Arc<Access>>,
    clock: Clock,
    settings: watch::Receiver<BridgeSettings>,
    audit: AuditLog,
}

/// One call after its head was read.
struct Call<'a> {
    method: &'a Method,
    /// The path's parts below its resource, without empty ones.
    rest: Vec<&'a str>,
    body: &'a [u8],
    operator: &'a Operator,
}

impl OperatorApi {
    /// On what the host-bridge keeps; with the live tunnels in a daemon.
    pub const fn new(
        books: Books,
        links: Option<Arc<Links>>,
        clock: Clock,
        settings: watch::Receiver<BridgeSettings>,
        audit: AuditLog,
    ) -> Self {
        Self {
            books,
            links,
            access: None,
            clock,
            settings,
            audit,
        }
    }

    /// With the accesses in flight.
    #[must_use]
    pub fn with_access(self, access: Arc<Access>) -> Self {
        Self {
            access: Some(access),
            ..self
        }
    }

    /// Whether a path is this interface's.
    pub fn serves(path: &str) -> bool {
        path.starts_with("/api/v1/system/sdwan/") || path.starts_with(PEER_PREFIX) || path == MCP_PATH
    }

    /// The operator whose bearer token a request from `source` carries, or the refusal.
    pub async fn authorize(&self, headers: &HeaderMap, source: IpAddr) -> Result<Operator, Reply> {
        let bearer = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| Secret::from_text(token.trim().to_owned()));
        let Some(token) = bearer else {
            return Err(Reply::unauthorized(
                "an operator token is required: Authorization: Bearer <token>",
            ));
        };
        let (ledger, now) = (Arc::clone(self.ledger()), self.now());
        match tokio::task::spawn_blocking(move || ledger.recognise(token.expose(), now)).await {
            Ok(Ok(Recognised::Known(identity))) => Ok(Operator::Named(identity)),
            Ok(Ok(Recognised::Expired { name, at })) => Err(Reply::unauthorized(&format!(
                "the account of {name} has ended at {at}; an admin can extend it: operators set {name} --expires 90d"
            ))),
            Ok(Ok(Recognised::Nobody)) => {
                let access = self.access.as_ref();
                let too_many = access.and_then(|access| access.unknown_token(source));
                Err(too_many.unwrap_or_else(|| Reply::unauthorized("the operator token is not known")))
            }
            Ok(Err(error)) => Err(stored_badly("an operator", &error)),
            Err(_) => Err(internal_error()),
        }
    }

    /// Answers one request of a known caller.
    pub async fn handle<B>(
        self: Arc<Self>,
        mut request: Request<B>,
        operator: Operator,
    ) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        strip_forwarded_identity(request.headers_mut());
        let (head, body) = request.into_parts();
        if !Self::serves(head.uri.path()) {
            return Reply::unknown_path(head.uri.path()).into_response();
        }
        let body = match read_body(body).await {
            Ok(body) => body,
            Err(refusal) => return refusal.into_response(),
        };
        if head.uri.path().starts_with(PEER_PREFIX) {
            return self.relay(head, body, &operator).await;
        }
        // The registry blocks on the disk.
        let answered = tokio::task::spawn_blocking(move || {
            let reply = self.dispatch(&head.method, &head.uri, &body, &operator);
            match operator {
                Operator::Local => reply.for_this_machine(),
                Operator::Named(_) => reply,
            }
        });
        answered
            .await
            .unwrap_or_else(|_| internal_error())
            .into_response()
    }

    /// Answers a request to anything but a peer's own interface. Blocks on the disk.
    fn dispatch(&self, method: &Method, uri: &Uri, body: &[u8], operator: &Operator) -> Reply {
        let path = uri.path();
        let below = |base: &str| {
            let rest = path.strip_prefix(base)?;
            (rest.is_empty() || rest.starts_with('/')).then(|| {
                rest.split('/')
                    .filter(|part| !part.is_empty())
                    .collect::<Vec<_>>()
            })
        };
        let call = |rest| Call {
            method,
            rest,
            body,
            operator,
        };
        let reply = if let Some(rest) = below(FEDERATION_PEERS_PATH) {
            self.peers(&call(rest))
        } else if let Some(rest) = below(ACCESS_GRANTS_PATH) {
            self.grants(&call(rest))
        } else if let Some(rest) = below(OPERATORS_PATH) {
            self.operators(&call(rest))
        } else if let Some(rest) = below(SESSIONS_PATH) {
            self.sessions(&call(rest))
        } else if path == HEALTH_PATH {
            match *method {
                Method::GET => self.health(operator),
                _ => Ok(Reply::wrong_method("GET")),
            }
        } else if let Some(rest) = below(CA_PATH) {
            self.authority(&call(rest))
        } else if let Some(what) = path.strip_prefix(AUDIT_PREFIX) {
            match *method {
                Method::GET => self.audit(operator, what, uri.query().unwrap_or_default()),
                _ => Ok(Reply::wrong_method("GET")),
            }
        } else if path == MCP_PATH {
            match *method {
                Method::POST => Ok(mcp::answer(self, body, operator)),
                _ => Ok(Reply::wrong_method("POST")),
            }
        } else {
            Ok(Reply::unknown_path(path))
        };
        reply.unwrap_or_else(|refused| refused)
    }

    /// What is kept, whoever the parent is.
    fn ledger(&self) -> &Arc<Ledger> {
        self.books.ledger()
    }

    /// The registry, where this host-bridge is the parent.
    pub(in crate::bridge) fn registry(&self) -> Result<&Arc<Registry>, RegistryError> {
        self.books.registry()
    }

    /// The same with the refusal as the answer.
    fn own(&self) -> Result<&Arc<Registry>, Reply> {
        self.registry().map_err(|error| refused(&error))
    }

    /// Every peer, its status and the freshness of its heartbeat at a glance.
    fn health(&self, operator: &Operator) -> Result<Reply, Reply> {
        self.permit(operator, &Action::SeeHealth)?;
        let now = self.now();
        let stale_after = self.settings.borrow().config.stale_after;
        let peers = self.visible_peers(operator)?;
        let connected = |peer: PeerId| {
            self.links
                .as_ref()
                .is_some_and(|links| links.view(peer).is_some())
        };
        let mut by_status = Map::new();
        for status in PeerStatus::ALL {
            let count = peers.iter().filter(|peer| peer.status == *status).count();
            by_status.insert(status.to_string(), json!(count));
        }
        let total = peers.len();
        let rows: Vec<Value> = peers
            .iter()
            .filter(|peer| peer.status != PeerStatus::Revoked)
            .map(|peer| {
                let age = peer.last_heartbeat_at.map(|heard| now.since(heard));
                json!({
                    "id": peer.id,
                    "name": peer.name,
                    "status": peer.status,
                    "last_heartbeat_at": peer.last_heartbeat_at.map(|heard| heard.to_string()),
                    "heartbeat_age_seconds": age.map(|age| age.as_secs()),
                    "heartbeat_fresh": age.is_some_and(|age| age <= stale_after),
                    "connected": connected(peer.id),
                })
            })
            .collect();
        let degraded = peers.iter().any(|peer| peer.status == PeerStatus::Degraded);
        let registry = self.books.registry().ok();
        let authority = registry.map(|registry| registry.authority().fingerprint().to_string());
        let platform = self.settings.borrow().config.parent.platform().map(|platform| {
            json!({
                "url": platform.url.to_string(),
                "found": self.ledger().roll().and_then(|roll| roll.platform()),
            })
        });
        Ok(Reply::data(&json!({
            "status": if degraded { "degraded" } else { "ok" },
            "version": env!("CARGO_PKG_VERSION"),
            "daemon_running": self.links.is_some(),
            "time": now.to_string(),
            "connected": peers.iter().filter(|peer| connected(peer.id)).count(),
            "joining": self.links.as_ref().map_or(0, |links| links.bootstrap_len()),
            "peer_count": total,
            "peers_by_status": by_status,
            "ca_fingerprint": authority,
            "platform": platform,
            "store_sealed": self.ledger().is_sealed(),
            "store_bytes": self.ledger().size_bytes(),
            "store_failing": self.ledger().failure().is_some(),
            "peers": rows,
        })))
    }

    /// Whether an operator may; a refusal is noted in the audit log.
    pub(in crate::bridge) fn check(
        &self,
        operator: &Operator,
        action: &Action<'_>,
    ) -> Result<(), NotPermitted> {
        operator.identity().may(action).inspect_err(|why| {
            info!(%operator, doing = action.doing(), reason = %why, "an operator was refused");
            self.audit.record(&AuditEvent {
                federation_peer_id: match action.peer() {
                    Some(PeerRef::Known { id, .. }) => Some(*id),
                    _ => None,
                },
                actor: Some(operator.to_string()),
                object: Some(action.doing().to_owned()),
                outcome: AuditOutcome::Refused(why.to_string()),
                ..AuditEvent::of(AuditAction::OperatorRefused)
            });
        })
    }

    /// The same with 403 as the answer.
    fn permit(&self, operator: &Operator, action: &Action<'_>) -> Result<(), Reply> {
        self.check(operator, action).map_err(|why| forbidden(&why))
    }

    /// A peer that an operator names and may do this with. Who may not is told so whether there is such
    /// a peer or not, and near names are those that the operator sees.
    fn peer_for(&self, operator: &Operator, asked: &str, action: PeerAction) -> Result<PeerRecord, Reply> {
        match self.ledger().peer(asked) {
            Ok(peer) => {
                self.permit(operator, &Action::OnPeer(action, (&peer).into()))?;
                Ok(peer)
            }
            Err(RegistryError::UnknownPeer { asked: shown, near }) => {
                self.permit(operator, &Action::OnPeer(action, PeerRef::Called(asked)))?;
                let near = near
                    .into_iter()
                    .filter(|name| operator.identity().sees(PeerRef::Called(name)))
                    .collect();
                Err(refused(&RegistryError::UnknownPeer { asked: shown, near }))
            }
            Err(error) => Err(refused(&error)),
        }
    }

    /// The peers within an operator's limit.
    fn visible_peers(&self, operator: &Operator) -> Result<Vec<PeerRecord>, Reply> {
        let mut peers = self
            .ledger()
            .peers()
            .map_err(|error| stored_badly("the peers", &error))?;
        peers.retain(|peer| operator.identity().sees(peer.into()));
        Ok(peers)
    }

    /// Their ids.
    fn visible_ids(&self, operator: &Operator) -> Result<BTreeSet<PeerId>, Reply> {
        let peers = self
            .ledger()
            .peers()
            .map_err(|error| stored_badly("the peers", &error))?;
        Ok(visible(operator.identity(), &peers))
    }

    fn view(&self, peer: PeerRecord) -> PeerView {
        let links = self.links.as_ref();
        let presence = links.map_or_else(Presence::default, |links| Presence {
            tunnel: links.view(peer.id),
            turned_away: links.why_turned_away(peer.id),
        });
        let standing = self.ledger().roll().and_then(|roll| roll.standing(peer.id));
        PeerView::new(peer, presence, standing, self.now())
    }

    /// Notes a change that an operator made, in the program's log and in the audit log.
    fn note(&self, operator: &Operator, action: AuditAction, peer: Option<PeerId>, on: &str) {
        info!(%operator, what = action.word(), on, "an operator made a change");
        self.audit.record(&AuditEvent {
            federation_peer_id: peer,
            actor: Some(operator.to_string()),
            object: Some(on.to_owned()),
            ..AuditEvent::of(action)
        });
    }

    fn now(&self) -> UnixTime {
        self.clock.trusted().now
    }
}

/// The fields of a request; an empty body has none.
fn fields<T: DeserializeOwned>(body: &[u8]) -> Result<T, Reply> {
    let body = if body.iter().all(u8::is_ascii_whitespace) {
        b"{}"
    } else {
        body
    };
    serde_json::from_slice(body).map_err(|error| {
        Reply::failure(
            StatusCode::BAD_REQUEST,
            &format!("the request cannot be read: {}", foreign_text(&error.to_string())),
        )
    })
}

/// 403, and what it would take.
fn forbidden(why: &NotPermitted) -> Reply {
    Reply::coded(StatusCode::FORBIDDEN, "FORBIDDEN", &why.to_string())
}

/// The registry's refusal as an answer.
fn refused(error: &RegistryError) -> Reply {
    match error {
        RegistryError::Store(source) => stored_badly("the registry", source),
        RegistryError::ServerCertificate(_) => stored_badly("the server's certificate", error),
        other => Reply::failure(
            StatusCode::from_u16(other.http_status()).unwrap_or(StatusCode::UNPROCESSABLE_ENTITY),
            &error_chain(other),
        ),
    }
}
