//! Requests to a peer's own interface, carried to it through its tunnel and answered from there.
//! Of the operator goes along who they are and where they are, as this bridge knows it, and a grant of
//! the peer's: the one that they give, or the one that is held. Not their token, not a claim of theirs.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Body;
use tracing::{info, warn};

use super::super::access::{called, why_offline};
use super::super::permission::PeerAction;
use super::super::registry::RegistryError;
use super::super::registry::record::PeerRecord;
use super::super::reply::{BodyError, Reply, ReplyBody};
use super::{Operator, OperatorApi, PEER_PREFIX, RequestSource, internal_error, refused};
use crate::audit::{AuditAction, AuditEvent, AuditOutcome};
use crate::base::id::TraceId;
use crate::base::limit::foreign_text;
use crate::base::secret::Secret;
use crate::contract::{API_BASE, GRANT_HEADER, RESOURCES_PATH, SUBJECT_HEADER};
use crate::process::entropy;
use crate::tunnel::connection::Tunnel;
use crate::tunnel::http::{HttpLimits, HttpOverTunnelError, request_streaming};

/// What goes along of a request's head. Everything else stays here.
pub(in crate::bridge) const PASSED_ON: &[HeaderName] = &[
    header::ACCEPT,
    header::CONTENT_TYPE,
    header::IF_NONE_MATCH,
    header::RANGE,
    header::USER_AGENT,
];

/// Where a request came from (contract section 8).
const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// What comes back of an answer's head.
const PASSED_BACK: &[HeaderName] = &[
    header::ALLOW,
    header::CACHE_CONTROL,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::ETAG,
    header::LAST_MODIFIED,
    header::RETRY_AFTER,
];

impl OperatorApi {
    pub(super) async fn relay(
        self: Arc<Self>,
        head: request::Parts,
        body: Bytes,
        operator: &Operator,
    ) -> Response<ReplyBody> {
        match self.relayed(head, body, operator).await {
            Ok(response) => response,
            Err(refusal) => refusal.into_response(),
        }
    }

    async fn relayed(
        self: Arc<Self>,
        head: request::Parts,
        body: Bytes,
        operator: &Operator,
    ) -> Result<Response<ReplyBody>, Reply> {
        let (asked, target) = split(&head.uri)?;
        let action = if head.method.is_safe() {
            PeerAction::Ask
        } else {
            PeerAction::Instruct
        };
        let (peer, kept) = {
            let (api, operator, wanted) = (Arc::clone(&self), operator.clone(), service_in(target.path()));
            let found = tokio::task::spawn_blocking(move || {
                let peer = api.peer_for(&operator, &asked, action)?;
                let (subject, now) = (operator.to_string(), api.now());
                let kept = api
                    .ledger()
                    .held_grant_for(peer.id, &wanted, &subject, now)
                    .map_err(|error| refused(&RegistryError::Store(error)))?;
                Ok((peer, kept.map(|kept| kept.token)))
            });
            found.await.map_err(|_| internal_error())??
        };
        let Some(tunnel) = self.live_tunnel(&peer) else {
            return Err(offline(&peer, self.links.is_some()));
        };
        let trace = TraceId(u64::from_be_bytes(entropy::bytes()));
        info!(%operator, peer = %peer.id, method = %head.method, path = target.path(), %trace, "a request goes to a peer");
        // Also where the operator does not wait for the answer.
        let mut noted = self.audit.begin(AuditEvent {
            federation_peer_id: Some(peer.id),
            actor: Some(operator.to_string()),
            object: Some(format!("{} {}", head.method, target.path())),
            trace: Some(trace),
            ..AuditEvent::of(AuditAction::Request)
        });
        let began = self.clock.now();
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = target;
        copy_headers(&head.headers, request.headers_mut(), PASSED_ON);
        vouch(&head, operator, kept.as_ref(), request.headers_mut());
        let answer = request_streaming(&tunnel, trace, request, HttpLimits::default()).await;
        noted.duration = self.clock.now().since(began);
        if let Err(error) = &answer {
            warn!(peer = %peer.id, %trace, %error, "a request to a peer failed");
        }
        passed_back(&peer, answer, &mut noted)
    }
}

