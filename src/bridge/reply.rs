//! Answers of both HTTP interfaces in the contract's form: `{"success":true,"data":…}` or
//! `{"success":false,"error":…}`. Knows neither what is asked nor over what it came.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use serde::Serialize;
use serde_json::{Value, json};

use crate::contract::message::{failure_body, success_body};

/// Why the rest of a relayed body does not come.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body that is here as a whole, or is still arriving through a tunnel.
pub type ReplyBody = UnsyncBoxBody<Bytes, BodyError>;

/// One answer whose body is here as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    status: StatusCode,
    body: Vec<u8>,
    retry_after: Option<Duration>,
    allow: Option<&'static str>,
    /// What went wrong on this side, for its own operators alone.
    fault: Option<String>,
}

impl Reply {
    /// 200 with data.
    pub fn data(data: &impl Serialize) -> Self {
        Self::json(StatusCode::OK, &success_body(data))
    }

    /// 201 with data.
    pub fn created(data: &impl Serialize) -> Self {
        Self::json(StatusCode::CREATED, &success_body(data))
    }

    /// 200 with a body that was made earlier.
    pub const fn stored(body: Vec<u8>) -> Self {
        Self {
            status: StatusCode::OK,
            body,
            retry_after: None,
            allow: None,
            fault: None,
        }
    }

    /// Another protocol's body, or none.
    pub fn raw(status: StatusCode, body: Option<&Value>) -> Self {
        Self {
            status,
            body: body.map(|body| body.to_string().into_bytes()).unwrap_or_default(),
            retry_after: None,
            allow: None,
            fault: None,
        }
    }

    /// A refusal.
    pub fn failure(status: StatusCode, error: &str) -> Self {
        Self::json(status, &failure_body(error, None))
    }

    /// A refusal with a code that programs read.
    pub fn coded(status: StatusCode, code: &str, error: &str) -> Self {
        Self::json(status, &failure_body(error, Some(code)))
    }

    /// 401 with the contract's code.
    pub fn unauthorized(error: &str) -> Self {
        Self::coded(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", error)
    }

    /// 422 that names every field that was not taken.
    pub fn validation(errors: &[String]) -> Self {
        let mut body = failure_body(&errors.join("; "), Some("VALIDATION_ERROR"));
        if let Value::Object(fields) = &mut body {
            fields.insert("details".to_owned(), json!({ "errors": errors }));
        }
        Self::json(StatusCode::UNPROCESSABLE_ENTITY, &body)
    }

    /// 404 for a path that nobody serves.
    pub fn unknown_path(path: &str) -> Self {
        let path = crate::base::limit::foreign_text(path);
        Self::failure(
            StatusCode::NOT_FOUND,
            &format!("there is nothing at {path} on this host-bridge"),
        )
    }

    /// 405 with the methods that are served.
    pub fn wrong_method(allow: &'static str) -> Self {
        let mut reply = Self::failure(
            StatusCode::METHOD_NOT_ALLOWED,
            &format!("this resource is there for {allow}"),
        );
        reply.allow = Some(allow);
        reply
    }

    /// With the time after which it makes sense to try again.
    #[must_use]
    pub const fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// With what went wrong on this side, which [`Self::for_this_machine`] tells.
    #[must_use]
    pub fn because(mut self, fault: String) -> Self {
        self.fault = Some(fault);
        self
    }

    /// For whoever may read this side's files anyway: a command has no log that could say what went wrong.
    #[must_use]
    pub fn for_this_machine(self) -> Self {
        match self.fault {
            Some(fault) => Self::failure(
                self.status,
                &format!("the host-bridge could not do this, and nothing was changed: {fault}"),
            ),
            None => self,
        }
    }

    fn json(status: StatusCode, body: &Value) -> Self {
        Self::raw(status, Some(body))
    }

    /// The HTTP status.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The body's bytes.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// As hyper sends it. Answers hold states and sometimes a token: no cache keeps them.
    pub fn into_response(self) -> Response<ReplyBody> {
        let body = Full::new(Bytes::from(self.body))
            .map_err(|never| match never {})
            .boxed_unsync();
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(after) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_the_contracts_form() {
        let reply = Reply::unauthorized("mTLS client certificate required");
        assert_eq!(
            String::from_utf8_lossy(reply.body()),
            r#"{"code":"UNAUTHORIZED","error":"mTLS client certificate required","success":false}"#
        );
        let reply = Reply::validation(&["Data residency is too long (maximum is 64 characters)".to_owned()]);
        let body: Value = serde_json::from_slice(reply.body()).unwrap_or_default();
        assert_eq!(body["details"]["errors"][0], body["error"]);
    }

    #[test]
    fn what_went_wrong_here_is_told_on_this_machine_alone() {
        let reply = Reply::failure(StatusCode::INTERNAL_SERVER_ERROR, "its log says why")
            .because("the disk is full".to_owned());
        let text = |reply: &Reply| String::from_utf8_lossy(reply.body()).into_owned();
        assert!(!text(&reply).contains("disk"));
        let here = reply.for_this_machine();
        assert!(text(&here).contains("nothing was changed: the disk is full"));
        assert_eq!(here.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let refusal = Reply::failure(StatusCode::NOT_FOUND, "there is no peer");
        assert_eq!(refusal.clone().for_this_machine(), refusal);
    }

    #[test]
    fn headers_tell_programs_what_to_do_next() {
        let response = Reply::wrong_method("GET, POST").into_response();
        assert_eq!(response.headers()[ALLOW], "GET, POST");
        let response = Reply::failure(StatusCode::TOO_MANY_REQUESTS, "x")
            .retry_after(Duration::from_millis(10))
            .into_response();
        assert_eq!(response.headers()[RETRY_AFTER], "1");
    }
}
