//! What a satellite answers to its parent: the child's side of the federation API (contract section
//! 8). A function of a request and of a caller whom the transport has verified, so that it is the
//! same through the tunnel and over a listener. Nothing of the box can be reached here but these
//! answers; whoever acts needs a grant, and every request is noted in the audit log.

mod caller;
mod catalog;
mod reading;
mod refusal;
mod resources;
mod subscriptions;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

pub use caller::{ApiCaller, InvalidClaim};
pub use catalog::{Catalog, NoOfferings, Offered};
use refusal::Refusal;

use super::grants::courier::Trouble;
use super::grants::{GrantBook, GrantsReport};
use super::parent_client::RELEASE;
use crate::audit::{AuditAction, AuditEvent, AuditOutcome};
use crate::base::id::{PeerId, TraceId};
use crate::base::limit::foreign_text;
use crate::base::time::UnixTime;
use crate::contract::compatibility::schema_compatibility;
use crate::contract::message::{HeartbeatRequest, HeartbeatResponse, TrustBundle, success_body};
use crate::contract::peer::PeerStatus;
use crate::contract::{
    HEARTBEAT_PATH, RESOURCES_PATH, SERVICE_CATALOG_PATH, SUBSCRIPTIONS_PATH, TRUST_BUNDLE_PATH,
};
use crate::grant::Permit;
use crate::process::clock::Clock;
use crate::store::audit_log::AuditLog;

/// What the answers are made of, the same for all tunnels.
#[derive(Debug)]
pub struct Surroundings {
    /// The grants by which callers act.
    pub grants: GrantBook,
    /// What is published.
    pub catalog: Arc<dyn Catalog>,
    /// Where each request is noted.
    pub audit: AuditLog,
    /// For the times in answers and the ends of grants.
    pub clock: Clock,
    /// When the parent's own heartbeat last came.
    pub parent_heard: watch::Sender<Option<UnixTime>>,
    /// What verifies this box, or its parent, and is served for it.
    pub trust: watch::Sender<TrustBundle>,
    /// The authorities that the parent has fetched last, until somebody looks.
    pub trust_fetched: watch::Sender<Option<String>>,
    /// What stands in the way of handing grants over.
    pub handover_trouble: Arc<watch::Sender<Trouble>>,
}

impl Surroundings {
    /// With the present grants and catalog.
    pub fn new(grants: GrantBook, catalog: Arc<dyn Catalog>, audit: AuditLog, clock: Clock) -> Self {
        Self {
            grants,
            catalog,
            audit,
            clock,
            parent_heard: watch::channel(None).0,
            trust: watch::channel(TrustBundle::default()).0,
            trust_fetched: watch::channel(None).0,
            handover_trouble: Arc::new(watch::channel(None).0),
        }
    }

    /// The grants as the status tells them.
    pub fn grants_report(&self, peer: Option<PeerId>) -> GrantsReport {
        let now = self.clock.trusted().now;
        GrantsReport {
            trouble: self.handover_trouble.borrow().clone(),
            parent_heard_at: *self.parent_heard.borrow(),
            ..GrantsReport::of(&self.grants.all(), peer, now)
        }
    }
}

/// The interface as one tunnel or listener serves it.
#[derive(Debug, Clone)]
pub struct FederationApi {
    /// What it answers with.
    pub surroundings: Arc<Surroundings>,
}

/// An answer before it is bytes.
struct Answered {
    status: StatusCode,
    data: Value,
    /// By what it was let through, where a grant was needed.
    permit: Option<Permit>,
}

impl Answered {
    const fn ok(data: Value) -> Self {
        Self {
            status: StatusCode::OK,
            data,
            permit: None,
        }
    }
}

/// One request but for its body, which is not read yet.
struct Call<'a> {
    method: &'a Method,
    path: &'a str,
    headers: &'a HeaderMap,
    caller: &'a ApiCaller,
    now: UnixTime,
}

impl Call<'_> {
    fn authorization(&self) -> Option<&str> {
        self.headers.get(AUTHORIZATION)?.to_str().ok()
    }

    fn expect(&self, method: &Method, allow: &'static str) -> Result<(), Refusal> {
        if self.method == method {
            Ok(())
        } else {
            Err(Refusal::Method(allow))
        }
    }
}

