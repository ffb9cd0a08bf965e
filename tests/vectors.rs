//! The contract's vectors against the library: `tests/fixtures/contract/` holds the parent's
//! contract as data. A case that is left out would be noticed: files are read whole, and names
//! that no test knows fail it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test says that it failed"
)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use data_encoding::HEXLOWER;
use powernode_satellite::base::id::{GrantId, InstanceId, NetworkId, PeerId};
use powernode_satellite::base::secret::Secret;
use powernode_satellite::base::time::UnixTime;
use powernode_satellite::contract::CONTRACT_VERSION;
use powernode_satellite::contract::invitation::{ContractVersion, ParentTrust, RawSpawnPayload};
use powernode_satellite::contract::message::{
    AcceptRequest, AcceptResponse, ContractAnswer, Disclosure, Endpoint, HeartbeatRequest, HeartbeatResponse,
    failure_body, read_answer, success_body,
};
use powernode_satellite::contract::peer::{
    HEARTBEAT_INTERVAL, HEARTBEAT_STALE_AFTER, PeerEvent, PeerKind, PeerStatus, SpawnMode,
};
use powernode_satellite::contract::token::AcceptanceToken;
use powernode_satellite::grant::{
    AccessRequest, BearerToken, Denial, Grant, GrantKey, GrantRequest, GrantState, LegacyTokens, NetworkPath,
    NewGrant, authorize,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

fn vectors<T: DeserializeOwned>(file: &str) -> T {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/contract")
        .join(file);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DigestCase {
    token: String,
    sha256_hex: String,
}

#[test]
fn acceptance_token_digests() {
    let cases: Vec<DigestCase> = vectors("acceptance_token_digests.json");
    assert!(!cases.is_empty());
    for case in cases {
        let token = AcceptanceToken::parse(case.token.clone()).unwrap();
        assert_eq!(token.digest().to_hex(), case.sha256_hex, "{}", case.token);
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionCase {
    input: String,
    value: Option<u32>,
}

#[test]
fn contract_version_parse() {
    let cases: Vec<VersionCase> = vectors("contract_version_parse.json");
    assert!(!cases.is_empty());
    for case in cases {
        let parsed = case.input.parse::<ContractVersion>();
        assert_eq!(
            parsed.as_ref().ok().map(|version| version.number()),
            case.value,
            "{:?}",
            case.input
        );
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantVectors {
    cases: Vec<GrantCase>,
    refused_on_save: Vec<Map<String, Value>>,
    accepted_on_save: Vec<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantCase {
    name: String,
    grant: GivenGrant,
    call: GivenCall,
    status: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenGrant {
    peer: String,
    resource_kind: String,
    resource_id: Option<String>,
    permission_scopes: Vec<String>,
    node_instance_ids: Vec<String>,
    sdwan_network_ids: Vec<String>,
    source_cidrs: Vec<String>,
    state: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenCall {
    peer: String,
    resource_kind: String,
    resource_id: Option<String>,
    scope: String,
    instance: Option<String>,
    network: Option<String>,
    network_bridge_active: bool,
    source_ip: Option<IpAddr>,
}

const ISSUED_AT: UnixTime = UnixTime::from_seconds(1_779_025_452);
const DAY: Duration = Duration::from_secs(86_400);

fn peer(name: &str) -> PeerId {
    let last = name.strip_prefix('P').expect("peers are named P1, P2, …");
    format!("0192f0c1-0000-7000-8000-{last:0>12}").parse().unwrap()
}

/// The grant as it stands in the named state, and a time at which it does.
fn grant_in_state(given: &GivenGrant) -> (Grant, UnixTime) {
    let mut request = GrantRequest::new(
        peer(&given.peer),
        "someone@example.com",
        &given.resource_kind,
        &[],
    );
    request.resource_id.clone_from(&given.resource_id);
    request.permission_scopes.clone_from(&given.permission_scopes);
    request.node_instance_ids.clone_from(&given.node_instance_ids);
    request.sdwan_network_ids.clone_from(&given.sdwan_network_ids);
    request.source_cidrs.clone_from(&given.source_cidrs);
    let id: GrantId = "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e".parse().unwrap();
    let mut grant = NewGrant::check(request).unwrap().issue(id, ISSUED_AT);
    let (now, state) = match given.state.as_str() {
        "active" => (ISSUED_AT.plus(DAY), GrantState::Active),
        "expired" => (grant.expires_at, GrantState::Expired),
        "revoked" => {
            grant.revoke("vector", ISSUED_AT).unwrap();
            (ISSUED_AT.plus(DAY), GrantState::Revoked)
        }
        "archived" => {
            grant.revoke("vector", ISSUED_AT).unwrap();
            let due = grant.archive_at().unwrap();
            assert!(grant.archive(due));
            (due, GrantState::Archived)
        }
        other => panic!("state {other}"),
    };
    assert_eq!(grant.state(now), state);
    (grant, now)
}

fn access_request(call: &GivenCall) -> AccessRequest<'_> {
    AccessRequest {
        peer: peer(&call.peer),
        resource_kind: &call.resource_kind,
        resource_id: call.resource_id.as_deref(),
        scope: call.scope.parse().unwrap(),
        instance: call.instance.as_deref().map(|id| id.parse().unwrap()),
        network: call.network.as_deref().map(|id| NetworkPath {
            id: id.parse().unwrap(),
            bridge_active: call.network_bridge_active,
        }),
        source: call.source_ip,
    }
}

#[test]
fn grant_authorization_cases() {
    let vectors: GrantVectors = vectors("grant_authorization.json");
    assert!(!vectors.cases.is_empty());
    for case in &vectors.cases {
        let (grant, now) = grant_in_state(&case.grant);
        let decision = authorize(&grant, &access_request(&case.call), now);
        let status = decision.as_ref().err().map_or(200, Denial::http_status);
        assert_eq!(status, case.status, "{}: {decision:?}", case.name);
        if let Err(denial) = decision
            && status == 403
        {
            names_list_and_value(case, &denial.answer());
        }
    }
}

/// Contract section 7: the 403 message names the allow-list and the value supplied.
fn names_list_and_value(case: &GrantCase, answer: &str) {
    let call = &case.call;
    let source = call.source_ip.map(|source| source.to_string());
    let supplied = [
        ("resource_kind", Some(&call.resource_kind)),
        ("resource_id", call.resource_id.as_ref()),
        ("permission_scopes", Some(&call.scope)),
        ("node_instance_ids", call.instance.as_ref()),
        ("sdwan_network_ids", call.network.as_ref()),
        ("source_cidrs", source.as_ref()),
    ];
    let (_, value) = supplied
        .into_iter()
        .find(|(list, _)| answer.starts_with(list))
        .unwrap_or_else(|| panic!("{}: `{answer}` names no list", case.name));
    let shown = value.map_or_else(|| "tells no".to_owned(), |value| format!("`{value}`"));
    assert!(answer.contains(&shown), "{}: `{answer}`", case.name);
}

/// A request that is in order, with the vector's fields put over it.
fn save(fields: &Map<String, Value>) -> Result<Grant, String> {
    let mut request = json!({
        "federation_peer_id": peer("P1"),
        "remote_subject": "someone@example.com",
        "resource_kind": "service",
        "permission_scopes": ["read"],
    });
    for (name, value) in fields {
        request[name] = value.clone();
    }
    let request: GrantRequest = serde_json::from_value(request).map_err(|error| error.to_string())?;
    let id: GrantId = "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e".parse().unwrap();
    NewGrant::check(request)
        .map(|grant| grant.issue(id, ISSUED_AT))
        .map_err(|error| error.to_string())
}

#[test]
fn grants_refused_and_accepted_on_save() {
    let vectors: GrantVectors = vectors("grant_authorization.json");
    assert!(!vectors.refused_on_save.is_empty() && !vectors.accepted_on_save.is_empty());
    for fields in &vectors.refused_on_save {
        let error = save(fields).expect_err(&format!("{fields:?}"));
        assert!(
            !error.contains("unknown field"),
            "{fields:?} was not looked at: {error}"
        );
    }
    for fields in &vectors.accepted_on_save {
        let grant = save(fields).unwrap_or_else(|error| panic!("{fields:?}: {error}"));
        if let Some(seconds) = fields.get("ttl_seconds").and_then(Value::as_u64) {
            assert_eq!(grant.expires_at, ISSUED_AT.plus(Duration::from_secs(seconds)));
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenVectors {
    secret_hex: String,
    message: String,
    cases: Vec<TokenCase>,
    malformed: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenCase {
    grant_id: GrantId,
    signature_hex: String,
    token: String,
    legacy_token: String,
}

#[test]
fn grant_tokens() {
    let vectors: TokenVectors = vectors("grant_tokens.json");
    assert_eq!(vectors.message, "federation-grant:<grant_id>");
    let secret = Secret::new(HEXLOWER.decode(vectors.secret_hex.as_bytes()).unwrap());
    let key = GrantKey::from_secret(&secret).unwrap();
    assert!(!vectors.cases.is_empty() && !vectors.malformed.is_empty());
    for case in &vectors.cases {
        let minted = BearerToken::mint(case.grant_id, &key).to_secret();
        assert_eq!(minted.expose_text(), Some(case.token.as_str()));
        assert!(case.token.ends_with(&case.signature_hex));
        let read = BearerToken::parse(&case.token).unwrap();
        assert_eq!(read.verify(&key, LegacyTokens::Refuse), Ok(case.grant_id));
        let legacy = BearerToken::parse(&case.legacy_token).unwrap();
        assert_eq!(legacy.verify(&key, LegacyTokens::Accept), Ok(case.grant_id));
        assert!(legacy.verify(&key, LegacyTokens::Refuse).is_err());
    }
    for text in &vectors.malformed {
        assert!(BearerToken::parse(text).is_err(), "{text}");
        let denial = BearerToken::from_authorization(Some(&format!("Bearer {text}"))).unwrap_err();
        assert_eq!(denial.http_status(), 401, "{text}");
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageVectors {
    spawn_payload_file: Value,
    accept_request: Value,
    accept_response: Value,
    accept_errors: Vec<AcceptError>,
    heartbeat_request: Value,
    heartbeat_response: Value,
    forwarded_headers: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AcceptError {
    status: u16,
    when: String,
    body: Value,
}

fn messages() -> MessageVectors {
    vectors("messages.json")
}

/// `data` of an answer, read as a client reads it.
fn data<T: DeserializeOwned>(answer: &Value) -> T {
    match read_answer(200, answer.to_string().as_bytes()).unwrap() {
        ContractAnswer::Data(data) => data,
        ContractAnswer::Failure(failure) => panic!("{failure:?}"),
    }
}

#[test]
fn spawn_payload_file() {
    let payload = messages().spawn_payload_file;
    let invitation = RawSpawnPayload::from_json(payload.to_string().as_bytes())
        .unwrap()
        .into_invitation(ParentTrust::SystemRoots)
        .unwrap()
        .unwrap();
    assert_eq!(payload["parent_url"], invitation.parent_url.as_str());
    assert_eq!(
        payload["acceptance_token"].as_str(),
        invitation.token.expose().expose_text()
    );
    assert_eq!(invitation.spawn_mode, SpawnMode::ManagedChild);
    assert_eq!(
        payload["parent_peer_id"],
        invitation.parent_peer_id.unwrap().to_string()
    );
    assert_eq!(invitation.contract_version, ContractVersion::CURRENT);
}

#[test]
fn accept_request_is_written_as_the_contract_has_it() {
    let expected = messages().accept_request;
    let endpoints: Vec<Endpoint> = serde_json::from_value(expected["endpoints"].clone()).unwrap();
    let disclosure: Disclosure =
        serde_json::from_value(expected["capabilities"]["disclosure"].clone()).unwrap();
    let written = serde_json::to_value(AcceptRequest {
        acceptance_token: expected["acceptance_token"].as_str().unwrap(),
        contract_version: CONTRACT_VERSION,
        extension_slugs: &[],
        capabilities: &json!({ "disclosure": disclosure }),
        endpoints: &endpoints,
        csr_pem: expected["csr_pem"].as_str(),
        peer_ca_bundle_pem: None,
        caller_inbound_subject: None,
    })
    .unwrap();
    assert_eq!(written, expected);
}

#[test]
fn accept_response_is_read_and_written() {
    let given = messages().accept_response;
    let response: AcceptResponse = data(&given);
    assert_eq!(response.status, PeerStatus::Enrolled);
    assert_eq!(response.peer_kind, PeerKind::Platform);
    assert_eq!(response.contract_version_agreed, CONTRACT_VERSION);
    let certificate = response.federation_certificate.as_ref().unwrap();
    assert_eq!(certificate.not_after.to_string(), "2026-08-15T13:44:12Z");

    let node = response.delivery.node_enrollment.as_ref().unwrap();
    let told = &given["data"]["node_enrollment"];
    assert_eq!(node.intended_subject, told["intended_subject"].as_str().unwrap());
    assert_eq!(
        node.bootstrap_token.expose_text(),
        told["bootstrap_token"].as_str()
    );
    assert_eq!(
        node.platform_url.to_string(),
        told["platform_url"].as_str().unwrap()
    );

    // A server of ours has no nodes; the rest comes out as it went in.
    let mut expected = given;
    expected["data"]
        .as_object_mut()
        .unwrap()
        .remove("node_enrollment")
        .unwrap();
    assert_eq!(success_body(&response), expected);
}

#[test]
fn accept_errors_are_read_and_written() {
    let errors = messages().accept_errors;
    assert!(!errors.is_empty());
    for error in errors {
        let text = error.body["error"].as_str().unwrap();
        assert_eq!(failure_body(text, None), error.body, "{}", error.when);
        match read_answer::<AcceptResponse>(error.status, error.body.to_string().as_bytes()).unwrap() {
            ContractAnswer::Failure(failure) => {
                assert_eq!(
                    (failure.http_status, failure.error.as_str()),
                    (error.status, text)
                );
            }
            ContractAnswer::Data(_) => panic!("{}", error.when),
        }
    }
}

#[test]
fn heartbeat_request_is_read_and_written() {
    let given = messages().heartbeat_request;
    let request: HeartbeatRequest = serde_json::from_value(given.clone()).unwrap();
    let disclosure: Disclosure = serde_json::from_value(request.capabilities["disclosure"].clone()).unwrap();
    assert_eq!(disclosure.operator_contact, "ops@example.com");
    assert_eq!(serde_json::to_value(request).unwrap(), given);
}

#[test]
fn heartbeat_response_is_read_and_written() {
    let given = messages().heartbeat_response;
    let response: HeartbeatResponse = data(&given);
    assert_eq!(response.status, PeerStatus::Active);
    assert_eq!(
        response.schema_compatibility.as_ref().unwrap().status,
        "compatible"
    );
    assert_eq!(success_body(&response), given);
}

#[test]
fn forwarded_headers_hold_ids_of_ours() {
    let headers = messages().forwarded_headers;
    for (name, value) in &headers {
        let value = value.as_str().unwrap();
        match name.as_str() {
            "X-Forwarded-Tls-Client-Cert-Info" => {
                let id = value
                    .strip_prefix("Subject%3D%22CN%3Dfed%3A")
                    .and_then(|rest| rest.strip_suffix("%22"))
                    .unwrap();
                assert!(id.parse::<PeerId>().is_ok(), "{value}");
            }
            "X-Calling-Instance" => {
                assert!(value.parse::<InstanceId>().is_ok());
            }
            "X-Sdwan-Network" => {
                assert!(value.parse::<NetworkId>().is_ok());
            }
            other => panic!("header {other}"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StateVectors {
    states: Vec<PeerStatus>,
    allowed: BTreeMap<String, Vec<PeerStatus>>,
    heartbeat: BTreeMap<String, Option<PeerStatus>>,
    #[serde(rename = "heartbeat_note")]
    _heartbeat_note: String,
    inbound_allowed: Vec<PeerStatus>,
    stale_after_seconds: u64,
    heartbeat_interval_seconds: u64,
}

#[test]
fn peer_state_machine() {
    let vectors: StateVectors = vectors("peer_state_machine.json");
    assert_eq!(PeerStatus::ALL, vectors.states);
    assert_eq!(vectors.allowed.len(), vectors.states.len());
    assert_eq!(vectors.heartbeat.len(), vectors.states.len());
    for &status in &vectors.states {
        assert_eq!(status.may_become(), vectors.allowed[status.as_str()], "{status}");
        assert_eq!(
            status.apply(PeerEvent::Heartbeat).ok(),
            vectors.heartbeat[status.as_str()],
            "{status}"
        );
        assert_eq!(
            status.inbound_allowed(),
            vectors.inbound_allowed.contains(&status),
            "{status}"
        );
    }
    assert_eq!(HEARTBEAT_STALE_AFTER.as_secs(), vectors.stale_after_seconds);
    assert_eq!(HEARTBEAT_INTERVAL.as_secs(), vectors.heartbeat_interval_seconds);
}

#[test]
fn every_transition_of_the_table_can_be_made_by_an_event() {
    let vectors: StateVectors = vectors("peer_state_machine.json");
    for &from in &vectors.states {
        for to in &vectors.allowed[from.as_str()] {
            let by = PeerEvent::ALL.iter().find(|event| from.apply(**event) == Ok(*to));
            assert!(by.is_some(), "nothing takes a peer from {from} to {to}");
        }
    }
}
