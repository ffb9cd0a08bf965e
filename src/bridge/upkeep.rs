//! What goes on beside the requests: stale heartbeats are found, certificates and files are read again,
//! what is spent is forgotten.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use super::links::Links;
use super::material::Material;
use super::peer_trust::follow_equals;
use super::registry::{Books, Registry, RetireError, Retirement};
use super::settings::BridgeSettings;
use crate::base::limit::error_chain;
use crate::base::time::UnixTime;
use crate::process::clock::Clock;
use crate::process::service_notify::ServiceManager;

/// How often heartbeats are looked through: a stale peer shows at most this much late.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);

/// How often the own certificate and spent tokens are looked at.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(3_600);

/// Least distance of two rounds through the bundles of peers that certify themselves.
const HINTS_DISTANCE: Duration = Duration::from_secs(10);

/// How often a disk that has failed is tried again. Nothing else may be written for long, and whoever asks
/// whether the host-bridge is ready is to hear soon that it is.
const DISK_INTERVAL: Duration = Duration::from_secs(10);

/// How often files are looked at that others renew.
const FILES_INTERVAL: Duration = Duration::from_secs(5);

/// What the tasks need.
#[derive(Clone)]
pub(super) struct Upkeep {
    pub(super) books: Books,
    pub(super) material: Arc<Material>,
    pub(super) links: Arc<Links>,
    pub(super) clock: Clock,
    pub(super) settings: watch::Receiver<BridgeSettings>,
    pub(super) service: ServiceManager,
}

impl Upkeep {
    /// Looks for ever who has fallen silent, where this host-bridge is to say so.
    pub(super) async fn sweep_for_ever(self) {
        let listening_since = self.clock.trusted().now;
        let mut tick = ticks(SWEEP_INTERVAL);
        loop {
            tick.tick().await;
            if let Books::Own(registry) = &self.books {
                self.sweep(registry, listening_since).await;
            }
            self.service
                .status(&format!("{} satellites connected", self.links.len()));
        }
    }

    async fn sweep(&self, registry: &Arc<Registry>, listening_since: UnixTime) {
        let stale_after = self.settings.borrow().config.stale_after;
        let (registry, now) = (Arc::clone(registry), self.clock.trusted().now);
        match blocking(move || registry.sweep(stale_after, listening_since, now)).await {
            Ok(degraded) => {
                for peer in degraded {
                    let reason = peer.degraded_reason.unwrap_or_default();
                    warn!(peer = %peer.id, name = peer.name, reason, "a peer is degraded");
                }
            }
            Err(error) => error!(error = %error_chain(&error), "the peers could not be looked through"),
        }
    }

    /// Tries for ever a disk that has failed, until it takes writes again.
    pub(super) async fn try_disk_for_ever(self) {
        let mut tick = ticks(DISK_INTERVAL);
        loop {
            tick.tick().await;
            let ledger = Arc::clone(self.books.ledger());
            if ledger.failure().is_some() && blocking(move || ledger.prove_writable()).await.is_ok() {
                info!("the disk takes writes again");
            }
        }
    }

    /// Reads for ever again what others renew.
    pub(super) async fn read_files_for_ever(self) {
        let mut tick = ticks(FILES_INTERVAL);
        let mut told = None;
        loop {
            tick.tick().await;
            let settings = self.settings.borrow().clone();
            if !settings.config.reads_files() {
                continue;
            }
            let (books, material, now) = (
                self.books.clone(),
                Arc::clone(&self.material),
                self.clock.trusted().now,
            );
            let read = blocking(move || material.refresh(&books, &settings, now)).await;
            let failed = read.err().map(|error| error_chain(&error));
            if let Some(error) = failed.as_deref().filter(|_| failed != told) {
                error!(error, "{STILL_SHOWN}");
            }
            told = failed;
        }
    }

    /// Follows for ever the trust bundles of peers that certify themselves.
    pub(super) async fn follow_equals_for_ever(self) {
        let Books::Own(registry) = &self.books else {
            return;
        };
        let mut hourly = ticks(UPKEEP_INTERVAL);
        loop {
            tokio::select! {
                _ = hourly.tick() => {}
                () = registry.peer_anchors().differing() => {}
            }
            follow_equals(registry, &self.links, &self.clock).await;
            // A peer whose bundle cannot be followed hints with each heartbeat.
            self.clock
                .sleep_until(self.clock.now().plus(HINTS_DISTANCE))
                .await;
        }
    }

    /// Does for ever what is to be done each hour.
    pub(super) async fn for_ever(self) {
        let mut hourly = ticks(UPKEEP_INTERVAL);
        let mut rotated = self.books.registry().ok().map(|registry| registry.anchors());
        loop {
            // A rotated authority issues the server's certificate at once.
            tokio::select! {
                _ = hourly.tick() => {}
                () = changed(rotated.as_mut()) => {}
            }
            let (books, material, now) = (
                self.books.clone(),
                Arc::clone(&self.material),
                self.clock.trusted().now,
            );
            let settings = self.settings.borrow().clone();
            blocking(move || keep(&books, &material, &settings, now)).await;
        }
    }
}

/// Waits for a change of what there may be.
async fn changed<T>(watched: Option<&mut watch::Receiver<T>>) {
    let gone = match watched {
        Some(watched) => watched.changed().await.is_err(),
        None => true,
    };
    if gone {
        std::future::pending::<()>().await;
    }
}

/// What is logged when nothing new can be shown.
const STILL_SHOWN: &str =
    "certificates and authorities could not be read again or renewed; the old ones stay in force";

/// Reads certificates again or renews them, and forgets what is spent. Blocks on the disk.
pub(super) fn keep(books: &Books, material: &Material, settings: &BridgeSettings, now: UnixTime) {
    if let Err(error) = material.refresh(books, settings, now) {
        error!(error = %error_chain(&error), "{STILL_SHOWN}");
    }
    let Books::Own(registry) = books else {
        return;
    };
    if let Err(error) = registry.forget_stale_tokens(settings.config.accept_grace, now) {
        error!(error = %error_chain(&error), "spent tokens could not be forgotten");
    }
    match registry.retire_authority(Retirement::InTime, now) {
        Ok(()) => info!("the overlap of the authority's rotation is over; the old one counts no more"),
        Err(RetireError::Nothing | RetireError::Overlap { .. }) => {}
        Err(error @ RetireError::InUse { .. }) => {
            info!(reason = %error, "the old authority is not retired yet");
        }
        Err(RetireError::Store(error)) => {
            error!(error = %error_chain(&error), "the old authority could not be retired");
        }
    }
    if let Err(error) = registry.archive_grants(now) {
        error!(error = %error_chain(&error), "revoked grants could not be archived");
    }
}

/// Runs what blocks where that is allowed. A panic there goes on here.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is going away cancels blocking work; so is this task.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Ticks that are not made up for.
pub(super) fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
