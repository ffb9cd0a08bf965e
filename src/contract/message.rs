//! The contract's JSON bodies (sections 3 to 5) and its answer envelope. Requests are what we
//! send; answers are read leniently: unknown fields are left alone, missing optional ones are
//! filled in, bare and wrapped forms are taken.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::PLATFORM_ANSWER_LOST;
use super::delivery::{Delivery, TrustExchange};
use super::peer::{PeerKind, PeerStatus};
use crate::base::id::PeerId;
use crate::base::limit::foreign_text;
use crate::base::time::{UnixTime, rfc3339};

/// Where one side can be reached (contract section 1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Base URL; clients join it with the path.
    pub url: String,
    /// `wan`, `sdwan`, `lan`, or a word of the other side's.
    #[serde(default = "default_scope")]
    pub scope: String,
    /// Lower is tried first.
    #[serde(default = "default_priority")]
    pub priority: u32,
    /// Network in which the endpoint is of use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr_hint: Option<String>,
}

fn default_scope() -> String {
    "wan".to_owned()
}

const fn default_priority() -> u32 {
    100
}

/// Who runs this box and where: social contract 1, told in every heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disclosure {
    /// How to reach the operator.
    pub operator_contact: String,
    /// Where the box stands.
    pub location: String,
    /// The release that runs, for example `v0.1.0`.
    pub release: String,
}

/// `POST …/federation_api/accept` as we send it. The token is in clear in it: it is built when
/// it is sent and never stored or logged in this form.
#[derive(Serialize)]
pub struct AcceptRequest<'a> {
    /// The single-use credential.
    pub acceptance_token: &'a str,
    /// Always the integer: contract section 11.
    pub contract_version: u32,
    /// Extensions of this side.
    pub extension_slugs: &'a [String],
    /// `{"disclosure": …}`.
    pub capabilities: &'a Value,
    /// Where this side can be reached.
    pub endpoints: &'a [Endpoint],
    /// PKCS#10, for the parent to sign.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csr_pem: Option<&'a str>,
    /// The box's own authority, where it is an equal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_ca_bundle_pem: Option<&'a str>,
    /// The common name with which the parent is to show itself to an equal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller_inbound_subject: Option<&'a str>,
}

/// The certificate of an accept or a refresh (contract section 3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FederationCertificate {
    /// The leaf.
    pub cert_pem: String,
    /// The anchors and intermediates.
    pub ca_chain_pem: String,
    /// Upper-case hex.
    #[serde(default)]
    pub serial: String,
    /// End of validity.
    #[serde(with = "rfc3339")]
    pub not_after: UnixTime,
}

/// `data` of an accept's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AcceptResponse {
    /// The parent's id for this peering.
    pub peer_id: PeerId,
    /// `enrolled` for platform peers.
    pub status: PeerStatus,
    /// What the parent takes us for.
    #[serde(default = "platform_kind")]
    pub peer_kind: PeerKind,
    /// The version both sides speak from now on.
    #[serde(default = "version_1")]
    pub contract_version_agreed: u32,
    /// When the parent accepted.
    #[serde(default, with = "rfc3339::option")]
    pub accepted_at: Option<UnixTime>,
    /// When the parent enrolled.
    #[serde(default, with = "rfc3339::option")]
    pub handshake_at: Option<UnixTime>,
    /// Absent when the CSR was not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub federation_certificate: Option<FederationCertificate>,
    /// Soft steps that failed on the parent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// All else; the embedded parent has nothing.
    #[serde(flatten, skip_serializing)]
    pub delivery: Delivery,
}

/// By what the two sides know each other from an accept on (contract section 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AcceptedTrust {
    /// The parent has certified this side's key.
    Hierarchical(FederationCertificate),
    /// Each side certifies itself, and has given the other its CA.
    Symmetric(TrustExchange),
}

impl AcceptResponse {
    /// What the answer establishes; where both came, the certificate, as for the parent the CSR wins. None is
    /// what a parent gives whose certificate authority has failed (contract section 11).
    pub fn trust(&self) -> Option<AcceptedTrust> {
        let certificate = self.federation_certificate.clone();
        certificate.map(AcceptedTrust::Hierarchical).or_else(|| {
            let exchange = self.delivery.trust_exchange.clone();
            exchange.map(AcceptedTrust::Symmetric)
        })
    }
}

