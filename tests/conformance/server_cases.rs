//! What every parent answers: contract sections 3, 5, 6, 8 and 11, one case each. What the published platform answers
//! otherwise than the standalone host-bridge is written out in the case, never skipped.

use serde_json::{Value, json};

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

/// What a case runs against.
pub struct Target {
    pub client: Client,
    pub kind: Kind,
    /// A fresh acceptance token for a managed child.
    pub mint: Box<dyn Fn() -> String>,
    /// Suspends a peer, where the tests can.
    pub suspend: Option<Box<dyn Fn(&str)>>,
    /// A bearer token for resources of the kind `skill` that this peer may show, where the tests can have one.
    pub grant: Option<Box<dyn Fn(&str) -> String>>,
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

fn accept(target: &Target, body: &Value) -> Answer {
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
fn assert_time(value: &Value) {
    let text = value.as_str().unwrap_or_else(|| panic!("no time: {value}"));
    let format = &time::format_description::well_known::Rfc3339;
    let parsed = time::OffsetDateTime::parse(text, format);
    assert!(
        parsed.is_ok() && text.ends_with('Z') && !text.contains('.'),
        "{text}"
    );
}

fn accept_gives_a_certificate(target: &Target) {
    let request = Request::new("somebody");
    let body = json!({
        "acceptance_token": (target.mint)(), "contract_version": 1, "extension_slugs": ["a"],
        "capabilities": { "disclosure": { "operator_contact": "ops@example.com", "location": "DE" } },
        "endpoints": [{ "url": "https://203.0.113.7:8443", "scope": "wan", "priority": 10 }],
        "csr_pem": request.csr,
    });
    let answer = accept(target, &body);
    let data = answer.data();
    assert_eq!(data["status"], "enrolled");
    assert_eq!(data["peer_kind"], "platform");
    assert_eq!(data["contract_version_agreed"], 1);
    assert_time(&data["accepted_at"]);
    assert_time(&data["handshake_at"]);
    let certified = &data["federation_certificate"];
    assert_time(&certified["not_after"]);
    let serial = certified["serial"].as_str().unwrap();
    assert!(
        serial
            .chars()
            .all(|c| c.is_ascii_digit() || ('A'..='F').contains(&c)),
        "{serial}"
    );
    assert!(!answer.text.contains("PRIVATE KEY"));
    let shown = openssl(
        &["-subject", "-ext", "keyUsage,extendedKeyUsage", "-dates"],
        certified,
    );
    let id = data["peer_id"].as_str().unwrap();
    // The name in the request is not asked for.
    assert!(
        shown.contains(&format!("fed:{id}")) && !shown.contains("somebody"),
        "{shown}"
    );
    for usage in [
        "Digital Signature",
        "Key Encipherment",
        "TLS Web Client Authentication",
        "TLS Web Server Authentication",
    ] {
        assert!(shown.contains(usage), "{usage} in {shown}");
    }
}

/// What openssl reads in the certificate.
fn openssl(asked: &[&str], certified: &Value) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("certificate.pem");
    std::fs::write(&file, certified["cert_pem"].as_str().unwrap()).unwrap();
    let output = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-in"])
        .arg(&file)
        .args(asked)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn a_token_works_once(target: &Target) {
    let token = (target.mint)();
    let body = |csr: &str| json!({ "acceptance_token": token, "contract_version": 1, "csr_pem": csr });
    let first = Request::new("a");
    let taken = accept(target, &body(&first.csr));
    let id = taken.data()["peer_id"].clone();
    let said = accept(target, &body(&Request::new("b").csr));
    assert_eq!(said.failure(401), "acceptance_token not recognized or expired");
    let again = accept(target, &body(&first.csr));
    match target.kind {
        // A lost answer is given again to the same key.
        Kind::Standalone => assert_eq!(again.data()["peer_id"], id),
        Kind::Platform => {
            assert_eq!(again.failure(401), "acceptance_token not recognized or expired");
        }
    }
}

fn four_at_once_share_no_token(target: &Target) {
    let token = (target.mint)();
    let client = &target.client;
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..4)
            .map(|_| {
                let token = &token;
                scope.spawn(move || {
                    let csr = Request::new("x").csr;
                    let body = json!({ "acceptance_token": token, "contract_version": 1, "csr_pem": csr });
                    client
                        .ask(Ask::post(&format!("{API}/accept"), &body.to_string()))
                        .status
                })
            })
            .collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    let taken = statuses.iter().filter(|status| **status == 200).count();
    let refused = statuses.iter().filter(|status| **status == 401).count();
    assert_eq!((taken, refused), (1, 3), "{statuses:?}");
}

fn tokens_are_told_apart(target: &Target) {
    for blank in [
        json!({ "contract_version": 1 }),
        json!({ "acceptance_token": "", "contract_version": 1 }),
        json!({ "acceptance_token": null, "contract_version": 1 }),
        // The token comes first, whatever else is wrong.
        json!({ "acceptance_token": "  ", "contract_version": 99 }),
    ] {
        let answer = accept(target, &blank);
        assert_eq!(answer.failure(422), "acceptance_token required", "{blank}");
    }
    let unknown = json!({ "acceptance_token": "x".repeat(43), "contract_version": 1 });
    let answer = accept(target, &unknown);
    assert_eq!(answer.failure(401), "acceptance_token not recognized or expired");
}

fn versions_are_refused_by_name(target: &Target) {
    let token = (target.mint)();
    let csr = Request::new("x").csr;
    for (version, claimed) in [(json!(99), 99), (json!(0), 0), (json!("v1"), 0), (json!(null), 0)] {
        let body = json!({ "acceptance_token": token, "contract_version": version, "csr_pem": csr });
        let answer = accept(target, &body);
        let words = format!("Unsupported contract_version {claimed}; supported: [1]");
        assert_eq!(answer.failure(422), words);
    }
    let missing = json!({ "acceptance_token": token, "csr_pem": csr });
    accept(target, &missing).failure(422);
    // None of these has cost the token.
    let body = json!({ "acceptance_token": token, "contract_version": 1, "csr_pem": csr });
    accept(target, &body).data();
}

fn versions_are_read_leniently(target: &Target) {
    for version in [json!("1"), json!(1.9)] {
        let csr = Request::new("x").csr;
        let body =
            json!({ "acceptance_token": (target.mint)(), "contract_version": version, "csr_pem": csr });
        assert_eq!(accept(target, &body).data()["contract_version_agreed"], 1);
    }
}

fn kinds_of_keys(target: &Target) {
    for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P256_SHA256] {
        let csr = Request::of(algorithm, "x").csr;
        let body = json!({ "acceptance_token": (target.mint)(), "contract_version": 1, "csr_pem": csr });
        assert!(accept(target, &body).data()["federation_certificate"]["cert_pem"].is_string());
    }
    let rsa = std::process::Command::new("openssl")
        .args([
            "req",
            "-new",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "/dev/null",
            "-subj",
            "/CN=x",
        ])
        .output()
        .unwrap();
    let csr = String::from_utf8(rsa.stdout).unwrap();
    let body = json!({ "acceptance_token": (target.mint)(), "contract_version": 1, "csr_pem": csr });
    assert!(accept(target, &body).data()["federation_certificate"]["cert_pem"].is_string());
}

