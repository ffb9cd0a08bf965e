//! The satellite's own HTTPS listener: the child's side of the federation API for a parent that calls
//! the box itself, without a tunnel between. Off unless an address is configured.
//!
//! Whoever has no certificate of the parent's ends in the handshake ([`crate::identity::parent_caller`]),
//! and who acts needs a grant besides. What a stranger can cost is bounded: connections in all and from one
//! source, and tries of one source a minute. The listener serves the present membership: a renewed
//! certificate is shown from the next handshake on, and when the box leaves its parent open connections end.

mod mapped;
mod nonces;
mod serving;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use self::mapped::Mapped;
use self::nonces::Nonces;
use self::serving::{Serving, follow_membership};
use super::driver::DriverHandle;
use super::federation_api::{ApiCaller, FederationApi, Surroundings};
use super::membership_store::MembershipStore;
use super::status::HttpsReport;
use crate::base::ordered_map::OrderedMap;
use crate::machine::source_rate::{Source, SourceRate};
use crate::process::clock::Clock;
use crate::process::config::satellite::ReachConfig;
use crate::process::connection::boxed;
use crate::process::http_server;
use crate::process::supervisor::TaskScope;

/// Connections at once, in number: the parent needs one or two, a bridge and a platform each, and room.
/// Each may cost 100 KiB.
const CONNECTIONS_MAX: usize = 16;

/// Of these from one source, in number, so that one stranger cannot take all places.
pub const CONNECTIONS_PER_SOURCE: u32 = 6;

/// Connections that one source may try in a minute, in number. A parent that opens one for each request
/// sends a request a second.
const TRIES_A_MINUTE: u32 = 60;

/// Time for a handshake: some round trips over a satellite link.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest life of a connection: a caller comes back, by the certificate and the anchors of then.
const CONNECTION_TIME: Duration = Duration::from_secs(3_600);

/// Pause after the system refused to give a connection, for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is spoken.
const ALPN: &[&[u8]] = &[b"http/1.1"];

/// What the listener needs of the daemon.
pub struct HttpsListener {
    /// Where it listens, if it is to, and what may be asked of routers for it.
    pub config: ReachConfig,
    /// Where records of mappings are kept.
    pub store: MembershipStore,
    /// The time.
    pub clock: Clock,
    /// Tells of the membership, and takes the report.
    pub driver: DriverHandle,
    /// What answers are made of.
    pub surroundings: Arc<Surroundings>,
}

impl HttpsListener {
    /// Starts it. A satellite whose address is taken by another program goes on without, and says so.
    pub async fn spawn(self, scope: &TaskScope) {
        let bound = match self.config.https_listen {
            None => None,
            Some(address) => match bind(address).await {
                Ok(bound) => Some(bound),
                Err(error) => {
                    tracing::error!(%address, %error, "the parent cannot call this satellite by HTTPS; reach.https_listen sets the address");
                    let report = HttpsReport {
                        listening: None,
                        error: Some(format!("cannot listen on {address}: {error}")),
                        mappings: Vec::new(),
                    };
                    // A driver that is gone is noticed by those who wait for it.
                    let _ = self.driver.tell_https(report, Vec::new()).await;
                    None
                }
            },
        };
        let nonces = Nonces::default();
        let (serving, mut served) = watch::channel(None);
        if bound.is_some() {
            scope.spawn_until_cancelled(
                "https identity",
                follow_membership(self.driver.member.clone(), self.clock.clone(), serving),
            );
            // The present membership first: whoever reads that it listens may call.
            let _ = served.changed().await;
        }
        let mapped = Mapped {
            config: self.config,
            store: self.store,
            clock: self.clock.clone(),
            driver: self.driver.clone(),
            nonces: nonces.clone(),
            listening: bound.as_ref().map(|(_, address)| *address),
        };
        mapped.spawn(scope).await;
        let Some((listener, _)) = bound else { return };
        let door = Arc::new(Door {
            clock: self.clock,
            surroundings: self.surroundings,
            nonces,
            served,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            sources: Mutex::new(Sources::new()),
        });
        scope.spawn_until_cancelled("https", door.run(listener, scope.clone()));
    }
}

