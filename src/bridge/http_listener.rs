//! What comes in over TCP: the HTTPS listener for satellites without a tunnel, for operators with a
//! token and for visitors of services, over HTTP/2 or HTTP/1.1; and what it has in common with the
//! admin socket and the proxy. Tunnels of satellites whose networks swallow UDP come to the same port,
//! told apart by ALPN, and are handed on.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::access::{Access, InScope};
use super::attended::Attended;
use super::federation_api::{Caller, CallerCertificate};
use super::ingress::Ingress;
use super::operator_api::{OperatorApi, RequestSource};
use super::parent_calls::{CallerConnection, ParentCalls};
use super::places::{Place, Places};
use super::reply::{Reply, ReplyBody};
use super::request_body::pass_over;
use crate::base::id::NetworkId;
use crate::base::limit::HTTP_HEAD_MAX_BYTES;
use crate::base::time::UnixTime;
use crate::identity::anchors::Anchors;
use crate::identity::certificate::CertificateFacts;
use crate::identity::tls::is_client_of;
use crate::identity::tls_failure::find_tls_failure;
use crate::process::supervisor::TaskScope;
use crate::tunnel::tcp;
use crate::tunnel::transport::TunnelProtocol;
use crate::wire::TUNNEL_ALPN;

/// Time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for the head of a request, and for which an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes that are read of a connection at once. A body passes in pieces of this size.
const READ_MAX_BYTES: usize = 64 * 1024;

/// Requests of one HTTP/2 connection at the same time: what browsers expect.
const H2_STREAMS_MAX: u32 = 128;

/// Bytes of one request's body that may be on the way over HTTP/2, and of one connection's: 4 MiB at
/// 100 ms are 300 Mbit/s.
const H2_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Bytes of one answer that wait to be sent over HTTP/2.
const H2_SEND_BUFFER_BYTES: usize = 256 * 1024;

/// How often a silent HTTP/2 connection is asked whether it is still there, and how long that may take.
const H2_PING_INTERVAL: Duration = Duration::from_secs(60);
const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Application protocols of the HTTPS listener, the preferred one first.
pub(super) const HTTPS_ALPN: [&[u8]; 3] = [TUNNEL_ALPN, HTTP_2, b"http/1.1"];

/// HTTP/2 among them.
const HTTP_2: &[u8] = b"h2";

/// Serves one connection, whatever it runs over; when the scope is cancelled, the request in
/// progress is the last. A client that takes nothing of its answers is hung up on.
pub(super) async fn serve_http<I, F, R>(io: I, scope: &TaskScope, answer: F)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ReplyBody>>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let (io, watched) = Attended::new(io);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(HTTP_HEAD_MAX_BYTES)
        .max_buf_size(READ_MAX_BYTES)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = scope.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // It may be something else's than HTTP's now.
    watched.end();
    if let Err(error) = ended {
        debug!(%error, "an HTTP connection ended early");
    }
}

/// The same over HTTP/2, where requests run beside each other, in tasks of the scope. A connection on which nobody
/// asks any more takes no further requests, and ends with those that are under way: nothing in the protocol ends one
/// that is answered pings on and asked nothing.
async fn serve_h2<I, F, R>(io: I, scope: &TaskScope, answer: F)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ReplyBody>> + Send + 'static,
{
    let (asked, mut asks) = watch::channel(false);
    let service = service_fn(|request| {
        asked.send_replace(true);
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let quiet = async {
        while timeout(HEAD_TIMEOUT, asks.changed()).await.is_ok() {}
        *asks.borrow()
    };
    let connection = http2::Builder::new(InScope(scope.clone()))
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(HTTP_HEAD_MAX_BYTES).unwrap_or(u32::MAX))
        .max_concurrent_streams(H2_STREAMS_MAX)
        .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(H2_SEND_BUFFER_BYTES)
        .keep_alive_interval(H2_PING_INTERVAL)
        .keep_alive_timeout(H2_PING_TIMEOUT)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        any = quiet => {
            if !any {
                // It may not even have said what HTTP/2 begins with, and nobody waits for an answer.
                return debug!("an HTTP/2 connection on which nobody asked was hung up");
            }
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = scope.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "an HTTP/2 connection ended early");
    }
}

/// The HTTPS listener. Answers children and the parent's programs by their certificates, operators by
/// their tokens, and hands tunnels on.
#[derive(Debug)]
pub struct HttpsListener {
    /// For operators.
    pub operators: Arc<OperatorApi>,
    /// For tunnels, and for children without one.
    pub ingress: Arc<Ingress>,
    /// For visitors of services.
    pub access: Arc<Access>,
    /// For the parent's programs.
    pub calls: ParentCalls,
    /// Whose certificates are satellites': others, too, may come here with one.
    pub satellites: watch::Receiver<Arc<Anchors>>,
    /// Where connections run.
    pub work: TaskScope,
    /// How many that are no tunnels.
    pub places: Arc<Places>,
}

/// What a connection's handshake has shown.
struct Shaken {
    caller: Caller,
    connection: CallerConnection,
    port: u16,
}

