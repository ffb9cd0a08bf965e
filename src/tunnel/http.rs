//! HTTP/1.1 on tunnel streams, one request per stream. hyper speaks it on both sides; the
//! connection's work is done by whoever waits for the answer, so no task is left behind.

use std::error::Error;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::HttpService;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::connection::{OpenStreamError, Tunnel};
use super::stream::{TunnelStream, refusal_in};
use crate::base::id::TraceId;
use crate::base::limit::{CONTRACT_REQUEST_TIMEOUT, HTTP_HEAD_MAX_BYTES, JSON_BODY_MAX_BYTES};
use crate::process::connection::{BoxedConnection, boxed};
use crate::wire::{StreamHeader, StreamKind, StreamRefusal};

/// Host of a request that names none. HTTP/1.1 demands one; behind a tunnel it means nothing.
const TUNNEL_HOST: HeaderValue = HeaderValue::from_static("tunnel.invalid");

/// Time in which a request's head must arrive once its stream is taken.
pub const REQUEST_HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for which a request is read on after its answer was given: a few round trips.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of it that are read on: what the other side may have on the way at 4 Mbit/s in that time.
const LINGER_MAX_BYTES: usize = 1024 * 1024;

/// Bytes of it that are read at once: a few packets.
const LINGER_READ_BYTES: usize = 4 * 1024;

/// What an answer may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// Largest head of the answer, in bytes.
    pub head_bytes: usize,
    /// Largest body of a buffered answer, in bytes.
    pub body_bytes: usize,
    /// Time from the call to the whole answer; of a streamed answer, to its head.
    pub timeout: Duration,
}

impl Default for HttpLimits {
    /// Those of a contract request.
    fn default() -> Self {
        Self {
            head_bytes: HTTP_HEAD_MAX_BYTES,
            body_bytes: JSON_BODY_MAX_BYTES,
            timeout: CONTRACT_REQUEST_TIMEOUT,
        }
    }
}

/// Why a request over the tunnel has no answer.
#[derive(Debug, Error)]
pub enum HttpOverTunnelError {
    /// There is no stream for it.
    #[error("the request could not be sent")]
    Open(#[source] OpenStreamError),
    /// The other side takes no such stream.
    #[error("the request was not taken")]
    Refused(#[source] StreamRefusal),
    /// No whole answer in time.
    #[error("no answer came within {} s", .within.as_secs())]
    TimedOut {
        /// The limit.
        within: Duration,
    },
    /// The answer's head is too long.
    #[error("the answer's head is longer than the {limit} bytes allowed")]
    HeadTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The answer's body is too long.
    #[error("the answer's body is longer than the {limit} bytes allowed")]
    BodyTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The stream failed, or what came is not HTTP.
    #[error("the exchange failed")]
    Exchange(#[source] hyper::Error),
    /// The answer's body failed.
    #[error("the answer broke off")]
    Body(#[source] Box<dyn Error + Send + Sync>),
}

/// Why a request of the other side's was not served to its end.
#[derive(Debug, Error)]
#[error("a request over the tunnel was not served to its end")]
pub struct HttpServeError(#[source] hyper::Error);

/// Sends a request and reads the whole answer. The URI's path and query are used; a `Host` of the
/// caller's is kept.
pub async fn request(
    tunnel: &Tunnel,
    trace: TraceId,
    request: Request<Full<Bytes>>,
    limits: HttpLimits,
) -> Result<Response<Bytes>, HttpOverTunnelError> {
    let exchange = async {
        let (head, body) = send(tunnel, trace, request, limits).await?.into_parts();
        let body = Limited::new(body, limits.body_bytes)
            .collect()
            .await
            .map_err(|error| body_failed(error, limits))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    in_time(exchange, limits).await
}

/// Sends a request and gives the answer with its body still to come. The body of the request is
/// sent while the answer's is read; `limits.body_bytes` is not applied.
pub async fn request_streaming<B>(
    tunnel: &Tunnel,
    trace: TraceId,
    request: Request<B>,
    limits: HttpLimits,
) -> Result<Response<AnswerBody<B>>, HttpOverTunnelError>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    in_time(send(tunnel, trace, request, limits), limits).await
}

/// Serves the one request of an accepted stream, to the end of the answer. A head that is too
/// long or too late is answered by hyper (431, or the stream's end). An answer that is given
/// before the request was read whole still reaches its sender.
pub async fn serve<S>(stream: TunnelStream, service: S) -> Result<(), HttpServeError>
where
    S: HttpService<Incoming>,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    S::ResBody: 'static,
    <S::ResBody as Body>::Error: Into<Box<dyn Error + Send + Sync>>,
{
    // Hyper's own shutdown alone waits for an answer that has not left yet.
    server::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_HEAD_TIMEOUT)
        .keep_alive(false)
        .half_close(true)
        .max_header_size(HTTP_HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(boxed(Lingering::new(stream))), service)
        .await
        .map_err(HttpServeError)
}

/// A stream whose shutdown reads on what the other side still sends. Stopping it at once could overtake the answer, and
/// the sender would see a failed write instead.
struct Lingering {
    stream: TunnelStream,
    /// Runs from the end of what this side writes.
    patience: Option<Pin<Box<Sleep>>>,
    left: usize,
}

impl Lingering {
    const fn new(stream: TunnelStream) -> Self {
        Self {
            stream,
            patience: None,
            left: LINGER_MAX_BYTES,
        }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.patience.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let patience = this
            .patience
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER_TIMEOUT)));
        // What fails from here on is nobody's loss: the answer is on its way, or its reader is gone.
        while this.left > 0 && patience.as_mut().poll(cx).is_pending() {
            let mut bytes = [0; LINGER_READ_BYTES];
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer));
            match (read, buffer.filled().len()) {
                (Err(_), _) | (Ok(()), 0) => return Poll::Ready(Ok(())),
                (Ok(()), count) => this.left = this.left.saturating_sub(count),
            }
        }
        tracing::trace!("a request was not sent to its end");
        Poll::Ready(Ok(()))
    }
}

