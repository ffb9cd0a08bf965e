//! What the runbook's operators are answered: contract section 9, with an operator's token.

use serde_json::{Value, json};

use super::authority::Request;
use super::client::{Answer, Ask};
use super::owner::{Skip, Wish};
use super::server_cases::{accept, assert_time, heartbeat, join};
use super::shapes::ELSE;
use super::suite::{Kind, Shown, Target};

const PEERS: &str = "/api/v1/system/sdwan/federation_peers";
const GRANTS: &str = "/api/v1/system/sdwan/access_grants";
const HEALTH: &str = "/api/v1/system/sdwan/health";
const TOOLS: &str = "/mcp";

struct Operator<'a> {
    target: &'a Target,
    bearer: String,
}

impl<'a> Operator<'a> {
    fn of(target: &'a Target) -> Result<Self, Skip> {
        let token = target.ask_owner(&Wish::OperatorToken)?;
        let bearer = format!("Authorization: Bearer {token}");
        Ok(Self { target, bearer })
    }

    fn get(&self, path: &str) -> Answer {
        self.target.client.ask(Ask::get(path).with(&[&self.bearer]))
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        let body = body.to_string();
        self.target
            .client
            .ask(Ask::post(path, &body).with(&[&self.bearer]))
    }
}

/// The verbs that make peers are a parent's own; their form at a platform is no part of the contract.
const FORM: &str = "how a platform's operators are asked to propose and grant is the platform's own";

pub(super) fn the_list_of_peers(target: &Target) -> Shown {
    let operator = Operator::of(target)?;
    let joined = join(target);
    heartbeat(target, &joined, &json!({})).data();
    let list = operator.get(PEERS);
    let rows = list.data().as_array().unwrap();
    let row = rows.iter().find(|row| row["id"] == joined.id.as_str()).unwrap();
    assert_eq!(row["status"], "active");
    assert!(
        row.as_object().unwrap().contains_key("remote_instance_url"),
        "{row}"
    );
    assert_time(&row["last_heartbeat_at"]);
    target.client.ask(Ask::get(PEERS)).failure(401);
    let wrong = ["Authorization: Bearer nobodys"];
    target.client.ask(Ask::get(PEERS).with(&wrong)).failure(401);
    // A peer is no operator.
    target
        .client
        .ask(Ask::get(PEERS).by(&joined.identity))
        .failure(401);
    Ok(())
}

pub(super) fn health_at_a_glance(target: &Target) -> Shown {
    // A host-bridge beside a platform answers this, too; a platform need not.
    let operator = Operator::of(target)?;
    let joined = join(target);
    heartbeat(target, &joined, &json!({})).data();
    let health = operator.get(HEALTH);
    let rows = health.data()["peers"].as_array().unwrap();
    let row = rows.iter().find(|row| row["id"] == joined.id.as_str()).unwrap();
    assert_eq!(
        (row["status"].as_str(), row["heartbeat_fresh"].as_bool()),
        (Some("active"), Some(true))
    );
    Ok(())
}

pub(super) fn proposals(target: &Target) -> Shown {
    target.only(Kind::Standalone, FORM)?;
    let operator = Operator::of(target)?;
    let asked = json!({
        "remote_instance_url": "https://203.0.113.9", "peer_kind": "platform", "spawn_role": "parent",
        "spawn_mode": "managed_child", "description": "by the runbook",
    });
    let proposed = operator.post(PEERS, &asked);
    assert_eq!(
        (proposed.status, proposed.data()["status"].as_str()),
        (201, Some("proposed"))
    );
    for (field, value) in asked.as_object().unwrap() {
        assert_eq!(&proposed.data()[field], value);
    }
    let id = proposed.data()["id"].as_str().unwrap();
    let minted = operator.post(
        &format!("{PEERS}/{id}/acceptance_token"),
        &json!({ "ttl_seconds": 604_800 }),
    );
    let token = minted.data()["acceptance_token"].as_str().unwrap();
    assert_eq!(token.len(), 43, "32 bytes, urlsafe, no padding");
    assert!(
        token
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    );
    assert!(
        !operator.get(&format!("{PEERS}/{id}")).text.contains(token),
        "shown once"
    );
    let body = json!({ "acceptance_token": token, "contract_version": 1, "csr_pem": Request::new("x").csr });
    assert_eq!(accept(target, &body).data()["peer_id"], id);
    operator
        .post(PEERS, &json!({ "peer_kind": "nonsense" }))
        .failure(422);
    Ok(())
}

