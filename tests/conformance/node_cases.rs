//! What every platform answers to its nodes: contract sections 4 and 11.

use serde_json::{Value, json};

use super::authority::Request;
use super::client::{Answer, Ask};
use super::owner::Wish;
use super::server_cases::{accept, assert_time};
use super::suite::{Kind, Shown, Target};

const ENROLL: &str = "/api/v1/system/node_api/enroll";
const REFRESH: &str = "/api/v1/system/node_api/enroll/refresh";

fn enroll(target: &Target, body: &Value) -> Answer {
    target.client.ask(Ask::post(ENROLL, &body.to_string()))
}

/// With an Ed25519 key (contract section 4), in the one form that every curl reads.
fn node_request(subject: &str) -> Request {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("node.key");
    let openssl = |arguments: &[&str]| {
        let mut command = std::process::Command::new("openssl");
        super::support::succeed(&command.args(arguments).arg(&key).output().unwrap())
    };
    openssl(&["genpkey", "-algorithm", "ed25519", "-out"]);
    let name = format!("/CN={subject}");
    Request {
        csr: openssl(&["req", "-new", "-subj", &name, "-key"]),
        key: std::fs::read_to_string(&key).unwrap(),
    }
}

pub(super) fn node_enrollment_wants_its_token(target: &Target) -> Shown {
    let csr = Request::new("0192f0c1-1111-7111-8111-111111111111").csr;
    let answer = enroll(target, &json!({ "bootstrap_token": "unknown", "csr_pem": csr }));
    match target.kind {
        // Nodes are the platform's.
        Kind::Standalone => {
            answer.failure(404);
        }
        Kind::Platform => {
            assert_eq!(answer.failure(422), "invalid or expired bootstrap token");
            enroll(target, &json!({ "csr_pem": csr })).failure(401);
        }
    }
    target
        .client
        .ask(Ask::post(REFRESH, "{}"))
        .failure(match target.kind {
            Kind::Standalone => 404,
            Kind::Platform => 401,
        });
    Ok(())
}

pub(super) fn nodes_enroll_and_renew(target: &Target) -> Shown {
    target.only(Kind::Platform, "nodes are a platform's")?;
    let token = target.ask_owner(&Wish::NodeToken)?;
    let body = json!({ "acceptance_token": token, "contract_version": 1, "csr_pem": Request::new("x").csr });
    let accepted = accept(target, &body);
    let told = &accepted.data()["node_enrollment"];
    assert_time(&told["expires_at"]);
    assert!(
        told["platform_url"].as_str().unwrap().starts_with("https://"),
        "{told}"
    );
    let subject = told["intended_subject"].as_str().unwrap();
    let bootstrap = told["bootstrap_token"].as_str().unwrap();

    let request = node_request(subject);
    let missing = enroll(target, &json!({ "bootstrap_token": bootstrap }));
    missing.failure(400);
    assert_eq!(missing.json["code"], "PARAMETER_MISSING");
    let body = json!({ "bootstrap_token": bootstrap, "csr_pem": request.csr, "agent_version": "1.0.0" });
    let enrolled = enroll(target, &body);
    let data = enrolled.data();
    for field in [
        "cert_pem",
        "ca_chain_pem",
        "instance_id",
        "mtls_subject",
        "certificate_id",
    ] {
        assert!(!data[field].is_null(), "{field}: {data}");
    }
    assert_time(&data["not_after"]);
    assert_eq!(
        data["instance_id"].as_str().map(str::to_lowercase).as_deref(),
        Some(subject)
    );
    assert_eq!(
        enroll(target, &body).failure(422),
        "invalid or expired bootstrap token"
    );

    // The renewal shows the certificate, and the platform is told whose it is.
    let node = request.issued(data["cert_pem"].as_str().unwrap());
    let next = json!({ "csr_pem": node_request(subject).csr }).to_string();
    let renewed = target.client.ask(Ask::post(REFRESH, &next).by(&node));
    assert_eq!(renewed.data()["instance_id"], data["instance_id"]);
    assert_ne!(renewed.data()["cert_pem"], data["cert_pem"]);
    target.client.ask(Ask::post(REFRESH, "{}").by(&node)).failure(400);
    Ok(())
}
