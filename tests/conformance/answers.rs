//! What the platform answers to each request (contract sections 3, 4, 5, 8 and 11).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::authority::Authority;
use super::platform::{Asked, Book, Said, internal_error, later, no, now, ok, unauthorized};

/// Version of the platform, by which it judges that of others.
const PLATFORM_VERSION: &str = "1.4.0";

/// Leniently, as the platform reads it: what does not begin with a number is 0.
fn version_of(value: &Value) -> i64 {
    match value {
        Value::Number(number) => number
            .as_i64()
            .or_else(|| number.to_string().split('.').next()?.parse().ok())
            .unwrap_or(0),
        Value::String(text) => {
            let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().unwrap_or(0)
        }
        _ => 0,
    }
}

pub(super) fn accept(asked: &Asked, book: &mut Book, authority: &Authority) -> Said {
    let Ok(Value::Object(body)) = serde_json::from_slice::<Value>(&asked.body) else {
        return internal_error();
    };
    let token = match body.get("acceptance_token") {
        None | Some(Value::Null) => "",
        Some(Value::String(token)) => token.trim(),
        Some(_) => return internal_error(),
    };
    if token.is_empty() {
        return no(422, "acceptance_token required");
    }
    let claimed = version_of(body.get("contract_version").unwrap_or(&Value::Null));
    if claimed != 1 {
        return no(
            422,
            &format!("Unsupported contract_version {claimed}; supported: [1]"),
        );
    }
    let live = book.tokens.get(token).filter(|_| !book.expired.contains(token));
    let Some(id) = live.cloned() else {
        return no(401, "acceptance_token not recognized or expired");
    };
    if let Some(endpoints) = body.get("endpoints").and_then(Value::as_array)
        && endpoints.iter().any(Value::is_string)
    {
        return internal_error();
    }
    let Some(peer) = book.peers.get_mut(&id) else {
        return internal_error();
    };
    if !matches!(peer.status.as_str(), "proposed" | "suspended") {
        let words = format!("accept transition failed: cannot accept from {}", peer.status);
        return no(422, &words);
    }
    let enrolls = peer.kind == "platform";
    let status = if enrolls { "enrolled" } else { "accepted" };
    status.clone_into(&mut peer.status);
    peer.accepts += 1;
    let mut data = json!({
        "peer_id": id, "status": status, "peer_kind": peer.kind, "contract_version_agreed": 1,
        "accepted_at": now(), "handshake_at": enrolls.then(now), "governance": { "anything": true },
    });
    if enrolls && let Some(csr) = body.get("csr_pem").and_then(Value::as_str) {
        let subject = format!("fed:{id}");
        match authority.sign(csr, &subject) {
            Some(certificate) => {
                peer.inbound_subject = Some(subject);
                data["federation_certificate"] = json!({
                    "cert_pem": certificate, "ca_chain_pem": authority.pem, "serial": "0A1B", "not_after": later(90),
                });
            }
            None => {
                data["warnings"] = json!(["federation_csr_signing_failed: not a certificate request"]);
            }
        }
    }
    if let Some(node) = &peer.node {
        let token = format!("bootstrap-{node}");
        data["node_enrollment"] = json!({
            "bootstrap_token": token, "platform_url": "https://platform.example.com",
            "intended_subject": node, "expires_at": later(1),
        });
        book.bootstrap_tokens.insert(token, node.clone());
    }
    book.tokens.remove(token);
    ok(&data)
}

/// What a request comes to that needs a peer's certificate.
pub(super) fn as_peer(
    asked: &Asked,
    book: &mut Book,
    then: impl FnOnce(&Asked, &mut Book, &str) -> Said,
) -> Said {
    let Some(subject) = asked.subject() else {
        return unauthorized("mTLS client certificate required");
    };
    let known = book
        .peers
        .iter()
        .find(|(_, peer)| peer.inbound_subject.as_ref() == Some(&subject));
    match known {
        Some((id, peer)) if matches!(peer.status.as_str(), "enrolled" | "active" | "degraded") => {
            let id = id.clone();
            then(asked, book, &id)
        }
        _ => unauthorized("No reachable FederationPeer for mTLS subject"),
    }
}

pub(super) fn heartbeat(asked: &Asked, book: &mut Book, id: &str) -> Said {
    let Ok(Value::Object(body)) = serde_json::from_slice::<Value>(&asked.body) else {
        return internal_error();
    };
    let Some(peer) = book.peers.get_mut(id) else {
        return internal_error();
    };
    "active".clone_into(&mut peer.status);
    peer.heartbeats += 1;
    peer.last_heartbeat_at = Some(now());
    // What is empty changes nothing.
    for (field, kept) in [
        ("capabilities", &mut peer.capabilities),
        ("endpoints", &mut peer.endpoints),
    ] {
        let sent = body.get(field).filter(|sent| match sent {
            Value::Object(sent) => !sent.is_empty(),
            Value::Array(sent) => !sent.is_empty(),
            _ => false,
        });
        if let Some(sent) = sent {
            kept.clone_from(sent);
        }
    }
    let residency = body
        .get("data_residency")
        .and_then(Value::as_str)
        .unwrap_or("")
        .trim();
    if residency.chars().count() > 64 {
        let error = "Data residency is too long (maximum is 64 characters)";
        return Said {
            status: 422,
            body: json!({
                "success": false, "error": error, "code": "VALIDATION_ERROR", "details": { "errors": [error] },
            }),
        };
    }
    if !residency.is_empty() {
        peer.data_residency = Some(residency.to_owned());
    }
    let remote = body.get("platform_version").and_then(Value::as_str);
    ok(&json!({
        "status": "active", "last_heartbeat_at": now(),
        "our_endpoints": [{ "url": "https://platform.example.com:443", "scope": "wan" }],
        "schema_compatibility": {
            "status": if compatible(remote) { "compatible" } else { "incompatible" },
            "source": "implicit", "local_version": PLATFORM_VERSION, "remote_version": remote, "notes": null,
        },
    }))
}