impl OperatorApi {
    fn live_tunnel(&self, peer: &PeerRecord) -> Option<Tunnel> {
        let links = self.links.as_ref()?;
        links.get(peer.id).filter(|_| self.ledger().may_be_reached(peer))
    }
}

/// The peer that is asked for and what is asked of it.
fn split(uri: &Uri) -> Result<(String, Uri), Reply> {
    let whole = uri.path_and_query().map_or("", |target| target.as_str());
    let (peer, rest) = whole
        .strip_prefix(PEER_PREFIX)
        .and_then(|rest| rest.find('/').map(|at| rest.split_at(at)))
        .unwrap_or_default();
    let allowed = format!("{API_BASE}/federation_api/");
    // No peer's server has to be trusted to resolve dots as this one would, however they are written.
    let plain = rest.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/");
    let climbs = plain.split(['/', '?']).any(|part| matches!(part, "." | ".."));
    match rest.parse() {
        Ok(target) if rest.starts_with(&allowed) && !climbs => Ok((peer.to_owned(), target)),
        _ => Err(Reply::failure(
            StatusCode::NOT_FOUND,
            &format!("a peer is asked for {PEER_PREFIX}<id or name>{allowed}…, nothing else is passed on"),
        )),
    }
}

/// The service that a path is about, as far as it tells: of a resource, its id.
fn service_in(path: &str) -> String {
    let rest = path.strip_prefix(RESOURCES_PATH).unwrap_or("");
    rest.rsplit('/').next().unwrap_or("").to_owned()
}

/// Says for whom this bridge asks, from where, and by which grant.
fn vouch(head: &request::Parts, operator: &Operator, kept: Option<&Secret>, to: &mut HeaderMap) {
    if let Ok(subject) = HeaderValue::try_from(operator.to_string()) {
        to.insert(HeaderName::from_static(SUBJECT_HEADER), subject);
    }
    if let Some(RequestSource(source)) = head.extensions.get()
        && let Ok(source) = HeaderValue::try_from(source.to_string())
    {
        to.insert(HeaderName::from_static(X_FORWARDED_FOR), source);
    }
    let given = head
        .headers
        .get(GRANT_HEADER)
        .and_then(|given| given.to_str().ok());
    let token = given.or_else(|| kept.and_then(Secret::expose_text));
    if let Some(token) = token
        && let Ok(mut bearer) = HeaderValue::try_from(format!("Bearer {}", token.trim()))
    {
        bearer.set_sensitive(true);
        to.insert(header::AUTHORIZATION, bearer);
    }
}

pub(in crate::bridge) fn copy_headers(from: &HeaderMap, to: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        for value in from.get_all(name) {
            to.append(name.clone(), value.clone());
        }
    }
}

fn offline(peer: &PeerRecord, daemon: bool) -> Reply {
    let name = called(peer);
    if !daemon {
        return Reply::failure(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!(
                "{name} cannot be reached: no daemon runs here that holds its tunnel; start powernode-host-bridge"
            ),
        );
    }
    Reply::failure(
        StatusCode::SERVICE_UNAVAILABLE,
        &format!("{name} is not connected: {}", why_offline(peer)),
    )
}

/// A satellite's answer for whoever has asked through this bridge; how it went is noted.
pub(in crate::bridge) fn passed_back<B>(
    peer: &PeerRecord,
    answer: Result<Response<B>, HttpOverTunnelError>,
    noted: &mut AuditEvent,
) -> Result<Response<ReplyBody>, Reply>
where
    B: Body<Data = Bytes, Error: Into<BodyError>> + Send + 'static,
{
    match answer {
        Ok(answer) => {
            let (answered, body) = answer.into_parts();
            noted.outcome = if answered.status.is_success() {
                AuditOutcome::Done
            } else {
                AuditOutcome::Refused(format!("HTTP {}", answered.status.as_u16()))
            };
            let mut response = Response::new(body.map_err(Into::into).boxed_unsync());
            *response.status_mut() = answered.status;
            copy_headers(&answered.headers, response.headers_mut(), PASSED_BACK);
            Ok(response)
        }
        Err(error) => {
            noted.outcome = AuditOutcome::Failed(error.to_string());
            Err(no_answer(peer, &error))
        }
    }
}

