//! Streams to services through a host-bridge, for `connect` and `forward`: over the admin socket of
//! one on this machine, or over HTTPS and with an operator's token from anywhere else. Each stream is
//! a connection of its own, and each is authorised by itself.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::client::{AdminError, Answer};
use crate::base::secret::Secret;
use crate::bridge::access::{CONNECT_PATH, PACKETS_PROTOCOL, SESSION_HEADER, UPGRADE_PROTOCOL};
use crate::bridge::operator_api::SESSIONS_PATH;
use crate::contract::invitation::{ParentTrust, ParentUrl};
use crate::identity::tls::{ClientTls, TlsConfigError, client_config};
use crate::identity::tls_failure::{FailureRecord, TlsFailure, find_tls_failure};
use crate::process::clock::Clock;

/// Time for a connection and its TLS handshake.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);

/// Time for the answer to a request for a stream: above the bridge's own patience with a satellite.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest refusal that is read, in bytes; a list of services is far below.
const REFUSAL_MAX_BYTES: usize = 64 * 1024;

/// How often, and how many times, it is asked how a session ended: its row goes a moment after its
/// last byte.
const END_LOOKS: (u32, Duration) = (20, Duration::from_millis(50));

/// How often it is asked whether a session goes on of which nothing more comes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A way to one host-bridge.
#[derive(Clone)]
pub struct BridgeClient {
    way: Way,
}

#[derive(Clone)]
enum Way {
    Socket(PathBuf),
    Https(Arc<Https>),
}

struct Https {
    url: ParentUrl,
    name: ServerName<'static>,
    tls: TlsConnector,
    token: Secret,
}

/// A stream to a service.
#[derive(Debug)]
pub struct BridgeStream {
    /// The bytes.
    pub io: TokioIo<Upgraded>,
    /// The session's id.
    pub session: String,
}

/// How a session ended, as the bridge remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionFate {
    /// Both sides came to their end.
    Done,
    /// Why it was cut, or failed.
    Broken(String),
    /// It goes on.
    Open,
    /// The bridge does not answer any more.
    BridgeGone,
    /// It does not remember.
    Unknown,
}

