//! Grants over the real wire: every row of the contract's vectors, the way of a grant to the parent,
//! and its end.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use powernode_satellite::base::id::{GrantId, PeerId, TraceId};
use powernode_satellite::contract::{
    NETWORK_STATE_HEADER, RESOURCES_PATH, SUBSCRIPTIONS_PATH, TUNNEL_GRANTS_PATH,
};
use powernode_satellite::grant::{
    Grant, GrantRequest, GrantState, MANAGED_CHILD_OPERATOR_KIND, NewGrant, Revocation,
};
use powernode_satellite::satellite::grants::{Handover, KeptGrant};
use powernode_satellite::satellite::membership_store::MembershipStore;
use powernode_satellite::satellite::status::StatusReport;
use powernode_satellite::store::database::{StoreError, Table};
use powernode_satellite::tunnel::http::{HttpLimits, request};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::scripted_parent::site::{Running, Site, invitation};
use crate::scripted_parent::{Answer, DEADLINE, NOW, PEER, ScriptedParent};

const GRANTS: Table<GrantId, KeptGrant> = Table::new("grants");

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    grant: Granted,
    call: Call,
    status: u16,
}

#[derive(Deserialize)]
struct Granted {
    peer: String,
    resource_kind: String,
    resource_id: Option<String>,
    permission_scopes: Vec<String>,
    node_instance_ids: Vec<String>,
    sdwan_network_ids: Vec<String>,
    source_cidrs: Vec<String>,
    state: String,
}

#[derive(Deserialize)]
struct Call {
    peer: String,
    resource_kind: String,
    resource_id: Option<String>,
    scope: String,
    instance: Option<String>,
    network: Option<String>,
    network_bridge_active: bool,
    source_ip: Option<String>,
}

fn peer() -> PeerId {
    PEER.parse().unwrap()
}

fn vectors() -> Vec<Case> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/contract/grant_authorization.json"
    );
    let vectors: Vectors = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(vectors.cases.len() > 20);
    vectors.cases
}

fn issued(number: usize, granted: &Granted) -> Grant {
    let owner = match granted.peer.as_str() {
        "P1" => peer(),
        "P2" => "0192f0c1-7c1e-7a53-9d0e-00000000beef".parse().unwrap(),
        other => panic!("peer {other}"),
    };
    let scopes: Vec<&str> = granted.permission_scopes.iter().map(String::as_str).collect();
    let request = GrantRequest {
        resource_id: granted.resource_id.clone(),
        node_instance_ids: granted.node_instance_ids.clone(),
        sdwan_network_ids: granted.sdwan_network_ids.clone(),
        source_cidrs: granted.source_cidrs.clone(),
        ttl_seconds: Some(365 * 86_400),
        ..GrantRequest::new(owner, "anna", &granted.resource_kind, &scopes)
    };
    let mut entropy = [0; 10];
    entropy[9] = u8::try_from(number).unwrap();
    let id = GrantId::new_v7(NOW, entropy);
    let mut grant = NewGrant::check(request).unwrap().issue(id, NOW);
    let revocation = Some(Revocation {
        at: NOW,
        reason: "over".into(),
    });
    match granted.state.as_str() {
        "active" => {}
        "expired" => grant.expires_at = NOW,
        "revoked" => grant.revocation = revocation,
        "archived" => {
            grant.revocation = revocation;
            grant.archived_at = Some(NOW);
        }
        other => panic!("state {other}"),
    }
    grant
}

async fn ask(parent: &ScriptedParent, asked: http::request::Builder, body: &Value) -> (u16, Value) {
    let asked = asked.body(Full::new(Bytes::from(body.to_string()))).unwrap();
    let answer = request(&parent.tunnel(), TraceId(1), asked, HttpLimits::default())
        .await
        .unwrap();
    let body = serde_json::from_slice(answer.body()).unwrap();
    (answer.status().as_u16(), body)
}

