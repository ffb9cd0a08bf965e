//! What every parent answers to its peers' heartbeats, and what makes a peer one that is heard: contract sections 5, 6, 8
//! and 11.

use serde_json::json;

use super::authority::{Authority, Request};
use super::client::{API, Ask};
use super::owner::Wish;
use super::server_cases::{Joined, accept, assert_time, heartbeat, join};
use super::suite::{Kind, Shown, Target};

/// More than any request of the contract has.
const HUGE_BYTES: usize = 4 * 1024 * 1024;

/// What a caller is told that is none of the parent's peers, or no more.
const UNREACHABLE: &str = "No reachable FederationPeer for mTLS subject";

pub(super) fn heartbeats_make_active(target: &Target) -> Shown {
    let joined = join(target);
    let body = json!({
        "capabilities": { "disclosure": { "operator_contact": "ops@example.com", "location": "DE" } },
        "endpoints": [{ "url": "https://203.0.113.7:8443", "scope": "wan", "priority": 10 }],
        "sync_cursor": { "a": 1 }, "extension_slugs": ["a"], "platform_version": "0.1.0", "data_residency": " DE ",
    });
    for _ in 0..2 {
        let answer = heartbeat(target, &joined, &body);
        let data = answer.data();
        assert_eq!(data["status"], "active");
        assert_time(&data["last_heartbeat_at"]);
        assert!(data["our_endpoints"].as_array().is_some_and(|known| {
            known
                .iter()
                .all(|known| known["url"].is_string() && known["scope"].is_string())
        }));
    }
    Ok(())
}

pub(super) fn heartbeats_may_be_empty(target: &Target) -> Shown {
    let joined = join(target);
    for body in [
        json!({}),
        json!({ "capabilities": {}, "endpoints": [], "sync_cursor": {}, "data_residency": "" }),
        json!({ "of_a_later_version": true }),
    ] {
        let answer = heartbeat(target, &joined, &body);
        assert_eq!(answer.data()["status"], "active");
        let compatibility = &answer.data()["schema_compatibility"];
        assert_eq!(
            compatibility["status"], "incompatible",
            "no version, no agreement"
        );
    }
    Ok(())
}

pub(super) fn versions_are_compared(target: &Target) -> Shown {
    let joined = join(target);
    let answer = heartbeat(target, &joined, &json!({ "platform_version": "0.0.1" }));
    let local = answer.data()["schema_compatibility"]["local_version"].clone();
    let mut parts = local.as_str().unwrap().split('.');
    let mut number = || parts.next().unwrap().parse::<u32>().unwrap();
    let (major, minor) = (number(), number());
    for (version, verdict) in [
        (format!("{major}.{minor}.9"), "compatible"),
        (format!("{major}.{}.0", minor + 1), "compatible"),
        (format!("{major}.{}.0", minor + 2), "incompatible"),
        (format!("{}.{minor}.0", major + 1), "incompatible"),
    ] {
        let answer = heartbeat(target, &joined, &json!({ "platform_version": version }));
        let told = &answer.data()["schema_compatibility"];
        assert_eq!(told["status"], verdict, "{local} and {version}: {told}");
        assert_eq!(told["remote_version"], version.as_str());
    }
    Ok(())
}

pub(super) fn data_residency_has_a_bound(target: &Target) -> Shown {
    let joined = join(target);
    let answer = heartbeat(target, &joined, &json!({ "data_residency": "x".repeat(64) }));
    assert_eq!(answer.data()["status"], "active");
    let answer = heartbeat(target, &joined, &json!({ "data_residency": "x".repeat(65) }));
    answer.failure(422);
    assert_eq!(answer.json["code"], "VALIDATION_ERROR");
    assert!(
        answer.json["details"]["errors"][0]
            .as_str()
            .unwrap()
            .contains("too long"),
        "{answer:?}"
    );
    Ok(())
}

pub(super) fn no_heartbeat_without_a_certificate(target: &Target) -> Shown {
    let answer = target.client.ask(Ask::post(&format!("{API}/heartbeat"), "{}"));
    assert_eq!(answer.failure(401), "mTLS client certificate required");
    assert_eq!(answer.json["code"], "UNAUTHORIZED");
    Ok(())
}

