//! The host-bridge as a daemon: opens the listeners, keeps the clockwork going, obeys signals,
//! and ends in order.

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsAcceptor;
use tracing::{error, info, warn};

use super::access::{Access, Accesses, Proxy, UnknownTokens};
use super::admin_socket;
use super::dial_back::DialBack;
use super::federation_api::FederationApi;
use super::http_listener::{HTTPS_ALPN, HttpsListener};
use super::ingress::Ingress;
use super::links::Links;
use super::metrics::BridgeObserved;
use super::operator_api::OperatorApi;
use super::registry::{Registry, RetireError, Retirement};
use super::server_identity::{self, ServerIdentityError};
use super::settings::BridgeSettings;
use crate::audit::retention::Retention;
use crate::base::limit::error_chain;
use crate::identity::tls::{ClientAuth, TimeSource, TlsConfigError, TlsIdentity, server_config};
use crate::process::admin_socket::{AdminSocket, AdminSocketError};
use crate::process::clock::Clock;
use crate::process::observation::{self, Observed};
use crate::process::service_notify::ServiceManager;
use crate::process::signals::{Signal, Signals};
use crate::process::supervisor::{Stage, StopCause, Supervisor, TaskFailure};
use crate::store::audit_log::{AuditLog, AuditWriter};
use crate::store::database::StoreError;
use crate::tunnel::quic::{BindError, QuicEndpoint, QuicSettings};
use crate::wire::TUNNEL_ALPN;

/// How often heartbeats are looked through: a stale peer shows at most this much late.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);

/// How often the own certificate and spent tokens are looked at.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(3_600);

/// Connections that the system may queue before they are taken.
const LISTEN_BACKLOG: i32 = 1_024;

