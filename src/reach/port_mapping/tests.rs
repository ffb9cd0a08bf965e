//! The clients and their keeper against routers on loopback: real sockets, scripted answers.
//!
//! Every router has an address of its own in 127/8, so that it can have the protocols' ports.

#![allow(clippy::unwrap_used)]

mod router;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::*;
use crate::base::time::UnixTime;
use crate::machine::mapping_lease::{LeaseSettings, LeaseView, MappingLease, ProofOutcome, Unmapped};
use crate::process::clock::Clock;
use crate::process::supervisor::{Stage, Supervisor};
use router::{Entries, Script, ScriptedRouter};

/// Room for a slow machine; every wait ends as soon as what it waits for is there.
const SOON: Duration = Duration::from_secs(40);

const PORT: u16 = 41_234;
const DESCRIPTION: &str = "powernode-satellite test";

/// A site: a router, a disk, and somebody who dials.
struct Site {
    router: ScriptedRouter,
    disk: Arc<Disk>,
    view: watch::Receiver<MappingView>,
    supervisor: Supervisor,
    _network: watch::Sender<Vec<Gateway>>,
    _provers: watch::Sender<u64>,
}

#[derive(Default)]
struct Disk {
    records: Mutex<Vec<MappingRecord>>,
    entries: Entries,
    /// Ports at which nothing comes through.
    deaf: Mutex<bool>,
}

impl Surroundings for Disk {
    fn save(&self, records: Vec<MappingRecord>) -> BoxFuture<'_, bool> {
        *self.records.lock().unwrap() = records;
        Box::pin(async { true })
    }

    fn prove(&self, endpoint: SocketAddr) -> BoxFuture<'_, ProofOutcome> {
        let leads_here = self
            .entries
            .get(endpoint.port())
            .is_some_and(|entry| entry.internal.port() == PORT);
        let reached = leads_here && !*self.deaf.lock().unwrap();
        Box::pin(async move {
            if reached {
                ProofOutcome::Reached
            } else {
                ProofOutcome::Unreachable
            }
        })
    }
}

fn local() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

fn record(router: &ScriptedRouter, protocol: MappingProtocol) -> MappingRecord {
    MappingRecord {
        gateway: router.address(),
        interface: 0,
        protocol,
        internal: SocketAddr::new(local(), PORT),
        external_port: PORT,
        lease_seconds: 3_600,
        nonce: [5; 12],
        description: DESCRIPTION.to_owned(),
    }
}

impl Site {
    async fn open(script: Script) -> Self {
        Self::open_with(script, Vec::new()).await
    }

    async fn open_with(script: Script, stored: Vec<MappingRecord>) -> Self {
        let router = ScriptedRouter::start(script).await;
        Self::around(router, stored)
    }

    fn around(router: ScriptedRouter, stored: Vec<MappingRecord>) -> Self {
        let settings = LeaseSettings {
            enabled: true,
            port: PORT,
            description: DESCRIPTION.to_owned(),
            nonce: [5; 12],
            forwarded: None,
            allow_private: true,
            seed: 3,
        };
        let clock = Clock::start(UnixTime::EPOCH);
        let disk = Arc::new(Disk {
            entries: router.entries(),
            records: Mutex::new(stored.clone()),
            ..Disk::default()
        });
        let (network, told) = watch::channel(vec![Gateway {
            address: router.address(),
            interface: 0,
            local: local(),
        }]);
        let (provers, ready) = watch::channel(1);
        let machine = MappingLease::new(settings, stored, clock.now());
        let (view, shown) = watch::channel(MappingView {
            endpoint: None,
            lease: None,
            why_not: Some(Unmapped::UnderWay),
        });
        let keeper = Keeper {
            machine,
            clients: RouterClients::default(),
            surroundings: Arc::clone(&disk),
            clock,
            network: told,
            provers: ready,
            view,
        };
        let supervisor = Supervisor::new();
        let scope = supervisor.scope(Stage::Work);
        scope.spawn("keeper", keeper.run(scope.clone()));
        Self {
            router,
            disk,
            view: shown,
            supervisor,
            _network: network,
            _provers: provers,
        }
    }

    /// Waits until something is mapped and proven, or is given up for a reason.
    async fn settled(&mut self) -> MappingView {
        let is_settled = |view: &MappingView| {
            let given_up = view.why_not.is_some_and(|why| why != Unmapped::UnderWay);
            view.endpoint.is_some() || given_up
        };
        let settled = tokio::time::timeout(SOON, self.view.wait_for(is_settled));
        settled.await.unwrap().unwrap().clone()
    }

    async fn proven(&mut self) -> LeaseView {
        let view = self.settled().await;
        assert!(
            view.endpoint.is_some(),
            "{view:?}, asked: {:?}",
            self.router.asked()
        );
        view.lease.unwrap()
    }

    async fn given_up(&mut self) -> Unmapped {
        let view = self.settled().await;
        assert!(view.endpoint.is_none(), "{view:?}");
        assert!(self.router.entries().own().is_empty(), "something is left behind");
        view.why_not.unwrap()
    }

