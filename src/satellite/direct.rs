//! Ways in from outside: one keeper of a port for each family of addresses, the listener to which
//! the ports lead, the proofs over the tunnel, and what the parent and the operator are told.
//!
//! A task of its own beside the driver: it watches how the membership stands and hands back a
//! report; nothing of the tunnel waits for a router.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::driver::{DriverHandle, Standing};
use super::membership_store::{MappingFamily, MembershipStore};
use super::parent_client;
use super::status::{MappingReport, ReachReport};
use crate::base::address::is_public;
use crate::base::limit::error_chain;
use crate::contract::message::{ContractAnswer, DialBackRequest, FederationCertificate};
use crate::machine::mapping_lease::{
    Gateway, LeaseSettings, LeaseView, MappingLease, MappingRecord, ProofOutcome, Unmapped,
};
use crate::process::clock::Clock;
use crate::process::config::satellite::ReachConfig;
use crate::process::entropy;
use crate::process::supervisor::TaskScope;
use crate::reach::default_route::{Family, watch_gateways};
use crate::reach::dial::AGENT;
use crate::reach::listen::Listener;
use crate::reach::port_mapping::{Keeper, MappingView, RouterClients, Surroundings};
use crate::tunnel::quic::QuicSettings;
use crate::tunnel::transport::BoxFuture;

/// Status with which a bridge says that it will not dial an endpoint for its address or port.
const NOT_DIALLED: u16 = 403;

/// How long changes are gathered before the driver is told: a mapping changes in several steps.
const GATHER: Duration = Duration::from_millis(200);

/// What the ways in need of the daemon.
pub struct Direct {
    /// The configuration.
    pub config: ReachConfig,
    /// Streams that a bridge which calls may hold open at once.
    pub max_streams: u32,
    /// Where records of mappings are kept.
    pub store: MembershipStore,
    /// The time.
    pub clock: Clock,
    /// Tells how the membership stands, and takes the report.
    pub driver: DriverHandle,
}

impl Direct {
    /// Starts all of it. The listener, where ways in are wanted: without a port of its own the satellite
    /// goes on without them.
    pub async fn spawn(self, scope: &TaskScope) -> Option<Listener> {
        let listener = self.listener();
        let port = listener
            .as_ref()
            .and_then(|listener| listener.local_address().ok())
            .map_or(0, |address| address.port());
        if let Some(listener) = &listener {
            scope.spawn("listener", listener.clone().run(scope.clone()));
        }
        let (provers, ready) = watch::channel(0);
        let prover = Arc::new(Prover {
            driver: self.driver.clone(),
            listener: listener.clone(),
        });
        let v4 = (
            Family::V4,
            MappingFamily::V4,
            self.stored(MappingFamily::V4).await,
        );
        let v6 = (
            Family::V6,
            MappingFamily::V6,
            self.stored(MappingFamily::V6).await,
        );
        let views = [v4, v6].map(|family| self.spawn_keeper(scope, family, port, &prover, ready.clone()));
        scope.spawn_until_cancelled(
            "ways in",
            follow(self.driver, self.config, listener.clone(), provers, views),
        );
        listener
    }

    fn listener(&self) -> Option<Listener> {
        if !self.config.wants_ways_in() {
            return None;
        }
        let settings = QuicSettings {
            max_streams: self.max_streams,
        };
        match Listener::bind(self.config.listen_port, settings, self.clock.clone(), AGENT) {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "the satellite cannot be dialled from outside; reach.listen_port sets the port");
                None
            }
        }
    }

    /// What an earlier run may have left on routers.
    async fn stored(&self, family: MappingFamily) -> Vec<MappingRecord> {
        self.store.mappings(family).await.unwrap_or_else(|error| {
            tracing::warn!(error = %error_chain(&error), "mappings of an earlier run cannot be read; what is left of them ends with its lease");
            Vec::new()
        })
    }

    fn spawn_keeper(
        &self,
        scope: &TaskScope,
        (family, kept, stored): (Family, MappingFamily, Vec<MappingRecord>),
        port: u16,
        prover: &Arc<Prover>,
        provers: watch::Receiver<u64>,
    ) -> watch::Receiver<MappingView> {
        let forwarded = forwarded(&self.config, family);
        let enabled = (self.config.port_mapping || forwarded.is_some()) && port != 0;
        let (view, shown) = watch::channel(MappingView {
            endpoint: None,
            lease: None,
            why_not: Some(if enabled {
                Unmapped::NoProver
            } else {
                Unmapped::Disabled
            }),
        });
        if !enabled && stored.is_empty() {
            return shown;
        }
        let settings = LeaseSettings {
            enabled,
            port,
            description: description(&self.driver),
            nonce: entropy::bytes(),
            forwarded,
            allow_private: self.config.allow_private,
            seed: entropy::seed(),
        };
        let (gateways, network) = watch::channel(Vec::<Gateway>::new());
        scope.spawn_until_cancelled("routes", watch_gateways(family, gateways));
        let keeper = Keeper {
            machine: MappingLease::new(settings, stored, self.clock.now()),
            clients: RouterClients::default(),
            surroundings: Arc::new(Site {
                store: self.store.clone(),
                family: kept,
                prover: Arc::clone(prover),
            }),
            clock: self.clock.clone(),
            network,
            provers,
            view,
        };
        scope.spawn("port mapping", keeper.run(scope.clone()));
        shown
    }
}

