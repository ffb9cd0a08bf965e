use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ED25519};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::contract::invitation::{CaFingerprint, ParentTrust};
use crate::identity::anchors::Anchors;
use crate::identity::certificate::CertificateChain;
use crate::identity::key::PrivateKey;
use crate::identity::tls::{ClientAuth, ClientTls, TimeSource, TlsIdentity, client_config, server_config};
use crate::identity::tls_failure::{FailureRecord, RefusalReason, TlsFailure};
use crate::machine::liveness::DEAD_AFTER_BUSY;
use crate::tunnel::http::{HttpLimits, request};
use crate::tunnel::quic::{
    BOOTSTRAP_MAX_STREAMS, DialError, MAX_HANDSHAKES, QuicEndpoint, QuicSettings, RETRY_ABOVE_HANDSHAKES,
    STREAM_WINDOW_BYTES,
};
use crate::tunnel::transport::{Outlook, Side, TransportClosed, Urgency};
use crate::tunnel::{GreetingError, TunnelStream};
use crate::wire::{RefusalCode, Refused, TUNNEL_ALPN};

const SERVER_NAME: &str = "bridge.example";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A name of its own: another authority is told by it, and not only by a signature.
        params.distinguished_name.push(
            rcgen::DnType::CommonName,
            data_encoding::HEXLOWER.encode(&Sha256::digest(key.public_key_raw())),
        );
        let der = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            der,
        }
    }

    fn issue(&self, name: &str) -> (Arc<TlsIdentity>, CertificateDer<'static>) {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let chain = CertificateChain::from_pem(&certificate.pem())
            .unwrap()
            .with_issuers(vec![self.der.clone()]);
        let key = PrivateKey::from_pkcs8(Secret::new(key.serialize_der())).unwrap();
        (
            Arc::new(TlsIdentity::new(&chain, &key).unwrap()),
            certificate.der().clone(),
        )
    }

    fn server(&self) -> ServerConfig {
        let anchors = Anchors::from_der(vec![self.der.clone()]).unwrap();
        server_config(
            watch::channel(self.issue(SERVER_NAME).0).1,
            ClientAuth::Optional(watch::channel(Arc::new(anchors)).1),
            &[TUNNEL_ALPN],
            time(),
        )
        .unwrap()
    }

    fn client(&self, identity: Option<Arc<TlsIdentity>>, failures: &FailureRecord) -> ClientConfig {
        client_config(ClientTls {
            trust: &ParentTrust::Pinned(CaFingerprint::of_der(&self.der)),
            learned: None,
            identity: identity.map(|identity| watch::channel(identity).1),
            alpn: &[TUNNEL_ALPN],
            time: time(),
            failures: failures.clone(),
        })
        .unwrap()
    }
}

fn time() -> TimeSource {
    Arc::new(|| UnixTime::from_seconds(1_800_000_000))
}

fn listener(authority: &Authority, settings: QuicSettings) -> (QuicEndpoint, SocketAddr) {
    let loopback = (Ipv4Addr::LOCALHOST, 0).into();
    let server = QuicEndpoint::server(loopback, authority.server(), settings).unwrap();
    let address = server.local_address().unwrap();
    (server, address)
}

/// Both transports of a fresh connection.
async fn connected(
    server: &QuicEndpoint,
    address: SocketAddr,
    tls: ClientConfig,
    settings: QuicSettings,
) -> (Arc<dyn Transport>, Arc<dyn Transport>) {
    let client = QuicEndpoint::client(settings).unwrap();
    let failures = FailureRecord::default();
    let (dialed, accepted) = tokio::join!(client.dial(address, SERVER_NAME, tls, &failures), async {
        server.accept().await.unwrap().handshake().await
    });
    (dialed.unwrap(), accepted.unwrap())
}

/// A tunnel with a client certificate.
async fn tunnel(max_streams: u32) -> (Ends, QuicEndpoint) {
    let authority = Authority::new();
    let settings = QuicSettings { max_streams };
    let (server, address) = listener(&authority, settings);
    let (identity, _) = authority.issue("satellite");
    let tls = authority.client(Some(identity), &FailureRecord::default());
    let (dialer, acceptor) = connected(&server, address, tls, settings).await;
    (greet(dialer, acceptor, max_streams).await, server)
}

