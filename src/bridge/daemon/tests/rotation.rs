//! The authority is rotated while satellites are connected, join and come back.

use tokio::task::JoinSet;

use super::*;
use crate::bridge::links::AUTHORITY_RETIRED;
use crate::bridge::operator_api::CA_PATH;
use crate::contract::invitation::CaFingerprint;
use crate::contract::{CERTIFICATE_REFRESH_PATH, TRUST_BUNDLE_PATH};
use crate::identity::anchors::Anchors;
use crate::identity::succession::{ServedBundle, follow};
use crate::tunnel::close::CloseReason;

impl TestBridge {
    /// One HTTPS request by a satellite that knows the bridge by these anchors or this pin.
    async fn knows(
        &self,
        pin: CaFingerprint,
        learned: Option<&Anchors>,
        identity: Option<&Arc<TlsIdentity>>,
        request: Request<Full<Bytes>>,
    ) -> std::io::Result<(u16, Value)> {
        let clock = self.running.clock.clone();
        let tls = client_config(ClientTls {
            trust: &ParentTrust::Pinned(pin),
            learned,
            identity: identity.map(|identity| watch::channel(Arc::clone(identity)).1),
            alpn: &[],
            time: Arc::new(move || clock.trusted().now),
            failures: FailureRecord::default(),
        })
        .unwrap();
        Box::pin(self.https_with(tls, request)).await
    }