async fn bind(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

struct Door {
    clock: Clock,
    surroundings: Arc<Surroundings>,
    nonces: Nonces,
    served: watch::Receiver<Option<Arc<Serving>>>,
    places: Arc<Semaphore>,
    sources: Mutex<Sources>,
}

/// Who is connected, and who has tried.
struct Sources {
    open: OrderedMap<Source, u32>,
    tries: SourceRate,
}

impl Sources {
    const fn new() -> Self {
        Self {
            open: OrderedMap::new(),
            tries: SourceRate::new(TRIES_A_MINUTE),
        }
    }
}

/// One of a source's places, given back when it is dropped.
struct SourcePlace {
    door: Arc<Door>,
    source: Source,
}

impl Drop for SourcePlace {
    fn drop(&mut self) {
        let mut sources = self.door.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = sources.open.get_mut(&self.source) {
            *open -= 1;
            if *open == 0 {
                sources.open.remove(&self.source);
            }
        }
    }
}

impl Door {
    async fn run(self: Arc<Self>, listener: TcpListener, scope: TaskScope) {
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "an HTTPS connection could not be taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                tracing::debug!(%address, "an HTTPS connection too many was closed");
                continue;
            };
            let Some(source_place) = self.admit(address) else {
                tracing::debug!(%address, "an HTTPS connection too many of its source was closed");
                continue;
            };
            let door = Arc::clone(&self);
            scope.spawn_until_cancelled("https connection", async move {
                let within = tokio::time::timeout(CONNECTION_TIME, door.connection(stream, address));
                if within.await.is_err() {
                    tracing::debug!(%address, "an HTTPS connection was ended for its age");
                }
                drop((source_place, place));
            });
        }
    }

    fn admit(self: &Arc<Self>, address: SocketAddr) -> Option<SourcePlace> {
        let source = Source::of(address.ip());
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let open = sources.open.get(&source).copied().unwrap_or(0);
        if open >= CONNECTIONS_PER_SOURCE || sources.tries.admit(source, self.clock.now()).is_err() {
            return None;
        }
        sources.open.insert(source, open + 1);
        Some(SourcePlace {
            door: Arc::clone(self),
            source,
        })
    }

    async fn connection(&self, stream: TcpStream, address: SocketAddr) {
        let mut served = self.served.clone();
        let serving = served.borrow_and_update().clone();
        // Before the join there is nobody who could call.
        let Some(serving) = serving else { return };
        // Answers are small and wanted at once.
        let _ = stream.set_nodelay(true);
        let shaken = TlsAcceptor::from(Arc::clone(&serving.tls)).accept(boxed(stream));
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, shaken).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%address, %error, "somebody was not let in by HTTPS"),
            Err(_) => return tracing::debug!(%address, "a TLS handshake took too long"),
        };
        let api = FederationApi {
            surroundings: Arc::clone(&self.surroundings),
        };
        // The certificate speaks for the parent alone: what callers claim in headers is not looked at.
        let caller = ApiCaller::direct(serving.peer, Some(address.ip()));
        let nonces = self.nonces.clone();
        let answer = move |request| -> http_server::Answer {
            let (api, caller, nonces) = (api.clone(), caller.clone(), nonces.clone());
            Box::pin(async move {
                match nonces.answer(&request) {
                    Some(proof) => proof,
                    None => api.answer(request, &caller, None).await,
                }
            })
        };
        let exchange = http_server::answer_all(boxed(stream), Box::new(answer));
        let left = served.wait_for(|now| now.as_ref().is_none_or(|now| now.peer != serving.peer));
        tokio::select! {
            ended = exchange => if let Err(error) = ended {
                tracing::debug!(%address, %error, "an HTTPS connection ended early");
            },
            _ = left => tracing::debug!(%address, "an HTTPS connection was ended with the peering"),
        }
    }
}
