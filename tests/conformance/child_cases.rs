//! What every child answers to its parent, asked by its base URL as the parent's own programs ask: contract sections 7, 8
//! and 10.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::authority::Identity;
use super::client::{API, Answer, Ask, Client};
use super::owner::{Commands, Owner, Skip, Wish, variable};
use super::server_cases::assert_time;
use super::shapes::{ELSE, assert_catalog, assert_resource, bundle_of, subscribed};
use super::suite::{Case, Shown};

/// More than any request of the contract has.
const HUGE_BYTES: usize = 4 * 1024 * 1024;

/// By what the child, or the host-bridge before it, knows the parent's program.
pub enum Caller {
    Certificate(Identity),
    Credential(String),
}

/// A child to be asked.
pub struct Child {
    pub client: Client,
    pub caller: Caller,
    pub owner: Box<dyn Owner>,
}

pub const CHILD_CASES: &[Case<Child>] = &[
    ("8", "who is not the parent is not heard", strangers_are_not_heard),
    ("8", "catalog and trust bundle need no grant", what_needs_no_grant),
    ("5", "the parent's heartbeat is answered", the_parents_heartbeat),
    ("7", "a resource wants a grant", a_resource_wants_a_grant),
    (
        "7",
        "what is no token of the child's is not recognized",
        tokens_of_others,
    ),
    (
        "7",
        "a grant reaches as far as it says",
        a_grant_reaches_as_far_as_it_says,
    ),
    ("7", "an empty list and a star are any", any_is_any),
    ("8", "headers of a caller prove nothing", headers_prove_nothing),
    ("10", "a revoked grant ends at once, with a word", a_grant_ends),
    ("8", "a kind of resource that is not known is told", unknown_kinds),
    ("8", "subscriptions are made, used and ended", subscriptions),
    ("11", "ids in upper case are the same", upper_case_ids),
    (
        "11",
        "slow requests are waited for, cut ones forgotten",
        slow_and_cut_requests,
    ),
    (
        "11",
        "what cannot be read is refused, and the next request answered",
        bad_requests,
    ),
];

impl Child {
    /// The one that the environment names.
    pub fn named() -> Option<Self> {
        let url = variable("CHILD_URL")?;
        let read = |name: &str| variable(name).map(|file| std::fs::read_to_string(file).unwrap());
        let caller = match (read("CHILD_CERTIFICATE_FILE"), read("CHILD_KEY_FILE")) {
            (Some(certificate), Some(key)) => Caller::Certificate(Identity { certificate, key }),
            _ => Caller::Credential(
                variable("CHILD_CREDENTIAL")
                    .expect("CHILD_CERTIFICATE_FILE and CHILD_KEY_FILE, or CHILD_CREDENTIAL"),
            ),
        };
        Some(Self {
            client: Client {
                url: url.trim_end_matches('/').to_owned(),
                ca_file: variable("CA_FILE").map(PathBuf::from),
                dir: tempfile::tempdir().unwrap(),
            },
            caller,
            owner: Box::new(Commands),
        })
    }

    fn ask(&self, ask: Ask<'_>) -> Answer {
        match &self.caller {
            Caller::Certificate(identity) => self.client.ask(Ask {
                identity: Some(identity),
                ..ask
            }),
            Caller::Credential(credential) => {
                let shown = format!("X-Powernode-Credential: Bearer {credential}");
                let mut headers = ask.headers.to_vec();
                headers.push(&shown);
                self.client.ask(Ask {
                    headers: &headers,
                    ..ask
                })
            }
        }
    }

    fn wish(&self, wish: &Wish<'_>) -> Result<String, Skip> {
        self.owner.fulfil(wish).ok_or_else(|| Skip::missing(wish))
    }

    /// The header with a grant of these fields.
    fn grant(&self, fields: &Value) -> Result<String, Skip> {
        let token = self.wish(&Wish::ChildGrant(fields))?;
        Ok(format!("Authorization: Bearer {token}"))
    }

    /// The service itself, as a resource.
    fn resource(&self, service: &str, headers: &[&str]) -> Answer {
        self.ask(Ask::get(&format!("{API}/resources/service/{service}")).with(headers))
    }
}

fn strangers_are_not_heard(child: &Child) -> Shown {
    for path in ["service_catalog", "trust_bundle", "resources/service/web"] {
        let path = format!("{API}/{path}");
        match child.client.try_ask(Ask::get(&path)) {
            Ok(answer) => {
                answer.failure(401);
            }
            // A child that listens itself ends it in the handshake.
            Err(why) => assert!(why.contains("alert") || why.contains("reset"), "{why}"),
        }
    }
    Ok(())
}

