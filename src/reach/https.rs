//! One HTTPS request to a host that is no host-bridge: a platform's node API. TLS 1.3, HTTP/1.1, one
//! connection for each request, through a proxy where one is for that host. What is asked, and what an
//! answer means, is not known here.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1 as client;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::connect::RESOLVE_TIMEOUT;
use super::dial::certificate_time;
use super::presented::{Presented, PresentedError};
use super::proxy::{self, ProxyError};
use super::tcp::{CONNECT_TIMEOUT, certificate_name};
use crate::contract::invitation::{HostPort, ParentTrust};
use crate::identity::anchors::Anchors;
use crate::identity::tls::{ClientTls, TlsConfigError, client_config};
use crate::identity::tls_failure::{FailureRecord, TlsFailure, find_tls_failure};
use crate::machine::membership::StoredIdentity;
use crate::process::blocking;
use crate::process::clock::Clock;
use crate::process::config::proxy::Proxy;
use crate::process::connection::{BoxedConnection, boxed};
use crate::tunnel::http::HttpLimits;
use crate::tunnel::tcp::HANDSHAKE_TIMEOUT;

/// Whom to ask, by what it is known, and as whom.
#[derive(Debug, Clone)]
pub struct HttpsTarget {
    /// Host and port.
    pub host: HostPort,
    /// By what the host is known.
    pub trust: ParentTrust,
    /// Anchors that were learned since, as PEM: they stand beside the trust as for a host-bridge.
    pub learned: Option<String>,
    /// What is shown, where the host wants to know who asks.
    pub identity: Option<StoredIdentity>,
    /// The proxy that is for this host, if one is.
    pub proxy: Option<Proxy>,
    /// The time.
    pub clock: Clock,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum HttpsError {
    /// The identity to be shown cannot be used.
    #[error("the stored identity cannot be used")]
    Identity(#[from] PresentedError),
    /// There is nothing to know the host by.
    #[error("cannot prepare the connection to {host}")]
    Trust {
        /// Whom.
        host: HostPort,
        /// Why.
        #[source]
        source: TlsConfigError,
    },
    /// It is not there.
    #[error("no TCP connection to {host}; check the network and DNS of this box, and that {host} runs")]
    NotReached {
        /// Whom.
        host: HostPort,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The proxy did not open the way.
    #[error("the proxy opens no way to {host}")]
    Proxy {
        /// Whom.
        host: HostPort,
        /// Why.
        #[source]
        source: ProxyError,
    },
    /// It is not who it should be, or it does not take this box.
    #[error("no TLS connection to {host}")]
    Tls {
        /// Whom.
        host: HostPort,
        /// Why.
        #[source]
        source: TlsFailure,
    },
    /// It took the connection and then nothing came, before anything was asked.
    #[error("{host} did not complete the handshake")]
    Handshake {
        /// Whom.
        host: HostPort,
    },
    /// The request may have arrived; its answer did not.
    #[error("{host} gave no whole answer: {why}")]
    Lost {
        /// Whom.
        host: HostPort,
        /// What happened.
        why: String,
    },
}

impl HttpsError {
    /// Whether the other side may have received the request.
    pub const fn may_have_arrived(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

/// Sends the request and reads the whole answer, within the limits.
pub async fn request(
    target: HttpsTarget,
    request: Request<Full<Bytes>>,
    limits: HttpLimits,
) -> Result<Response<Bytes>, HttpsError> {
    let host = target.host.clone();
    let stream = connect(target).await?;
    let lost = |why: String| HttpsError::Lost {
        host: host.clone(),
        why,
    };
    let exchange = async {
        let (mut sender, connection) = client::Builder::new()
            .max_buf_size(limits.head_bytes)
            .handshake(TokioIo::new(boxed(stream)))
            .await
            .map_err(|error| after_handshake(&host, &error))?;
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(sender.send_request(request));
        let mut done = false;
        let (head, body) = loop {
            tokio::select! {
                response = &mut answer => match response {
                    Ok(response) => break response.into_parts(),
                    Err(error) => return Err(after_handshake(&host, &error)),
                },
                ended = &mut connection, if !done => {
                    done = true;
                    // What it ended with is what the answer fails with, unless it is a refusal of TLS's.
                    if let Err(error) = ended && find_tls_failure(&error).is_some() {
                        return Err(after_handshake(&host, &error));
                    }
                }
            }
        };
        let read = Limited::new(body, limits.body_bytes).collect();
        let mut read = std::pin::pin!(read);
        let body = loop {
            tokio::select! {
                body = &mut read => break body,
                _ = &mut connection, if !done => done = true,
            }
        };
        match body {
            Ok(body) => Ok(Response::from_parts(head, body.to_bytes())),
            Err(error) => Err(lost(error.to_string())),
        }
    };
    match tokio::time::timeout(limits.timeout, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(lost(format!(
            "nothing came within {} s",
            limits.timeout.as_secs()
        ))),
    }
}

/// In TLS 1.3 a server refuses a client's certificate after the client has taken the handshake for done; such
/// a server has not looked at the request.
fn after_handshake(host: &HostPort, error: &hyper::Error) -> HttpsError {
    match find_tls_failure(error) {
        Some(source) => HttpsError::Tls {
            host: host.clone(),
            source,
        },
        None => HttpsError::Lost {
            host: host.clone(),
            why: error.to_string(),
        },
    }
}

async fn connect(
    target: HttpsTarget,
) -> Result<tokio_rustls::client::TlsStream<BoxedConnection>, HttpsError> {
    let HttpsTarget {
        host,
        trust,
        learned,
        identity,
        proxy,
        clock,
    } = target;
    let failures = FailureRecord::default();
    let noted = failures.clone();
    let (time, of_host) = (certificate_time(&clock), host.clone());
    let proxy_time = Arc::clone(&time);
    // The system's roots are files.
    let config = blocking::run(move || {
        let learned = learned.as_deref().map(Anchors::from_pem).transpose();
        let learned = learned.map_err(PresentedError::from)?;
        let shown = identity.as_ref().map(Presented::read).transpose()?;
        client_config(ClientTls {
            trust: &trust,
            learned: learned.as_ref(),
            identity: shown.map(|shown| shown.fixed().0),
            alpn: &[b"http/1.1"],
            time,
            failures: noted,
        })
        .map_err(|source| HttpsError::Trust {
            host: of_host,
            source,
        })
    });
    let config = config.await?;
    let Some(name) = certificate_name(host.host()) else {
        let source = io::ErrorKind::InvalidInput.into();
        return Err(HttpsError::NotReached { host, source });
    };
    let io = match proxy {
        Some(proxy) => {
            let opened = proxy::open(&proxy, &host.to_string(), proxy_time).await;
            let (io, _) = opened.map_err(|source| HttpsError::Proxy {
                host: host.clone(),
                source,
            })?;
            io
        }
        None => reach(&host).await?,
    };
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, io);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, shaken).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(match failures.take().or_else(|| find_tls_failure(&error)) {
            Some(source) => HttpsError::Tls { host, source },
            None => HttpsError::Handshake { host },
        }),
        Err(_) => Err(HttpsError::Handshake { host }),
    }
}

/// Tries all of the host's addresses in turn.
async fn reach(host: &HostPort) -> Result<BoxedConnection, HttpsError> {
    let connecting = TcpStream::connect((host.host(), host.port()));
    let within = RESOLVE_TIMEOUT + CONNECT_TIMEOUT;
    let connected = match tokio::time::timeout(within, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    match connected {
        Ok(stream) => Ok(boxed(stream)),
        Err(source) => Err(HttpsError::NotReached {
            host: host.clone(),
            source,
        }),
    }
}
