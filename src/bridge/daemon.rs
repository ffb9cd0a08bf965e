//! The host-bridge as a daemon: opens the listeners, keeps the clockwork going, obeys signals,
//! and ends in order.

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use super::access::{Access, Accesses, Proxy, UnknownTokens};
use super::admin_socket;
use super::dial_back::DialBack;
use super::direct::Redialer;
use super::federation_api::FederationApi;
use super::http_listener::{HTTPS_ALPN, HttpsListener};
use super::ingress::Ingress;
use super::links::Links;
use super::material::{Material, MaterialError};
use super::metrics::{BridgeObserved, RequestCounts};
use super::operator_api::OperatorApi;
use super::parent::Parent;
use super::parent_calls::ParentCalls;
use super::places::Places;
use super::platform::{PlatformParent, Pool};
use super::refused_certificates::RefusedCertificates;
use super::registry::Books;
use super::settings::BridgeSettings;
use super::upkeep::{Upkeep, blocking, keep, ticks};
use crate::audit::retention::Retention;
use crate::identity::anchors::Anchors;
use crate::identity::tls::{ClientAuth, OwnAnchors, TimeSource, TlsConfigError, server_config};
use crate::machine::source_rate::SourceRate;
use crate::process::admin_socket::{AdminSocket, AdminSocketError};
use crate::process::clock::Clock;
use crate::process::observation::{self, Observed};
use crate::process::service_notify::ServiceManager;
use crate::process::signals::{Signal, Signals};
use crate::process::supervisor::{Stage, StopCause, Supervisor, TaskFailure, TaskScope};
use crate::store::audit_log::{AuditLog, AuditWriter};
use crate::store::database::StoreError;
use crate::tunnel::quic::{BindError, QuicEndpoint};
use crate::wire::TUNNEL_ALPN;

/// Connections that the system may queue before they are taken.
const LISTEN_BACKLOG: i32 = 1_024;

