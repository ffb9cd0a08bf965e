//! What a heartbeat changes in a peer's row and what is answered (contract sections 5 and 11).
//! Pure: the registry holds the row, the federation API the connection.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::base::limit::foreign_text;
use crate::contract::message::{Endpoint, HeartbeatRequest};

/// Longest `data_residency`, in characters (contract section 5).
pub const DATA_RESIDENCY_MAX_CHARS: usize = 64;

/// Largest `capabilities` or `sync_cursor` that is kept, in bytes of JSON. The disclosure takes
/// about 200; a thousand peers at this size are 32 MiB on disk.
pub const DECLARED_JSON_MAX_BYTES: usize = 16 * 1024;

/// Most endpoints that are kept of a peer. A box has a handful.
pub const ENDPOINTS_MAX: usize = 32;

/// Most extension slugs that are kept of a peer.
pub const EXTENSIONS_MAX: usize = 64;

/// Longest text inside of an endpoint, a slug or a version, in characters.
pub const DECLARED_TEXT_MAX_CHARS: usize = 512;

/// A heartbeat whose body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the request is not the JSON object that a heartbeat is: {0}")]
pub struct MalformedHeartbeat(String);

/// What a peer declares about itself, in accepts and heartbeats.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Declaration {
    /// Whatever the child can do; the disclosure among it.
    pub capabilities: Map<String, Value>,
    /// Where it can be reached.
    pub endpoints: Vec<Endpoint>,
    /// Its place in the exchange of changes.
    pub sync_cursor: Map<String, Value>,
    /// Its extensions.
    pub extension_slugs: Vec<String>,
    /// Its version.
    pub platform_version: Option<String>,
    /// Where its data stay.
    pub data_residency: Option<String>,
}

impl Declaration {
    /// Takes over what the other side sent. What is empty or absent changes nothing. What is
    /// not acceptable is named and left as it was, the rest is taken: the published platform
    /// records such a heartbeat all the same.
    pub fn update(&mut self, sent: Self) -> Vec<String> {
        let mut errors = Vec::new();
        let mut object = |name: &str, kept: &mut Map<String, Value>, sent: Map<String, Value>| {
            let bytes = Value::Object(sent.clone()).to_string().len();
            if bytes > DECLARED_JSON_MAX_BYTES {
                errors.push(format!(
                    "{name} is too large ({bytes} bytes, maximum is {DECLARED_JSON_MAX_BYTES})"
                ));
            } else if !sent.is_empty() {
                *kept = sent;
            }
        };
        object("Capabilities", &mut self.capabilities, sent.capabilities);
        object("Sync cursor", &mut self.sync_cursor, sent.sync_cursor);
        if sent.endpoints.len() > ENDPOINTS_MAX || sent.endpoints.iter().any(|endpoint| !is_kept(endpoint)) {
            errors.push(format!(
                "Endpoints are too many or too long (maximum is {ENDPOINTS_MAX} of {DECLARED_TEXT_MAX_CHARS} characters)"
            ));
        } else if !sent.endpoints.is_empty() {
            self.endpoints = sent.endpoints;
        }
        if sent.extension_slugs.len() > EXTENSIONS_MAX
            || sent
                .extension_slugs
                .iter()
                .any(|slug| !fits(slug, DECLARED_TEXT_MAX_CHARS))
        {
            errors.push(format!(
                "Extension slugs are too many or too long (maximum is {EXTENSIONS_MAX} of {DECLARED_TEXT_MAX_CHARS} characters)"
            ));
        } else if !sent.extension_slugs.is_empty() {
            self.extension_slugs = sent.extension_slugs;
        }
        let mut text = |name: &str, kept: &mut Option<String>, sent: Option<String>, max: usize| {
            let sent = sent.map(|text| text.trim().to_owned()).unwrap_or_default();
            if !fits(&sent, max) {
                errors.push(format!("{name} is too long (maximum is {max} characters)"));
            } else if !sent.is_empty() {
                *kept = Some(sent);
            }
        };
        text(
            "Platform version",
            &mut self.platform_version,
            sent.platform_version,
            DECLARED_TEXT_MAX_CHARS,
        );
        text(
            "Data residency",
            &mut self.data_residency,
            sent.data_residency,
            DATA_RESIDENCY_MAX_CHARS,
        );
        errors
    }
}

