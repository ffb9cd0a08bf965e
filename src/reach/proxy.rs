//! One dial of the proxy rung: an HTTP CONNECT proxy opens the way to a host-bridge, and the
//! tunnel's transport runs over it. The proxy resolves the host-bridge's name and sees nothing of
//! what passes. Which proxy it is and whom it is for is the configuration's.

mod answer;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use self::answer::Answer;
use super::tcp::{CONNECT_TIMEOUT, certificate_name};
use crate::base::limit::foreign_text;
use crate::base::radix::BASE64;
use crate::base::secret::Secret;
use crate::contract::invitation::{HostPort, ParentTrust};
use crate::identity::tls::{ClientTls, TimeSource, TlsConfigError, client_config};
use crate::identity::tls_failure::{FailureRecord, TlsFailure, find_tls_failure};
use crate::process::blocking;
use crate::process::config::proxy::{Proxy, ProxyCredentials, ProxyUrl};
use crate::process::connection::{BoxedConnection, boxed};
use crate::tunnel::tcp::{self as transport, TcpSettings};
use crate::tunnel::transport::{Outlook, Transport, TransportClosed};

/// Time for the proxy to open the way, from its first byte on: it resolves and dials itself.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Largest credentials file, in bytes: a name and a password on one line.
const CREDENTIALS_MAX_BYTES: u64 = 4 * 1024;

/// Why a dial failed.
#[derive(Debug, Error)]
pub enum DialError {
    /// The proxy did not open the way.
    #[error("the proxy {proxy} opens no way to {target}")]
    Proxy {
        /// Which proxy.
        proxy: ProxyUrl,
        /// To whom, `host:port`.
        target: String,
        /// Why.
        #[source]
        source: ProxyError,
    },
    /// It did, and the connection was closed during the handshake behind it.
    #[error("no tunnel connection to {target} through the proxy {proxy}")]
    Closed {
        /// Which proxy.
        proxy: ProxyUrl,
        /// To whom, `host:port`.
        target: String,
        /// Why.
        #[source]
        reason: TransportClosed,
    },
    /// It was not even tried.
    #[error("`{host}` is no name that a certificate can have; write a DNS name or an address")]
    Name {
        /// The name.
        host: String,
    },
}

/// What a proxy did instead of opening the way.
#[derive(Debug, Error)]
pub enum ProxyError {
    /// It is not there.
    #[error("it cannot be reached; check tunnel.proxy or HTTPS_PROXY, and that it runs")]
    Unreachable(#[source] io::Error),
    /// It does not answer.
    #[error("it did not answer within {} s", .within.as_secs())]
    TimedOut {
        /// The limit.
        within: Duration,
    },
    /// No TLS configuration for a proxy with `https://`.
    #[error("its certificate cannot be checked")]
    Trust(#[source] TlsConfigError),
    /// Its certificate, for a proxy with `https://`.
    #[error("the TLS connection to the proxy itself failed")]
    Tls(#[source] TlsFailure),
    /// The connection to it broke off.
    #[error("the connection to it was lost before it had answered")]
    Lost(#[source] io::Error),
    /// The credentials cannot be had.
    #[error("the file {} with its user and password cannot be read", .path.display())]
    Credentials {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The credentials are none.
    #[error("its user and password must be one line `user:password`")]
    MalformedCredentials,
    /// It asks who this is.
    #[error(
        "it asks for a user and a password (407); put `user:password` into a file and name it in tunnel.proxy_credentials_file"
    )]
    AuthenticationRequired,
    /// It asks for something else than a password.
    #[error(
        "it asks for an authentication that this program does not have (407, {schemes}); it must allow Basic, or this host-bridge without authentication"
    )]
    AuthenticationUnknown {
        /// What it asks for.
        schemes: String,
    },
    /// It does not know this user or password.
    #[error("it refuses user and password (407); check them with whoever runs it")]
    AuthenticationRefused,
    /// It does not allow this target.
    #[error(
        "it does not allow this target ({status} {reason}); have host and port of the host-bridge allowed for CONNECT"
    )]
    Forbidden {
        /// Its status.
        status: u16,
        /// Its words.
        reason: String,
    },
    /// It could not get there itself.
    #[error(
        "it could not reach the host-bridge itself ({status} {reason}); does its network resolve the name, and does the host-bridge run?"
    )]
    Unavailable {
        /// Its status.
        status: u16,
        /// Its words.
        reason: String,
    },
    /// Any other answer.
    #[error("it answered CONNECT with {status} {reason}; is it a proxy that forwards HTTPS?")]
    Unexpected {
        /// Its status.
        status: u16,
        /// Its words.
        reason: String,
    },
    /// No answer of HTTP's.
    #[error("it is no HTTP proxy: {why}")]
    NoProxy {
        /// What is wrong.
        why: String,
    },
}