fn what_needs_no_grant(child: &Child) -> Shown {
    let catalog = child.ask(Ask::get(&format!("{API}/service_catalog")));
    assert_eq!(catalog.json["success"], true, "a server of ours always says so");
    assert_catalog(&catalog);
    bundle_of(&child.ask(Ask::get(&format!("{API}/trust_bundle"))));
    Ok(())
}

fn the_parents_heartbeat(child: &Child) -> Shown {
    let path = format!("{API}/heartbeat");
    for body in [
        "{}",
        r#"{"platform_version":"1.4.0","of_a_later_version":true,"capabilities":{}}"#,
    ] {
        let answer = child.ask(Ask::post(&path, body));
        assert_eq!(answer.data()["status"], "active");
        assert_time(&answer.data()["last_heartbeat_at"]);
        assert!(answer.data()["our_endpoints"].is_array());
        assert_eq!(answer.data()["schema_compatibility"]["source"], "implicit");
    }
    Ok(())
}

fn a_resource_wants_a_grant(child: &Child) -> Shown {
    let none = child.resource("web", &[]);
    assert_eq!(none.failure(401), "grant token required");
    assert_eq!(none.json["code"], "UNAUTHORIZED");
    let service = child.wish(&Wish::ChildService)?;
    let grant = child.grant(&json!({}))?;
    let there = child.resource(&service, &[&grant]);
    assert_resource(&there, "service", &service);
    assert_eq!(there.data()["exists"], true);
    assert_eq!(child.resource("nothing", &[&grant]).data()["exists"], false);
    Ok(())
}

fn tokens_of_others(child: &Child) -> Shown {
    let real = child.wish(&Wish::ChildGrant(&json!({})))?;
    let id = real.split('.').nth(1).unwrap();
    for token in [
        "nonsense".to_owned(),
        format!("fgs.{id}.{}", "00".repeat(32)),
        format!("fgs.{ELSE}.{}", "00".repeat(32)),
        // The runbook's older form proves nothing.
        format!("fg-{id}"),
    ] {
        let header = format!("Authorization: Bearer {token}");
        let answer = child.resource("web", &[&header]);
        assert_eq!(answer.failure(401), "grant token not recognized", "{token}");
    }
    Ok(())
}

fn a_grant_reaches_as_far_as_it_says(child: &Child) -> Shown {
    let service = child.wish(&Wish::ChildService)?;
    for (fields, named) in [
        (
            json!({ "resource_kind": "skill" }),
            "resource_kind `skill` of the grant does not allow `service`",
        ),
        (json!({ "resource_id": "ssh" }), "resource_id `ssh`"),
        (
            json!({ "permission_scopes": ["write"] }),
            "permission_scopes [write] of the grant do not hold `read`",
        ),
        (json!({ "node_instance_ids": [ELSE] }), "node_instance_ids"),
        (json!({ "sdwan_network_ids": [ELSE] }), "sdwan_network_ids"),
        (
            json!({ "source_cidrs": ["203.0.113.0/24"] }),
            "source_cidrs of the grant do not allow `",
        ),
    ] {
        let grant = child.grant(&fields)?;
        let answer = child.resource(&service, &[&grant]);
        let words = answer.failure(403);
        assert!(words.contains(named), "{named}: {words}");
    }
    let grant = child.grant(&json!({ "resource_id": service, "permission_scopes": ["read"] }))?;
    child.resource(&service, &[&grant]).data();
    Ok(())
}

fn any_is_any(child: &Child) -> Shown {
    let service = child.wish(&Wish::ChildService)?;
    let star = json!({ "node_instance_ids": ["*"], "sdwan_network_ids": ["*"], "source_cidrs": ["*"] });
    let everywhere = json!({ "source_cidrs": ["0.0.0.0/0", "::/0"] });
    for fields in [star, everywhere] {
        let grant = child.grant(&fields)?;
        child.resource(&service, &[&grant]).data();
    }
    Ok(())
}

fn headers_prove_nothing(child: &Child) -> Shown {
    let service = child.wish(&Wish::ChildService)?;
    for (fields, forged) in [
        (
            json!({ "node_instance_ids": [ELSE] }),
            format!("X-Calling-Instance: {ELSE}"),
        ),
        (
            json!({ "sdwan_network_ids": [ELSE] }),
            format!("x-SDWAN-network: {ELSE}"),
        ),
        (
            json!({ "source_cidrs": ["203.0.113.0/24"] }),
            "X-Forwarded-For: 203.0.113.9".to_owned(),
        ),
        (
            json!({ "source_cidrs": ["203.0.113.0/24"] }),
            "X_Forwarded_For: 203.0.113.9".to_owned(),
        ),
    ] {
        let grant = child.grant(&fields)?;
        child.resource(&service, &[&grant, &forged]).failure(403);
    }
    Ok(())
}

