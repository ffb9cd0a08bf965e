//! What every parent answers: contract sections 3, 5, 6, 8 and 11, one case each. What the published platform answers
//! otherwise than the standalone host-bridge is written out in the case, never skipped.

use serde_json::{Value, json};

use super::accept_cases::{
    a_token_works_once, accept_gives_a_certificate, four_at_once_share_no_token, kinds_of_keys,
    the_published_agent_is_accepted, tokens_are_told_apart, unknown_fields_are_passed_over,
    unsignable_requests_are_told, versions_are_read_leniently, versions_are_refused_by_name,
    what_is_no_accept_is_refused,
};
use super::authority::{Identity, Request};
use super::client::{API, Answer, Ask, Client};

/// Whose answers these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The host-bridge with its own registry.
    Standalone,
    /// A platform, behind a host-bridge or another proxy.
    Platform,
}

/// Suspends the peer of this id.
pub type Suspend = Box<dyn Fn(&str)>;

/// Gives the peer of this id a bearer token.
pub type GrantTo = Box<dyn Fn(&str) -> String>;

/// What a case runs against.
pub struct Target {
    pub client: Client,
    pub kind: Kind,
    /// A fresh acceptance token for a managed child.
    pub mint: Box<dyn Fn() -> String>,
    /// Suspends a peer, where the tests can.
    pub suspend: Option<Suspend>,
    /// A bearer token for resources of the kind `skill` that this peer may show, where the tests can have one.
    pub grant: Option<GrantTo>,
}

/// A case: the contract's section, what is claimed, and the proof.
pub type Case = (&'static str, &'static str, fn(&Target));

pub const CASES: &[Case] = &[
    (
        "3",
        "an accept gives a certificate for the peer",
        accept_gives_a_certificate,
    ),
    ("3", "a token works once", a_token_works_once),
    ("3", "four at once share no token", four_at_once_share_no_token),
    (
        "3",
        "blank, missing and unknown tokens are told apart",
        tokens_are_told_apart,
    ),
    (
        "3",
        "another contract version is refused by name",
        versions_are_refused_by_name,
    ),
    (
        "11",
        "contract_version is read leniently",
        versions_are_read_leniently,
    ),
    ("11", "keys of RSA, P-256 and Ed25519 are signed", kinds_of_keys),
    (
        "11",
        "what the published agent sends is accepted",
        the_published_agent_is_accepted,
    ),
    (
        "11",
        "unknown fields are passed over",
        unknown_fields_are_passed_over,
    ),
    (
        "11",
        "a request that cannot be signed is told",
        unsignable_requests_are_told,
    ),
    ("11", "what is no accept is refused", what_is_no_accept_is_refused),
    (
        "5",
        "a heartbeat makes an enrolled peer active",
        heartbeats_make_active,
    ),
    (
        "5",
        "every field of a heartbeat may be missing",
        heartbeats_may_be_empty,
    ),
    (
        "5",
        "versions are compared by the N-1 rule",
        versions_are_compared,
    ),
    ("11", "a data residency has a bound", data_residency_has_a_bound),
    (
        "11",
        "without a certificate there is no heartbeat",
        no_heartbeat_without_a_certificate,
    ),
    (
        "11",
        "another authority's certificate is refused",
        foreign_certificates_are_refused,
    ),
    ("8", "headers of a caller prove nothing", headers_prove_nothing),
    (
        "6",
        "a suspended peer is not heard",
        suspended_peers_are_not_heard,
    ),
    (
        "8",
        "the trust bundle has the certificate's authority",
        the_trust_bundle_fits,
    ),
    (
        "8",
        "the service catalog is a list with a time",
        the_service_catalog,
    ),
    (
        "8",
        "resources want a certificate and a grant",
        resources_want_a_grant,
    ),
    ("8", "subscriptions are made and ended", subscriptions),
    (
        "4",
        "a node enrolls with its bootstrap token only",
        node_enrollment,
    ),
    ("8", "a path that is not there is 404", unknown_paths),
];

/// A peer that has accepted.
struct Joined {
    id: String,
    identity: Identity,
}

pub(super) fn accept(target: &Target, body: &Value) -> Answer {
    target
        .client
        .ask(Ask::post(&format!("{API}/accept"), &body.to_string()))
}

fn join(target: &Target) -> Joined {
    let request = Request::new("anything");
    let body = json!({
        "acceptance_token": (target.mint)(), "contract_version": 1, "extension_slugs": [], "capabilities": {},
        "endpoints": [], "csr_pem": request.csr,
    });
    let answer = accept(target, &body);
    let data = answer.data();
    let certificate = data["federation_certificate"]["cert_pem"].as_str().unwrap();
    Joined {
        id: data["peer_id"].as_str().unwrap().to_owned(),
        identity: request.issued(certificate),
    }
}

fn heartbeat(target: &Target, joined: &Joined, body: &Value) -> Answer {
    let (path, body) = (format!("{API}/heartbeat"), body.to_string());
    target.client.ask(Ask::post(&path, &body).by(&joined.identity))
}

/// Whole seconds, UTC, `Z`.
pub(super) fn assert_time(value: &Value) {
    let text = value.as_str().unwrap_or_else(|| panic!("no time: {value}"));
    let format = &time::format_description::well_known::Rfc3339;
    let parsed = time::OffsetDateTime::parse(text, format);
    assert!(
        parsed.is_ok() && text.ends_with('Z') && !text.contains('.'),
        "{text}"
    );
}

fn heartbeats_make_active(target: &Target) {
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
}

fn heartbeats_may_be_empty(target: &Target) {
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
}

fn versions_are_compared(target: &Target) {
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
}

fn data_residency_has_a_bound(target: &Target) {
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
}

