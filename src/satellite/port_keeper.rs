//! Keeps a port on the box's routers for something that listens here: the lease machine with the satellite's
//! store, and with whoever has endpoints proven.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::driver::{DriverHandle, Standing};
use super::membership_store::{MappingFamily, MembershipStore};
use super::parent_client;
use crate::base::limit::{error_chain, foreign_text};
use crate::contract::message::{ContractAnswer, DialBackRequest};
use crate::machine::mapping_lease::{
    Gateway, LeaseSettings, MappingLease, MappingRecord, ProofOutcome, Unmapped,
};
use crate::process::clock::Clock;
use crate::process::config::satellite::ReachConfig;
use crate::process::entropy;
use crate::process::supervisor::TaskScope;
use crate::reach::default_route::{Family, watch_gateways};
use crate::reach::port_mapping::{Carries, Keeper, MappingView, RouterClients, Surroundings};
use crate::tunnel::transport::BoxFuture;

/// Status with which a bridge says that it will not dial an endpoint for its address or port.
const NOT_DIALLED: u16 = 403;

/// What a port is kept with.
pub(super) struct PortKeeper {
    pub(super) config: ReachConfig,
    pub(super) store: MembershipStore,
    pub(super) clock: Clock,
    pub(super) driver: DriverHandle,
    /// What the port carries.
    pub(super) carries: Carries,
    /// Where this box listens; 0 where it does not.
    pub(super) port: u16,
}

/// Has endpoints dialled from outside.
pub(super) trait Prove: Send + Sync + 'static {
    /// What the other side found.
    fn prove(&self, endpoint: SocketAddr) -> BoxFuture<'_, ProofOutcome>;
}

impl PortKeeper {
    /// Keeps one for a family of addresses, and shows it. Without a port, or where ports are not wanted,
    /// what an earlier run has left on routers is removed.
    pub(super) async fn spawn(
        &self,
        scope: &TaskScope,
        family: Family,
        prover: Arc<impl Prove>,
        provers: watch::Receiver<u64>,
    ) -> watch::Receiver<MappingView> {
        let kept = self.kept(family);
        let stored = self.stored(kept).await;
        let forwarded = self.forwarded(family);
        let enabled = (self.config.port_mapping || forwarded.is_some()) && self.port != 0;
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
            port: self.port,
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
            clients: RouterClients::of(self.carries),
            surroundings: Arc::new(Site {
                store: self.store.clone(),
                kept,
                prover,
            }),
            clock: self.clock.clone(),
            network,
            provers,
            view,
        };
        scope.spawn("port mapping", keeper.run(scope.clone()));
        shown
    }

    /// What leads here by its owner's doing, if that is of this family.
    fn forwarded(&self, family: Family) -> Option<SocketAddr> {
        let is_of_family = |endpoint: &SocketAddr| match family {
            Family::V4 => endpoint.is_ipv4(),
            Family::V6 => endpoint.is_ipv6(),
        };
        match self.carries {
            Carries::Udp => self.config.endpoint.filter(is_of_family),
            Carries::Tcp => None,
        }
    }

    const fn kept(&self, family: Family) -> MappingFamily {
        match (self.carries, family) {
            (Carries::Udp, Family::V4) => MappingFamily::V4,
            (Carries::Udp, Family::V6) => MappingFamily::V6,
            (Carries::Tcp, Family::V4) => MappingFamily::HttpsV4,
            (Carries::Tcp, Family::V6) => MappingFamily::HttpsV6,
        }
    }

    /// What an earlier run may have left on routers.
    async fn stored(&self, kept: MappingFamily) -> Vec<MappingRecord> {
        self.store.mappings(kept).await.unwrap_or_else(|error| {
            tracing::warn!(error = %error_chain(&error), "mappings of an earlier run cannot be read; what is left of them ends with its lease");
            Vec::new()
        })
    }
}

/// Asks the bridge at the other end of the present tunnel to dial an endpoint.
pub(super) async fn ask_bridge(standing: &Standing, request: &DialBackRequest) -> ProofOutcome {
    let endpoint = request.endpoint;
    let asked = parent_client::dial_back(&standing.tunnel, &standing.membership.parent, request);
    match asked.await {
        // An older bridge has dialled in the one way that it knows.
        Ok(ContractAnswer::Data(answer)) if answer.over != request.over => ProofOutcome::Unavailable,
        Ok(ContractAnswer::Data(answer)) if answer.reached => {
            tracing::debug!(%endpoint, "the host-bridge has reached this satellite from outside");
            ProofOutcome::Reached
        }
        Ok(ContractAnswer::Data(answer)) => {
            let why = answer.error.unwrap_or_default();
            tracing::debug!(%endpoint, why = foreign_text(&why), "the host-bridge did not reach this satellite from outside");
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

/// By what this box knows its entries on a router again: the end of its own id, where it has one.
/// Short, because routers cut long descriptions, and a cut one would be taken for somebody else's.
fn description(driver: &DriverHandle) -> String {
    const DIGITS: usize = 12;
    let peer = driver.status.borrow().peer.as_ref().map(|peer| peer.id);
    let id = peer.map_or_else(|| format!("{:016x}", entropy::seed()), |peer| peer.to_string());
    let end = id.get(id.len().saturating_sub(DIGITS)..).unwrap_or(&id);
    format!("powernode {end}")
}

/// Disk and proof for one keeper.
struct Site<P> {
    store: MembershipStore,
    kept: MappingFamily,
    prover: Arc<P>,
}

impl<P: Prove> Surroundings for Site<P> {
    fn save(&self, records: Vec<MappingRecord>) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            match self.store.save_mappings(self.kept, records).await {
                Ok(()) => true,
                Err(error) => {
                    tracing::error!(error = %error_chain(&error), "a mapping could not be noted, so it is not asked for");
                    false
                }
            }
        })
    }

    fn prove(&self, endpoint: SocketAddr) -> BoxFuture<'_, ProofOutcome> {
        self.prover.prove(endpoint)
    }
}
