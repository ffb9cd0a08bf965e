//! What children and operators meet over HTTPS.

use super::*;
use crate::bridge::certificate_authority::CertificateAuthority;
use crate::contract::{CERTIFICATE_REFRESH_PATH, FEDERATION_PEERS_PATH, TRUST_BUNDLE_PATH};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_accepts_beats_and_renews() {
    let bridge = TestBridge::start().await;
    let (peer, token) = bridge.invite("shop-17");
    let key = PrivateKey::generate().unwrap();
    let (status, first) = bridge.https(None, accept(&token, Some(&key))).await.unwrap();
    assert_eq!((status, &first["data"]["status"]), (200, &json!("enrolled")));
    let shown = identity(&first, &key);

    let (status, answer) = bridge.https(Some(Arc::clone(&shown)), heartbeat()).await.unwrap();
    assert_eq!((status, &answer["data"]["status"]), (200, &json!("active")));
    assert_eq!(answer["data"]["our_endpoints"][0]["url"], "https://127.0.0.1");
    assert_eq!(answer["data"]["schema_compatibility"]["status"], "compatible");

    let bundle = request(Method::GET, TRUST_BUNDLE_PATH, &Value::Null);
    let (_, answer) = bridge.https(Some(Arc::clone(&shown)), bundle).await.unwrap();
    assert!(
        answer["data"]["ca_bundle_pem"]
            .as_str()
            .unwrap()
            .contains("BEGIN CERTIFICATE")
    );

    let next = PrivateKey::generate().unwrap();
    let body = json!({ "csr_pem": next.csr_pem("powernode-satellite").unwrap() });
    let refresh = request(Method::POST, CERTIFICATE_REFRESH_PATH, &body);
    let (status, answer) = bridge.https(Some(Arc::clone(&shown)), refresh).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let renewed = json!({ "data": { "federation_certificate": answer["data"] } });
    for still_good in [identity(&renewed, &next), shown] {
        assert_eq!(bridge.https(Some(still_good), heartbeat()).await.unwrap().0, 200);
    }

    let bridge = bridge.restart().await;
    let (status, again) = bridge.https(None, accept(&token, Some(&key))).await.unwrap();
    assert_eq!(
        (status, again),
        (200, first),
        "a lost answer is given again after a restart"
    );
    let row = bridge.running.registry().peer_by_id(peer).unwrap().unwrap();
    assert_eq!(row.status.as_str(), "active");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_four_simultaneous_accepts_one_wins() {
    let bridge = TestBridge::start().await;
    for round in 0..3 {
        let (_, token) = bridge.invite(&format!("shop-{round}"));
        let keys: Vec<PrivateKey> = (0..4).map(|_| PrivateKey::generate().unwrap()).collect();
        let (a, b, c, d) = tokio::join!(
            bridge.https(None, accept(&token, Some(&keys[0]))),
            bridge.https(None, accept(&token, Some(&keys[1]))),
            bridge.https(None, accept(&token, Some(&keys[2]))),
            bridge.https(None, accept(&token, Some(&keys[3]))),
        );
        let mut statuses: Vec<u16> = [a, b, c, d].into_iter().map(|answer| answer.unwrap().0).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 401, 401, 401]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_calls_is_what_the_handshake_verified() {
    let bridge = TestBridge::start().await;
    let (peer, _) = bridge.joined("shop-17").await;
    let mut forged = heartbeat();
    let claim = format!("Subject%3D%22CN%3Dfed%3A{peer}%22");
    forged
        .headers_mut()
        .insert("x-forwarded-tls-client-cert-info", claim.parse().unwrap());
    let (status, answer) = bridge.https(None, forged).await.unwrap();
    assert_eq!(status, 401);
    assert_eq!(answer["code"], "UNAUTHORIZED");
    assert_eq!(answer["error"], "mTLS client certificate required");

    let now = bridge.now();
    let key = PrivateKey::generate().unwrap();
    let csr = key.csr_pem("x").unwrap();
    let foreign = CertificateAuthority::create("Foreign CA", now, [1; 16]).unwrap();
    let issued = foreign.issue_peer_certificate(&csr, peer, now, [2; 16]).unwrap();
    let chain = CertificateChain::from_pem(&issued.cert_pem).unwrap();
    let foreign = Arc::new(TlsIdentity::new(&chain, &key).unwrap());
    assert!(
        bridge.https(Some(foreign), heartbeat()).await.is_err(),
        "a foreign certificate ends in the handshake"
    );

    let own = bridge.running.registry().authority();
    let issued = own.issue_peer_certificate(&csr, peer, now, [3; 16]).unwrap();
    let chain = CertificateChain::from_pem(&issued.cert_pem).unwrap();
    let unknown_key = Arc::new(TlsIdentity::new(&chain, &key).unwrap());
    let (status, answer) = bridge.https(Some(unknown_key), heartbeat()).await.unwrap();
    assert_eq!(status, 401);
    assert!(
        answer["error"]
            .as_str()
            .unwrap()
            .contains("expected anchor sha256:"),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_told_why_and_change_nothing() {
    let bridge = TestBridge::start().await;
    let (_, token) = bridge.invite("shop-17");
    let raw = |body: &'static str| {
        let mut bad = request(Method::POST, ACCEPT_PATH, &Value::Null);
        *bad.body_mut() = Full::new(Bytes::from_static(body.as_bytes()));
        bad
    };
    let large = request(Method::POST, ACCEPT_PATH, &json!("x".repeat(300_000)));
    let broken_csr = json!({ "acceptance_token": token, "contract_version": 1, "csr_pem": "nonsense" });
    for (bad, expected) in [
        (raw("{"), 400),
        (raw(r#"{"acceptance_token":5}"#), 400),
        (raw("{}"), 422),
        (large, 413),
        (request(Method::POST, ACCEPT_PATH, &broken_csr), 422),
        (request(Method::GET, ACCEPT_PATH, &Value::Null), 405),
        (request(Method::POST, "/api/v1/system/nothing", &Value::Null), 404),
        (request(Method::GET, FEDERATION_PEERS_PATH, &Value::Null), 401),
    ] {
        let what = format!("{} {}", bad.method(), bad.uri());
        let (status, answer) = bridge.https(None, bad).await.unwrap();
        assert_eq!(status, expected, "{what}: {answer}");
        assert_eq!(answer["success"], false, "{what}: {answer}");
    }
    let key = PrivateKey::generate().unwrap();
    assert_eq!(
        bridge.https(None, accept(&token, Some(&key))).await.unwrap().0,
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_that_are_too_much_are_recorded_and_told() {
    let bridge = TestBridge::start().await;
    let (peer, identity) = bridge.joined("shop-17").await;
    let body = json!({ "data_residency": "x".repeat(65), "capabilities": { "a": 1 } });
    let beat = request(Method::POST, HEARTBEAT_PATH, &body);
    let (status, answer) = bridge.https(Some(Arc::clone(&identity)), beat).await.unwrap();
    assert_eq!((status, &answer["code"]), (422, &json!("VALIDATION_ERROR")));
    let row = bridge.running.registry().peer_by_id(peer).unwrap().unwrap();
    assert_eq!(row.status.as_str(), "active");
    let beat = request(Method::POST, HEARTBEAT_PATH, &json!({}));
    let (status, answer) = bridge.https(Some(identity), beat).await.unwrap();
    assert_eq!(status, 200);
    assert_eq!(answer["data"]["schema_compatibility"]["status"], "incompatible");
    let row = bridge.running.registry().peer_by_id(peer).unwrap().unwrap();
    assert_eq!(
        row.declared.capabilities["a"], 1,
        "an empty heartbeat changes nothing"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepts_of_one_source_are_counted() {
    let bridge = TestBridge::start_with(&[("limits.accepts_per_source_per_minute", "3")]).await;
    for _ in 0..3 {
        assert_eq!(bridge.https(None, accept("guess", None)).await.unwrap().0, 401);
    }
    assert_eq!(bridge.https(None, accept("guess", None)).await.unwrap().0, 429);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_nobody_knows_are_counted_and_known_ones_pass() {
    let bridge = TestBridge::start_with(&[("limits.unknown_tokens_per_source_per_minute", "3")]).await;
    let ask = async |path: &str, token: &str| {
        let request = Request::get(path)
            .header("authorization", format!("Bearer {token}"))
            .header("host", "127.0.0.1")
            .body(Full::new(Bytes::new()));
        bridge.https(None, request.unwrap()).await.unwrap()
    };
    let (stale, service) = ("x".repeat(43), "/satellites/shop-17/web/");
    assert_eq!(ask(FEDERATION_PEERS_PATH, &stale).await.0, 401);
    assert_eq!(ask(service, &stale).await.0, 401);
    assert_eq!(ask(FEDERATION_PEERS_PATH, &stale).await.0, 401);
    for path in [FEDERATION_PEERS_PATH, service] {
        let (status, answer) = ask(path, &stale).await;
        assert_eq!(status, 429, "{path}");
        assert!(answer.to_string().contains("too many requests"), "{answer}");
    }
    assert_eq!(ask(FEDERATION_PEERS_PATH, &bridge.operator_token).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_propose_mint_suspend_and_grant() {
    let bridge = TestBridge::start().await;
    let peers = FEDERATION_PEERS_PATH;
    let body = json!({ "name": "shop-17", "remote_instance_url": "https://a.example.com" });
    let (status, proposed) = bridge.operator(Method::POST, peers, body).await;
    assert_eq!((status, &proposed["data"]["status"]), (201, &json!("proposed")));
    let id = proposed["data"]["id"].as_str().unwrap().to_owned();
    let mint = format!("{peers}/{id}/acceptance_token");
    let (status, minted) = bridge
        .operator(Method::POST, &mint, json!({ "ttl_seconds": 600 }))
        .await;
    assert_eq!(status, 201, "{minted}");
    assert_eq!(minted["data"]["acceptance_token"].as_str().unwrap().len(), 43);
    let (status, list) = bridge.operator(Method::GET, peers, Value::Null).await;
    assert_eq!((status, &list["data"][0]["id"]), (200, &json!(id)));
    assert!(
        !list
            .to_string()
            .contains(minted["data"]["acceptance_token"].as_str().unwrap())
    );
    let (status, _) = bridge
        .operator(Method::POST, &format!("{peers}/{id}/suspend"), json!({}))
        .await;
    assert_eq!(status, 422, "a reason is required");
    let (status, near) = bridge
        .operator(Method::GET, &format!("{peers}/shop-71"), Value::Null)
        .await;
    assert_eq!(status, 404);
    assert!(near["error"].as_str().unwrap().contains("shop-17"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grants_and_tools_do_what_the_command_line_does() {
    let bridge = TestBridge::start().await;
    let (id, _) = bridge.invite("shop-17");
    let grant = json!({
        "federation_peer_id": id.to_string(), "remote_subject": "ops@example.com", "resource_kind": "node_instance",
        "permission_scopes": ["read"], "node_instance_ids": [], "sdwan_network_ids": ["*"],
        "source_cidrs": ["192.0.2.0/24"],
    });
    let path = crate::bridge::operator_api::ACCESS_GRANTS_PATH;
    let (status, created) = bridge.operator(Method::POST, path, grant).await;
    assert_eq!(status, 201, "{created}");
    assert!(
        created["data"]["bearer_token"]
            .as_str()
            .unwrap()
            .starts_with("fgs.")
    );
    let revoke = format!(
        "{path}/{}/revoke",
        created["data"]["grant"]["id"].as_str().unwrap()
    );
    let (status, _) = bridge
        .operator(Method::POST, &revoke, json!({ "reason": "done" }))
        .await;
    assert_eq!(status, 200);

    let call = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": { "name": "system_sdwan_propose_federation_peer", "arguments": { "name": "shop-18" } },
    });
    let (status, answer) = bridge.operator(Method::POST, "/mcp", call).await;
    assert_eq!((status, &answer["result"]["isError"]), (200, &json!(false)));
    let (_, tools) = bridge
        .operator(
            Method::POST,
            "/mcp",
            json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/list" }),
        )
        .await;
    assert_eq!(tools["result"]["tools"].as_array().unwrap().len(), 3);
    let (_, health) = bridge
        .operator(Method::GET, "/api/v1/system/sdwan/health", Value::Null)
        .await;
    assert_eq!(health["data"]["peers_by_status"]["proposed"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_shows_a_certificate_with_the_new_names() {
    let bridge = TestBridge::start().await;
    let greets = async |name: &'static str| {
        let stream = TcpStream::connect(bridge.running.bound.https[0]).await.unwrap();
        let tls = TlsConnector::from(Arc::new(bridge.client_tls(None)));
        tls.connect(ServerName::try_from(name).unwrap(), stream)
            .await
            .is_ok()
    };
    assert!(greets("127.0.0.1").await);
    assert!(!greets("bridge.example.com").await);
    let mut new = bridge.running.settings.borrow().clone();
    new.public.names.push("bridge.example.com".to_owned());
    bridge.running.apply(new).await;
    assert!(greets("bridge.example.com").await);
    assert!(greets("127.0.0.1").await, "the URL's name stays");
}
