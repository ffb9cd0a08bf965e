//! Tunnels that the bridge dials, over real QUIC on loopback: who is asked how, and what streams go over them.

use super::dial_back::{Listening, lab_bridge};
use super::*;
use crate::contract::TUNNEL_DIRECT_PATH;
use crate::reach::listen::AwaitedCall;
use crate::wire::{DIRECT_FEATURE, SessionClaim, StreamHeader, StreamKind};

const NONCE: &str = "0123456789abcdef0123456789abcdef";

fn asked(satellite: &Listening) -> Value {
    json!({ "endpoint": satellite.endpoint(), "nonce": NONCE, "bridge": "bridge.example.com:8443" })
}

fn hello(features: Vec<String>) -> Hello {
    Hello {
        version: TUNNEL_VERSION,
        agent: "test/1".to_owned(),
        features,
    }
}

impl Listening {
    /// Awaits the bridge's call and greets.
    async fn greet(
        &self,
        mut awaited: AwaitedCall,
        features: Vec<String>,
    ) -> (Tunnel, Welcome, TunnelDriver) {
        let called = tokio::time::timeout(DEADLINE, awaited.called()).await.unwrap();
        let clock = Clock::start(BUILD_TIME);
        let settings = TunnelSettings::default();
        let greeted = called.unwrap().greet(hello(features), settings, clock).await;
        greeted.unwrap()
    }
}

#[tokio::test]
async fn a_satellite_that_asks_is_dialled_and_the_tunnel_carries_both_ways() {
    let bridge = lab_bridge().await;
    let satellite = bridge.listening("shop").await;
    let awaited = satellite.listener.await_call(NONCE).unwrap();
    let ((status, answer), (tunnel, welcome, driver)) = tokio::join!(
        satellite.post(TUNNEL_DIRECT_PATH, asked(&satellite)),
        satellite.greet(awaited, vec![DIRECT_FEATURE.to_owned()]),
    );
    assert_eq!(
        (status, &answer["data"]["reached"]),
        (200, &json!(true)),
        "{answer}"
    );
    assert!(
        welcome.features.contains(&DIRECT_FEATURE.to_owned()),
        "{welcome:?}"
    );
    let scope = satellite.supervisor.scope(Stage::Work);
    scope.spawn_until_cancelled("direct tunnel", async move {
        driver.run().await;
    });

    // From the satellite: a request, as over any tunnel.
    let asked = request(Method::POST, HEARTBEAT_PATH, &json!({}));
    let limits = tunnel_http::HttpLimits::default();
    let heard = tunnel_http::request(&tunnel, TraceId(2), asked, limits)
        .await
        .unwrap();
    assert_eq!(heard.status().as_u16(), 200);

    // From the bridge: the newest tunnel carries.
    let carrier = bridge.running.links.get(satellite.peer).unwrap();
    assert_eq!(carrier.remote_address(), satellite.endpoint());
    let header = StreamHeader {
        kind: StreamKind::Http,
        trace: TraceId(3),
    };
    let (opened, taken) = tokio::join!(carrier.open_stream(header), tunnel.accept_stream());
    assert_eq!(taken.unwrap().header().trace, TraceId(3));
    drop(opened.unwrap());
    satellite.stop().await;
}

#[tokio::test]
async fn a_direct_tunnel_on_trial_lives_beside_the_one_before() {
    let bridge = lab_bridge().await;
    let mut satellite = bridge.listening("shop").await;
    let scope = satellite.supervisor.scope(Stage::Work);
    let mut tunnels = Vec::new();
    for trial in [None, Some(Duration::from_secs(60))] {
        let claim = SessionClaim {
            run: Some(7),
            trial,
            replaces: Vec::new(),
        };
        let awaited = satellite.listener.await_call(NONCE).unwrap();
        let (_, (tunnel, _, driver)) = tokio::join!(
            satellite.post(TUNNEL_DIRECT_PATH, asked(&satellite)),
            satellite.greet(awaited, claim.features()),
        );
        scope.spawn_until_cancelled("direct tunnel", async move {
            driver.run().await;
        });
        // The second one is asked for over the first.
        satellite.tunnel = tunnel.clone();
        tunnels.push(tunnel);
    }
    let header = StreamHeader {
        kind: StreamKind::Http,
        trace: TraceId(3),
    };
    let carrier = bridge.running.links.get(satellite.peer).unwrap();
    let (opened, taken) = tokio::join!(carrier.open_stream(header), tunnels[0].accept_stream());
    assert_eq!(
        taken.unwrap().header().trace,
        TraceId(3),
        "the first still carries"
    );
    drop(opened.unwrap());
    assert!(tunnels.iter().all(|tunnel| !tunnel.is_closed()));
    satellite.stop().await;
}

#[tokio::test]
async fn a_call_that_nobody_awaits_gives_no_tunnel() {
    let bridge = lab_bridge().await;
    let satellite = bridge.listening("shop").await;
    drop(satellite.listener.await_call(NONCE));
    let (status, answer) = satellite.post(TUNNEL_DIRECT_PATH, asked(&satellite)).await;
    assert_eq!(
        (status, &answer["data"]["reached"]),
        (200, &json!(false)),
        "{answer}"
    );
    assert!(!satellite.tunnel.is_closed(), "the one before stays");
    satellite.stop().await;
}

#[tokio::test]
async fn nobody_is_dialled_for_another() {
    let bridge = lab_bridge().await;
    let (one, other) = (bridge.listening("one").await, bridge.listening("other").await);
    let _awaited = other.listener.await_call(NONCE).unwrap();
    let (status, answer) = one.post(TUNNEL_DIRECT_PATH, asked(&other)).await;
    assert_eq!((status, &answer["data"]["reached"]), (200, &json!(false)));
    let why = answer["data"]["error"].as_str().unwrap();
    assert!(why.contains("another satellite"), "{why}");
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn tunnels_and_proofs_are_asked_for_under_one_rule() {
    let bridge = TestBridge::start().await;
    let satellite = bridge.listening("shop").await;
    let (status, _) = satellite.post(TUNNEL_DIRECT_PATH, asked(&satellite)).await;
    assert_eq!(status, 403, "loopback is nothing that a bridge dials");
    satellite.stop().await;

    let bridge = lab_bridge().await;
    let satellite = bridge.listening("shop").await;
    let mut answers = Vec::new();
    for _ in 0..11 {
        answers.push(satellite.post(TUNNEL_DIRECT_PATH, asked(&satellite)).await.0);
    }
    assert_eq!(answers[..10], [200; 10]);
    assert_eq!(answers[10], 429, "{answers:?}");
    for body in [
        json!({}),
        json!({ "endpoint": satellite.endpoint(), "nonce": "?", "bridge": "b:1" }),
        json!({ "endpoint": satellite.endpoint(), "nonce": NONCE, "bridge": "" }),
    ] {
        let status = satellite.post(TUNNEL_DIRECT_PATH, body).await.0;
        assert!(matches!(status, 400 | 422), "{status}");
    }
    satellite.stop().await;
}
