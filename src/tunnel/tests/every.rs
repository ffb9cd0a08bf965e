//! What holds over every transport.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::network::{Authority, Over, Relay, Site, stream, tunnel};
use super::*;
use crate::identity::tls_failure::{FailureRecord, RefusalReason, TlsFailure};
use crate::machine::liveness::DEAD_AFTER_BUSY;
use crate::tunnel::http::{HttpLimits, request};
use crate::tunnel::memory::{self, PIPE_BYTES};
use crate::tunnel::quic::STREAM_WINDOW_BYTES;
use crate::tunnel::tcp::FIRST_WINDOW_BYTES;
use crate::tunnel::transport::{ByteStream, CloseCode, Outlook, Side, TransportClosed, Urgency};
use crate::tunnel::{GreetingError, TunnelStream};
use crate::wire::{RefusalCode, Refused, StreamEnd};

/// Makes a test of each of the functions for a transport.
macro_rules! over {
    ($module:ident, $over:expr, [$($test:ident),* $(,)?]) => {
        mod $module {
            use super::Over;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test($over).await;
                }
            )*
        }
    };
}

/// Makes a test of each of the functions for all transports, and of the others for those that cross a network.
macro_rules! over_all {
    ([$($test:ident),* $(,)?], and over the network [$($networked:ident),* $(,)?]) => {
        over!(memory_transport, Over::Memory, [$($test),*]);
        over!(quic_transport, Over::Quic, [$($test,)* $($networked),*]);
        over!(tcp_transport, Over::Tcp, [$($test,)* $($networked),*]);
    };
}

over_all!(
    [
        a_hundred_streams_at_once_carry_their_content_whole_both_ways,
        readers_that_stand_still_bound_their_writers_and_hinder_nobody_else,
        an_aborted_stream_is_an_error_and_a_finished_one_is_not,
        a_goodbye_crosses_the_network,
        requests_cross_the_network_in_both_directions_early_answers_too,
        the_halves_of_a_stream_end_apart,
        a_stream_that_is_let_go_after_its_end_was_delivered_whole,
        a_close_says_why,
        a_stream_that_is_given_up_says_why_to_each_half,
        a_cut_is_heard_through_the_tunnel_and_nothing_is_made_up,
    ],
    and over the network [
        the_acceptor_sees_the_dialers_certificate_or_that_there_is_none,
        a_server_of_another_authority_is_refused_with_the_verifiers_verdict,
        a_dialer_learns_that_its_certificate_is_not_taken,
        at_the_stream_limit_the_opener_waits_for_the_transport,
        a_refused_greeting_crosses_the_network,
        a_peer_that_is_gone_without_a_word_is_noticed_while_a_stream_is_open,
    ]
);

async fn the_acceptor_sees_the_dialers_certificate_or_that_there_is_none(over: Over) {
    let site = Site::new(over, 8).await;
    let (identity, certificate) = site.authority.issue("satellite");
    let failures = FailureRecord::default();
    let tls = site.authority.client(Some(identity), &failures);
    let (dialer, acceptor) = site.shake(site.address(), tls, &failures).await;
    let ends = greet(dialer.unwrap(), acceptor.unwrap(), 8).await;
    assert_eq!(ends.acceptor.peer_certificate(), Some(certificate));
    assert!(ends.dialer.peer_certificate().is_some());
    let remote = ends.dialer.remote_address();
    assert_eq!(remote, site.address(), "an IPv4 address in IPv4 form");

    let tls = site.authority.client(None, &failures);
    let (_bare, acceptor) = site.shake(site.address(), tls, &failures).await;
    assert_eq!(acceptor.unwrap().peer_certificate(), None);
}

