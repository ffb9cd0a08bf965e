//! What a tunnel needs of the connection below it: bidirectional byte streams, a way to close,
//! and the reason when it is closed. Knows no message of the tunnel and no particular transport.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use super::farewell::Farewell;
use crate::identity::tls_failure::TlsFailure;
use crate::machine::overload::UdpArrivals;

/// A future behind a pointer, as trait objects need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a tunnel runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelProtocol {
    /// QUIC over UDP.
    Quic,
    /// TLS over TCP.
    Tls,
}

impl TunnelProtocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Quic, Self::Tls];

    /// The word in reports and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tls => "tls",
        }
    }
}

/// A connection to the other side. Everything above the transport sees this alone.
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// Opens a stream. Waits while the other side allows no more of them. The other side may learn
    /// of the stream only with its first byte. Cancel safe.
    fn open(&self, urgency: Urgency) -> BoxFuture<'_, Result<ByteStream, TransportClosed>>;

    /// The next stream that the other side has opened, in the order of opening; the urgency is for
    /// what this side writes. Cancel safe: a stream is not lost when the future is dropped.
    fn accept(&self, urgency: Urgency) -> BoxFuture<'_, Result<ByteStream, TransportClosed>>;

    /// Closes at once, with all streams. What was written and not yet delivered may be lost.
    fn close(&self, code: CloseCode, reason: &str);

    /// Waits until the connection is closed, by whichever side.
    fn closed(&self) -> BoxFuture<'_, TransportClosed>;

    /// Why the connection is closed, if it is.
    fn close_reason(&self) -> Option<TransportClosed>;

    /// A number that grows whenever something of the other side's has arrived and proved
    /// authentic, acknowledgements included where the transport sees them.
    fn arrivals(&self) -> u64;

    /// What it is.
    fn protocol(&self) -> TunnelProtocol;

    /// The other side's address, an IPv4 address never in IPv6 form.
    fn remote_address(&self) -> SocketAddr;

    /// The other side's certificate, verified by the handshake; `None` for a dialer without one.
    fn peer_certificate(&self) -> Option<CertificateDer<'static>>;

    /// Whether both sides of the connection take datagrams.
    fn has_datagrams(&self) -> bool {
        false
    }

    /// Sends a datagram, which may be lost, and may displace older ones that have not left. It is
    /// never split.
    fn send_datagram(&self, _datagram: Bytes) -> Result<(), DatagramRefused> {
        Err(DatagramRefused::Unavailable)
    }

    /// Bytes of datagrams that were sent and have not left.
    fn datagrams_waiting(&self) -> usize {
        0
    }

    /// The next datagram; waits for ever where there are none. Cancel safe.
    fn receive_datagram(&self) -> BoxFuture<'_, Result<Bytes, TransportClosed>> {
        Box::pin(std::future::pending())
    }

    /// The largest packet that the path is known to take, without IP and UDP headers, where the transport
    /// finds that out.
    fn path_mtu(&self) -> Option<u16> {
        None
    }

    /// What has come to the UDP socket of this side's that serves this connection alone, and what of it the
    /// system has dropped, where that can be known.
    fn udp_arrivals(&self) -> Option<UdpArrivals> {
        None
    }

    /// Asks the other side's host whether anybody is there; the answer is whether it says that nobody is.
    /// `None` where the transport would have been told, or cannot ask.
    fn knock(&self) -> Option<BoxFuture<'static, bool>> {
        None
    }

    /// Goes on from another local port, where the transport can and this side has dialled: a router that
    /// swallows what comes from the present one may let the other through. Streams live on.
    fn change_port(&self) {}
}

/// Why a datagram was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DatagramRefused {
    /// It is larger than the path takes now.
    #[error("the datagram is larger than the path takes")]
    TooLarge,
    /// There are no datagrams, or the connection has ended.
    #[error("the connection takes no datagrams")]
    Unavailable,
}

