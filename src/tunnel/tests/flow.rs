use std::collections::BTreeSet;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::timeout;

use super::network::{Over, Site, tunnel};
use super::*;
use crate::tunnel::Flow;
use crate::tunnel::flow::QUEUE_PACKETS;
use crate::tunnel::memory::{MemoryTransport, pair, pair_with_datagrams};
use crate::tunnel::stream::refusal_in;
use crate::wire::{End, FlowId, RefusalCode, ServiceRequest, StreamRefusal};

/// What the network between carries, in bytes.
const PATH_BYTES: usize = 1_200;

/// Never.
const NO_LOSS: u64 = u64::MAX;

fn flow_header() -> StreamHeader {
    StreamHeader {
        kind: StreamKind::Flow(ServiceRequest {
            service: "dns".into(),
            grant_token: None,
            subject: "anna".into(),
            source: None,
        }),
        trace: TRACE,
    }
}

struct Linked {
    ends: Ends,
    dialer: Arc<MemoryTransport>,
    acceptor: Arc<MemoryTransport>,
}

async fn linked(lose_every: u64) -> Linked {
    let (dialer, acceptor, _) = pair_with_datagrams(PATH_BYTES, lose_every);
    let ends = greet(dialer.clone(), acceptor.clone(), 8).await;
    Linked {
        ends,
        dialer,
        acceptor,
    }
}

/// A flow that `opener` opens and that is known to be taken.
async fn flow(opener: &Tunnel, taker: &Tunnel) -> (Flow, Flow) {
    let both = async {
        let near = opener.open_flow(flow_header()).await.unwrap();
        let far = taker.accept_stream().await.unwrap().accept_flow().await.unwrap();
        near.accepted().await.unwrap();
        (near, far)
    };
    timeout(SOON, both).await.unwrap()
}

async fn next(flow: &Flow) -> Bytes {
    timeout(SOON, flow.recv()).await.unwrap().expect("the flow lives")
}

