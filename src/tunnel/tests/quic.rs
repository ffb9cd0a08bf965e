use std::net::{Ipv4Addr, SocketAddr};

use rustls::ClientConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::network::{Authority, SERVER_NAME};
use super::*;
use crate::identity::tls_failure::FailureRecord;
use crate::tunnel::quic::{
    BOOTSTRAP_MAX_STREAMS, DialError, MAX_HANDSHAKES, QuicEndpoint, QuicSettings, RETRY_ABOVE_HANDSHAKES,
    STREAM_WINDOW_BYTES,
};
use crate::tunnel::transport::{Outlook, TransportClosed, Urgency};

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

#[tokio::test]
async fn of_a_stream_that_nobody_reads_its_window_is_taken_in_and_no_more() {
    let authority = Authority::new();
    let (server, address) = listener(&authority, QuicSettings::default());
    for stream_window in [256 * 1_024, 3 * STREAM_WINDOW_BYTES] {
        let settings = QuicSettings {
            stream_window,
            ..QuicSettings::default()
        };
        let tls = authority.client(None, &FailureRecord::default());
        let (dialer, acceptor) = connected(&server, address, tls, settings).await;
        let mut stream = acceptor.open(Urgency::Bulk).await.unwrap();
        let (mut taken, piece) = (0, vec![0; 16 * 1_024]);
        while taken < stream_window as usize {
            let written = timeout(SOON, stream.write.write(&piece)).await;
            taken += written
                .unwrap_or_else(|_| panic!("it stands still at {taken}"))
                .unwrap();
        }
        assert_eq!(taken, stream_window as usize);
        let more = timeout(Duration::from_millis(300), stream.write.write(&piece)).await;
        assert!(more.is_err(), "it waits");
        drop(dialer);
    }
}
