//! Requests to a peer's own interface, carried to it through its tunnel and answered from there.
//! Nothing of the operator goes along: not the token, not a claim of identity.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, Request, Response, StatusCode, Uri, request};
use http_body_util::{BodyExt as _, Full};
use tracing::{info, warn};

use super::super::permission::PeerAction;
use super::super::registry::record::PeerRecord;
use super::super::reply::{Reply, ReplyBody};
use super::{Operator, OperatorApi, PEER_PREFIX, internal_error};
use crate::audit::{AuditAction, AuditEvent, AuditOutcome};
use crate::base::id::TraceId;
use crate::base::limit::foreign_text;
use crate::contract::API_BASE;
use crate::contract::peer::PeerStatus;
use crate::process::entropy;
use crate::tunnel::http::{HttpLimits, HttpOverTunnelError, request_streaming};

/// What goes along of a request's head. Everything else stays here.
const PASSED_ON: &[HeaderName] = &[
    header::ACCEPT,
    header::CONTENT_TYPE,
    header::IF_NONE_MATCH,
    header::RANGE,
    header::USER_AGENT,
];

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
        let peer = {
            let (api, operator) = (Arc::clone(&self), operator.clone());
            tokio::task::spawn_blocking(move || api.peer_for(&operator, &asked, action))
                .await
                .map_err(|_| internal_error())??
        };
        let Some(tunnel) = self.links.as_ref().and_then(|links| links.get(peer.id)) else {
            return Err(offline(&peer, self.links.is_some()));
        };
        let trace = TraceId(u64::from_be_bytes(entropy::bytes()));
        info!(%operator, peer = %peer.id, method = %head.method, path = target.path(), %trace, "a request goes to a peer");
        let mut noted = AuditEvent {
            federation_peer_id: Some(peer.id),
            actor: Some(operator.to_string()),
            object: Some(format!("{} {}", head.method, target.path())),
            trace: Some(trace),
            ..AuditEvent::of(AuditAction::Request)
        };
        let began = self.clock.now();
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = head.method;
        *request.uri_mut() = target;
        copy_headers(&head.headers, request.headers_mut(), PASSED_ON);
        let answer = request_streaming(&tunnel, trace, request, HttpLimits::default()).await;
        noted.duration = self.clock.now().since(began);
        match answer {
            Ok(answer) => {
                let (answered, body) = answer.into_parts();
                if !answered.status.is_success() {
                    noted.outcome = AuditOutcome::Refused(format!("HTTP {}", answered.status.as_u16()));
                }
                self.audit.record(&noted);
                let mut response = Response::new(body.map_err(Into::into).boxed_unsync());
                *response.status_mut() = answered.status;
                copy_headers(&answered.headers, response.headers_mut(), PASSED_BACK);
                Ok(response)
            }
            Err(error) => {
                warn!(peer = %peer.id, %trace, %error, "a request to a peer failed");
                noted.outcome = AuditOutcome::Failed(error.to_string());
                self.audit.record(&noted);
                Err(failed(&peer, &error))
            }
        }
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

fn copy_headers(from: &HeaderMap, to: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        for value in from.get_all(name) {
            to.append(name.clone(), value.clone());
        }
    }
}

fn called(peer: &PeerRecord) -> String {
    peer.name.clone().unwrap_or_else(|| peer.id.to_string())
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
    let why = match (peer.status, peer.last_heartbeat_at) {
        (PeerStatus::Proposed, _) => "it has not joined yet".to_owned(),
        (PeerStatus::Suspended | PeerStatus::Revoked, _) => format!("it is {}", peer.status),
        (_, Some(heard)) => format!("it is offline since about {heard}, its last heartbeat"),
        (_, None) => "it has joined but never sent a heartbeat".to_owned(),
    };
    Reply::failure(
        StatusCode::SERVICE_UNAVAILABLE,
        &format!("{name} is not connected: {why}"),
    )
}

fn failed(peer: &PeerRecord, error: &HttpOverTunnelError) -> Reply {
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
}
