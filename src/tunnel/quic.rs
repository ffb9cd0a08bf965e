//! QUIC as the tunnel's transport (quinn, which no other module of the crate names).
//!
//! One endpoint per socket dials and listens. Connections without a client certificate may hold
//! few streams; the limit is raised once the handshake has shown a certificate.

mod closed;
mod send_window;
mod stream;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{IdleTimeout, MtuDiscoveryConfig, SendDatagramError, VarInt};
use rustls::pki_types::CertificateDer;
use send_window::SendWindow;
use stream::byte_stream;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::closed::{closed, dial_failed};
use super::connection::{DEFAULT_MAX_STREAMS, TunnelSettings};
use super::transport::{
    BoxFuture, ByteStream, CloseCode, DatagramRefused, Outlook, Transport, TransportCause, TransportClosed,
    TunnelProtocol, Urgency,
};
use super::udp_socket::{self, udp_socket};
use crate::base::limit::foreign_text;
use crate::identity::tls_failure::FailureRecord;
use crate::machine::overload::UdpArrivals;
use crate::wire::TUNNEL_ALPN;

/// Silence that ends a connection by itself. Liveness decides earlier where it runs; this bounds
/// what nobody watches any more. QUIC takes the shorter of both sides' values; earlier builds say 30 s, and
/// are not silent for longer than 25 s.
const IDLE_TIMEOUT_MILLIS: u32 = 75_000;

/// Time in which a handshake must be done, on either side: some round trips of a satellite link
/// with losses. A bridge that does not answer costs the dialer this long.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of one stream that may be on the way or unread, unless the settings say more: 200 Mbit/s at 100 ms
/// round trip. A lost packet holds the stream up for two more, so where packets are lost it is a third of that.
pub const STREAM_WINDOW_BYTES: u32 = 2_621_440;

/// Streams whose whole windows a connection takes in at once, in number: 80 MiB of the windows above. It bounds what a peer
/// can make this side hold. So many readers must stand still at once before they are felt by others;
/// acknowledgements pass even then, so that the tunnel lives.
pub const WHOLE_WINDOWS_MAX: u32 = 32;

/// Datagrams of a connection that wait, each way, in bytes; older ones give way. 20 ms at 100 Mbit/s:
/// more would only make packets late.
const DATAGRAM_BUFFER_BYTES: usize = 256 * 1024;

/// Streams that a connection without a client certificate may hold, the control stream aside:
/// accept and enroll, each with one retry.
pub const BOOTSTRAP_MAX_STREAMS: u32 = 4;

/// The control stream, which counts as a stream of the transport.
const CONTROL_STREAMS: u32 = 1;

/// Priority of the control stream's bytes; content has 0.
const CONTROL_PRIORITY: i32 = 1;

/// Handshakes under way, in number, above which a dialer must first prove its address by a round
/// trip (QUIC Retry): far above any honest rush on one bridge, far below what forged source
/// addresses can start.
pub(super) const RETRY_ABOVE_HANDSHAKES: usize = 64;

/// Handshakes under way, in number, above which further dialers are told to come later. Each
/// costs up to 100 KiB and a signature.
pub(super) const MAX_HANDSHAKES: usize = 256;

/// Dialers before their handshake, in number: those that have been let in, and some more that wait
/// to be turned away. Beyond it quinn ignores them, and they time out.
const MAX_WAITING: usize = MAX_HANDSHAKES + 64;

/// Bytes that such a dialer may send meanwhile, each and all together.
const WAITING_BYTES: u64 = 16 * 1024;
const WAITING_BYTES_TOTAL: u64 = 2 * 1024 * 1024;

/// Datagram size that every network carries (RFC 9000, section 14). The path's own is found by probing, and
/// a black hole that opens later brings it back to this.
pub const MIN_MTU_BYTES: u16 = 1_200;

/// The largest that is looked for: Ethernet's 1,500 without the headers of IPv6 and UDP.
pub const MAX_MTU_BYTES: u16 = 1_452;

