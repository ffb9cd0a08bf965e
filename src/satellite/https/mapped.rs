//! What leads to the listener from outside: a TCP port on the routers for each family of addresses, proven
//! by the bridge, and only then told to the parent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::nonces::Nonces;
use crate::base::address::is_public;
use crate::contract::message::{DialBackOver, DialBackRequest};
use crate::machine::mapping_lease::ProofOutcome;
use crate::process::clock::Clock;
use crate::process::config::satellite::ReachConfig;
use crate::process::entropy;
use crate::process::supervisor::TaskScope;
use crate::reach::default_route::Family;
use crate::reach::port_mapping::{Carries, MappingView};
use crate::satellite::driver::DriverHandle;
use crate::satellite::membership_store::MembershipStore;
use crate::satellite::port_keeper::{PortKeeper, Prove, ask_bridge};
use crate::satellite::status::{HttpsReport, MappingReport};
use crate::tunnel::transport::BoxFuture;

/// How long changes are gathered before the driver is told: a mapping changes in several steps.
const GATHER: Duration = Duration::from_millis(200);

/// What this needs.
pub(super) struct Mapped {
    pub(super) config: ReachConfig,
    pub(super) store: MembershipStore,
    pub(super) clock: Clock,
    pub(super) driver: DriverHandle,
    pub(super) nonces: Nonces,
    /// Nowhere: what an earlier run has left on routers is removed.
    pub(super) listening: Option<SocketAddr>,
}

impl Mapped {
    /// Starts it.
    pub(super) async fn spawn(self, scope: &TaskScope) {
        let (provers, ready) = watch::channel(0);
        let prover = Arc::new(Prover {
            driver: self.driver.clone(),
            nonces: self.nonces,
        });
        let keeper = |family| PortKeeper {
            config: self.config,
            store: self.store.clone(),
            clock: self.clock.clone(),
            driver: self.driver.clone(),
            carries: Carries::Tcp,
            port: self.listening.map_or(0, |address| port_for(family, address)),
        };
        let (v4, v6) = (keeper(Family::V4), keeper(Family::V6));
        let views = [
            v4.spawn(scope, Family::V4, Arc::clone(&prover), ready.clone())
                .await,
            v6.spawn(scope, Family::V6, prover, ready).await,
        ];
        if let Some(address) = self.listening {
            let allow_private = self.config.allow_private;
            let following = follow(self.driver, allow_private, address, provers, views);
            scope.spawn_until_cancelled("https way in", following);
        }
    }
}

/// The port to which a router can lead, 0 where it could lead nowhere: the box's address towards it may be
/// another one than that on which it listens.
fn port_for(family: Family, listening: SocketAddr) -> u16 {
    let ip = listening.ip();
    let is_of_family = match family {
        Family::V4 => ip.is_ipv4() || ip.is_unspecified(),
        Family::V6 => ip.is_ipv6(),
    };
    if is_of_family && !ip.is_loopback() {
        listening.port()
    } else {
        0
    }
}

/// Tells of the views, and the keepers of those who can prove, for as long as the satellite runs.
async fn follow(
    driver: DriverHandle,
    allow_private: bool,
    listening: SocketAddr,
    provers: watch::Sender<u64>,
    [mut v4, mut v6]: [watch::Receiver<MappingView>; 2],
) {
    let mut standing = driver.standing.clone();
    let mut tunnel = None;
    let mut told = None;
    loop {
        if let Some(standing) = &*standing.borrow_and_update() {
            // A bridge that is itself within the site cannot prove what is reachable from outside.
            let can_prove = allow_private || is_public(standing.bridge.ip());
            if can_prove && tunnel != Some(standing.number) {
                tunnel = Some(standing.number);
                provers.send_modify(|count| *count += 1);
            }
        }
        let (report, proven) = {
            let views = [v4.borrow_and_update(), v6.borrow_and_update()];
            let report = HttpsReport {
                listening: Some(listening),
                error: None,
                mappings: vec![
                    MappingReport::of("ipv4", &views[0], None),
                    MappingReport::of("ipv6", &views[1], None),
                ],
            };
            let proven: Vec<_> = views.iter().filter_map(|view| view.endpoint).collect();
            (report, proven)
        };
        let now = Some((report, proven));
        if told != now {
            told = now;
            if let Some((report, proven)) = told.clone()
                && driver.tell_https(report, proven).await.is_err()
            {
                return;
            }
        }
        tokio::select! {
            changed = standing.changed() => if changed.is_err() { return },
            Ok(()) = v4.changed() => {}
            Ok(()) = v6.changed() => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// Has endpoints called by the bridge of the present tunnel.
struct Prover {
    driver: DriverHandle,
    nonces: Nonces,
}

impl Prove for Prover {
    fn prove(&self, endpoint: SocketAddr) -> BoxFuture<'_, ProofOutcome> {
        Box::pin(async move {
            let standing = self.driver.standing.borrow().clone();
            let nonce = format!("{:032x}", u128::from_ne_bytes(entropy::bytes()));
            let (Some(standing), Some(_awaited)) = (standing, self.nonces.await_proof(&nonce)) else {
                return ProofOutcome::Unavailable;
            };
            let request = DialBackRequest {
                endpoint,
                nonce,
                over: DialBackOver::Https,
            };
            ask_bridge(&standing, &request).await
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn routers_are_asked_for_what_they_can_lead_to() {
        let table = [
            ("[::]:8443", 8_443, 8_443),
            ("0.0.0.0:8443", 8_443, 0),
            ("192.168.1.5:8443", 8_443, 0),
            ("[2001:db8::5]:8443", 0, 8_443),
            ("127.0.0.1:8443", 0, 0),
            ("[::1]:8443", 0, 0),
        ];
        for (listening, v4, v6) in table {
            let listening = listening.parse().unwrap();
            let ports = (port_for(Family::V4, listening), port_for(Family::V6, listening));
            assert_eq!(ports, (v4, v6), "{listening}");
        }
    }
}
