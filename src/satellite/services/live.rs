//! One service that is published now: its definition, which may change under its streams, what is known
//! of its program, and what has passed.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::meter::{Direction, Meter};
use crate::contract::service::{Offering, ServiceDefinition, ServiceHealth};

/// See the module's text.
#[derive(Debug)]
pub(super) struct LiveService {
    definition: watch::Sender<Arc<ServiceDefinition>>,
    configured: std::sync::atomic::AtomicBool,
    health: Mutex<(ServiceHealth, Option<String>)>,
    meter: Meter,
    withdrawn: CancellationToken,
    open: AtomicU32,
    opened: AtomicU64,
    refused: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// A service for the command line and the status. Field names are the `--json` output: additions only.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "crate::satellite::status::reading::Fields")]
pub struct ServiceReport {
    /// As it is published.
    #[serde(flatten)]
    pub service: ServiceDefinition,
    /// Whether it stands in the configuration; else it was published at run time.
    pub configured: bool,
    /// What is known of its program.
    pub health: ServiceHealth,
    /// Why it is not healthy.
    pub health_reason: Option<String>,
    /// Connections now.
    pub connections: u32,
    /// Connections since the satellite was started.
    pub opened: u64,
    /// Streams that were refused since then.
    pub refused: u64,
    /// Bytes from the parent since then.
    pub bytes_in: u64,
    /// Bytes to the parent since then.
    pub bytes_out: u64,
}

impl LiveService {
    pub(super) fn new(definition: ServiceDefinition, configured: bool) -> Self {
        Self {
            meter: Meter::new(NonZeroU64::new(definition.bandwidth)),
            definition: watch::Sender::new(Arc::new(definition)),
            configured: configured.into(),
            health: Mutex::default(),
            withdrawn: CancellationToken::new(),
            open: AtomicU32::new(0),
            opened: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        }
    }

    pub(super) fn definition(&self) -> Arc<ServiceDefinition> {
        Arc::clone(&self.definition.borrow())
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<ServiceDefinition>> {
        self.definition.subscribe()
    }

    /// For streams that open from now on; the bandwidth is for those that run, too.
    pub(super) fn redefine(&self, definition: ServiceDefinition, configured: bool) -> bool {
        self.configured.store(configured, Ordering::Relaxed);
        self.meter.set_rate(NonZeroU64::new(definition.bandwidth));
        self.definition.send_if_modified(|current| {
            let changed = **current != definition;
            if changed {
                *current = Arc::new(definition);
            }
            changed
        })
    }

    /// Ends all of its streams.
    pub(super) fn withdraw(&self) {
        self.withdrawn.cancel();
    }

    /// Waits until it is published no more.
    pub(super) async fn withdrawn(&self) {
        self.withdrawn.cancelled().await;
    }

    /// Whether this is news.
    pub(super) fn set_health(&self, health: ServiceHealth, reason: Option<&str>) -> bool {
        let mut known = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = known.0 != health;
        *known = (health, reason.map(str::to_owned));
        changed
    }

    pub(super) fn offering(&self) -> Offering {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner).0;
        Offering::of(&self.definition.borrow(), health)
    }

    pub(super) fn report(&self) -> ServiceReport {
        let (health, health_reason) = self.health.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ServiceReport {
            service: (**self.definition.borrow()).clone(),
            configured: self.configured.load(Ordering::Relaxed),
            health,
            health_reason,
            connections: self.open.load(Ordering::Relaxed),
            opened: self.opened.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
        }
    }

    /// One more that was turned away.
    pub(super) fn count_refusal(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_bytes(&self, direction: Direction, bytes: u64) {
        let counter = match direction {
            Direction::In => &self.bytes_in,
            Direction::Out => &self.bytes_out,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) const fn meter(&self) -> &Meter {
        &self.meter
    }
}

/// One connection's place among those that the service's limit allows.
#[derive(Debug)]
pub(super) struct Place {
    service: Arc<LiveService>,
}

impl Place {
    /// `None` when all are taken.
    pub(super) fn take(service: &Arc<LiveService>, most: u32) -> Option<Self> {
        service
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
                (open < most).then_some(open + 1)
            })
            .ok()?;
        service.opened.fetch_add(1, Ordering::Relaxed);
        Some(Self {
            service: Arc::clone(service),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.service.open.fetch_sub(1, Ordering::Relaxed);
    }
}