/// Why no socket can be used.
#[derive(Debug, Error)]
pub enum BindError {
    /// The system refuses the address.
    #[error(
        "UDP address {address} cannot be used; is another process listening there, and does this host have the address?"
    )]
    Socket {
        /// The address.
        address: SocketAddr,
        /// Its reason.
        #[source]
        source: io::Error,
    },
    /// The TLS configuration has no cipher suite that QUIC starts with.
    #[error("the TLS configuration cannot be used for QUIC; it must allow TLS 1.3 with AES-128-GCM")]
    Tls(#[source] TransportCause),
}

/// Why a connection could not be dialled.
#[derive(Debug, Error)]
pub enum DialError {
    /// The handshake did not complete in time.
    #[error(
        "{address} did not complete a QUIC handshake within {} s; is UDP to it allowed on the way?",
        .within.as_secs()
    )]
    TimedOut {
        /// Whom.
        address: SocketAddr,
        /// The limit.
        within: Duration,
    },
    /// The connection was closed during the handshake.
    #[error("no connection to {address}")]
    Closed {
        /// Whom.
        address: SocketAddr,
        /// Why.
        #[source]
        reason: TransportClosed,
    },
    /// It was not even tried.
    #[error("{address} with the name `{server_name}` cannot be dialled")]
    Unusable {
        /// Whom.
        address: SocketAddr,
        /// The name that its certificate should have.
        server_name: String,
        /// The library's reason.
        #[source]
        cause: TransportCause,
    },
    /// The TLS configuration has no cipher suite that QUIC starts with.
    #[error("the TLS configuration cannot be used for QUIC; it must allow TLS 1.3 with AES-128-GCM")]
    Tls(#[source] TransportCause),
}

impl DialError {
    /// Whether another attempt may fare better.
    pub fn outlook(&self) -> Outlook {
        match self {
            Self::TimedOut { .. } => Outlook::Retryable,
            Self::Closed { reason, .. } => reason.outlook(),
            Self::Unusable { .. } | Self::Tls(_) => Outlook::Permanent,
        }
    }
}

/// What an endpoint takes of the other sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuicSettings {
    /// Streams that another side may hold open at once once it has shown a certificate.
    pub max_streams: u32,
    /// Bytes of one stream that may be on the way to this side or unread.
    pub stream_window: u32,
}

impl Default for QuicSettings {
    fn default() -> Self {
        Self {
            max_streams: DEFAULT_MAX_STREAMS,
            stream_window: STREAM_WINDOW_BYTES,
        }
    }
}

impl From<&TunnelSettings> for QuicSettings {
    fn from(settings: &TunnelSettings) -> Self {
        Self {
            max_streams: settings.max_streams,
            stream_window: settings.stream_window,
        }
    }
}

/// A UDP socket that dials, and listens if it was given a server's TLS configuration.
#[derive(Debug, Clone)]
pub struct QuicEndpoint {
    endpoint: quinn::Endpoint,
    settings: QuicSettings,
    handshakes: Arc<Semaphore>,
    /// Whether it is for one connection, which may then take it to another port.
    single: bool,
}

impl QuicEndpoint {
    /// An endpoint that only dials, on a port of the system's choice, for IPv6 and IPv4 where the
    /// host has both.
    pub fn client(settings: QuicSettings) -> Result<Self, BindError> {
        Ok(Self {
            single: true,
            ..Self::shared_client(settings)?
        })
    }

    /// The same for many connections at once: none of them takes the others to another port.
    pub fn shared_client(settings: QuicSettings) -> Result<Self, BindError> {
        Self::bind((std::net::Ipv6Addr::UNSPECIFIED, 0).into(), None, settings)
    }

    /// An endpoint that listens. `[::]` listens on IPv4 too.
    pub fn server(
        address: SocketAddr,
        tls: rustls::ServerConfig,
        settings: QuicSettings,
    ) -> Result<Self, BindError> {
        Self::bind(address, Some(server_config(tls, settings)?), settings)
    }

