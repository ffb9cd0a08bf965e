//! The satellite as a daemon, and as the short run behind `join`: opens the state, starts the driver
//! under a supervisor, talks to the service manager, and stops in order.

use std::time::Duration;

use thiserror::Error;

use super::admin_api;
use super::direct::Direct;
use super::driver::{Driver, DriverHandle, DriverSettings, JoinCommandError};
use super::invite::{InviteError, waiting_invitation};
use super::membership_store::{Loaded, MembershipStore, OpenStateError};
use super::status::StatusReport;
use crate::base::limit::error_chain;
use crate::machine::backoff::BackoffPolicy;
use crate::machine::join::JoinState;
use crate::machine::membership::{Operator, StoredInvitation};
use crate::machine::watchdog::Verdict;
use crate::process::admin_socket::{AdminSocket, AdminSocketError};
use crate::process::clock::{BUILD_TIME, Clock};
use crate::process::config::satellite::SatelliteConfig;
use crate::process::entropy::{self, EntropyUnavailable};
use crate::process::service_notify::ServiceManager;
use crate::process::signals::{Signal, Signals};
use crate::process::supervisor::{Stage, StopCause, Supervisor};
use crate::store::state_key::{StateKey, StateKeyError};
use crate::tunnel::TunnelSettings;

/// Time for goodbyes and the last write. Well below the service manager's 90 s.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

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
    /// The invitation that waits for this box.
    #[error(transparent)]
    Invite(#[from] InviteError),
    /// The admin socket.
    #[error(transparent)]
    AdminSocket(#[from] AdminSocketError),
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

/// Gives the configuration anew, for a reload.
pub type Reload = Box<dyn FnMut() -> Option<SatelliteConfig> + Send>;

/// Runs until a signal stops it.
pub async fn run(
    config: SatelliteConfig,
    manager: ServiceManager,
    mut reload: Reload,
) -> Result<(), RunError> {
    entropy::check()?;
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let (store, loaded) = open(&config).await?;
    let invitation = wanted_invitation(&config, &loaded).await?;
    let socket = AdminSocket::bind(&config.admin_socket).await?;

    let supervisor = Supervisor::new();
    let clock = Clock::start(BUILD_TIME);
    let work = supervisor.scope(Stage::Work);
    let (driver, handle) = Driver::new(
        store.clone(),
        loaded,
        clock.clone(),
        work.clone(),
        settings(&config),
    );
    let direct = Direct {
        config: config.reach,
        store,
        clock,
        driver: handle.clone(),
    };
    direct.spawn(&work).await;
    work.spawn_essential("driver", async move {
        driver.run().await;
        Ok::<(), std::convert::Infallible>(())
    });
    let intake = supervisor.scope(Stage::Intake);
    intake.spawn_until_cancelled(
        "admin socket",
        admin_api::serve(socket, intake.clone(), handle.clone()),
    );
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
    match cause {
        StopCause::Requested => Ok(()),
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
    timeout: Duration,
) -> Result<JoinOutcome, RunError> {
    entropy::check()?;
    let (store, loaded) = open(config).await?;
    let supervisor = Supervisor::new();
    let work = supervisor.scope(Stage::Work);
    let (driver, handle) = Driver::new(
        store,
        loaded,
        Clock::start(BUILD_TIME),
        work.clone(),
        settings(config),
    );
    work.spawn("driver", driver.run());
    let outcome = match handle.join(invitation).await {
        Ok(Ok(())) => Ok(await_join(&handle, timeout).await),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Ok(JoinOutcome::TimedOut(None)),
    };
    supervisor.shutdown(SHUTDOWN_GRACE, std::future::pending()).await;
    outcome
}

/// Waits for the outcome of a join.
pub async fn await_join(handle: &DriverHandle, timeout: Duration) -> JoinOutcome {
    let mut status = handle.status.clone();
    let settled = async {
        loop {
            if let Some(outcome) = outcome_of(&status.borrow_and_update()) {
                return outcome;
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
        ("joined", _) => Some(JoinOutcome::Joined(Box::new(report.clone()))),
        ("refused", Some(why)) => Some(JoinOutcome::Refused(why.clone())),
        _ => None,
    }
}

async fn open(config: &SatelliteConfig) -> Result<(MembershipStore, Loaded), RunError> {
    let (directory, key_file) = (config.state_dir.clone(), config.state_key.clone());
    blocking(move || {
        let key = StateKey::read(&key_file)?;
        Ok(MembershipStore::open(&directory, key.as_ref())?)
    })
    .await
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
    let found = blocking(move || waiting_invitation(&config)).await?;
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
        backoff: BackoffPolicy {
            initial: config.reconnect_initial,
            max: config.reconnect_max,
        },
        tunnel: TunnelSettings {
            keepalive_ceiling: config.tunnel_keepalive,
            ..TunnelSettings::default()
        },
        operator: configured_operator(config),
        bridges: config.parent.bridges.clone(),
    }
}

fn configured_operator(config: &SatelliteConfig) -> Option<Operator> {
    super::invite::operator(&config.disclosure).ok()
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

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