/// Why the daemon ended with a failure.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The disk.
    #[error("the registry could not be read or written")]
    Store(#[from] StoreError),
    /// The listeners' certificate, or whom they trust.
    #[error("TLS has not all that it needs")]
    Material(#[from] MaterialError),
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
    books: Books,
    links: Arc<Links>,
    accesses: Arc<Accesses>,
    unknown_tokens: Arc<UnknownTokens>,
    clock: Clock,
    material: Arc<Material>,
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
    books: Books,
    settings: BridgeSettings,
    mut surroundings: Surroundings,
    mut reload: impl FnMut() -> Option<BridgeSettings>,
    listening: impl FnOnce(&Bound),
) -> Result<(), DaemonError> {
    let drain = settings.config.drain;
    let running = Running::start(books, settings, surroundings.clock.clone(), &surroundings.service).await?;
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
        books: Books,
        settings: BridgeSettings,
        clock: Clock,
        service: &ServiceManager,
    ) -> Result<Self, DaemonError> {
        let material = {
            let (books, settings, now) = (books.clone(), settings.clone(), clock.trusted().now);
            Arc::new(blocking(move || Material::read(&books, &settings, now)).await?)
        };
        let time: TimeSource = {
            let clock = clock.clone();
            Arc::new(move || clock.trusted().now)
        };
        let (renew_expired_for, grace) = watch::channel(settings.config.renew_expired_for);
        let tls = |alpn: &[&[u8]], trust: watch::Receiver<Arc<Anchors>>| {
            let clients = match &books {
                Books::Own(registry) => ClientAuth::OptionalOrExpired {
                    anchors: trust,
                    grace: grace.clone(),
                    own: Arc::clone(registry.peer_anchors()) as Arc<dyn OwnAnchors>,
                },
                // A platform renews no certificate that has ended.
                Books::Platform { .. } => ClientAuth::Optional(trust),
            };
            server_config(material.identity(), clients, alpn, Arc::clone(&time))
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
        let tunnels = settings.quic();
        for &address in &settings.config.listen_quic {
            let endpoint =
                QuicEndpoint::server(address, tls(&[TUNNEL_ALPN], material.satellites())?, tunnels)?;
            bound.quic.extend(endpoint.local_address());
            endpoints.push(endpoint);
        }
        let admin = AdminSocket::bind(&settings.config.admin_socket).await?;
        let metrics = observation::bind(&settings.config.metrics_listen).await?;
        let alpn = [&[TUNNEL_ALPN][..], &HTTPS_ALPN].concat();
        let acceptor = TlsAcceptor::from(Arc::new(tls(&alpn, material.visitors())?));

        let supervisor = Supervisor::new();
        let links = Arc::new(Links::new(settings.limits(), supervisor.scope(Stage::Work)));
        let accesses = Arc::new(Accesses::new(settings.access_limits()));
        let (retention, kept) = watch::channel(settings.config.audit);
        let audit = {
            let (database, clock) = (books.ledger().database().clone(), clock.clone());
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
            supervisor,
            books,
            links,
            accesses,
            unknown_tokens,
            clock,
            material,
            settings,
            retention,
            renew_expired_for,
            audit,
            endpoints,
            bound,
        };
        running.listen(listeners, proxies, &acceptor, (admin, metrics));
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
    ) {
        let intake = self.supervisor.scope(Stage::Intake);
        let work = self.supervisor.scope(Stage::Work);
        let access = Arc::new(Access::new(
            Arc::clone(self.books.ledger()),
            Arc::clone(&self.links),
            Arc::clone(&self.accesses),
            self.clock.clone(),
            self.audit.clone(),
            work.clone(),
            Arc::clone(&self.unknown_tokens),
        ));
        let operators = OperatorApi::new(
            self.books.clone(),
            Some(Arc::clone(&self.links)),
            self.clock.clone(),
            self.settings.subscribe(),
            self.audit.clone(),
        );
        let operators = Arc::new(operators.with_access(Arc::clone(&access)));
        let ingress = Arc::new(Ingress {
            parent: self.parent(&work),
            links: Arc::clone(&self.links),
            clock: self.clock.clone(),
            work: work.clone(),
            settings: self.settings.borrow().ingress(),
            live: self.settings.subscribe(),
            redialer: Arc::new(Redialer::new(self.clock.clone())),
            refused_certificates: RefusedCertificates::default(),
            readmitting: tokio::sync::Mutex::default(),
        });
        intake.spawn_until_cancelled("redials", Redialer::run(Arc::clone(&ingress)));
        if let Parent::Platform(platform) = &ingress.parent {
            let reviewing = Arc::clone(platform).review_for_ever(Arc::clone(&self.links));
            intake.spawn_until_cancelled("review", reviewing);
        }
        let observed: Arc<dyn Observed> = Arc::new(BridgeObserved {
            books: self.books.clone(),
            links: Arc::clone(&self.links),
            accesses: Arc::clone(&self.accesses),
            parent: ingress.parent.clone(),
            audit: self.audit.clone(),
            shown: self.material.identity(),
            started_at: self.clock.trusted().now,
            clock: self.clock.clone(),
        });
        for listener in metrics {
            let answering = observation::serve(listener, intake.clone(), Arc::clone(&observed));
            intake.spawn_until_cancelled("metrics", answering);
        }
        let connections = self.settings.borrow().config.limits.https_connections;
        let https = Arc::new(HttpsListener {
            operators: Arc::clone(&operators),
            ingress: Arc::clone(&ingress),
            access: Arc::clone(&access),
            calls: self.calls(),
            satellites: self.material.satellites(),
            work: work.clone(),
            places: Places::new(connections as usize),
        });
        let settings = self.settings.borrow().clone();
        for (listener, address) in listeners.into_iter().zip(&settings.config.listen_https) {
            let network = settings.network_of(*address);
            let serving = Arc::clone(&https).run(listener, network, tls.clone(), intake.clone());
            intake.spawn_essential("https listener", async {
                serving.await;
                Ok::<_, Infallible>(())
            });
        }
        for (endpoint, address) in self.endpoints.iter().zip(&settings.config.listen_quic) {
            let network = settings.network_of(*address);
            let taking = Arc::clone(&ingress).run(endpoint.clone(), network, intake.clone());
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

    /// Who answers satellites.
    fn parent(&self, work: &TaskScope) -> Parent {
        let equals = match &self.books {
            Books::Own(registry) => Arc::clone(registry.peer_anchors()),
            // Whose certificates count beside a platform, its files say.
            Books::Platform { .. } => Arc::default(),
        };
        let dial_back = DialBack::new(
            self.material.identity(),
            self.material.satellites(),
            equals,
            self.clock.clone(),
            self.settings.borrow().quic(),
        );
        match &self.books {
            Books::Own(registry) => {
                let federation = FederationApi::new(
                    Arc::clone(registry),
                    Arc::clone(&self.links),
                    self.clock.clone(),
                    self.settings.subscribe(),
                    self.audit.clone(),
                );
                Parent::Own {
                    federation: Arc::new(federation.with_dial_back(dial_back)),
                    registry: Arc::clone(registry),
                }
            }
            Books::Platform { ledger, roll, url } => {
                if url.is_exposed() {
                    warn!(%url, "tokens and grants go to the platform without TLS; use https unless it is on this machine");
                }
                Parent::Platform(Arc::new(PlatformParent {
                    ledger: Arc::clone(ledger),
                    roll: Arc::clone(roll),
                    pool: Pool::new(
                        url.clone(),
                        self.material.platform(),
                        self.clock.clone(),
                        work.clone(),
                    ),
                    dial_back,
                    clock: self.clock.clone(),
                    settings: self.settings.subscribe(),
                    audit: self.audit.clone(),
                    rate: Mutex::new(SourceRate::new(
                        self.settings.borrow().config.limits.accepts_per_source_per_minute,
                    )),
                    answered: RequestCounts::default(),
                }))
            }
        }
    }

    fn calls(&self) -> ParentCalls {
        ParentCalls {
            ledger: Arc::clone(self.books.ledger()),
            links: Arc::clone(&self.links),
            clock: self.clock.clone(),
            settings: self.settings.subscribe(),
            trust: self.material.callers(),
            satellites: self.material.satellites(),
            audit: self.audit.clone(),
        }
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
        let upkeep = Upkeep {
            books: self.books.clone(),
            material: Arc::clone(&self.material),
            links: Arc::clone(&self.links),
            clock: self.clock.clone(),
            settings: self.settings.subscribe(),
            service: service.clone(),
        };
        intake.spawn_until_cancelled("sweep", upkeep.clone().sweep_for_ever());
        intake.spawn_until_cancelled("files", upkeep.clone().read_files_for_ever());
        intake.spawn_until_cancelled("disk", upkeep.clone().try_disk_for_ever());
        intake.spawn_until_cancelled("equals", upkeep.clone().follow_equals_for_ever());
        intake.spawn_until_cancelled("upkeep", upkeep.for_ever());
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
        let (books, material, settings) = (
            self.books.clone(),
            Arc::clone(&self.material),
            self.settings.borrow().clone(),
        );
        let now = self.clock.trusted().now;
        blocking(move || keep(&books, &material, &settings, now)).await;
        info!("the configuration was read again");
    }

    async fn stop(self, drain: Duration, force: impl Future<Output = ()>) -> Result<(), DaemonError> {
        info!(connected = self.links.len(), "the host-bridge stops");
        self.supervisor.shutdown(drain, force).await.log();
        for endpoint in &self.endpoints {
            endpoint.close();
        }
        if let Books::Own(registry) = self.books {
            blocking(move || registry.write_presence()).await?;
        }
        info!("the host-bridge has stopped");
        Ok(())
    }
}

fn tcp_listeners(
    addresses: &[SocketAddr],
    failed: fn(SocketAddr, io::Error) -> DaemonError,
) -> Result<Vec<TcpListener>, DaemonError> {
    let listen = |&address: &SocketAddr| tcp_listener(address).map_err(|source| failed(address, source));
    addresses.iter().map(listen).collect()
}

/// `[::]` takes IPv4 too, and stands for 0.0.0.0 on a machine without IPv6.
pub(super) fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
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
