use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use super::network::{Over, Site};
use super::*;
use crate::identity::tls_failure::FailureRecord;
use crate::tunnel::tcp::BOOTSTRAP_MAX_STREAMS;
use crate::tunnel::transport::{TransportClosed, Urgency};

#[tokio::test]
async fn a_connection_without_certificate_holds_few_streams_and_loses_the_rest() {
    let site = Site::new(Over::Tcp, 64).await;
    let failures = FailureRecord::default();
    let tls = site.authority.client(None, &failures);
    let (dialer, acceptor) = site.shake(site.address(), tls, &failures).await;
    let (dialer, _acceptor) = (dialer.unwrap(), acceptor.unwrap());
    let mut open = Vec::new();
    for _ in 0..2 * (BOOTSTRAP_MAX_STREAMS + 1) {
        open.push(dialer.open(Urgency::Bulk).await.unwrap());
    }
    let mut beyond = dialer.open(Urgency::Bulk).await.unwrap();
    let lost = timeout(SOON, beyond.read.read_u8()).await.unwrap();
    assert!(lost.is_err());
    let lost = async { while beyond.write.write_all(&[0; 1_024]).await.is_ok() {} };
    timeout(SOON, lost).await.unwrap();
    for stream in &mut open {
        stream.write.write_all(b"the others live").await.unwrap();
    }
    assert!(dialer.close_reason().is_none());
}

/// Forwards one connection at so many bytes a second, with little in between.
fn slow_relay(server: SocketAddr, bytes_a_second: u64) -> (SocketAddr, JoinSet<()>) {
    const SLICE: u64 = 20;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let front: TcpListener = socket.listen(1).unwrap();
    let address = front.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (near, _) = front.accept().await.unwrap();
        let far = TcpStream::connect(server).await.unwrap();
        let (mut near_read, mut near_write) = near.into_split();
        let (mut far_read, mut far_write) = far.into_split();
        let up = async {
            let mut bytes = vec![0; usize::try_from(bytes_a_second / SLICE).unwrap()];
            let mut tick = tokio::time::interval(Duration::from_millis(1_000 / SLICE));
            loop {
                tick.tick().await;
                match near_read.read(&mut bytes).await {
                    Ok(count) if count > 0 => far_write.write_all(&bytes[..count]).await.unwrap(),
                    _ => return,
                }
            }
        };
        tokio::join!(up, async {
            tokio::io::copy(&mut far_read, &mut near_write).await.ok();
        });
    });
    (address, tasks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_stream_does_not_stand_behind_what_many_streams_have_queued() {
    const WRITERS: usize = 16;
    const BYTES_A_SECOND: u64 = 200_000;
    let site = Site::new(Over::Tcp, 64).await;
    let (address, _relay) = slow_relay(site.address(), BYTES_A_SECOND);
    let (near, far) = site.connected_by(address).await;
    let mut control = near.open(Urgency::Control).await.unwrap();
    let mut heard = far.accept(Urgency::Control).await.unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..WRITERS {
        let mut stream = near.open(Urgency::Bulk).await.unwrap();
        let mut read = far.accept(Urgency::Bulk).await.unwrap();
        tasks.spawn(async move {
            let bytes = vec![7; 65_536];
            while stream.write.write_all(&bytes).await.is_ok() {}
        });
        tasks.spawn(async move {
            let mut bytes = vec![0; 65_536];
            while read.read.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
        });
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let clock = Clock::start(BUILD_TIME);
        let asked = clock.now();
        control.write.write_all(b"?").await.unwrap();
        timeout(SOON, heard.read.read_u8()).await.unwrap().unwrap();
        slowest = slowest.max(clock.now().since(asked));
    }
    // What one frame of each writer takes alone; unbounded queues are ten times that.
    let one_round = Duration::from_millis(u64::try_from(WRITERS).unwrap() * 16_384 * 1_000 / BYTES_A_SECOND);
    assert!(slowest < one_round, "{slowest:?}");
}

#[tokio::test]
async fn a_line_that_breaks_is_a_reset() {
    let site = Site::new(Over::Tcp, 8).await;
    let (address, relay) = slow_relay(site.address(), 1_000_000);
    let (near, far) = site.connected_by(address).await;
    drop(relay);
    for transport in [near, far] {
        let reason = timeout(SOON, transport.closed()).await.unwrap();
        assert!(matches!(reason, TransportClosed::Reset), "{reason:?}");
    }
}

#[tokio::test]
async fn dropping_a_transport_tells_the_other_side() {
    let site = Site::new(Over::Tcp, 8).await;
    let (near, far) = site.connected().await;
    drop(near);
    let reason = timeout(SOON, far.closed()).await.unwrap();
    assert!(matches!(reason, TransportClosed::ByPeer { .. }), "{reason:?}");
}
