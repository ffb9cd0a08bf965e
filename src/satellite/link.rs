//! One attempt at a tunnel: resolve the parent's names, shake hands, greet. Which address is tried
//! when is the machine's decision; here a single dial succeeds or fails with a reason.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;

use crate::base::time::UnixTime;
use crate::contract::invitation::ParentTrust;
use crate::identity::anchors::{Anchors, AnchorsError};
use crate::identity::certificate::{CertificateChain, PemError};
use crate::identity::key::{InvalidPrivateKey, PrivateKey};
use crate::identity::tls::{
    ClientTls, TimeSource, TlsConfigError, TlsIdentity, TlsIdentityError, client_config,
};
use crate::identity::tls_failure::{FailureRecord, TlsFailure};
use crate::machine::membership::{Parent, StoredIdentity};
use crate::machine::reconnect::{DialTarget, Setback, TARGETS_MAX};
use crate::process::clock::Clock;
use crate::process::config::proxy::Proxy;
use crate::process::config::satellite::{TunnelTransport, Ways};
use crate::reach::{proxy, tcp};
use crate::tunnel::quic::{self, QuicEndpoint, QuicSettings};
use crate::tunnel::tcp::TcpSettings;
use crate::tunnel::transport::{Outlook, Side, Transport, TransportClosed};
use crate::tunnel::{GreetingError, Tunnel, TunnelDriver, TunnelSettings};
use crate::wire::{Hello, RefusalCode, TUNNEL_ALPN, TUNNEL_VERSION, Welcome};

/// Time for handshake and greeting together. Longer than the handshake alone may take, so that an
/// address that does not answer always fails by that limit and in its words.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(15);

const _: () = assert!(DIAL_TIMEOUT.as_secs() > quic::HANDSHAKE_TIMEOUT.as_secs());

/// Time for the resolver; its own default of several servers and tries is about this.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Why a dial failed.
#[derive(Debug, Error)]
pub enum DialError {
    /// The stored identity cannot be used.
    #[error("the stored identity cannot be used; join again with a new invitation")]
    Identity(#[source] IdentityError),
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
        "the host-bridge {host} at {address} did not answer within {} s; check that it runs and that UDP gets out",
        DIAL_TIMEOUT.as_secs()
    )]
    TimedOut {
        /// Whom.
        host: String,
        /// Where.
        address: SocketAddr,
    },
}

