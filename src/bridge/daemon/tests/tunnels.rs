//! What satellites meet at the tunnel's end.

use std::convert::Infallible;

use hyper::service::service_fn;

use super::*;
use crate::base::id::CertificateDigest;
use crate::contract::SERVICE_CATALOG_PATH;
use crate::tunnel::close::CloseReason;
use crate::tunnel::connection::GREETING_TIMEOUT;
use crate::wire::{GoodbyeReason, RefusalCode};

/// Runs a tunnel's driver beside what is done with the tunnel; the driver ends first or never.
async fn driven<T>(driver: TunnelDriver, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = &mut work => done,
        _ = driver.run() => work.await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_satellite_joins_and_beats_through_tunnels_alone() {
    let bridge = TestBridge::start().await;
    let (peer, token) = bridge.invite("shop-17");
    let key = PrivateKey::generate().unwrap();
    let dialled = bridge.dial(None).await.unwrap();
    let tunnel = dialled.tunnel.clone();
    let answer = driven(dialled.driver, async {
        let ask =
            |request| tunnel_http::request(&tunnel, TraceId(1), request, tunnel_http::HttpLimits::default());
        let refused = ask(heartbeat()).await.unwrap();
        assert_eq!(
            refused.status(),
            401,
            "a connection without a certificate accepts and no more"
        );
        ask(accept(&token, Some(&key))).await.unwrap()
    })
    .await;
    assert_eq!(answer.status(), 200);
    let answer: Value = serde_json::from_slice(answer.body()).unwrap();

    let dialled = bridge.dial(Some(identity(&answer, &key))).await.unwrap();
    assert!(dialled.welcome.unix_seconds > 0);
    let tunnel = dialled.tunnel.clone();
    driven(dialled.driver, async {
        let ask =
            |request| tunnel_http::request(&tunnel, TraceId(1), request, tunnel_http::HttpLimits::default());
        assert_eq!(ask(heartbeat()).await.unwrap().status(), 200);
        let row = bridge.running.registry().peer_by_id(peer).unwrap().unwrap();
        assert_eq!(row.status.as_str(), "active");
        assert!(bridge.running.links.get(peer).is_some());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_reach_the_satellite_through_its_tunnel() {
    let bridge = TestBridge::start().await;
    let (peer, identity) = bridge.joined("shop-17").await;
    let path = format!("/peers/shop-17{SERVICE_CATALOG_PATH}");
    let (status, offline) = bridge.operator(Method::GET, &path, Value::Null).await;
    assert_eq!(status, 503, "{offline}");
    let unknown = format!("/peers/shop-71{SERVICE_CATALOG_PATH}");
    let (status, unknown) = bridge.operator(Method::GET, &unknown, Value::Null).await;
    assert_eq!(status, 404);
    assert!(
        unknown["error"].as_str().unwrap().contains("shop-17"),
        "{unknown}"
    );

    let dialled = bridge.dial(Some(identity)).await.unwrap();
    let tunnel = dialled.tunnel.clone();
    let satellite = async {
        let incoming = tunnel.accept_stream().await.unwrap();
        let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
            assert!(
                request.headers().get("authorization").is_none(),
                "the operator's token left the bridge"
            );
            let body = json!({ "path": request.uri().path() }).to_string();
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body))))
        });
        tunnel_http::serve(incoming.accept().await.unwrap(), service)
            .await
            .unwrap();
    };
    driven(dialled.driver, async {
        wait_until("the session is in", || bridge.running.links.get(peer).is_some()).await;
        let (answer, ()) = tokio::join!(bridge.operator(Method::GET, &path, Value::Null), satellite);
        assert_eq!(answer, (200, json!({ "path": SERVICE_CATALOG_PATH })));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_session_wins_and_the_old_one_is_told() {
    let bridge = TestBridge::start().await;
    let (peer, identity) = bridge.joined("shop-17").await;
    let old = bridge.dial(Some(Arc::clone(&identity))).await.unwrap();
    wait_until("the first session is in", || {
        bridge.running.links.get(peer).is_some()
    })
    .await;
    let new = bridge.dial(Some(identity)).await.unwrap();
    let reason = driven(new.driver, tokio::time::timeout(DEADLINE, old.driver.run()))
        .await
        .unwrap();
    assert!(
        matches!(&reason, CloseReason::Goodbye(goodbye) if goodbye.reason == GoodbyeReason::Superseded),
        "{reason:?}"
    );
    assert_eq!(bridge.running.links.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_reconnects_leave_nothing_behind() {
    let bridge = TestBridge::start_with(&[("limits.bootstrap_connections_per_source", "64")]).await;
    let (_, identity) = bridge.joined("shop-17").await;
    for _ in 0..100 {
        drop(bridge.dial(Some(Arc::clone(&identity))).await.unwrap());
        drop(bridge.dial(None).await);
        assert!(bridge.running.links.len() <= 1);
    }
    wait_until("all sessions are gone", || {
        let tunnels = bridge.running.supervisor.running();
        bridge.running.links.is_empty()
            && bridge.running.links.bootstrap_len() == 0
            && !tunnels
                .iter()
                .any(|task| task.starts_with("tunnel") && *task != "tunnel listener")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suspended_and_revoked_peers_are_told_and_stay_out() {
    for (verb, reason) in [
        ("suspend", GoodbyeReason::Suspended),
        ("revoke", GoodbyeReason::Revoked),
    ] {
        let bridge = TestBridge::start().await;
        let (peer, identity) = bridge.joined("shop-17").await;
        let dialled = bridge.dial(Some(Arc::clone(&identity))).await.unwrap();
        wait_until("the session is in", || bridge.running.links.get(peer).is_some()).await;
        let path = format!("{}/shop-17/{verb}", crate::contract::FEDERATION_PEERS_PATH);
        let (answer, ended) = tokio::join!(
            bridge.operator(Method::POST, &path, json!({ "reason": "test" })),
            tokio::time::timeout(DEADLINE, dialled.driver.run()),
        );
        assert_eq!(answer.0, 200, "{}", answer.1);
        let ended = ended.unwrap();
        assert!(
            matches!(&ended, CloseReason::Goodbye(goodbye) if goodbye.reason == reason),
            "{ended:?}"
        );
        match bridge.dial(Some(identity)).await.map(|_| ()) {
            Err(GreetingError::Refused(refused)) => {
                assert_eq!(refused.code, RefusalCode::NotAdmitted);
                assert!(refused.retry_after_millis > 0);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_that_is_waited_for_may_come_by_two_ways_at_once() {
    let bridge = TestBridge::start().await;
    let registry = bridge.running.registry();
    let (peer, token) = bridge.invite("shop-17");
    let (named, now) = (peer.to_string(), bridge.now());
    let a_box = async |token: &str| {
        let key = PrivateKey::generate().unwrap();
        let (status, answer) = bridge.https(None, accept(token, Some(&key))).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        let pem = &answer["data"]["federation_certificate"]["cert_pem"];
        let chain = CertificateChain::from_pem(pem.as_str().unwrap()).unwrap();
        (
            identity(&answer, &key),
            CertificateDigest::of_der(&chain.to_der()[0]),
        )
    };
    let first = a_box(&token).await;
    registry.suspend(&named, "a new box", now).unwrap();
    let minted = registry
        .mint_token(&named, Duration::from_secs(3_600), now)
        .unwrap();
    let second = a_box(minted.token.expose().expose_text().unwrap()).await;
    // Each time the one whose key is none of the peer's.
    for (comes, shown) in [first, second].iter().cycle().take(24) {
        bridge.running.links.expect(peer, *shown, now).unwrap();
        let (quic, tls) = tokio::join!(
            bridge.dial(Some(Arc::clone(comes))),
            bridge.dial_tcp(Some(Arc::clone(comes)))
        );
        let refused = [quic.err(), tls.err()];
        assert!(matches!(refused, [None, None]), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_certificate_are_few() {
    let bridge = TestBridge::start_with(&[("limits.bootstrap_connections_per_source", "2")]).await;
    let first = bridge.dial(None).await.unwrap();
    let _second = bridge.dial(None).await.unwrap();
    match bridge.dial(None).await.map(|_| ()) {
        Err(GreetingError::Refused(refused)) => assert_eq!(refused.code, RefusalCode::Busy),
        other => panic!("{other:?}"),
    }
    drop(first);
    wait_until("a place is free", || bridge.running.links.bootstrap_len() < 2).await;
    assert!(bridge.dial(None).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_tells_satellites_when_to_come_back() {
    let bridge = TestBridge::start().await;
    let (peer, identity) = bridge.joined("shop-17").await;
    let dialled = bridge.dial(Some(identity)).await.unwrap();
    wait_until("the session is in", || bridge.running.links.get(peer).is_some()).await;
    let (stopped, ended) = tokio::join!(
        bridge.running.stop(DEADLINE, std::future::pending()),
        tokio::time::timeout(DEADLINE, dialled.driver.run()),
    );
    stopped.unwrap();
    match ended.unwrap() {
        CloseReason::Goodbye(goodbye) => {
            assert_eq!(goodbye.reason, GoodbyeReason::ShuttingDown);
            assert!((2_000..4_000).contains(&goodbye.retry_after_millis));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialer_that_says_nothing_does_not_hold_a_stop_up() {
    let bridge = TestBridge::start().await;
    let (_endpoint, silent) = bridge.connect(None).await;
    // Less than the bridge's patience with a greeting.
    let soon = tokio::time::timeout(
        GREETING_TIMEOUT / 2,
        bridge.running.stop(DEADLINE, std::future::pending()),
    );
    soon.await.expect("the stop waits for the dialer").unwrap();
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_satellite_joins_and_beats_over_tcp_alone() {
    const PLACES: usize = 8;
    let bridge = TestBridge::start_with(&[("limits.https_connections", "8")]).await;
    let (peer, token) = bridge.invite("shop-17");
    let key = PrivateKey::generate().unwrap();
    let dialled = bridge.dial_tcp(None).await.unwrap();
    let tunnel = dialled.tunnel.clone();
    let answer = driven(dialled.driver, async {
        let ask =
            |request| tunnel_http::request(&tunnel, TraceId(1), request, tunnel_http::HttpLimits::default());
        assert_eq!(ask(heartbeat()).await.unwrap().status(), 401);
        ask(accept(&token, Some(&key))).await.unwrap()
    })
    .await;
    let answer: Value = serde_json::from_slice(answer.body()).unwrap();
    let identity = identity(&answer, &key);
    let dialled = bridge.dial_tcp(Some(Arc::clone(&identity))).await.unwrap();
    let tunnel = dialled.tunnel.clone();
    let newer = driven(dialled.driver, async {
        let ask =
            |request| tunnel_http::request(&tunnel, TraceId(1), request, tunnel_http::HttpLimits::default());
        assert_eq!(ask(heartbeat()).await.unwrap().status(), 200);
        let row = bridge.running.registry().peer_by_id(peer).unwrap().unwrap();
        assert_eq!(row.status.as_str(), "active");
        // Tunnels hold no place of the listener's: HTTPS is answered beside as many as it has.
        let mut tunnels = Vec::new();
        for _ in 0..PLACES {
            tunnels.push(bridge.connect_tcp(None).await);
        }
        let (status, _) = bridge.https(None, heartbeat()).await.unwrap();
        assert_eq!(status, 401);
        // A session over QUIC takes over from one over TCP as from any other.
        let newer = bridge.dial(Some(identity)).await.unwrap();
        let reason = tokio::time::timeout(DEADLINE, tunnel.closed()).await.unwrap();
        assert!(
            matches!(&reason, CloseReason::Goodbye(goodbye) if goodbye.reason == GoodbyeReason::Superseded),
            "{reason:?}"
        );
        newer
    })
    .await;
    assert_eq!(bridge.running.links.len(), 1);
    drop(newer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_certificate_are_few_over_tcp_too() {
    let bridge = TestBridge::start_with(&[("limits.bootstrap_connections_per_source", "2")]).await;
    let _first = bridge.dial(None).await.unwrap();
    let _second = bridge.dial_tcp(None).await.unwrap();
    match bridge.dial_tcp(None).await.map(|_| ()) {
        Err(GreetingError::Refused(refused)) => assert_eq!(refused.code, RefusalCode::Busy),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_waits_for_no_silent_dialer_over_tcp() {
    let bridge = TestBridge::start().await;
    let silent = bridge.connect_tcp(None).await;
    let soon = tokio::time::timeout(
        GREETING_TIMEOUT / 2,
        bridge.running.stop(DEADLINE, std::future::pending()),
    );
    soon.await.expect("the stop waits for the dialer").unwrap();
    drop(silent);
}