impl DialError {
    /// Whether another attempt may fare better.
    pub fn outlook(&self) -> Outlook {
        match self {
            Self::Proxy { source, .. } => source.outlook(),
            Self::Closed { reason, .. } => reason.outlook(),
            Self::Name { .. } => Outlook::Permanent,
        }
    }
}

impl ProxyError {
    /// Whether another attempt may fare better without anybody changing anything.
    pub fn outlook(&self) -> Outlook {
        match self {
            Self::Unreachable(_)
            | Self::TimedOut { .. }
            | Self::Lost(_)
            | Self::Unavailable { .. }
            | Self::Unexpected { .. } => Outlook::Retryable,
            Self::Tls(failure) if failure.may_pass() => Outlook::Retryable,
            Self::Tls(_)
            | Self::Trust(_)
            | Self::Credentials { .. }
            | Self::MalformedCredentials
            | Self::AuthenticationRequired
            | Self::AuthenticationUnknown { .. }
            | Self::AuthenticationRefused
            | Self::Forbidden { .. }
            | Self::NoProxy { .. } => Outlook::Permanent,
        }
    }

    fn refused(answer: Answer, authenticated: bool) -> Self {
        let Answer {
            status,
            reason,
            schemes,
        } = answer;
        let basic = schemes.iter().any(|scheme| scheme.eq_ignore_ascii_case("basic"));
        match status {
            407 if !basic && !schemes.is_empty() => Self::AuthenticationUnknown {
                schemes: schemes.join(", "),
            },
            407 if authenticated => Self::AuthenticationRefused,
            407 => Self::AuthenticationRequired,
            401 | 403 | 405 => Self::Forbidden { status, reason },
            500..=599 => Self::Unavailable { status, reason },
            _ => Self::Unexpected { status, reason },
        }
    }
}

/// Dials `host`, which the proxy resolves, through `proxy`. The certificate is checked for `host`;
/// `failures` is the record that `tls` was made with, whose verdict the error takes over. `time` is for the
/// certificate of a proxy with `https://`, which the system's authorities must have issued.
pub async fn dial(
    proxy: &Proxy,
    host: &str,
    port: u16,
    tls: rustls::ClientConfig,
    failures: &FailureRecord,
    time: TimeSource,
    settings: TcpSettings,
) -> Result<Arc<dyn Transport>, DialError> {
    let name = certificate_name(host).ok_or_else(|| DialError::Name {
        host: foreign_text(host),
    })?;
    let target = match name {
        ServerName::IpAddress(_) if host.contains(':') => format!("[{host}]:{port}"),
        _ => format!("{host}:{port}"),
    };
    let opened = open(proxy, &target, time).await;
    let (io, address) = opened.map_err(|source| DialError::Proxy {
        proxy: proxy.url.clone(),
        target: target.clone(),
        source,
    })?;
    transport::connect(io, address, name, tls, failures, settings)
        .await
        .map_err(|reason| DialError::Closed {
            proxy: proxy.url.clone(),
            target,
            reason,
        })
}

