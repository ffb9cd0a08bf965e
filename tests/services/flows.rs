//! Packets to and from UDP services.

use std::time::Duration;

use bytes::Bytes;
use powernode_satellite::satellite::services::ServiceLimits;
use powernode_satellite::tunnel::flow::Flow;
use powernode_satellite::tunnel::stream::refusal_in;
use powernode_satellite::wire::{RefusalCode, StreamRefusal};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::program::Program;
use crate::shop::{Shop, in_time, limits, service, with};

/// Pause before a packet that has found no answer is sent again: packets may be lost.
const AGAIN: Duration = Duration::from_millis(200);

/// A program that gives each packet back to whom it came from.
async fn echo() -> (String, JoinSet<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut packet = vec![0; 65_535];
        loop {
            let (count, from) = socket.recv_from(&mut packet).await.unwrap();
            socket.send_to(&packet[..count], from).await.unwrap();
        }
    });
    (address, tasks)
}

/// Sends until the same comes back.
async fn echoed(flow: &Flow, packet: &[u8]) {
    in_time(async {
        loop {
            flow.send(packet).await.unwrap();
            while let Ok(back) = timeout(AGAIN, flow.recv()).await {
                if back.expect("the flow goes on") == packet {
                    return;
                }
            }
        }
    })
    .await;
}

async fn ended(flow: &Flow) {
    in_time(async { while flow.recv().await.is_some() {} }).await;
}

async fn refusal(flow: Flow) -> StreamRefusal {
    let error = in_time(flow.accepted()).await.unwrap_err();
    refusal_in(&error).unwrap_or_else(|| panic!("{error:?}")).clone()
}

#[tokio::test]
async fn packets_of_every_size_come_back_and_are_counted() {
    let (address, _program) = echo().await;
    let shop = Shop::open(vec![service("dns", "udp", &address)]).await;
    let ticket = shop.ticket(Some("dns")).await;
    let flow = shop.flow("dns", Some(&ticket)).await;
    in_time(flow.accepted()).await.unwrap();
    for size in [1_usize, 64, 1_200, 1_500, 9_000, 65_507] {
        let packet: Bytes = (0..size).map(|at| u8::try_from(at % 251).unwrap()).collect();
        echoed(&flow, &packet).await;
    }
    flow.finish().await;
    shop.wait("dns", |report| report.connections == 0).await;
    let report = shop.report("dns");
    assert!(
        report.bytes_in >= 77_272 && report.bytes_out >= 77_272,
        "{report:?}"
    );
    let entries = shop.noted(2).await;
    assert_eq!(entries[1]["action"], "service_closed");
    assert_eq!(entries[1]["outcome"], "done");
}

#[tokio::test]
async fn two_flows_do_not_hear_each_other() {
    let (address, _program) = echo().await;
    let shop = Shop::open(vec![service("dns", "udp", &address)]).await;
    let ticket = shop.ticket(None).await;
    let (one, two) = (
        shop.flow("dns", Some(&ticket)).await,
        shop.flow("dns", Some(&ticket)).await,
    );
    echoed(&one, b"one").await;
    echoed(&two, b"two").await;
    let heard = timeout(AGAIN, two.recv()).await;
    assert!(!matches!(heard, Ok(Some(packet)) if packet == "one"));
}

#[tokio::test]
async fn flows_are_let_in_and_cut_like_streams() {
    let (address, _program) = echo().await;
    let tcp = Program::echo().await;
    let narrow = with("dns", "udp", &address, |fields| fields.max_connections = 1);
    let shop = Shop::open(vec![narrow, service("web", "http", &tcp.address)]).await;
    let ticket = shop.ticket(None).await;
    for (asked, ticket, code) in [
        ("127.0.0.1:53", Some(&ticket), RefusalCode::UnknownService),
        ("dns", None, RefusalCode::Unauthorized),
        ("web", Some(&ticket), RefusalCode::UnsupportedKind),
    ] {
        let refused = refusal(shop.flow(asked, ticket).await).await;
        assert_eq!(refused.code, code, "{refused:?}");
    }
    let flow = shop.flow("dns", Some(&ticket)).await;
    echoed(&flow, b"here").await;
    let refused = refusal(shop.flow("dns", Some(&ticket)).await).await;
    assert_eq!(refused.code, RefusalCode::Busy);
    shop.book.revoke(ticket.grant, "no more").await.unwrap();
    timeout(Duration::from_secs(1), ended(&flow))
        .await
        .expect("cut within a second");
}

#[tokio::test]
async fn a_silent_flow_is_forgotten() {
    let (address, _program) = echo().await;
    let brief = ServiceLimits {
        flow_idle_timeout: Duration::from_secs(1),
        ..limits()
    };
    let shop = Shop::open_with(vec![service("dns", "udp", &address)], brief, 64).await;
    let ticket = shop.ticket(None).await;
    let flow = shop.flow("dns", Some(&ticket)).await;
    echoed(&flow, b"here").await;
    ended(&flow).await;
    shop.wait("dns", |report| report.connections == 0).await;
}
