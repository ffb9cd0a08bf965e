//! HTTP/1.1 as a daemon serves it: admin sockets, the metrics port, and HTTPS to the satellite. Connections and
//! answers are boxed, so that the protocol's code is in the program once and not once for each kind of them.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::connection::BoxedConnection;
use crate::base::limit::HTTP_HEAD_MAX_BYTES;

/// Time for the head of a request, and for which an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// What a request is answered with, once it is known.
pub type Answer = Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;

/// Answers one request.
pub type Answering = Box<dyn Fn(Request<Incoming>) -> Answer + Send + Sync>;

/// Answers the requests of one connection of this machine, one after the other, until it ends.
pub async fn serve(connection: BoxedConnection, answer: Answering) {
    if let Err(error) = answer_all(connection, answer).await {
        tracing::debug!(%error, "a local connection broke off");
    }
}

/// Answers the requests of one connection, one after the other, until it ends.
pub async fn answer_all(connection: BoxedConnection, answer: Answering) -> hyper::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(HTTP_HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(connection), service(answer))
        .await
}

/// The service behind whatever connection: of one type, whoever answers.
pub fn service(
    answer: Answering,
) -> impl HttpService<
    Incoming,
    ResBody = Full<Bytes>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send,
> + Send {
    service_fn(move |request| {
        let answer = answer(request);
        async move { Ok(answer.await) }
    })
}
