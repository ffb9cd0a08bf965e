use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::*;
use crate::machine::liveness::{DEAD_AFTER_BUSY, DEAD_AFTER_IDLE_PING, DEFAULT_KEEPALIVE};
use crate::tunnel::connection::{GREETING_TIMEOUT, HEADER_TIMEOUT};
use crate::tunnel::memory::{Cut, MemoryTransport, PIPE_BYTES, pair};
use crate::tunnel::stream::refusal_in;
use crate::tunnel::transport::{ByteStream, Outlook, Urgency};
use crate::tunnel::{GreetingError, OpenStreamError, TunnelDriver, TunnelStream, Violation};
use crate::wire::{ControlMessage, FRAME_MAX_BYTES, RefusalCode, Refused, StreamRefusal, StreamReply};

#[allow(clippy::disallowed_methods, reason = "the paused clock of the test")]
fn virtual_now() -> Instant {
    Instant::now()
}

struct Linked {
    ends: Ends,
    /// The transports below, to misbehave on.
    dialer: Arc<MemoryTransport>,
    acceptor: Arc<MemoryTransport>,
    cut: Cut,
}

async fn linked(max_streams: u32) -> Linked {
    let (dialer, acceptor, cut) = pair();
    let ends = greet(dialer.clone(), acceptor.clone(), max_streams).await;
    Linked {
        ends,
        dialer,
        acceptor,
        cut,
    }
}

/// A stream, opened by the dialer and accepted.
async fn stream(ends: &Ends) -> (TunnelStream, TunnelStream) {
    let near = ends.dialer.open_stream(header()).await.unwrap();
    let far = ends.acceptor.accept_stream().await.unwrap();
    assert_eq!(far.header().trace, TRACE);
    (near, far.accept().await.unwrap())
}

async fn reply_on(io: &mut ByteStream) -> StreamReply {
    let length = io.read.read_u16().await.unwrap();
    let mut content = vec![0; length.into()];
    io.read.read_exact(&mut content).await.unwrap();
    StreamReply::decode(&content).unwrap()
}

async fn refusal_on(io: &mut ByteStream) -> RefusalCode {
    match reply_on(io).await {
        StreamReply::Refused(refusal) => refusal.code,
        StreamReply::Accepted => panic!("accepted"),
    }
}

#[tokio::test(start_paused = true)]
async fn content_follows_the_header_before_the_reply_and_both_halves_end_by_themselves() {
    let linked = linked(8).await;
    let mut near = linked.ends.dialer.open_stream(header()).await.unwrap();
    near.write_all(b"at once").await.unwrap();
    near.shutdown().await.unwrap();
    let incoming = linked.ends.acceptor.accept_stream().await.unwrap();
    let mut far = incoming.accept().await.unwrap();
    let mut heard = String::new();
    far.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "at once");
    far.write_all(b"still open this way").await.unwrap();
    far.shutdown().await.unwrap();
    heard.clear();
    near.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "still open this way");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_before_its_end_is_no_clean_end_for_the_other_side() {
    let linked = linked(8).await;
    let (mut near, mut far) = stream(&linked.ends).await;
    near.write_all(b"half a mess").await.unwrap();
    drop(near);
    let mut heard = Vec::new();
    let error = far.read_to_end(&mut heard).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(heard, b"half a mess");
    assert!(
        far.write_all(b"to nobody").await.is_err(),
        "the reader is gone as well"
    );
}

