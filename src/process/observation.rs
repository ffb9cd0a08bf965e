//! What monitoring asks a daemon: metrics, whether it is alive, whether it is ready. Answered on the admin
//! socket and, where the configuration names addresses, on a port of its own. What is measured is not known here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::blocking;
use super::http_server;
use super::supervisor::TaskScope;
use crate::base::exposition::EXPOSITION_CONTENT_TYPE;

/// Where the metrics are.
pub const METRICS_PATH: &str = "/metrics";

/// Where a service manager or an orchestrator asks whether to restart the program.
pub const HEALTH_PATH: &str = "/healthz";

/// Where monitoring asks whether the program does its work.
pub const READINESS_PATH: &str = "/readyz";

/// Connections at once: a scraper or two, a probe, and somebody who looks.
const CONNECTIONS_MAX: usize = 16;

/// Life of a connection: scrapers open a new one without ado.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(600);

/// Pause after the system refused to give a connection, for want of file descriptors: they come
/// back when others end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no port for monitoring.
#[derive(Debug, Error)]
#[error(
    "metrics cannot be served on {address}; is another process there, and may this user use the port? metrics.listen sets it"
)]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// What is asked of a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Whether it goes on at all; if not, a restart helps.
    Alive,
    /// Whether it does its work; if not, a restart need not help.
    Ready,
}

/// A daemon as monitoring sees it.
pub trait Observed: Send + Sync + 'static {
    /// The metrics as text. May block on the disk.
    fn metrics(&self) -> String;

    /// Whether all is well, or in words what is not. May block on the disk.
    fn examine(&self, probe: Probe) -> Result<(), String>;
}

/// Opens the ports.
pub async fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ListenError> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let bound = TcpListener::bind(address).await;
        listeners.push(bound.map_err(|source| ListenError { address, source })?);
    }
    Ok(listeners)
}

/// Answers on one port until the scope is cancelled.
pub async fn serve(listener: TcpListener, scope: TaskScope, observed: Arc<dyn Observed>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics could not be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let observed = Arc::clone(&observed);
        scope.spawn_until_cancelled("metrics connection", async move {
            let answer = move |request: Request<_>| -> http_server::Answer {
                let observed = Arc::clone(&observed);
                Box::pin(async move {
                    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
                    match answer(observed, &method, &path).await {
                        Some(answered) => answered,
                        None => text(
                            StatusCode::NOT_FOUND,
                            "no such resource; here are /metrics, /healthz and /readyz\n".to_owned(),
                        ),
                    }
                })
            };
            let served = http_server::serve(Box::new(stream), Box::new(answer));
            // One that is over its time is closed, which a scraper takes for nothing.
            let _ = tokio::time::timeout(CONNECTION_LIFETIME, served).await;
            drop(place);
        });
    }
}

/// Answers what is asked here; `None` for every other path.
pub async fn answer(
    observed: Arc<dyn Observed>,
    method: &Method,
    path: &str,
) -> Option<Response<Full<Bytes>>> {
    let asked: fn(&dyn Observed) -> Response<Full<Bytes>> = match path {
        METRICS_PATH => |observed| {
            let mut answer = text(StatusCode::OK, observed.metrics());
            let kind = HeaderValue::from_static(EXPOSITION_CONTENT_TYPE);
            answer.headers_mut().insert(CONTENT_TYPE, kind);
            answer
        },
        HEALTH_PATH => |observed| verdict(observed.examine(Probe::Alive)),
        READINESS_PATH => |observed| verdict(observed.examine(Probe::Ready)),
        _ => return None,
    };
    if *method != Method::GET && *method != Method::HEAD {
        let mut refusal = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "this can be read, nothing else\n".to_owned(),
        );
        refusal
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(refusal);
    }
    let answered = blocking::start(move || asked(&*observed)).await;
    Some(answered.unwrap_or_else(|_| {
        let message = "the program failed at looking at itself; this is a defect, please report it\n";
        text(StatusCode::INTERNAL_SERVER_ERROR, message.to_owned())
    }))
}

fn verdict(examined: Result<(), String>) -> Response<Full<Bytes>> {
    match examined {
        Ok(()) => text(StatusCode::OK, "ok\n".to_owned()),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

fn text(status: StatusCode, content: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(content)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::super::supervisor::{Stage, Supervisor};
    use super::*;

    struct Ailing;

    impl Observed for Ailing {
        fn metrics(&self) -> String {
            "a 1\n".to_owned()
        }

        fn examine(&self, probe: Probe) -> Result<(), String> {
            match probe {
                Probe::Alive => Ok(()),
                Probe::Ready => Err("no tunnel".to_owned()),
            }
        }
    }

    async fn asked(method: Method, path: &str) -> Option<(StatusCode, String)> {
        let answered = answer(Arc::new(Ailing), &method, path).await?;
        let status = answered.status();
        let body = answered.into_body().collect().await.unwrap().to_bytes();
        Some((status, String::from_utf8(body.to_vec()).unwrap()))
    }

    #[tokio::test]
    async fn what_is_asked_is_answered_and_nothing_else() {
        assert_eq!(
            asked(Method::GET, "/metrics").await,
            Some((StatusCode::OK, "a 1\n".into()))
        );
        assert_eq!(
            asked(Method::GET, "/healthz").await,
            Some((StatusCode::OK, "ok\n".into()))
        );
        assert_eq!(
            asked(Method::GET, "/readyz").await,
            Some((StatusCode::SERVICE_UNAVAILABLE, "no tunnel\n".into()))
        );
        assert_eq!(
            asked(Method::POST, "/metrics").await.unwrap().0,
            StatusCode::METHOD_NOT_ALLOWED
        );
        assert_eq!(asked(Method::GET, "/metrics/").await, None);
        assert_eq!(asked(Method::GET, "/v1/status").await, None);
    }

    #[tokio::test]
    async fn a_port_answers_one_request_after_the_other_and_knows_no_other_path() {
        let listener = bind(&["127.0.0.1:0".parse().unwrap()]).await.unwrap().remove(0);
        let address = listener.local_addr().unwrap();
        let supervisor = Supervisor::new();
        let scope = supervisor.scope(Stage::Intake);
        scope.spawn_until_cancelled("metrics", serve(listener, scope.clone(), Arc::new(Ailing)));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(
                b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\nGET /v1/status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            )
            .await
            .unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
        assert!(
            said.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"),
            "{said}"
        );
        assert!(said.contains("\r\n\r\na 1\nHTTP/1.1 404 Not Found\r\n"), "{said}");
        supervisor
            .shutdown(Duration::from_secs(5), std::future::pending())
            .await;
    }

    #[tokio::test]
    async fn a_port_that_is_taken_says_so() {
        let taken = bind(&["127.0.0.1:0".parse().unwrap()]).await.unwrap();
        let address = taken[0].local_addr().unwrap();
        let error = bind(&[address]).await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()));
    }
}