async fn stream(ends: &Ends) -> (TunnelStream, TunnelStream) {
    let both = async {
        let near = ends.dialer.open_stream(header()).await.unwrap();
        let far = ends.acceptor.accept_stream().await.unwrap();
        (near, far.accept().await.unwrap())
    };
    timeout(SOON, both).await.unwrap()
}

#[tokio::test]
async fn the_acceptor_sees_the_dialers_certificate_or_that_there_is_none() {
    let authority = Authority::new();
    let settings = QuicSettings::default();
    let (server, address) = listener(&authority, settings);
    let (identity, certificate) = authority.issue("satellite");
    let failures = FailureRecord::default();
    let tls = authority.client(Some(identity), &failures);
    let (dialer, acceptor) = connected(&server, address, tls, settings).await;
    let ends = greet(dialer, acceptor, 8).await;
    assert_eq!(ends.acceptor.peer_certificate(), Some(certificate));
    assert!(ends.dialer.peer_certificate().is_some());
    assert_eq!(
        ends.dialer.remote_address(),
        address,
        "an IPv4 address in IPv4 form"
    );

    let (_bare, acceptor) = connected(&server, address, authority.client(None, &failures), settings).await;
    assert_eq!(acceptor.peer_certificate(), None);
}

#[tokio::test]
async fn a_connection_without_certificate_holds_few_streams() {
    let authority = Authority::new();
    let settings = QuicSettings::default();
    let (server, address) = listener(&authority, settings);
    let tls = authority.client(None, &FailureRecord::default());
    let (dialer, _acceptor) = connected(&server, address, tls, settings).await;
    let mut open = Vec::new();
    for _ in 0..=BOOTSTRAP_MAX_STREAMS {
        let opened = timeout(SOON, dialer.open(Urgency::Bulk)).await;
        open.push(opened.unwrap().unwrap());
    }
    let one_more = timeout(Duration::from_millis(300), dialer.open(Urgency::Bulk)).await;
    assert!(one_more.is_err(), "it waits");
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused_with_the_verifiers_verdict() {
    let (authority, expected) = (Authority::new(), Authority::new());
    let (server, address) = listener(&authority, QuicSettings::default());
    let client = QuicEndpoint::client(QuicSettings::default()).unwrap();
    let failures = FailureRecord::default();
    let tls = expected.client(None, &failures);
    let (dialed, accepted) = tokio::join!(client.dial(address, SERVER_NAME, tls, &failures), async {
        server.accept().await.unwrap().handshake().await
    });
    let error = dialed.unwrap_err();
    assert_eq!(error.outlook(), Outlook::Permanent);
    match error {
        DialError::Closed {
            reason: TransportClosed::Tls { found_by, failure },
            ..
        } => {
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

#[tokio::test]
async fn a_dialer_learns_that_its_certificate_is_not_taken() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (server, address) = listener(&authority, QuicSettings::default());
    let client = QuicEndpoint::client(QuicSettings::default()).unwrap();
    let failures = FailureRecord::default();
    let tls = authority.client(Some(stranger.issue("satellite").0), &failures);
    let accepted = async { server.accept().await.unwrap().handshake().await };
    // In TLS 1.3 the dialer is done before the other side has judged its certificate.
    let greeted = async {
        let transport = client.dial(address, SERVER_NAME, tls, &failures).await.unwrap();
        Tunnel::dial(
            transport,
            hello(),
            TunnelSettings::default(),
            Clock::start(BUILD_TIME),
        )
        .await
    };
    let (greeted, accepted) = tokio::join!(greeted, accepted);
    assert!(accepted.is_err());
    match greeted.unwrap_err() {
        GreetingError::Transport(TransportClosed::Tls {
            found_by: Side::Theirs,
            failure: TlsFailure::CertificateRefused { reason },
        }) => assert_eq!(reason, RefusalReason::UnknownCa),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nobody_there_is_a_timeout_of_the_dial() {
    let unused = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let authority = Authority::new();
    let client = QuicEndpoint::client(QuicSettings::default()).unwrap();
    let failures = FailureRecord::default();
    let tls = authority.client(None, &failures);
    tokio::time::pause();
    let error = client
        .dial(unused.local_addr().unwrap(), SERVER_NAME, tls, &failures)
        .await
        .unwrap_err();
    assert!(matches!(error, DialError::TimedOut { .. }));
    assert_eq!(error.outlook(), Outlook::Retryable);
}

#[tokio::test]
async fn in_a_rush_dialers_prove_their_address_and_the_last_are_turned_away() {
    let authority = Authority::new();
    let (server, address) = listener(&authority, QuicSettings::default());
    let client = QuicEndpoint::client(QuicSettings::default()).unwrap();
    let failures = FailureRecord::default();
    let mut dials = JoinSet::new();
    let dial = |dials: &mut JoinSet<Result<Arc<dyn Transport>, DialError>>| {
        let (client, tls) = (client.clone(), authority.client(None, &failures));
        let failures = failures.clone();
        dials.spawn(async move { client.dial(address, SERVER_NAME, tls, &failures).await });
    };
    let mut waiting = Vec::new();
    for _ in 0..MAX_HANDSHAKES {
        dial(&mut dials);
        let incoming = timeout(SOON, server.accept()).await.unwrap().unwrap();
        let rush = waiting.len() >= RETRY_ABOVE_HANDSHAKES;
        assert_eq!(incoming.address_proved(), rush, "dialer {}", waiting.len());
        waiting.push(incoming);
    }
    dial(&mut dials);
    let turned_away = tokio::select! {
        _ = server.accept() => panic!("one too many"),
        dialed = dials.join_next() => dialed.unwrap().unwrap(),
    };
    assert!(
        matches!(
            turned_away,
            Err(DialError::Closed {
                reason: TransportClosed::Busy,
                ..
            })
        ),
        "{turned_away:?}"
    );
    // One that had to prove its address goes through.
    let proved = waiting.pop().unwrap();
    assert!(timeout(SOON, proved.handshake()).await.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_streams_at_once_carry_their_content_whole_both_ways() {
    const STREAMS: usize = 100;
    const BYTES: usize = 200_000;
    let (ends, _server) = tunnel(128).await;
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
        let dialer = ends.dialer.clone();
        tasks.spawn(async move {
            let stream = dialer.open_stream(header()).await.unwrap();
            let (mut read, mut write) = tokio::io::split(stream);
            let sent = pattern(seed, BYTES);
            let mut heard = Vec::new();
            let upload = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            tokio::join!(upload, async { read.read_to_end(&mut heard).await.unwrap() });
            assert_eq!(Sha256::digest(&heard), Sha256::digest(&sent));
        });
    }
    while let Some(task) = timeout(SOON, tasks.join_next()).await.unwrap() {
        task.unwrap();
    }
    assert_eq!(ends.dialer.stats().opened_streams, 100);
    assert_eq!(ends.dialer.stats().open_streams, 0);
}

/// Writes until nothing more is taken, and says how much was.
async fn fill(stream: &mut TunnelStream) -> usize {
    let content = pattern(7, 65_536);
    let mut pushed = 0;
    while let Ok(wrote) = timeout(Duration::from_millis(300), stream.write(&content)).await {
        pushed += wrote.unwrap();
    }
    pushed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stand_still_bound_their_writers_and_hinder_nobody_else() {
    const STALLED: u32 = 7;
    let (ends, _server) = tunnel(STALLED + 1).await;
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let (mut near, far) = stream(&ends).await;
        let pushed = fill(&mut near).await;
        assert!(pushed > 100_000, "{pushed}");
        assert!(
            pushed <= usize::try_from(STREAM_WINDOW_BYTES).unwrap(),
            "{pushed}"
        );
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
    assert_eq!(Sha256::digest(&heard), Sha256::digest(&sent));
    // The control stream gets through as well: longer than a silent peer would be given.
    let ended = timeout(DEAD_AFTER_BUSY + Duration::from_secs(1), ends.dialer.closed()).await;
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test]
async fn at_the_stream_limit_the_opener_waits_for_the_transport() {
    let (ends, _server) = tunnel(4).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(stream(&ends).await);
    }
    let mut fifth = Box::pin(ends.dialer.open_stream(header()));
    assert!(timeout(Duration::from_millis(300), &mut fifth).await.is_err());
    open.clear();
    assert!(timeout(SOON, fifth).await.unwrap().is_ok());
}

#[tokio::test]
async fn an_aborted_stream_is_an_error_and_a_finished_one_is_not() {
    let (ends, _server) = tunnel(8).await;
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

#[tokio::test]
async fn a_refused_greeting_crosses_the_network() {
    let authority = Authority::new();
    let settings = QuicSettings::default();
    let (server, address) = listener(&authority, settings);
    let tls = authority.client(None, &FailureRecord::default());
    let (near, far) = connected(&server, address, tls, settings).await;
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

#[tokio::test]
async fn a_goodbye_crosses_the_network() {
    let (ends, _server) = tunnel(8).await;
    ends.acceptor.close(goodbye()).await;
    let reason = timeout(SOON, ends.dialer.closed()).await.unwrap();
    assert!(
        matches!(&reason, CloseReason::Goodbye(said) if *said == goodbye()),
        "{reason:?}"
    );
}

#[tokio::test]
async fn requests_cross_the_network_in_both_directions_early_answers_too() {
    let (ends, _server) = tunnel(8).await;
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
                assert_eq!(Sha256::digest(answer.body()), Sha256::digest(pattern(5, 200_000)));
            }
        }
    }
}

/// Forwards datagrams between one client and a server, until told to lose them all.
struct Relay {
    address: SocketAddr,
    silent: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl Relay {
    async fn to(server: SocketAddr) -> Self {
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let back = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        back.connect(server).await.unwrap();
        let address = front.local_addr().unwrap();
        let silent = Arc::new(AtomicBool::new(false));
        let (client_tx, client_rx) = watch::channel(None);
        let mut tasks = JoinSet::new();
        let (from, to, silenced) = (front.clone(), back.clone(), silent.clone());
        tasks.spawn(async move {
            let mut datagram = vec![0; 65_536];
            while let Ok((length, client)) = from.recv_from(&mut datagram).await {
                client_tx.send_replace(Some(client));
                if !silenced.load(Ordering::SeqCst) {
                    to.send(&datagram[..length]).await.ok();
                }
            }
        });
        let silenced = silent.clone();
        tasks.spawn(async move {
            let mut datagram = vec![0; 65_536];
            while let Ok(length) = back.recv(&mut datagram).await {
                let client = *client_rx.borrow();
                if let (Some(client), false) = (client, silenced.load(Ordering::SeqCst)) {
                    front.send_to(&datagram[..length], client).await.ok();
                }
            }
        });
        Self {
            address,
            silent,
            _tasks: tasks,
        }
    }
}

#[tokio::test]
async fn a_peer_that_is_gone_without_a_word_is_noticed_while_a_stream_is_open() {
    let authority = Authority::new();
    let settings = QuicSettings::default();
    let (server, address) = listener(&authority, settings);
    let relay = Relay::to(address).await;
    let tls = authority.client(Some(authority.issue("satellite").0), &FailureRecord::default());
    let (dialer, acceptor) = connected(&server, relay.address, tls, settings).await;
    let ends = greet(dialer, acceptor, 8).await;
    let (_near, _far) = stream(&ends).await;
    relay.silent.store(true, Ordering::SeqCst);
    // The exact bound is tested with the paused clock; a loaded machine gets a second more here.
    let both = async { tokio::join!(ends.dialer.closed(), ends.acceptor.closed()) };
    let (near, far) = timeout(DEAD_AFTER_BUSY + Duration::from_secs(1), both)
        .await
        .unwrap();
    assert!(matches!(near, CloseReason::Silent { .. }), "{near:?}");
    assert!(matches!(far, CloseReason::Silent { .. }), "{far:?}");
}