#[tokio::test(start_paused = true)]
async fn a_refusal_surfaces_typed_on_read_and_on_write() {
    let linked = linked(8).await;
    let mut near = linked.ends.dialer.open_stream(header()).await.unwrap();
    let incoming = linked.ends.acceptor.accept_stream().await.unwrap();
    let refusal = StreamRefusal {
        code: RefusalCode::CertificateRequired,
        message: "join first".into(),
    };
    incoming.refuse(refusal.clone()).await;
    let wrote = near.write_all(&pattern(0, PIPE_BYTES * 2)).await.unwrap_err();
    assert_eq!(refusal_in(&wrote), Some(&refusal));
    let read = near.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(refusal_in(&read), Some(&refusal));
    assert!(!linked.ends.dialer.is_closed(), "the tunnel lives on");
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_is_stopped_waits_for_the_reason_without_taking_it_from_the_reader() {
    let linked = linked(8).await;
    let near = linked.ends.dialer.open_stream(header()).await.unwrap();
    let (mut read, mut write) = tokio::io::split(near);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { read.read(&mut [0; 8]).await.unwrap_err() });
    tasks.spawn(async move {
        loop {
            if let Err(error) = write.write_all(&[0; 1_024]).await {
                return error;
            }
        }
    });
    // Below the tunnel: stop the stream first, refuse it a while later.
    let mut io = linked.acceptor.accept(Urgency::Bulk).await.unwrap();
    drop(io.read);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let refusal = StreamRefusal {
        code: RefusalCode::Busy,
        message: String::new(),
    };
    let frame = StreamReply::Refused(refusal.clone()).encode().unwrap();
    io.write.write_all(&frame).await.unwrap();
    while let Some(error) = timeout(SOON, tasks.join_next()).await.unwrap() {
        assert_eq!(refusal_in(&error.unwrap()), Some(&refusal));
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_versions_and_kinds_and_broken_headers_are_refused_and_the_tunnel_lives_on() {
    let linked = linked(8).await;
    let acceptor = linked.ends.acceptor.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { acceptor.accept_stream().await.unwrap().header().trace });
    let too_long = u16::try_from(FRAME_MAX_BYTES + 1).unwrap().to_be_bytes();
    for (bytes, ends, code) in [
        (&[0, 2, 9, 0][..], false, RefusalCode::UnsupportedVersion),
        (&[0, 2, 1, 99], false, RefusalCode::UnsupportedKind),
        (&[0, 0], false, RefusalCode::Malformed),
        (&too_long, false, RefusalCode::Malformed),
        (&[0, 10, 1], true, RefusalCode::Malformed),
    ] {
        let mut io = linked.dialer.open(Urgency::Bulk).await.unwrap();
        io.write.write_all(bytes).await.unwrap();
        if ends {
            io.write.shutdown().await.unwrap();
        }
        assert_eq!(refusal_on(&mut io).await, code, "{bytes:?}");
    }
    let _good = linked.ends.dialer.open_stream(header()).await.unwrap();
    assert_eq!(tasks.join_next().await.unwrap().unwrap(), TRACE);
}

#[tokio::test(start_paused = true)]
async fn a_slow_header_blocks_nobody_and_is_refused_in_the_end() {
    let linked = linked(8).await;
    let started = virtual_now();
    let mut slow = Vec::new();
    for _ in 0..5 {
        let mut io = linked.dialer.open(Urgency::Bulk).await.unwrap();
        io.write.write_all(&[0, 10, 1]).await.unwrap();
        slow.push(io);
    }
    let (_near, _far) = stream(&linked.ends).await;
    assert!(virtual_now() - started < Duration::from_millis(100));
    let acceptor = linked.ends.acceptor.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { acceptor.accept_stream().await });
    for io in &mut slow {
        assert_eq!(refusal_on(io).await, RefusalCode::Malformed);
    }
    assert!(virtual_now() - started <= HEADER_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_accept_loses_no_stream() {
    let linked = linked(8).await;
    let mut io = linked.dialer.open(Urgency::Bulk).await.unwrap();
    let frame = header().encode().unwrap();
    let (first, rest) = frame.split_at(3);
    io.write.write_all(first).await.unwrap();
    for _ in 0..3 {
        let accepted = timeout(Duration::from_millis(10), linked.ends.acceptor.accept_stream()).await;
        assert!(accepted.is_err(), "the header is not complete");
    }
    io.write.write_all(rest).await.unwrap();
    let accepted = linked.ends.acceptor.accept_stream().await.unwrap();
    assert_eq!(accepted.header().trace, TRACE);
}

#[tokio::test(start_paused = true)]
async fn at_the_stream_limit_the_opener_waits() {
    let linked = linked(2).await;
    let (near, far) = stream(&linked.ends).await;
    let (_near, _far) = stream(&linked.ends).await;
    assert_eq!(linked.ends.dialer.stats().open_streams, 2);
    let third = linked.ends.dialer.open_stream(header());
    tokio::pin!(third);
    assert!(timeout(Duration::from_secs(1), &mut third).await.is_err());
    drop((near, far));
    assert!(timeout(Duration::from_secs(1), third).await.unwrap().is_ok());
    assert_eq!(linked.ends.dialer.stats().opened_streams, 3);
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_arrives_with_its_reason_and_retry_time() {
    let Linked { ends, .. } = linked(8).await;
    let (mut near, _far) = stream(&ends).await;
    let started = virtual_now();
    ends.acceptor.close(goodbye()).await;
    assert!(
        virtual_now() - started < Duration::from_millis(100),
        "delivered, not timed out"
    );
    assert!(matches!(ends.acceptor.closed().await, CloseReason::Local(said) if said == goodbye()));
    let (first, second) = tokio::join!(ends.dialer.closed(), ends.dialer.closed());
    for reason in [first, second] {
        assert!(matches!(reason, CloseReason::Goodbye(said) if said == goodbye()));
    }
    assert_eq!(ends.dialer.retry_after(), Some(Duration::from_millis(1_500)));
    assert!(near.read(&mut [0; 8]).await.is_err(), "no clean end");
    assert!(matches!(
        ends.dialer.open_stream(header()).await,
        Err(OpenStreamError::Closed(CloseReason::Goodbye(_)))
    ));
    assert!(matches!(
        ends.dialer.accept_stream().await,
        Err(CloseReason::Goodbye(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_to_a_side_that_does_not_listen_is_bounded() {
    let linked = linked(8).await;
    linked.cut.now();
    let started = virtual_now();
    linked.ends.dialer.close(goodbye()).await;
    assert!(virtual_now() - started <= Duration::from_secs(3));
    assert!(matches!(
        linked.ends.dialer.close_reason(),
        Some(CloseReason::Local(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_noticed_within_five_seconds_while_streams_are_open() {
    for accepting in [false, true] {
        let linked = linked(8).await;
        let (_near, _far) = stream(&linked.ends).await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert!(!linked.ends.dialer.is_closed(), "pings are answered");
        linked.cut.now();
        let started = virtual_now();
        let side = if accepting {
            &linked.ends.acceptor
        } else {
            &linked.ends.dialer
        };
        assert!(matches!(side.closed().await, CloseReason::Silent { .. }));
        assert!(virtual_now() - started <= DEAD_AFTER_BUSY);
    }
}

/// Accepts a dialer that is no tunnel of ours: it has greeted, and holds the control stream itself.
async fn accept_bare(
    dialer: &MemoryTransport,
    acceptor: Arc<MemoryTransport>,
    clock: Clock,
) -> (Tunnel, TunnelDriver, ByteStream) {
    let accepted = Tunnel::accept(acceptor, TunnelSettings::default(), clock, |_| Ok(welcome(8)));
    let greeted = async {
        let mut control = dialer.open(Urgency::Control).await.unwrap();
        let greeting = ControlMessage::Hello(hello()).encode().unwrap();
        control.write.write_all(&greeting).await.unwrap();
        control
    };
    let (accepted, control) = tokio::join!(accepted, greeted);
    let (tunnel, _, driver) = accepted.unwrap();
    (tunnel, driver, control)
}

#[tokio::test(start_paused = true)]
async fn content_is_a_sign_of_life_where_pings_get_no_answer() {
    let (near, far, _) = pair();
    let mut tasks = JoinSet::new();
    let (tunnel, driver, _control) = accept_bare(&near, far, Clock::start(BUILD_TIME)).await;
    tasks.spawn(driver.run());
    let mut io = near.open(Urgency::Bulk).await.unwrap();
    io.write.write_all(&header().encode().unwrap()).await.unwrap();
    let _stream = tunnel.accept_stream().await.unwrap();
    for _ in 0..30 {
        io.write.write_all(b"still here").await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    assert!(!tunnel.is_closed());
    let started = virtual_now();
    assert!(matches!(tunnel.closed().await, CloseReason::Silent { .. }));
    assert!(virtual_now() - started <= DEAD_AFTER_BUSY);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_of_an_idle_tunnel_is_noticed_by_its_ping() {
    let linked = linked(8).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!linked.ends.dialer.is_closed(), "pings are answered");
    linked.cut.now();
    let started = virtual_now();
    assert!(matches!(
        linked.ends.dialer.closed().await,
        CloseReason::Silent { .. }
    ));
    assert!(virtual_now() - started <= DEFAULT_KEEPALIVE + DEAD_AFTER_IDLE_PING);
    linked.ends.acceptor.closed().await;
    assert!(virtual_now() - started <= DEFAULT_KEEPALIVE + DEAD_AFTER_IDLE_PING + DEAD_AFTER_BUSY);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_driver_ends_the_tunnel_on_both_sides() {
    let Linked { mut ends, .. } = linked(8).await;
    ends.drivers.abort_all();
    while ends.drivers.join_next().await.is_some() {}
    assert!(matches!(ends.dialer.closed().await, CloseReason::Abandoned));
    assert!(matches!(ends.acceptor.closed().await, CloseReason::Abandoned));
}

#[tokio::test(start_paused = true)]
async fn a_refused_greeting_carries_code_text_and_time() {
    let (near, far, _) = pair();
    let clock = Clock::start(BUILD_TIME);
    let refused = Refused {
        code: RefusalCode::Busy,
        message: "200 satellites are connected".into(),
        retry_after_millis: 30_000,
    };
    let (dialed, accepted) = tokio::join!(
        Tunnel::dial(near, hello(), TunnelSettings::default(), clock.clone()),
        Tunnel::accept(far, TunnelSettings::default(), clock.clone(), |_| Err(
            refused.clone()
        )),
    );
    let error = dialed.unwrap_err();
    assert!(matches!(&error, GreetingError::Refused(said) if *said == refused));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(30)));
    assert_eq!(error.outlook(), Outlook::Retryable);
    assert!(matches!(accepted.unwrap_err(), GreetingError::Declined(_)));
}

#[tokio::test(start_paused = true)]
async fn another_protocol_version_is_refused_without_asking() {
    let (near, far, _) = pair();
    let clock = Clock::start(BUILD_TIME);
    let later = Hello {
        version: 2,
        ..hello()
    };
    let (dialed, _) = tokio::join!(
        Tunnel::dial(near, later, TunnelSettings::default(), clock.clone()),
        Tunnel::accept(far, TunnelSettings::default(), clock.clone(), |_| panic!("asked")),
    );
    assert!(
        matches!(dialed.unwrap_err(), GreetingError::Refused(said) if said.code == RefusalCode::UnsupportedVersion)
    );
}

#[tokio::test(start_paused = true)]
async fn a_greeting_that_never_comes_is_given_up() {
    let (near, far, _) = pair();
    let clock = Clock::start(BUILD_TIME);
    let started = virtual_now();
    let accepted = Tunnel::accept(far, TunnelSettings::default(), clock, |_| Ok(welcome(8))).await;
    assert!(matches!(accepted.unwrap_err(), GreetingError::TimedOut { .. }));
    assert!(virtual_now() - started <= GREETING_TIMEOUT + Duration::from_millis(10));
    assert!(near.close_reason().is_some(), "the connection is closed");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_breaks_the_protocol_is_dropped_and_an_unknown_message_is_skipped() {
    let (near, far, _) = pair();
    let clock = Clock::start(BUILD_TIME);
    let mut tasks = JoinSet::new();
    let (tunnel, driver, mut io) = accept_bare(&near, far, clock).await;
    tasks.spawn(driver.run());
    io.write.write_all(&[0, 3, 200, 1, 2]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!tunnel.is_closed());
    io.write
        .write_all(&ControlMessage::Hello(hello()).encode().unwrap())
        .await
        .unwrap();
    assert!(matches!(
        tunnel.closed().await,
        CloseReason::Violation(Violation::OutOfPlace(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_pings_without_reading_makes_nothing_grow() {
    let (near, far, _) = pair();
    let clock = Clock::start(BUILD_TIME);
    let mut tasks = JoinSet::new();
    let (tunnel, driver, mut io) = accept_bare(&near, far, clock).await;
    tasks.spawn(driver.run());
    // Far more answers than a pipe holds: the driver must go on reading without room to write.
    let pings: Vec<u8> = (0..20_000)
        .flat_map(|number| ControlMessage::Ping(number).encode().unwrap())
        .collect();
    timeout(Duration::from_secs(5), io.write.write_all(&pings))
        .await
        .unwrap()
        .unwrap();
    assert!(!tunnel.is_closed());
}
