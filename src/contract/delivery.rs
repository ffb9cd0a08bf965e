//! What an accept's answer delivers beyond the federation certificate (contract sections 3, 4 and 11):
//! a node's enrollment, the other side's CA, and whatever else a parent puts there. Read once, leniently:
//! a part that cannot be used never costs the join, it is said. Holds secrets; knows no store and no
//! machine.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::invitation::ParentUrl;
use crate::base::limit::foreign_text;
use crate::base::secret::{self, Secret};
use crate::base::time::UnixTime;

/// Largest remainder of an answer that is kept, in bytes: configuration of a cluster or a network is some
/// KiB, and each write of the membership writes it again.
pub const REST_MAX_BYTES: usize = 32 * 1024;

/// Largest CA bundle that is taken, in bytes: a dozen anchors are below that.
pub const CA_BUNDLE_MAX_BYTES: usize = 32 * 1024;

/// Longest subject that a parent may assign, in bytes: what X.520 allows for a common name.
const SUBJECT_MAX_BYTES: usize = 64;

/// Longest bootstrap token that is taken, in bytes: the published ones have some dozen.
const BOOTSTRAP_TOKEN_MAX_BYTES: usize = 4 * 1024;

/// By what a managed child's box becomes a node of the platform (contract section 4).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeEnrollment {
    /// The single-use credential.
    #[serde(with = "secret::stored")]
    pub bootstrap_token: Secret,
    /// Where to enroll.
    pub platform_url: ParentUrl,
    /// The common name of the request, letter for letter: the id of the node's instance.
    pub intended_subject: String,
    /// Until when the token is good, where the parent told it.
    pub expires_at: Option<UnixTime>,
}

/// The other side's half of symmetric trust (contract section 3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustExchange {
    /// What the other side's certificates are verified by, as PEM.
    pub ca_bundle_pem: String,
    /// The common name with which this side is to show itself.
    pub assigned_inbound_subject: String,
}

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub struct Delivery {
    /// A node's enrollment.
    pub node_enrollment: Option<NodeEnrollment>,
    /// The other side's CA.
    pub trust_exchange: Option<TrustExchange>,
    /// All other fields of the answer, as one JSON object; empty when there are none. May hold secrets.
    pub rest: Secret,
    /// What was delivered and cannot be used, in words.
    pub unusable: Vec<String>,
}

impl Delivery {
    /// Takes what is in the fields of an answer that no other type has read.
    pub fn of(mut fields: Map<String, Value>) -> Self {
        let mut unusable = Vec::new();
        let mut take = |name: &str| fields.remove(name).filter(|value| !value.is_null());
        let (node, trust) = (take("node_enrollment"), take("trust_exchange"));
        let node_enrollment = node.map(NodeEnrollment::read).transpose();
        let trust_exchange = trust.map(TrustExchange::read).transpose();
        for why in [node_enrollment.as_ref().err(), trust_exchange.as_ref().err()]
            .into_iter()
            .flatten()
        {
            unusable.push(why.clone());
        }
        let mut rest = Secret::default();
        if !fields.is_empty() {
            let text = Secret::from_text(Value::Object(fields).to_string());
            if text.len() <= REST_MAX_BYTES {
                rest = text;
            } else {
                unusable.push(format!(
                    "what else came with the answer has {} bytes, more than the {REST_MAX_BYTES} that are kept",
                    text.len()
                ));
            }
        }
        Self {
            node_enrollment: node_enrollment.ok().flatten(),
            trust_exchange: trust_exchange.ok().flatten(),
            rest,
            unusable,
        }
    }
}

impl<'de> Deserialize<'de> for Delivery {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Map::deserialize(deserializer).map(Self::of)
    }
}

impl NodeEnrollment {
    fn read(value: Value) -> Result<Self, String> {
        let unusable = |why: &str| format!("the parent's node_enrollment cannot be used: {why}");
        let mut fields = object(value).ok_or_else(|| unusable("it is no object"))?;
        let mut text = |name: &str, max: usize| {
            let told = taken(&mut fields, name, max);
            told.ok_or_else(|| unusable(&format!("it has no {name}, or none of a usable length")))
        };
        let bootstrap_token = Secret::from_text(text("bootstrap_token", BOOTSTRAP_TOKEN_MAX_BYTES)?);
        let platform_url = text("platform_url", usize::MAX)?
            .parse::<ParentUrl>()
            .map_err(|error| unusable(&error.to_string()))?;
        let intended_subject = text("intended_subject", SUBJECT_MAX_BYTES)?;
        let expires_at = match fields.get("expires_at").and_then(Value::as_str) {
            Some(told) => Some(told.parse().map_err(|_| unusable("expires_at is no time"))?),
            None => None,
        };
        Ok(Self {
            bootstrap_token,
            platform_url,
            intended_subject,
            expires_at,
        })
    }
}