/// A call as the host-bridge would make it.
fn call_of(case: &Case, bearer: &str) -> (http::request::Builder, Value) {
    let id = case.call.resource_id.as_deref();
    let (method, path, body) = match case.call.scope.as_str() {
        "read" => {
            let path = format!(
                "{RESOURCES_PATH}/{}/{}",
                case.call.resource_kind,
                id.unwrap_or(PEER)
            );
            (Method::GET, path, Value::Null)
        }
        "write" => {
            let body = json!({ "slug": id.unwrap_or("ssh"), "local_hostname": "a.local" });
            (Method::POST, SUBSCRIPTIONS_PATH.to_owned(), body)
        }
        other => panic!("scope {other}"),
    };
    let mut asked = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", bearer);
    if let Some(instance) = &case.call.instance {
        asked = asked.header("x-calling-instance", instance);
    }
    if let Some(network) = &case.call.network {
        asked = asked.header("x-sdwan-network", network);
        if !case.call.network_bridge_active {
            asked = asked.header(NETWORK_STATE_HEADER, "inactive");
        }
    }
    if let Some(source) = &case.call.source_ip {
        asked = asked.header("x-forwarded-for", source);
    }
    (asked, body)
}

#[tokio::test]
async fn every_row_of_the_contracts_vectors_over_the_wire() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    let cases = vectors();
    let grants: Vec<Grant> = cases
        .iter()
        .enumerate()
        .map(|(number, case)| issued(number, &case.grant))
        .collect();
    let (store, loaded) = site.open().await.unwrap();
    store
        .database()
        .write(|w| {
            for grant in &grants {
                let kept = KeptGrant {
                    grant: grant.clone(),
                    handover: Handover::ByHand,
                    derived_from: None,
                };
                w.put(&GRANTS, &grant.id, &kept)?;
            }
            Ok::<_, StoreError>(())
        })
        .unwrap();
    let beats = parent.book().heartbeats().len();
    let running = site.run_on(store, loaded);
    parent
        .wait("the next tunnel", |book| {
            (book.heartbeats().len() > beats).then_some(())
        })
        .await;
    for (case, grant) in cases.iter().zip(&grants) {
        assert_eq!(
            case.call.peer, "P1",
            "the tunnel's own peer is the only one there is"
        );
        let token = running.surroundings.grants.token_of(grant.id).unwrap();
        let bearer = format!("Bearer {}", token.to_secret().expose_text().unwrap());
        let (asked, body) = call_of(case, &bearer);
        let (status, answer) = ask(&parent, asked, &body).await;
        assert_eq!(status, case.status, "{}: {answer}", case.name);
        match status {
            200 => assert_eq!(answer["data"]["grant_id"], grant.id.to_string(), "{}", case.name),
            403 => assert!(
                answer["error"].as_str().unwrap().contains("of the grant")
                    || answer["error"].as_str().unwrap().contains("no active bridge"),
                "{answer}"
            ),
            _ => assert_eq!(answer["code"], "UNAUTHORIZED", "{}", case.name),
        }
        // The unsigned form proves nothing, whatever the grant says.
        let (asked, body) = call_of(case, &format!("Bearer fg-{}", grant.id));
        assert_eq!(ask(&parent, asked, &body).await.0, 401, "{}", case.name);
    }
    running.stop().await;
}

fn mirror(running: &Running) -> Option<KeptGrant> {
    let all = running.surroundings.grants.all();
    all.into_iter()
        .find(|kept| kept.grant.resource_kind == MANAGED_CHILD_OPERATOR_KIND)
}