/// Why a stored identity is unusable.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The key.
    #[error(transparent)]
    Key(#[from] InvalidPrivateKey),
    /// The certificate.
    #[error(transparent)]
    Certificate(#[from] PemError),
    /// The anchors.
    #[error(transparent)]
    Anchors(#[from] AnchorsError),
    /// The two together.
    #[error(transparent)]
    Pair(#[from] TlsIdentityError),
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
            Self::Connect {
                source: quic::DialError::Closed { reason, .. },
                ..
            }
            | Self::Tcp {
                source: tcp::DialError::Closed { reason, .. },
                ..
            } => by_tls(reason),
            Self::Proxy(error) => {
                matches!(&**error, proxy::DialError::Closed { reason, .. } if by_tls(reason))
            }
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
            Self::Tls(_)
            | Self::Socket(_)
            | Self::Connect { .. }
            | Self::Tcp { .. }
            | Self::Greeting { .. }
            | Self::NoRoute { .. }
            | Self::TimedOut { .. } => false,
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

/// A tunnel that is up.
pub struct Established {
    /// The tunnel.
    pub tunnel: Tunnel,
    /// To be run by a task.
    pub driver: TunnelDriver,
    /// What the bridge said.
    pub welcome: Welcome,
}

/// Addresses of the parent's bridges: what the resolver says now, and behind that what worked
/// before, for boxes whose DNS is away.
pub async fn resolve(parent: &Parent, remembered: &[DialTarget], ways: &Ways) -> Vec<DialTarget> {
    let mut targets: Vec<DialTarget> = Vec::new();
    for bridge in parent.dial_addresses() {
        if proxy_for(ways, bridge.host(), bridge.port()).is_some() {
            // The proxy resolves it.
            targets.push(DialTarget {
                host: bridge.host().to_owned(),
                address: (Ipv4Addr::UNSPECIFIED, bridge.port()).into(),
            });
            continue;
        }
        let lookup = tokio::net::lookup_host((bridge.host().to_owned(), bridge.port()));
        match tokio::time::timeout(RESOLVE_TIMEOUT, lookup).await {
            Ok(Ok(addresses)) => {
                targets.extend(addresses.map(|address| DialTarget {
                    host: bridge.host().to_owned(),
                    address,
                }));
            }
            Ok(Err(error)) => tracing::debug!(bridge = %bridge, %error, "name not resolved"),
            Err(_) => tracing::debug!(bridge = %bridge, "resolver too slow"),
        }
    }
    // An address of a bridge that was named before, or of another port, is none of the parent's now.
    let bridges = parent.dial_addresses();
    let still_named = |target: &&DialTarget| {
        bridges
            .iter()
            .any(|bridge| bridge.host() == target.host && bridge.port() == target.address.port())
    };
    let remembered: Vec<DialTarget> = remembered.iter().filter(still_named).cloned().collect();
    targets.extend(remembered.iter().cloned());
    let mut unique: Vec<DialTarget> = Vec::new();
    for target in targets {
        if !unique.contains(&target) {
            unique.push(target);
        }
    }
    // What worked last comes first.
    if let Some(at) = remembered
        .first()
        .and_then(|last| unique.iter().position(|target| target == last))
    {
        unique[..=at].rotate_right(1);
    }
    unique.truncate(TARGETS_MAX);
    unique
}

/// The proxy on the way to a host-bridge, where the tunnel runs over TCP.
fn proxy_for<'a>(ways: &'a Ways, host: &str, port: u16) -> Option<&'a Proxy> {
    match ways.transport {
        TunnelTransport::Tls => ways.proxy.proxy_for(host, port),
        TunnelTransport::Auto | TunnelTransport::Quic => None,
    }
}

/// Dials one address within [`DIAL_TIMEOUT`].
pub async fn dial(
    target: &DialTarget,
    credentials: Credentials,
    ways: &Ways,
    settings: TunnelSettings,
    clock: Clock,
) -> Result<Established, DialError> {
    let (host, address) = (target.host.clone(), target.address);
    let attempt = dial_unbounded(target, credentials, ways, settings, clock);
    match tokio::time::timeout(DIAL_TIMEOUT, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err(DialError::TimedOut { host, address }),
    }
}

async fn dial_unbounded(
    target: &DialTarget,
    credentials: Credentials,
    ways: &Ways,
    settings: TunnelSettings,
    clock: Clock,
) -> Result<Established, DialError> {
    if proxy_for(ways, &target.host, target.address.port()).is_none() {
        check_route(target.address).map_err(|source| DialError::NoRoute {
            host: target.host.clone(),
            address: target.address,
            source,
        })?;
    }
    let time = certificate_time(&clock);
    let max_streams = settings.max_streams;
    let transport = match connect(target, credentials.clone(), ways, time, max_streams).await {
        Err(error) => match time_for_doubtful_clock(&error, &clock) {
            Some(time) => connect(target, credentials, ways, time, max_streams).await?,
            None => return Err(error),
        },
        Ok(transport) => transport,
    };
    let hello = Hello {
        version: TUNNEL_VERSION,
        agent: AGENT.to_owned(),
        features: Vec::new(),
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
    credentials: Credentials,
    ways: &Ways,
    time: TimeSource,
    max_streams: u32,
) -> Result<Arc<dyn Transport>, DialError> {
    let failures = FailureRecord::default();
    let config = tls_config(credentials, Arc::clone(&time), failures.clone()).await?;
    if ways.transport == TunnelTransport::Tls {
        let settings = TcpSettings { max_streams };
        let host = &target.host;
        return match proxy_for(ways, host, target.address.port()) {
            Some(via) => {
                let port = target.address.port();
                proxy::dial(via, host, port, config, &failures, time, settings)
                    .await
                    .map_err(|error| DialError::Proxy(Box::new(error)))
            }
            None => tcp::dial(target.address, host, config, &failures, settings)
                .await
                .map_err(|source| DialError::Tcp {
                    host: host.clone(),
                    source,
                }),
        };
    }
    // A new socket for each dial: a port that some router on the way has black-holed is left behind.
    let endpoint = QuicEndpoint::client(QuicSettings { max_streams }).map_err(DialError::Socket)?;
    endpoint
        .dial(target.address, &target.host, config, &failures)
        .await
        .map_err(|source| DialError::Connect {
            host: target.host.clone(),
            source,
        })
}

/// Whether the system would send to an address at all. QUIC takes an absent route for loss and would
/// wait its whole time: for each IPv6 address of the parent, on a box that has IPv4 alone. Connecting
/// a UDP socket sends nothing.
fn check_route(address: SocketAddr) -> std::io::Result<()> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0))?.connect(address)
}

/// A board that has lost its clock may be older than the bridge's certificate and would never get
/// to the parent that could tell it the time. While the clock is in doubt, the begin of a validity
/// proves no less about the time than the clock does; the end is checked as ever.
fn time_for_doubtful_clock(error: &DialError, clock: &Clock) -> Option<TimeSource> {
    clock.trusted().doubt?;
    let reason = match error {
        DialError::Connect {
            source: quic::DialError::Closed { reason, .. },
            ..
        }
        | DialError::Tcp {
            source: tcp::DialError::Closed { reason, .. },
            ..
        } => reason,
        DialError::Proxy(error) => match &**error {
            proxy::DialError::Closed { reason, .. } => reason,
            proxy::DialError::Proxy { .. } | proxy::DialError::Name { .. } => return None,
        },
        _ => return None,
    };
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
            .map(identity_parts)
            .transpose()
            .map_err(DialError::Identity)?;
        let (learned, identity) = match identity {
            Some((anchors, identity)) => (Some(anchors), Some(watch::channel(Arc::new(identity)).1)),
            None => (None, None),
        };
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
    match tokio::task::spawn_blocking(build).await {
        Ok(config) => config,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

fn identity_parts(stored: &StoredIdentity) -> Result<(Anchors, TlsIdentity), IdentityError> {
    let key = PrivateKey::from_pkcs8(stored.pkcs8.clone())?;
    let chain = CertificateChain::from_pem(&stored.certificate.cert_pem)?;
    let anchors = Anchors::from_pem(&stored.certificate.ca_chain_pem)?;
    Ok((anchors, TlsIdentity::new(&chain, &key)?))
}

/// The parent's time in a welcome.
pub fn welcome_time(welcome: &Welcome) -> UnixTime {
    UnixTime::from_seconds(welcome.unix_seconds)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_nothing_can_be_sent_to_is_known_at_once() {
        // Broadcast is refused to an ordinary socket whatever the routes are.
        assert!(check_route((Ipv4Addr::BROADCAST, 1).into()).is_err());
        let listening = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        check_route(listening.local_addr().unwrap()).unwrap();
    }
}