    /// An endpoint that has its address and takes nobody before [`serve`](Self::serve).
    pub fn unserved(address: SocketAddr, settings: QuicSettings) -> Result<Self, BindError> {
        Self::bind(address, None, settings)
    }

    /// Takes dialers by this configuration from now on; those that are in stay.
    pub fn serve(&self, tls: rustls::ServerConfig) -> Result<(), BindError> {
        self.endpoint
            .set_server_config(Some(server_config(tls, self.settings)?));
        Ok(())
    }

    fn bind(
        address: SocketAddr,
        server: Option<quinn::ServerConfig>,
        settings: QuicSettings,
    ) -> Result<Self, BindError> {
        let failed = |source| BindError::Socket { address, source };
        let socket = udp_socket(address).map_err(failed)?;
        let endpoint = quinn::Endpoint::new(
            quinn::EndpointConfig::default(),
            server,
            socket,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(failed)?;
        Ok(Self {
            endpoint,
            settings,
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            single: false,
        })
    }

    /// Connects within [`HANDSHAKE_TIMEOUT`]. `server_name` is what the certificate is checked for;
    /// `failures` is the record that `tls` was made with, whose verdict the error takes over.
    pub async fn dial(
        &self,
        address: SocketAddr,
        server_name: &str,
        tls: rustls::ClientConfig,
        failures: &FailureRecord,
    ) -> Result<Arc<dyn Transport>, DialError> {
        let config = client_config(tls, self.settings)?;
        let connecting = self
            .endpoint
            .connect_with(config, address, server_name)
            .map_err(|error| DialError::Unusable {
                address,
                server_name: foreign_text(server_name),
                cause: Arc::new(error),
            })?;
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok(Arc::new(QuicTransport::new(
                connection,
                self.single.then(|| self.endpoint.clone()),
            ))),
            Ok(Err(error)) => Err(DialError::Closed {
                address,
                reason: dial_failed(error, failures),
            }),
            Err(_) => Err(DialError::TimedOut {
                address,
                within: HANDSHAKE_TIMEOUT,
            }),
        }
    }

    /// The next dialer that may go on; `None` after [`close`](Self::close). Under a rush, dialers
    /// prove their address first, and the last are turned away. Cancel safe.
    pub async fn accept(&self) -> Option<IncomingConnection> {
        loop {
            let incoming = self.endpoint.accept().await?;
            let under_way = MAX_HANDSHAKES - self.handshakes.available_permits();
            if under_way >= RETRY_ABOVE_HANDSHAKES
                && incoming.may_retry()
                && !incoming.remote_address_validated()
            {
                if let Err(error) = incoming.retry() {
                    error.into_incoming().refuse();
                }
                continue;
            }
            match Arc::clone(&self.handshakes).try_acquire_owned() {
                Ok(permit) => {
                    return Some(IncomingConnection {
                        incoming,
                        settings: self.settings,
                        _permit: permit,
                    });
                }
                Err(_) => incoming.refuse(),
            }
        }
    }

    /// The address in use, its port chosen by the system where none was asked for.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr().map(canonical)
    }

    /// Ends all connections and takes no more.
    pub fn close(&self) {
        self.endpoint
            .close(VarInt::from_u32(CloseCode::GOODBYE.0), b"the endpoint stops");
    }

    /// Waits until the last close has been delivered or has timed out.
    pub async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }
}

/// A dialer before its handshake. Dropping it refuses.
#[derive(Debug)]
pub struct IncomingConnection {
    incoming: quinn::Incoming,
    settings: QuicSettings,
    _permit: OwnedSemaphorePermit,
}

