//! The operator API's verbs as tools for assistants (Model Context Protocol, JSON-RPC over one
//! POST; contract section 9 names the tools). Stateless: no session, no stream of events.

use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tracing::info;

use super::acceptance::AcceptCall;
use super::operator_api::{Operator, OperatorApi, ProposalFields};
use super::permission::{Action, PeerAction, PeerRef, Role};
use super::registry::AcceptError;
use super::reply::Reply;
use crate::base::limit::{error_chain, foreign_text};
use crate::grant::GrantRequest;

/// Versions of the protocol that are answered as asked; to others the first is offered.
const PROTOCOL_VERSIONS: &[&str] = &["2025-06-18", "2025-03-26", "2024-11-05"];

const PROPOSE: &str = "system_sdwan_propose_federation_peer";
const ACCEPT: &str = "system_sdwan_accept_federation_peer";
const GRANT: &str = "system_sdwan_create_access_grant";

// Codes of JSON-RPC 2.0.
const PARSE_ERROR: i64 = -32_700;
const INVALID_REQUEST: i64 = -32_600;
const METHOD_NOT_FOUND: i64 = -32_601;
const INVALID_PARAMS: i64 = -32_602;

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    jsonrpc: String,
    #[serde(default)]
    id: Option<Value>,
    #[serde(default)]
    method: String,
    #[serde(default)]
    params: Map<String, Value>,
}

struct RpcError(i64, String);

/// Answers one message. Blocks on the disk.
pub(super) fn answer(api: &OperatorApi, body: &[u8], operator: &Operator) -> Reply {
    let message: Message = match serde_json::from_slice(body) {
        Ok(message) => message,
        Err(error) => {
            let why = foreign_text(&error.to_string());
            return failed(
                &Value::Null,
                &RpcError(PARSE_ERROR, format!("this is no JSON-RPC message: {why}")),
            );
        }
    };
    // A notification is not answered, whatever it says.
    let Some(id) = message.id else {
        return Reply::raw(StatusCode::ACCEPTED, None);
    };
    if message.jsonrpc != "2.0" {
        return failed(
            &id,
            &RpcError(INVALID_REQUEST, "jsonrpc must be \"2.0\"".to_owned()),
        );
    }
    let result = match message.method.as_str() {
        "initialize" => Ok(initialize(&message.params)),
        "ping" => Ok(json!({})),
        "tools/list" => Ok(json!({ "tools": tools_for(operator) })),
        "tools/call" => call(api, &message.params, operator),
        other => Err(RpcError(
            METHOD_NOT_FOUND,
            format!("there is no method `{}`", foreign_text(other)),
        )),
    };
    match result {
        Ok(result) => Reply::raw(
            StatusCode::OK,
            Some(&json!({ "jsonrpc": "2.0", "id": id, "result": result })),
        ),
        Err(error) => failed(&id, &error),
    }
}

fn failed(id: &Value, RpcError(code, message): &RpcError) -> Reply {
    Reply::raw(
        StatusCode::OK,
        Some(&json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })),
    )
}

fn initialize(params: &Map<String, Value>) -> Value {
    let asked = params.get("protocolVersion").and_then(Value::as_str);
    let version = PROTOCOL_VERSIONS
        .iter()
        .find(|known| Some(**known) == asked)
        .or(PROTOCOL_VERSIONS.first());
    json!({
        "protocolVersion": version,
        "capabilities": { "tools": {} },
        "serverInfo": { "name": "powernode-host-bridge", "version": env!("CARGO_PKG_VERSION") },
    })
}

/// The tools that somebody may use: all of them decide who is in.
fn tools_for(operator: &Operator) -> Value {
    match operator.identity().role {
        Role::Admin => tools(),
        Role::Operator | Role::Viewer => json!([]),
    }
}

