//! What answers look like, whichever side of a peering gives them: contract sections 7 and 8.

use serde_json::{Value, json};

use super::client::Answer;
use super::server_cases::assert_time;

/// The id of nobody and nothing.
pub const ELSE: &str = "0192f0c1-5555-7555-8555-555555555555";

/// A service catalog.
pub fn assert_catalog(answer: &Answer) {
    let data = answer.data();
    assert!(data["offerings"].is_array(), "{data}");
    assert_time(&data["generated_at"]);
}

/// The certificates of a trust bundle, as PEM.
pub fn bundle_of(answer: &Answer) -> &str {
    let data = answer.data();
    assert_time(&data["generated_at"]);
    let pem = data["ca_bundle_pem"].as_str().unwrap();
    assert!(pem.contains("BEGIN CERTIFICATE"), "{data}");
    pem
}

/// What is said of a resource.
pub fn assert_resource(answer: &Answer, kind: &str, id: &str) {
    let data = answer.data();
    assert_eq!((&data["kind"], &data["id"]), (&json!(kind), &json!(id)));
    assert!(data["exists"].is_boolean(), "{data}");
    assert_time(&data["fetched_at"]);
    assert_fields(data, &["account_id", "grant_id"]);
}

/// The id of the grant that a subscription has made.
pub fn subscribed(answer: &Answer) -> &str {
    assert_eq!(answer.status, 201);
    let data = answer.data();
    assert_fields(
        data,
        &[
            "backend_host",
            "backend_port",
            "protocol",
            "ttl_seconds",
            "service_offering_id",
        ],
    );
    assert_time(&data["expires_at"]);
    data["grant_id"].as_str().unwrap()
}

fn assert_fields(data: &Value, fields: &[&str]) {
    for field in fields {
        assert!(data.as_object().unwrap().contains_key(*field), "{field}: {data}");
    }
}
