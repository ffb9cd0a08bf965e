//! HTTP/1.1 as a daemon serves it on sockets of its machine: admin sockets and the metrics port. Connections are
//! boxed, so that the protocol's code is in the program once and not once for each kind of them.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::base::limit::HTTP_HEAD_MAX_BYTES;

/// Time for the head of a request, and for which an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection of any kind.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<C: AsyncRead + AsyncWrite + Send + Unpin> Connection for C {}

/// What a request is answered with, once it is known.
pub type Answer = Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;

/// Answers the requests of one connection, one after the other, until it ends.
pub async fn serve(
    connection: Box<dyn Connection>,
    answer: Box<dyn Fn(Request<Incoming>) -> Answer + Send + Sync>,
) {
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(HTTP_HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(connection), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a local connection broke off");
    }
}