impl IncomingConnection {
    /// Where the dialer is, or claims to be.
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.incoming.remote_address())
    }

    /// Whether the dialer has proved that it receives at its address.
    pub fn address_proved(&self) -> bool {
        self.incoming.remote_address_validated()
    }

    /// Carries the handshake out, within [`HANDSHAKE_TIMEOUT`]. Run it beside the accept loop.
    pub async fn handshake(self) -> Result<Arc<dyn Transport>, TransportClosed> {
        let connecting = self.incoming.accept().map_err(closed)?;
        let connection = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
            .await
            .map_err(|_| TransportClosed::TimedOut)?
            .map_err(closed)?;
        let transport = QuicTransport::new(connection, None);
        if transport.peer_certificate().is_some() {
            let streams = self.settings.max_streams.max(BOOTSTRAP_MAX_STREAMS);
            let connection = &transport.connection;
            connection.set_receive_window(receive_window(streams, self.settings.stream_window));
            connection.set_max_concurrent_bi_streams(stream_limit(streams));
        }
        Ok(Arc::new(transport))
    }
}

#[derive(Debug)]
struct QuicTransport {
    connection: quinn::Connection,
    /// The socket, where this side has dialled from one of its own.
    dialled_from: Option<quinn::Endpoint>,
    window: Arc<SendWindow>,
}

impl QuicTransport {
    fn new(connection: quinn::Connection, dialled_from: Option<quinn::Endpoint>) -> Self {
        let window = Arc::new(SendWindow::new(connection.clone()));
        Self {
            connection,
            dialled_from,
            window,
        }
    }
}

impl Transport for QuicTransport {
    fn open(&self, urgency: Urgency) -> BoxFuture<'_, Result<ByteStream, TransportClosed>> {
        Box::pin(async move {
            let halves = self.connection.open_bi().await.map_err(closed)?;
            Ok(byte_stream(urgency, halves, &self.window))
        })
    }

    fn accept(&self, urgency: Urgency) -> BoxFuture<'_, Result<ByteStream, TransportClosed>> {
        Box::pin(async move {
            let halves = self.connection.accept_bi().await.map_err(closed)?;
            Ok(byte_stream(urgency, halves, &self.window))
        })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.connection.close(VarInt::from_u32(code.0), reason.as_bytes());
    }

    fn closed(&self) -> BoxFuture<'_, TransportClosed> {
        Box::pin(async { closed(self.connection.closed().await) })
    }

    fn close_reason(&self) -> Option<TransportClosed> {
        self.connection.close_reason().map(closed)
    }

    fn arrivals(&self) -> u64 {
        // Frames, not datagrams: these have passed decryption.
        let frames = self.connection.stats().frame_rx;
        [
            frames.acks,
            frames.stream,
            frames.ping,
            frames.max_data,
            frames.max_stream_data,
            frames.datagram,
        ]
        .into_iter()
        .fold(0, u64::wrapping_add)
    }

    fn protocol(&self) -> TunnelProtocol {
        TunnelProtocol::Quic
    }

    fn remote_address(&self) -> SocketAddr {
        canonical(self.connection.remote_address())
    }

    fn change_port(&self) {
        let Some(endpoint) = &self.dialled_from else {
            return;
        };
        let any = (std::net::Ipv6Addr::UNSPECIFIED, 0).into();
        match udp_socket(any).and_then(|socket| endpoint.rebind(socket)) {
            Ok(()) => tracing::debug!("nothing comes back; going on from another UDP port"),
            Err(error) => tracing::debug!(%error, "no other UDP port to be had"),
        }
    }

    fn path_mtu(&self) -> Option<u16> {
        Some(self.connection.stats().path.current_mtu)
    }

    fn udp_arrivals(&self) -> Option<UdpArrivals> {
        let port = self.dialled_from.as_ref()?.local_addr().ok()?.port();
        Some(UdpArrivals {
            taken: self.connection.stats().udp_rx.datagrams,
            dropped: udp_socket::dropped(port)?,
        })
    }

    fn knock(&self) -> Option<BoxFuture<'static, bool>> {
        self.dialled_from.as_ref()?;
        let address = self.remote_address();
        Some(Box::pin(async move {
            udp_socket::is_shut(address).await.unwrap_or_else(|error| {
                tracing::debug!(%address, %error, "the host-bridge's host cannot be asked");
                false
            })
        }))
    }

    fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        let identity = self.connection.peer_identity()?;
        let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        chain.into_iter().next()
    }

    fn has_datagrams(&self) -> bool {
        self.connection.max_datagram_size().is_some()
    }

    fn send_datagram(&self, datagram: Bytes) -> Result<(), DatagramRefused> {
        self.connection
            .send_datagram(datagram)
            .map_err(|error| match error {
                SendDatagramError::TooLarge => DatagramRefused::TooLarge,
                SendDatagramError::UnsupportedByPeer
                | SendDatagramError::Disabled
                | SendDatagramError::ConnectionLost(_) => DatagramRefused::Unavailable,
            })
    }

    fn datagrams_waiting(&self) -> usize {
        DATAGRAM_BUFFER_BYTES.saturating_sub(self.connection.datagram_send_buffer_space())
    }

    fn receive_datagram(&self) -> BoxFuture<'_, Result<Bytes, TransportClosed>> {
        Box::pin(async { self.connection.read_datagram().await.map_err(closed) })
    }
}