pub(super) fn foreign_certificates_are_refused(target: &Target) -> Shown {
    let joined = join(target);
    let stranger = Authority::new("Federation CA").client(&format!("fed:{}", joined.id));
    // In the handshake, so there is no answer.
    let asked = target
        .client
        .try_ask(Ask::get(&format!("{API}/trust_bundle")).by(&stranger));
    let why = asked.unwrap_err();
    // Whichever comes first: the alert, or the end of the connection.
    assert!(
        ["alert", "not connected", "reset"]
            .iter()
            .any(|word| why.contains(word)),
        "{why}"
    );
    Ok(())
}

pub(super) fn headers_prove_nothing(target: &Target) -> Shown {
    let (joined, other) = (join(target), join(target));
    let forged = format!(
        "X-Forwarded-Tls-Client-Cert-Info: Subject%3D%22CN%3Dfed%3A{}%22",
        other.id
    );
    let odd = format!(
        "x-FORWARDED-tls-client-cert-INFO: Subject%3D%22CN%3Dfed%3A{}%22",
        other.id
    );
    let path = format!("{API}/heartbeat");
    for forged in [[forged.as_str()], [odd.as_str()]] {
        let answer = target.client.ask(Ask::post(&path, "{}").with(&forged));
        assert_eq!(answer.failure(401), "mTLS client certificate required");
        let answer = target
            .client
            .ask(Ask::post(&path, "{}").by(&joined.identity).with(&forged));
        assert_eq!(answer.data()["status"], "active");
    }
    Ok(())
}

pub(super) fn compatibility_is_told(target: &Target) -> Shown {
    let joined = join(target);
    let answer = heartbeat(target, &joined, &json!({ "platform_version": "not a version" }));
    let told = &answer.data()["schema_compatibility"];
    assert_eq!(told["status"], "incompatible");
    assert_eq!(told["source"], "implicit");
    for field in ["local_version", "remote_version", "notes"] {
        assert!(told.as_object().unwrap().contains_key(field), "{field}: {told}");
    }
    Ok(())
}

pub(super) fn heartbeats_replace(target: &Target) -> Shown {
    let joined = join(target);
    target.peer(&joined.id)?;
    let endpoints = json!([{ "url": "https://203.0.113.7:8443", "scope": "wan", "priority": 10 }]);
    heartbeat(
        target,
        &joined,
        &json!({ "capabilities": { "a": 1 }, "endpoints": endpoints, "data_residency": " DE " }),
    )
    .data();
    heartbeat(target, &joined, &json!({ "capabilities": { "b": 2 } })).data();
    let row = target.peer(&joined.id)?;
    assert_eq!(row["capabilities"], json!({ "b": 2 }), "replaced, not merged");
    assert_eq!(row["data_residency"], "DE", "trimmed");
    // What is empty says nothing, so a list cannot be emptied.
    let empty = json!({ "capabilities": {}, "endpoints": [], "data_residency": "" });
    heartbeat(target, &joined, &empty).data();
    let row = target.peer(&joined.id)?;
    assert_eq!(row["capabilities"], json!({ "b": 2 }));
    assert_eq!(row["endpoints"][0]["url"], endpoints[0]["url"]);
    assert_eq!(row["data_residency"], "DE");
    assert_eq!(row["status"], "active");
    assert_time(&row["last_heartbeat_at"]);
    Ok(())
}

pub(super) fn huge_bodies_are_answered(target: &Target) -> Shown {
    let joined = join(target);
    let huge = json!({ "capabilities": { "a": "x".repeat(HUGE_BYTES) } });
    let answer = heartbeat(target, &joined, &huge);
    assert!(matches!(answer.status, 413 | 422), "{}", answer.status);
    assert_eq!(answer.json["success"], false);
    assert_eq!(heartbeat(target, &joined, &json!({})).data()["status"], "active");
    Ok(())
}

pub(super) fn what_is_no_heartbeat_is_refused(target: &Target) -> Shown {
    let joined = join(target);
    let path = format!("{API}/heartbeat");
    let ask = |body: &str| target.client.ask(Ask::post(&path, body).by(&joined.identity));
    assert!(ask("{").status >= 400);
    if target.kind == Kind::Standalone {
        for body in ["{", "[]", r#"{"endpoints":["https://a"]}"#] {
            ask(body).failure(400);
        }
    }
    let answer = target.client.ask(Ask::get(&path).by(&joined.identity));
    assert!(matches!(answer.status, 404 | 405), "{answer:?}");
    Ok(())
}

