//! What every parent answers to its peers about what it has: trust, catalog, resources under grants, subscriptions.
//! Contract sections 7, 8 and 11.

use serde_json::{Value, json};

use super::client::{API, Answer, Ask};
use super::owner::{Skip, Wish};
use super::server_cases::{Joined, join};
use super::shapes::{ELSE, assert_catalog, assert_resource, bundle_of, subscribed};
use super::suite::{Kind, Shown, Target};

/// What the parent has for each of its peers, asked by one.
fn asked_by_a_peer(target: &Target, what: &str) -> (Joined, Answer) {
    let joined = join(target);
    let path = format!("{API}/{what}");
    let answer = target.client.ask(Ask::get(&path).by(&joined.identity));
    (joined, answer)
}

pub(super) fn the_trust_bundle_fits(target: &Target) -> Shown {
    let (joined, answer) = asked_by_a_peer(target, "trust_bundle");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let verified = std::process::Command::new("openssl")
        .args(["verify", "-CAfile"])
        .arg(at("bundle.pem", bundle_of(&answer)))
        .arg(at("peer.pem", &joined.identity.certificate))
        .output()
        .unwrap();
    assert!(verified.status.success(), "{verified:?}");
    let answer = target.client.ask(Ask::get(&format!("{API}/trust_bundle")));
    answer.failure(401);
    Ok(())
}

pub(super) fn the_service_catalog(target: &Target) -> Shown {
    let (_, answer) = asked_by_a_peer(target, "service_catalog");
    assert_catalog(&answer);
    Ok(())
}

/// A grant of the parent's for a peer, and what it is asked with.
struct Granted<'a> {
    target: &'a Target,
    joined: &'a Joined,
    token: String,
}

impl<'a> Granted<'a> {
    fn new(target: &'a Target, joined: &'a Joined, restrictions: &Value) -> Result<Self, Skip> {
        let token = target.ask_owner(&Wish::Grant(&joined.id, restrictions))?;
        Ok(Self {
            target,
            joined,
            token,
        })
    }

    fn ask(&self, resource: &str) -> Answer {
        self.ask_as(self.joined, resource)
    }

    fn ask_as(&self, joined: &Joined, resource: &str) -> Answer {
        let bearer = format!("Authorization: Bearer {}", self.token);
        let path = format!("{API}/resources/{resource}");
        let headers = [bearer.as_str()];
        let ask = Ask::get(&path).by(&joined.identity).with(&headers);
        self.target.client.ask(ask)
    }
}

pub(super) fn resources_want_a_grant(target: &Target) -> Shown {
    let joined = join(target);
    let path = format!("{API}/resources/skill/7");
    let client = &target.client;
    if target.kind == Kind::Standalone {
        // It has nothing to give away.
        client.ask(Ask::get(&path).by(&joined.identity)).failure(404);
        return Ok(());
    }
    client.ask(Ask::get(&path)).failure(401);
    let answer = client.ask(Ask::get(&path).by(&joined.identity));
    answer.failure(401);
    let nonsense = ["Authorization: Bearer fgs.nonsense"];
    client
        .ask(Ask::get(&path).by(&joined.identity).with(&nonsense))
        .failure(401);
    Ok(())
}

pub(super) fn a_grant_opens_its_resources(target: &Target) -> Shown {
    target.only(
        Kind::Platform,
        "a standalone host-bridge has no resources to give",
    )?;
    let joined = join(target);
    let granted = Granted::new(target, &joined, &json!({}))?;
    assert_resource(&granted.ask("skill/7"), "skill", "7");
    // Beside the certificate, never alone, and for whom it was given.
    let bearer = format!("Authorization: Bearer {}", granted.token);
    let alone = [bearer.as_str()];
    let path = format!("{API}/resources/skill/7");
    target.client.ask(Ask::get(&path).with(&alone)).failure(401);
    granted.ask_as(&join(target), "skill/7").failure(401);
    // Neither has the `success` field.
    let other = granted.ask("secrets/7");
    other.failure(403);
    assert!(other.json["success"].is_null(), "{other:?}");
    let unknown = granted.ask("nonsense/7");
    assert!(matches!(unknown.status, 403 | 422), "{unknown:?}");
    assert!(unknown.json["success"].is_null(), "{unknown:?}");
    Ok(())
}

pub(super) fn a_grant_ends(target: &Target) -> Shown {
    target.only(
        Kind::Platform,
        "a standalone host-bridge has no resources to give",
    )?;
    let joined = join(target);
    let granted = Granted::new(target, &joined, &json!({}))?;
    granted.ask("skill/7").data();
    target.ask_owner(&Wish::RevokeGrant(&granted.token))?;
    granted.ask("skill/7").failure(401);
    Ok(())
}

pub(super) fn a_grant_reaches_as_far_as_it_says(target: &Target) -> Shown {
    target.only(
        Kind::Platform,
        "a standalone host-bridge has no resources to give",
    )?;
    let joined = join(target);
    for (restrictions, named) in [
        (json!({ "resource_id": "8" }), "resource_id"),
        (json!({ "permission_scopes": ["write"] }), "permission_scopes"),
        (json!({ "node_instance_ids": [ELSE] }), "node_instance_ids"),
        (json!({ "sdwan_network_ids": [ELSE] }), "sdwan_network_ids"),
        (json!({ "source_cidrs": ["203.0.113.0/24"] }), "source_cidrs"),
    ] {
        let granted = Granted::new(target, &joined, &restrictions)?;
        let answer = granted.ask("skill/7");
        let words = answer.failure(403);
        assert!(words.contains(named), "{named}: {words}");
    }
    for restrictions in [
        json!({ "resource_id": "7", "permission_scopes": ["read"] }),
        json!({ "node_instance_ids": ["*"], "sdwan_network_ids": ["*"], "source_cidrs": ["*"] }),
    ] {
        Granted::new(target, &joined, &restrictions)?
            .ask("skill/7")
            .data();
    }
    Ok(())
}

pub(super) fn subscriptions(target: &Target) -> Shown {
    let joined = join(target);
    let path = format!("{API}/subscriptions");
    let ask = |body: &str| target.client.ask(Ask::post(&path, body).by(&joined.identity));
    if target.kind == Kind::Standalone {
        ask(r#"{"slug":"backup","local_hostname":"a"}"#).failure(404);
        return Ok(());
    }
    target.client.ask(Ask::post(&path, "{}")).failure(401);
    ask("{}").failure(400);
    ask(r#"{"slug":"nonsense","local_hostname":"a"}"#).failure(404);
    let slug = target.ask_owner(&Wish::Offering)?;
    let wanted = json!({ "slug": slug, "local_hostname": "a", "ttl_days": 30 }).to_string();
    let made = ask(&wanted);
    let grant = subscribed(&made);
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
    Ok(())
}

pub(super) fn full_offerings_are_told(target: &Target) -> Shown {
    target.only(Kind::Platform, "a standalone host-bridge has no offerings")?;
    let joined = join(target);
    let slug = target.ask_owner(&Wish::FullOffering)?;
    let wanted = json!({ "slug": slug, "local_hostname": "a" }).to_string();
    let path = format!("{API}/subscriptions");
    target
        .client
        .ask(Ask::post(&path, &wanted).by(&joined.identity))
        .failure(409);
    Ok(())
}

pub(super) fn unknown_paths(target: &Target) -> Shown {
    let joined = join(target);
    for path in ["/api/v1/system/federation_api/nonsense", "/nonsense"] {
        let answer = target.client.ask(Ask::get(path).by(&joined.identity));
        assert_eq!(answer.status, 404, "{answer:?}");
    }
    Ok(())
}
