//! The contract's interface for children (sections 3, 5 and 8): accept, heartbeat, certificate
//! renewal, trust bundle, service catalog. The same over HTTPS and over a tunnel. Who calls is
//! what the TLS handshake verified, never what a header says.

mod caller;
mod dials;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Body;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tracing::{Span, info, warn};

pub use self::caller::{Caller, CallerCertificate, Standing};
pub use self::dials::RedialFailed;
use super::acceptance::AcceptCall;
use super::dial_back::DialBack;
use super::forwarded::strip_forwarded_identity;
use super::heartbeat::read_heartbeat;
use super::held_grants;
use super::links::{AUTHORITY_RETIRED, Links};
use super::metrics::RequestCounts;
use super::registry::record::PeerRecord;
use super::registry::{AcceptError, HeartbeatError, RefreshError, Registry};
use super::reply::{Reply, ReplyBody};
use super::request_body::read_body;
use super::settings::BridgeSettings;
use crate::audit::{AuditAction, AuditEvent, AuditOutcome};
use crate::base::id::{PeerId, PublicKeyDigest};
use crate::base::limit::{error_chain, foreign_text};
use crate::contract::compatibility::schema_compatibility;
use crate::contract::invitation::CaFingerprint;
use crate::contract::message::HeartbeatResponse;
use crate::contract::peer::PeerStatus;
use crate::contract::{
    ACCEPT_PATH, CERTIFICATE_REFRESH_PATH, HEARTBEAT_PATH, OWN_AUTHORITIES_CAPABILITY, SERVICE_CATALOG_PATH,
    TRUST_BUNDLE_PATH, TUNNEL_DIAL_BACK_PATH, TUNNEL_LEAVE_PATH,
};
use crate::identity::certificate::peer_subject;
use crate::identity::succession::AUTHORITIES_MAX;
use crate::machine::source_rate::{Source, SourceRate};
use crate::process::clock::Clock;
use crate::store::audit_log::AuditLog;

/// The interface.
#[derive(Debug)]
pub struct FederationApi {
    registry: Arc<Registry>,
    links: Arc<Links>,
    clock: Clock,
    settings: watch::Receiver<BridgeSettings>,
    audit: AuditLog,
    rate: Mutex<SourceRate>,
    /// Absent where nothing may be dialled.
    dial_back: Option<DialBack>,
    answered: RequestCounts,
}

impl FederationApi {
    /// On a registry.
    pub fn new(
        registry: Arc<Registry>,
        links: Arc<Links>,
        clock: Clock,
        settings: watch::Receiver<BridgeSettings>,
        audit: AuditLog,
    ) -> Self {
        let rate = SourceRate::new(settings.borrow().config.limits.accepts_per_source_per_minute);
        Self {
            registry,
            links,
            clock,
            settings,
            audit,
            rate: Mutex::new(rate),
            dial_back: None,
            answered: RequestCounts::default(),
        }
    }

    /// What was answered since the start.
    pub const fn answered(&self) -> &RequestCounts {
        &self.answered
    }

    /// The same, and it proves satellites' endpoints.
    #[must_use]
    pub fn with_dial_back(mut self, dial_back: DialBack) -> Self {
        self.dial_back = Some(dial_back);
        self
    }