async fn a_server_of_another_authority_is_refused_with_the_verifiers_verdict(over: Over) {
    let (site, expected) = (Site::new(over, 8).await, Authority::new());
    let failures = FailureRecord::default();
    let tls = expected.client(None, &failures);
    let (dialed, accepted) = timeout(SOON, site.shake(site.address(), tls, &failures))
        .await
        .unwrap();
    let reason = dialed.unwrap_err();
    assert_eq!(reason.outlook(), Outlook::Permanent);
    match reason {
        TransportClosed::Tls { found_by, failure } => {
            assert_eq!(found_by, Side::Ours);
            assert!(matches!(failure, TlsFailure::PinNotInChain { .. }), "{failure:?}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        accepted.unwrap_err(),
        TransportClosed::Tls {
            found_by: Side::Theirs,
            ..
        }
    ));
}

async fn a_dialer_learns_that_its_certificate_is_not_taken(over: Over) {
    let (site, stranger) = (Site::new(over, 8).await, Authority::new());
    let failures = FailureRecord::default();
    let tls = site
        .authority
        .client(Some(stranger.issue("satellite").0), &failures);
    // In TLS 1.3 the dialer is done before the other side has judged its certificate.
    let greeted = async {
        let transport = site.dial(site.address(), tls, &failures).await.unwrap();
        let clock = Clock::start(BUILD_TIME);
        Tunnel::dial(transport, hello(), TunnelSettings::default(), clock).await
    };
    let (greeted, accepted) = timeout(SOON, async { tokio::join!(greeted, site.accept()) })
        .await
        .unwrap();
    assert!(accepted.is_err());
    match greeted.unwrap_err() {
        GreetingError::Transport(TransportClosed::Tls {
            found_by: Side::Theirs,
            failure: TlsFailure::CertificateRefused { reason },
        }) => assert_eq!(reason, RefusalReason::UnknownCa),
        other => panic!("{other:?}"),
    }
}

async fn a_hundred_streams_at_once_carry_their_content_whole_both_ways(over: Over) {
    const STREAMS: usize = 100;
    const BYTES: usize = 200_000;
    let (ends, _site) = tunnel(over, 128).await;
    let arrived = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let acceptor = ends.acceptor.clone();
    tasks.spawn(async move {
        let mut echoes = JoinSet::new();
        for _ in 0..STREAMS {
            let incoming = acceptor.accept_stream().await.unwrap();
            echoes.spawn(async move {
                let (mut read, mut write) = tokio::io::split(incoming.accept().await.unwrap());
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            });
        }
        while let Some(echo) = echoes.join_next().await {
            echo.unwrap();
        }
    });
    for seed in 0..STREAMS {
        let (dialer, arrived) = (ends.dialer.clone(), Arc::clone(&arrived));
        tasks.spawn(async move {
            let stream = dialer.open_stream(header()).await.unwrap();
            let (mut read, mut write) = tokio::io::split(stream);
            let sent = pattern(seed, BYTES);
            let mut heard = Vec::new();
            let upload = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let download = async {
                loop {
                    match read.read_buf(&mut heard).await.unwrap() {
                        0 => break,
                        count => arrived.fetch_add(count, Ordering::Relaxed),
                    };
                }
            };
            tokio::join!(upload, download);
            assert!(heard == sent, "stream {seed} differs");
        });
    }
    let all = async {
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
    };
    while_bytes_arrive(&arrived, all).await;
    assert_eq!(ends.dialer.stats().opened_streams, 100);
    assert_eq!(ends.dialer.stats().open_streams, 0);
}

/// Writes until nothing more is taken, and says how much was. The first so many bytes may take their time.
async fn fill(stream: &mut TunnelStream, least: usize) -> usize {
    let content = pattern(7, 65_536);
    let mut pushed = 0;
    loop {
        let patience = if pushed < least {
            SOON
        } else {
            Duration::from_millis(300)
        };
        match timeout(patience, stream.write(&content)).await {
            Ok(wrote) => pushed += wrote.unwrap(),
            Err(_) => return pushed,
        }
    }
}

async fn readers_that_stand_still_bound_their_writers_and_hinder_nobody_else(over: Over) {
    const STALLED: u32 = 7;
    let (ends, _site) = tunnel(over, STALLED + 1).await;
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let (mut near, far) = stream(&ends).await;
        let (least, most) = match over {
            Over::Memory => (1, PIPE_BYTES),
            Over::Quic => (100_000, usize::try_from(STREAM_WINDOW_BYTES).unwrap()),
            Over::Tcp => (100_000, FIRST_WINDOW_BYTES),
        };
        let pushed = fill(&mut near, least).await;
        assert!((least..=most).contains(&pushed), "{pushed}");
        stalled.push((near, far));
    }
    let (mut near, mut far) = stream(&ends).await;
    let sent = pattern(1, 3_000_000);
    let mut heard = Vec::new();
    let exchange = async {
        tokio::join!(
            async {
                near.write_all(&sent).await.unwrap();
                near.shutdown().await.unwrap();
            },
            async { far.read_to_end(&mut heard).await.unwrap() }
        )
    };
    timeout(SOON, exchange).await.unwrap();
    assert!(heard == sent, "what was read differs");
    // The control stream gets through as well: longer than a silent peer would be given.
    let ended = timeout(DEAD_AFTER_BUSY + Duration::from_secs(1), ends.dialer.closed()).await;
    assert!(ended.is_err(), "{ended:?}");
}