impl FederationApi {
    /// Answers one request that came through a tunnel, from whom the host-bridge at its other end
    /// says. `peer` is the peering that the tunnel was opened for.
    pub async fn answer_bridge<B>(
        &self,
        request: Request<B>,
        peer: Option<PeerId>,
        trace: TraceId,
    ) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let caller = peer
            .ok_or(Refusal::NotJoined)
            .and_then(|peer| ApiCaller::through_bridge(peer, request.headers()).map_err(Refusal::Claim));
        match caller {
            Ok(caller) => self.answer(request, &caller, Some(trace)).await,
            Err(refusal) => reply(refusal.status(), &refusal.body()),
        }
    }

    /// Answers one request of a caller whose certificate was verified, and notes it.
    pub async fn answer<B>(
        &self,
        request: Request<B>,
        caller: &ApiCaller,
        trace: Option<TraceId>,
    ) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let path = match head.uri.path().strip_suffix('/') {
            None | Some("") => head.uri.path(),
            Some(path) => path,
        };
        let call = Call {
            method: &head.method,
            path,
            headers: &head.headers,
            caller,
            now: self.surroundings.clock.trusted().now,
        };
        // Also where the caller does not wait for the answer.
        let mut noted = self.surroundings.audit.begin(AuditEvent {
            federation_peer_id: Some(caller.peer),
            actor: caller.subject.clone(),
            object: Some(format!("{} {}", head.method, foreign_text(path))),
            // A proxy tells the address alone.
            source: caller.source.map(|source| SocketAddr::new(source, 0)),
            trace,
            ..AuditEvent::of(AuditAction::Request)
        });
        let answered = self.route(&call, body).await;
        if path == HEARTBEAT_PATH && answered.is_ok() {
            // One a minute says nothing of what was done here.
            noted.pass_over();
        } else {
            settle(&mut noted, &answered);
            drop(noted);
        }
        match answered {
            Ok(answered) => reply(answered.status, &success_body(&answered.data)),
            Err(refusal) => {
                let mut response = reply(refusal.status(), &refusal.body());
                if let Refusal::Method(allow) = refusal {
                    response
                        .headers_mut()
                        .insert(ALLOW, HeaderValue::from_static(allow));
                }
                response
            }
        }
    }

    async fn route<B>(&self, call: &Call<'_>, body: B) -> Result<Answered, Refusal>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match call.path {
            SERVICE_CATALOG_PATH => {
                call.expect(&Method::GET, "GET")?;
                Ok(Answered::ok(json!({
                    "offerings": self.surroundings.catalog.offerings(),
                    "generated_at": call.now.to_string(),
                })))
            }
            TRUST_BUNDLE_PATH => {
                call.expect(&Method::GET, "GET")?;
                Ok(Answered::ok(self.trust_bundle(call)))
            }
            HEARTBEAT_PATH => {
                call.expect(&Method::POST, "POST")?;
                self.parents_heartbeat(call, body).await
            }
            SUBSCRIPTIONS_PATH => {
                call.expect(&Method::POST, "POST")?;
                self.subscribe(call, body).await
            }
            path => {
                let below = |base: &str| path.strip_prefix(base)?.strip_prefix('/');
                if let Some(resource) = below(RESOURCES_PATH) {
                    call.expect(&Method::GET, "GET")?;
                    self.resource(resource, call)
                } else if let Some(grant) = below(SUBSCRIPTIONS_PATH) {
                    call.expect(&Method::DELETE, "DELETE")?;
                    self.unsubscribe(grant, call).await
                } else {
                    Err(Refusal::NotFound(format!(
                        "{} is not served by this satellite",
                        foreign_text(path)
                    )))
                }
            }
        }
    }

    fn trust_bundle(&self, call: &Call<'_>) -> Value {
        let TrustBundle {
            ca_bundle_pem,
            cross_certificates_pem,
        } = self.surroundings.trust.borrow().clone();
        let mut data = json!({
            "ca_bundle_pem": ca_bundle_pem,
            "generated_at": call.now.to_string(),
        });
        if let Some(cross) = cross_certificates_pem {
            data["cross_certificates_pem"] = cross.into();
        }
        // A person who looks at it leaves the parent as it is.
        if call.caller.subject.is_none() {
            self.surroundings.trust_fetched.send_replace(Some(ca_bundle_pem));
        }
        data
    }

    async fn parents_heartbeat<B>(&self, call: &Call<'_>, body: B) -> Result<Answered, Refusal>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let sent: HeartbeatRequest = reading::fields(body).await?;
        self.surroundings.parent_heard.send_replace(Some(call.now));
        let version = sent.platform_version.as_deref().map(foreign_text);
        let version = version.filter(|version| !version.trim().is_empty());
        Ok(Answered::ok(json!(HeartbeatResponse {
            status: PeerStatus::Active,
            last_heartbeat_at: Some(call.now),
            our_endpoints: Vec::new(),
            schema_compatibility: Some(schema_compatibility(RELEASE, version.as_deref())),
            trust_anchors: Vec::new(),
        })))
    }
}

/// What has become of a request.
fn settle(noted: &mut AuditEvent, answered: &Result<Answered, Refusal>) {
    let permit = match answered {
        Ok(answered) => answered.permit.as_ref(),
        Err(_) => None,
    };
    noted.remote_subject = permit.map(|permit| permit.remote_subject().to_owned());
    (noted.outcome, noted.grant) = match answered {
        Ok(_) => (AuditOutcome::Done, permit.map(Permit::grant)),
        Err(refusal) => (AuditOutcome::Refused(refusal.to_string()), refusal.grant()),
    };
    tracing::info!(
        trace = noted.trace.map(tracing::field::display),
        object = noted.object,
        outcome = ?noted.outcome,
        "answered the parent"
    );
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