pub(super) fn suspended_peers_are_not_heard(target: &Target) -> Shown {
    let joined = join(target);
    heartbeat(target, &joined, &json!({})).data();
    target.ask_owner(&Wish::Suspend(&joined.id))?;
    is_not_heard(target, &joined);
    let bundle = format!("{API}/trust_bundle");
    let answer = target.client.ask(Ask::get(&bundle).by(&joined.identity));
    assert_eq!(answer.failure(401), UNREACHABLE);
    Ok(())
}

fn is_not_heard(target: &Target, joined: &Joined) {
    let answer = heartbeat(target, joined, &json!({}));
    assert_eq!(answer.failure(401), UNREACHABLE);
    assert_eq!(answer.json["code"], "UNAUTHORIZED");
}

pub(super) fn resumed_peers_go_on(target: &Target) -> Shown {
    let joined = join(target);
    heartbeat(target, &joined, &json!({})).data();
    target.ask_owner(&Wish::Suspend(&joined.id))?;
    is_not_heard(target, &joined);
    target.ask_owner(&Wish::Resume(&joined.id))?;
    let answer = heartbeat(target, &joined, &json!({}));
    match target.kind {
        // As the runbook tells it: accepted, then active with the first heartbeat.
        Kind::Standalone => assert_eq!(answer.data()["status"], "active"),
        // Published platforms hear who is enrolled, and a resumed peer is accepted.
        Kind::Platform if answer.status == 401 => assert_eq!(answer.failure(401), UNREACHABLE),
        Kind::Platform => assert_eq!(answer.data()["status"], "active"),
    }
    Ok(())
}

pub(super) fn revoked_peers_are_gone(target: &Target) -> Shown {
    let joined = join(target);
    heartbeat(target, &joined, &json!({})).data();
    target.ask_owner(&Wish::Revoke(&joined.id))?;
    is_not_heard(target, &joined);
    if let Ok(row) = target.peer(&joined.id) {
        assert_eq!(row["status"], "revoked");
    }
    Ok(())
}

pub(super) fn a_suspended_peer_may_accept_again(target: &Target) -> Shown {
    let joined = join(target);
    heartbeat(target, &joined, &json!({})).data();
    let token = target.ask_owner(&Wish::TokenFor(&joined.id))?;
    let request = Request::new("again");
    let body = json!({ "acceptance_token": token, "contract_version": 1, "csr_pem": request.csr });
    let refused = accept(target, &body);
    let words = refused.failure(422);
    assert!(words.starts_with("accept transition failed: "), "{words}");
    // The same token: it was not consumed.
    target.ask_owner(&Wish::Suspend(&joined.id))?;
    let answer = accept(target, &body);
    assert_eq!(answer.data()["peer_id"], joined.id.as_str());
    let certificate = answer.data()["federation_certificate"]["cert_pem"]
        .as_str()
        .unwrap();
    let again = Joined {
        id: joined.id.clone(),
        identity: request.issued(certificate),
    };
    assert_eq!(heartbeat(target, &again, &json!({})).data()["status"], "active");
    // Who was this peer before has another key.
    let before = heartbeat(target, &joined, &json!({}));
    match target.kind {
        Kind::Standalone => {
            let words = before.failure(401);
            assert!(
                words.starts_with("Client certificate not issued by this peer's CA (expected anchor sha256:"),
                "{words}"
            );
        }
        // The common name is all that counts.
        Kind::Platform => assert_eq!(before.data()["status"], "active"),
    }
    Ok(())
}

pub(super) fn a_newer_token_replaces_the_earlier(target: &Target) -> Shown {
    let joined = join(target);
    let earlier = target.ask_owner(&Wish::TokenFor(&joined.id))?;
    let newer = target.ask_owner(&Wish::TokenFor(&joined.id))?;
    target.ask_owner(&Wish::Suspend(&joined.id))?;
    let body = |token: &str| json!({ "acceptance_token": token, "contract_version": 1 });
    let refused = accept(target, &body(&earlier));
    assert_eq!(refused.failure(401), "acceptance_token not recognized or expired");
    assert_eq!(accept(target, &body(&newer)).data()["status"], "enrolled");
    Ok(())
}