/// What leads here by its owner's doing, if that is of this family.
fn forwarded(config: &ReachConfig, family: Family) -> Option<SocketAddr> {
    let is_of_family = |endpoint: &SocketAddr| match family {
        Family::V4 => endpoint.is_ipv4(),
        Family::V6 => endpoint.is_ipv6(),
    };
    config.endpoint.filter(is_of_family)
}

/// By what this box knows its entries on a router again: the end of its own id, where it has one.
/// Short, because routers cut long descriptions, and a cut one would be taken for somebody else's.
fn description(driver: &DriverHandle) -> String {
    const DIGITS: usize = 12;
    let peer = driver.status.borrow().peer.as_ref().map(|peer| peer.id);
    let id = peer.map_or_else(|| format!("{:016x}", entropy::seed()), |peer| peer.to_string());
    let end = id.get(id.len().saturating_sub(DIGITS)..).unwrap_or(&id);
    format!("powernode {end}")
}

/// Follows the membership and the mappings for as long as the satellite runs.
async fn follow(
    driver: DriverHandle,
    config: ReachConfig,
    listener: Option<Listener>,
    provers: watch::Sender<u64>,
    views: [watch::Receiver<MappingView>; 2],
) {
    let [mut v4, mut v6] = views;
    let mut standing = driver.standing.clone();
    let mut served = None;
    let mut tunnel = None;
    let mut told = None;
    loop {
        let now = standing.borrow_and_update().clone();
        if let (Some(standing), Some(listener)) = (&now, &listener) {
            serve(listener, standing, &mut served).await;
            // A bridge that is itself within the site cannot prove what is reachable from outside.
            let can_prove = config.allow_private || is_public(standing.bridge.ip());
            if can_prove && served.is_some() && tunnel != Some(standing.number) {
                tunnel = Some(standing.number);
                provers.send_modify(|count| *count += 1);
            }
        }
        let report = report(
            &config,
            listener.as_ref(),
            &[&v4.borrow_and_update(), &v6.borrow_and_update()],
        );
        let proven = proven(&[&v4, &v6]);
        if told.as_ref() != Some(&(report.clone(), proven.clone())) {
            if driver.tell_reach(report.clone(), proven.clone()).await.is_err() {
                return;
            }
            log_change(told.as_ref(), &proven);
            told = Some((report, proven));
        }
        tokio::select! {
            changed = standing.changed() => if changed.is_err() { return },
            Ok(()) = v4.changed() => {}
            Ok(()) = v6.changed() => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// One line for what is gained and what is lost; the steps between are in the report.
fn log_change(before: Option<&(ReachReport, Vec<SocketAddr>)>, proven: &[SocketAddr]) {
    let had = before.map_or(&[][..], |(_, had)| had.as_slice());
    for endpoint in proven.iter().filter(|endpoint| !had.contains(endpoint)) {
        tracing::info!(%endpoint, "reachable from outside, as the host-bridge has proven");
    }
    for endpoint in had.iter().filter(|endpoint| !proven.contains(endpoint)) {
        tracing::warn!(%endpoint, "not reachable from outside any more; the parent is told");
    }
}

/// Makes the listener show the present certificate and know the present parent.
async fn serve(
    listener: &Listener,
    standing: &Standing,
    served: &mut Option<(FederationCertificate, Vec<String>)>,
) {
    let identity = standing.membership.identity.clone();
    let wanted = (identity.certificate.clone(), standing.names.clone());
    if served.as_ref() == Some(&wanted) {
        return;
    }
    let (listener, trust, names) = (
        listener.clone(),
        standing.membership.parent.trust.clone(),
        standing.names.clone(),
    );
    let serving = tokio::task::spawn_blocking(move || listener.serve(&identity, trust, names)).await;
    match serving {
        Ok(Ok(())) => *served = Some(wanted),
        Ok(Err(error)) => {
            tracing::warn!(error = %error_chain(&error), "the satellite cannot be dialled from outside");
        }
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

fn proven(views: &[&watch::Receiver<MappingView>]) -> Vec<SocketAddr> {
    views.iter().filter_map(|view| view.borrow().endpoint).collect()
}

fn report(config: &ReachConfig, listener: Option<&Listener>, views: &[&MappingView; 2]) -> ReachReport {
    let by_whom = |lease: &LeaseView| {
        if config.endpoint == Some(lease.endpoint) {
            "configured"
        } else {
            "none needed"
        }
    };
    let mapping = |family: &str, view: &MappingView| MappingReport {
        family: family.to_owned(),
        protocol: view.lease.as_ref().map(|lease| {
            lease
                .protocol
                .map_or_else(|| by_whom(lease), |protocol| protocol.name())
                .to_owned()
        }),
        gateway: view.lease.as_ref().and_then(|lease| lease.gateway),
        internal: view
            .lease
            .as_ref()
            .filter(|lease| config.endpoint != Some(lease.endpoint))
            .map(|lease| lease.internal),
        endpoint: view.lease.as_ref().map(|lease| lease.endpoint),
        lease_seconds: view.lease.as_ref().and_then(|lease| lease.lease_seconds),
        proven: view.endpoint.is_some(),
        reason: match (&view.lease, view.why_not) {
            (_, Some(why)) => Some(why.to_string()),
            (Some(_), None) if view.endpoint.is_none() => {
                Some("not proven by the host-bridge yet".to_owned())
            }
            (_, None) => None,
        },
    };
    ReachReport {
        listening: listener
            .and_then(|listener| listener.local_address().ok())
            .map(|address| address.port()),
        mappings: vec![mapping("ipv4", views[0]), mapping("ipv6", views[1])],
    }
}

/// Has endpoints dialled by the bridge of the present tunnel.
struct Prover {
    driver: DriverHandle,
    listener: Option<Listener>,
}

impl Prover {
    async fn prove(&self, endpoint: SocketAddr) -> ProofOutcome {
        let standing = self.driver.standing.borrow().clone();
        let (Some(standing), Some(listener)) = (standing, &self.listener) else {
            return ProofOutcome::Unavailable;
        };
        let nonce = format!("{:032x}", u128::from_ne_bytes(entropy::bytes()));
        let Some(_awaited) = listener.await_proof(&nonce) else {
            return ProofOutcome::Unavailable;
        };
        let request = DialBackRequest { endpoint, nonce };
        let asked = parent_client::dial_back(&standing.tunnel, &standing.membership.parent, &request);
        match asked.await {
            Ok(ContractAnswer::Data(answer)) if answer.reached => {
                tracing::debug!(%endpoint, "the host-bridge has reached this satellite from outside");
                ProofOutcome::Reached
            }
            Ok(ContractAnswer::Data(answer)) => {
                let why = answer.error.unwrap_or_default();
                tracing::debug!(%endpoint, why = crate::base::limit::foreign_text(&why), "the host-bridge did not reach this satellite from outside");
                ProofOutcome::Unreachable
            }
            Ok(ContractAnswer::Failure(failure)) => {
                tracing::debug!(%endpoint, status = failure.http_status, "the host-bridge does not prove this endpoint");
                if failure.http_status == NOT_DIALLED {
                    ProofOutcome::Unreachable
                } else {
                    ProofOutcome::Unavailable
                }
            }
            Err(error) => {
                tracing::debug!(%endpoint, error = %error_chain(&error), "no answer to a request for a proof");
                ProofOutcome::Unavailable
            }
        }
    }
}

/// Disk and proof for one family's keeper.
struct Site {
    store: MembershipStore,
    family: MappingFamily,
    prover: Arc<Prover>,
}

impl Surroundings for Site {
    fn save(&self, records: Vec<MappingRecord>) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            match self.store.save_mappings(self.family, records).await {
                Ok(()) => true,
                Err(error) => {
                    tracing::error!(error = %error_chain(&error), "a mapping could not be noted, so it is not asked for");
                    false
                }
            }
        })
    }

    fn prove(&self, endpoint: SocketAddr) -> BoxFuture<'_, ProofOutcome> {
        Box::pin(self.prover.prove(endpoint))
    }
}