pub(super) fn reasons_are_kept(target: &Target) -> Shown {
    target.only(Kind::Standalone, FORM)?;
    let operator = Operator::of(target)?;
    let joined = join(target);
    let one = format!("{PEERS}/{}", joined.id);
    operator.post(&format!("{one}/suspend"), &json!({})).failure(422);
    let suspended = operator.post(&format!("{one}/suspend"), &json!({ "reason": "maintenance" }));
    assert_eq!(suspended.data()["status"], "suspended");
    assert_eq!(suspended.data()["metadata"]["suspended_reason"], "maintenance");
    let resumed = operator.post(&format!("{one}/resume"), &json!({}));
    assert_eq!(resumed.data()["status"], "accepted");
    let revoked = operator.post(&format!("{one}/revoke"), &json!({ "reason": "sold" }));
    assert_eq!(revoked.data()["status"], "revoked");
    assert_eq!(revoked.data()["metadata"]["revocation_reason"], "sold");
    // Terminal.
    for verb in ["suspend", "resume", "revoke", "acceptance_token"] {
        let answer = operator.post(&format!("{one}/{verb}"), &json!({ "reason": "again" }));
        assert!(matches!(answer.status, 409 | 422), "{verb}: {answer:?}");
    }
    Ok(())
}

pub(super) fn access_grants(target: &Target) -> Shown {
    target.only(Kind::Standalone, FORM)?;
    let operator = Operator::of(target)?;
    let joined = join(target);
    let asked = json!({
        "federation_peer_id": joined.id, "remote_subject": "backup@shop", "resource_kind": "skill",
        "permission_scopes": ["read"], "node_instance_ids": [ELSE], "sdwan_network_ids": ["*"],
        "source_cidrs": ["203.0.113.0/24"],
    });
    let made = operator.post(GRANTS, &asked);
    let (grant, token) = (
        &made.data()["grant"],
        made.data()["bearer_token"].as_str().unwrap(),
    );
    let id = grant["id"].as_str().unwrap();
    assert!(token.starts_with(&format!("fgs.{id}.")), "{token}");
    assert_eq!(grant["node_instance_ids"], json!([ELSE]));
    assert_eq!(
        grant["sdwan_network_ids"], "any",
        "nothing that is kept is ambiguous"
    );
    let format = &time::format_description::well_known::Rfc3339;
    let at = |field: &str| time::OffsetDateTime::parse(grant[field].as_str().unwrap(), format).unwrap();
    assert_eq!((at("expires_at") - at("issued_at")).whole_days(), 30);
    assert!(!operator.get(GRANTS).text.contains(token), "shown once");
    let without = |field: &str, value: Value| {
        let mut asked = asked.clone();
        asked[field] = value;
        operator.post(GRANTS, &asked)
    };
    for (field, value) in [
        ("permission_scopes", json!(["everything"])),
        ("source_cidrs", json!(["*", "203.0.113.0/24"])),
        ("source_cidrs", json!(["nonsense"])),
        ("remote_subject", json!("x".repeat(257))),
        ("ttl_seconds", json!(86_400)),
    ] {
        let answer = without(field, value);
        assert!(matches!(answer.status, 400 | 422), "{field}: {answer:?}");
    }
    without("federation_peer_id", json!(ELSE)).failure(404);
    Ok(())
}

pub(super) fn tools(target: &Target) -> Shown {
    target.only(Kind::Standalone, FORM)?;
    let operator = Operator::of(target)?;
    let call = |method: &str, params: Value| {
        operator.post(
            TOOLS,
            &json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }),
        )
    };
    let list = call("tools/list", json!({}));
    let named: Vec<_> = list.json["result"]["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| &tool["name"])
        .collect();
    for tool in [
        "system_sdwan_propose_federation_peer",
        "system_sdwan_accept_federation_peer",
        "system_sdwan_create_access_grant",
    ] {
        assert!(named.iter().any(|name| **name == tool), "{tool}: {named:?}");
    }
    let proposed = call(
        "tools/call",
        json!({ "name": "system_sdwan_propose_federation_peer", "arguments": { "description": "by a tool" } }),
    );
    assert!(proposed.text.contains("proposed"), "{proposed:?}");
    target.client.ask(Ask::post(TOOLS, "{}")).failure(401);
    Ok(())
}