    async fn stop(self) {
        self.supervisor.shutdown(SOON, std::future::pending()).await;
        assert!(self.router.entries().own().is_empty(), "something is left behind");
        assert!(self.disk.records.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_sound_upnp_router_gives_a_port_and_gets_it_back() {
    let mut site = Site::open(Script::default()).await;
    let lease = site.proven().await;
    assert_eq!(
        (lease.protocol, lease.proven),
        (Some(MappingProtocol::Upnp), true)
    );
    assert_eq!(lease.lease_seconds, Some(3_600));
    let asked = site.router.asked();
    let order = |name: &str| asked.iter().position(|call| call.starts_with(name)).unwrap();
    assert!(
        order("GetExternalIPAddress") < order("AddPortMapping"),
        "{asked:?}"
    );
    assert!(
        asked
            .iter()
            .any(|call| call.contains("<NewProtocol>UDP</NewProtocol>"))
    );
    site.stop().await;
}

#[tokio::test]
async fn leases_that_a_router_refuses_shrink_or_go() {
    for (faults, lease) in [(vec![725], None), (vec![402], Some(600)), (vec![402, 402], None)] {
        let mut site = Site::open(Script::faults(&faults)).await;
        assert_eq!(site.proven().await.lease_seconds, lease, "{faults:?}");
        site.stop().await;
    }
    let mut site = Site::open(Script {
        drops_leases: true,
        ..Script::default()
    })
    .await;
    assert_eq!(site.proven().await.lease_seconds, None);
    site.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_left_to_its_owner() {
    let mut site = Site::open(Script::faults(&[718])).await;
    assert_ne!(site.proven().await.endpoint.port(), PORT);
    site.stop().await;

    let router = ScriptedRouter::start(Script::default()).await;
    router.entries().put_foreign(PORT);
    let mut site = Site::around(router, Vec::new());
    assert_ne!(site.proven().await.endpoint.port(), PORT);
    assert!(site.router.entries().get(PORT).is_some());
    assert!(!site.router.asked().iter().any(|call| {
        call.starts_with("AddPortMapping") && call.contains(&format!("<NewExternalPort>{PORT}<"))
    }));
    site.stop().await;
}

#[tokio::test]
async fn a_router_that_does_not_want_to_is_asked_once() {
    for fault in [501, 606] {
        let mut site = Site::open(Script {
            always: Some(fault),
            ..Script::default()
        })
        .await;
        assert_eq!(site.given_up().await, Unmapped::NotAllowed);
        let adds = site
            .router
            .asked()
            .iter()
            .filter(|call| call.starts_with("AddPortMapping"))
            .count();
        assert_eq!(adds, 1, "{fault}");
        site.stop().await;
    }
}

#[tokio::test]
async fn a_wrong_internal_port_is_noticed_and_removed() {
    let mut site = Site::open(Script {
        mangles: true,
        ..Script::default()
    })
    .await;
    assert_eq!(site.given_up().await, Unmapped::Refused);
    site.stop().await;
}

#[tokio::test]
async fn what_is_listed_and_does_not_forward_is_never_shown() {
    let router = ScriptedRouter::start(Script::default()).await;
    let mut site = Site::around(router, Vec::new());
    *site.disk.deaf.lock().unwrap() = true;
    assert!(matches!(site.given_up().await, Unmapped::NotForwarding { .. }));
    let removed = site
        .router
        .asked()
        .iter()
        .filter(|call| call.starts_with("DeletePortMapping"))
        .count();
    assert_eq!(removed, 2, "made anew once, and both are gone");
    site.stop().await;
}

#[tokio::test]
async fn pcp_and_nat_pmp_give_a_port_and_get_it_back() {
    for script in [Script::pcp(), Script::nat_pmp()] {
        let protocol = script.udp;
        let mut site = Site::open(script).await;
        assert_eq!(site.proven().await.protocol, protocol);
        site.stop().await;
    }
}

#[tokio::test]
async fn answers_with_another_nonce_are_read_over() {
    let mut script = Script::pcp();
    script.wrong_nonce_first = true;
    let mut site = Site::open(script).await;
    assert_eq!(site.proven().await.protocol, Some(MappingProtocol::Pcp));
    site.stop().await;
}

#[tokio::test]
async fn after_a_crash_what_is_left_is_removed_and_nothing_else() {
    let router = ScriptedRouter::start(Script::default()).await;
    let left = record(&router, MappingProtocol::Upnp);
    router.entries().put(PORT, &left);
    let taken = MappingRecord {
        external_port: 50_000,
        ..left.clone()
    };
    router.entries().put_foreign(50_000);
    let site = Site::around(router, vec![left, taken]);
    let mut site = site;
    site.proven().await;
    let asked = site.router.asked();
    let deleted: Vec<_> = asked
        .iter()
        .filter(|call| call.starts_with("DeletePortMapping"))
        .collect();
    assert_eq!(deleted.len(), 1, "{deleted:?}");
    assert!(deleted[0].contains(&format!("<NewExternalPort>{PORT}<")));
    assert!(
        site.router.entries().get(50_000).is_some(),
        "it is somebody else's now"
    );
    site.stop().await;
}

#[tokio::test]
async fn answers_that_lead_elsewhere_find_nothing() {
    let other = ScriptedRouter::start(Script::default()).await;
    for script in [
        Script {
            location_host: Some(other.address()),
            ..Script::default()
        },
        Script {
            control_host: Some(other.address()),
            ..Script::default()
        },
    ] {
        let mut site = Site::open(script).await;
        assert_eq!(site.given_up().await, Unmapped::NoAnswer);
        assert_eq!(other.asked(), Vec::<String>::new());
        site.stop().await;
    }
}

#[tokio::test]
async fn a_probe_tells_what_each_protocol_answers() {
    let router = ScriptedRouter::start(Script::default()).await;
    let gateway = Gateway {
        address: router.address(),
        interface: 0,
        local: local(),
    };
    let answers = probe(&[gateway]).await;
    assert_eq!(answers.len(), 3);
    for answer in answers {
        match answer.protocol {
            MappingProtocol::Upnp => {
                let found = answer.answer.unwrap();
                assert_eq!(found.external, Some(router::external()));
            }
            MappingProtocol::Pcp | MappingProtocol::NatPmp => {
                assert!(!answer.answer.unwrap_err().is_empty());
            }
        }
    }
    assert!(router.entries().own().is_empty());
}
