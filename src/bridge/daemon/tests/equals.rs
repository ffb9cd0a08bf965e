//! Peers that certify themselves, over the real listeners.

use super::*;
use crate::bridge::certificate_authority::CertificateAuthority;
use crate::bridge::peer_trust::follow_equals;
use crate::identity::anchors::Anchors;
use crate::identity::own_authority::OwnAuthority;

/// An equal's answer to the invitation: its id, and its certificate of its own authority.
async fn joined(bridge: &TestBridge, name: &str, bundle: &str) -> (PeerId, u16, Value) {
    let proposal = Proposal {
        name: Some(name.to_owned()),
        description: None,
        remote_instance_url: None,
        kind: PeerKind::Platform,
        role: SpawnRole::Parent,
        mode: SpawnMode::AutonomousPeer,
    };
    let minted = bridge
        .running
        .registry()
        .invite(&proposal, Duration::from_secs(3_600), bridge.now())
        .unwrap();
    let body = json!({
        "acceptance_token": minted.token.expose().expose_text().unwrap(),
        "contract_version": 1,
        "peer_ca_bundle_pem": bundle,
        "caller_inbound_subject": "parent",
    });
    let (status, answer) = bridge
        .https(None, request(Method::POST, ACCEPT_PATH, &body))
        .await
        .unwrap();
    (minted.peer.id, status, answer)
}

fn certified(authority: &OwnAuthority, subject: &str, now: UnixTime) -> Arc<TlsIdentity> {
    let key = PrivateKey::generate().unwrap();
    let chain = authority.issue(subject, &key, now, [3; 16]).unwrap();
    Arc::new(TlsIdentity::new(&chain, &key).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_equal_beats_with_its_own_certificates_and_only_as_itself() {
    let bridge = TestBridge::start().await;
    let own = OwnAuthority::create("equal", bridge.now(), [1; 16]).unwrap();
    let (peer, status, answer) = joined(&bridge, "equal", &own.certificate_pem()).await;
    assert_eq!(status, 200, "{answer}");
    let subject = answer["data"]["trust_exchange"]["assigned_inbound_subject"]
        .as_str()
        .unwrap();
    for _ in 0..2 {
        let identity = certified(&own, subject, bridge.now());
        let (status, beat) = bridge
            .https(Some(Arc::clone(&identity)), heartbeat())
            .await
            .unwrap();
        assert_eq!(status, 200, "{beat}");
        let dialled = bridge.dial(Some(identity)).await.unwrap();
        wait_until("its session is in", || bridge.running.links.get(peer).is_some()).await;
        drop(dialled);
    }
    let (other, _) = bridge.joined("managed").await;
    for stranger in [
        certified(&own, &format!("fed:{other}"), bridge.now()),
        certified(
            &OwnAuthority::create("equal", bridge.now(), [2; 16]).unwrap(),
            subject,
            bridge.now(),
        ),
        certified(
            &own,
            subject,
            bridge.now().minus(Duration::from_secs(100 * 86_400)),
        ),
    ] {
        assert!(bridge.https(Some(stranger), heartbeat()).await.is_err());
    }
    let row = bridge.running.registry().peer_by_id(peer).unwrap().unwrap();
    assert_eq!(row.status.as_str(), "active");
    assert!(
        bridge
            .running
            .registry()
            .grants()
            .unwrap()
            .iter()
            .all(|grant| grant.federation_peer_id != peer)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_rotation_is_followed_and_loses_no_heartbeat() {
    let bridge = TestBridge::start().await;
    let old = CertificateAuthority::create("equal", bridge.now(), [1; 16]).unwrap();
    let (peer, status, answer) = joined(&bridge, "equal", &old.certificate_pem()).await;
    assert_eq!(status, 200, "{answer}");
    let issue = |authority: &CertificateAuthority| {
        let key = PrivateKey::generate().unwrap();
        let csr = key.csr_pem("x").unwrap();
        let issued = authority
            .issue_peer_certificate(&csr, peer, bridge.now(), [4; 16])
            .unwrap();
        let chain = CertificateChain::from_pem(&issued.cert_pem).unwrap();
        Arc::new(TlsIdentity::new(&chain, &key).unwrap())
    };
    let first = issue(&old);
    assert_eq!(
        bridge
            .https(Some(Arc::clone(&first)), heartbeat())
            .await
            .unwrap()
            .0,
        200
    );

    let succession = old.succeed(bridge.now(), [[5; 16], [6; 16]]).unwrap();
    let second = issue(&succession.next);
    assert!(
        bridge
            .https(Some(Arc::clone(&second)), heartbeat())
            .await
            .is_err(),
        "not heard of yet"
    );
    let dialled = bridge.dial(Some(Arc::clone(&first))).await.unwrap();
    wait_until("its session is in", || bridge.running.links.get(peer).is_some()).await;
    let tunnel = dialled.tunnel.clone();
    let bundle = json!({
        "success": true,
        "data": {
            "ca_bundle_pem": old.certificate_pem() + &succession.next.certificate_pem(),
            "cross_certificates_pem": succession.cross_pem(),
            "generated_at": bridge.now().to_string(),
        },
    })
    .to_string();
    let satellite = async {
        let incoming = tunnel.accept_stream().await.unwrap();
        let service = hyper::service::service_fn(|_: Request<hyper::body::Incoming>| {
            let bundle = bundle.clone();
            async move { Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(bundle)))) }
        });
        tunnel_http::serve(incoming.accept().await.unwrap(), service)
            .await
            .unwrap();
    };
    let running = &bridge.running;
    let asked = async {
        tokio::join!(
            follow_equals(running.registry(), &running.links, &running.clock),
            satellite
        );
    };
    tokio::select! {
        () = asked => {}
        reason = dialled.driver.run() => panic!("{reason}"),
    }
    let known: Arc<Anchors> = running.registry().peer_anchors().get(peer).unwrap();
    assert_eq!(known.certificates().len(), 2);
    for identity in [first, second] {
        assert_eq!(bridge.https(Some(identity), heartbeat()).await.unwrap().0, 200);
    }
}
