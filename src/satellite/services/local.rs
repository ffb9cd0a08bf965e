//! Connections to the programs of published services. A definition's address is all that is ever
//! connected to; nothing that comes over the tunnel has a part in it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::contract::service::{LocalAddress, ServiceDefinition};
use crate::process::clock::Clock;
use crate::wire::proxy_header;

/// Silence after which the system asks whether the local program's host is still there: a device in the
/// box's network may vanish without a word.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Pause before a Unix socket whose queue is full is asked again: unlike TCP, it does not wait by itself.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(20);

/// Why a service's program was not reached. Its address is in the box's own log alone.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    /// It did not answer in time.
    #[error("its program did not answer within {} ms; is it overloaded, or its host down?", .within.as_millis())]
    TimedOut {
        /// The limit.
        within: Duration,
    },
    /// It refused.
    #[error("its program refused the connection; is it running on this box?")]
    Refused(#[source] io::Error),
    /// There is no such socket.
    #[error("its program's socket is not there; is it running on this box?")]
    NoSocket(#[source] io::Error),
    /// The socket does not let us in.
    #[error("its program's socket does not let the satellite in; check the socket's owner and mode")]
    Denied(#[source] io::Error),
    /// Anything else.
    #[error("its program cannot be reached")]
    Failed(#[source] io::Error),
}

/// A connection to a service's program.
#[derive(Debug)]
pub(super) enum LocalStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection whose bytes are relayed. Unless it has come to its end its program sees an abort when it is
/// dropped, also where the tunnel has ended or the satellite stops, and never takes a cut upload for a whole one.
/// A Unix socket can only be closed.
#[derive(Debug)]
pub(super) struct Relayed {
    pub(super) stream: LocalStream,
    finished: bool,
}

impl Relayed {
    pub(super) const fn new(stream: LocalStream) -> Self {
        Self {
            stream,
            finished: false,
        }
    }

    /// Both directions have come to their end.
    pub(super) fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        if !self.finished
            && let LocalStream::Tcp(stream) = &self.stream
            && let Err(error) = stream.set_zero_linger()
        {
            tracing::debug!(%error, "a local connection is closed instead of reset");
        }
    }
}

/// Connects, and says for whom where the service wants that.
pub(super) async fn connect(
    service: &ServiceDefinition,
    source: Option<SocketAddr>,
    within: Duration,
    clock: &Clock,
) -> Result<LocalStream, ConnectError> {
    let connected = async {
        let mut stream = open(&service.address, clock).await?;
        if service.proxy_protocol {
            let header = proxy_header(source, stream.destination());
            stream.write_all(&header).await.map_err(ConnectError::of)?;
        }
        Ok(stream)
    };
    tokio::time::timeout(within, connected)
        .await
        .map_err(|_| ConnectError::TimedOut { within })?
}

async fn open(address: &LocalAddress, clock: &Clock) -> Result<LocalStream, ConnectError> {
    match address {
        LocalAddress::Ip(address) => tcp(*address).await,
        LocalAddress::Localhost(port) => match tcp((Ipv4Addr::LOCALHOST, *port).into()).await {
            Err(ConnectError::Refused(refused)) => tcp((Ipv6Addr::LOCALHOST, *port).into())
                .await
                // A box without IPv6 would only say so.
                .map_err(|_| ConnectError::Refused(refused)),
            other => other,
        },
        LocalAddress::Socket(path) => loop {
            match UnixStream::connect(path).await {
                Ok(stream) => return Ok(LocalStream::Unix(stream)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    clock.sleep_until(clock.now().plus(QUEUE_FULL_PAUSE)).await;
                }
                Err(error) => return Err(ConnectError::of(error)),
            }
        },
    }
}

async fn tcp(address: SocketAddr) -> Result<LocalStream, ConnectError> {
    let stream = TcpStream::connect(address).await.map_err(ConnectError::of)?;
    // Whole chunks are written: there is nothing to wait for.
    stream.set_nodelay(true).map_err(ConnectError::of)?;
    SockRef::from(&stream)
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))
        .map_err(ConnectError::of)?;
    Ok(LocalStream::Tcp(stream))
}

impl ConnectError {
    fn of(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused(error),
            io::ErrorKind::NotFound => Self::NoSocket(error),
            io::ErrorKind::PermissionDenied => Self::Denied(error),
            _ => Self::Failed(error),
        }
    }
}

impl LocalStream {
    fn destination(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