/// Same major version, and at most one minor apart.
fn compatible(remote: Option<&str>) -> bool {
    let numbers = |version: &str| -> Option<(u32, u32)> {
        let mut parts = version.split('.').map(|part| part.parse().ok());
        Some((parts.next()??, parts.next()??))
    };
    match (numbers(PLATFORM_VERSION), remote.and_then(numbers)) {
        (Some(ours), Some(theirs)) => ours.0 == theirs.0 && ours.1.abs_diff(theirs.1) <= 1,
        _ => false,
    }
}

pub(super) fn resource(asked: &Asked, book: &mut Book, (kind, id): (&str, &str)) -> Said {
    let bearer = asked
        .headers
        .get("authorization")
        .and_then(|header| header.strip_prefix("Bearer "))
        .map(str::to_owned);
    let (kind, id, headers) = (kind.to_owned(), id.to_owned(), asked.headers.clone());
    as_peer(asked, book, move |_, book, peer| {
        let Some(bearer) = bearer else {
            return unauthorized("Bearer grant token required");
        };
        let Some(grant) = book.grants.get(&bearer) else {
            return unauthorized("Grant token not recognized");
        };
        if grant.peer != peer {
            return unauthorized("Grant does not belong to the calling peer");
        }
        if grant.revoked {
            return unauthorized("Grant is revoked");
        }
        // Neither has the `success` field.
        let bare = |status, error: String| Said {
            status,
            body: json!({ "error": error }),
        };
        if kind == "secrets" {
            return bare(403, "grant resource_kind is skill, not secrets".to_owned());
        }
        if let Some(why) = beyond(&grant.restrictions, &id, &headers) {
            return bare(403, why);
        }
        if kind != "skill" {
            return bare(422, format!("unknown resource kind {kind}"));
        }
        ok(&json!({
            "kind": kind, "id": id, "exists": true, "account_id": "1", "grant_id": "2", "fetched_at": now(),
        }))
    })
}

/// What of a grant does not reach as far as this request, in the contract's order.
fn beyond(restrictions: &Value, id: &str, headers: &BTreeMap<String, String>) -> Option<String> {
    if restrictions["resource_id"]
        .as_str()
        .is_some_and(|granted| granted != id)
    {
        return Some(format!("resource_id of the grant is not {id}"));
    }
    let lists = [
        ("permission_scopes", Some("read")),
        (
            "node_instance_ids",
            headers.get("x-calling-instance").map(String::as_str),
        ),
        (
            "sdwan_network_ids",
            headers.get("x-sdwan-network").map(String::as_str),
        ),
        ("source_cidrs", headers.get("x-forwarded-for").map(String::as_str)),
    ];
    lists.into_iter().find_map(|(list, supplied)| {
        let allowed = restrictions[list].as_array().filter(|list| !list.is_empty())?;
        // Of networks this program knows single addresses alone.
        let holds = allowed.iter().any(|one| one == "*" || one.as_str() == supplied);
        (!holds).then(|| format!("{list} does not hold {}", supplied.unwrap_or("nothing")))
    })
}

pub(super) fn subscribe(asked: &Asked, book: &mut Book, peer: &str) -> Said {
    let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    let (Some(slug), Some(_)) = (body["slug"].as_str(), body["local_hostname"].as_str()) else {
        return no(400, "slug and local_hostname are required");
    };
    match slug {
        "backup" => {}
        "full" => return no(409, "Offering is at capacity"),
        _ => return no(404, "Unknown service offering"),
    }
    let grant = format!("0192f0c1-9999-7999-8999-{:012x}", book.subscriptions.len() + 1);
    book.subscriptions.insert(grant.clone(), peer.to_owned());
    Said {
        status: 201,
        body: json!({ "success": true, "data": {
            "grant_id": grant, "backend_host": "10.0.0.1", "backend_port": 443, "protocol": "tcp",
            "expires_at": later(30), "ttl_seconds": 2_592_000, "service_offering_id": "7",
        } }),
    }
}

pub(super) fn node_api(asked: &Asked, below: &str, book: &mut Book, authority: &Authority) -> Said {
    let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    let csr = body["csr_pem"].as_str();
    let missing = || Said {
        status: 400,
        body: json!({ "success": false, "error": "csr_pem is missing", "code": "PARAMETER_MISSING" }),
    };
    let subject = match (asked.method.as_str(), below) {
        ("POST", "/enroll") => {
            let Some(token) = body["bootstrap_token"].as_str() else {
                return unauthorized("bootstrap_token required");
            };
            // A request that lacks something costs no token.
            match book.bootstrap_tokens.get(token) {
                Some(_) if csr.is_none() => return missing(),
                Some(subject) => subject.clone(),
                None => return no(422, "invalid or expired bootstrap token"),
            }
        }
        ("POST", "/enroll/refresh") => match asked.headers.get("x-calling-instance") {
            Some(instance) => instance.clone(),
            None => return unauthorized("mTLS client certificate required"),
        },
        _ => return no(404, "not found"),
    };
    let Some(csr) = csr else {
        return missing();
    };
    if let Some(token) = body["bootstrap_token"].as_str() {
        book.bootstrap_tokens.remove(token);
    }
    match authority.sign_node(csr, &subject) {
        Some(certificate) => ok(&json!({
            "cert_pem": certificate, "ca_chain_pem": authority.pem, "instance_id": subject,
            "mtls_subject": format!("CN={subject}"), "not_after": later(90), "certificate_id": "9",
        })),
        None => no(422, "csr_pem cannot be signed"),
    }
}
