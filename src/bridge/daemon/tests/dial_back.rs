//! Proofs of satellites' endpoints, over the tunnel, against real listeners on loopback.

use std::net::{Ipv4Addr, SocketAddr};

use http::StatusCode;
use hyper::service::service_fn;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::contract::TUNNEL_DIAL_BACK_PATH;
use crate::identity::parent_caller::parent_server_config;
use crate::identity::reversed::BridgeTrust;
use crate::machine::membership::StoredIdentity;
use crate::process::supervisor::TaskScope;
use crate::reach::listen::Listener;
use crate::reach::presented::Presented;

const NONCE: &str = "0123456789abcdef0123456789abcdef";

/// A bridge for labs: loopback is where everything is.
pub(super) async fn lab_bridge() -> TestBridge {
    TestBridge::start_with(&[("reach.allow_private", "true")]).await
}

/// A satellite that listens.
pub(super) struct Listening {
    pub(super) peer: PeerId,
    pub(super) tunnel: Tunnel,
    pub(super) listener: Listener,
    stored: StoredIdentity,
    pub(super) supervisor: Supervisor,
}

impl TestBridge {
    pub(super) async fn listening(&self, name: &str) -> Listening {
        let (peer, token) = self.invite(name);
        let key = PrivateKey::generate().unwrap();
        let (status, answer) = self.https(None, accept(&token, Some(&key))).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        let certificate = answer["data"]["federation_certificate"].clone();
        let stored = StoredIdentity {
            pkcs8: key.expose_pkcs8().clone(),
            certificate: serde_json::from_value(certificate).unwrap(),
            not_before: UnixTime::EPOCH,
        };
        let trust = ParentTrust::Pinned(self.running.registry().authority().fingerprint());
        let listener =
            Listener::bind(0, QuicSettings::default(), self.running.clock.clone(), "test/1").unwrap();
        listener
            .serve(&stored, trust, vec!["127.0.0.1".to_owned()])
            .unwrap();
        let supervisor = Supervisor::new();
        let scope = supervisor.scope(Stage::Work);
        scope.spawn("listener", listener.clone().run(scope.clone()));
        let dialled = self.dial(Some(identity(&answer, &key))).await.unwrap();
        let Dialled {
            tunnel,
            driver,
            endpoint,
            ..
        } = dialled;
        scope.spawn_until_cancelled("tunnel", async move {
            driver.run().await;
            drop(endpoint);
        });
        Listening {
            peer,
            tunnel,
            listener,
            stored,
            supervisor,
        }
    }
}

/// A satellite's HTTPS listener that knows of one nonce; its address.
async fn https_of(bridge: &TestBridge, stored: &StoredIdentity, scope: &TaskScope) -> SocketAddr {
    let authority = bridge.running.registry().authority();
    let trust = BridgeTrust {
        trust: ParentTrust::Pinned(authority.fingerprint()),
        learned: Some(authority.anchors().clone()),
        names: vec!["127.0.0.1".to_owned()],
    };
    let (own, _) = Presented::read(stored).unwrap().fixed();
    let clock = bridge.running.clock.clone();
    let time = Arc::new(move || clock.trusted().now);
    let tls = parent_server_config(own, &trust, "fed:nobody".to_owned(), &[b"http/1.1"], time).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    scope.spawn_until_cancelled("https", async move {
        let tls = TlsAcceptor::from(Arc::new(tls));
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = tls.accept(stream).await else {
                continue;
            };
            let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
                let known = request.uri().path() == format!("{TUNNEL_DIAL_BACK_PATH}/{NONCE}");
                let mut answer = Response::new(Full::<Bytes>::default());
                *answer.status_mut() = if known {
                    StatusCode::NO_CONTENT
                } else {
                    StatusCode::NOT_FOUND
                };
                Ok::<_, std::convert::Infallible>(answer)
            });
            let serving = hyper::server::conn::http1::Builder::new();
            let _ = serving.serve_connection(TokioIo::new(stream), service).await;
        }
    });
    address
}

#[tokio::test]
async fn an_https_listener_is_proven_by_the_nonce_and_its_certificate() {
    let bridge = lab_bridge().await;
    let (one, other) = (bridge.listening("one").await, bridge.listening("other").await);
    let scope = one.supervisor.scope(Stage::Work);
    let own = https_of(&bridge, &one.stored, &scope).await;
    let others = https_of(&bridge, &other.stored, &scope).await;
    let unknown = NONCE.replace('0', "1");
    // The listener of the tunnel's protocol does not speak HTTPS.
    for (endpoint, nonce, reached) in [
        (own, NONCE, true),
        (own, &*unknown, false),
        (others, NONCE, false),
        (one.endpoint(), NONCE, false),
    ] {
        let body = json!({ "endpoint": endpoint, "nonce": nonce, "over": "https" });
        let (status, answer) = one.post(TUNNEL_DIAL_BACK_PATH, body).await;
        let data = &answer["data"];
        assert_eq!(
            (status, &data["reached"], &data["over"]),
            (200, &json!(reached), &json!("https")),
            "{answer}"
        );
    }
    one.stop().await;
    other.stop().await;
}

