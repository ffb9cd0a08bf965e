//! What every parent answers to an accept: contract sections 3 and 11.

use serde_json::{Value, json};

use super::authority::{Authority, Request};
use super::client::{API, Ask};
use super::owner::Wish;
use super::server_cases::{Joined, accept, assert_time, heartbeat, join};
use super::suite::{Kind, Shown, Target};

pub(super) fn accept_gives_a_certificate(target: &Target) -> Shown {
    let request = Request::new("somebody");
    let body = json!({
        "acceptance_token": target.mint(), "contract_version": 1, "extension_slugs": ["a"],
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
    Ok(())
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

pub(super) fn a_token_works_once(target: &Target) -> Shown {
    let token = target.mint();
    let body = |csr: &str| json!({ "acceptance_token": token, "contract_version": 1, "csr_pem": csr });
    let first = Request::new("a");
    let accepted = accept(target, &body(&first.csr));
    let id = accepted.data()["peer_id"].clone();
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
    Ok(())
}

pub(super) fn four_at_once_share_no_token(target: &Target) -> Shown {
    let token = target.mint();
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
    let accepted = statuses.iter().filter(|status| **status == 200).count();
    let refused = statuses.iter().filter(|status| **status == 401).count();
    assert_eq!((accepted, refused), (1, 3), "{statuses:?}");
    Ok(())
}

pub(super) fn tokens_are_told_apart(target: &Target) -> Shown {
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
    Ok(())
}

pub(super) fn versions_are_refused_by_name(target: &Target) -> Shown {
    let token = target.mint();
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
    Ok(())
}

pub(super) fn versions_are_read_leniently(target: &Target) -> Shown {
    for version in [json!("1"), json!(1.9)] {
        let csr = Request::new("x").csr;
        let body = json!({ "acceptance_token": target.mint(), "contract_version": version, "csr_pem": csr });
        assert_eq!(accept(target, &body).data()["contract_version_agreed"], 1);
    }
    Ok(())
}

pub(super) fn kinds_of_keys(target: &Target) -> Shown {
    for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P256_SHA256] {
        let csr = Request::of(algorithm, "x").csr;
        let body = json!({ "acceptance_token": target.mint(), "contract_version": 1, "csr_pem": csr });
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
    let body = json!({ "acceptance_token": target.mint(), "contract_version": 1, "csr_pem": csr });
    assert!(accept(target, &body).data()["federation_certificate"]["cert_pem"].is_string());
    Ok(())
}

pub(super) fn the_published_agent_is_accepted(target: &Target) -> Shown {
    for body in [
        json!({ "acceptance_token": target.mint(), "contract_version": 1 }),
        json!({
            "acceptance_token": target.mint(), "contract_version": 1, "extension_slugs": [], "capabilities": {},
            "endpoints": [],
        }),
    ] {
        let answer = accept(target, &body);
        let data = answer.data();
        assert_eq!(data["status"], "enrolled");
        assert!(data["federation_certificate"].is_null(), "{data}");
    }
    Ok(())
}

pub(super) fn unknown_fields_are_passed_over(target: &Target) -> Shown {
    let csr = Request::new("x").csr;
    let body = json!({
        "acceptance_token": target.mint(), "contract_version": 1, "csr_pem": csr, "of_a_later_version": { "a": [1] },
    });
    assert_eq!(accept(target, &body).data()["status"], "enrolled");
    Ok(())
}

pub(super) fn unsignable_requests_are_told(target: &Target) -> Shown {
    let body = json!({ "acceptance_token": target.mint(), "contract_version": 1, "csr_pem": "nonsense" });
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
    Ok(())
}

pub(super) fn what_is_no_accept_is_refused(target: &Target) -> Shown {
    let path = format!("{API}/accept");
    let token = target.mint();
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
    Ok(())
}

pub(super) fn certificates_live_90_days(target: &Target) -> Shown {
    let request = Request::new("x");
    let body = json!({ "acceptance_token": target.mint(), "contract_version": 1, "csr_pem": request.csr });
    let answer = accept(target, &body);
    let certified = &answer.data()["federation_certificate"];
    let format = &time::format_description::well_known::Rfc3339;
    let at = |value: &Value| time::OffsetDateTime::parse(value.as_str().unwrap(), format).unwrap();
    let lives = at(&certified["not_after"]) - at(&answer.data()["accepted_at"]);
    assert!((89..=90).contains(&lives.whole_days()), "{lives}");
    let authority = json!({ "cert_pem": certified["ca_chain_pem"] });
    assert!(
        openssl(&["-text"], &authority).contains("ED25519"),
        "the authority's key"
    );
    Ok(())
}

pub(super) fn expired_tokens_are_unknown(target: &Target) -> Shown {
    let token = target.ask_owner(&Wish::ExpiredToken)?;
    let answer = accept(
        target,
        &json!({ "acceptance_token": token, "contract_version": 1 }),
    );
    assert_eq!(answer.failure(401), "acceptance_token not recognized or expired");
    Ok(())
}

pub(super) fn equals_exchange_authorities(target: &Target) -> Shown {
    let token = target.ask_owner(&Wish::EqualToken)?;
    let own = Authority::new("Own CA");
    let body = json!({
        "acceptance_token": token, "contract_version": 1, "peer_ca_bundle_pem": own.pem,
        "caller_inbound_subject": "fed:parent-at-the-child",
    });
    let answer = accept(target, &body);
    let data = answer.data();
    assert!(data["federation_certificate"].is_null(), "{data}");
    let exchange = &data["trust_exchange"];
    assert!(
        exchange["ca_bundle_pem"]
            .as_str()
            .unwrap()
            .contains("BEGIN CERTIFICATE")
    );
    // It certifies itself, under the name that it was given.
    let subject = exchange["assigned_inbound_subject"].as_str().unwrap();
    let joined = Joined {
        id: data["peer_id"].as_str().unwrap().to_owned(),
        identity: own.client(subject),
    };
    assert_eq!(heartbeat(target, &joined, &json!({})).data()["status"], "active");
    // Its authority speaks for nobody else.
    let other = join(target);
    let ask = Ask::post("/api/v1/system/federation_api/heartbeat", "{}");
    let forger = own.client(&format!("fed:{}", other.id));
    match target.client.try_ask(ask.by(&forger)) {
        Ok(answer) => {
            answer.failure(401);
        }
        Err(why) => assert!(
            ["alert", "not connected", "reset"]
                .iter()
                .any(|word| why.contains(word)),
            "{why}"
        ),
    }
    Ok(())
}

pub(super) fn a_request_wins_over_a_bundle(target: &Target) -> Shown {
    let token = target.ask_owner(&Wish::EqualToken)?;
    let body = json!({
        "acceptance_token": token, "contract_version": 1, "csr_pem": Request::new("x").csr,
        "peer_ca_bundle_pem": Authority::new("Own CA").pem, "caller_inbound_subject": "fed:x",
    });
    let answer = accept(target, &body);
    assert!(answer.data()["federation_certificate"]["cert_pem"].is_string());
    assert!(answer.data()["trust_exchange"].is_null());
    Ok(())
}

pub(super) fn network_peers_stay_accepted(target: &Target) -> Shown {
    let token = target.ask_owner(&Wish::NetworkToken)?;
    let body = json!({ "acceptance_token": token, "contract_version": 1, "csr_pem": Request::new("x").csr });
    let answer = accept(target, &body);
    let data = answer.data();
    assert_eq!(
        (data["status"].as_str(), data["peer_kind"].as_str()),
        (Some("accepted"), Some("sdwan_only"))
    );
    assert!(
        data["handshake_at"].is_null() && data["federation_certificate"].is_null(),
        "{data}"
    );
    Ok(())
}

pub(super) fn cut_requests_cost_no_token(target: &Target) -> Shown {
    let request = Request::new("x");
    let body = json!({ "acceptance_token": target.mint(), "contract_version": 1, "csr_pem": request.csr });
    let path = format!("{API}/accept");
    target.client.post_cut(&path, &body.to_string(), None, "");
    assert_eq!(accept(target, &body).data()["status"], "enrolled");
    Ok(())
}

pub(super) fn slow_requests_are_waited_for(target: &Target) -> Shown {
    let request = Request::new("x");
    let body = json!({ "acceptance_token": target.mint(), "contract_version": 1, "csr_pem": request.csr });
    let path = format!("{API}/accept");
    let answer = target.client.post_slowly(&path, &body.to_string(), None, "");
    let certificate = answer.data()["federation_certificate"]["cert_pem"]
        .as_str()
        .unwrap();
    let joined = Joined {
        id: answer.data()["peer_id"].as_str().unwrap().to_owned(),
        identity: request.issued(certificate),
    };
    let path = format!("{API}/heartbeat");
    let body = r#"{"capabilities":{"a":1},"platform_version":"0.1.0"}"#;
    target.client.post_cut(&path, body, Some(&joined.identity), "");
    let answer = target.client.post_slowly(&path, body, Some(&joined.identity), "");
    assert_eq!(answer.data()["status"], "active");
    assert_eq!(heartbeat(target, &joined, &json!({})).data()["status"], "active");
    Ok(())
}