fn server_config(
    mut tls: rustls::ServerConfig,
    settings: QuicSettings,
) -> Result<quinn::ServerConfig, BindError> {
    tls.alpn_protocols = vec![TUNNEL_ALPN.to_vec()];
    // No 0-RTT: a replayed accept must not reach the registry.
    tls.max_early_data_size = 0;
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| BindError::Tls(Arc::new(error)))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = transport_config(QuicSettings {
        max_streams: BOOTSTRAP_MAX_STREAMS,
        ..settings
    });
    // Strangers get no more than they need, however large the windows of satellites are.
    transport.receive_window(receive_window(BOOTSTRAP_MAX_STREAMS, STREAM_WINDOW_BYTES));
    config
        .transport_config(Arc::new(transport))
        .max_incoming(MAX_WAITING)
        .incoming_buffer_size(WAITING_BYTES)
        .incoming_buffer_size_total(WAITING_BYTES_TOTAL);
    Ok(config)
}

fn client_config(
    mut tls: rustls::ClientConfig,
    settings: QuicSettings,
) -> Result<quinn::ClientConfig, DialError> {
    tls.alpn_protocols = vec![TUNNEL_ALPN.to_vec()];
    tls.enable_early_data = false;
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| DialError::Tls(Arc::new(error)))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport_config(settings)));
    Ok(config)
}

fn transport_config(settings: QuicSettings) -> quinn::TransportConfig {
    let QuicSettings {
        max_streams,
        stream_window,
    } = settings;
    let mut config = quinn::TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MILLIS))))
        // The tunnel pings, at a pace that depends on its streams.
        .keep_alive_interval(None)
        .max_concurrent_bidi_streams(stream_limit(max_streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(stream_window))
        .receive_window(receive_window(max_streams, stream_window))
        .min_mtu(MIN_MTU_BYTES)
        .initial_mtu(MIN_MTU_BYTES)
        .mtu_discovery_config(Some(mtu_discovery()))
        .send_window(send_window::INITIAL_BYTES)
        // Loss is no sign of congestion on the links of edge boxes: radio, DSL. What the path delivers is.
        .congestion_controller_factory(Arc::new(quinn::congestion::BbrConfig::default()))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES);
    config
}

fn mtu_discovery() -> MtuDiscoveryConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MAX_MTU_BYTES);
    discovery
}

fn stream_limit(max_streams: u32) -> VarInt {
    VarInt::from_u32(max_streams.saturating_add(CONTROL_STREAMS))
}

/// Room for all streams at once, up to a bound. Less would save memory, but a few readers that stand still
/// could then use it up, and with it silence the control stream and all others.
fn receive_window(max_streams: u32, stream_window: u32) -> VarInt {
    let streams = u64::from(max_streams.min(WHOLE_WINDOWS_MAX).saturating_add(CONTROL_STREAMS));
    VarInt::from_u64(streams * u64::from(stream_window)).unwrap_or(VarInt::MAX)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