impl HttpsListener {
    /// Takes connections until the scope is cancelled.
    pub async fn run(
        self: Arc<Self>,
        listener: TcpListener,
        network: Option<NetworkId>,
        tls: TlsAcceptor,
        intake: TaskScope,
    ) {
        let places = Arc::clone(&self.places);
        let take = |stream, address, place| {
            let (https, tls) = (Arc::clone(&self), tls.clone());
            self.work.spawn("https", async move {
                https.connection(stream, (address, network), tls, place).await;
            });
        };
        places.take_in(&listener, &intake, take).await;
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        (address, network): (SocketAddr, Option<NetworkId>),
        tls: TlsAcceptor,
        place: Place,
    ) {
        let source = address.ip().to_canonical();
        // Answers and keys pressed leave at once.
        let _ = stream.set_nodelay(true);
        let handshake = timeout(HANDSHAKE_TIMEOUT, tls.accept(stream));
        let stream = tokio::select! {
            shaken = handshake => match shaken {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    let found = find_tls_failure(&error);
                    return self.ingress.handshake_failed(address, TunnelProtocol::Tls, &error, found.as_ref());
                }
                Err(_) => {
                    let why = "it took too long";
                    return self.ingress.handshake_failed(address, TunnelProtocol::Tls, &why, None);
                }
            },
            () = self.work.cancelled() => return,
        };
        let counters = self.ingress.links.counters();
        counters.count_handshake(TunnelProtocol::Tls, true);
        let shown: Arc<[CertificateDer<'static>]> = stream
            .get_ref()
            .1
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|shown| shown.clone().into_owned())
            .collect();
        let is_satellites = self.is_satellites(&shown);
        if tcp::is_tunnel(&stream) {
            // Tunnels have limits of their own.
            drop(place);
            if !shown.is_empty() && !is_satellites {
                let why = "it is no satellite's, and a tunnel was asked for";
                let now = self.ingress.clock.now();
                return self.ingress.refused_certificates.note(source, why, now);
            }
            return Arc::clone(&self.ingress).take_tcp(stream, address, network).await;
        }
        let certificate = shown.first().filter(|_| is_satellites);
        let shaken = Arc::new(Shaken {
            caller: Caller {
                source,
                network,
                certificate: certificate.and_then(|der| CallerCertificate::read(der, self.now())),
            },
            connection: CallerConnection {
                source,
                network,
                shown,
            },
            port: address.port(),
        });
        let speaks_h2 = stream.get_ref().1.alpn_protocol() == Some(HTTP_2);
        let answer = |request| Arc::clone(&self).answer(request, Arc::clone(&shaken));
        if speaks_h2 {
            serve_h2(stream, &self.work, answer).await;
        } else {
            serve_http(stream, &self.work, answer).await;
        }
    }

    /// Whether a chain is a satellite's: callers may have authorities of their own, whose certificates open no
    /// tunnel and speak for no peer.
    fn is_satellites(&self, shown: &[CertificateDer<'static>]) -> bool {
        let facts = shown.first().and_then(|leaf| CertificateFacts::of_der(leaf).ok());
        // The handshake has looked at its end, and may let one through that is to be renewed.
        let held = facts.map(|facts| facts.not_after.min(self.now()));
        let own = shown
            .first()
            .and_then(|leaf| self.ingress.parent.own_anchors(leaf));
        held.is_some_and(|held| match own {
            // One that certifies itself is known by nothing else.
            Some(own) => is_client_of(shown, &own, held),
            None => is_client_of(shown, &self.satellites.borrow(), held),
        })
    }

    fn now(&self) -> UnixTime {
        self.ingress.clock.trusted().now
    }

    async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        shaken: Arc<Shaken>,
    ) -> Response<ReplyBody> {
        let caller = &shaken.caller;
        let source = SocketAddr::new(caller.source, shaken.port);
        let mut no_program = None;
        if let Some(call) = self.calls.call_in(&request) {
            let who = self.calls.recognise(request.headers(), &shaken.connection);
            match (who, call) {
                (Some(who), Ok(call)) => {
                    return self.calls.carry(request, call, &who, &shaken.connection).await;
                }
                (Some(_), Err(refusal)) => return refused(request, refusal).await,
                (None, Ok(call)) if call.is_by_host() => {
                    let refusal = Reply::unauthorized("this host name is for the parent's programs");
                    return refused(request, refusal).await;
                }
                // It may be an operator's.
                (None, _) => no_program = self.calls.why_unrecognised(&shaken.connection),
            }
        }
        if Access::is_ingress(request.uri().path()) {
            return self.access.visit(request, source).await;
        }
        if !OperatorApi::serves(request.uri().path()) {
            let answered = self.ingress.parent.answer(request, caller.clone()).await;
            if let Some(ends) = answered.ends {
                self.ingress.links.close(ends.peer, ends.reason, &ends.message);
            }
            return answered.response;
        }
        match self.operators.authorize(request.headers(), caller.source).await {
            Ok(operator) if Access::is_connect(request.uri().path()) => {
                self.access.connect(request, operator, Some(source)).await
            }
            Ok(operator) => {
                request.extensions_mut().insert(RequestSource(caller.source));
                Arc::clone(&self.operators).handle(request, operator).await
            }
            Err(refusal) => {
                debug!(source = %caller.source, no_program, "an operator request was refused");
                let refusal = match no_program {
                    Some(why) if refusal.status() == StatusCode::UNAUTHORIZED => {
                        Reply::unauthorized(&format!(
                            "this is none of the parent's programs ({why}), and no known operator token was shown"
                        ))
                    }
                    _ => refusal,
                };
                refused(request, refusal).await
            }
        }
    }
}

/// The answer to a request whose body nobody has read.
async fn refused(request: Request<Incoming>, refusal: Reply) -> Response<ReplyBody> {
    pass_over(request.into_body()).await;
    refusal.into_response()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
