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
use super::membership_store::MembershipStore;
use super::port_keeper::{PortKeeper, Prove, ask_bridge};
use super::status::{MappingReport, ReachReport};
use crate::base::address::is_public;
use crate::base::limit::error_chain;
use crate::contract::message::{DialBackOver, DialBackRequest, FederationCertificate};
use crate::machine::mapping_lease::ProofOutcome;
use crate::process::blocking;
use crate::process::clock::Clock;
use crate::process::config::satellite::ReachConfig;
use crate::process::entropy;
use crate::process::supervisor::TaskScope;
use crate::reach::default_route::Family;
use crate::reach::dial::AGENT;
use crate::reach::listen::Listener;
use crate::reach::port_mapping::{Carries, MappingView};
use crate::tunnel::quic::QuicSettings;
use crate::tunnel::transport::BoxFuture;

/// How long changes are gathered before the driver is told: a mapping changes in several steps.
const GATHER: Duration = Duration::from_millis(200);

/// What the ways in need of the daemon.
pub struct Direct {
    /// The configuration.
    pub config: ReachConfig,
    /// How much is taken of a bridge that calls.
    pub quic: QuicSettings,
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
        let keeper = PortKeeper {
            config: self.config,
            store: self.store,
            clock: self.clock,
            driver: self.driver.clone(),
            carries: Carries::Udp,
            port,
        };
        let views = [
            keeper
                .spawn(scope, Family::V4, Arc::clone(&prover), ready.clone())
                .await,
            keeper.spawn(scope, Family::V6, prover, ready).await,
        ];
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
        match Listener::bind(self.config.listen_port, self.quic, self.clock.clone(), AGENT) {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "the satellite cannot be dialled from outside; reach.listen_port sets the port");
                None
            }
        }
    }
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
    match blocking::run(move || listener.serve(&identity, trust, names)).await {
        Ok(()) => *served = Some(wanted),
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "the satellite cannot be dialled from outside");
        }
    }
}

fn proven(views: &[&watch::Receiver<MappingView>]) -> Vec<SocketAddr> {
    views.iter().filter_map(|view| view.borrow().endpoint).collect()
}

fn report(config: &ReachConfig, listener: Option<&Listener>, views: &[&MappingView; 2]) -> ReachReport {
    ReachReport {
        listening: listener
            .and_then(|listener| listener.local_address().ok())
            .map(|address| address.port()),
        mappings: vec![
            MappingReport::of("ipv4", views[0], config.endpoint),
            MappingReport::of("ipv6", views[1], config.endpoint),
        ],
    }
}

/// Has endpoints dialled by the bridge of the present tunnel.
struct Prover {
    driver: DriverHandle,
    listener: Option<Listener>,
}

impl Prove for Prover {
    fn prove(&self, endpoint: SocketAddr) -> BoxFuture<'_, ProofOutcome> {
        Box::pin(self.have_dialled(endpoint))
    }
}

impl Prover {
    async fn have_dialled(&self, endpoint: SocketAddr) -> ProofOutcome {
        let standing = self.driver.standing.borrow().clone();
        let (Some(standing), Some(listener)) = (standing, &self.listener) else {
            return ProofOutcome::Unavailable;
        };
        let nonce = format!("{:032x}", u128::from_ne_bytes(entropy::bytes()));
        let Some(_awaited) = listener.await_proof(&nonce) else {
            return ProofOutcome::Unavailable;
        };
        let request = DialBackRequest {
            endpoint,
            nonce,
            over: DialBackOver::Quic,
        };
        ask_bridge(&standing, &request).await
    }
}
