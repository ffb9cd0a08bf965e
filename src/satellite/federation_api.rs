//! What a satellite answers to its parent through the tunnel: the child's side of the federation
//! API (contract section 8). The tunnel's handshake has proven who asks; nothing of the box can be
//! reached here but these answers.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::base::limit::foreign_text;
use crate::base::time::UnixTime;
use crate::contract::message::{failure_body, success_body};
use crate::contract::{SERVICE_CATALOG_PATH, TRUST_BUNDLE_PATH};

/// What the answers are made of.
#[derive(Debug, Clone)]
pub struct FederationApi {
    /// The authorities that this satellite trusts for its parent, as PEM.
    pub ca_bundle_pem: String,
}

impl FederationApi {
    /// Answers one request. The body of a request is never read: none of these takes one.
    pub fn answer(&self, method: &Method, path: &str, now: UnixTime) -> Response<Full<Bytes>> {
        let path = path.strip_suffix('/').unwrap_or(path);
        let data = match path {
            SERVICE_CATALOG_PATH => json!({ "offerings": [], "generated_at": now.to_string() }),
            TRUST_BUNDLE_PATH => {
                json!({ "ca_bundle_pem": self.ca_bundle_pem, "generated_at": now.to_string() })
            }
            _ => {
                let error = format!("{} is not served by this satellite", foreign_text(path));
                return reply(StatusCode::NOT_FOUND, &failure_body(&error, None));
            }
        };
        if method != Method::GET {
            let mut refused = reply(
                StatusCode::METHOD_NOT_ALLOWED,
                &failure_body("only GET is allowed here", None),
            );
            refused
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET"));
            return refused;
        }
        reply(StatusCode::OK, &success_body(&data))
    }
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
#[allow(clippy::unwrap_used)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn ask(method: Method, path: &str) -> (u16, Value) {
        let api = FederationApi {
            ca_bundle_pem: "PEM".into(),
        };
        let response = api.answer(&method, path, UnixTime::from_seconds(1_800_000_000));
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn the_catalog_and_the_trust_bundle_are_served() {
        let (status, body) = ask(Method::GET, SERVICE_CATALOG_PATH).await;
        assert_eq!((status, &body["data"]["offerings"]), (200, &json!([])));
        assert_eq!(body["data"]["generated_at"], "2027-01-15T08:00:00Z");
        let (_, body) = ask(Method::GET, TRUST_BUNDLE_PATH).await;
        assert_eq!(body["data"]["ca_bundle_pem"], "PEM");
    }

    #[tokio::test]
    async fn all_else_is_refused_in_the_contract_form() {
        for (method, path, expected) in [
            (Method::GET, "/etc/passwd", 404),
            (Method::GET, "/api/v1/system/federation_api/../../../x", 404),
            (Method::POST, SERVICE_CATALOG_PATH, 405),
        ] {
            let (status, body) = ask(method, path).await;
            assert_eq!((status, &body["success"]), (expected, &json!(false)), "{path}");
        }
    }
}