async fn handed(running: &Running, wanted: Handover) -> KeptGrant {
    let book = &running.surroundings.grants;
    let mut changes = book.changes();
    let found = async {
        loop {
            changes.mark_unchanged();
            if let Some(kept) = mirror(running).filter(|kept| kept.handover == wanted) {
                return kept;
            }
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, found)
        .await
        .unwrap_or_else(|_| panic!("never {wanted:?}: {:?}", mirror(running)))
}

fn taken() -> Answer {
    Answer::json(200, &json!({ "success": true, "data": {} }))
}

#[tokio::test]
async fn a_join_gives_the_parent_its_operator_grant_and_tries_until_it_is_taken() {
    let parent = ScriptedParent::start();
    parent.next(TUNNEL_GRANTS_PATH, Answer::failure(503, "later"));
    parent.next(TUNNEL_GRANTS_PATH, taken());
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let kept = handed(&running, Handover::Done).await;
    let sent: Vec<Value> = parent
        .book()
        .seen
        .iter()
        .filter(|seen| seen.path == TUNNEL_GRANTS_PATH)
        .map(|seen| seen.body.clone())
        .collect();
    assert_eq!(sent.len(), 2, "{sent:?}");
    assert_eq!(sent[0], sent[1]);
    let grant = &sent[1]["grant"];
    assert_eq!(grant["id"], kept.grant.id.to_string());
    assert_eq!(grant["remote_subject"], format!("parent-operator@{PEER}"));
    assert_eq!(
        kept.grant.expires_at.since(kept.grant.issued_at),
        Duration::from_secs(365 * 86_400)
    );
    // The token that was handed over is good.
    let bearer = format!("Bearer {}", sent[1]["token"].as_str().unwrap());
    let path = format!("{RESOURCES_PATH}/{MANAGED_CHILD_OPERATOR_KIND}/{PEER}");
    let asked = Request::get(&path).header("authorization", &bearer);
    assert_eq!(ask(&parent, asked, &Value::Null).await.0, 200);
    let report = running
        .wait("delivered", |report| report.grants.undelivered == 0)
        .await;
    assert_eq!((report.grants.active, report.grants.emancipated), (1, false));
    running.stop().await;

    // A restart makes no second one and hands nothing over again.
    let running = site.run().await;
    running.wait("active", StatusReport::is_active).await;
    assert_eq!(running.surroundings.grants.all().len(), 1);
    assert_eq!(parent.book().count(TUNNEL_GRANTS_PATH), 2);
    running.stop().await;
}

#[tokio::test]
async fn a_parent_that_takes_no_grants_is_told_of_once_a_tunnel() {
    let parent = ScriptedParent::start();
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let report = running
        .wait("the trouble is shown", |report| report.grants.trouble.is_some())
        .await;
    assert!(report.grants.trouble.unwrap().contains("by hand"));
    assert_eq!(report.grants.undelivered, 1);
    assert_eq!(handed(&running, Handover::Due).await.handover, Handover::Due);
    assert_eq!(parent.book().count(TUNNEL_GRANTS_PATH), 1);
    // The bridge was updated meanwhile.
    parent.next(TUNNEL_GRANTS_PATH, taken());
    parent.break_tunnels();
    handed(&running, Handover::Done).await;
    running
        .wait("the trouble is over", |report| report.grants.trouble.is_none())
        .await;
    running.stop().await;
}

#[tokio::test]
async fn an_emancipation_cuts_the_parents_calls_tells_it_and_keeps_the_peering() {
    let parent = ScriptedParent::start();
    parent.next(TUNNEL_GRANTS_PATH, taken());
    let site = Site::new();
    let running = site.run().await;
    running.join(invitation(&parent)).await;
    let kept = handed(&running, Handover::Done).await;
    running.wait("active", StatusReport::is_active).await;
    let book = &running.surroundings.grants;
    book.emancipate(peer(), "on our own").await.unwrap();
    let path = format!("{TUNNEL_GRANTS_PATH}/{}/revoked", kept.grant.id);
    let told = parent
        .wait("the parent is told", |book| {
            book.seen.iter().find(|seen| seen.path == path).cloned()
        })
        .await;
    assert_eq!(told.body["reason"], "on our own");
    let token = book.token_of(kept.grant.id).unwrap();
    let bearer = format!("Bearer {}", token.to_secret().expose_text().unwrap());
    let path = format!("{RESOURCES_PATH}/{MANAGED_CHILD_OPERATOR_KIND}/{PEER}");
    let asked = Request::get(&path).header("authorization", &bearer);
    let (status, answer) = ask(&parent, asked, &Value::Null).await;
    assert_eq!((status, &answer["error"]), (401, &json!("grant is revoked")));
    let report = running
        .wait("emancipated", |report| report.grants.emancipated)
        .await;
    assert!(report.is_active(), "peering and heartbeat go on");
    running.stop().await;
    // Not by a restart, either.
    let running = site.run().await;
    running.wait("active", StatusReport::is_active).await;
    assert_eq!(mirror(&running).unwrap().grant.state(NOW), GrantState::Revoked);
    assert_eq!(running.surroundings.grants.all().len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn after_a_lost_store_the_parent_gets_no_operator_grant_by_itself() {
    let parent = ScriptedParent::start();
    let site = Site::joined(&parent).await;
    std::fs::remove_file(
        site.path()
            .join(powernode_satellite::satellite::membership_store::STORE_FILE),
    )
    .unwrap();
    let running = site.run().await;
    running.wait("active", StatusReport::is_active).await;
    assert!(mirror(&running).is_none());
    running.stop().await;
    let (loaded, _) = MembershipStore::peek(site.path(), None).unwrap();
    assert!(loaded.grants.is_empty());
}