/// The body of an answer. Reading it moves the exchange on; dropping it aborts the stream.
pub struct AnswerBody<B>
where
    B: Body + 'static,
{
    body: Incoming,
    /// `None` when its work is done.
    connection: Option<Pin<Box<Connection<B>>>>,
}

type Connection<B> = client::Connection<TokioIo<BoxedConnection>, B>;

impl<B> std::fmt::Debug for AnswerBody<B>
where
    B: Body + 'static,
{
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnswerBody").finish_non_exhaustive()
    }
}

impl<B> Body for AnswerBody<B>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        if let Some(connection) = &mut this.connection
            && connection.as_mut().poll(cx).is_ready()
        {
            // How it ended is in the body: hyper ends it with an error where it is not whole. A
            // request that could not be sent to its end is no failure of a whole answer.
            this.connection = None;
        }
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn in_time<T>(
    exchange: impl Future<Output = Result<T, HttpOverTunnelError>>,
    limits: HttpLimits,
) -> Result<T, HttpOverTunnelError> {
    let within = limits.timeout;
    tokio::time::timeout(within, exchange)
        .await
        .unwrap_or(Err(HttpOverTunnelError::TimedOut { within }))
}

/// Opens the stream, sends the request and waits for the answer's head.
async fn send<B>(
    tunnel: &Tunnel,
    trace: TraceId,
    mut request: Request<B>,
    limits: HttpLimits,
) -> Result<Response<AnswerBody<B>>, HttpOverTunnelError>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let header = StreamHeader {
        kind: StreamKind::Http,
        trace,
    };
    let stream = tunnel
        .open_stream(header)
        .await
        .map_err(HttpOverTunnelError::Open)?;
    prepare(&mut request);
    let failed = |error| exchange_failed(error, limits);
    let (mut sender, connection) = client::Builder::new()
        .max_header_size(limits.head_bytes)
        .handshake(TokioIo::new(boxed(stream)))
        .await
        .map_err(failed)?;
    let mut connection = Box::pin(connection);
    let mut answer = pin!(sender.send_request(request));
    tokio::select! {
        biased;
        answer = &mut answer => {
            let (head, body) = answer.map_err(failed)?.into_parts();
            Ok(Response::from_parts(head, AnswerBody { body, connection: Some(connection) }))
        }
        ended = &mut connection => {
            // The whole exchange is over; what became of it was left for the waiting side.
            let (head, body) = answer.await.map_err(|error| failed(ended.err().unwrap_or(error)))?.into_parts();
            Ok(Response::from_parts(head, AnswerBody { body, connection: None }))
        }
    }
}

/// Origin form, a host, and one request per stream.
fn prepare<B>(request: &mut Request<B>) {
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    request.headers_mut().entry(HOST).or_insert(TUNNEL_HOST);
    request
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
}

fn exchange_failed(error: hyper::Error, limits: HttpLimits) -> HttpOverTunnelError {
    if let Some(refusal) = refusal_in(&error) {
        return HttpOverTunnelError::Refused(refusal.clone());
    }
    if error.is_parse_too_large() {
        return HttpOverTunnelError::HeadTooLarge {
            limit: limits.head_bytes,
        };
    }
    HttpOverTunnelError::Exchange(error)
}

fn body_failed(error: Box<dyn Error + Send + Sync>, limits: HttpLimits) -> HttpOverTunnelError {
    if error.is::<LengthLimitError>() {
        return HttpOverTunnelError::BodyTooLarge {
            limit: limits.body_bytes,
        };
    }
    HttpOverTunnelError::Body(error)
}
