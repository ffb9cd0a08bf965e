//! `https://bridge/satellites/<peer>/<service>/…`: services that speak HTTP, for browsers and programs
//! that can say a token. Whoever logs in as browsers do gets a cookie for that service alone, so that
//! the service's own `Authorization` goes through from then on.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{AUTHORIZATION, LOCATION, SET_COOKIE, WWW_AUTHENTICATE};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::super::operator_api::Operator;
use super::super::reply::{Reply, ReplyBody};
use super::credentials::Presented;
use super::headers::{Outside, TOKEN_HEADER, cookie};
use super::{Access, Ask, Via, login};

/// What the paths of services begin with.
pub const SATELLITES_PREFIX: &str = "/satellites/";

/// What a browser shows when it asks for name and token.
const CHALLENGE: HeaderValue = HeaderValue::from_static(
    "Basic realm=\"powernode-host-bridge: name and operator token\", charset=\"UTF-8\"",
);

/// A path of the ingress, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place<'a> {
    peer: &'a str,
    service: &'a str,
    /// Path and query for the service; none where the slash after its name is missing.
    target: Option<&'a str>,
}

impl Place<'_> {
    fn prefix(&self) -> String {
        format!("{SATELLITES_PREFIX}{}/{}", self.peer, self.service)
    }
}

/// Who asks, and whether a browser should be given a cookie.
struct Visitor {
    operator: Operator,
    cookie: Option<HeaderValue>,
}

impl Access {
    /// Whether a path leads to a service.
    pub(in crate::bridge) fn is_ingress(path: &str) -> bool {
        path.starts_with(SATELLITES_PREFIX)
    }

    /// Answers a request to a service.
    pub(in crate::bridge) async fn visit(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        source: SocketAddr,
    ) -> Response<ReplyBody> {
        let uri = request.uri().clone();
        let whole = uri.path_and_query().map_or("", |whole| whole.as_str());
        let Some(place) = place(whole) else {
            return Reply::unknown_path(uri.path()).into_response();
        };
        let prefix = place.prefix();
        let visitor = match self.visitor(&mut request, &prefix, source).await {
            Ok(visitor) => visitor,
            Err(refusal) => return refusal,
        };
        let target = match place.target.map(str::parse::<Uri>) {
            Some(Ok(target)) => target,
            Some(Err(_)) => return Reply::unknown_path(uri.path()).into_response(),
            None => return with_slash(&uri, &prefix),
        };
        let ask = Ask {
            peer: place.peer.to_owned(),
            service: place.service.to_owned(),
            operator: visitor.operator,
            source: Some(source),
            via: Via::Ingress,
        };
        let outside = Outside {
            source: source.ip(),
            scheme: "https",
            prefix: Some(prefix),
        };
        let mut response = self.exchange(request, target, ask, outside).await;
        if let Some(cookie) = visitor.cookie {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
        response
    }

    /// Who a request comes from. What it showed for that is taken out of it.
    async fn visitor(
        &self,
        request: &mut Request<Incoming>,
        prefix: &str,
        source: SocketAddr,
    ) -> Result<Visitor, Response<ReplyBody>> {
        let now = self.clock.trusted().now;
        let headers = request.headers_mut();
        let shown = headers
            .remove(TOKEN_HEADER)
            .map(|value| Presented::token(value.to_str().unwrap_or_default()));
        let kept = cookie(headers, login::COOKIE)
            .and_then(|sealed| self.logins.open(sealed, prefix, now))
            .and_then(|token| Some(Presented::token(token.expose_text()?)));
        let authorization = headers
            .get(AUTHORIZATION)
            .and_then(Presented::from_header)
            .filter(Presented::looks_like_ours);
        let by_authorization = match &authorization {
            Some(presented) => self.authenticate(presented).await.map_err(Reply::into_response)?,
            None => None,
        };
        if by_authorization.is_some() {
            request.headers_mut().remove(AUTHORIZATION);
        }
        let any = shown.is_some() || kept.is_some() || authorization.is_some();
        for presented in [shown, kept].into_iter().flatten() {
            let known = self
                .authenticate(&presented)
                .await
                .map_err(Reply::into_response)?;
            if let Some(operator) = known {
                return Ok(Visitor {
                    operator,
                    cookie: None,
                });
            }
        }
        if let (Some(operator), Some(presented)) = (by_authorization, authorization) {
            return Ok(Visitor {
                operator,
                cookie: presented
                    .basic
                    .then(|| self.logins.seal(&presented.token, prefix, now))
                    .flatten()
                    .and_then(|sealed| login_cookie(&sealed, prefix)),
            });
        }
        let too_many = any.then(|| self.unknown_token(source.ip())).flatten();
        Err(too_many.map_or_else(challenge, Reply::into_response))
    }
}

fn login_cookie(sealed: &str, prefix: &str) -> Option<HeaderValue> {
    let text = format!(
        "{}={sealed}; Path={prefix}/; Max-Age={}; Secure; HttpOnly; SameSite=Lax",
        login::COOKIE,
        login::LIFETIME_SECONDS
    );
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn challenge() -> Response<ReplyBody> {
    let reply = Reply::unauthorized(&format!(
        "an operator token is required: {TOKEN_HEADER}: <token>, Authorization: Bearer <token>, or name and token in the browser's dialog"
    ));
    let mut response = reply.into_response();
    response.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE);
    response
}

/// Relative links of a page need the slash.
fn with_slash(uri: &Uri, prefix: &str) -> Response<ReplyBody> {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let empty = http_body_util::Empty::new().map_err(|never| match never {});
    let mut response = Response::new(empty.boxed_unsync());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    if let Ok(location) = HeaderValue::from_str(&format!("{prefix}/{query}")) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn place(path_and_query: &str) -> Option<Place<'_>> {
    let rest = path_and_query.strip_prefix(SATELLITES_PREFIX)?;
    let (peer, rest) = rest.split_once('/')?;
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (service, target) = rest.split_at(at);
    let plain = |text: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !text.is_empty() && text.chars().all(known) && !text.starts_with('.')
    };
    (plain(peer) && plain(service)).then_some(Place {
        peer,
        service,
        target: target.starts_with('/').then_some(target),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_names_peer_service_and_what_the_service_is_asked_for() {
        let read = |path| place(path).map(|place| (place.peer, place.service, place.target));
        assert_eq!(
            read("/satellites/shop-17/web/a/b?c=d"),
            Some(("shop-17", "web", Some("/a/b?c=d")))
        );
        assert_eq!(
            read("/satellites/shop-17/web/"),
            Some(("shop-17", "web", Some("/")))
        );
        assert_eq!(read("/satellites/shop-17/web"), Some(("shop-17", "web", None)));
        assert_eq!(read("/satellites/shop-17/web?a"), Some(("shop-17", "web", None)));
        for bad in [
            "/satellites/",
            "/satellites/shop-17",
            "/satellites/shop-17/",
            "/satellites//web/",
            "/satellites/../web/",
            "/satellites/shop-17/../x",
            "/satellites/shop%2d17/web/",
            "/satellites/a b/web/",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_a_service_is_asked_for_begins_at_its_root(path in "/satellites/\\PC{0,60}") {
            if let Some(place) = place(&path) {
                prop_assert!(place.target.is_none_or(|target| target.starts_with('/')));
                prop_assert!(path.starts_with(&place.prefix()));
            }
        }
    }
}
