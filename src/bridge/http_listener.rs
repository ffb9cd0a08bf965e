//! What comes in over TCP: the HTTPS listener for satellites without a tunnel and for operators
//! with a token, and what it has in common with the admin socket. Tunnels of satellites whose
//! networks swallow UDP come to the same port, told apart by ALPN, and are handed on.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::federation_api::{Caller, CallerCertificate, FederationApi};
use super::ingress::Ingress;
use super::operator_api::OperatorApi;
use super::reply::{Reply, ReplyBody};
use crate::base::limit::HTTP_HEAD_MAX_BYTES;
use crate::process::supervisor::TaskScope;
use crate::tunnel::tcp;

/// Time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for the head of a request, and for which an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause after the system refused to give a connection, for want of file descriptors: they come
/// back when others end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves one connection, whatever it runs over; when the scope is cancelled, the request in
/// progress is the last.
pub(super) async fn serve_http<I, F, R>(io: I, scope: &TaskScope, answer: F)
where
    I: AsyncRead + AsyncWrite + Unpin,
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<ReplyBody>>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HTTP_HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = scope.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "an HTTP connection ended early");
    }
}

/// The HTTPS listener.
#[derive(Debug)]
pub struct HttpsListener {
    federation: Arc<FederationApi>,
    operators: Arc<OperatorApi>,
    ingress: Arc<Ingress>,
    work: TaskScope,
    places: Arc<Semaphore>,
}

impl HttpsListener {
    /// Answers children and operators with a token, and hands tunnels on; connections run in `work`,
    /// so many of them at once that are no tunnels.
    pub fn new(
        federation: Arc<FederationApi>,
        operators: Arc<OperatorApi>,
        ingress: Arc<Ingress>,
        work: TaskScope,
        connections_max: u32,
    ) -> Self {
        Self {
            federation,
            operators,
            ingress,
            work,
            places: Arc::new(Semaphore::new(connections_max as usize)),
        }
    }

    /// Takes connections until the scope is cancelled.
    pub async fn run(self: Arc<Self>, listener: TcpListener, tls: TlsAcceptor, intake: TaskScope) {
        loop {
            let accepted = async {
                // Nobody is taken in for whom there is no place: they wait in the system's queue.
                let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
                Some((place, listener.accept().await))
            };
            let accepted = tokio::select! {
                () = intake.cancelled() => return,
                accepted = accepted => accepted,
            };
            match accepted {
                Some((place, Ok((stream, address)))) => {
                    let https = Arc::clone(&self);
                    let tls = tls.clone();
                    self.work.spawn("https", async move {
                        https.connection(stream, address, tls, place).await;
                    });
                }
                Some((_, Err(error))) => {
                    tracing::warn!(%error, "an HTTPS connection could not be taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                None => return,
            }
        }
    }

    async fn connection(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        tls: TlsAcceptor,
        place: OwnedSemaphorePermit,
    ) {
        let source = address.ip().to_canonical();
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream));
        let stream = tokio::select! {
            shaken = handshake => match shaken {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return debug!(%source, %error, "a TLS handshake failed"),
                Err(_) => return debug!(%source, "a TLS handshake took too long"),
            },
            () = self.work.cancelled() => return,
        };
        if tcp::is_tunnel(&stream) {
            // Tunnels have limits of their own.
            drop(place);
            return Arc::clone(&self.ingress).take_tcp(stream, address).await;
        }
        let certificate = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first())
            .and_then(CallerCertificate::read);
        let caller = Caller { source, certificate };
        serve_http(stream, &self.work, |request| self.answer(request, caller.clone())).await;
    }

    async fn answer(&self, request: Request<Incoming>, caller: Caller) -> Response<ReplyBody> {
        if !OperatorApi::serves(request.uri().path()) {
            return Arc::clone(&self.federation).handle(request, caller).await;
        }
        match self.operators.authorize(request.headers()).await {
            Ok(operator) => Arc::clone(&self.operators).handle(request, operator).await,
            Err(refusal) => {
                debug!(source = %caller.source, "an operator request was refused");
                Reply::into_response(refusal)
            }
        }
    }
}
