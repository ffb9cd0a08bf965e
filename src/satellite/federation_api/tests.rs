//! What is answered to whom, with a catalog of the test's.

#![allow(clippy::unwrap_used, reason = "a panic is how a test says that it failed")]

use std::time::Duration;

use http_body_util::BodyExt as _;

use super::*;
use crate::audit::retention::Retention;
use crate::base::id::{GrantId, PeerId};
use crate::contract::SUBJECT_HEADER;
use crate::grant::{GrantRequest, GrantState, NewGrant};
use crate::process::clock::ManualWallClock;
use crate::satellite::grants::{Handover, Issue};
use crate::satellite::membership_store::SCHEMA;
use crate::store::audit_log::reading;
use crate::store::database::Database;

const NOW: UnixTime = UnixTime::from_seconds(1_800_000_000);

#[derive(Debug)]
struct Shelf;

impl Catalog for Shelf {
    fn offerings(&self) -> Vec<Value> {
        vec![json!({ "slug": "ssh" })]
    }

    fn offered(&self, slug: &str) -> Option<Offered> {
        let accepting = match slug {
            "ssh" => true,
            "full" => false,
            _ => return None,
        };
        Some(Offered {
            slug: slug.to_owned(),
            protocol: "tcp".to_owned(),
            accepting,
        })
    }
}

struct Child {
    api: FederationApi,
    book: GrantBook,
    _dir: tempfile::TempDir,
}

fn peer() -> PeerId {
    "0192f0c1-7c1e-7a53-9d0e-3f2b5a6c7d8e".parse().unwrap()
}

impl Child {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let wall = ManualWallClock::new(NOW);
        let clock = Clock::with_wall_clock(UnixTime::EPOCH, wall);
        let database = Database::open(&dir.path().join("satellite.redb"), &SCHEMA).unwrap();
        let book = GrantBook::open(database, false, clock.clone()).unwrap();
        let surroundings = Surroundings::new(book.clone(), Arc::new(Shelf), AuditLog::default(), clock);
        surroundings.trust.send_replace(TrustBundle {
            ca_bundle_pem: "PEM".into(),
            cross_certificates_pem: None,
        });
        Self {
            api: FederationApi {
                surroundings: Arc::new(surroundings),
            },
            book,
            _dir: dir,
        }
    }

    async fn operator_token(&self) -> String {
        let issue = Issue::of(NewGrant::managed_child_operator(peer()), Handover::Done);
        let issued = self.book.issue(issue).await.unwrap();
        issued.token.to_secret().expose_text().unwrap().to_owned()
    }

    async fn ask(
        &self,
        (method, path): (Method, &str),
        headers: &[(&str, &str)],
        body: &Value,
    ) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let response = self.api.answer_bridge(request, Some(peer()), TraceId(7)).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
        self.ask((Method::GET, path), headers, &Value::Null).await
    }
}

#[tokio::test]
async fn the_catalog_and_the_trust_bundle_are_served_without_a_grant() {
    let child = Child::new();
    let (status, body) = child.get(SERVICE_CATALOG_PATH, &[]).await;
    assert_eq!(
        (status, &body["data"]["offerings"][0]["slug"]),
        (200, &json!("ssh"))
    );
    assert_eq!(body["data"]["generated_at"], "2027-01-15T08:00:00Z");
    let (_, body) = child.get(TRUST_BUNDLE_PATH, &[]).await;
    assert_eq!(body["data"]["ca_bundle_pem"], "PEM");
    assert_eq!(body["data"].get("cross_certificates_pem"), None);
    let fetched = child.api.surroundings.trust_fetched.borrow().clone();
    assert_eq!(fetched.as_deref(), Some("PEM"));
}

