//! Connections to the platform: a bounded number of them, each kept for a moment when it is idle. A
//! request that may have left is never sent again: an accept cannot be repeated (contract section 3).

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsConnector;
use tracing::debug;

use super::super::reply::{BodyError, ReplyBody};
use crate::base::limit::error_chain;
use crate::base::time::Moment;
use crate::contract::invitation::ParentTrust;
use crate::identity::tls::{ClientTls, TimeSource, TlsConfigError, client_config};
use crate::identity::tls_failure::{FailureRecord, TlsFailure, find_tls_failure};
use crate::process::clock::Clock;
use crate::process::config::platform::PlatformUrl;
use crate::process::supervisor::TaskScope;

/// Connections to the platform at the same time, in number. A Rails server has a few dozen threads; more
/// than a few times as many would wait there instead of here.
const CONNECTIONS_MAX: usize = 128;

/// How long a request waits for one of them.
const PLACE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for name, connection and TLS handshake: the platform is beside or near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an idle connection is kept. Servers close theirs after 20 s and more, and a request that meets
/// such a close would be lost.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Most headers of an answer: what browsers take.
const ANSWER_HEADERS_MAX: usize = 200;

/// Bytes that are read of a connection at once, and the longest head of an answer.
const READ_MAX_BYTES: usize = 64 * 1024;

/// Application protocol of the connections.
const HTTP_1_1: &[u8] = b"http/1.1";