/// Why the daemon ended with a failure.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The disk.
    #[error("the registry could not be read or written")]
    Store(#[from] StoreError),
    /// The listeners' certificate.
    #[error("the host-bridge cannot show a certificate")]
    Identity(#[from] ServerIdentityError),
    /// The TLS library.
    #[error("TLS cannot be set up")]
    Tls(#[from] TlsConfigError),
    /// A TCP port.
    #[error(
        "HTTPS cannot listen on {address}; is another process there, and may this user use the port? listen.https sets it"
    )]
    Https {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The proxy's port.
    #[error(
        "the proxy cannot listen on {address}; is another process there, and may this user use the port? proxy.listen sets it"
    )]
    Proxy {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A UDP port.
    #[error("tunnels cannot be taken; listen.quic sets the address")]
    Quic(#[from] BindError),
    /// The admin socket.
    #[error("the command line could not reach this daemon")]
    AdminSocket(#[from] AdminSocketError),
    /// The port for monitoring.
    #[error(transparent)]
    Metrics(#[from] observation::ListenError),
    /// An essential task.
    #[error("the host-bridge had to stop")]
    Task(#[from] TaskFailure),
}

impl DaemonError {
    const fn https(address: SocketAddr, source: io::Error) -> Self {
        Self::Https { address, source }
    }

    const fn proxy(address: SocketAddr, source: io::Error) -> Self {
        Self::Proxy { address, source }
    }
}

/// What surrounds the daemon.
pub struct Surroundings {
    /// The clock.
    pub clock: Clock,
    /// The service manager.
    pub service: ServiceManager,
    /// The signals.
    pub signals: Signals,
}

/// The daemon with its listeners open.
struct Running {
    supervisor: Supervisor,
    registry: Arc<Registry>,
    links: Arc<Links>,
    accesses: Arc<Accesses>,
    unknown_tokens: Arc<UnknownTokens>,
    clock: Clock,
    shown: watch::Sender<Arc<TlsIdentity>>,
    settings: watch::Sender<BridgeSettings>,
    retention: watch::Sender<Retention>,
    renew_expired_for: watch::Sender<Duration>,
    audit: AuditLog,
    endpoints: Vec<QuicEndpoint>,
    bound: Bound,
}

/// Where the daemon listens, ports of the system's choice filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bound {
    /// HTTPS.
    pub https: Vec<SocketAddr>,
    /// Tunnels.
    pub quic: Vec<SocketAddr>,
    /// The proxy, where there is one.
    pub proxy: Vec<SocketAddr>,
}

/// Runs until a signal or a failure ends it. `reload` reads the configuration again; what it
/// cannot read is logged by it, and everything stays as it was. `listening` is told once.
pub async fn run(
    registry: Registry,
    settings: BridgeSettings,
    mut surroundings: Surroundings,
    mut reload: impl FnMut() -> Option<BridgeSettings>,
    listening: impl FnOnce(&Bound),
) -> Result<(), DaemonError> {
    let registry = Arc::new(registry);
    let drain = settings.config.drain;
    let running = Running::start(
        registry,
        settings,
        surroundings.clock.clone(),
        &surroundings.service,
    )
    .await?;
    listening(&running.bound);
    surroundings.service.ready();
    let outcome = loop {
        tokio::select! {
            cause = running.supervisor.stopped() => break match cause {
                StopCause::Requested => Ok(()),
                StopCause::Failed(failure) => Err(failure),
            },
            signal = surroundings.signals.next() => match signal {
                Signal::Stop => break Ok(()),
                Signal::Reload => {
                    surroundings.service.reloading();
                    if let Some(settings) = reload() {
                        running.apply(settings).await;
                    }
                    surroundings.service.ready();
                }
            },
        }
    };
    surroundings.service.stopping();
    running.stop(drain, surroundings.signals.stop()).await?;
    Ok(outcome?)
}

impl Running {
    async fn start(
        registry: Arc<Registry>,
        settings: BridgeSettings,
        clock: Clock,
        service: &ServiceManager,
    ) -> Result<Self, DaemonError> {
        let identity = {
            let (registry, names, now) = (
                Arc::clone(&registry),
                settings.server_names(),
                clock.trusted().now,
            );
            blocking(move || server_identity::current(&registry, &names, now)).await?
        };
        let (shown, identity) = watch::channel(Arc::new(identity));
        let anchors = registry.anchors();
        let time: TimeSource = {
            let clock = clock.clone();
            Arc::new(move || clock.trusted().now)
        };
        let (renew_expired_for, grace) = watch::channel(settings.config.renew_expired_for);
        let tls = |alpn: &[&[u8]]| {
            let clients = ClientAuth::OptionalOrExpired {
                anchors: anchors.clone(),
                grace: grace.clone(),
            };
            server_config(identity.clone(), clients, alpn, Arc::clone(&time))
        };
        let mut bound = Bound::default();
        let proxies = tcp_listeners(&settings.config.proxy.listen, DaemonError::proxy)?;
        bound
            .proxy
            .extend(proxies.iter().filter_map(|listener| listener.local_addr().ok()));
        let listeners = tcp_listeners(&settings.config.listen_https, DaemonError::https)?;
        bound
            .https
            .extend(listeners.iter().filter_map(|listener| listener.local_addr().ok()));
        let mut endpoints = Vec::new();
        let tunnels = QuicSettings {
            max_streams: settings.config.limits.streams_per_session,
        };
        for &address in &settings.config.listen_quic {
            let endpoint = QuicEndpoint::server(address, tls(&[TUNNEL_ALPN])?, tunnels)?;
            bound.quic.extend(endpoint.local_address());
            endpoints.push(endpoint);
        }
        let dial_back = DialBack::new(identity.clone(), anchors.clone(), clock.clone(), tunnels);
        let admin = AdminSocket::bind(&settings.config.admin_socket).await?;
        let metrics = observation::bind(&settings.config.metrics_listen).await?;
        let acceptor = TlsAcceptor::from(Arc::new(tls(&[&[TUNNEL_ALPN][..], &HTTPS_ALPN].concat())?));

        let supervisor = Supervisor::new();
        let links = Arc::new(Links::new(settings.limits(), supervisor.scope(Stage::Work)));
        let accesses = Arc::new(Accesses::new(settings.access_limits()));
        let (retention, kept) = watch::channel(settings.config.audit);
        let audit = {
            let (database, clock) = (registry.database().clone(), clock.clone());
            let (audit, writer) = blocking(move || AuditLog::open(database, clock, kept)).await?;
            let base = supervisor.scope(Stage::Base);
            let writing = AuditWriter::run(writer, base.clone());
            base.spawn_essential("audit log", async {
                writing.await;
                Ok::<_, Infallible>(())
            });
            audit
        };
        let unknown_tokens = Arc::new(UnknownTokens::new(settings.unknown_tokens()));
        let (settings, _) = watch::channel(settings);
        let running = Self {
            unknown_tokens,
            supervisor,
            registry,
            links,
            accesses,
            clock,
            shown,
            settings,
            retention,
            renew_expired_for,
            audit,
            endpoints,
            bound,
        };
        running.listen(listeners, proxies, &acceptor, (admin, metrics), dial_back);
        running.keep_going(service);
        info!(https = ?running.bound.https, quic = ?running.bound.quic, proxy = ?running.bound.proxy, "the host-bridge listens");
        Ok(running)
    }

    fn listen(
        &self,
        listeners: Vec<TcpListener>,
        proxies: Vec<TcpListener>,
        tls: &TlsAcceptor,
        (admin, metrics): (AdminSocket, Vec<TcpListener>),
        dial_back: DialBack,
    ) {
        let intake = self.supervisor.scope(Stage::Intake);
        let work = self.supervisor.scope(Stage::Work);
        let federation = FederationApi::new(
            Arc::clone(&self.registry),
            Arc::clone(&self.links),
            self.clock.clone(),
            self.settings.subscribe(),
            self.audit.clone(),
        );
        let federation = Arc::new(federation.with_dial_back(dial_back));
        let access = Arc::new(Access::new(
            Arc::clone(&self.registry),
            Arc::clone(&self.links),
            Arc::clone(&self.accesses),
            self.clock.clone(),
            self.audit.clone(),
            work.clone(),
            Arc::clone(&self.unknown_tokens),
        ));
        let operators = OperatorApi::new(
            Arc::clone(&self.registry),
            Some(Arc::clone(&self.links)),
            self.clock.clone(),
            self.settings.subscribe(),
            self.audit.clone(),
        );
        let operators = Arc::new(operators.with_access(Arc::clone(&access)));
        let ingress = Arc::new(Ingress {
            federation: Arc::clone(&federation),
            registry: Arc::clone(&self.registry),
            links: Arc::clone(&self.links),
            clock: self.clock.clone(),
            work: work.clone(),
            settings: self.settings.borrow().ingress(),
        });
        let observed: Arc<dyn Observed> = Arc::new(BridgeObserved {
            registry: Arc::clone(&self.registry),
            links: Arc::clone(&self.links),
            accesses: Arc::clone(&self.accesses),
            federation: Arc::clone(&federation),
            audit: self.audit.clone(),
            shown: self.shown.subscribe(),
            started_at: self.clock.trusted().now,
            clock: self.clock.clone(),
        });
        for listener in metrics {
            let answering = observation::serve(listener, intake.clone(), Arc::clone(&observed));
            intake.spawn_until_cancelled("metrics", answering);
        }
        let https = Arc::new(HttpsListener::new(
            federation,
            Arc::clone(&operators),
            Arc::clone(&ingress),
            Arc::clone(&access),
            work.clone(),
            self.settings.borrow().config.limits.https_connections,
        ));
        for listener in listeners {
            let serving = Arc::clone(&https).run(listener, tls.clone(), intake.clone());
            intake.spawn_essential("https listener", async {
                serving.await;
                Ok::<_, Infallible>(())
            });
        }
        for endpoint in &self.endpoints {
            let taking = Arc::clone(&ingress).run(endpoint.clone(), intake.clone());
            intake.spawn_essential("tunnel listener", taking);
        }
        self.listen_proxy(proxies, &access);
        intake.spawn_until_cancelled("access review", Arc::clone(&access).look_after());
        let serving = admin_socket::serve(admin, (operators, access, observed), intake.clone(), work);
        intake.spawn_essential("admin socket", async {
            serving.await;
            Ok::<_, Infallible>(())
        });
    }

    fn listen_proxy(&self, proxies: Vec<TcpListener>, access: &Arc<Access>) {
        let intake = self.supervisor.scope(Stage::Intake);
        let (suffix, most) = {
            let config = &self.settings.borrow().config;
            (
                config.proxy.suffix.clone(),
                config.limits.access_sessions as usize,
            )
        };
        let proxy = Arc::new(Proxy::new(Arc::clone(access), suffix, most));
        for listener in proxies {
            if let Ok(address) = listener.local_addr()
                && !address.ip().is_loopback()
            {
                warn!(%address, "the proxy can be reached by other machines, and operator tokens pass it without TLS");
            }
            let serving = Arc::clone(&proxy).run(listener, intake.clone());
            intake.spawn_essential("proxy listener", async {
                serving.await;
                Ok::<_, Infallible>(())
            });
        }
    }

    fn keep_going(&self, service: &ServiceManager) {
        let intake = self.supervisor.scope(Stage::Intake);
        intake.spawn_until_cancelled("sweep", {
            let (registry, clock) = (Arc::clone(&self.registry), self.clock.clone());
            let (settings, links) = (self.settings.subscribe(), Arc::clone(&self.links));
            let service = service.clone();
            async move { sweep_for_ever(registry, clock, settings, links, service).await }
        });
        intake.spawn_until_cancelled("upkeep", {
            let (registry, clock) = (Arc::clone(&self.registry), self.clock.clone());
            let (settings, shown) = (self.settings.subscribe(), self.shown.clone());
            let mut anchors = self.registry.anchors();
            async move {
                let mut hourly = ticks(UPKEEP_INTERVAL);
                loop {
                    // A rotated authority issues the server's certificate at once.
                    tokio::select! {
                        _ = hourly.tick() => {}
                        _ = anchors.changed() => {}
                    }
                    upkeep(&registry, &clock, &settings, &shown).await;
                }
            }
        });
        if let Some(period) = service.watchdog_period() {
            let service = service.clone();
            self.supervisor
                .scope(Stage::Base)
                .spawn_until_cancelled("watchdog", async move {
                    let mut beat = ticks(period);
                    loop {
                        beat.tick().await;
                        service.alive();
                    }
                });
        }
    }

    /// Takes over what may change while the bridge runs.
    async fn apply(&self, new: BridgeSettings) {
        let waiting = self.settings.borrow().awaiting_restart(&new);
        if !waiting.is_empty() {
            warn!(
                keys = waiting.join(", "),
                "these changes take effect at the next start"
            );
        }
        self.links.set_limits(new.limits());
        self.accesses.set_limits(new.access_limits());
        self.unknown_tokens.set_limit(new.unknown_tokens());
        self.retention.send_replace(new.config.audit);
        self.renew_expired_for.send_replace(new.config.renew_expired_for);
        self.settings.send_replace(new);
        upkeep(
            &self.registry,
            &self.clock,
            &self.settings.subscribe(),
            &self.shown,
        )
        .await;
        info!("the configuration was read again");
    }

    async fn stop(self, drain: Duration, force: impl Future<Output = ()>) -> Result<(), DaemonError> {
        info!(connected = self.links.len(), "the host-bridge stops");
        self.supervisor.shutdown(drain, force).await.log();
        for endpoint in &self.endpoints {
            endpoint.close();
        }
        let registry = self.registry;
        blocking(move || registry.write_presence()).await?;
        info!("the host-bridge has stopped");
        Ok(())
    }
}

async fn sweep_for_ever(
    registry: Arc<Registry>,
    clock: Clock,
    settings: watch::Receiver<BridgeSettings>,
    links: Arc<Links>,
    service: ServiceManager,
) {
    let listening_since = clock.trusted().now;
    let mut tick = ticks(SWEEP_INTERVAL);
    loop {
        tick.tick().await;
        let stale_after = settings.borrow().config.stale_after;
        let (registry, now) = (Arc::clone(&registry), clock.trusted().now);
        match blocking(move || registry.sweep(stale_after, listening_since, now)).await {
            Ok(degraded) => {
                for peer in degraded {
                    let reason = peer.degraded_reason.unwrap_or_default();
                    warn!(peer = %peer.id, name = peer.name, reason, "a peer is degraded");
                }
            }
            Err(error) => error!(error = %error_chain(&error), "the peers could not be looked through"),
        }
        service.status(&format!("{} satellites connected", links.len()));
    }
}

async fn upkeep(
    registry: &Arc<Registry>,
    clock: &Clock,
    settings: &watch::Receiver<BridgeSettings>,
    shown: &watch::Sender<Arc<TlsIdentity>>,
) {
    let (names, grace) = {
        let settings = settings.borrow();
        (settings.server_names(), settings.config.accept_grace)
    };
    let (registry, now, shown) = (Arc::clone(registry), clock.trusted().now, shown.clone());
    blocking(move || {
        if let Err(error) = server_identity::rotate(&registry, &names, now, &shown) {
            error!(error = %error_chain(&error), "the server's certificate could not be renewed; the old one is still shown");
        }
        if let Err(error) = registry.forget_stale_tokens(grace, now) {
            error!(error = %error_chain(&error), "spent tokens could not be forgotten");
        }
        match registry.retire_authority(Retirement::InTime, now) {
            Ok(()) => info!("the overlap of the authority's rotation is over; the old one counts no more"),
            Err(RetireError::Nothing | RetireError::Overlap { .. }) => {}
            Err(error @ RetireError::InUse { .. }) => info!(reason = %error, "the old authority is not retired yet"),
            Err(RetireError::Store(error)) => {
                error!(error = %error_chain(&error), "the old authority could not be retired");
            }
        }
        if let Err(error) = registry.archive_grants(now) {
            error!(error = %error_chain(&error), "revoked grants could not be archived");
        }
    })
    .await;
}

/// Runs what blocks where that is allowed. A panic there goes on here.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is going away cancels blocking work; so is this task.
            Err(_) => std::future::pending().await,
        },
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn tcp_listeners(
    addresses: &[SocketAddr],
    failed: fn(SocketAddr, io::Error) -> DaemonError,
) -> Result<Vec<TcpListener>, DaemonError> {
    let listen = |&address: &SocketAddr| tcp_listener(address).map_err(|source| failed(address, source));
    addresses.iter().map(listen).collect()
}

/// `[::]` takes IPv4 too, and stands for 0.0.0.0 on a machine without IPv6.
fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let listen = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(LISTEN_BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    listen(address).or_else(|error| {
        let no_ipv6 = address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse;
        if no_ipv6 {
            listen((Ipv4Addr::UNSPECIFIED, address.port()).into()).map_err(|_| error)
        } else {
            Err(error)
        }
    })
}