#[tokio::test]
async fn all_else_is_refused_in_the_contract_form() {
    let child = Child::new();
    for (method, path, expected) in [
        (Method::GET, "/etc/passwd", 404),
        (Method::GET, "/api/v1/system/federation_api/../../../x", 404),
        (Method::POST, SERVICE_CATALOG_PATH, 405),
        (Method::GET, HEARTBEAT_PATH, 405),
        (Method::GET, SUBSCRIPTIONS_PATH, 405),
        (Method::GET, RESOURCES_PATH, 404),
    ] {
        let (status, body) = child.ask((method, path), &[], &Value::Null).await;
        assert_eq!((status, &body["success"]), (expected, &json!(false)), "{path}");
    }
    let request = Request::get(TRUST_BUNDLE_PATH)
        .body(Full::new(Bytes::new()))
        .unwrap();
    let early = child.api.answer_bridge(request, None, TraceId(1)).await;
    assert_eq!(early.status(), 401, "no peering, no answer");
}

#[tokio::test]
async fn the_parents_heartbeat_is_answered_and_remembered() {
    let child = Child::new();
    let heard = child.api.surroundings.parent_heard.subscribe();
    let beat = json!({ "platform_version": RELEASE });
    let (status, body) = child.ask((Method::POST, HEARTBEAT_PATH), &[], &beat).await;
    assert_eq!(status, 200);
    assert_eq!(body["data"]["schema_compatibility"]["status"], "compatible");
    assert_eq!(*heard.borrow(), Some(NOW));
    let (status, _) = child.ask((Method::POST, HEARTBEAT_PATH), &[], &json!([1])).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn a_resource_needs_a_grant_and_only_its_holder_learns_what_there_is() {
    let child = Child::new();
    let path = format!("{RESOURCES_PATH}/managed_child_operator/ssh");
    let (status, body) = child.get(&path, &[]).await;
    assert_eq!((status, &body["error"]), (401, &json!("grant token required")));
    assert_eq!(body["code"], "UNAUTHORIZED");
    let bearer = format!("Bearer {}", child.operator_token().await);
    let (status, body) = child.get(&path, &[("authorization", &bearer)]).await;
    assert_eq!((status, &body["data"]["exists"]), (200, &json!(true)));
    let absent = format!("{RESOURCES_PATH}/managed_child_operator/nothing");
    let (_, body) = child.get(&absent, &[("authorization", &bearer)]).await;
    assert_eq!(body["data"]["exists"], false);

    let module = GrantRequest::new(peer(), "anna", "NodeModule", &["read"]);
    let issue = Issue::of(NewGrant::check(module).unwrap(), Handover::ByHand);
    let token = child.book.issue(issue).await.unwrap().token.to_secret();
    let bearer = format!("Bearer {}", token.expose_text().unwrap());
    let path = format!("{RESOURCES_PATH}/NodeModule/x");
    let (status, body) = child.get(&path, &[("authorization", &bearer)]).await;
    assert_eq!(status, 422, "{body}");
    assert!(body["error"].as_str().unwrap().contains("NodeModule"));
}

#[tokio::test]
async fn a_subscription_is_a_grant_within_the_one_it_was_asked_under() {
    let child = Child::new();
    let narrow = GrantRequest {
        source_cidrs: vec!["203.0.113.0/24".into()],
        ttl_seconds: Some(20 * 86_400),
        ..GrantRequest::new(peer(), "anna", "service", &["write"])
    };
    let issue = Issue::of(NewGrant::check(narrow).unwrap(), Handover::ByHand);
    let origin = child.book.issue(issue).await.unwrap();
    let bearer = format!("Bearer {}", origin.token.to_secret().expose_text().unwrap());
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-forwarded-for", "203.0.113.9"),
        (SUBJECT_HEADER, "anna"),
    ];
    let wanted = json!({ "slug": "ssh", "local_hostname": "ssh.shop.local", "ttl_days": 30 });
    let post = (Method::POST, SUBSCRIPTIONS_PATH);
    let (status, body) = child.ask(post.clone(), &headers, &wanted).await;
    assert_eq!(status, 201, "{body}");
    let data = &body["data"];
    assert_eq!(data["backend_host"], "ssh.shop.local");
    assert_eq!(data["protocol"], "tcp");
    assert_eq!(
        data["ttl_seconds"],
        20 * 86_400,
        "no longer than what it is under"
    );
    let id: GrantId = data["grant_id"].as_str().unwrap().parse().unwrap();
    let kept = child.book.get(id).unwrap();
    assert_eq!(kept.grant.source_cidrs, origin.grant.source_cidrs);
    assert_eq!(kept.grant.permission_scopes, origin.grant.permission_scopes);
    assert_eq!(kept.derived_from, Some(origin.grant.id));
    let (_, again) = child.ask(post, &headers, &wanted).await;
    assert_eq!(
        again["data"]["grant_id"], data["grant_id"],
        "asked twice, made once"
    );

    let path = format!("{SUBSCRIPTIONS_PATH}/{id}");
    let delete = (Method::DELETE, path.as_str());
    let berta = [headers[0], headers[1], (SUBJECT_HEADER, "berta")];
    let (status, _) = child.ask(delete.clone(), &berta, &Value::Null).await;
    assert_eq!(status, 403);
    for _ in 0..2 {
        let (status, body) = child.ask(delete.clone(), &headers, &Value::Null).await;
        assert_eq!((status, &body["data"]["revoked"]), (200, &json!(true)));
    }
    assert_eq!(child.book.get(id).unwrap().grant.state(NOW), GrantState::Revoked);
}