fn tools() -> Value {
    let text = json!({ "type": "string" });
    let texts = json!({ "type": "array", "items": { "type": "string" } });
    json!([
        {
            "name": PROPOSE,
            "description": "Propose a federation peer: makes a row in `proposed`; nothing is contacted.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "name": text, "description": text, "remote_instance_url": text,
                    "peer_kind": { "enum": ["platform", "sdwan_only"] },
                    "spawn_role": { "enum": ["parent", "child", "symmetric"] },
                    "spawn_mode": {
                        "enum": ["managed_child", "autonomous_peer", "cluster_member", "out_of_band"]
                    },
                },
            },
        },
        {
            "name": ACCEPT,
            "description": "Carry out a child's accept with its acceptance token and CSR.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "acceptance_token": text, "contract_version": { "type": "integer" }, "csr_pem": text,
                    "capabilities": { "type": "object" }, "endpoints": { "type": "array" },
                    "extension_slugs": texts,
                },
                "required": ["acceptance_token", "contract_version"],
            },
        },
        {
            "name": GRANT,
            "description": "Grant a peer's subject access here. The bearer token is shown once. \
                Empty lists mean no restriction.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "federation_peer_id": text, "remote_subject": text, "resource_kind": text,
                    "resource_id": text, "permission_scopes": texts, "node_instance_ids": texts,
                    "sdwan_network_ids": texts, "source_cidrs": texts,
                    "ttl_seconds": { "type": "integer" },
                },
                "required": ["federation_peer_id", "remote_subject", "resource_kind", "permission_scopes"],
            },
        },
    ])
}

fn call(api: &OperatorApi, params: &Map<String, Value>, operator: &Operator) -> Result<Value, RpcError> {
    let name = params.get("name").and_then(Value::as_str).unwrap_or_default();
    let arguments = params.get("arguments").cloned().unwrap_or_else(|| json!({}));
    let outcome = match name {
        PROPOSE => propose(api, read(arguments)?, operator),
        ACCEPT => accept(api, &arguments, operator),
        GRANT => grant(api, read(arguments)?, operator),
        other => {
            return Err(RpcError(
                INVALID_PARAMS,
                format!(
                    "there is no tool `{}`; tools/list names them",
                    foreign_text(other)
                ),
            ));
        }
    };
    info!(%operator, tool = name, done = outcome.is_ok(), "a tool was called");
    let (text, is_error) = match outcome {
        Ok(data) => (data.to_string(), false),
        Err(why) => (why, true),
    };
    Ok(json!({ "content": [{ "type": "text", "text": text }], "isError": is_error }))
}

fn propose(api: &OperatorApi, asked: ProposalFields, operator: &Operator) -> Result<Value, String> {
    let proposal = asked.proposal().map_err(|error| error.to_string())?;
    api.check_invitation(&proposal, operator)
        .map_err(|why| why.to_string())?;
    api.propose(&proposal, operator)
        .map_err(|error| error.to_string())
}

/// Whose token it is shows when it is used: only who may invite every peer carries an accept out.
fn accept(api: &OperatorApi, arguments: &Value, operator: &Operator) -> Result<Value, String> {
    api.check(operator, &Action::OnPeer(PeerAction::Invite, PeerRef::Nameless))
        .map_err(|why| why.to_string())?;
    let registry = api.registry().map_err(|error| error.to_string())?;
    AcceptCall::read(arguments.to_string().as_bytes())
        .map_err(AcceptError::Refused)
        .and_then(|call| api.accept(registry, &call, operator))
        .map_err(|error| error.to_string())
}

fn grant(api: &OperatorApi, asked: GrantRequest, operator: &Operator) -> Result<Value, String> {
    api.check_grants_of(asked.federation_peer_id, operator)
        .map_err(|why| why.to_string())?;
    api.create_grant(asked, operator)
        .map_err(|error| error_chain(&error))
}

fn read<T: DeserializeOwned>(arguments: Value) -> Result<T, RpcError> {
    serde_json::from_value(arguments)
        .map_err(|error| RpcError(INVALID_PARAMS, foreign_text(&error.to_string())))
}