fn the_published_agent_is_accepted(target: &Target) {
    for body in [
        json!({ "acceptance_token": (target.mint)(), "contract_version": 1 }),
        json!({
            "acceptance_token": (target.mint)(), "contract_version": 1, "extension_slugs": [], "capabilities": {},
            "endpoints": [],
        }),
    ] {
        let answer = accept(target, &body);
        let data = answer.data();
        assert_eq!(data["status"], "enrolled");
        assert!(data["federation_certificate"].is_null(), "{data}");
    }
}

fn unknown_fields_are_passed_over(target: &Target) {
    let csr = Request::new("x").csr;
    let body = json!({
        "acceptance_token": (target.mint)(), "contract_version": 1, "csr_pem": csr, "of_a_later_version": { "a": [1] },
    });
    assert_eq!(accept(target, &body).data()["status"], "enrolled");
}

fn unsignable_requests_are_told(target: &Target) {
    let body = json!({ "acceptance_token": (target.mint)(), "contract_version": 1, "csr_pem": "nonsense" });
    let answer = accept(target, &body);
    match target.kind {
        // Nothing is lost: the token is still good.
        Kind::Standalone => {
            let words = answer.failure(422);
            assert!(words.starts_with("csr_pem cannot be signed"), "{words}");
        }
        Kind::Platform => {
            let data = answer.data();
            assert!(data["federation_certificate"].is_null(), "{data}");
            let warning = data["warnings"][0].as_str().unwrap();
            assert!(warning.starts_with("federation_csr_signing_failed"), "{warning}");
        }
    }
}

fn what_is_no_accept_is_refused(target: &Target) {
    let path = format!("{API}/accept");
    let token = (target.mint)();
    let endpoints =
        json!({ "acceptance_token": token, "contract_version": 1, "endpoints": ["https://a"] }).to_string();
    for body in [
        "{",
        "[]",
        r#"{"acceptance_token":7,"contract_version":1}"#,
        &endpoints,
    ] {
        let answer = target.client.ask(Ask::post(&path, body));
        match target.kind {
            Kind::Standalone => {
                assert!(matches!(answer.status, 400 | 422), "{body}: {answer:?}");
                assert_eq!(answer.json["success"], false);
            }
            Kind::Platform => {
                answer.failure(500);
                assert_eq!(answer.json["code"], "INTERNAL_ERROR");
            }
        }
    }
    let answer = target.client.ask(Ask::get(&path));
    match target.kind {
        Kind::Standalone => {
            answer.failure(405);
            assert_eq!(answer.header("allow"), Some("POST"));
        }
        // Or nobody is let through to it without a certificate.
        Kind::Platform => assert!(matches!(answer.status, 401 | 404), "{answer:?}"),
    }
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