/// Which bytes leave first when the link is the bottleneck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Before everything else: the control stream.
    Control,
    /// Content.
    Bulk,
}

/// Both directions of one stream, independent of each other.
///
/// - Shutting the write half down finishes it: the other side reads to a clean end.
/// - Dropping the write half before that aborts it: the other side reads an error.
/// - Dropping the read half before its end stops the other side, whose writes then fail.
/// - What [`Farewell::say`] was told goes with either, and reaches the other side's [`Farewell::heard`].
pub struct ByteStream {
    /// What the other side writes.
    pub read: Box<dyn AsyncRead + Send + Unpin>,
    /// What the other side reads.
    pub write: Box<dyn AsyncWrite + Send + Unpin>,
    /// Why either side gave it up.
    pub farewell: Farewell,
}

impl fmt::Debug for ByteStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByteStream(…)")
    }
}

/// Code that goes with a close, for packet captures and the other side's log. Decisions are made
/// by what the control stream said, never by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseCode(pub u32);

impl CloseCode {
    /// After a goodbye.
    pub const GOODBYE: Self = Self(0);
    /// The greeting failed or was refused.
    pub const GREETING: Self = Self(1);
    /// Nothing was heard for too long.
    pub const SILENT: Self = Self(2);
    /// The other side broke the tunnel's protocol.
    pub const PROTOCOL: Self = Self(3);
    /// The owner let the tunnel go without a word.
    pub const ABANDONED: Self = Self(4);
}

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This one.
    Ours,
    /// The other.
    Theirs,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "this side",
            Self::Theirs => "the other side",
        })
    }
}

/// Whether trying again can help without anybody changing anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// Yes: a loss, a restart, a limit.
    Retryable,
    /// No: a certificate, a version. Worth a slow retry and a word to the operator.
    Permanent,
}

/// An error of a transport's library, kept as the source.
pub type TransportCause = Arc<dyn Error + Send + Sync>;

/// Why a connection is closed.
#[derive(Debug, Clone, Error)]
pub enum TransportClosed {
    /// The other side's program closed it.
    #[error("the other side closed the connection with code {code}: {reason}")]
    ByPeer {
        /// Its code.
        code: u64,
        /// Its text, shortened.
        reason: String,
    },
    /// This side closed it.
    #[error("this side closed the connection")]
    ByUs,
    /// Nothing arrived within the transport's own limit.
    #[error("nothing arrived from the other side for the connection's idle limit; check the network between")]
    TimedOut,
    /// The other side no longer knows the connection.
    #[error("the other side no longer knows the connection, as after a restart")]
    Reset,
    /// The other side takes no connections now.
    #[error("the other side takes no new connections at the moment; it will be tried again")]
    Busy,
    /// The TLS handshake failed.
    #[error("{found_by} ended the TLS handshake")]
    Tls {
        /// Which side did not go on.
        found_by: Side,
        /// Why, as far as this side can know.
        #[source]
        failure: TlsFailure,
    },
    /// No common version of the transport.
    #[error("the other side speaks no version of the transport that this build knows; update the older one")]
    UnsupportedVersion,
    /// The transport's own protocol was broken.
    #[error("{found_by} found the connection's protocol broken")]
    Protocol {
        /// Which side found it.
        found_by: Side,
        /// The library's words.
        #[source]
        cause: TransportCause,
    },
}

impl TransportClosed {
    /// Whether a new connection may fare better.
    pub fn outlook(&self) -> Outlook {
        match self {
            Self::ByPeer { .. }
            | Self::ByUs
            | Self::TimedOut
            | Self::Reset
            | Self::Busy
            | Self::Protocol { .. } => Outlook::Retryable,
            Self::Tls { failure, .. } if failure.may_pass() => Outlook::Retryable,
            Self::Tls { .. } | Self::UnsupportedVersion => Outlook::Permanent,
        }
    }
}