/// What is told of a satellite that gave no answer.
fn no_answer(peer: &PeerRecord, error: &HttpOverTunnelError) -> Reply {
    let status = match error {
        HttpOverTunnelError::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    };
    Reply::failure(
        status,
        &format!(
            "{} did not answer through its tunnel: {}",
            called(peer),
            foreign_text(&error.to_string())
        ),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::bridge::permission::OperatorIdentity;

    #[test]
    fn only_the_peers_own_interface_is_passed_on() {
        let split = |path: &str| split(&path.parse().unwrap());
        let (peer, target) =
            split("/peers/shop-17/api/v1/system/federation_api/service_catalog?a=b").unwrap();
        assert_eq!(peer, "shop-17");
        assert_eq!(target, "/api/v1/system/federation_api/service_catalog?a=b");
        for refused in [
            "/peers/shop-17",
            "/peers/shop-17/",
            "/peers//api/v1/system/node_api/x",
            "/peers/shop-17/api/v1/system/sdwan/federation_peers",
            "/peers/shop-17/api/v1/system/federation_api/../sdwan/federation_peers",
            "/peers/shop-17/api/v1/system/federation_api/%2e%2E/sdwan/federation_peers",
            "/peers/shop-17/api/v1/system/federation_api/x%2f..%2fy",
            "/peers/shop-17/admin",
        ] {
            assert!(split(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn an_operators_token_stays_here() {
        let mut from = HeaderMap::new();
        from.insert(header::AUTHORIZATION, "Bearer secret".parse().unwrap());
        from.insert(header::COOKIE, "secret".parse().unwrap());
        from.insert(header::ACCEPT, "*/*".parse().unwrap());
        let mut to = HeaderMap::new();
        copy_headers(&from, &mut to, PASSED_ON);
        assert_eq!(to.len(), 1);
    }

    #[test]
    fn the_bridge_says_who_asks_and_nobody_else_does() {
        let operator = Operator::Named(OperatorIdentity {
            name: "anna".to_owned(),
            ..OperatorIdentity::local()
        });
        let (mut head, ()) = Request::new(()).into_parts();
        for (name, forged) in [
            ("x-forwarded-for", "203.0.113.1"),
            (SUBJECT_HEADER, "berta"),
            ("authorization", "Bearer hers"),
        ] {
            head.headers
                .insert(HeaderName::from_static(name), HeaderValue::from_static(forged));
        }
        let sent = |head: &request::Parts, kept: Option<&Secret>| {
            let mut to = HeaderMap::new();
            copy_headers(&head.headers, &mut to, PASSED_ON);
            vouch(head, &operator, kept, &mut to);
            let text = |name: &str| to.get(name).map(|value| value.to_str().unwrap().to_owned());
            (text(SUBJECT_HEADER), text(X_FORWARDED_FOR), text("authorization"))
        };
        assert_eq!(sent(&head, None), (Some("anna".into()), None, None));
        head.extensions
            .insert(RequestSource("192.0.2.7".parse().unwrap()));
        let kept = Secret::from_text("fgs.held".into());
        assert_eq!(
            sent(&head, Some(&kept)),
            (
                Some("anna".into()),
                Some("192.0.2.7".into()),
                Some("Bearer fgs.held".into())
            )
        );
        head.headers.insert(
            HeaderName::from_static(GRANT_HEADER),
            "fgs.given".parse().unwrap(),
        );
        assert_eq!(sent(&head, Some(&kept)).2, Some("Bearer fgs.given".into()));
    }

    #[test]
    fn a_resource_names_its_service() {
        assert_eq!(
            service_in("/api/v1/system/federation_api/resources/service/ssh"),
            "ssh"
        );
        assert_eq!(service_in("/api/v1/system/federation_api/subscriptions"), "");
    }
}
