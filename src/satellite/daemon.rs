//! The satellite as a daemon, and as the short run behind `join`: opens the state, starts the driver
//! under a supervisor, talks to the service manager, and stops in order.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;

use super::admin_api;
use super::direct::Direct;
use super::driver::{Driver, DriverHandle, DriverSettings, JoinCommandError};
use super::federation_api::{NoOfferings, Surroundings};
use super::grants::admin::GrantDesk;
use super::grants::{GrantBook, OpenGrantsError};
use super::https::HttpsListener;
use super::invite::{InviteError, waiting_invitation};
use super::membership_store::{Loaded, MembershipStore, OpenStateError};
use super::metrics::SatelliteObserved;
use super::services::{PublishedServices, ServiceLimits, ServiceServer, Services};
use super::status::StatusReport;
use crate::audit::retention::Retention;
use crate::base::limit::error_chain;
use crate::machine::backoff::BackoffPolicy;
use crate::machine::child::{ChildPolicy, Rejoin};
use crate::machine::join::JoinState;
use crate::machine::ladder::{CLIMB_INITIAL, LadderPolicy, Rung};
use crate::machine::membership::{Operator, StoredInvitation};
use crate::machine::uplinks::UplinksPolicy;
use crate::machine::watchdog::Verdict;
use crate::process::admin_socket::{AdminSocket, AdminSocketError};
use crate::process::blocking;
use crate::process::clock::{BUILD_TIME, Clock};
use crate::process::config::StateKeyFile;
use crate::process::config::satellite::{SatelliteConfig, TunnelTransport, Ways};
use crate::process::entropy::{self, EntropyUnavailable};
use crate::process::observation::{self, Observed};
use crate::process::service_notify::ServiceManager;
use crate::process::signals::{Signal, Signals};
use crate::process::supervisor::{Stage, StopCause, Supervisor, TaskScope};
use crate::reach::listen::Listener;
use crate::store::audit_log::{AuditLog, AuditWriter};
use crate::store::database::{Database, Holder, StoreError};
use crate::store::patience;
use crate::store::state_key::{StateKey, StateKeyError};
use crate::tunnel::TunnelSettings;
use crate::tunnel::quic::QuicSettings;

/// Time for goodbyes and the last write. Well below the service manager's 90 s.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// How often grants are looked through for some to archive: it is a matter of days.
const ARCHIVE_PERIOD: Duration = Duration::from_secs(6 * 3_600);

/// How often the status text of the service manager is brought up to date without a watchdog.
const STATUS_PERIOD: Duration = Duration::from_secs(10);

