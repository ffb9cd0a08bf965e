//! What the audit log says of streams, whatever becomes of them.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::program::{Program, nobody};
use crate::shop::{ANNA, Shop, Ticket, in_time, peer, service};

/// Opens a stream and has five bytes echoed.
async fn used(shop: &Shop, ticket: &Ticket) -> powernode_satellite::tunnel::TunnelStream {
    let mut stream = shop.ask("echo", Some(ticket)).await;
    stream.write_all(b"hello").await.unwrap();
    in_time(stream.read_exact(&mut [0; 5])).await.unwrap();
    stream
}

async fn echo_shop() -> (Program, Shop) {
    let program = Program::echo().await;
    let shop = Shop::open(vec![service("echo", "tcp", &program.address)]).await;
    (program, shop)
}

fn says(entry: &Value, expected: &Value) {
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&entry[key], value, "{key}: {entry}");
    }
}

#[tokio::test]
async fn a_stream_is_noted_when_it_opens_and_when_it_closes() {
    let (_program, shop) = echo_shop().await;
    let ticket = shop.ticket(Some("echo")).await;
    let mut stream = used(&shop, &ticket).await;
    stream.shutdown().await.unwrap();
    assert_eq!(in_time(stream.read(&mut [0])).await.unwrap(), 0);
    let entries = shop.noted(2).await;
    let who = json!({
        "federation_peer_id": peer().to_string(), "remote_subject": ANNA, "actor": ANNA,
        "grant_id": ticket.grant.to_string(), "object": "echo", "source": "192.0.2.9:50000",
        "outcome": "done",
    });
    says(&entries[0], &who);
    says(&entries[1], &who);
    says(
        &entries[0],
        &json!({ "action": "service_opened", "bytes_in": 0, "bytes_out": 0 }),
    );
    says(
        &entries[1],
        &json!({ "action": "service_closed", "bytes_in": 5, "bytes_out": 5 }),
    );
    assert_eq!(entries[0]["trace_id"], entries[1]["trace_id"]);
}

#[tokio::test]
async fn refusals_and_absent_programs_are_noted() {
    let (_program, shop) = echo_shop().await;
    let (address, _held) = nobody();
    shop.services
        .publish(service("gone", "tcp", &address.to_string()))
        .await
        .unwrap();
    let ticket = shop.ticket(Some("gone")).await;
    for (asked, ticket) in [
        ("nothing", Some(&ticket)),
        ("echo", None),
        ("echo", Some(&ticket)),
        ("gone", Some(&ticket)),
    ] {
        shop.refusal(asked, ticket).await;
    }
    let entries = shop.noted(4).await;
    for (entry, object, outcome, reason) in [
        (&entries[0], "nothing", "refused", "no service"),
        (&entries[1], "echo", "refused", "no grant token"),
        (&entries[2], "echo", "refused", "resource_id"),
        (&entries[3], "gone", "failed", "refused the connection"),
    ] {
        says(
            entry,
            &json!({ "action": "service_opened", "object": object, "outcome": outcome, "actor": ANNA }),
        );
        let told = entry["reason"].as_str().unwrap();
        assert!(told.contains(reason), "{entry}");
    }
}

#[tokio::test]
async fn a_cut_stream_is_noted_with_the_reason() {
    let (_program, shop) = echo_shop().await;
    let ticket = shop.ticket(None).await;
    let _cut = used(&shop, &ticket).await;
    shop.book
        .revoke(ticket.grant, "the technician has left")
        .await
        .unwrap();
    let entries = shop.noted(2).await;
    says(
        &entries[1],
        &json!({ "action": "service_closed", "outcome": "cut", "bytes_in": 5, "bytes_out": 5 }),
    );
    let reason = entries[1]["reason"].as_str().unwrap();
    assert!(reason.contains("the technician has left"), "{reason}");
}

#[tokio::test]
async fn a_lost_tunnel_leaves_no_stream_unnoted() {
    let (_program, shop) = echo_shop().await;
    let ticket = shop.ticket(None).await;
    let _first = used(&shop, &ticket).await;
    let _second = used(&shop, &ticket).await;
    shop.lose_tunnel();
    let entries = shop.noted(4).await;
    for entry in &entries[2..] {
        says(entry, &json!({ "action": "service_closed", "bytes_out": 5 }));
        assert_ne!(entry["outcome"], "done", "{entry}");
    }
    shop.wait("echo", |report| report.connections == 0).await;
}
