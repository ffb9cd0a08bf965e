//! TLS 1.3 over TCP as the tunnel's transport, for networks that swallow UDP (yamux, which no
//! module outside of this directory names).
//!
//! Why yamux: HTTP/2, the other multiplexer that is well kept, lets one side alone open streams,
//! and here both do. Yamux resets a stream in both directions at once, lets a reset read as an
//! end, and has no word for "I read no further". So each direction of a stream is a yamux stream
//! of its own, which only its opener writes: its end is a finish, its reset by the writer an abort,
//! and its reset by the reader a stop, each independent of the other direction; the [reason](ends) of
//! either goes with it. The first frame
//! says what a yamux stream is: a direction that opens a stream, one that answers it, or the close
//! of the connection with code and text.
//!
//! Windows are per stream, so a reader that stands still hinders nobody else. What must leave
//! first goes around the [`gate`]. All of it shares one TCP connection: a lost packet delays every
//! stream, which is why QUIC is tried first.

mod ends;
mod gate;
mod half;
mod link;
mod task;

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::{TlsConnector, server};

use self::ends::Ends;
use self::gate::Gate;
use self::half::{Incoming, byte_stream};
use self::link::Link;
use self::task::{Arrived, Opening, Task};
use super::connection::DEFAULT_MAX_STREAMS;
use super::transport::{
    BoxFuture, ByteStream, CloseCode, Side, Transport, TransportClosed, TunnelProtocol, Urgency,
};
use crate::base::limit::foreign_text;
use crate::identity::tls_failure::{FailureRecord, TlsFailure, explain_tls_failure};
use crate::process::connection::BoxedConnection;
use crate::wire::TUNNEL_ALPN;

/// Time in which the TLS handshake must be done, as over QUIC.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Streams that a connection without a client certificate may hold, as over QUIC.
pub const BOOTSTRAP_MAX_STREAMS: u32 = super::quic::BOOTSTRAP_MAX_STREAMS;

/// Content of one frame, in bytes: with its head it fills one TLS record.
const FRAME_BODY_BYTES: usize = 16 * 1024 - link::HEAD_BYTES;

/// Content that the TLS session holds back for the socket, in bytes: one record.
const TLS_BUFFER_BYTES: usize = 16 * 1024;

/// Content that the system holds unsent before it takes no more, in bytes. What is sent and not
/// acknowledged does not count, so throughput does not suffer; a ping waits behind this much.
const UNSENT_BYTES: u32 = 16 * 1024;

/// Most streams of a connection that each side may open, whatever the settings allow; further ones
/// wait. Each may hold [`FIRST_WINDOW_BYTES`] unread, and all of them must count in 32 bits.
const STREAMS_MAX: u32 = 1_024;

/// Unread content of one stream, in bytes, that yamux allows from the start.
pub(super) const FIRST_WINDOW_BYTES: usize = 256 * 1024;

/// By how much the windows of all streams together may grow beyond that, in bytes: yamux doubles
/// them where a stream is faster than its window. One stream with all of it has 1.3 Gbit/s at
/// 100 ms.
const WINDOW_GROWTH_BYTES: usize = 16 * 1024 * 1024;

/// Time without an acknowledgement after which the system gives a connection up, as QUIC's idle
/// timeout. The tunnel's own liveness is quicker where it runs.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause before the system asks whether an idle connection is still there. The tunnel pings more
/// often; this frees what nobody watches any more.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// What a connection takes of the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpSettings {
    /// Streams that the other side may hold open at once once it has shown a certificate.
    pub max_streams: u32,
}

impl Default for TcpSettings {
    fn default() -> Self {
        Self {
            max_streams: DEFAULT_MAX_STREAMS,
        }
    }
}

/// Prepares a TCP socket for a tunnel. What the system refuses is done without.
pub fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(TCP_KEEPALIVE);
    let done = [
        ("TCP_NODELAY", socket.set_tcp_nodelay(true)),
        ("SO_KEEPALIVE", socket.set_tcp_keepalive(&keepalive)),
        #[cfg(target_os = "linux")]
        (
            "TCP_USER_TIMEOUT",
            socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT)),
        ),
        #[cfg(target_os = "linux")]
        ("TCP_NOTSENT_LOWAT", socket.set_tcp_notsent_lowat(UNSENT_BYTES)),
    ];
    for (option, done) in done {
        if let Err(error) = done {
            tracing::debug!(option, %error, "a TCP socket keeps the system's setting");
        }
    }
}