impl Listening {
    pub(super) fn endpoint(&self) -> SocketAddr {
        let port = self.listener.local_address().unwrap().port();
        (Ipv4Addr::LOCALHOST, port).into()
    }

    async fn ask(&self, endpoint: SocketAddr, nonce: &str) -> (u16, Value) {
        let body = json!({ "endpoint": endpoint, "nonce": nonce });
        self.post(TUNNEL_DIAL_BACK_PATH, body).await
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let request = request(Method::POST, path, &body);
        let limits = tunnel_http::HttpLimits::default();
        let answer = tunnel_http::request(&self.tunnel, TraceId(1), request, limits)
            .await
            .unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(answer.body()).unwrap())
    }

    pub(super) async fn stop(self) {
        self.supervisor.shutdown(DEADLINE, std::future::pending()).await;
    }
}

#[tokio::test]
async fn an_endpoint_that_answers_with_the_nonce_is_proven() {
    let bridge = lab_bridge().await;
    let satellite = bridge.listening("shop").await;
    let _awaited = satellite.listener.await_proof(NONCE).unwrap();
    let (status, answer) = satellite.ask(satellite.endpoint(), NONCE).await;
    assert_eq!(
        (status, &answer["data"]["reached"]),
        (200, &json!(true)),
        "{answer}"
    );
    satellite.stop().await;
}

#[tokio::test]
async fn a_nonce_that_nobody_awaits_proves_nothing() {
    let bridge = lab_bridge().await;
    let satellite = bridge.listening("shop").await;
    drop(satellite.listener.await_proof(NONCE));
    let (status, answer) = satellite.ask(satellite.endpoint(), NONCE).await;
    assert_eq!(
        (status, &answer["data"]["reached"]),
        (200, &json!(false)),
        "{answer}"
    );
    let _other = satellite.listener.await_proof(NONCE).unwrap();
    let (status, answer) = satellite
        .ask(satellite.endpoint(), &NONCE.replace('0', "1"))
        .await;
    assert_eq!(
        (status, &answer["data"]["reached"]),
        (200, &json!(false)),
        "{answer}"
    );
    satellite.stop().await;
}

#[tokio::test]
async fn another_satellites_port_proves_nothing() {
    let bridge = lab_bridge().await;
    let (one, other) = (bridge.listening("one").await, bridge.listening("other").await);
    let _awaited = other.listener.await_proof(NONCE).unwrap();
    let (status, answer) = one.ask(other.endpoint(), NONCE).await;
    assert_eq!((status, &answer["data"]["reached"]), (200, &json!(false)));
    let why = answer["data"]["error"].as_str().unwrap();
    assert!(why.contains("another satellite"), "{why}");
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn silence_is_told_in_time() {
    let bridge = lab_bridge().await;
    let satellite = bridge.listening("shop").await;
    let mute = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (status, answer) = satellite.ask(mute.local_addr().unwrap(), NONCE).await;
    assert_eq!(
        (status, &answer["data"]["reached"]),
        (200, &json!(false)),
        "{answer}"
    );
    satellite.stop().await;
}

#[tokio::test]
async fn nobody_has_the_bridge_dial_within_its_site() {
    let bridge = TestBridge::start().await;
    let satellite = bridge.listening("shop").await;
    for endpoint in [
        satellite.endpoint(),
        "10.0.0.1:5000".parse().unwrap(),
        "[::1]:5000".parse().unwrap(),
    ] {
        let (status, answer) = satellite.ask(endpoint, NONCE).await;
        // An address to which this machine has no route is not even judged.
        assert!(matches!(status, 403 | 503), "{status} {answer}");
    }
    satellite.stop().await;
}

#[tokio::test]
async fn the_request_is_a_peers_and_well_formed() {
    let bridge = lab_bridge().await;
    let body = json!({ "endpoint": "127.0.0.1:5000", "nonce": NONCE });
    let asked = request(Method::POST, TUNNEL_DIAL_BACK_PATH, &body);
    let outside = bridge.https(None, asked).await.unwrap().0;
    assert_eq!(outside, 404, "it is there within a tunnel alone");
    let satellite = bridge.listening("shop").await;
    let (status, _) = satellite.ask(satellite.endpoint(), "not a nonce").await;
    assert_eq!(status, 422);
    satellite.stop().await;
}