/// Why the platform gave no answer.
#[derive(Debug, Error)]
pub enum PlatformError {
    /// All connections are taken.
    #[error("all {CONNECTIONS_MAX} connections to the platform are in use")]
    Busy,
    /// It cannot be reached. Nothing was sent.
    #[error("the platform cannot be reached")]
    Connect(#[source] io::Error),
    /// Its server is not the one that it should be, or no server at all. Nothing was sent.
    #[error("TLS with the platform failed; `platform.server_ca_file` says by which authorities it is known")]
    Handshake(#[source] TlsFailure),
    /// TLS cannot be set up. Nothing was sent.
    #[error("TLS to the platform cannot be set up")]
    Tls(#[source] TlsConfigError),
    /// It was silent for too long.
    #[error("the platform was silent for {} s", .within.as_secs())]
    Silent {
        /// The limit.
        within: Duration,
    },
    /// The connection broke after the request may have left.
    #[error("the platform closed the connection without an answer")]
    Lost(#[source] hyper::Error),
}

impl PlatformError {
    /// Whether the request cannot have reached the platform.
    pub const fn nothing_was_sent(&self) -> bool {
        matches!(
            self,
            Self::Busy | Self::Connect(_) | Self::Handshake(_) | Self::Tls(_)
        )
    }
}

/// The connections. Shared between tasks behind an `Arc`.
pub struct Pool {
    url: PlatformUrl,
    trust: watch::Receiver<Arc<ParentTrust>>,
    clock: Clock,
    time: TimeSource,
    places: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Kept>>>,
    scope: TaskScope,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// A connection that has given an answer; its body may still be on the way.
struct Kept {
    sender: SendRequest<ReplyBody>,
    since: Moment,
}

/// What became of a request on one connection.
enum Tried {
    Answered(Response<Incoming>),
    /// The connection was closed before a byte of it had left.
    Unsent(Box<Request<ReplyBody>>, hyper::Error),
}

impl Pool {
    /// To a platform that is known by `trust`. Connections run in tasks of `scope`.
    pub fn new(
        url: PlatformUrl,
        trust: watch::Receiver<Arc<ParentTrust>>,
        clock: Clock,
        scope: TaskScope,
    ) -> Self {
        let time: TimeSource = {
            let clock = clock.clone();
            Arc::new(move || clock.trusted().now)
        };
        Self {
            url,
            trust,
            clock,
            time,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            idle: Arc::default(),
            scope,
        }
    }

    /// The platform's `Host`.
    pub fn host(&self) -> HeaderValue {
        HeaderValue::try_from(self.url.authority()).unwrap_or_else(|_| HeaderValue::from_static("platform"))
    }

    /// The target at the platform of a path and query.
    pub fn target(&self, asked: &Uri) -> Option<Uri> {
        let asked = asked.path_and_query()?.as_str();
        format!("{}{asked}", self.url.prefix()).parse().ok()
    }

    /// Sends a request and gives the answer with its body still to come. `silence` is the longest time in
    /// which neither a piece of the request leaves nor the answer comes.
    pub async fn send(
        &self,
        request: Request<ReplyBody>,
        silence: Duration,
    ) -> Result<Response<Incoming>, PlatformError> {
        let moved = Arc::new(AtomicU64::new(self.since_start()));
        let request = {
            let (moved, clock) = (Arc::clone(&moved), self.clock.clone());
            request.map(|body| Moving { body, moved, clock }.boxed_unsync())
        };
        let mut exchange = std::pin::pin!(self.exchange(request));
        loop {
            let last = Duration::from_millis(moved.load(Ordering::Relaxed));
            let left = (last + silence).saturating_sub(Duration::from_millis(self.since_start()));
            if left.is_zero() {
                return Err(PlatformError::Silent { within: silence });
            }
            if let Ok(exchanged) = tokio::time::timeout(left, &mut exchange).await {
                return exchanged;
            }
        }
    }

    async fn exchange(&self, mut request: Request<ReplyBody>) -> Result<Response<Incoming>, PlatformError> {
        while let Some(sender) = self.take_idle() {
            match self.try_on(sender, request).await? {
                Tried::Answered(response) => return Ok(response),
                Tried::Unsent(back, error) => {
                    debug!(%error, "an idle connection to the platform was closed");
                    request = *back;
                }
            }
        }
        let sender = self.connect().await?;
        match self.try_on(sender, request).await? {
            Tried::Answered(response) => Ok(response),
            Tried::Unsent(_, error) => Err(PlatformError::Connect(io::Error::other(error))),
        }
    }

    async fn try_on(
        &self,
        mut sender: SendRequest<ReplyBody>,
        request: Request<ReplyBody>,
    ) -> Result<Tried, PlatformError> {
        match sender.try_send_request(request).await {
            Ok(response) => {
                if !self.scope.is_cancelled() {
                    let since = self.clock.now();
                    self.idle().push(Kept { sender, since });
                }
                Ok(Tried::Answered(response))
            }
            Err(mut failed) => match failed.take_message() {
                Some(request) => Ok(Tried::Unsent(Box::new(request), failed.into_error())),
                None => Err(PlatformError::Lost(failed.into_error())),
            },
        }
    }

    /// A connection whose last answer has come to its end, and not long ago.
    fn take_idle(&self) -> Option<SendRequest<ReplyBody>> {
        let now = self.clock.now();
        let mut idle = self.idle();
        idle.retain(|kept| {
            let stale = kept.sender.is_ready() && now.since(kept.since) > IDLE_MAX;
            !kept.sender.is_closed() && !stale
        });
        let ready = idle.iter().rposition(|kept| kept.sender.is_ready())?;
        Some(idle.swap_remove(ready).sender)
    }

    async fn connect(&self) -> Result<SendRequest<ReplyBody>, PlatformError> {
        let place = Arc::clone(&self.places).acquire_owned();
        let Ok(Ok(place)) = tokio::time::timeout(PLACE_TIMEOUT, place).await else {
            return Err(PlatformError::Busy);
        };
        let late = || PlatformError::Connect(io::ErrorKind::TimedOut.into());
        tokio::time::timeout(CONNECT_TIMEOUT, self.dial(place))
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    async fn dial(&self, place: OwnedSemaphorePermit) -> Result<SendRequest<ReplyBody>, PlatformError> {
        let host = self.url.host();
        let stream = TcpStream::connect((host.host(), host.port()))
            .await
            .map_err(PlatformError::Connect)?;
        // Heads and small bodies leave at once.
        let _ = stream.set_nodelay(true);
        if !self.url.is_secure() {
            return self.drive(stream, place).await;
        }
        let failures = FailureRecord::default();
        let tls = self.tls(failures.clone()).await?;
        let name = ServerName::try_from(host.host().to_owned())
            .map_err(|error| PlatformError::Connect(io::Error::other(error)))?;
        let stream = TlsConnector::from(Arc::new(tls))
            .connect(name, stream)
            .await
            .map_err(
                |error| match failures.take().or_else(|| find_tls_failure(&error)) {
                    Some(failure) => PlatformError::Handshake(failure),
                    None => PlatformError::Connect(error),
                },
            )?;
        self.drive(stream, place).await
    }

    async fn tls(&self, failures: FailureRecord) -> Result<rustls::ClientConfig, PlatformError> {
        let (trust, time) = (Arc::clone(&self.trust.borrow()), Arc::clone(&self.time));
        // The system's roots are files.
        let made = tokio::task::spawn_blocking(move || {
            client_config(ClientTls {
                trust: &trust,
                learned: None,
                identity: None,
                alpn: &[HTTP_1_1],
                time,
                failures,
            })
        });
        match made.await {
            Ok(made) => made.map_err(PlatformError::Tls),
            Err(failed) => Err(PlatformError::Connect(io::Error::other(failed))),
        }
    }

    async fn drive<S>(
        &self,
        stream: S,
        place: OwnedSemaphorePermit,
    ) -> Result<SendRequest<ReplyBody>, PlatformError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http1::Builder::new()
            .max_headers(ANSWER_HEADERS_MAX)
            .max_buf_size(READ_MAX_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| PlatformError::Connect(io::Error::other(error)))?;
        let (idle, scope) = (Arc::clone(&self.idle), self.scope.clone());
        self.scope.spawn("platform connection", async move {
            let _place = place;
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = scope.cancelled() => {
                    // What is in progress may end; nothing is kept for what comes after.
                    idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    connection.await
                }
            };
            if let Err(error) = ended {
                debug!(error = %error_chain(&error), "a connection to the platform has ended");
            }
        });
        Ok(sender)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Kept>> {
        // Each change is one push or remove.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn since_start(&self) -> u64 {
        millis_since_start(&self.clock)
    }
}

fn millis_since_start(clock: &Clock) -> u64 {
    let passed = clock.now().since_start();
    u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
}

/// A request's body that tells when a piece of it has left.
struct Moving {
    body: ReplyBody,
    moved: Arc<AtomicU64>,
    clock: Clock,
}

impl Body for Moving {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_ready() {
            self.moved
                .store(millis_since_start(&self.clock), Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
