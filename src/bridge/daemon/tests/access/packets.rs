//! Services that speak UDP.

use super::*;
use crate::bridge::access::PACKETS_PROTOCOL;
use crate::tunnel::packet::{PartialPacket, frame};

/// Answers each packet with itself, and `end` with the end of the flow.
pub(super) async fn serve(incoming: IncomingStream, service: String) {
    if service != "dns" {
        let refusal = StreamRefusal {
            code: RefusalCode::UnknownService,
            message: "published are dns".to_owned(),
        };
        return incoming.refuse(refusal).await;
    }
    let flow = incoming.accept_flow().await.unwrap();
    while let Some(packet) = flow.recv().await {
        if packet == b"end"[..] {
            return flow.finish().await;
        }
        if flow.send(&packet).await.is_err() {
            return;
        }
    }
}

impl TestBridge {
    async fn packets_local(&self, peer: &str, service: &str) -> Result<Opened, (u16, Value)> {
        let socket = UnixStream::connect(self.dir.path().join("admin.sock"))
            .await
            .unwrap();
        let path = format!("{CONNECT_PATH}/{peer}/{service}");
        ask_as(PACKETS_PROTOCOL, socket, &path, None).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_reach_a_service_with_their_borders_and_are_counted() {
    let bridge = TestBridge::start().await;
    let satellite = Satellite::join(&bridge, "shop-17").await;
    let mut opened = bridge.packets_local("shop-17", "dns").await.unwrap();
    assert_eq!(satellite.last_asked().service, "dns");
    let mut bytes = 0;
    for size in [0, 1, 512, 1_500, 65_507] {
        let packet = vec![7; size];
        opened.io.write_all(&frame(&packet).unwrap()).await.unwrap();
        let mut answer = PartialPacket::default();
        let answer = tokio::time::timeout(DEADLINE, answer.read(&mut opened.io))
            .await
            .unwrap();
        assert!(answer.unwrap().unwrap() == packet, "{size}");
        bytes += size as u64;
        let session = bridge.running.accesses.find(&opened.session).unwrap();
        assert_eq!(session.bytes_to_service, bytes);
    }
    // The satellite ends the flow, and the session with it.
    opened.io.write_all(&frame(b"end").unwrap()).await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(DEADLINE, opened.io.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(rest, b"");
    wait_until("the session is gone", || bridge.running.accesses.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_ends_its_flow_and_refusals_are_told() {
    let bridge = TestBridge::start().await;
    let satellite = Satellite::join(&bridge, "shop-17").await;
    let opened = bridge.packets_local("shop-17", "dns").await.unwrap();
    assert_eq!(satellite.tunnel.stats().open_streams, 1);
    drop(opened);
    wait_until("the flow is gone", || satellite.tunnel.stats().open_streams == 0).await;
    wait_until("the session is gone", || bridge.running.accesses.is_empty()).await;

    let (status, body) = bridge
        .packets_local("shop-17", "ntp")
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(status, 404, "{body}");
    assert!(
        body["error"].as_str().unwrap().contains("published are dns"),
        "{body}"
    );
}
