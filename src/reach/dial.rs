//! One dial of one address on one rung: shake hands, greet. Which is tried when is the machines'
//! decision; here a single dial succeeds or fails with a reason.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::interfaces::source_towards;
use super::presented::{Presented, PresentedError};
use super::{proxy, tcp};
use crate::contract::invitation::ParentTrust;
use crate::identity::tls::{ClientTls, TimeSource, TlsConfigError, client_config};
use crate::identity::tls_failure::{FailureRecord, TlsFailure};
use crate::machine::ladder::{DialTarget, Setback};
use crate::machine::membership::StoredIdentity;
use crate::process::blocking;
use crate::process::clock::Clock;
use crate::process::config::proxy::Proxy;
use crate::tunnel::quic::{self, QuicEndpoint, QuicSettings};
use crate::tunnel::tcp::TcpSettings;
use crate::tunnel::transport::{Outlook, Side, Transport, TransportClosed};
use crate::tunnel::{GreetingError, Tunnel, TunnelDriver, TunnelSettings};
use crate::wire::{Hello, RefusalCode, TUNNEL_ALPN, TUNNEL_VERSION, Welcome};

/// Time for handshake and greeting together. Longer than the handshake alone may take, so that an
/// address that does not answer always fails by that limit and in its words.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(15);

const _: () = assert!(DIAL_TIMEOUT.as_secs() > quic::HANDSHAKE_TIMEOUT.as_secs());

/// Program and version, as the other side's log shows it.
pub const AGENT: &str = concat!("powernode-satellite/", env!("CARGO_PKG_VERSION"));

/// What a dial presents and by what it knows the parent.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// By what the parent is known.
    pub trust: ParentTrust,
    /// The certificate and key, once there are some.
    pub identity: Option<StoredIdentity>,
}

/// What this side says of itself on whatever way.
#[derive(Debug, Clone)]
pub struct Introduction {
    /// What it presents and by what it knows the parent.
    pub credentials: Credentials,
    /// Optional features, for the hello.
    pub features: Vec<String>,
    /// Limits of the tunnel.
    pub settings: TunnelSettings,
    /// The time.
    pub clock: Clock,
}

