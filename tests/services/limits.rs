//! Limits, and what the local program is told.

use std::num::NonZeroU64;
use std::time::Duration;

use powernode_satellite::process::clock::Clock;
use powernode_satellite::satellite::services::ServiceLimits;
use powernode_satellite::wire::RefusalCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::program::{Program, flood};
use crate::shop::{ANNA, NOW, Shop, in_time, limits, service, with};

/// Reads so many bytes of as many streams of a flooding service, and tells how long it took.
async fn download(shop: &Shop, streams: usize, bytes: usize) -> Duration {
    let ticket = shop.ticket(None).await;
    let clock = Clock::start(NOW);
    let mut open = Vec::new();
    for _ in 0..streams {
        open.push(shop.ask("files", Some(&ticket)).await);
    }
    let reads = open.iter_mut().map(|stream| async move {
        let mut all = vec![0; bytes];
        in_time(stream.read_exact(&mut all)).await.unwrap();
    });
    let mut set: Vec<_> = reads.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        set.retain_mut(|read| read.as_mut().poll(cx).is_pending());
        if set.is_empty() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    clock.now().since_start()
}

#[tokio::test]
async fn bandwidth_is_limited_by_service_stream_and_session() {
    const RATE: u64 = 512 * 1024;
    let program = Program::tcp(flood).await;
    let unlimited = || service("files", "tcp", &program.address);
    let limited = with("files", "tcp", &program.address, |fields| fields.bandwidth = RATE);
    let rate = NonZeroU64::new(RATE);
    let stream = ServiceLimits {
        stream_bandwidth: rate,
        ..limits()
    };
    let session = ServiceLimits {
        session_bandwidth: rate,
        ..limits()
    };
    // Less than the burst, so that the rest of the second counts.
    let bytes = 512 * 1024;
    let least = Duration::from_millis(650);
    for (service, limits, streams, bytes) in [
        (limited, limits(), 2, bytes / 2),
        (unlimited(), session, 2, bytes / 2),
        (unlimited(), stream, 1, bytes),
    ] {
        let shop = Shop::open_with(vec![service], limits, 64).await;
        let took = download(&shop, streams, bytes).await;
        assert!(took >= least, "{limits:?} {streams}: {took:?}");
    }
    let shop = Shop::open_with(vec![unlimited()], limits(), 64).await;
    let took = download(&shop, 1, bytes).await;
    assert!(took < Duration::from_secs(20), "without a limit: {took:?}");
}

#[tokio::test]
async fn a_full_service_refuses_and_takes_the_next_when_one_has_ended() {
    let program = Program::echo().await;
    let narrow = with("ssh", "tcp", &program.address, |fields| {
        fields.max_connections = 2;
    });
    let shop = Shop::open(vec![narrow]).await;
    let ticket = shop.ticket(None).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = shop.ask("ssh", Some(&ticket)).await;
        stream.write_all(b"x").await.unwrap();
        in_time(stream.read_exact(&mut [0])).await.unwrap();
        open.push(stream);
    }
    let refused = shop.refusal("ssh", Some(&ticket)).await;
    assert_eq!(refused.code, RefusalCode::Busy);
    assert!(
        refused.message.contains("limit") && refused.message.contains('2'),
        "{refused:?}"
    );
    drop(open.pop());
    shop.wait("ssh", |report| report.connections == 1).await;
    let mut stream = shop.ask("ssh", Some(&ticket)).await;
    stream.write_all(b"x").await.unwrap();
    in_time(stream.read_exact(&mut [0])).await.unwrap();
}

#[tokio::test]
async fn a_program_that_does_not_answer_is_not_waited_for_long() {
    // A queue of one that is full: further connections are not answered.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    socket.listen(0).unwrap();
    let address = std::net::TcpListener::from(socket.try_clone().unwrap())
        .local_addr()
        .unwrap();
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let filler = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        filler.set_nonblocking(true).unwrap();
        let _ = filler.connect(&address.into());
        waiting.push(filler);
    }
    let brief = ServiceLimits {
        connect_timeout: Duration::from_millis(200),
        ..limits()
    };
    let shop = Shop::open_with(vec![service("slow", "tcp", &address.to_string())], brief, 64).await;
    let ticket = shop.ticket(None).await;
    let refused = shop.refusal("slow", Some(&ticket)).await;
    assert_eq!(refused.code, RefusalCode::ServiceUnavailable);
    assert!(
        refused.message.contains("did not answer within 200 ms"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn the_program_is_told_for_whom_when_the_service_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let told = with("told", "tcp", &address.to_string(), |fields| {
        fields.proxy_protocol = true;
    });
    let untold = service("untold", "tcp", &address.to_string());
    let shop = Shop::open(vec![told, untold]).await;
    let ticket = shop.ticket(None).await;
    let first = async |service: &str, source: Option<&str>, bytes: usize| {
        let mut stream = shop.ask_as(service, Some(&ticket), ANNA, source).await;
        stream.write_all(b"hello").await.unwrap();
        let (mut local, _) = in_time(listener.accept()).await.unwrap();
        let mut all = vec![0; bytes];
        in_time(local.read_exact(&mut all)).await.unwrap();
        all
    };
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    let header = first("told", Some("192.0.2.9:50000"), 28 + 5).await;
    assert_eq!(&header[..12], signature);
    assert_eq!(header[12..24], [0x21, 0x11, 0, 12, 192, 0, 2, 9, 127, 0, 0, 1]);
    assert_eq!(header[24..26], 50_000_u16.to_be_bytes());
    assert_eq!(header[26..28], address.port().to_be_bytes());
    assert_eq!(&header[28..], b"hello");
    let unknown = first("told", None, 16 + 5).await;
    assert_eq!(unknown[12..16], [0x20, 0, 0, 0]);
    assert_eq!(first("untold", Some("192.0.2.9:50000"), 5).await, b"hello");
}