/// The dialer's side: shakes hands over `io` within [`HANDSHAKE_TIMEOUT`]. `server_name` is what
/// the certificate is checked for; `failures` is the record that `tls` was made with, whose
/// verdict the error takes over.
pub async fn connect(
    io: BoxedConnection,
    remote: SocketAddr,
    server_name: ServerName<'static>,
    mut tls: rustls::ClientConfig,
    failures: &FailureRecord,
    settings: TcpSettings,
) -> Result<Arc<dyn Transport>, TransportClosed> {
    tls.alpn_protocols = vec![TUNNEL_ALPN.to_vec()];
    tls.enable_early_data = false;
    let shaken = TlsConnector::from(Arc::new(tls)).connect(server_name, io);
    let mut stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, shaken).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(handshake_failed(&error, failures.take())),
        Err(_) => return Err(TransportClosed::TimedOut),
    };
    let (_, session) = stream.get_mut();
    if session.alpn_protocol() != Some(TUNNEL_ALPN) {
        return Err(TransportClosed::Tls {
            found_by: Side::Ours,
            failure: TlsFailure::Incompatible {
                detail: "the server does not speak the tunnel's protocol at this port".to_owned(),
            },
        });
    }
    session.set_buffer_limit(Some(TLS_BUFFER_BYTES));
    let certificate = first_certificate(session.peer_certificates());
    let mode = yamux::Mode::Client;
    Ok(transport(stream, mode, remote, certificate, settings))
}

/// The listener's side, after a handshake that has chosen [`TUNNEL_ALPN`].
pub fn accept(
    mut stream: server::TlsStream<TcpStream>,
    remote: SocketAddr,
    settings: TcpSettings,
) -> Arc<dyn Transport> {
    let (_, session) = stream.get_mut();
    session.set_buffer_limit(Some(TLS_BUFFER_BYTES));
    let certificate = first_certificate(session.peer_certificates());
    let max_streams = match certificate {
        Some(_) => settings.max_streams.max(BOOTSTRAP_MAX_STREAMS),
        None => BOOTSTRAP_MAX_STREAMS,
    };
    let settings = TcpSettings { max_streams };
    transport(stream, yamux::Mode::Server, remote, certificate, settings)
}

/// Whether a finished handshake is for a tunnel.
pub fn is_tunnel(stream: &server::TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(TUNNEL_ALPN)
}

/// What a failed handshake of a listener means.
pub fn accept_failed(error: &io::Error) -> TransportClosed {
    handshake_failed(error, None)
}

fn first_certificate(chain: Option<&[CertificateDer<'_>]>) -> Option<CertificateDer<'static>> {
    chain?.first().map(|first| first.clone().into_owned())
}

fn transport<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    tls: T,
    mode: yamux::Mode,
    remote: SocketAddr,
    certificate: Option<CertificateDer<'static>>,
    settings: TcpSettings,
) -> Arc<dyn Transport> {
    let shared = Arc::new(Shared::default());
    // An opener gives a stream's place back when it has let it go, and may open the next before
    // the accepting side has let go as well: twice the number does for both.
    let places = 2 * stream_count(settings.max_streams);
    let config = multiplexer_config(places);
    let connection = yamux::Connection::new(Link::new(tls, Arc::clone(&shared)), config, mode);
    let (open, openings) = mpsc::channel(OPENINGS);
    let (arrived, accepted) = mpsc::channel(places);
    let task = Task::new(connection, Arc::clone(&shared), openings, arrived, places);
    let mut tasks = JoinSet::new();
    tasks.spawn(task.run());
    Arc::new(TcpTransport {
        shared,
        open,
        may_open: Arc::new(Semaphore::new(stream_count(STREAMS_MAX))),
        accepted: Mutex::new(accepted),
        remote: SocketAddr::new(remote.ip().to_canonical(), remote.port()),
        certificate,
        task: tasks,
    })
}

/// Streams on their way to the connection's task, in number; more wait at the channel.
const OPENINGS: usize = 8;

/// With the control stream.
fn stream_count(streams: u32) -> usize {
    usize::try_from(streams.min(STREAMS_MAX)).unwrap_or(0) + 1
}

fn multiplexer_config(places: usize) -> yamux::Config {
    // Two yamux streams for each of the other side's and each of ours, and a last word. Yamux ends
    // the connection beyond it, so it is what nobody reaches who keeps to the places.
    let streams = 2 * (places + stream_count(STREAMS_MAX)) + 1;
    let mut config = yamux::Config::default();
    config
        .set_max_connection_receive_window(None)
        .set_max_num_streams(streams)
        .set_max_connection_receive_window(Some(streams * FIRST_WINDOW_BYTES + WINDOW_GROWTH_BYTES))
        .set_split_send_size(FRAME_BODY_BYTES);
    config
}

/// What transport, task and streams share.
#[derive(Debug)]
struct Shared {
    gate: Gate,
    ends: Ends,
    arrivals: AtomicU64,
    closed: watch::Sender<Option<TransportClosed>>,
    asked: watch::Sender<Option<(u32, String)>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            gate: Gate::default(),
            ends: Ends::default(),
            arrivals: AtomicU64::new(0),
            closed: watch::Sender::new(None),
            asked: watch::Sender::new(None),
        }
    }
}