/// Why the satellite does not run.
#[derive(Debug, Error)]
pub enum RunError {
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyUnavailable),
    /// The key of the state.
    #[error(transparent)]
    StateKey(#[from] StateKeyError),
    /// The state.
    #[error(transparent)]
    State(#[from] OpenStateError),
    /// The grants in it.
    #[error(transparent)]
    Grants(#[from] OpenGrantsError),
    /// The services in it that were published at run time.
    #[error("cannot read which services were published at run time")]
    Services(#[source] StoreError),
    /// The audit log.
    #[error("the audit log cannot be read; without it nothing that the parent does would be noted")]
    Audit(#[source] StoreError),
    /// The invitation that waits for this box.
    #[error(transparent)]
    Invite(#[from] InviteError),
    /// The admin socket.
    #[error(transparent)]
    AdminSocket(#[from] AdminSocketError),
    /// The port for monitoring.
    #[error(transparent)]
    Metrics(#[from] observation::ListenError),
    /// The signals.
    #[error("cannot take the signals over")]
    Signals(#[source] std::io::Error),
    /// An invitation could not be handed over.
    #[error(transparent)]
    Join(#[from] JoinCommandError),
    /// A part that the daemon cannot do without.
    #[error("the satellite cannot go on")]
    Task(#[source] crate::process::supervisor::TaskFailure),
}

impl RunError {
    /// Who has the state, where that is why it does not run.
    pub const fn holder(&self) -> Option<&Holder> {
        match self {
            Self::State(error) => error.holder(),
            _ => None,
        }
    }
}

/// Gives the configuration anew, for a reload.
pub type Reload = Box<dyn FnMut() -> Option<SatelliteConfig> + Send>;

/// Runs until a signal stops it, or the owner leaves the parent.
pub async fn run(config: SatelliteConfig, manager: ServiceManager, reload: Reload) -> Result<(), RunError> {
    let state = (config.state_dir.clone(), config.state_key.clone());
    if run_to_the_end(config, manager, reload).await? {
        // Opening the state of a satellite that has left erases what is left of its keys.
        let (directory, key_file) = state;
        blocking::run(move || open_once_free(&directory, &key_file)).await?;
    }
    Ok(())
}

/// Whether the owner has left the parent meanwhile.
async fn run_to_the_end(
    config: SatelliteConfig,
    manager: ServiceManager,
    mut reload: Reload,
) -> Result<bool, RunError> {
    entropy::check()?;
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let (directory, key_file) = (config.state_dir.clone(), config.state_key.clone());
    let (store, loaded) = blocking::run(move || open_once_free(&directory, &key_file)).await?;
    let invitation = wanted_invitation(&config, &loaded).await?;
    let socket = AdminSocket::bind(&config.admin_socket).await?;
    let metrics_listeners = observation::bind(&config.metrics_listen).await?;

    let supervisor = Supervisor::new();
    let clock = Clock::start(BUILD_TIME);
    let work = supervisor.scope(Stage::Work);
    let (retention, kept) = watch::channel(config.audit);
    let database = store.database().clone();
    let audit = keep_audit_log(&store, &clock, kept, &supervisor.scope(Stage::Base)).await?;
    let book = grant_book(&config, database.clone(), clock.clone()).await?;
    let granted = (&book, audit.clone());
    let server = service_server(&config, database.clone(), granted, clock.clone(), work.clone()).await?;
    let services = server.services().clone();
    let desk = GrantDesk {
        book: book.clone(),
        audit: audit.clone(),
        peer: None,
    };
    work.spawn_until_cancelled("grant archive", archive_for_ever(book.clone(), clock.clone()));
    let catalog = Arc::new(services.clone());
    let surroundings = Arc::new(Surroundings::new(
        book.clone(),
        catalog,
        audit.clone(),
        clock.clone(),
    ));
    let (driver, handle) = Driver::new(
        store.clone(),
        loaded,
        clock.clone(),
        work.clone(),
        settings(&config),
        audit,
    );
    let driver = driver
        .with_listener(open_ways_in(&config, (store, clock), &handle, &surroundings, &work).await)
        .with_services(server)
        .with_surroundings(surroundings);
    work.spawn_until_cancelled("service news", tell_of(services.clone(), handle.clone()));
    work.spawn_essential("driver", async move {
        driver.run().await;
        Ok::<(), std::convert::Infallible>(())
    });
    let intake = supervisor.scope(Stage::Intake);
    let observed: Arc<dyn Observed> = Arc::new(SatelliteObserved::new(handle.clone()));
    for listener in metrics_listeners {
        let answering = observation::serve(listener, intake.clone(), Arc::clone(&observed));
        intake.spawn_until_cancelled("metrics", answering);
    }
    let parts = admin_api::Parts {
        handle: handle.clone(),
        services: services.clone(),
        desk,
        database,
        observed,
    };
    intake.spawn_until_cancelled("admin socket", admin_api::serve(socket, intake.clone(), parts));
    supervisor
        .scope(Stage::Base)
        .spawn_until_cancelled("service manager", keep_told(manager.clone(), handle.clone()));
    if let Some(invitation) = invitation {
        // The driver is there as long as nobody has asked it to stop.
        if let Ok(outcome) = handle.join(invitation).await {
            outcome?;
        }
    }
    manager.ready();
    tracing::info!(version = super::parent_client::RELEASE, state_dir = %config.state_dir.display(), "satellite runs");

    let cause = loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Stop => break StopCause::Requested,
                Signal::Reload => {
                    manager.reloading();
                    if let Some(config) = reload() {
                        book.set_accept_unsigned(config.accept_unsigned_grants);
                        services.reconfigure(config.services.clone(), ServiceLimits::from(&config.limits));
                        retention.send_replace(config.audit);
                        // A driver that is gone is noticed by `stopped`.
                        let _ = handle.reload(settings(&config)).await;
                    }
                    manager.ready();
                }
            },
            cause = supervisor.stopped() => break cause,
        }
    };
    manager.stopping();
    supervisor.shutdown(SHUTDOWN_GRACE, signals.stop()).await.log();
    let left = handle.status.borrow().state == "left";
    match cause {
        StopCause::Requested => Ok(left),
        StopCause::Failed(failure) => Err(RunError::Task(failure)),
    }
}

/// How a short run for `join` ended.
#[derive(Debug)]
pub enum JoinOutcome {
    /// A member, and a heartbeat is acknowledged.
    Joined(Box<StatusReport>),
    /// The parent said no: why and what to do.
    Refused(String),
    /// Neither within the time: the last failure, if any.
    TimedOut(Option<String>),
}

/// Joins without a daemon: runs the driver until the outcome is known or the time is over. What was
/// stored stays stored: a later `run` or `join` goes on from there.
pub async fn join_once(
    config: &SatelliteConfig,
    invitation: StoredInvitation,
    rejoin: Option<Rejoin>,
    timeout: Duration,
    troubled: &mut dyn FnMut(&str),
) -> Result<JoinOutcome, RunError> {
    entropy::check()?;
    let (directory, key_file) = (config.state_dir.clone(), config.state_key.clone());
    let (store, loaded) = blocking::run(move || open(&directory, &key_file)).await?;
    let supervisor = Supervisor::new();
    let work = supervisor.scope(Stage::Work);
    let clock = Clock::start(BUILD_TIME);
    let (_, kept) = watch::channel(config.audit);
    let audit = keep_audit_log(&store, &clock, kept, &supervisor.scope(Stage::Base)).await?;
    let book = grant_book(config, store.database().clone(), clock.clone()).await?;
    let surroundings = Surroundings::new(book, Arc::new(NoOfferings), audit.clone(), clock.clone());
    let (driver, handle) = Driver::new(store, loaded, clock, work.clone(), settings(config), audit);
    let driver = driver.with_surroundings(Arc::new(surroundings));
    work.spawn("driver", driver.run());
    let outcome = match handle.join_as(invitation, rejoin).await {
        Ok(Ok(())) => Ok(await_join(&handle, timeout, troubled).await),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Ok(JoinOutcome::TimedOut(None)),
    };
    supervisor.shutdown(SHUTDOWN_GRACE, std::future::pending()).await;
    outcome
}

/// Waits for the outcome of a join. `troubled` hears meanwhile what keeps the parent from being reached, also
/// repeatedly.
pub async fn await_join(
    handle: &DriverHandle,
    timeout: Duration,
    troubled: &mut dyn FnMut(&str),
) -> JoinOutcome {
    let mut status = handle.status.clone();
    let settled = async {
        loop {
            {
                let report = status.borrow_and_update();
                if let Some(outcome) = outcome_of(&report) {
                    return outcome;
                }
                if let Some(error) = &report.link.last_error {
                    troubled(error);
                }
            }
            if status.changed().await.is_err() {
                return JoinOutcome::TimedOut(None);
            }
        }
    };
    match tokio::time::timeout(timeout, settled).await {
        Ok(outcome) => outcome,
        Err(_) => JoinOutcome::TimedOut(handle.status.borrow().link.last_error.clone()),
    }
}

/// The outcome that a report tells, once there is one.
pub fn outcome_of(report: &StatusReport) -> Option<JoinOutcome> {
    match (report.state.as_str(), &report.refusal) {
        ("joined", None) => Some(JoinOutcome::Joined(Box::new(report.clone()))),
        // The membership of before goes on.
        ("joined" | "refused", Some(why)) => Some(JoinOutcome::Refused(why.clone())),
        _ => None,
    }
}

/// The state, as soon as a command that has it is done. Blocking.
fn open_once_free(directory: &Path, key_file: &StateKeyFile) -> Result<(MembershipStore, Loaded), RunError> {
    patience::once_free(|| open(directory, key_file), RunError::holder)
}

fn open(directory: &Path, key_file: &StateKeyFile) -> Result<(MembershipStore, Loaded), RunError> {
    let key = StateKey::read(key_file)?;
    Ok(MembershipStore::open(directory, key.as_ref())?)
}

/// Opens the audit log and starts its writer, in the stage that ends last.
async fn keep_audit_log(
    store: &MembershipStore,
    clock: &Clock,
    kept: watch::Receiver<Retention>,
    base: &TaskScope,
) -> Result<AuditLog, RunError> {
    let (database, clock) = (store.database().clone(), clock.clone());
    let (audit, writer) = blocking::run(move || AuditLog::open(database, clock, kept))
        .await
        .map_err(RunError::Audit)?;
    let writing = AuditWriter::run(writer, base.clone());
    base.spawn_essential("audit log", async {
        writing.await;
        Ok::<(), std::convert::Infallible>(())
    });
    Ok(audit)
}

/// The invitation to follow at the start: none for a member, none that was refused before.
async fn wanted_invitation(
    config: &SatelliteConfig,
    loaded: &Loaded,
) -> Result<Option<StoredInvitation>, InviteError> {
    let refused = match &loaded.state {
        None => None,
        Some(JoinState::Refused { token, .. }) => Some(*token),
        Some(_) => return Ok(None),
    };
    let config = config.clone();
    let found = blocking::run(move || waiting_invitation(&config)).await?;
    match (&found, refused) {
        (None, None) => tracing::info!("not invited yet; run `powernode-satellite join` with a join code"),
        (Some(found), Some(refused)) if found.token_digest == refused => {
            tracing::warn!("the invitation found was refused by the parent before; it is not tried again");
            return Ok(None);
        }
        _ => {}
    }
    Ok(found)
}

fn settings(config: &SatelliteConfig) -> DriverSettings {
    DriverSettings {
        child: ChildPolicy {
            uplinks: UplinksPolicy {
                ladder: LadderPolicy {
                    rungs: rungs(&config.ways, config.reach.wants_ways_in()),
                    backoff: BackoffPolicy {
                        initial: config.reconnect_initial,
                        max: config.reconnect_max,
                    },
                    climb: BackoffPolicy {
                        initial: CLIMB_INITIAL.min(config.tunnel_climb_max),
                        max: config.tunnel_climb_max,
                    },
                },
                redundancy: config.tunnel_redundancy,
            },
            bridges: config.parent.bridges.clone(),
        },
        cluster_hook: config.cluster_hook.clone(),
        tunnel: tunnel_settings(config),
        ways: config.ways.clone(),
        node: config.node_identity.clone(),
        operator: configured_operator(config),
    }
}

fn tunnel_settings(config: &SatelliteConfig) -> TunnelSettings {
    TunnelSettings {
        keepalive_ceiling: config.tunnel_keepalive,
        max_streams: config.limits.streams_per_session,
        stream_window: config.limits.stream_window_bytes(),
        ..TunnelSettings::default()
    }
}

/// The rungs that the configuration allows, best first. `Direct` is QUIC, too, and takes a way in.
fn rungs(ways: &Ways, ways_in: bool) -> Vec<Rung> {
    let proxy = ways.proxy.is_set().then_some(Rung::Proxy);
    let direct = ways_in.then_some(Rung::Direct).into_iter();
    match ways.transport {
        TunnelTransport::Auto => direct.chain([Rung::Quic, Rung::Tls]).chain(proxy).collect(),
        TunnelTransport::Quic => direct.chain([Rung::Quic]).collect(),
        TunnelTransport::Tls => [Rung::Tls].into_iter().chain(proxy).collect(),
    }
}

fn configured_operator(config: &SatelliteConfig) -> Option<Operator> {
    super::invite::operator(&config.disclosure).ok()
}

/// Starts what can be called and dialled from outside. The second's listener, where there is one.
async fn open_ways_in(
    config: &SatelliteConfig,
    (store, clock): (MembershipStore, Clock),
    driver: &DriverHandle,
    surroundings: &Arc<Surroundings>,
    scope: &TaskScope,
) -> Option<Listener> {
    let https = HttpsListener {
        config: config.reach,
        store: store.clone(),
        clock: clock.clone(),
        driver: driver.clone(),
        surroundings: Arc::clone(surroundings),
    };
    https.spawn(scope).await;
    let dialled = Direct {
        config: config.reach,
        quic: QuicSettings::from(&tunnel_settings(config)),
        store,
        clock,
        driver: driver.clone(),
    };
    dialled.spawn(scope).await
}

/// The grants, as the store has them.
async fn grant_book(
    config: &SatelliteConfig,
    database: Database,
    clock: Clock,
) -> Result<GrantBook, OpenGrantsError> {
    let accept_unsigned = config.accept_unsigned_grants;
    blocking::run(move || GrantBook::open(database, accept_unsigned, clock)).await
}

/// What is published and who may reach it, as configuration and store say.
async fn service_server(
    config: &SatelliteConfig,
    database: Database,
    surroundings: (&GrantBook, AuditLog),
    clock: Clock,
    scope: TaskScope,
) -> Result<ServiceServer, RunError> {
    let (published, store) = blocking::run(move || {
        let store = PublishedServices::new(database);
        Ok::<_, RunError>((store.all().map_err(RunError::Services)?, store))
    })
    .await?;
    let (book, audit) = surroundings;
    let gate = book.gate();
    scope.spawn_until_cancelled("grant clock", gate.clone().watch_clock());
    let limits = ServiceLimits::from(&config.limits);
    let services = Services::start(config.services.clone(), published, store, limits, clock, scope);
    Ok(ServiceServer::new(services, gate, audit))
}

/// Puts grants away that were revoked long ago.
async fn archive_for_ever(book: GrantBook, clock: Clock) {
    loop {
        match book.archive().await {
            Ok(0) => {}
            Ok(archived) => tracing::info!(archived, "grants that were revoked long ago are archived"),
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "revoked grants could not be archived");
            }
        }
        clock.sleep_until(clock.now().plus(ARCHIVE_PERIOD)).await;
    }
}

/// Has the parent told of what changes in the services.
async fn tell_of(services: Services, handle: DriverHandle) {
    let mut offerings = services.offerings();
    // The registry lives as long as this task; a driver that is gone hears nothing.
    while offerings.changed().await.is_ok() && handle.content_changed().await.is_ok() {}
}

/// Keeps the service manager's status text true and its watchdog fed.
async fn keep_told(manager: ServiceManager, handle: DriverHandle) {
    let period = manager
        .watchdog_period()
        .unwrap_or(STATUS_PERIOD)
        .min(STATUS_PERIOD);
    let mut status = handle.status.clone();
    let mut pulse = tokio::time::interval(period);
    loop {
        manager.status(&status.borrow_and_update().headline());
        tokio::select! {
            _ = pulse.tick() => {
                // A driver that is stuck publishes nothing: its last pulse must be recent.
                let alive = *handle.health.borrow() == Verdict::Feed && handle.is_moving();
                if alive {
                    manager.alive();
                }
            }
            changed = status.changed() => {
                if let Err(error) = changed {
                    tracing::debug!(error = %error_chain(&error), "the driver has ended");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
