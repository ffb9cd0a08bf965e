//! `connect` and `forward`: a request of the operator API becomes the stream itself (HTTP/1.1
//! Upgrade), over the admin socket or over HTTPS. Refusals are ordinary answers before that. The
//! answer names the session, and `sessions/<id>` of the same API tells afterwards how it ended: the
//! stream has no room for words.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use tracing::Instrument as _;

use super::super::operator_api::Operator;
use super::super::reply::{Reply, ReplyBody};
use super::{Access, Ask, ServiceStream, Via};
use crate::tunnel::relay::RelayEnd;

/// Path below which streams are asked for: `<path>/<peer>/<service>`.
pub const CONNECT_PATH: &str = "/api/v1/system/sdwan/connect";

/// What a request upgrades to: the bytes of one connection, as they are.
pub const UPGRADE_PROTOCOL: &str = "powernode-stream";

/// The answer's header with the session's id.
pub const SESSION_HEADER: &str = "x-powernode-session";

impl Access {
    /// Whether a path asks for a stream.
    pub(in crate::bridge) fn is_connect(path: &str) -> bool {
        path.strip_prefix(CONNECT_PATH)
            .is_some_and(|rest| rest.starts_with('/'))
    }

    /// Answers a request for a stream; it begins when the answer is sent.
    pub(in crate::bridge) async fn connect<B>(
        self: &Arc<Self>,
        mut request: Request<B>,
        operator: Operator,
        source: Option<SocketAddr>,
    ) -> Response<ReplyBody> {
        let (peer, service) = match asked(&request) {
            Ok((peer, service)) => (peer.to_owned(), service.to_owned()),
            Err(refusal) => return refusal.into_response(),
        };
        let ask = Ask {
            peer,
            service,
            operator,
            source,
            via: Via::Connect,
        };
        let stream = match self.open(ask).await {
            Ok(stream) => stream,
            Err(error) => return error.reply().into_response(),
        };
        let mut response = Response::new(
            http_body_util::Empty::new()
                .map_err(|never| match never {})
                .boxed_unsync(),
        );
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(UPGRADE_PROTOCOL));
        if let Ok(id) = HeaderValue::from_str(&stream.id().to_string()) {
            headers.insert(SESSION_HEADER, id);
        }
        self.carry_upgraded(hyper::upgrade::on(&mut request), stream);
        response
    }

    /// Carries a stream over what a connection becomes once its answer is sent.
    pub(super) fn carry_upgraded(&self, upgrade: hyper::upgrade::OnUpgrade, stream: ServiceStream) {
        let span = tracing::info_span!("access", trace = %stream.id());
        let carried = async move {
            match upgrade.await {
                Ok(upgraded) => stream.carry(TokioIo::new(upgraded)).await,
                Err(error) => {
                    let (_, hold) = stream.into_parts();
                    hold.close(RelayEnd::Left(io::Error::other(error))).await;
                }
            }
        };
        self.work().spawn("access", carried.instrument(span));
    }
}

fn asked<B>(request: &Request<B>) -> Result<(&str, &str), Reply> {
    let path = request.uri().path();
    let parts = path.strip_prefix(CONNECT_PATH).unwrap_or_default();
    let Some((peer, service)) = parts.trim_start_matches('/').split_once('/') else {
        return Err(Reply::unknown_path(path));
    };
    if peer.is_empty() || service.is_empty() || service.contains('/') {
        return Err(Reply::unknown_path(path));
    }
    if request.method() != Method::GET {
        return Err(Reply::wrong_method("GET"));
    }
    if !upgrades_to(request.headers(), UPGRADE_PROTOCOL) {
        return Err(Reply::failure(
            StatusCode::UPGRADE_REQUIRED,
            &format!(
                "this path gives a stream, not a document; ask over HTTP/1.1 with `Connection: Upgrade` and `Upgrade: {UPGRADE_PROTOCOL}`, or use `powernode-host-bridge connect`"
            ),
        ));
    }
    Ok((peer, service))
}

/// Whether a request asks to go on in another protocol.
pub(super) fn upgrades_to(headers: &HeaderMap, protocol: &str) -> bool {
    let named = |value: &HeaderValue| {
        let value = value.to_str().unwrap_or_default();
        value
            .split(',')
            .any(|part| part.trim().eq_ignore_ascii_case(protocol))
    };
    headers.get_all(UPGRADE).iter().any(named)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn request(method: Method, path: &str, upgrade: Option<&str>) -> Request<()> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(upgrade) = upgrade {
            request = request.header("upgrade", upgrade);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn a_stream_is_asked_for_by_peer_and_service() {
        let good = request(
            Method::GET,
            &format!("{CONNECT_PATH}/shop-17/ssh"),
            Some("h2c, Powernode-Stream"),
        );
        assert_eq!(asked(&good).unwrap(), ("shop-17", "ssh"));
        for (method, path, upgrade, status) in [
            (Method::GET, "/shop-17/ssh", None, 426),
            (Method::GET, "/shop-17/ssh", Some("websocket"), 426),
            (Method::POST, "/shop-17/ssh", Some(UPGRADE_PROTOCOL), 405),
            (Method::GET, "/shop-17", Some(UPGRADE_PROTOCOL), 404),
            (Method::GET, "/shop-17/", Some(UPGRADE_PROTOCOL), 404),
            (Method::GET, "/shop-17/ssh/more", Some(UPGRADE_PROTOCOL), 404),
        ] {
            let bad = request(method, &format!("{CONNECT_PATH}{path}"), upgrade);
            assert_eq!(asked(&bad).unwrap_err().status().as_u16(), status, "{path}");
        }
    }
}
