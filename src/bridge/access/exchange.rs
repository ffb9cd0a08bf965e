//! One HTTP request to a service, over a stream of its own: bodies pass both ways as they come,
//! trailers with them, and an answer that changes the protocol (WebSocket) turns both connections into
//! a relay. HTTP/1.1 is spoken with services, and HTTP/2 where gRPC asks for it, which knows nothing
//! else.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;

use super::super::reply::{Reply, ReplyBody};
use super::headers::{Outside, to_client, to_service};
use super::login;
use super::{Access, Ask, Hold, ServiceStream};
use crate::base::limit::{HTTP_HEAD_MAX_BYTES, error_chain, foreign_text};
use crate::process::supervisor::TaskScope;
use crate::tunnel::relay::{Counted, RelayEnd, relay};
use crate::tunnel::stream::TunnelStream;

/// Most headers of an answer: what browsers take.
const ANSWER_HEADERS_MAX: usize = 200;

/// Both sides of a change of protocol: the client's connection, the service's.
type Pair = (OnUpgrade, OnUpgrade);

/// What is read from a service's connection.
type ServiceIo = TokioIo<Counted<TunnelStream>>;

/// Runs hyper's tasks as the daemon's.
#[derive(Debug, Clone)]
pub(in crate::bridge) struct InScope(pub(in crate::bridge) TaskScope);

impl<F> hyper::rt::Executor<F> for InScope
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn("h2 stream", future);
    }
}

impl Access {
    /// Carries a request to a service and the answer back. `target` is the path and query that the
    /// service is asked for.
    pub(super) async fn exchange(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        target: Uri,
        ask: Ask,
        outside: Outside,
    ) -> Response<ReplyBody> {
        let stream = match self.open(ask).await {
            Ok(stream) => stream,
            Err(error) => return error.reply().into_response(),
        };
        let client = hyper::upgrade::on(&mut request);
        let speaks_h2 = is_grpc(&request);
        let (mut head, body) = request.into_parts();
        let (uri, version) = (head.uri.clone(), head.version);
        let wishes = to_service(&mut head.headers, &uri, version, &outside, login::COOKIE);
        let host = head.headers.get(header::HOST).cloned();
        head.extensions.clear();
        head.uri = target;
        head.version = Version::HTTP_11;
        let request = Request::from_parts(head, body);
        let (answer, pair, gone) = match self.send(stream, request, host.as_ref(), speaks_h2).await {
            Ok(sent) => sent,
            Err(words) => return no_answer(&words),
        };
        let (mut head, body) = answer.into_parts();
        let switches = head.status == StatusCode::SWITCHING_PROTOCOLS;
        let protocol = head.headers.get(header::UPGRADE).cloned();
        let service = head.extensions.remove::<OnUpgrade>();
        to_client(&mut head.headers, host.as_ref(), &outside, login::COOKIE);
        head.extensions.clear();
        head.version = Version::HTTP_11;
        if switches {
            let (Some(service), Some(_), Some(protocol)) = (service, &wishes.upgrade, protocol) else {
                return no_answer("it changed the protocol, which nobody had asked for");
            };
            head.headers
                .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(header::UPGRADE, protocol);
            // Nobody takes it where the access has ended in this moment.
            let _ = pair.send((client, service));
            // The answer's body is empty, and its end must not end the access.
            gone.disarm();
            let nothing = http_body_util::Empty::new().map_err(|never| match never {});
            return Response::from_parts(head, nothing.boxed_unsync());
        }
        drop(pair);
        let answer = Held {
            finished: body.is_end_stream(),
            body,
            gone: Some(gone),
        };
        Response::from_parts(head, answer.boxed_unsync())
    }

