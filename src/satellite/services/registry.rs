//! What is published at this moment: the services of the configuration, and those that were published at
//! run time where the configuration has none of the name. A change touches the services that it is about
//! and no other: their streams, counters and checks go on.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;

use super::health::look_after;
use super::live::{LiveService, ServiceReport};
use super::meter::Meter;
use super::published::PublishedServices;
use crate::base::limit::foreign_text;
use crate::base::ordered_map::OrderedMap;
use crate::contract::service::{Offering, SERVICES_MAX, ServiceDefinition, ServiceHealth, ServiceName};
use crate::process::blocking;
use crate::process::clock::Clock;
use crate::process::config::services::LimitsConfig;
use crate::process::supervisor::TaskScope;
use crate::store::database::StoreError;

/// Under which all streams stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceLimits {
    /// Bytes each second of one stream, in each direction.
    pub stream_bandwidth: Option<NonZeroU64>,
    /// Bytes each second of all streams of a tunnel together, in each direction.
    pub session_bandwidth: Option<NonZeroU64>,
    /// How long a local program may take to answer a connection.
    pub connect_timeout: Duration,
    /// How long a flow of packets may be silent.
    pub flow_idle_timeout: Duration,
}

impl From<&LimitsConfig> for ServiceLimits {
    fn from(config: &LimitsConfig) -> Self {
        Self {
            stream_bandwidth: config.stream_bandwidth,
            session_bandwidth: config.session_bandwidth,
            connect_timeout: config.connect_timeout,
            flow_idle_timeout: config.flow_idle_timeout,
        }
    }
}

/// No service of that name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct NotPublished {
    asked: String,
    published: Vec<ServiceName>,
}

impl NotPublished {
    /// That the name is none of those.
    pub fn unless_among(asked: &str, published: Vec<ServiceName>) -> Option<Self> {
        let found = published.iter().any(|name| name.as_str() == asked);
        (!found).then(|| Self {
            asked: foreign_text(asked),
            published,
        })
    }
}

impl fmt::Display for NotPublished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no service `{}` is published here", self.asked)?;
        if self.published.is_empty() {
            return f.write_str("; none is");
        }
        let names: Vec<_> = self.published.iter().map(ServiceName::as_str).collect();
        write!(f, "; published are: {}", names.join(", "))
    }
}