#[tokio::test]
async fn a_subscription_is_not_the_owners_own_grant_that_says_the_same() {
    let child = Child::new();
    let own = GrantRequest {
        resource_id: Some("ssh".into()),
        ttl_seconds: Some(300 * 86_400),
        ..GrantRequest::new(peer(), "anna", "service", &["read", "write"])
    };
    let own = Issue::of(NewGrant::check(own).unwrap(), Handover::ByHand);
    let own = child.book.issue(own).await.unwrap();
    let mut subscriptions = Vec::new();
    for ttl in [10_i64, 20] {
        let origin = GrantRequest {
            ttl_seconds: Some(ttl * 86_400),
            ..GrantRequest::new(peer(), "anna", "service", &["read", "write"])
        };
        let origin = Issue::of(NewGrant::check(origin).unwrap(), Handover::ByHand);
        let origin = child.book.issue(origin).await.unwrap();
        let bearer = format!("Bearer {}", origin.token.to_secret().expose_text().unwrap());
        let headers = [("authorization", bearer.as_str()), (SUBJECT_HEADER, "anna")];
        let wanted = json!({ "slug": "ssh", "local_hostname": "ssh.shop.local" });
        let (status, body) = child
            .ask((Method::POST, SUBSCRIPTIONS_PATH), &headers, &wanted)
            .await;
        assert_eq!(status, 201, "{body}");
        let id: GrantId = body["data"]["grant_id"].as_str().unwrap().parse().unwrap();
        let kept = child.book.get(id).unwrap();
        assert_ne!(id, own.grant.id, "its token is the owner's to hand over");
        assert_eq!(kept.derived_from, Some(origin.grant.id));
        assert_eq!(kept.grant.expires_at, origin.grant.expires_at);
        // Who subscribes by what a subscription has given gets no second one.
        let bearer = format!("Bearer {}", body["data"]["bearer_token"].as_str().unwrap());
        let headers = [("authorization", bearer.as_str()), (SUBJECT_HEADER, "anna")];
        let (_, again) = child
            .ask((Method::POST, SUBSCRIPTIONS_PATH), &headers, &wanted)
            .await;
        assert_eq!(again["data"]["grant_id"], body["data"]["grant_id"]);
        subscriptions.push((origin.grant.id, id));
    }
    let [(first, under_first), (_, under_second)] = subscriptions[..] else {
        panic!("two were asked for")
    };
    child.book.revoke(first, "enough").await.unwrap();
    let state = |id| child.book.get(id).unwrap().grant.state(NOW);
    assert_eq!(state(under_first), GrantState::Revoked);
    assert_eq!(state(under_second), GrantState::Active);
    assert_eq!(state(own.grant.id), GrantState::Active);
}