    /// Answers one request.
    pub async fn handle<B>(self: Arc<Self>, mut request: Request<B>, caller: Caller) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let claims = strip_forwarded_identity(request.headers_mut());
        if claims > 0 {
            warn!(source = %caller.source, claims, "a caller claimed an identity in headers; they were ignored");
        }
        let asked = RequestCounts::kind_of(request.uri().path());
        let reply = Arc::clone(&self).route(request, caller).await;
        self.answered.count(asked, reply.status());
        reply.into_response()
    }

    /// Answers a request about a tunnel's two ends that came through that tunnel.
    pub async fn handle_tunnel<B>(self: Arc<Self>, request: Request<B>, caller: Caller) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        if let Err(refusal) = caller.check_standing(head.uri.path()) {
            return refusal.into_response();
        }
        let body = match read_body(body).await {
            Ok(body) => body,
            Err(refusal) => return refusal.into_response(),
        };
        if head.uri.path() == TUNNEL_DIAL_BACK_PATH {
            let reply = match head.method {
                Method::POST => self.dial_back(&body, caller).await,
                _ => Reply::wrong_method("POST"),
            };
            return reply.into_response();
        }
        let span = Span::current();
        // The registry blocks on the disk.
        let answered = tokio::task::spawn_blocking(move || {
            span.in_scope(|| match self.authenticate(&caller) {
                Ok((peer, _)) => {
                    let (path, now) = (head.uri.path(), self.clock.trusted().now);
                    let asked = (&head.method, path);
                    let reply = match path {
                        TUNNEL_LEAVE_PATH => held_grants::leave(&self.registry, &peer, asked.0, &body, now),
                        _ => held_grants::answer(&self.registry, &peer, asked, &body, now),
                    };
                    let told = held_grants::noted(peer.id, caller.source, path, &body, reply.status());
                    if let Some(told) = told {
                        self.audit.record(&told);
                    }
                    reply
                }
                Err(refusal) => refusal,
            })
        });
        answered
            .await
            .unwrap_or_else(|_| internal_error())
            .into_response()
    }

    async fn route<B>(self: Arc<Self>, request: Request<B>, caller: Caller) -> Reply
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        // Before anything is decided: a refusal that overtakes the request's body is a broken stream to some clients
        // of HTTP/2.
        let body = match read_body(body).await {
            Ok(body) => body,
            Err(refusal) => return refusal,
        };
        let path = head.uri.path();
        let path = path.strip_suffix('/').unwrap_or(path).to_owned();
        let allow = match path.as_str() {
            ACCEPT_PATH | HEARTBEAT_PATH | CERTIFICATE_REFRESH_PATH => Method::POST,
            TRUST_BUNDLE_PATH | SERVICE_CATALOG_PATH => Method::GET,
            other => return Reply::unknown_path(other),
        };
        if head.method != allow {
            return Reply::wrong_method(if allow == Method::GET { "GET" } else { "POST" });
        }
        if let Err(refusal) = caller.check_standing(&path) {
            return refusal;
        }
        if path == ACCEPT_PATH
            && let Err(after) = self.admit_accept(caller.source)
        {
            return Reply::failure(
                StatusCode::TOO_MANY_REQUESTS,
                "too many accepts from this address; wait before the next one",
            )
            .retry_after(after);
        }
        // The registry blocks on the disk.
        let span = Span::current();
        let answered =
            tokio::task::spawn_blocking(move || span.in_scope(|| self.answer(&path, &body, &caller)));
        answered.await.unwrap_or_else(|_| internal_error())
    }

    fn answer(&self, path: &str, body: &[u8], caller: &Caller) -> Reply {
        if path == ACCEPT_PATH {
            return self.accept(body, caller);
        }
        let reply = self.answer_peer(path, body, caller);
        // A heartbeat is a sign of life, one a minute from each peer: the log would hold little else.
        // Who has no certificate is nobody, and could fill the log.
        if path != HEARTBEAT_PATH
            && let Some(peer) = caller
                .certificate
                .as_ref()
                .and_then(|certificate| certificate.peer)
        {
            self.audit
                .record(&noted_request(path, peer, caller.source, reply.status()));
        }
        reply
    }

    fn answer_peer(&self, path: &str, body: &[u8], caller: &Caller) -> Reply {
        let (peer, key) = match self.authenticate(caller) {
            Ok(known) => known,
            Err(refusal) => return refusal,
        };
        if path == HEARTBEAT_PATH {
            return self.heartbeat(&peer, body);
        }
        // A resumed peer whose certificate ended meanwhile has to renew it before it can heartbeat.
        if !peer.status.inbound_allowed() && !caller.is_expired() {
            return unreachable_peer();
        }
        match path {
            CERTIFICATE_REFRESH_PATH => self.refresh(&peer, key, body),
            TRUST_BUNDLE_PATH => self.trust_bundle(),
            SERVICE_CATALOG_PATH => Reply::data(&json!({
                "offerings": [],
                "generated_at": self.clock.trusted().now.to_string(),
            })),
            other => Reply::unknown_path(other),
        }
    }

    fn trust_bundle(&self) -> Reply {
        let authorities = self.registry.authorities();
        Reply::data(&json!({
            "ca_bundle_pem": authorities.anchors().to_pem(),
            "cross_certificates_pem": authorities.cross_pem(),
            "generated_at": self.clock.trusted().now.to_string(),
        }))
    }

    fn accept(&self, body: &[u8], caller: &Caller) -> Reply {
        let grace = self.settings.borrow().config.accept_grace;
        let accepted = AcceptCall::read(body)
            .map_err(AcceptError::Refused)
            .and_then(|call| self.registry.accept(&call, grace, self.clock.trusted().now));
        match accepted {
            Ok(accepted) => {
                info!(peer = %accepted.peer, source = %caller.source, repeated = accepted.repeated, "a peer has accepted");
                if !accepted.repeated {
                    self.audit
                        .record(&of_peer(AuditAction::Joined, accepted.peer, caller.source));
                    self.links.close_replaced(accepted.peer);
                }
                Reply::stored(accepted.answer)
            }
            Err(AcceptError::Refused(refusal)) => {
                info!(source = %caller.source, reason = %refusal, "an accept was refused");
                let status =
                    StatusCode::from_u16(refusal.http_status()).unwrap_or(StatusCode::UNPROCESSABLE_ENTITY);
                Reply::failure(status, &refusal.to_string())
            }
            Err(AcceptError::Store(error)) => stored_badly("an accept", &error),
        }
    }

    /// The peer of a verified certificate that may at least heartbeat.
    fn authenticate(&self, caller: &Caller) -> Result<(PeerRecord, PublicKeyDigest), Reply> {
        let Some(certificate) = &caller.certificate else {
            return Err(Reply::unauthorized("mTLS client certificate required"));
        };
        let peer = match certificate.peer.map(|id| self.registry.peer_by_id(id)) {
            None | Some(Ok(None)) => return Err(unreachable_peer()),
            Some(Ok(Some(peer))) => peer,
            Some(Err(error)) => return Err(stored_badly("a caller", &error)),
        };
        if !peer.status.heartbeat_allowed() {
            return Err(unreachable_peer());
        }
        if !self.registry.is_enrolled(&peer, certificate.key) {
            return Err(Reply::unauthorized(&format!(
                "Client certificate not issued by this peer's CA (expected anchor {}; the certificate's key is none that this peer has enrolled)",
                self.registry.authority().fingerprint()
            )));
        }
        if !self.registry.has_authority(peer.id, &certificate.der) {
            return Err(Reply::unauthorized(&format!(
                "Client certificate not issued by this peer's CA (expected anchor {}; {AUTHORITY_RETIRED})",
                self.registry.authority().fingerprint()
            )));
        }
        Ok((peer, certificate.key))
    }

    fn heartbeat(&self, peer: &PeerRecord, body: &[u8]) -> Reply {
        let sent = match read_heartbeat(body) {
            Ok(sent) => sent,
            Err(error) => return Reply::failure(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        let remote_version = sent
            .platform_version
            .clone()
            .filter(|version| !version.trim().is_empty());
        self.registry
            .peer_anchors()
            .hint(peer.id, &named_authorities(&sent.capabilities));
        match self
            .registry
            .heartbeat(peer.id, &sent.into(), self.clock.trusted().now)
        {
            Ok(taken) => {
                if taken.was != taken.peer.status {
                    info!(peer = %peer.id, from = %taken.was, to = %taken.peer.status, "a heartbeat changed the peer's status");
                }
                if !taken.errors.is_empty() {
                    return Reply::validation(&taken.errors);
                }
                Reply::data(&HeartbeatResponse {
                    status: taken.peer.status,
                    last_heartbeat_at: taken.peer.last_heartbeat_at,
                    our_endpoints: self.settings.borrow().our_endpoints(),
                    schema_compatibility: Some(schema_compatibility(
                        env!("CARGO_PKG_VERSION"),
                        remote_version.as_deref().map(foreign_text).as_deref(),
                    )),
                    trust_anchors: self
                        .registry
                        .authorities()
                        .anchors()
                        .fingerprints()
                        .map(|fingerprint| fingerprint.to_string())
                        .collect(),
                })
            }
            Err(HeartbeatError::UnknownPeer | HeartbeatError::Denied(_)) => unreachable_peer(),
            Err(HeartbeatError::Store(error)) => stored_badly("a heartbeat", &error),
        }
    }

    fn refresh(&self, peer: &PeerRecord, key: PublicKeyDigest, body: &[u8]) -> Reply {
        #[derive(Deserialize)]
        struct RefreshBody {
            #[serde(default)]
            csr_pem: Option<String>,
        }
        let body: RefreshBody = match serde_json::from_slice(body) {
            Ok(body) => body,
            Err(error) => {
                let error = foreign_text(&error.to_string());
                return Reply::failure(
                    StatusCode::BAD_REQUEST,
                    &format!("the request is not the JSON object that a refresh is: {error}"),
                );
            }
        };
        let Some(csr) = body.csr_pem.filter(|csr| !csr.trim().is_empty()) else {
            return Reply::coded(StatusCode::BAD_REQUEST, "PARAMETER_MISSING", "csr_pem required");
        };
        match self
            .registry
            .refresh_certificate(peer.id, key, &csr, self.clock.trusted().now)
        {
            Ok(certificate) => {
                info!(peer = %peer.id, serial = %certificate.serial, not_after = %certificate.not_after, "a peer's certificate was renewed");
                Reply::data(&certificate)
            }
            Err(RefreshError::UnknownPeer) => unreachable_peer(),
            Err(error @ (RefreshError::Csr(_) | RefreshError::CertifiesItself)) => {
                Reply::failure(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string())
            }
            Err(RefreshError::Store(error)) => stored_badly("a renewal", &error),
        }
    }

    fn admit_accept(&self, source: IpAddr) -> Result<(), Duration> {
        let per_minute = self.settings.borrow().config.limits.accepts_per_source_per_minute;
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        rate.set_limit(per_minute);
        rate.admit(Source::of(source), self.clock.now())
    }
}

/// How a request ended, for the audit log.
pub(super) fn outcome_of(status: StatusCode) -> AuditOutcome {
    let words = format!("HTTP {}", status.as_u16());
    if status.is_success() {
        AuditOutcome::Done
    } else if status.is_client_error() {
        AuditOutcome::Refused(words)
    } else {
        AuditOutcome::Failed(words)
    }
}

/// A request of a peer's, and what became of it, for the audit log.
pub(super) fn noted_request(path: &str, peer: PeerId, source: IpAddr, status: StatusCode) -> AuditEvent {
    let action = match path {
        CERTIFICATE_REFRESH_PATH => AuditAction::CertificateRenewed,
        _ => AuditAction::Request,
    };
    AuditEvent {
        object: Some(foreign_text(path)),
        outcome: outcome_of(status),
        ..of_peer(action, peer, source)
    }
}

/// An action of a peer, which is known by the name in its certificates.
pub(super) fn of_peer(action: AuditAction, peer: PeerId, source: IpAddr) -> AuditEvent {
    AuditEvent {
        federation_peer_id: Some(peer),
        remote_subject: Some(peer_subject(peer)),
        source: Some(SocketAddr::new(source, 0)),
        ..AuditEvent::of(action)
    }
}

/// Whether a key is one that the peer has enrolled.
pub fn is_enrolled(peer: &PeerRecord, key: PublicKeyDigest) -> bool {
    peer.certificates.iter().any(|certificate| certificate.key == key)
}

/// What a peer that certifies itself names in its heartbeat.
fn named_authorities(capabilities: &Map<String, Value>) -> Vec<CaFingerprint> {
    let named = capabilities
        .get(OWN_AUTHORITIES_CAPABILITY)
        .and_then(Value::as_array);
    named
        .into_iter()
        .flatten()
        .take(AUTHORITIES_MAX)
        .filter_map(|named| named.as_str()?.parse().ok())
        .collect()
}

/// Whether a peer may hold a tunnel at all: a resumed peer needs one for its first heartbeat.
pub fn may_connect(status: PeerStatus) -> bool {
    status.heartbeat_allowed()
}

fn unreachable_peer() -> Reply {
    Reply::unauthorized("No reachable FederationPeer for mTLS subject")
}

/// What a caller is told when this side is at fault; the log says more.
pub(super) fn internal_error() -> Reply {
    Reply::coded(
        StatusCode::INTERNAL_SERVER_ERROR,
        "INTERNAL_ERROR",
        "the host-bridge could not do this; its log says why. Nothing was changed",
    )
}

/// Logs a fault of the store and words the answer.
pub(super) fn stored_badly(what: &str, error: &(dyn std::error::Error + 'static)) -> Reply {
    let why = error_chain(error);
    tracing::error!(what, error = %why, "the registry could not be read or written");
    internal_error().because(why)
}