/// Why a service was not published. What was published is as it was.
#[derive(Debug, Error)]
pub enum PublishError {
    /// The configuration decides.
    #[error("`{0}` stands in the configuration; change it there and reload")]
    Configured(ServiceName),
    /// A bound is reached.
    #[error("{SERVICES_MAX} services are published already; withdraw one first")]
    Full,
    /// The disk.
    #[error("the service could not be stored; it is not published")]
    Store(#[source] StoreError),
}

/// Why a service was not withdrawn.
#[derive(Debug, Error)]
pub enum WithdrawError {
    /// There is none.
    #[error(transparent)]
    Unknown(#[from] NotPublished),
    /// The configuration decides.
    #[error("`{0}` stands in the configuration; remove it there and reload")]
    Configured(ServiceName),
    /// The disk.
    #[error("the change could not be stored; the service is still published")]
    Store(#[source] StoreError),
}

/// The registry. Cheap to clone; all clones see the same.
#[derive(Clone)]
pub struct Services {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Clock,
    scope: TaskScope,
    store: PublishedServices,
    book: Mutex<Book>,
    /// One change at the store at a time.
    changing: Mutex<()>,
    offerings: watch::Sender<Arc<[Offering]>>,
    limits: watch::Sender<ServiceLimits>,
}

#[derive(Default)]
struct Book {
    configured: OrderedMap<ServiceName, ServiceDefinition>,
    published: OrderedMap<ServiceName, ServiceDefinition>,
    live: OrderedMap<ServiceName, Arc<LiveService>>,
}

impl Services {
    /// Publishes what the configuration and the store say. Health checks run in the scope.
    pub fn start(
        configured: Vec<ServiceDefinition>,
        published: Vec<ServiceDefinition>,
        store: PublishedServices,
        limits: ServiceLimits,
        clock: Clock,
        scope: TaskScope,
    ) -> Self {
        let services = Self {
            shared: Arc::new(Shared {
                clock,
                scope,
                store,
                book: Mutex::default(),
                changing: Mutex::new(()),
                offerings: watch::Sender::new(Arc::new([])),
                limits: watch::Sender::new(limits),
            }),
        };
        services.book().published = by_name(published);
        services.reconfigure(configured, limits);
        services
    }

    /// Takes the configuration's services and limits anew.
    pub fn reconfigure(&self, configured: Vec<ServiceDefinition>, limits: ServiceLimits) {
        self.shared.limits.send_replace(limits);
        let mut book = self.book();
        book.configured = by_name(configured);
        self.apply(book);
    }

    /// Publishes a service, or changes one that was published at run time. Durable, then in force, also
    /// where nobody waits for it any more.
    pub async fn publish(&self, service: ServiceDefinition) -> Result<(), PublishError> {
        self.change(|services| services.publish_blocking(service)).await
    }

    /// Takes a service back that was published at run time; its streams end. As with [`publish`](Self::publish),
    /// whoever stops waiting does not stop it.
    pub async fn withdraw(&self, name: &ServiceName) -> Result<(), WithdrawError> {
        let name = name.clone();
        self.change(move |services| services.withdraw_blocking(&name))
            .await
    }

    async fn change<T: Send + 'static>(&self, change: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let services = self.clone();
        blocking::run(move || {
            let changing = &services.shared.changing;
            let _alone = changing.lock().unwrap_or_else(PoisonError::into_inner);
            change(&services)
        })
        .await
    }

    fn publish_blocking(&self, service: ServiceDefinition) -> Result<(), PublishError> {
        {
            let book = self.book();
            if book.configured.contains_key(&service.name) {
                return Err(PublishError::Configured(service.name.clone()));
            }
            if !book.live.contains_key(&service.name) && book.live.len() >= SERVICES_MAX {
                return Err(PublishError::Full);
            }
        }
        self.shared.store.put(&service).map_err(PublishError::Store)?;
        let mut book = self.book();
        book.published.insert(service.name.clone(), service);
        self.apply(book);
        Ok(())
    }

    fn withdraw_blocking(&self, name: &ServiceName) -> Result<(), WithdrawError> {
        {
            let book = self.book();
            if book.configured.contains_key(name) {
                return Err(WithdrawError::Configured(name.clone()));
            }
            if !book.published.contains_key(name) {
                return Err(book.not_published(name.as_str()).into());
            }
        }
        self.shared.store.remove(name).map_err(WithdrawError::Store)?;
        let mut book = self.book();
        book.published.remove(name);
        self.apply(book);
        Ok(())
    }

    /// What the parent is told, kept up to date.
    pub fn offerings(&self) -> watch::Receiver<Arc<[Offering]>> {
        self.shared.offerings.subscribe()
    }

    /// What the parent is told now.
    pub fn offered(&self) -> Arc<[Offering]> {
        self.shared.offerings.borrow().clone()
    }

    /// All of it, for the owner.
    pub fn reports(&self) -> Vec<ServiceReport> {
        self.book()
            .live
            .values()
            .map(|service| service.report())
            .collect()
    }

    /// The service of that name.
    pub(super) fn find(&self, asked: &str) -> Result<Arc<LiveService>, NotPublished> {
        let book = self.book();
        // What is no name at all cannot be one that is published.
        let found = asked
            .parse()
            .ok()
            .and_then(|name: ServiceName| book.live.get(&name));
        found.cloned().ok_or_else(|| book.not_published(asked))
    }

    pub(super) fn limits(&self) -> ServiceLimits {
        *self.shared.limits.borrow()
    }

    /// The bandwidth of one tunnel.
    pub(super) fn session_meter(&self) -> Meter {
        Meter::new(self.limits().session_bandwidth)
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    pub(super) fn told_health(&self, service: &LiveService, health: ServiceHealth, reason: Option<&str>) {
        if service.set_health(health, reason) {
            let name = service.definition().name.clone();
            match (health, reason) {
                (ServiceHealth::Unhealthy, reason) => {
                    tracing::warn!(service = %name, reason, "the program of a published service does not answer");
                }
                (ServiceHealth::Healthy, _) => {
                    tracing::info!(service = %name, "the program of a published service answers");
                }
                (ServiceHealth::Unchecked | ServiceHealth::Unknown, _) => {}
            }
            let book = self.book();
            self.offer(&book);
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings what is live in line with what should be.
    fn apply(&self, mut book: MutexGuard<'_, Book>) {
        let mut wanted: OrderedMap<ServiceName, (ServiceDefinition, bool)> = OrderedMap::new();
        for (services, configured) in [(&book.configured, true), (&book.published, false)] {
            for (name, service) in services.iter() {
                if wanted.contains_key(name) {
                    continue;
                }
                if wanted.len() < SERVICES_MAX {
                    wanted.insert(name.clone(), (service.clone(), configured));
                } else {
                    tracing::warn!(service = %name, "not published: {SERVICES_MAX} services are published already");
                }
            }
        }
        book.live.retain(|name, service| {
            let stays = wanted.contains_key(name);
            if !stays {
                tracing::info!(service = %name, "service withdrawn");
                service.withdraw();
            }
            stays
        });
        for (name, (definition, configured)) in wanted {
            if let Some(service) = book.live.get(&name) {
                if service.redefine(definition, configured) {
                    tracing::info!(service = %name, "service changed");
                }
                continue;
            }
            tracing::info!(service = %name, protocol = %definition.protocol, address = %definition.address, "service published");
            let service = Arc::new(LiveService::new(definition, configured));
            let (services, looked_after) = (self.clone(), Arc::clone(&service));
            self.shared
                .scope
                .spawn_until_cancelled("service health", async move {
                    tokio::select! {
                        () = looked_after.withdrawn() => {}
                        () = look_after(services, Arc::clone(&looked_after)) => {}
                    }
                });
            book.live.insert(name, service);
        }
        self.offer(&book);
    }

    fn offer(&self, book: &Book) {
        let offered: Arc<[Offering]> = book.live.values().map(|service| service.offering()).collect();
        self.shared.offerings.send_if_modified(|current| {
            let changed = *current != offered;
            *current = offered;
            changed
        });
    }
}

impl Book {
    fn not_published(&self, asked: &str) -> NotPublished {
        NotPublished {
            asked: foreign_text(asked),
            published: self.live.keys().cloned().collect(),
        }
    }
}

fn by_name(services: Vec<ServiceDefinition>) -> OrderedMap<ServiceName, ServiceDefinition> {
    services
        .into_iter()
        .map(|service| (service.name.clone(), service))
        .collect()
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services")
            .field("published", &self.book().live.len())
            .finish_non_exhaustive()
    }
}
