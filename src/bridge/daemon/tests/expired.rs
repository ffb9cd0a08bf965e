//! Peers that come with a certificate that has expired: they renew it, and do nothing else with it.

use super::*;
use crate::base::id::PublicKeyDigest;
use crate::bridge::acceptance::AcceptCall;
use crate::contract::CERTIFICATE_REFRESH_PATH;
use crate::contract::peer::PeerStatus;
use crate::wire::{RENEWAL_ONLY_FEATURE, RefusalCode};

const DAY: Duration = Duration::from_secs(86_400);

/// A peer that accepted so long ago.
fn joined_before(bridge: &TestBridge, name: &str, ago: Duration) -> (PeerId, Arc<TlsIdentity>) {
    let (peer, token) = bridge.invite(name);
    let key = PrivateKey::generate().unwrap();
    let body = json!({
        "acceptance_token": token,
        "contract_version": 1,
        "csr_pem": key.csr_pem("powernode-satellite").unwrap(),
    });
    let call = AcceptCall::read(body.to_string().as_bytes()).unwrap();
    let registry = bridge.running.registry();
    let accepted = registry.accept(&call, DAY, bridge.now().minus(ago)).unwrap();
    let answer = serde_json::from_slice(&accepted.answer).unwrap();
    (peer, identity(&answer, &key))
}

fn refresh(key: &PrivateKey) -> Request<Full<Bytes>> {
    let body = json!({ "csr_pem": key.csr_pem("powernode-satellite").unwrap() });
    request(Method::POST, CERTIFICATE_REFRESH_PATH, &body)
}

fn renewed(answer: &Value, key: &PrivateKey) -> Arc<TlsIdentity> {
    let chain = CertificateChain::from_pem(answer["data"]["cert_pem"].as_str().unwrap()).unwrap();
    Arc::new(TlsIdentity::new(&chain, key).unwrap())
}

