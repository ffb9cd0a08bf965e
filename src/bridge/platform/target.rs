//! Which requests of satellites go to the platform: those below the two interfaces that the contract
//! has for children, and without a certificate only those that have none to show yet. Pure.
//!
//! The platform's server resolves paths in its own way, so a path that different servers could read
//! differently goes nowhere.

use http::{Method, Request, StatusCode, Version};

use super::super::plain_path::is_plain;
use super::super::reply::Reply;
use crate::contract::{ACCEPT_PATH, API_BASE, HEARTBEAT_PATH, NODE_ENROLL_PATH};

/// What is relayed, below [`API_BASE`].
const RELAYED: [&str; 2] = ["/federation_api/", "/node_api/"];

/// Longest path and query, in bytes: the longest of the contract's has a tenth of it.
const TARGET_MAX_BYTES: usize = 4_096;

/// Methods that are relayed, as an answer names them.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE";

/// What is asked for, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Accept, by a token.
    Accept,
    /// A node's first certificate, by a token.
    NodeEnroll,
    /// The heartbeat.
    Heartbeat,
    /// Anything else that the platform decides about.
    Other,
}

impl Target {
    /// Of a request; the refusal where it is none of the platform's.
    pub fn of<B>(request: &Request<B>) -> Result<Self, Reply> {
        let uri = request.uri();
        // HTTP/2 has the authority in its URI; over HTTP/1.1 that is a request to a proxy.
        if request.version() < Version::HTTP_2 && (uri.scheme().is_some() || uri.authority().is_some()) {
            return Err(Reply::failure(
                StatusCode::BAD_REQUEST,
                "this is no proxy: ask for a path, not for a whole URL",
            ));
        }
        let path = uri.path();
        let length = uri.path_and_query().map_or(0, |target| target.as_str().len());
        if length > TARGET_MAX_BYTES {
            return Err(Reply::failure(
                StatusCode::URI_TOO_LONG,
                &format!("path and query are longer than {TARGET_MAX_BYTES} bytes"),
            ));
        }
        let below = path.strip_prefix(API_BASE).unwrap_or_default();
        if !RELAYED.iter().any(|prefix| below.starts_with(prefix)) || !is_plain(path) {
            return Err(Reply::unknown_path(path));
        }
        let known = [
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ];
        if !known.contains(request.method()) {
            return Err(Reply::wrong_method(METHODS));
        }
        let posts = request.method() == Method::POST;
        Ok(match path.strip_suffix('/').unwrap_or(path) {
            ACCEPT_PATH if posts => Self::Accept,
            NODE_ENROLL_PATH if posts => Self::NodeEnroll,
            HEARTBEAT_PATH if posts => Self::Heartbeat,
            _ => Self::Other,
        })
    }

    /// Whether who has no certificate may ask for it: by a token that the platform checks.
    pub const fn is_for_strangers(self) -> bool {
        matches!(self, Self::Accept | Self::NodeEnroll)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(method: Method, uri: &str) -> Result<Target, u16> {
        let request = Request::builder().method(method).uri(uri).body(()).unwrap();
        Target::of(&request).map_err(|refusal| refusal.status().as_u16())
    }

    #[test]
    fn the_two_interfaces_are_relayed_and_nothing_else() {
        let table = [
            (Method::POST, "federation_api/accept", Ok(Target::Accept)),
            (Method::GET, "federation_api/accept", Ok(Target::Other)),
            (Method::POST, "federation_api/heartbeat/", Ok(Target::Heartbeat)),
            (Method::POST, "federation_api/heartbeat.json", Ok(Target::Other)),
            (Method::POST, "node_api/enroll", Ok(Target::NodeEnroll)),
            (Method::POST, "node_api/enroll/refresh", Ok(Target::Other)),
            (
                Method::GET,
                "federation_api/resources/kind/a%20b?x=%2F..",
                Ok(Target::Other),
            ),
            (Method::GET, "sdwan/federation_peers", Err(404)),
            (Method::GET, "federation_api", Err(404)),
            (Method::GET, "federation_apix/a", Err(404)),
            (Method::TRACE, "federation_api/a", Err(405)),
            (Method::CONNECT, "federation_api/a", Err(405)),
        ];
        for (method, path, expected) in table {
            assert_eq!(
                target(method.clone(), &format!("/api/v1/system/{path}")),
                expected,
                "{method} {path}"
            );
        }
        assert_eq!(target(Method::GET, "/"), Err(404));
        assert_eq!(target(Method::OPTIONS, "*"), Err(404));
    }

    #[test]
    fn what_servers_read_differently_goes_nowhere() {
        for path in [
            "federation_api/../sdwan/federation_peers",
            "federation_api/./accept",
            "federation_api//accept",
            "federation_api/%2e%2E/sdwan",
            "federation_api/.%2e/sdwan",
            "federation_api/a%2fb",
            "federation_api/a%5cb",
            "federation_api/a\\..\\b",
            "federation_api/%252e%252e/sdwan",
            "federation_api/..;/sdwan",
            "federation_api/..%3b/sdwan",
            "federation_api/a%00",
            "federation_api/a%0d%0a",
            "federation_api/a%",
            "federation_api/a%2",
            "federation_api/a%zz",
        ] {
            let whole = format!("/api/v1/system/{path}");
            let Ok(uri) = whole.parse::<http::Uri>() else {
                continue;
            };
            assert_eq!(target(Method::GET, &uri.to_string()), Err(404), "{path}");
        }
        assert_eq!(
            target(Method::GET, "http://other/api/v1/system/federation_api/a"),
            Err(400)
        );
        let long = format!("/api/v1/system/federation_api/a?{}", "x".repeat(TARGET_MAX_BYTES));
        assert_eq!(target(Method::GET, &long), Err(414));
    }

    #[test]
    fn strangers_may_show_a_token_and_nothing_else() {
        assert!(Target::Accept.is_for_strangers() && Target::NodeEnroll.is_for_strangers());
        assert!(!Target::Heartbeat.is_for_strangers() && !Target::Other.is_for_strangers());
    }

    proptest! {
        #[test]
        fn what_is_relayed_stays_below(tail in "[a-z./%2e5cfF;\\\\]{0,40}") {
            let whole = format!("/api/v1/system/federation_api/{tail}");
            let request = whole.parse::<http::Uri>().ok().and_then(|uri| Request::builder().uri(uri).body(()).ok());
            if let Some(request) = request && Target::of(&request).is_ok() {
                let decoded = request.uri().path().to_ascii_lowercase()
                    .replace("%2e", ".").replace("%2f", "/").replace("%5c", "/");
                prop_assert!(!decoded.split('/').any(|part| part == ".." || part == "."), "{decoded}");
            }
        }
    }
}