    /// Sends the request over the stream, which a task of its own drives until the access ends.
    async fn send(
        &self,
        stream: ServiceStream,
        request: Request<Incoming>,
        host: Option<&HeaderValue>,
        speaks_h2: bool,
    ) -> Result<(Response<Incoming>, oneshot::Sender<Pair>, DropGuard), String> {
        let span = tracing::info_span!("access", trace = %stream.id());
        let (io, hold) = stream.into_parts();
        let io: ServiceIo = TokioIo::new(io);
        let (pair, pairs) = oneshot::channel();
        let gone = CancellationToken::new();
        let guard = gone.clone().drop_guard();
        let failed = |error: hyper::Error| foreign_text(&error_chain(&error));
        let answer = if speaks_h2 {
            let (mut sender, connection) = http2::Builder::new(InScope(self.work().clone()))
                .max_header_list_size(u32::try_from(HTTP_HEAD_MAX_BYTES).unwrap_or(u32::MAX))
                .handshake(io)
                .await
                .map_err(failed)?;
            self.work()
                .spawn("access", drive(connection, hold, gone, pairs).instrument(span));
            sender.send_request(for_h2(request, host)).await
        } else {
            let (mut sender, connection) = http1::Builder::new()
                .max_headers(ANSWER_HEADERS_MAX)
                .handshake(io)
                .await
                .map_err(failed)?;
            let connection = connection.with_upgrades();
            self.work()
                .spawn("access", drive(connection, hold, gone, pairs).instrument(span));
            sender.send_request(request).await
        };
        Ok((answer.map_err(failed)?, pair, guard))
    }
}

/// Drives a connection to a service until it ends, its client goes, or the access must end.
async fn drive(
    connection: impl Future<Output = hyper::Result<()>>,
    mut hold: Hold,
    gone: CancellationToken,
    pairs: oneshot::Receiver<Pair>,
) {
    let end = tokio::select! {
        biased;
        words = hold.must_end() => RelayEnd::Cut(words),
        ended = connection => match ended {
            Ok(()) => RelayEnd::Finished,
            Err(error) => RelayEnd::Right(io::Error::other(error)),
        },
        () = gone.cancelled() => RelayEnd::Left(io::ErrorKind::ConnectionAborted.into()),
    };
    let end = match (end, pairs) {
        // Ended well: it has become something else, or there is no more of it.
        (RelayEnd::Finished, pairs) => match pairs.await {
            Ok(pair) => switched(pair, &mut hold).await,
            Err(_) => RelayEnd::Finished,
        },
        (end, _) => end,
    };
    hold.close(end).await;
}

async fn switched((client, service): Pair, hold: &mut Hold) -> RelayEnd<String> {
    let service = match service.await {
        Ok(service) => TokioIo::new(service),
        Err(error) => return RelayEnd::Right(io::Error::other(error)),
    };
    let client = tokio::select! {
        biased;
        words = hold.must_end() => return RelayEnd::Cut(words),
        client = client => match client {
            Ok(client) => TokioIo::new(client),
            Err(error) => return RelayEnd::Left(io::Error::other(error)),
        },
    };
    relay(client, service, hold.must_end()).await
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let content = request.headers().get(header::CONTENT_TYPE);
    let content = content
        .and_then(|content| content.to_str().ok())
        .unwrap_or_default();
    request.version() == Version::HTTP_2 && content.starts_with("application/grpc")
}

/// HTTP/2's own form: scheme and authority are in the URI, and there is no connection to speak of.
fn for_h2(mut request: Request<Incoming>, host: Option<&HeaderValue>) -> Request<Incoming> {
    let target = request.uri().path_and_query().cloned();
    let authority = host.and_then(|host| host.to_str().ok()).unwrap_or("service");
    let whole = Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(target.map_or_else(|| "/".to_owned(), |target| target.as_str().to_owned()))
        .build();
    if let Ok(whole) = whole {
        *request.uri_mut() = whole;
    }
    request.headers_mut().remove(header::CONNECTION);
    request.headers_mut().remove(header::HOST);
    *request.version_mut() = Version::HTTP_2;
    request
}

fn no_answer(words: &str) -> Response<ReplyBody> {
    Reply::coded(
        StatusCode::BAD_GATEWAY,
        "NO_ANSWER",
        &format!("the service gave no answer that can be passed on: {words}"),
    )
    .into_response()
}

/// The body of an answer. Whoever drops it before its end is gone, and so is the access.
struct Held {
    body: Incoming,
    finished: bool,
    gone: Option<DropGuard>,
}

impl Body for Held {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() {
            self.finished = true;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A body of known length is not asked for its end once all of it has come.
        if (self.finished || self.body.is_end_stream())
            && let Some(gone) = self.gone.take()
        {
            gone.disarm();
        }
    }
}