impl TrustExchange {
    fn read(value: Value) -> Result<Self, String> {
        let unusable = |why: &str| format!("the parent's trust_exchange cannot be used: {why}");
        let mut fields = object(value).ok_or_else(|| unusable("it is no object"))?;
        let mut text = |name: &str, max: usize| {
            let told = taken(&mut fields, name, max);
            told.ok_or_else(|| unusable(&format!("it has no {name}, or none of a usable length")))
        };
        Ok(Self {
            ca_bundle_pem: text("ca_bundle_pem", CA_BUNDLE_MAX_BYTES)?,
            assigned_inbound_subject: text("assigned_inbound_subject", SUBJECT_MAX_BYTES)?,
        })
    }
}

fn object(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(fields) => Some(fields),
        _ => None,
    }
}

/// A text that is there and not too long, out of its object: secrets are not copied.
fn taken(fields: &mut Map<String, Value>, name: &str, max: usize) -> Option<String> {
    match fields.remove(name) {
        Some(Value::String(text)) if !text.trim().is_empty() && text.len() <= max => Some(text),
        _ => None,
    }
}

/// Most warnings of an accept that are kept and shown: the published parent has four soft steps, and ours
/// are a few more.
const WARNINGS_MAX: usize = 8;

/// A parent's warnings as they may be stored, logged and shown: few, short, each on one line.
pub fn shown_warnings<'a>(warnings: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    warnings
        .into_iter()
        .take(WARNINGS_MAX)
        .map(|warning| foreign_text(warning))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn delivery(value: &Value) -> Delivery {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[test]
    fn each_part_finds_its_place_and_the_rest_is_kept_as_it_came() {
        let delivered = delivery(&json!({
            "node_enrollment": {
                "bootstrap_token": "boot-secret",
                "platform_url": "https://platform.example.com/",
                "intended_subject": "0192F0C1-7C1E-7A53-9D0E-3F2B5A6C7D8E",
                "expires_at": "2026-05-17T15:44:12.5+02:00",
                "more": 1,
            },
            "trust_exchange": { "ca_bundle_pem": "PEM", "assigned_inbound_subject": "fed:x" },
            "sdwan_attach": { "key": "wg-secret" },
            "governance": null,
        }));
        let node = delivered.node_enrollment.as_ref().unwrap();
        assert_eq!(node.bootstrap_token.expose(), b"boot-secret");
        assert_eq!(
            node.intended_subject, "0192F0C1-7C1E-7A53-9D0E-3F2B5A6C7D8E",
            "as it was given"
        );
        assert_eq!(node.expires_at.unwrap().to_string(), "2026-05-17T13:44:12Z");
        assert_eq!(
            delivered
                .trust_exchange
                .as_ref()
                .unwrap()
                .assigned_inbound_subject,
            "fed:x"
        );
        let rest: Value = serde_json::from_slice(delivered.rest.expose()).unwrap();
        assert_eq!(
            rest,
            json!({ "sdwan_attach": { "key": "wg-secret" }, "governance": null })
        );
        assert!(delivered.unusable.is_empty());
        let shown = format!("{delivered:?}");
        assert!(
            !shown.contains("boot-secret") && !shown.contains("wg-secret"),
            "{shown}"
        );
    }

    #[test]
    fn a_part_that_cannot_be_used_is_said_and_costs_nothing_else() {
        for (given, why) in [
            (json!("soon"), "no object"),
            (json!({}), "bootstrap_token"),
            (
                json!({ "bootstrap_token": "t", "platform_url": "http://p" }),
                "http would send",
            ),
            (
                json!({ "bootstrap_token": "t", "platform_url": "https://p", "intended_subject": " " }),
                "intended_subject",
            ),
            (
                json!({ "bootstrap_token": "t", "platform_url": "https://p", "intended_subject": "s", "expires_at": "never" }),
                "no time",
            ),
        ] {
            let delivered = delivery(&json!({ "node_enrollment": given }));
            assert!(delivered.node_enrollment.is_none());
            assert!(delivered.unusable[0].contains(why), "{:?}", delivered.unusable);
        }
        let delivered = delivery(&json!({ "node_enrollment": null, "trust_exchange": null }));
        assert!(delivered.unusable.is_empty() && delivered.rest.is_empty());
    }

    #[test]
    fn a_rest_without_bound_is_left_and_said() {
        let delivered = delivery(&json!({ "cluster": "x".repeat(REST_MAX_BYTES) }));
        assert!(delivered.rest.is_empty());
        assert!(
            delivered.unusable[0].contains("bytes"),
            "{:?}",
            delivered.unusable
        );
    }
}