/// Why a dial failed.
#[derive(Debug, Error)]
pub enum DialError {
    /// The stored identity cannot be used.
    #[error("the stored identity cannot be used; join again with a new invitation")]
    Identity(#[source] PresentedError),
    /// No TLS configuration can be made of it.
    #[error("cannot prepare the connection to the parent")]
    Tls(#[source] TlsConfigError),
    /// No socket can be had on this box.
    #[error("cannot open a UDP socket")]
    Socket(#[source] quic::BindError),
    /// This box cannot send there at all.
    #[error("this box has no route to {address} of the host-bridge {host}; check its network")]
    NoRoute {
        /// Whom.
        host: String,
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Nothing answered, or the connection failed.
    #[error("no connection to the host-bridge {host}")]
    Connect {
        /// Whom.
        host: String,
        /// Why.
        #[source]
        source: quic::DialError,
    },
    /// The same over TCP.
    #[error("no connection to the host-bridge {host}")]
    Tcp {
        /// Whom.
        host: String,
        /// Why.
        #[source]
        source: tcp::DialError,
    },
    /// The same through a proxy.
    #[error(transparent)]
    Proxy(Box<proxy::DialError>),
    /// It answered and refused, or did not complete the greeting.
    #[error("the host-bridge {host} at {address} did not take the tunnel")]
    Greeting {
        /// Whom.
        host: String,
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: GreetingError,
    },
    /// Too slow.
    #[error(
        "the host-bridge {host} at {address} did not answer within {} s; check that it runs and that the network lets it through",
        DIAL_TIMEOUT.as_secs()
    )]
    TimedOut {
        /// Whom.
        host: String,
        /// Where.
        address: SocketAddr,
    },
}

impl DialError {
    /// Whether the other side answered and did not take what this box presented.
    pub fn refuses_identity(&self) -> bool {
        let by_tls = |closed: &TransportClosed| {
            matches!(
                closed,
                TransportClosed::Tls {
                    found_by: Side::Theirs,
                    ..
                }
            )
        };
        match self {
            Self::Greeting {
                source: GreetingError::Refused(refused),
                ..
            } => matches!(
                refused.code,
                RefusalCode::NotAdmitted | RefusalCode::CertificateRequired
            ),
            // A server looks at a certificate after the dialer has taken the handshake for done.
            Self::Greeting {
                source: GreetingError::Transport(closed),
                ..
            } => by_tls(closed),
            Self::Identity(_) => true,
            _ => self.closed().is_some_and(by_tls),
        }
    }

    /// Why the connection was closed, where it failed in its handshake.
    fn closed(&self) -> Option<&TransportClosed> {
        match self {
            Self::Connect {
                source: quic::DialError::Closed { reason, .. },
                ..
            }
            | Self::Tcp {
                source: tcp::DialError::Closed { reason, .. },
                ..
            } => Some(reason),
            Self::Proxy(error) => match &**error {
                proxy::DialError::Closed { reason, .. } => Some(reason),
                proxy::DialError::Proxy { .. } | proxy::DialError::Name { .. } => None,
            },
            Self::Connect { .. }
            | Self::Tcp { .. }
            | Self::Identity(_)
            | Self::Tls(_)
            | Self::Socket(_)
            | Self::NoRoute { .. }
            | Self::Greeting { .. }
            | Self::TimedOut { .. } => None,
        }
    }

    /// Whether the host-bridge itself answered, and refused: it would say the same on every other way.
    pub fn is_answer(&self) -> bool {
        let refused = matches!(
            self,
            Self::Greeting {
                source: GreetingError::Refused(_),
                ..
            }
        );
        refused || self.refuses_identity()
    }

    /// Whether something spoke at the other end, whatever it said: the network is then not what is in the way.
    pub fn was_heard(&self) -> bool {
        matches!(self, Self::Greeting { .. } | Self::Identity(_))
            || matches!(self.closed(), Some(TransportClosed::Tls { .. }))
    }

    /// How much it says, compared with what other addresses of the same host-bridge say.
    pub(super) fn weight(&self) -> u8 {
        match self {
            Self::NoRoute { .. } => 0,
            Self::TimedOut { .. } => 1,
            Self::Connect { .. } | Self::Tcp { .. } | Self::Proxy(_) => 2,
            Self::Socket(_) | Self::Tls(_) | Self::Identity(_) => 3,
            Self::Greeting { .. } => 4,
        }
    }

    /// What the next try depends on.
    pub fn setback(&self) -> Setback {
        match self {
            Self::Identity(_) => Setback::Persistent,
            Self::Tls(_) | Self::Socket(_) | Self::NoRoute { .. } | Self::TimedOut { .. } => {
                Setback::Transient
            }
            Self::Connect { source, .. } => setback(source.outlook()),
            Self::Tcp { source, .. } => setback(source.outlook()),
            Self::Proxy(source) => setback(source.outlook()),
            Self::Greeting { source, .. } => match (source.retry_after(), source.outlook()) {
                (Some(told), _) => Setback::RetryAfter(told),
                (None, Outlook::Permanent) => Setback::Persistent,
                (None, Outlook::Retryable) => Setback::Transient,
            },
        }
    }
}

const fn setback(outlook: Outlook) -> Setback {
    match outlook {
        Outlook::Permanent => Setback::Persistent,
        Outlook::Retryable => Setback::Transient,
    }
}

/// By what a host-bridge is reached.
#[derive(Debug, Clone, PartialEq)]
pub enum Way {
    /// QUIC to the address.
    Quic,
    /// TLS over TCP to the address.
    Tls,
    /// The same through this proxy, which resolves the name itself: of the address the port counts.
    Proxy(Proxy),
}

/// A tunnel that is up.
pub struct Established {
    /// The tunnel.
    pub tunnel: Tunnel,
    /// To be run by a task.
    pub driver: TunnelDriver,
    /// What the bridge said.
    pub welcome: Welcome,
}

/// Dials one address within [`DIAL_TIMEOUT`].
pub async fn dial(
    target: &DialTarget,
    way: &Way,
    introduction: Introduction,
) -> Result<Established, DialError> {
    let (host, address) = (target.host.clone(), target.address);
    let attempt = dial_unbounded(target, way, introduction);
    match tokio::time::timeout(DIAL_TIMEOUT, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err(DialError::TimedOut { host, address }),
    }
}

async fn dial_unbounded(
    target: &DialTarget,
    way: &Way,
    introduction: Introduction,
) -> Result<Established, DialError> {
    let Introduction {
        credentials,
        features,
        settings,
        clock,
    } = introduction;
    let time = certificate_time(&clock);
    let transport = match connect(target, way, credentials.clone(), time, settings).await {
        Err(error) => match time_for_doubtful_clock(&error, &clock) {
            Some(time) => connect(target, way, credentials, time, settings).await?,
            None => return Err(error),
        },
        Ok(transport) => transport,
    };
    let hello = Hello {
        version: TUNNEL_VERSION,
        agent: AGENT.to_owned(),
        features,
    };
    match Tunnel::dial(transport, hello, settings, clock).await {
        Ok((tunnel, welcome, driver)) => Ok(Established {
            tunnel,
            driver,
            welcome,
        }),
        Err(source) => Err(DialError::Greeting {
            host: target.host.clone(),
            address: target.address,
            source,
        }),
    }
}

async fn connect(
    target: &DialTarget,
    way: &Way,
    credentials: Credentials,
    time: TimeSource,
    settings: TunnelSettings,
) -> Result<Arc<dyn Transport>, DialError> {
    let max_streams = settings.max_streams;
    let failures = FailureRecord::default();
    let config = tls_config(credentials, Arc::clone(&time), failures.clone()).await?;
    let (host, address) = (&target.host, target.address);
    if !matches!(way, Way::Proxy(_)) {
        // QUIC takes an absent route for loss and would wait its whole time: for each IPv6 address of the
        // parent, on a box that has IPv4 alone.
        source_towards(address).map_err(|source| DialError::NoRoute {
            host: host.clone(),
            address,
            source,
        })?;
    }
    match way {
        Way::Quic => {
            // A new socket for each dial: a port that some router on the way has black-holed is left behind.
            let endpoint = QuicEndpoint::client(QuicSettings::from(&settings)).map_err(DialError::Socket)?;
            endpoint
                .dial(address, host, config, &failures)
                .await
                .map_err(|source| DialError::Connect {
                    host: host.clone(),
                    source,
                })
        }
        Way::Tls => tcp::dial(address, host, config, &failures, TcpSettings { max_streams })
            .await
            .map_err(|source| DialError::Tcp {
                host: host.clone(),
                source,
            }),
        Way::Proxy(via) => {
            let settings = TcpSettings { max_streams };
            proxy::dial(via, host, address.port(), config, &failures, time, settings)
                .await
                .map_err(|error| DialError::Proxy(Box::new(error)))
        }
    }
}

/// A board that has lost its clock may be older than the bridge's certificate and would never get
/// to the parent that could tell it the time. While the clock is in doubt, the begin of a validity
/// proves no less about the time than the clock does; the end is checked as ever.
fn time_for_doubtful_clock(error: &DialError, clock: &Clock) -> Option<TimeSource> {
    clock.trusted().doubt?;
    let reason = error.closed()?;
    let TransportClosed::Tls {
        failure: TlsFailure::NotYetValid { not_before, .. },
        ..
    } = reason
    else {
        return None;
    };
    tracing::warn!(%not_before, "the clock of this box is in doubt; taking the begin of the parent's certificate for the time");
    let (clock, not_before) = (clock.clone(), *not_before);
    Some(Arc::new(move || clock.trusted().now.max(not_before)))
}

/// The time that certificates are checked against.
pub fn certificate_time(clock: &Clock) -> TimeSource {
    let clock = clock.clone();
    Arc::new(move || clock.trusted().now)
}

/// The system's roots are files: not read on the runtime's thread.
async fn tls_config(
    credentials: Credentials,
    time: TimeSource,
    failures: FailureRecord,
) -> Result<rustls::ClientConfig, DialError> {
    let build = move || -> Result<rustls::ClientConfig, DialError> {
        let identity = credentials
            .identity
            .as_ref()
            .map(Presented::read)
            .transpose()
            .map_err(DialError::Identity)?;
        let (identity, learned) = identity.map(Presented::fixed).unzip();
        client_config(ClientTls {
            trust: &credentials.trust,
            learned: learned.as_ref(),
            identity,
            alpn: &[TUNNEL_ALPN],
            time,
            failures,
        })
        .map_err(DialError::Tls)
    };
    blocking::run(build).await
}