const fn platform_kind() -> PeerKind {
    PeerKind::Platform
}

const fn version_1() -> u32 {
    1
}

/// `POST /tunnel/v1/dial_back`, between a satellite and its host-bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DialBackRequest {
    /// Where the satellite believes to be reachable.
    pub endpoint: std::net::SocketAddr,
    /// What the bridge has to show there: 32 hex digits.
    pub nonce: String,
    /// In what.
    #[serde(default)]
    pub over: DialBackOver,
}

/// What is spoken at an endpoint that is proven. A bridge that does not know of it speaks the tunnel's
/// protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DialBackOver {
    /// The tunnel's protocol over QUIC.
    #[default]
    Quic,
    /// HTTPS: a GET of the dial-back's own path, with the nonce behind it.
    Https,
}

/// `POST /tunnel/v1/direct`, between a satellite and its host-bridge: dial for a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectRequest {
    /// Where the satellite can be reached.
    pub endpoint: std::net::SocketAddr,
    /// What the bridge has to show there: 32 hex digits.
    pub nonce: String,
    /// The bridge's name, as the satellite has it: by it the bridge makes itself known where it dials
    /// again by itself.
    pub bridge: String,
}

/// `data` of the answer to either.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DialBackAnswer {
    /// Whether this very satellite answered there.
    pub reached: bool,
    /// In what.
    #[serde(default)]
    pub over: DialBackOver,
    /// What came instead.
    #[serde(default)]
    pub error: Option<String>,
}

/// `POST …/federation_api/heartbeat` (contract section 5).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatRequest {
    /// Replaces what the parent holds; `{}` changes nothing.
    #[serde(default)]
    pub capabilities: Map<String, Value>,
    /// Replaces what the parent holds; `[]` changes nothing.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// Replaces what the parent holds; `{}` changes nothing.
    #[serde(default)]
    pub sync_cursor: Map<String, Value>,
    /// Extensions of the sender.
    #[serde(default)]
    pub extension_slugs: Vec<String>,
    /// Semantic version of the sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform_version: Option<String>,
    /// At most 64 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_residency: Option<String>,
}

/// Endpoint of the parent in a heartbeat's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OurEndpoint {
    /// Base URL.
    pub url: String,
    /// Scope word.
    #[serde(default = "default_scope")]
    pub scope: String,
}

/// How the two sides' versions fit (contract section 5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaCompatibility {
    /// `compatible`, `incompatible` or a word of the parent's.
    pub status: String,
    /// `default`, `implicit` or a word of the parent's.
    #[serde(default)]
    pub source: Option<String>,
    /// The parent's version.
    #[serde(default)]
    pub local_version: Option<String>,
    /// Our version as the parent read it.
    #[serde(default)]
    pub remote_version: Option<String>,
    /// Free text.
    #[serde(default)]
    pub notes: Option<String>,
}

/// `data` of a heartbeat's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatResponse {
    /// The peering as the parent sees it.
    pub status: PeerStatus,
    /// The parent's clock at the heartbeat.
    #[serde(default, with = "rfc3339::option")]
    pub last_heartbeat_at: Option<UnixTime>,
    /// Where the parent can be reached.
    #[serde(default)]
    pub our_endpoints: Vec<OurEndpoint>,
    /// How the versions fit.
    #[serde(default)]
    pub schema_compatibility: Option<SchemaCompatibility>,
    /// Fingerprints of the authorities in the parent's trust bundle: a hint that it is another one. Only our
    /// host-bridge sends it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust_anchors: Vec<String>,
}

/// `data` of a trust bundle (contract section 8).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustBundle {
    /// The authorities.
    pub ca_bundle_pem: String,
    /// By which older authorities vouch for newer ones. Only our own programs send it.
    #[serde(default)]
    pub cross_certificates_pem: Option<String>,
}

/// A refused or failed contract request, as the other side words it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContractFailure {
    /// The HTTP status.
    pub http_status: u16,
    /// The `error` text, shortened and on one line; empty when there was none.
    pub error: String,
    /// The `code`, where there is one.
    pub code: Option<String>,
    /// The `Retry-After`, which the client takes from the answer's head.
    pub retry_after: Option<Duration>,
}