impl From<HeartbeatRequest> for Declaration {
    fn from(sent: HeartbeatRequest) -> Self {
        Self {
            capabilities: sent.capabilities,
            endpoints: sent.endpoints,
            sync_cursor: sent.sync_cursor,
            extension_slugs: sent.extension_slugs,
            platform_version: sent.platform_version,
            data_residency: sent.data_residency,
        }
    }
}

fn fits(text: &str, max_chars: usize) -> bool {
    text.chars().nth(max_chars).is_none()
}

fn is_kept(endpoint: &Endpoint) -> bool {
    let hint = endpoint.cidr_hint.as_deref().unwrap_or_default();
    [endpoint.url.as_str(), endpoint.scope.as_str(), hint]
        .iter()
        .all(|text| fits(text, DECLARED_TEXT_MAX_CHARS))
}

/// Reads a heartbeat's body. An empty body and null fields are as good as absent ones.
pub fn read_heartbeat(body: &[u8]) -> Result<HeartbeatRequest, MalformedHeartbeat> {
    let malformed = |error: serde_json::Error| MalformedHeartbeat(foreign_text(&error.to_string()));
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(HeartbeatRequest::default());
    }
    let mut fields: Map<String, Value> = serde_json::from_slice(body).map_err(malformed)?;
    fields.retain(|_, value| !value.is_null());
    serde_json::from_value(Value::Object(fields)).map_err(malformed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sent(body: &Value) -> Declaration {
        read_heartbeat(body.to_string().as_bytes()).unwrap().into()
    }

    #[test]
    fn what_is_sent_replaces_and_what_is_empty_changes_nothing() {
        let mut kept = Declaration::default();
        let first = json!({
            "capabilities": {"a": 1, "b": 2}, "endpoints": [{"url": "https://a"}], "sync_cursor": {"n": 1},
            "extension_slugs": ["x"], "platform_version": "0.1.0", "data_residency": " DE ",
        });
        assert_eq!(kept.update(sent(&first)), Vec::<String>::new());
        assert_eq!(kept.data_residency.as_deref(), Some("DE"));
        let before = kept.clone();
        let empty = json!({
            "capabilities": {}, "endpoints": [], "sync_cursor": {}, "extension_slugs": [],
            "platform_version": "", "data_residency": null,
        });
        kept.update(sent(&empty));
        kept.update(sent(&json!({})));
        assert_eq!(kept, before);
        kept.update(sent(&json!({"capabilities": {"c": 3}})));
        assert_eq!(Value::Object(kept.capabilities), json!({"c": 3}));
    }

    #[test]
    fn too_long_a_residency_is_named_and_the_rest_is_taken() {
        let mut kept = Declaration::default();
        let errors = kept.update(sent(
            &json!({"data_residency": "x".repeat(65), "platform_version": "1.0"}),
        ));
        assert_eq!(errors, ["Data residency is too long (maximum is 64 characters)"]);
        assert_eq!(kept.data_residency, None);
        assert_eq!(kept.platform_version.as_deref(), Some("1.0"));
        assert!(
            kept.update(sent(&json!({"data_residency": "ü".repeat(64)})))
                .is_empty()
        );
    }

    #[test]
    fn nothing_that_a_peer_declares_grows_without_bound() {
        let mut kept = Declaration::default();
        let endpoints: Vec<Value> = (0..33).map(|_| json!({"url": "https://a"})).collect();
        let errors = kept.update(sent(&json!({
            "capabilities": {"a": "x".repeat(DECLARED_JSON_MAX_BYTES)},
            "endpoints": endpoints,
            "extension_slugs": ["x".repeat(513)],
            "platform_version": "1".repeat(513),
        })));
        assert_eq!(errors.len(), 4);
        assert_eq!(kept, Declaration::default());
    }

    #[test]
    fn bodies_that_are_none() {
        assert!(read_heartbeat(b"").is_ok());
        for bad in ["[]", "{", r#"{"endpoints":["a"]}"#, r#"{"capabilities":1}"#] {
            assert!(read_heartbeat(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