/// Why there is no stream.
#[derive(Debug, Error)]
pub enum BridgeClientError {
    /// The admin socket.
    #[error(transparent)]
    Socket(#[from] AdminError),
    /// The URL's host is no name that a certificate could have.
    #[error("`{0}` cannot be the name in a certificate; give the host-bridge's URL as https://host[:port]")]
    Name(String),
    /// The CA file.
    #[error("TLS cannot be set up")]
    Tls(#[from] TlsConfigError),
    /// Its certificate, or another fault of the handshake.
    #[error(
        "no TLS with the host-bridge at {url}; its CA, which `ca show` prints there, is given by --ca-file"
    )]
    Handshake {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: TlsFailure,
    },
    /// The connection.
    #[error("the host-bridge at {url} cannot be reached")]
    Dial {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// HTTP.
    #[error("the host-bridge hung up before it answered; look into its log")]
    Broken(#[source] hyper::Error),
    /// No answer.
    #[error("the host-bridge did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The token holds what no header can.
    #[error("the operator token is not one line of plain characters; look into its file")]
    Token,
    /// The peer or service cannot be asked for.
    #[error("`{0}` cannot be the name of a peer or service")]
    Target(String),
    /// The bridge says no.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// Its words.
        message: String,
    },
    /// The stream was promised and did not come.
    #[error("the host-bridge did not hand the stream over")]
    Upgrade(#[source] hyper::Error),
}

impl BridgeClient {
    /// The daemon on this machine. Nothing is opened yet.
    pub fn local(socket: &Path) -> Self {
        Self {
            way: Way::Socket(socket.to_owned()),
        }
    }

    /// A host-bridge elsewhere, known by a CA (PEM) or the system's roots. Nothing is opened yet.
    pub fn remote(
        url: ParentUrl,
        ca_pem: Option<String>,
        token: Secret,
        clock: Clock,
    ) -> Result<Self, BridgeClientError> {
        let host = url.host().host();
        let name =
            ServerName::try_from(host.to_owned()).map_err(|_| BridgeClientError::Name(host.to_owned()))?;
        let trust = ca_pem.map_or(ParentTrust::SystemRoots, ParentTrust::Bundle);
        let config = client_config(ClientTls {
            trust: &trust,
            learned: None,
            identity: None,
            // An upgrade is HTTP/1.1's.
            alpn: &[b"http/1.1"],
            time: Arc::new(move || clock.trusted().now),
            failures: FailureRecord::default(),
        })?;
        Ok(Self {
            way: Way::Https(Arc::new(Https {
                url,
                name,
                tls: TlsConnector::from(Arc::new(config)),
                token,
            })),
        })
    }

    /// Whether the bridge answers and knows who asks. Says nothing of any peer, which may come later.
    pub async fn check(&self) -> Result<(), BridgeClientError> {
        self.exchange(
            self.request(SESSIONS_PATH)?,
            async |response: Response<Incoming>| {
                if response.status().is_success() {
                    return Ok(());
                }
                Err(refusal(response).await)
            },
        )
        .await
    }

    /// Opens a stream to a service.
    pub async fn open(&self, peer: &str, service: &str) -> Result<BridgeStream, BridgeClientError> {
        self.upgraded(peer, service, UPGRADE_PROTOCOL).await
    }

    /// The same to one that speaks UDP: packets, as `tunnel::packet` has them on a stream.
    pub async fn open_packets(&self, peer: &str, service: &str) -> Result<BridgeStream, BridgeClientError> {
        self.upgraded(peer, service, PACKETS_PROTOCOL).await
    }

    async fn upgraded(
        &self,
        peer: &str,
        service: &str,
        protocol: &'static str,
    ) -> Result<BridgeStream, BridgeClientError> {
        let path = format!("{CONNECT_PATH}/{}/{}", segment(peer)?, segment(service)?);
        let mut request = self.request(&path)?;
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(protocol));
        self.exchange(request, async |response: Response<Incoming>| {
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(refusal(response).await);
            }
            let session = response.headers().get(SESSION_HEADER);
            let session = session
                .and_then(|id| id.to_str().ok())
                .unwrap_or_default()
                .to_owned();
            let io = hyper::upgrade::on(response)
                .await
                .map_err(BridgeClientError::Upgrade)?;
            Ok(BridgeStream {
                io: TokioIo::new(io),
                session,
            })
        })
        .await
    }

    /// How a session of this operator's has ended.
    pub async fn fate_of(&self, session: &str) -> SessionFate {
        let (looks, pause) = END_LOOKS;
        for _ in 0..looks {
            match self.look_at(session).await {
                Some(SessionFate::Open) => tokio::time::sleep(pause).await,
                Some(fate) => return fate,
                None => return SessionFate::BridgeGone,
            }
        }
        SessionFate::Unknown
    }

    /// What it means that the bytes of a session have just come to an end: it is [`SessionFate::Open`] or
    /// [`SessionFate::Done`] where the service has ended them. The admin socket has but one kind of end, so
    /// the bridge is asked; over TLS a break is an error of the stream.
    pub async fn fate_at_end(&self, session: &str) -> SessionFate {
        match self.way {
            Way::Https(_) => SessionFate::Open,
            Way::Socket(_) => self.look_at(session).await.unwrap_or(SessionFate::BridgeGone),
        }
    }