async fn at_the_stream_limit_the_opener_waits_for_the_transport(over: Over) {
    let (ends, _site) = tunnel(over, 4).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(stream(&ends).await);
    }
    let mut fifth = Box::pin(ends.dialer.open_stream(header()));
    assert!(timeout(Duration::from_millis(300), &mut fifth).await.is_err());
    open.clear();
    assert!(timeout(SOON, fifth).await.unwrap().is_ok());
}

async fn an_aborted_stream_is_an_error_and_a_finished_one_is_not(over: Over) {
    let (ends, _site) = tunnel(over, 8).await;
    let (mut near, mut far) = stream(&ends).await;
    near.write_all(b"part").await.unwrap();
    drop(near);
    assert!(
        timeout(SOON, far.read_to_end(&mut Vec::new()))
            .await
            .unwrap()
            .is_err()
    );

    let (mut near, mut far) = stream(&ends).await;
    near.write_all(b"whole").await.unwrap();
    near.shutdown().await.unwrap();
    let mut heard = Vec::new();
    timeout(SOON, far.read_to_end(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, b"whole");
    far.write_all(b"answer").await.unwrap();
    far.shutdown().await.unwrap();
    drop(far);
    heard.clear();
    timeout(SOON, near.read_to_end(&mut heard))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(heard, b"answer");
}

async fn a_refused_greeting_crosses_the_network(over: Over) {
    let site = Site::new(over, 8).await;
    let (near, far) = site.connected().await;
    let clock = Clock::start(BUILD_TIME);
    let refused = Refused {
        code: RefusalCode::NotAdmitted,
        message: "this peer was revoked".into(),
        retry_after_millis: 60_000,
    };
    let (dialed, _) = tokio::join!(
        Tunnel::dial(near, hello(), TunnelSettings::default(), clock.clone()),
        Tunnel::accept(far, TunnelSettings::default(), clock.clone(), |_| Err(
            refused.clone()
        )),
    );
    let error = dialed.unwrap_err();
    assert!(
        matches!(&error, GreetingError::Refused(said) if *said == refused),
        "{error:?}"
    );
}

async fn a_goodbye_crosses_the_network(over: Over) {
    let (ends, _site) = tunnel(over, 8).await;
    ends.acceptor.close(goodbye()).await;
    let reason = timeout(SOON, ends.dialer.closed()).await.unwrap();
    assert!(
        matches!(&reason, CloseReason::Goodbye(said) if *said == goodbye()),
        "{reason:?}"
    );
}

async fn requests_cross_the_network_in_both_directions_early_answers_too(over: Over) {
    let (ends, _site) = tunnel(over, 8).await;
    let mut tasks = JoinSet::new();
    super::http::serve_all(&ends.acceptor, &mut tasks);
    super::http::serve_all(&ends.dialer, &mut tasks);
    for tunnel in [&ends.dialer, &ends.acceptor] {
        for (path, status) in [("/echo", 200), ("/early", 413), ("/nothing", 404)] {
            let post = ::http::Request::post(path)
                .body(http_body_util::Full::from(pattern(5, 200_000)))
                .unwrap();
            let asked = request(tunnel, TraceId(1), post, HttpLimits::default());
            let answer = timeout(SOON, asked).await.unwrap().unwrap();
            assert_eq!(answer.status(), status);
            if path == "/echo" {
                assert!(*answer.body() == pattern(5, 200_000), "the echo differs");
            }
        }
    }
}

async fn a_peer_that_is_gone_without_a_word_is_noticed_while_a_stream_is_open(over: Over) {
    let site = Site::new(over, 8).await;
    let relay = Relay::to(over, site.address()).await;
    let (dialer, acceptor) = site.connected_by(relay.address).await;
    let ends = greet(dialer, acceptor, 8).await;
    let (_near, _far) = stream(&ends).await;
    relay.fall_silent();
    // The bound is tested with the paused clock; here, that it is noticed at all and by both sides.
    let both = async { tokio::join!(ends.dialer.closed(), ends.acceptor.closed()) };
    let (near, far) = timeout(SOON, both).await.unwrap();
    assert!(matches!(near, CloseReason::Silent { .. }), "{near:?}");
    assert!(matches!(far, CloseReason::Silent { .. }), "{far:?}");
}

/// The halves of a transport's stream, one end each.
async fn halves(over: Over) -> (ByteStream, ByteStream, [Arc<dyn Transport>; 2], Site) {
    let site = Site::new(over, 8).await;
    let (near, far): (Arc<dyn Transport>, Arc<dyn Transport>) = match over {
        Over::Memory => {
            let (near, far, _) = memory::pair();
            (near, far)
        }
        Over::Quic | Over::Tcp => site.connected().await,
    };
    let mut opened = near.open(Urgency::Bulk).await.unwrap();
    // QUIC tells of a stream with its first byte.
    opened.write.write_all(b"!").await.unwrap();
    let mut accepted = timeout(SOON, far.accept(Urgency::Bulk)).await.unwrap().unwrap();
    assert_eq!(accepted.read.read_u8().await.unwrap(), b'!');
    (opened, accepted, [near, far], site)
}

async fn the_halves_of_a_stream_end_apart(over: Over) {
    // A reader that is gone stops its writer, and the other direction goes on.
    let (opened, accepted, _transports, _site) = halves(over).await;
    let (mut near_read, mut near_write) = (opened.read, opened.write);
    let (far_read, mut far_write) = (accepted.read, accepted.write);
    drop(far_read);
    let stopped = async { while near_write.write_all(&[0; 4_096]).await.is_ok() {} };
    timeout(SOON, stopped).await.unwrap();
    far_write.write_all(b"still here").await.unwrap();
    far_write.shutdown().await.unwrap();
    let mut heard = Vec::new();
    timeout(SOON, near_read.read_to_end(&mut heard))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(heard, b"still here");

    // A writer that is gone aborts its direction, and the other goes on, both ways round.
    for turned in [false, true] {
        let (opened, accepted, _transports, _site) = halves(over).await;
        let (near, far) = if turned {
            (accepted, opened)
        } else {
            (opened, accepted)
        };
        let (mut near_read, near_write) = (near.read, near.write);
        let (mut far_read, mut far_write) = (far.read, far.write);
        drop(near_write);
        let heard = timeout(SOON, far_read.read_to_end(&mut Vec::new()))
            .await
            .unwrap();
        assert!(heard.is_err(), "an abort is no end");
        far_write.write_all(b"answer").await.unwrap();
        far_write.shutdown().await.unwrap();
        let mut heard = Vec::new();
        timeout(SOON, near_read.read_to_end(&mut heard))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(heard, b"answer");
    }
}

async fn a_stream_that_is_let_go_after_its_end_was_delivered_whole(over: Over) {
    let (mut opened, mut accepted, _transports, _site) = halves(over).await;
    let sent = pattern(3, 60_000);
    let write = async {
        opened.write.write_all(&sent).await.unwrap();
        opened.write.shutdown().await.unwrap();
        drop(opened);
    };
    let mut heard = Vec::new();
    let both = async {
        tokio::join!(write, accepted.read.read_to_end(&mut heard))
            .1
            .unwrap()
    };
    timeout(SOON, both).await.unwrap();
    assert_eq!(heard, sent);
    // And what its reader would have heard is stopped.
    let stopped = async { while accepted.write.write_all(&[0; 4_096]).await.is_ok() {} };
    timeout(SOON, stopped).await.unwrap();
}

async fn a_close_says_why(over: Over) {
    let (_, _, [near, far], _site) = halves(over).await;
    near.close(CloseCode::PROTOCOL, "something is odd");
    assert!(matches!(near.close_reason(), Some(TransportClosed::ByUs)));
    let reason = timeout(SOON, far.closed()).await.unwrap();
    let expected = u64::from(CloseCode::PROTOCOL.0);
    assert!(
        matches!(&reason, TransportClosed::ByPeer { code, reason } if *code == expected && reason == "something is odd"),
        "{reason:?}"
    );
    assert!(timeout(SOON, near.open(Urgency::Bulk)).await.unwrap().is_err());
    assert!(timeout(SOON, far.accept(Urgency::Bulk)).await.unwrap().is_err());
}

async fn a_stream_that_is_given_up_says_why_to_each_half(over: Over) {
    // Each side, and each half alone: the other half may have ended before.
    for turned in [false, true] {
        let (opened, accepted, _transports, _site) = halves(over).await;
        let (near, mut far) = if turned {
            (accepted, opened)
        } else {
            (opened, accepted)
        };
        near.farewell.say(StreamEnd::ServiceWithdrawn);
        near.farewell.say(StreamEnd::GrantRevoked);
        drop(near.write);
        let error = timeout(SOON, far.read.read_to_end(&mut Vec::new()))
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(error.to_string(), "the grant was revoked");
        assert_eq!(far.farewell.heard(), Some(StreamEnd::GrantRevoked));

        let (opened, accepted, _transports, _site) = halves(over).await;
        let (near, mut far) = if turned {
            (accepted, opened)
        } else {
            (opened, accepted)
        };
        let (mut near_read, mut near_write, mut heard) = (near.read, near.write, Vec::new());
        far.write.write_all(b"?").await.unwrap();
        assert_eq!(timeout(SOON, near_read.read_u8()).await.unwrap().unwrap(), b'?');
        near_write.shutdown().await.unwrap();
        timeout(SOON, far.read.read_to_end(&mut heard))
            .await
            .unwrap()
            .unwrap();
        near.farewell.say(StreamEnd::HeldUp);
        drop(near_read);
        let stopped = async {
            loop {
                if let Err(error) = far.write.write_all(&[0; 4_096]).await {
                    return error;
                }
            }
        };
        let error = timeout(SOON, stopped).await.unwrap();
        assert_eq!(error.to_string(), StreamEnd::HeldUp.to_string());
        assert_eq!(far.farewell.heard(), Some(StreamEnd::HeldUp));
        assert_eq!(near.farewell.heard(), None);
    }
}

async fn a_cut_is_heard_through_the_tunnel_and_nothing_is_made_up(over: Over) {
    let (ends, _site) = tunnel(over, 8).await;
    for (said, heard) in [
        (Some(StreamEnd::GrantExpired), StreamEnd::GrantExpired),
        (None, StreamEnd::Abandoned),
    ] {
        let (near, mut far) = stream(&ends).await;
        if let Some(why) = said {
            near.farewell().say(why);
        }
        drop(near);
        let read = timeout(SOON, far.read_to_end(&mut Vec::new())).await.unwrap();
        assert!(read.is_err());
        assert_eq!(far.farewell().heard(), Some(heard));
    }
    // What came to its end in order has no reason, whatever had been prepared.
    let (mut near, mut far) = stream(&ends).await;
    near.farewell().say(StreamEnd::ClientBroke);
    near.shutdown().await.unwrap();
    far.shutdown().await.unwrap();
    for end in [&mut near, &mut far] {
        timeout(SOON, end.read_to_end(&mut Vec::new()))
            .await
            .unwrap()
            .unwrap();
    }
    drop(near);
    timeout(SOON, ends.dialer.idle()).await.unwrap();
    assert_eq!(far.farewell().heard(), None);
}