impl Shared {
    /// The first reason stays.
    fn end(&self, reason: TransportClosed) {
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert(reason);
            first
        });
    }

    fn ask_to_close(&self, code: CloseCode, reason: &str) {
        self.end(TransportClosed::ByUs);
        self.asked.send_if_modified(|asked| {
            let first = asked.is_none();
            asked.get_or_insert_with(|| (code.0, reason.to_owned()));
            first
        });
    }

    async fn asked_to_close(&self) -> (u32, String) {
        let mut asked = self.asked.subscribe();
        let asked = asked.wait_for(Option::is_some).await;
        let asked = asked.ok().and_then(|asked| asked.clone());
        asked.unwrap_or((CloseCode::ABANDONED.0, String::new()))
    }

    async fn closed(&self) -> TransportClosed {
        let mut closed = self.closed.subscribe();
        let reason = closed.wait_for(Option::is_some).await;
        let reason = reason.ok().and_then(|reason| reason.clone());
        reason.unwrap_or(TransportClosed::Reset)
    }
}

struct TcpTransport {
    shared: Arc<Shared>,
    open: mpsc::Sender<Opening>,
    may_open: Arc<Semaphore>,
    accepted: Mutex<mpsc::Receiver<Arrived>>,
    remote: SocketAddr,
    certificate: Option<CertificateDer<'static>>,
    task: JoinSet<()>,
}

impl Transport for TcpTransport {
    fn open(&self, urgency: Urgency) -> BoxFuture<'_, Result<ByteStream, TransportClosed>> {
        Box::pin(async move {
            let opened = async {
                let place = Arc::clone(&self.may_open).acquire_owned().await.ok()?;
                let (opened, stream) = oneshot::channel();
                let opening = Opening {
                    urgency,
                    place,
                    opened,
                };
                self.open.send(opening).await.ok()?;
                stream.await.ok()
            };
            tokio::select! {
                biased;
                reason = self.shared.closed() => Err(reason),
                opened = opened => match opened {
                    Some(stream) => Ok(stream),
                    None => Err(self.shared.closed().await),
                },
            }
        })
    }

    fn accept(&self, urgency: Urgency) -> BoxFuture<'_, Result<ByteStream, TransportClosed>> {
        Box::pin(async move {
            let next = async { self.accepted.lock().await.recv().await };
            tokio::select! {
                biased;
                reason = self.shared.closed() => Err(reason),
                next = next => match next {
                    Some(Arrived { read, write, place }) => {
                        Ok(byte_stream(Incoming::Open(read), write, urgency, place, &self.shared))
                    }
                    None => Err(self.shared.closed().await),
                },
            }
        })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.shared.ask_to_close(code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, TransportClosed> {
        Box::pin(self.shared.closed())
    }

    fn close_reason(&self) -> Option<TransportClosed> {
        self.shared.closed.borrow().clone()
    }

    fn arrivals(&self) -> u64 {
        self.shared.arrivals.load(Ordering::Relaxed)
    }

    fn protocol(&self) -> TunnelProtocol {
        TunnelProtocol::Tls
    }

    fn remote_address(&self) -> SocketAddr {
        self.remote
    }

    fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        self.certificate.clone()
    }
}

impl Drop for TcpTransport {
    fn drop(&mut self) {
        self.shared.ask_to_close(CloseCode::ABANDONED, "");
        // It says so to the other side and ends by itself.
        self.task.detach_all();
    }
}

impl fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpTransport")
            .field("remote", &self.remote)
            .field("closed", &self.close_reason())
            .finish_non_exhaustive()
    }
}

/// Why yamux has ended a connection.
fn closed_by(error: yamux::ConnectionError) -> TransportClosed {
    if let Some((found_by, failure)) = tls_failure(&error) {
        return TransportClosed::Tls { found_by, failure };
    }
    match io_kind(&error) {
        Some(io::ErrorKind::TimedOut) => TransportClosed::TimedOut,
        Some(
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::WriteZero,
        ) => TransportClosed::Reset,
        _ if matches!(error, yamux::ConnectionError::Closed) => TransportClosed::Reset,
        _ => TransportClosed::Protocol {
            found_by: Side::Ours,
            cause: Arc::new(error),
        },
    }
}

/// Why a handshake failed. The library tells less than our verifier's verdict, and an alert of the
/// other side's more than either.
fn handshake_failed(error: &io::Error, verdict: Option<TlsFailure>) -> TransportClosed {
    let (found_by, failure) = match (tls_failure(error), verdict) {
        (Some((Side::Theirs, failure)), _) => (Side::Theirs, failure),
        (_, Some(verdict)) => (Side::Ours, verdict),
        (Some((Side::Ours, failure)), None) => (Side::Ours, failure),
        (None, None) => match error.kind() {
            io::ErrorKind::TimedOut => return TransportClosed::TimedOut,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => return TransportClosed::Reset,
            _ => {
                let detail = foreign_text(&error.to_string());
                (Side::Ours, TlsFailure::Other { detail })
            }
        },
    };
    TransportClosed::Tls { found_by, failure }
}

/// What TLS says in an error's chain of sources, and which side found it.
fn tls_failure(error: &(dyn Error + 'static)) -> Option<(Side, TlsFailure)> {
    let tls: &rustls::Error = find(error)?;
    let found_by = match tls {
        rustls::Error::AlertReceived(_) => Side::Theirs,
        _ => Side::Ours,
    };
    Some((found_by, explain_tls_failure(tls)))
}

fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    find::<io::Error>(error).map(io::Error::kind)
}

/// The first error of a type in a chain of sources; what an [`io::Error`] wraps is one.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}