    /// Waits until a session of this operator's goes on no more. It is asked for, because a stream whose
    /// one direction has ended looks the same whether the other goes on or not.
    pub async fn until_over(&self, session: &str) {
        while let Some(SessionFate::Open) = self.look_at(session).await {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn look_at(&self, session: &str) -> Option<SessionFate> {
        let request = self.request(&format!("{SESSIONS_PATH}/{session}")).ok()?;
        let answer = self.exchange(request, async |response| Ok(short_answer(response).await));
        let Ok(Ok(data)) = answer.await.ok()?.read() else {
            return Some(SessionFate::Unknown);
        };
        if data["state"] == "open" {
            return Some(SessionFate::Open);
        }
        let end = &data["end"];
        Some(match (end["outcome"].as_str(), end["reason"].as_str()) {
            (Some("done"), _) => SessionFate::Done,
            (Some(_), Some(reason)) => SessionFate::Broken(reason.to_owned()),
            _ => SessionFate::Unknown,
        })
    }

    fn request(&self, path: &str) -> Result<Request<Empty<Bytes>>, BridgeClientError> {
        let mut request = Request::builder().uri(path);
        match &self.way {
            Way::Socket(_) => request = request.header(HOST, "localhost"),
            Way::Https(https) => {
                let token = https.token.expose_text().ok_or(BridgeClientError::Token)?;
                let bearer = Zeroizing::new(format!("Bearer {}", token.trim()));
                let mut value = HeaderValue::from_str(&bearer).map_err(|_| BridgeClientError::Token)?;
                value.set_sensitive(true);
                request = request
                    .header(HOST, https.url.host().to_string())
                    .header(AUTHORIZATION, value);
            }
        }
        request
            .body(Empty::new())
            .map_err(|_| BridgeClientError::Target(path.to_owned()))
    }

    /// One request on a connection of its own, and what is made of its answer.
    async fn exchange<T>(
        &self,
        request: Request<Empty<Bytes>>,
        finish: impl AsyncFnOnce(Response<Incoming>) -> Result<T, BridgeClientError>,
    ) -> Result<T, BridgeClientError> {
        match &self.way {
            Way::Socket(path) => {
                let stream = UnixStream::connect(path)
                    .await
                    .map_err(|source| AdminError::of_connect(path, source))?;
                send(stream, request, finish).await
            }
            Way::Https(https) => {
                let dialled = timeout(DIAL_TIMEOUT, dial(https)).await;
                let stream = dialled.map_err(|_| BridgeClientError::Timeout(DIAL_TIMEOUT))?;
                let url = || https.url.to_string();
                let stream = stream.map_err(|error| match find_tls_failure(&error) {
                    Some(source) => BridgeClientError::Handshake { url: url(), source },
                    None => BridgeClientError::Dial {
                        url: url(),
                        source: error,
                    },
                })?;
                send(stream, request, finish).await
            }
        }
    }
}

async fn dial(https: &Https) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let host = https.url.host();
    let stream = TcpStream::connect((host.host(), host.port())).await?;
    // Keys are pressed one at a time.
    stream.set_nodelay(true)?;
    https.tls.connect(https.name.clone(), stream).await
}

async fn send<S, T>(
    stream: S,
    request: Request<Empty<Bytes>>,
    finish: impl AsyncFnOnce(Response<Incoming>) -> Result<T, BridgeClientError>,
) -> Result<T, BridgeClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(BridgeClientError::Broken)?;
    let exchange = async {
        let response = timeout(ANSWER_TIMEOUT, sender.send_request(request))
            .await
            .map_err(|_| BridgeClientError::Timeout(ANSWER_TIMEOUT))?
            .map_err(BridgeClientError::Broken)?;
        finish(response).await
    };
    let mut exchange = pin!(exchange);
    let mut connection = pin!(connection.with_upgrades());
    // The connection has to be driven for the answer to arrive; when it ends first, it has become the
    // stream, or the answer's own error says why.
    tokio::select! {
        biased;
        done = &mut exchange => done,
        _ = &mut connection => exchange.await,
    }
}

/// An answer whose body is expected to be short; without it where it is not.
async fn short_answer(response: Response<Incoming>) -> Answer {
    let status = response.status();
    let body = Limited::new(response.into_body(), REFUSAL_MAX_BYTES).collect();
    let body = match timeout(ANSWER_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) | Err(_) => Bytes::new(),
    };
    Answer { status, body }
}

async fn refusal(response: Response<Incoming>) -> BridgeClientError {
    let answer = short_answer(response).await;
    let message = match answer.read() {
        Ok(Err(refused)) if !refused.error.is_empty() => refused.error,
        _ => format!("the host-bridge answered HTTP {}", answer.status.as_u16()),
    };
    BridgeClientError::Refused {
        status: answer.status,
        message,
    }
}

/// A name or id as one part of a path.
fn segment(text: &str) -> Result<&str, BridgeClientError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !text.is_empty() && text.chars().all(plain) && !matches!(text, "." | "..") {
        return Ok(text);
    }
    Err(BridgeClientError::Target(crate::base::limit::foreign_text(text)))
}