fn no_heartbeat_without_a_certificate(target: &Target) {
    let answer = target.client.ask(Ask::post(&format!("{API}/heartbeat"), "{}"));
    assert_eq!(answer.failure(401), "mTLS client certificate required");
    assert_eq!(answer.json["code"], "UNAUTHORIZED");
}

fn foreign_certificates_are_refused(target: &Target) {
    let joined = join(target);
    let stranger = super::authority::Authority::new("Federation CA").client(&format!("fed:{}", joined.id));
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
}

fn headers_prove_nothing(target: &Target) {
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
}

fn suspended_peers_are_not_heard(target: &Target) {
    let Some(suspend) = &target.suspend else {
        eprintln!("  not shown: this target's peers cannot be suspended from here");
        return;
    };
    let joined = join(target);
    heartbeat(target, &joined, &json!({})).data();
    suspend(&joined.id);
    let answer = heartbeat(target, &joined, &json!({}));
    assert_eq!(
        answer.failure(401),
        "No reachable FederationPeer for mTLS subject"
    );
    assert_eq!(answer.json["code"], "UNAUTHORIZED");
}

fn the_trust_bundle_fits(target: &Target) {
    let joined = join(target);
    let answer = target
        .client
        .ask(Ask::get(&format!("{API}/trust_bundle")).by(&joined.identity));
    let data = answer.data();
    assert_time(&data["generated_at"]);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let verified = std::process::Command::new("openssl")
        .args(["verify", "-CAfile"])
        .arg(at("bundle.pem", data["ca_bundle_pem"].as_str().unwrap()))
        .arg(at("peer.pem", &joined.identity.certificate))
        .output()
        .unwrap();
    assert!(verified.status.success(), "{verified:?}");
    let answer = target.client.ask(Ask::get(&format!("{API}/trust_bundle")));
    answer.failure(401);
}

fn the_service_catalog(target: &Target) {
    let joined = join(target);
    let answer = target
        .client
        .ask(Ask::get(&format!("{API}/service_catalog")).by(&joined.identity));
    let data = answer.data();
    assert!(data["offerings"].is_array(), "{data}");
    assert_time(&data["generated_at"]);
}

fn resources_want_a_grant(target: &Target) {
    let joined = join(target);
    let path = format!("{API}/resources/skill/7");
    let client = &target.client;
    if target.kind == Kind::Standalone {
        // It has nothing to give away.
        client.ask(Ask::get(&path).by(&joined.identity)).failure(404);
        return;
    }
    client.ask(Ask::get(&path)).failure(401);
    client.ask(Ask::get(&path).by(&joined.identity)).failure(401);
    let Some(grant) = &target.grant else {
        eprintln!("  not shown: grants of this target cannot be had from here");
        return;
    };
    let bearer = format!("Authorization: Bearer {}", grant(&joined.id));
    let granted = [bearer.as_str()];
    let answer = client.ask(Ask::get(&path).by(&joined.identity).with(&granted));
    assert_eq!(answer.data()["kind"], "skill");
    assert_time(&answer.data()["fetched_at"]);
    let other = join(target);
    client
        .ask(Ask::get(&path).by(&other.identity).with(&granted))
        .failure(401);
    let ask = |path: &str| client.ask(Ask::get(path).by(&joined.identity).with(&granted));
    // Neither has the `success` field.
    assert!(ask(&format!("{API}/resources/secrets/7")).json["success"].is_null());
    ask(&format!("{API}/resources/secrets/7")).failure(403);
    ask(&format!("{API}/resources/nonsense/7")).failure(422);
}

fn subscriptions(target: &Target) {
    let joined = join(target);
    let path = format!("{API}/subscriptions");
    let ask = |body: &str| target.client.ask(Ask::post(&path, body).by(&joined.identity));
    if target.kind == Kind::Standalone {
        ask(r#"{"slug":"backup","local_hostname":"a"}"#).failure(404);
        return;
    }
    ask("{}").failure(400);
    ask(r#"{"slug":"nonsense","local_hostname":"a"}"#).failure(404);
    if target.grant.is_none() {
        eprintln!("  not shown: offerings of this target are not known here");
        return;
    }
    ask(r#"{"slug":"full","local_hostname":"a"}"#).failure(409);
    let made = ask(r#"{"slug":"backup","local_hostname":"a"}"#);
    assert_eq!(made.status, 201);
    let grant = made.data()["grant_id"].as_str().unwrap();
    assert_time(&made.data()["expires_at"]);
    let one = format!("{path}/{grant}");
    let end = Ask {
        method: "DELETE",
        ..Ask::get(&one).by(&joined.identity)
    };
    assert_eq!(
        target.client.ask(end).data(),
        &json!({ "revoked": true, "grant_id": grant })
    );
    target.client.ask(end).failure(404);
}

fn node_enrollment(target: &Target) {
    let path = "/api/v1/system/node_api/enroll";
    let csr = Request::new("0192f0c1-1111-7111-8111-111111111111").csr;
    let body = json!({ "bootstrap_token": "unknown", "csr_pem": csr }).to_string();
    let answer = target.client.ask(Ask::post(path, &body));
    match target.kind {
        // Nodes are the platform's.
        Kind::Standalone => {
            answer.failure(404);
        }
        Kind::Platform => {
            assert_eq!(answer.failure(422), "invalid or expired bootstrap token");
            let missing = json!({ "csr_pem": csr }).to_string();
            target.client.ask(Ask::post(path, &missing)).failure(401);
        }
    }
}

fn unknown_paths(target: &Target) {
    let joined = join(target);
    for path in ["/api/v1/system/federation_api/nonsense", "/nonsense"] {
        let answer = target.client.ask(Ask::get(path).by(&joined.identity));
        assert_eq!(answer.status, 404, "{answer:?}");
    }
}