/// Packets of every size come through whole, both ways, whoever has opened the flow.
async fn packets_of_every_size_come_through(ends: &Ends) {
    for (opener, taker) in [(&ends.dialer, &ends.acceptor), (&ends.acceptor, &ends.dialer)] {
        let (near, far) = flow(opener, taker).await;
        for (from, to) in [(&near, &far), (&far, &near)] {
            for size in [0, 1, 1_100, 1_199, 1_200, 1_472, 1_500, 9_000, 65_507, 65_535] {
                let packet = pattern(size, size);
                let (sent, heard) = tokio::join!(from.send(&packet), next(to));
                sent.unwrap();
                assert!(heard == packet, "{size} bytes");
            }
            assert!(from.send(&vec![0; 65_536]).await.is_err());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_quic_small_packets_are_datagrams_and_large_ones_are_not_lost() {
    let (ends, _site) = tunnel(Over::Quic, 8).await;
    packets_of_every_size_come_through(&ends).await;
    let stats = ends.dialer.stats().flows;
    assert!(stats.by_datagram >= 6 && stats.by_stream >= 6, "{stats:?}");
    assert_eq!((stats.unknown, stats.overflowed), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tcp_all_packets_are_frames() {
    let (ends, _site) = tunnel(Over::Tcp, 8).await;
    packets_of_every_size_come_through(&ends).await;
    assert_eq!(ends.dialer.stats().flows.by_datagram, 0);
}

#[tokio::test(start_paused = true)]
async fn over_memory_with_datagrams_and_without() {
    packets_of_every_size_come_through(&linked(NO_LOSS).await.ends).await;
    let (dialer, acceptor, _) = pair();
    packets_of_every_size_come_through(&greet(dialer, acceptor, 8).await).await;
}

#[tokio::test]
async fn a_side_that_does_not_name_the_feature_gets_no_datagrams() {
    let site = Site::new(Over::Quic, 8).await;
    let (near, far) = site.connected().await;
    let clock = Clock::start(BUILD_TIME);
    let settings = TunnelSettings::default();
    // As an earlier build greets.
    let mut control = near
        .open(crate::tunnel::transport::Urgency::Control)
        .await
        .unwrap();
    let greeting = crate::wire::ControlMessage::Hello(hello()).encode().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut control.write, &greeting)
        .await
        .unwrap();
    let accepted = Tunnel::accept(far, settings, clock, |hello| {
        assert!(hello.features.is_empty());
        Ok(welcome(8))
    });
    let (tunnel, _, driver) = timeout(SOON, accepted).await.unwrap().unwrap();
    let mut drivers = JoinSet::new();
    drivers.spawn(driver.run());
    let flow = timeout(SOON, tunnel.open_flow(flow_header()))
        .await
        .unwrap()
        .unwrap();
    flow.send(b"packet").await.unwrap();
    let stats = tunnel.stats().flows;
    assert_eq!((stats.by_datagram, stats.by_stream), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_is_lost_alone() {
    let Linked { ends, .. } = linked(3).await;
    let (near, far) = flow(&ends.dialer, &ends.acceptor).await;
    for number in 0..60_u8 {
        near.send(&[number]).await.unwrap();
    }
    let mut heard = BTreeSet::new();
    while let Ok(packet) = timeout(Duration::from_secs(1), far.recv()).await {
        heard.insert(packet.unwrap()[0]);
    }
    let expected: BTreeSet<u8> = (0..60).filter(|number| (number + 1) % 3 != 0).collect();
    assert_eq!(heard, expected);
}

#[tokio::test(start_paused = true)]
async fn packets_that_are_sent_before_the_flow_is_taken_are_not_lost() {
    let Linked { ends, .. } = linked(NO_LOSS).await;
    let near = ends.dialer.open_flow(flow_header()).await.unwrap();
    near.send(b"a query").await.unwrap();
    near.send(&[7; 9_000]).await.unwrap();
    let incoming = ends.acceptor.accept_stream().await.unwrap();
    let far = incoming.accept_flow().await.unwrap();
    assert_eq!(next(&far).await, &b"a query"[..]);
    assert_eq!(next(&far).await.len(), 9_000);
    assert_eq!(ends.acceptor.stats().flows.unknown, 0);
    // The answer takes the short way, and so does what follows it.
    far.send(b"an answer").await.unwrap();
    assert_eq!(next(&near).await, &b"an answer"[..]);
    near.accepted().await.unwrap();
    near.send(b"another").await.unwrap();
    assert_eq!(next(&far).await, &b"another"[..]);
    assert_eq!(ends.dialer.stats().flows.by_datagram, 1);
}

#[tokio::test(start_paused = true)]
async fn flows_do_not_hear_each_other() {
    let Linked { ends, .. } = linked(NO_LOSS).await;
    // Both ends number their flows from 0.
    let (one, one_far) = flow(&ends.dialer, &ends.acceptor).await;
    let (two, two_far) = flow(&ends.acceptor, &ends.dialer).await;
    let (three, three_far) = flow(&ends.dialer, &ends.acceptor).await;
    for (flow, name) in [(&one, "one"), (&two, "two"), (&three, "three")] {
        flow.send(name.as_bytes()).await.unwrap();
    }
    for (flow, name) in [(&one_far, "one"), (&two_far, "two"), (&three_far, "three")] {
        assert_eq!(next(flow).await, name.as_bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn datagrams_of_no_flow_are_dropped_and_counted() {
    let Linked {
        ends,
        dialer,
        acceptor,
    } = linked(NO_LOSS).await;
    let (near, far) = flow(&ends.dialer, &ends.acceptor).await;
    let mut of_another = Vec::new();
    FlowId {
        opener: End::Acceptor,
        number: 0,
    }
    .put(&mut of_another);
    for stray in [&[][..], &[0xff], &[0x80], &of_another] {
        for transport in [&dialer, &acceptor] {
            transport.send_datagram(Bytes::copy_from_slice(stray)).unwrap();
        }
    }
    near.send(b"mine").await.unwrap();
    assert_eq!(next(&far).await, &b"mine"[..]);
    assert_eq!(ends.acceptor.stats().flows.unknown, 4);
    drop(far);
    // Until its end has come through, packets of a flow are strays as well.
    near.send(b"late").await.ok();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(ends.acceptor.stats().flows.unknown, 5);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_too_slow_misses_the_oldest() {
    let Linked { ends, .. } = linked(NO_LOSS).await;
    let (near, far) = flow(&ends.dialer, &ends.acceptor).await;
    let sent = u8::try_from(QUEUE_PACKETS + 20).unwrap();
    for number in 0..sent {
        near.send(&[number]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(ends.acceptor.stats().flows.overflowed, 20);
    for number in 20..sent {
        assert_eq!(next(&far).await[0], number);
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_either_side_is_the_end_of_both() {
    let Linked { ends, .. } = linked(NO_LOSS).await;
    for in_order in [true, false] {
        for opener_ends in [true, false] {
            let (near, far) = flow(&ends.dialer, &ends.acceptor).await;
            let (ending, left) = if opener_ends { (near, far) } else { (far, near) };
            ending.send(b"small").await.unwrap();
            if in_order {
                ending.send(&[1; 9_000]).await.unwrap();
                ending.finish().await;
            } else {
                drop(ending);
            }
            let mut heard = Vec::new();
            while let Some(packet) = timeout(SOON, left.recv()).await.unwrap() {
                heard.push(packet.len());
            }
            // A datagram may be overtaken by the end.
            assert!(!in_order || heard.contains(&9_000), "{heard:?}");
            assert_eq!(timeout(SOON, left.recv()).await.unwrap(), None, "and it stays so");
            drop(left);
        }
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(ends.dialer.stats().open_streams, 0);
    ends.dialer.close(goodbye()).await;
}

#[tokio::test(start_paused = true)]
async fn a_flow_ends_with_its_tunnel() {
    let Linked { ends, .. } = linked(NO_LOSS).await;
    let (near, far) = flow(&ends.dialer, &ends.acceptor).await;
    ends.acceptor.close(goodbye()).await;
    assert_eq!(timeout(SOON, near.recv()).await.unwrap(), None);
    assert_eq!(timeout(SOON, far.recv()).await.unwrap(), None);
    assert!(near.send(b"late").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_why() {
    let Linked { ends, .. } = linked(NO_LOSS).await;
    let near = ends.dialer.open_flow(flow_header()).await.unwrap();
    let refusal = StreamRefusal {
        code: RefusalCode::UnknownService,
        message: "published here: ntp".into(),
    };
    let incoming = ends.acceptor.accept_stream().await.unwrap();
    incoming.refuse(refusal.clone()).await;
    let error = timeout(SOON, near.accepted()).await.unwrap().unwrap_err();
    assert_eq!(refusal_in(&error), Some(&refusal));
    assert_eq!(timeout(SOON, near.recv()).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_flow_without_a_number_or_with_anothers_is_refused() {
    let Linked { ends, .. } = linked(NO_LOSS).await;
    let (_taken, _taken_far) = flow(&ends.dialer, &ends.acceptor).await;
    // The length, then the id: none, one that is taken, one that the other end numbers.
    for preface in [&[0, 0][..], &[0, 1, 0], &[0, 1, 1], &[0, 4, 0xc0, 0, 0, 0]] {
        let mut stream = ends.dialer.open_stream(flow_header()).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, preface)
            .await
            .unwrap();
        let incoming = ends.acceptor.accept_stream().await.unwrap();
        assert!(timeout(SOON, incoming.accept_flow()).await.unwrap().is_err());
        let refused = tokio::io::AsyncReadExt::read_u8(&mut stream).await.unwrap_err();
        let refusal = refusal_in(&refused).expect("a refusal");
        assert_eq!(refusal.code, RefusalCode::Malformed, "{preface:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn futures_that_are_dropped_lose_and_split_nothing() {
    let (dialer, acceptor, _) = pair();
    let ends = greet(dialer, acceptor, 8).await;
    let (near, far) = flow(&ends.dialer, &ends.acceptor).await;
    // On a stream that is full a send is dropped in the middle of its packet.
    let mut taken = 0_u8;
    loop {
        let packet = [taken; 7_001];
        match timeout(Duration::from_millis(50), near.send(&packet)).await {
            Ok(sent) => sent.unwrap(),
            Err(_) => break,
        }
        taken += 1;
    }
    let reader = async {
        let mut heard = Vec::new();
        while heard.last() != Some(&255) {
            // Receives are dropped wherever they are.
            if let Ok(packet) = timeout(Duration::from_micros(10), far.recv()).await {
                let packet = packet.unwrap();
                assert_eq!(packet.len(), 7_001);
                assert!(packet.iter().all(|byte| *byte == packet[0]));
                heard.push(packet[0]);
            }
        }
        heard
    };
    let last = [255; 7_001];
    let (heard, sent) = timeout(SOON, async { tokio::join!(reader, near.send(&last)) })
        .await
        .unwrap();
    sent.unwrap();
    // The one that was dropped had begun, or had not: in neither case are others hurt.
    let whole: Vec<u8> = (0..taken).chain([255]).collect();
    let begun: Vec<u8> = (0..=taken).chain([255]).collect();
    assert!(heard == whole || heard == begun, "{heard:?} of {taken}");
}

async fn heard_at_least(packets: &mut watch::Receiver<u64>, least: u64) -> u64 {
    let heard = packets.wait_for(|count| *count >= least);
    *timeout(SOON, heard).await.unwrap().unwrap()
}

/// A flood of packets beside a stream's content: whoever sends more than the path takes loses packets, and
/// keeps nobody waiting.
async fn a_flood_does_not_starve_streams(over: Over) {
    let (ends, _site) = tunnel(over, 8).await;
    let (near, far) = flow(&ends.dialer, &ends.acceptor).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let packet = pattern(1, 1_100);
        while near.send(&packet).await.is_ok() {
            tokio::task::consume_budget().await;
        }
    });
    let (tell, mut packets) = watch::channel(0_u64);
    tasks.spawn(async move {
        while far.recv().await.is_some() {
            tell.send_modify(|count| *count += 1);
        }
    });
    let before = heard_at_least(&mut packets, 1_000).await;
    let (mut stream_near, mut stream_far) = super::network::stream(&ends).await;
    let (content, mut heard) = (pattern(2, 3_000_000), Vec::new());
    let exchange = async {
        tokio::join!(
            async {
                stream_near.write_all(&content).await.unwrap();
                stream_near.shutdown().await.unwrap();
            },
            async { stream_far.read_to_end(&mut heard).await.unwrap() }
        )
    };
    timeout(SOON, exchange).await.unwrap();
    assert!(heard == content);
    // It went on all the while, and goes on.
    let after = *packets.borrow_and_update();
    assert!(after > before);
    heard_at_least(&mut packets, after + 1_000).await;
    assert!(ends.dialer.close_reason().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flood_over_quic_does_not_starve_streams() {
    a_flood_does_not_starve_streams(Over::Quic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flood_over_tcp_does_not_starve_streams() {
    a_flood_does_not_starve_streams(Over::Tcp).await;
}