    fn shown_fingerprint(&self) -> String {
        self.running
            .material
            .identity()
            .borrow()
            .facts()
            .serial_hex
            .clone()
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_but_through_the_bundle() {
    let bridge = TestBridge::start().await;
    let (_, old_identity) = bridge.joined("shop-17").await;
    let old = bridge.running.registry().authority();
    let (old_pin, old_anchors) = (old.fingerprint(), old.anchors().clone());
    let dialled = bridge.dial(Some(Arc::clone(&old_identity))).await.unwrap();
    let shown = bridge.shown_fingerprint();

    let (status, rotated) = bridge
        .operator(Method::POST, &format!("{CA_PATH}/rotate"), json!({}))
        .await;
    assert_eq!(status, 200, "{rotated}");
    assert_eq!(rotated["data"]["predecessor"]["fingerprint"], old_pin.to_string());
    assert_eq!(rotated["data"]["predecessor"]["in_use_by"], json!(["shop-17"]));
    wait_until("the server shows a certificate of the new authority", || {
        bridge.shown_fingerprint() != shown
    })
    .await;

    // A tunnel of before, a satellite that knows the old authority, and a join code of before.
    let tunnel = dialled.tunnel.clone();
    let over_the_tunnel = async {
        let limits = tunnel_http::HttpLimits::default();
        let answer = tunnel_http::request(&tunnel, TraceId(1), heartbeat(), limits).await;
        answer.unwrap().status().as_u16()
    };
    let status = tokio::select! {
        status = over_the_tunnel => status,
        reason = dialled.driver.run() => panic!("{reason}"),
    };
    assert_eq!(status, 200);
    let known = Some(&old_anchors);
    let (status, beat) = bridge
        .knows(old_pin, known, Some(&old_identity), heartbeat())
        .await
        .unwrap();
    assert_eq!(status, 200, "{beat}");
    assert_eq!(beat["data"]["trust_anchors"].as_array().unwrap().len(), 2);
    let (_, token) = bridge.invite("shop-18");
    let key = PrivateKey::generate().unwrap();
    let accepted = bridge
        .knows(old_pin, None, None, accept(&token, Some(&key)))
        .await;
    let (status, accepted) = accepted.unwrap();
    assert_eq!(status, 200, "{accepted}");
    let new_identity = identity(&accepted, &key);
    let new_pin = bridge.running.registry().authority().fingerprint();
    let beat = bridge
        .knows(new_pin, None, Some(&new_identity), heartbeat())
        .await;
    assert_eq!(beat.unwrap().0, 200);

    // What a satellite makes of the bundle.
    let asked = request(Method::GET, TRUST_BUNDLE_PATH, &Value::Null);
    let (status, bundle) = bridge
        .knows(old_pin, known, Some(&old_identity), asked)
        .await
        .unwrap();
    assert_eq!(status, 200);
    let served = ServedBundle {
        ca_bundle_pem: text(&bundle["data"]["ca_bundle_pem"]),
        cross_certificates_pem: Some(text(&bundle["data"]["cross_certificates_pem"])),
    };
    let followed = follow(&old_anchors, served, bridge.now()).unwrap();
    assert_eq!(
        followed.anchors,
        **bridge.running.registry().authorities().anchors()
    );

    // It is renewed by the new authority, and the old one goes.
    let key = PrivateKey::generate().unwrap();
    let csr = json!({ "csr_pem": key.csr_pem("x").unwrap() });
    let refresh = request(Method::POST, CERTIFICATE_REFRESH_PATH, &csr);
    let (status, renewed) = bridge
        .knows(old_pin, Some(&followed.anchors), Some(&old_identity), refresh)
        .await
        .unwrap();
    assert_eq!(status, 200);
    let chain = CertificateChain::from_pem(text(&renewed["data"]["cert_pem"])).unwrap();
    let renewed = Arc::new(TlsIdentity::new(&chain, &key).unwrap());
    let retire = format!("{CA_PATH}/retire");
    let (status, refused) = bridge.operator(Method::POST, &retire, json!({})).await;
    assert_eq!(status, 409, "{refused}");
    let shown = bridge.shown_fingerprint();
    let (status, _) = bridge
        .operator(Method::POST, &retire, json!({ "force": true }))
        .await;
    assert_eq!(status, 200);
    wait_until("the server shows the new authority alone", || {
        bridge.shown_fingerprint() != shown
    })
    .await;
    let anchors = Some(&followed.anchors);
    let beat = bridge.knows(new_pin, anchors, Some(&renewed), heartbeat()).await;
    assert_eq!(beat.unwrap().0, 200);
    let stale = bridge
        .knows(new_pin, anchors, Some(&old_identity), heartbeat())
        .await;
    assert!(stale.is_err(), "a certificate of the retired authority");
    let stale = bridge.knows(old_pin, known, Some(&renewed), heartbeat()).await;
    assert!(stale.is_err(), "a satellite that slept through the overlap");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_admin_without_limits_rotates() {
    let bridge = TestBridge::start().await;
    let limited = json!({ "name": "tom", "role": "admin", "peers": ["shop-*"] });
    let (_, added) = bridge
        .operator(Method::POST, crate::bridge::operator_api::OPERATORS_PATH, limited)
        .await;
    let token = text(&added["data"]["operator_token"]).to_owned();
    for what in ["rotate", "retire"] {
        let path = format!("{CA_PATH}/{what}");
        let (status, refused) = bridge.with_token(&token, Method::POST, &path, json!({})).await;
        assert_eq!(status, 403, "{refused}");
    }
    assert!(bridge.running.registry().authorities().predecessor().is_none());
    let (status, _) = bridge
        .operator(Method::POST, &format!("{CA_PATH}/retire"), json!({}))
        .await;
    assert_eq!(status, 409);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_end_cuts_who_came_by_the_old_authority_and_nobody_else() {
    let bridge = TestBridge::start().await;
    let (_, old_identity) = bridge.joined("shop-17").await;
    let (status, _) = bridge
        .operator(Method::POST, &format!("{CA_PATH}/rotate"), json!({}))
        .await;
    assert_eq!(status, 200);
    let (_, new_identity) = bridge.joined("shop-18").await;
    let cut = bridge.dial(Some(old_identity)).await.unwrap();
    let stays = bridge.dial(Some(new_identity)).await.unwrap();
    let tunnel = stays.tunnel.clone();
    let (mut ended, mut staying) = (JoinSet::new(), JoinSet::new());
    ended.spawn(cut.driver.run());
    staying.spawn(stays.driver.run());
    wait_until("both are in", || bridge.running.links.len() == 2).await;

    let retire = format!("{CA_PATH}/retire");
    let (status, retired) = bridge
        .operator(Method::POST, &retire, json!({ "force": true }))
        .await;
    assert_eq!(
        (status, &retired["data"]["peers_cut"]),
        (200, &json!(1)),
        "{retired}"
    );
    let reason = ended.join_next().await.unwrap().unwrap();
    assert!(
        matches!(&reason, CloseReason::Goodbye(told) if told.message == AUTHORITY_RETIRED),
        "{reason}"
    );
    assert_eq!(bridge.running.links.len(), 1);
    let answer = tunnel_http::request(
        &tunnel,
        TraceId(1),
        heartbeat(),
        tunnel_http::HttpLimits::default(),
    );
    assert_eq!(answer.await.unwrap().status(), 200);
    assert!(staying.try_join_next().is_none());
}
