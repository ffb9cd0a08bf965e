//! The bodies of a node's enrollment and of its renewal (contract section 4).

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::base::limit::foreign_text;

/// `POST …/node_api/enroll`. The token is in clear in it: built when it is sent, never stored or logged in
/// this form.
#[derive(Serialize)]
pub struct NodeEnrollRequest<'a> {
    /// The single-use credential.
    pub bootstrap_token: &'a str,
    /// PKCS#10 with the intended subject.
    pub csr_pem: &'a str,
    /// Version of this program.
    pub agent_version: &'a str,
    /// The machine's own id, where it has one that can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dmi_uuid: Option<&'a str>,
}

/// `POST …/node_api/enroll/refresh`, over mTLS with the certificate before.
#[derive(Serialize)]
pub struct NodeRefreshRequest<'a> {
    /// PKCS#10 of a new key.
    pub csr_pem: &'a str,
    /// Version of this program.
    pub agent_version: &'a str,
}

/// `data` of the answer to either.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NodeCertificate {
    /// The leaf.
    pub cert_pem: String,
    /// The anchors and intermediates.
    pub ca_chain_pem: String,
    /// The node's instance.
    #[serde(default, deserialize_with = "id_text")]
    pub instance_id: Option<String>,
    /// As whom the certificate lets its holder call.
    #[serde(default, deserialize_with = "id_text")]
    pub mtls_subject: Option<String>,
    /// The certificate, in the platform's records.
    #[serde(default, deserialize_with = "id_text")]
    pub certificate_id: Option<String>,
}

/// A text or a number, short and on one line: it is stored, shown, and written to files.
fn id_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(foreign_text(&text))),
        Value::Number(number) => Ok(Some(number.to_string())),
        _ => Err(D::Error::custom("an id is neither a text nor a number")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::contract::message::{ContractAnswer, read_answer};

    fn read(body: &Value) -> NodeCertificate {
        match read_answer(200, body.to_string().as_bytes()).unwrap() {
            ContractAnswer::Data(data) => data,
            ContractAnswer::Failure(failure) => panic!("{failure:?}"),
        }
    }

    #[test]
    fn answers_are_read_in_every_form() {
        let full = read(&json!({ "success": true, "data": {
            "cert_pem": "C", "ca_chain_pem": "A", "instance_id": "0192F0C1-1111-7111-8111-111111111111",
            "mtls_subject": "CN=x\nforged", "not_after": "2026-05-17T13:44:12.5Z", "certificate_id": 7, "more": {},
        }}));
        assert_eq!(
            full.instance_id.as_deref(),
            Some("0192F0C1-1111-7111-8111-111111111111")
        );
        assert_eq!(full.mtls_subject.as_deref(), Some("CN=x forged"));
        assert_eq!(full.certificate_id.as_deref(), Some("7"));
        let bare = read(&json!({ "data": { "cert_pem": "C", "ca_chain_pem": "A", "certificate_id": null } }));
        assert_eq!((bare.cert_pem.as_str(), bare.certificate_id), ("C", None));
    }
}
