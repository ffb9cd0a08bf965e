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
use super::{Access, Ask, Client, ServiceFlow, ServiceStream, Via};
use crate::base::id::TraceId;
use crate::tunnel::relay::RelayEnd;

/// Path below which streams are asked for: `<path>/<peer>/<service>`.
pub const CONNECT_PATH: &str = "/api/v1/system/sdwan/connect";

/// What a request upgrades to: the bytes of one connection, as they are.
pub const UPGRADE_PROTOCOL: &str = "powernode-stream";

/// The same for a service that speaks UDP: packets, each behind its length in two bytes.
pub const PACKETS_PROTOCOL: &str = "powernode-packets";

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
        let Asked {
            peer,
            service,
            packets,
        } = match asked(&request) {
            Ok(asked) => asked,
            Err(refusal) => return refusal.into_response(),
        };
        let ask = Ask {
            peer: peer.to_owned(),
            service: service.to_owned(),
            operator,
            source,
            via: Via::Connect,
        };
        if packets {
            match self.open_flow(ask).await {
                Ok(flow) => {
                    let response = switching(PACKETS_PROTOCOL, flow.id());
                    self.carry_packets(hyper::upgrade::on(&mut request), flow);
                    response
                }
                Err(error) => error.reply().into_response(),
            }
        } else {
            match self.open(ask).await {
                Ok(stream) => {
                    let response = switching(UPGRADE_PROTOCOL, stream.id());
                    self.carry_upgraded(hyper::upgrade::on(&mut request), stream);
                    response
                }
                Err(error) => error.reply().into_response(),
            }
        }
    }

    fn carry_packets(&self, upgrade: hyper::upgrade::OnUpgrade, flow: ServiceFlow) {
        let span = tracing::info_span!("access", trace = %flow.id());
        let carried = async move {
            match upgrade.await {
                Ok(upgraded) => flow.carry(TokioIo::new(upgraded)).await,
                Err(error) => {
                    let end = RelayEnd::Left(io::Error::other(error));
                    flow.into_hold().close(end).await;
                }
            }
        };
        self.work().spawn("access", carried.instrument(span));
    }

    /// Carries a stream over what a connection becomes once its answer is sent.
    pub(super) fn carry_upgraded(&self, upgrade: hyper::upgrade::OnUpgrade, stream: ServiceStream) {
        let span = tracing::info_span!("access", trace = %stream.id());
        let carried = async move {
            match upgrade.await {
                Ok(upgraded) => stream.carry(Client::of_upgraded(upgraded)).await,
                Err(error) => {
                    let (_, hold) = stream.into_parts();
                    hold.close(RelayEnd::Left(io::Error::other(error))).await;
                }
            }
        };
        self.work().spawn("access", carried.instrument(span));
    }
}

fn switching(protocol: &'static str, id: TraceId) -> Response<ReplyBody> {
    let mut response = Response::new(
        http_body_util::Empty::new()
            .map_err(|never| match never {})
            .boxed_unsync(),
    );
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(SESSION_HEADER, id);
    }
    response
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    peer: &'a str,
    service: &'a str,
    packets: bool,
}

fn asked<B>(request: &Request<B>) -> Result<Asked<'_>, Reply> {
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
    let packets = upgrades_to(request.headers(), PACKETS_PROTOCOL);
    if !(packets || upgrades_to(request.headers(), UPGRADE_PROTOCOL)) {
        return Err(Reply::failure(
            StatusCode::UPGRADE_REQUIRED,
            &format!(
                "this path gives a stream, not a document; ask over HTTP/1.1 with `Connection: Upgrade` and `Upgrade: {UPGRADE_PROTOCOL}` (or `{PACKETS_PROTOCOL}`), or use `powernode-host-bridge connect`"
            ),
        ));
    }
    Ok(Asked {
        peer,
        service,
        packets,
    })
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
        let expected = Asked {
            peer: "shop-17",
            service: "ssh",
            packets: false,
        };
        assert_eq!(asked(&good).unwrap(), expected);
        let packets = request(
            Method::GET,
            &format!("{CONNECT_PATH}/shop-17/dns"),
            Some(PACKETS_PROTOCOL),
        );
        assert!(asked(&packets).unwrap().packets);
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