#[tokio::test]
async fn what_cannot_be_subscribed_to_is_refused_in_the_contracts_statuses() {
    let child = Child::new();
    let bearer = format!("Bearer {}", child.operator_token().await);
    let headers = [("authorization", bearer.as_str())];
    let host = "a.local";
    for (body, expected) in [
        (json!({}), 400),
        (json!({ "slug": "ssh" }), 400),
        (json!({ "slug": "nothing", "local_hostname": host }), 404),
        (json!({ "slug": "full", "local_hostname": host }), 409),
        (
            json!({ "slug": "ssh", "local_hostname": host, "ttl_days": 1 }),
            422,
        ),
    ] {
        let (status, answer) = child
            .ask((Method::POST, SUBSCRIPTIONS_PATH), &headers, &body)
            .await;
        assert_eq!(status, expected, "{body}: {answer}");
    }
    let (status, _) = child
        .ask((Method::POST, SUBSCRIPTIONS_PATH), &[], &json!({}))
        .await;
    assert_eq!(status, 401, "who shows nothing is told nothing");
    for unknown in ["x", "0192f0c1-7c1e-7a53-9d0e-000000000009"] {
        let path = format!("{SUBSCRIPTIONS_PATH}/{unknown}");
        let (status, _) = child.ask((Method::DELETE, &path), &headers, &Value::Null).await;
        assert_eq!(status, 404);
    }
    assert_eq!(child.book.all().len(), 1);
}

#[tokio::test]
async fn a_request_whose_sender_hangs_up_is_noted_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::with_wall_clock(UnixTime::EPOCH, ManualWallClock::new(NOW));
    let database = Database::open(&dir.path().join("satellite.redb"), &SCHEMA).unwrap();
    let book = GrantBook::open(database.clone(), false, clock.clone()).unwrap();
    let kept = Retention {
        max_age: Duration::from_secs(86_400),
        max_rows: 100,
    };
    let (audit, writer) = AuditLog::open(database.clone(), clock.clone(), watch::channel(kept).1).unwrap();
    let api = FederationApi {
        surroundings: Arc::new(Surroundings::new(book.clone(), Arc::new(Shelf), audit, clock)),
    };
    let operator = Issue::of(NewGrant::managed_child_operator(peer()), Handover::Done);
    let operator = book.issue(operator).await.unwrap();
    let bearer = format!("Bearer {}", operator.token.to_secret().expose_text().unwrap());
    let wanted = json!({ "slug": "ssh", "local_hostname": "ssh.shop.local" }).to_string();
    let request = Request::post(SUBSCRIPTIONS_PATH)
        .header(AUTHORIZATION, bearer)
        .header(SUBJECT_HEADER, "anna")
        .body(Full::new(Bytes::from(wanted)))
        .unwrap();
    {
        let mut answering = std::pin::pin!(api.answer_bridge(request, Some(peer()), TraceId(7)));
        let begun =
            std::future::poll_fn(|cx| std::task::Poll::Ready(answering.as_mut().poll(cx).is_pending()));
        assert!(begun.await, "the grant is being written");
    }
    let granted = async {
        while book.all().len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), granted)
        .await
        .unwrap();
    writer.finish().unwrap();
    let page = reading::answer(&database, reading::ENTRIES, "", |_| true).unwrap();
    let entry = &page["entries"][0];
    assert_eq!(entry["action"], "request");
    assert_eq!(entry["actor"], "anna");
    assert_eq!(entry["object"], format!("POST {SUBSCRIPTIONS_PATH}"));
    assert_eq!(entry["outcome"], "failed");
}

#[tokio::test]
async fn a_body_without_an_end_is_cut_off() {
    let child = Child::new();
    let bearer = format!("Bearer {}", child.operator_token().await);
    let long = json!({ "slug": "x".repeat(crate::base::limit::JSON_BODY_MAX_BYTES) });
    let headers = [("authorization", bearer.as_str())];
    let (status, _) = child
        .ask((Method::POST, SUBSCRIPTIONS_PATH), &headers, &long)
        .await;
    assert_eq!(status, 413);
}