impl ContractFailure {
    /// Whether what was asked may have been done all the same: by a parent that broke, behind a gateway that gave up,
    /// or before a host-bridge lost its platform's answer.
    pub fn may_be_done(&self) -> bool {
        matches!(self.http_status, 500 | 502 | 504) || self.code.as_deref() == Some(PLATFORM_ANSWER_LOST)
    }
}

/// What came back on a contract request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContractAnswer<T> {
    /// Success with its data.
    Data(T),
    /// The other side said no, or broke.
    Failure(ContractFailure),
}

/// An answer that claims success but cannot be used.
#[derive(Debug, Error)]
#[error("the answer (HTTP {http_status}) is not what contract version 1 says: {why}")]
pub struct UnusableAnswer {
    /// The HTTP status.
    pub http_status: u16,
    /// What is wrong, without the body.
    pub why: String,
}

/// Reads an answer in any of the published forms: `{"success":true,"data":…}`, bare
/// `{"data":…}`, `{"success":false,"error":…}`, bare `{"error":…}`, or no JSON at all.
pub fn read_answer<T: DeserializeOwned>(
    http_status: u16,
    body: &[u8],
) -> Result<ContractAnswer<T>, UnusableAnswer> {
    Ok(match read_untyped_answer(http_status, body)? {
        ContractAnswer::Data(data) => {
            ContractAnswer::Data(serde_json::from_value(data).map_err(|error| UnusableAnswer {
                http_status,
                why: foreign_text(&error.to_string()),
            })?)
        }
        ContractAnswer::Failure(failure) => ContractAnswer::Failure(failure),
    })
}

fn read_untyped_answer(http_status: u16, body: &[u8]) -> Result<ContractAnswer<Value>, UnusableAnswer> {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let field = |name: &str| parsed.as_ref().and_then(|value| value.get(name));
    let text = |name: &str| field(name).and_then(Value::as_str).map(foreign_text);
    let says_failure = field("success") == Some(&Value::Bool(false));
    if !(200..300).contains(&http_status) || says_failure {
        return Ok(ContractAnswer::Failure(ContractFailure {
            http_status,
            error: text("error").unwrap_or_default(),
            code: text("code"),
            retry_after: None,
        }));
    }
    let unusable = |why: String| UnusableAnswer { http_status, why };
    if parsed.is_none() {
        return Err(unusable("it is not JSON".to_owned()));
    }
    let data = field("data").cloned();
    data.map(ContractAnswer::Data)
        .ok_or_else(|| unusable("it has no `data`".to_owned()))
}

/// The success form that a server of ours always sends.
pub fn success_body(data: &impl Serialize) -> Value {
    json!({ "success": true, "data": data })
}

/// The failure form that a server of ours always sends.
pub fn failure_body(error: &str, code: Option<&str>) -> Value {
    match code {
        Some(code) => json!({ "success": false, "error": error, "code": code }),
        None => json!({ "success": false, "error": error }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(status: u16, body: &str) -> Result<ContractAnswer<HeartbeatResponse>, UnusableAnswer> {
        read_answer(status, body.as_bytes())
    }

    #[test]
    fn wrapped_and_bare_successes_are_the_same() {
        let wrapped = read(200, r#"{"success":true,"data":{"status":"active","extra":1}}"#).unwrap();
        let bare = read(200, r#"{"data":{"status":"active","last_heartbeat_at":null}}"#).unwrap();
        assert_eq!(wrapped, bare);
    }

    #[test]
    fn failures_in_every_form() {
        for (status, body, error) in [
            (
                401,
                r#"{"success":false,"error":"no","code":"UNAUTHORIZED"}"#,
                "no",
            ),
            (403, r#"{"error":"no"}"#, "no"),
            (200, r#"{"success":false,"error":"no"}"#, "no"),
            (404, "", ""),
            (502, "<html>bad gateway</html>", ""),
        ] {
            match read(status, body).unwrap() {
                ContractAnswer::Failure(failure) => {
                    assert_eq!((failure.http_status, failure.error.as_str()), (status, error));
                }
                ContractAnswer::Data(_) => panic!("{body}"),
            }
        }
    }

    #[test]
    fn a_success_that_cannot_be_used_says_why() {
        for (body, why) in [
            ("<html>", "not JSON"),
            ("{}", "no `data`"),
            (r#"{"data":{}}"#, "status"),
        ] {
            assert!(read(200, body).unwrap_err().to_string().contains(why), "{body}");
        }
    }
}