/// Has the proxy open the way.
pub(super) async fn open(
    proxy: &Proxy,
    target: &str,
    time: TimeSource,
) -> Result<(BoxedConnection, SocketAddr), ProxyError> {
    let credentials = match &proxy.credentials {
        Some(credentials) => Some(credentials_text(credentials).await?),
        None => None,
    };
    let stream = reach(&proxy.url.address).await?;
    transport::tune(&stream);
    let address = stream.peer_addr().map_err(ProxyError::Unreachable)?;
    let within = ANSWER_TIMEOUT;
    let opening = async {
        let mut io: BoxedConnection = if proxy.url.tls {
            encrypt(stream, proxy.url.address.host(), time).await?
        } else {
            Box::new(stream)
        };
        let request = request(target, credentials.as_ref());
        io.write_all(&request).await.map_err(ProxyError::Lost)?;
        io.flush().await.map_err(ProxyError::Lost)?;
        let answer = read_answer(&mut io).await?;
        if answer.connected() {
            Ok((io, address))
        } else {
            Err(ProxyError::refused(answer, credentials.is_some()))
        }
    };
    tokio::time::timeout(within, opening)
        .await
        .unwrap_or(Err(ProxyError::TimedOut { within }))
}

/// Tries all of the proxy's addresses within [`CONNECT_TIMEOUT`].
async fn reach(proxy: &HostPort) -> Result<TcpStream, ProxyError> {
    let within = CONNECT_TIMEOUT;
    let connecting = TcpStream::connect((proxy.host(), proxy.port()));
    tokio::time::timeout(within, connecting)
        .await
        .map_err(|_| ProxyError::TimedOut { within })?
        .map_err(ProxyError::Unreachable)
}

async fn encrypt(stream: TcpStream, host: &str, time: TimeSource) -> Result<BoxedConnection, ProxyError> {
    let name = certificate_name(host).ok_or_else(|| ProxyError::NoProxy {
        why: "its name cannot be a certificate's".to_owned(),
    })?;
    // The system's roots are files.
    let config = blocking::run(move || {
        client_config(ClientTls {
            trust: &ParentTrust::SystemRoots,
            learned: None,
            identity: None,
            alpn: &[b"http/1.1"],
            time,
            failures: FailureRecord::default(),
        })
    });
    let config = config.await.map_err(ProxyError::Trust)?;
    match TlsConnector::from(Arc::new(config))
        .connect(name, boxed(stream))
        .await
    {
        Ok(stream) => Ok(boxed(stream)),
        Err(error) => Err(match find_tls_failure(&error) {
            Some(failure) => ProxyError::Tls(failure),
            None => ProxyError::Lost(error),
        }),
    }
}

/// It may hold a password: wiped when it has left.
fn request(target: &str, credentials: Option<&Secret>) -> Zeroizing<Vec<u8>> {
    let mut request = Zeroizing::new(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes());
    if let Some(credentials) = credentials {
        let encoded = Zeroizing::new(BASE64.encode(credentials.expose()));
        request.extend_from_slice(b"Proxy-Authorization: Basic ");
        request.extend_from_slice(encoded.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    request
}

async fn read_answer(io: &mut BoxedConnection) -> Result<Answer, ProxyError> {
    let mut head = Vec::new();
    loop {
        let read = answer::read(&head).map_err(|no_answer| ProxyError::NoProxy {
            why: no_answer.to_string(),
        })?;
        if let Some(answer) = read {
            return Ok(answer);
        }
        match io.read_buf(&mut head).await {
            Ok(0) => return Err(ProxyError::Lost(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) => return Err(ProxyError::Lost(error)),
        }
    }
}

async fn credentials_text(credentials: &ProxyCredentials) -> Result<Secret, ProxyError> {
    let secret = match credentials {
        ProxyCredentials::Given(secret) => secret.clone(),
        ProxyCredentials::File(path) => {
            read_credentials(path)
                .await
                .map_err(|source| ProxyError::Credentials {
                    path: path.clone(),
                    source,
                })?
        }
    };
    let text = secret.expose().trim_ascii_end();
    let well_formed = text.contains(&b':') && !text.iter().any(u8::is_ascii_control);
    if well_formed {
        Ok(Secret::new(text.to_vec()))
    } else {
        Err(ProxyError::MalformedCredentials)
    }
}

async fn read_credentials(path: &Path) -> io::Result<Secret> {
    let file = tokio::fs::File::open(path).await?;
    let mut content = Vec::new();
    file.take(CREDENTIALS_MAX_BYTES).read_to_end(&mut content).await?;
    Ok(Secret::new(content))
}