fn a_grant_ends(child: &Child) -> Shown {
    let service = child.wish(&Wish::ChildService)?;
    let grant = child.grant(&json!({}))?;
    child.resource(&service, &[&grant]).data();
    let token = grant.rsplit(' ').next().unwrap();
    child.wish(&Wish::RevokeChildGrant(token))?;
    let ended = child.resource(&service, &[&grant]);
    assert_eq!(ended.failure(401), "grant is revoked");
    assert_eq!(ended.json["code"], "UNAUTHORIZED");
    Ok(())
}

fn unknown_kinds(child: &Child) -> Shown {
    let grant = child.grant(&json!({ "resource_kind": "skill" }))?;
    let answer = child.ask(Ask::get(&format!("{API}/resources/skill/7")).with(&[&grant]));
    let words = answer.failure(422);
    assert!(words.contains("skill"), "{words}");
    Ok(())
}

fn subscriptions(child: &Child) -> Shown {
    let service = child.wish(&Wish::ChildService)?;
    let grant = child.grant(&json!({}))?;
    let path = format!("{API}/subscriptions");
    let ask = |body: &Value| child.ask(Ask::post(&path, &body.to_string()).with(&[&grant]));
    ask(&json!({})).failure(400);
    ask(&json!({ "slug": service })).failure(400);
    ask(&json!({ "slug": "nothing", "local_hostname": "a" })).failure(404);
    let wanted = json!({ "slug": service, "local_hostname": "a.example.com", "ttl_days": 10, "unknown": 1 });
    child.ask(Ask::post(&path, &wanted.to_string())).failure(401);
    let made = ask(&wanted);
    let id = subscribed(&made);
    let own = format!(
        "Authorization: Bearer {}",
        made.data()["bearer_token"].as_str().unwrap()
    );
    child.resource(&service, &[&own]).data();

    let one = format!("{path}/{id}");
    let headers = [grant.as_str()];
    let end = Ask {
        method: "DELETE",
        ..Ask::get(&one).with(&headers)
    };
    assert_eq!(child.ask(end).data(), &json!({ "revoked": true, "grant_id": id }));
    child.resource(&service, &[&own]).failure(401);
    let nobodys = format!("{path}/{ELSE}");
    child
        .ask(Ask {
            path: &nobodys,
            ..end
        })
        .failure(404);
    Ok(())
}

fn upper_case_ids(child: &Child) -> Shown {
    let service = child.wish(&Wish::ChildService)?;
    let grant = child.grant(&json!({}))?;
    let path = format!("{API}/subscriptions");
    let wanted = json!({ "slug": service, "local_hostname": "upper.example.com" }).to_string();
    let made = child.ask(Ask::post(&path, &wanted).with(&[&grant]));
    let id = made.data()["grant_id"].as_str().unwrap();
    assert_eq!(id, id.to_ascii_lowercase(), "one form of an id");
    let one = format!("{path}/{}", id.to_ascii_uppercase());
    let end = Ask {
        method: "DELETE",
        ..Ask::get(&one).with(&[])
    };
    let headers = [grant.as_str()];
    assert_eq!(child.ask(end.with(&headers)).data()["grant_id"], id);
    Ok(())
}

fn slow_and_cut_requests(child: &Child) -> Shown {
    let (identity, more) = match &child.caller {
        Caller::Certificate(identity) => (Some(identity), String::new()),
        Caller::Credential(credential) => (None, format!("X-Powernode-Credential: Bearer {credential}\r\n")),
    };
    let path = format!("{API}/heartbeat");
    let body = r#"{"platform_version":"1.4.0","capabilities":{}}"#;
    child.client.post_cut(&path, body, identity, &more);
    let answer = child.client.post_slowly(&path, body, identity, &more);
    assert_eq!(answer.data()["status"], "active");
    child.ask(Ask::get(&format!("{API}/service_catalog"))).data();
    Ok(())
}

fn bad_requests(child: &Child) -> Shown {
    let grant = child.grant(&json!({}))?;
    let post = |path: &str, body: &str| {
        let path = format!("{API}/{path}");
        child.ask(Ask::post(&path, body).with(&[&grant]))
    };
    post("subscriptions", "{").failure(400);
    post("heartbeat", "{").failure(400);
    let huge = json!({ "capabilities": "x".repeat(HUGE_BYTES) }).to_string();
    post("heartbeat", &huge).failure(413);
    post("service_catalog", "{}").failure(405);
    child.ask(Ask::get(&format!("{API}/nonsense"))).failure(404);
    child
        .ask(Ask::get("/api/v1/system/sdwan/federation_peers"))
        .failure(404);
    child.ask(Ask::get(&format!("{API}/service_catalog"))).data();
    Ok(())
}