async fn ask(tunnel: &Tunnel, request: Request<Full<Bytes>>) -> (u16, Value) {
    let limits = tunnel_http::HttpLimits::default();
    let answer = tunnel_http::request(tunnel, TraceId(1), request, limits)
        .await
        .unwrap();
    let body = serde_json::from_slice(answer.body()).unwrap_or(Value::Null);
    (answer.status().as_u16(), body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_renewed_over_either_transport_and_then_its_peer_is_back() {
    let bridge = TestBridge::start().await;
    for (name, over_tcp) in [("shop-17", false), ("shop-18", true)] {
        let (peer, old) = joined_before(&bridge, name, 100 * DAY);
        let dialled = if over_tcp {
            bridge.dial_tcp(Some(old)).await.unwrap()
        } else {
            bridge.dial(Some(old)).await.unwrap()
        };
        assert!(
            dialled
                .welcome
                .features
                .iter()
                .any(|named| named == RENEWAL_ONLY_FEATURE)
        );
        let (tunnel, key) = (dialled.tunnel.clone(), PrivateKey::generate().unwrap());
        let work = async {
            for refused in [
                heartbeat(),
                accept("any", Some(&key)),
                request(Method::GET, crate::contract::TRUST_BUNDLE_PATH, &Value::Null),
                request(Method::POST, crate::contract::TUNNEL_GRANTS_PATH, &json!({})),
                request(Method::POST, crate::contract::TUNNEL_LEAVE_PATH, &json!({})),
                request(Method::POST, crate::contract::TUNNEL_DIAL_BACK_PATH, &json!({})),
            ] {
                let path = refused.uri().path().to_owned();
                let (status, body) = ask(&tunnel, refused).await;
                assert_eq!(status, 401, "{path}: {body}");
            }
            assert!(bridge.running.links.get(peer).is_none(), "it is no session");
            assert_eq!(bridge.running.links.bootstrap_len(), 1);
            ask(&tunnel, refresh(&key)).await
        };
        let (status, answer) = tokio::select! {
            done = work => done,
            reason = dialled.driver.run() => panic!("{reason}"),
        };
        assert_eq!(status, 200, "{answer}");
        let new = renewed(&answer, &key);
        assert_eq!(bridge.https(Some(new), heartbeat()).await.unwrap().0, 200);
        let row = bridge.running.registry().peer_by_id(peer).unwrap().unwrap();
        assert_eq!(row.status, PeerStatus::Active);
        wait_until("its place is free", || bridge.running.links.bootstrap_len() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_https_it_is_good_for_the_same() {
    let bridge = TestBridge::start().await;
    let (_, old) = joined_before(&bridge, "shop-17", 100 * DAY);
    let (status, body) = bridge.https(Some(Arc::clone(&old)), heartbeat()).await.unwrap();
    assert_eq!(status, 401);
    assert!(body["error"].as_str().unwrap().contains("expired"), "{body}");
    let key = PrivateKey::generate().unwrap();
    let (status, answer) = bridge.https(Some(old), refresh(&key)).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let new = renewed(&answer, &key);
    assert_eq!(bridge.https(Some(new), heartbeat()).await.unwrap().0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_old_or_unwanted_or_of_another_key_it_is_not() {
    let bridge = TestBridge::start_with(&[("authority.renew_expired_for", "30d")]).await;
    let (_, ancient) = joined_before(&bridge, "ancient", 121 * DAY);
    assert!(bridge.dial(Some(Arc::clone(&ancient))).await.is_err());
    assert!(bridge.https(Some(ancient), heartbeat()).await.is_err());

    let registry = bridge.running.registry();
    let (revoked, old) = joined_before(&bridge, "revoked", 100 * DAY);
    registry
        .revoke(&revoked.to_string(), "sold", bridge.now())
        .unwrap();
    let refused = bridge.dial(Some(Arc::clone(&old))).await;
    assert!(
        matches!(&refused, Err(GreetingError::Refused(refused)) if refused.code == RefusalCode::NotAdmitted),
        "{:?}",
        refused.err()
    );
    let key = PrivateKey::generate().unwrap();
    assert_eq!(bridge.https(Some(old), refresh(&key)).await.unwrap().0, 401);

    let (peer, old) = joined_before(&bridge, "renewed", 100 * DAY);
    let first: PublicKeyDigest = old.facts().public_key_digest;
    for called_with in [first, key.public_key_digest()] {
        let next = PrivateKey::generate().unwrap();
        let key = if called_with == first { &key } else { &next };
        let csr = key.csr_pem("x").unwrap();
        registry
            .refresh_certificate(peer, called_with, &csr, bridge.now())
            .unwrap();
    }
    assert_eq!(
        bridge.https(Some(old), refresh(&key)).await.unwrap().0,
        401,
        "a key that was given up twice over proves nothing"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_operator_forbids_it_it_is_refused_in_the_handshake() {
    let bridge = TestBridge::start_with(&[("authority.renew_expired_for", "0s")]).await;
    let (_, old) = joined_before(&bridge, "shop-17", 91 * DAY);
    assert!(bridge.dial(Some(old)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_was_resumed_meanwhile_renews_before_it_can_beat() {
    let bridge = TestBridge::start().await;
    let (peer, old) = joined_before(&bridge, "shop-17", 100 * DAY);
    let registry = bridge.running.registry();
    registry.suspend(&peer.to_string(), "away", bridge.now()).unwrap();
    let key = PrivateKey::generate().unwrap();
    assert_eq!(
        bridge
            .https(Some(Arc::clone(&old)), refresh(&key))
            .await
            .unwrap()
            .0,
        401
    );
    registry.resume(&peer.to_string(), bridge.now()).unwrap();
    let (status, answer) = bridge.https(Some(old), refresh(&key)).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let new = renewed(&answer, &key);
    assert_eq!(bridge.https(Some(new), heartbeat()).await.unwrap().0, 200);
}
