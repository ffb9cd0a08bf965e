//! The serving end: streams that give, take or echo.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use powernode_satellite::base::id::SessionId;
use powernode_satellite::process::clock::{BUILD_TIME, Clock};
use powernode_satellite::tunnel::quic::{QuicEndpoint, QuicSettings};
use powernode_satellite::tunnel::tcp::{self, TcpSettings};
use powernode_satellite::tunnel::transport::Transport;
use powernode_satellite::tunnel::{Tunnel, TunnelSettings};
use powernode_satellite::wire::Welcome;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::Carrier;
use crate::credentials::Credentials;

/// Gives bytes until the other side has enough.
pub const GIVE: u8 = b'G';
/// Takes bytes to their end and answers with their number.
pub const TAKE: u8 = b'T';
/// Gives back what it gets.
pub const ECHO: u8 = b'E';

/// Streams at once.
pub const STREAMS_MAX: u32 = 256;

/// One write or read.
pub const CHUNK_BYTES: usize = 64 * 1024;

pub fn run(carrier: Carrier, directory: &Path, ip: IpAddr) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        match carrier {
            Carrier::Tcp | Carrier::Ssh => tcp(ip).await,
            Carrier::Tls => tls(directory, ip).await,
            Carrier::Quic => quic(directory, ip).await,
        }
    });
}

async fn tcp(ip: IpAddr) {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        tokio::spawn(serve(stream));
    }
}

async fn quic(directory: &Path, ip: IpAddr) {
    let settings = QuicSettings {
        max_streams: STREAMS_MAX,
        ..QuicSettings::default()
    };
    let tls = Credentials::of(directory, "server").server();
    let endpoint = QuicEndpoint::server(SocketAddr::new(ip, 0), tls, settings).unwrap();
    println!("{}", endpoint.local_address().unwrap());
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move { tunnel(incoming.handshake().await.unwrap()).await });
    }
}

async fn tls(directory: &Path, ip: IpAddr) {
    let settings = TcpSettings {
        max_streams: STREAMS_MAX,
    };
    let acceptor = TlsAcceptor::from(Arc::new(Credentials::of(directory, "server").server()));
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    loop {
        let (stream, remote) = listener.accept().await.unwrap();
        tcp::tune(&stream);
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let stream = acceptor.accept(stream).await.unwrap();
            tunnel(tcp::accept(stream, remote, settings)).await;
        });
    }
}

async fn tunnel(transport: Arc<dyn Transport>) {
    let settings = TunnelSettings {
        max_streams: STREAMS_MAX,
        ..TunnelSettings::default()
    };
    let welcome = Welcome {
        session: SessionId::from_uuid(uuid::Uuid::from_u128(1)),
        agent: "bench".into(),
        keepalive_millis: 20_000,
        max_streams: STREAMS_MAX,
        observed_address: String::new(),
        unix_seconds: 0,
        features: Vec::new(),
    };
    let clock = Clock::start(BUILD_TIME);
    let (tunnel, _, driver) = Tunnel::accept(transport, settings, clock, |_| Ok(welcome))
        .await
        .unwrap();
    tokio::spawn(driver.run());
    while let Ok(stream) = tunnel.accept_stream().await {
        tokio::spawn(async move {
            if let Ok(stream) = stream.accept().await {
                serve(stream).await;
            }
        });
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let mut buffer = vec![0; CHUNK_BYTES];
    match stream.read_u8().await {
        Ok(GIVE) => while stream.write_all(&buffer).await.is_ok() {},
        Ok(TAKE) => {
            let mut taken = 0_u64;
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                taken += count as u64;
            }
            let _ = stream.write_u64(taken).await;
            let _ = stream.shutdown().await;
        }
        Ok(ECHO) => {
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            let _ = stream.shutdown().await;
        }
        _ => {}
    }
}
