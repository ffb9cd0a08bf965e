//! A site in memory: routers with their quirks, a disk, and somebody outside who dials.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::super::*;
use crate::base::time::Moment;

pub(super) const PORT: u16 = 41_234;
pub(super) const NONCE: [u8; 12] = [7; 12];
pub(super) const DESCRIPTION: &str = "powernode-satellite 0192-test";

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn gateway() -> Gateway {
    Gateway {
        address: ip("192.168.1.1"),
        interface: 0,
        local: ip("192.168.1.20"),
    }
}

pub(super) fn settings() -> LeaseSettings {
    LeaseSettings {
        enabled: true,
        port: PORT,
        description: DESCRIPTION.to_owned(),
        nonce: NONCE,
        forwarded: None,
        allow_private: false,
        seed: 1,
    }
}

/// What a router does wrong.
#[allow(clippy::struct_excessive_bools, reason = "each is a fault of its own")]
#[derive(Debug, Clone, Default)]
pub(super) struct Quirks {
    /// Denials that are given before anything else, by protocol.
    pub(super) denials: Vec<(MappingProtocol, Denial)>,
    /// Every mapping request is denied so.
    pub(super) always: Option<Denial>,
    /// Only for ever, said by 725.
    pub(super) permanent_only: bool,
    /// Says yes and forgets what has an end.
    pub(super) drops_leases: bool,
    /// Writes another internal port.
    pub(super) mangles: bool,
    /// Lists and does not forward.
    pub(super) deaf_ports: bool,
    /// The ports that it forwards nevertheless.
    pub(super) hears_from: Option<u16>,
    /// Gives this port whatever was asked.
    pub(super) assigns: Option<u16>,
    /// For so many seconds at most.
    pub(super) longest_lease: Option<u32>,
    /// Answers nothing.
    pub(super) silent: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) entry: Entry,
    pub(super) ends_at: Option<Moment>,
}

#[derive(Debug, Clone)]
pub(super) struct Router {
    pub(super) speaks: BTreeSet<MappingProtocol>,
    pub(super) external: IpAddr,
    pub(super) table: BTreeMap<u16, Row>,
    pub(super) since: Moment,
    pub(super) quirks: Quirks,
}

impl Router {
    pub(super) fn speaking(protocols: &[MappingProtocol]) -> Self {
        Self {
            speaks: protocols.iter().copied().collect(),
            external: ip("93.184.216.34"),
            table: BTreeMap::new(),
            since: Moment::START,
            quirks: Quirks::default(),
        }
    }

    pub(super) fn with(mut self, quirks: Quirks) -> Self {
        self.quirks = quirks;
        self
    }

    pub(super) fn reboot(&mut self, now: Moment) {
        self.table.clear();
        self.since = now;
    }

    pub(super) fn put_foreign(&mut self, port: u16) {
        let entry = Entry {
            internal: SocketAddr::new(ip("192.168.1.99"), port),
            description: "a game".to_owned(),
            enabled: true,
            lease_seconds: 0,
        };
        self.table.insert(port, Row { entry, ends_at: None });
    }

    fn epoch(&self, now: Moment) -> u32 {
        u32::try_from(now.since(self.since).as_secs()).unwrap()
    }

    fn expire(&mut self, now: Moment) {
        self.table
            .retain(|_, row| row.ends_at.is_none_or(|end| end > now));
    }

    fn map(&mut self, record: &MappingRecord, now: Moment) -> Result<Granted, Denial> {
        self.expire(now);
        let quirks = &mut self.quirks;
        if quirks.silent || !self.speaks.contains(&record.protocol) {
            return Err(Denial::Silent);
        }
        if let Some(at) = quirks.denials.iter().position(|(of, _)| *of == record.protocol) {
            return Err(quirks.denials.remove(at).1);
        }
        if let Some(denial) = quirks.always {
            return Err(denial);
        }
        if quirks.permanent_only && record.lease_seconds != 0 {
            return Err(Denial::OnlyPermanent);
        }
        let mut port = quirks.assigns.unwrap_or(record.external_port);
        let taken = |row: &Row| row.entry.internal.ip() != record.internal.ip();
        if self.table.get(&port).is_some_and(taken) {
            if record.protocol == MappingProtocol::Upnp {
                return Err(Denial::PortTaken);
            }
            port += 1;
        }
        let lease = quirks
            .longest_lease
            .map_or(record.lease_seconds, |longest| record.lease_seconds.min(longest));
        if !(quirks.drops_leases && lease != 0) {
            let mut internal = record.internal;
            if quirks.mangles && record.protocol == MappingProtocol::Upnp {
                internal.set_port(internal.port() ^ 1);
            }
            let entry = Entry {
                internal,
                description: record.description.clone(),
                enabled: true,
                lease_seconds: lease,
            };
            let ends_at = (lease != 0).then(|| now.plus(Duration::from_secs(u64::from(lease))));
            self.table.insert(port, Row { entry, ends_at });
        }
        let tells = record.protocol != MappingProtocol::Upnp;
        Ok(Granted {
            external_port: port,
            external: (record.protocol == MappingProtocol::Pcp).then_some(self.external),
            lease_seconds: lease,
            epoch: tells.then(|| self.epoch(now)),
        })
    }

    fn look(&mut self, record: &MappingRecord, now: Moment) -> Seen {
        self.expire(now);
        let sight = if self.quirks.silent || !self.speaks.contains(&record.protocol) {
            Sight::Silent
        } else if record.protocol == MappingProtocol::Upnp {
            self.table
                .get(&record.external_port)
                .map_or(Sight::Absent, |row| Sight::Entry(row.entry.clone()))
        } else {
            Sight::Epoch(self.epoch(now))
        };
        let tells = sight != Sight::Silent && record.protocol != MappingProtocol::Pcp;
        Seen {
            sight,
            external: tells.then_some(self.external),
        }
    }

    /// As the clients do it: after a look whether it is ours.
    fn unmap(&mut self, record: &MappingRecord, now: Moment) -> Removal {
        self.expire(now);
        if self.quirks.silent || !self.speaks.contains(&record.protocol) {
            return Removal::Unknown;
        }
        if record.protocol == MappingProtocol::Upnp {
            return match self.table.get(&record.external_port) {
                None => Removal::Gone,
                Some(row) if !record.owns(&row.entry) => Removal::NotOurs,
                Some(_) => {
                    self.table.remove(&record.external_port);
                    Removal::Gone
                }
            };
        }
        self.table.retain(|_, row| row.entry.internal != record.internal);
        Removal::Gone
    }

    fn forwards(&mut self, endpoint: SocketAddr, to: SocketAddr, now: Moment) -> bool {
        self.expire(now);
        let deaf = self.quirks.deaf_ports && self.quirks.hears_from != Some(endpoint.port());
        let row = self.table.get(&endpoint.port());
        !deaf && endpoint.ip() == self.external && row.is_some_and(|row| row.entry.internal == to)
    }
}

/// What has been done, by kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Did {
    Probe,
    Look(MappingProtocol, u16),
    Map(MappingProtocol, u16, u32),
    Unmap(MappingProtocol, u16),
    Prove(SocketAddr),
    Persist(usize),
}

pub(super) struct World {
    pub(super) machine: MappingLease,
    pub(super) now: Moment,
    pub(super) routers: BTreeMap<IpAddr, Router>,
    pub(super) network: Vec<Gateway>,
    /// What the disk holds.
    pub(super) disk: Vec<MappingRecord>,
    pub(super) disk_full: bool,
    pub(super) dialler: Option<ProofOutcome>,
    pub(super) did: Vec<(Moment, Did)>,
    /// Endpoints of which the last proof succeeded.
    pub(super) reached: Option<SocketAddr>,
    pub(super) stopped: bool,
    waiting: VecDeque<MappingAction>,
}

impl World {
    pub(super) fn with(router: Router) -> Self {
        Self::start(settings(), vec![(gateway(), router)], Vec::new())
    }

    pub(super) fn start(
        settings: LeaseSettings,
        routers: Vec<(Gateway, Router)>,
        disk: Vec<MappingRecord>,
    ) -> Self {
        Self {
            machine: MappingLease::new(settings, disk.clone(), Moment::START),
            now: Moment::START,
            network: routers.iter().map(|(gateway, _)| *gateway).collect(),
            routers: routers
                .into_iter()
                .map(|(gateway, router)| (gateway.address, router))
                .collect(),
            disk,
            disk_full: false,
            dialler: None,
            did: Vec::new(),
            reached: None,
            stopped: false,
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn router(&mut self) -> &mut Router {
        self.routers.get_mut(&gateway().address).unwrap()
    }

    /// Network and prover are there; everything settles.
    pub(super) fn go(&mut self) -> &mut Self {
        let network = self.network.clone();
        self.tell(MappingEvent::Network(network));
        self.tell(MappingEvent::ProverReady);
        self.settle();
        self
    }

    pub(super) fn tell(&mut self, event: MappingEvent) {
        self.machine.handle_event(event, self.now);
        self.collect();
    }

    fn collect(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            self.check(&action);
            self.waiting.push_back(action);
        }
    }

    /// What must hold of every single action.
    fn check(&self, action: &MappingAction) {
        match action {
            MappingAction::Map(_, record) => {
                assert!(record.external_port >= EXTERNAL_PORT_MIN, "{record:?}");
                let durable = self.disk.iter().any(|stored| stored.is_same_mapping(record));
                assert!(
                    durable,
                    "asked for before it was stored: {record:?}, {:?}",
                    self.disk
                );
            }
            MappingAction::Persist(_, records) => assert!(records.len() <= RECORDS_MAX),
            MappingAction::Probe(..)
            | MappingAction::Look(..)
            | MappingAction::Unmap(..)
            | MappingAction::Prove(..)
            | MappingAction::Stopped => {}
        }
    }

    /// Carries one action out.
    pub(super) fn step(&mut self) -> bool {
        let Some(action) = self.waiting.pop_front() else {
            return false;
        };
        let now = self.now;
        let (number, did, outcome) = match action {
            MappingAction::Persist(sequence, records) => {
                self.did.push((now, Did::Persist(records.len())));
                if self.disk_full {
                    self.tell(MappingEvent::PersistFailed(sequence));
                } else {
                    self.disk = records;
                    self.tell(MappingEvent::Persisted(sequence));
                }
                return true;
            }
            MappingAction::Stopped => {
                self.stopped = true;
                return true;
            }
            MappingAction::Probe(number, gateways) => {
                (number, Did::Probe, Outcome::Probed(self.find(&gateways)))
            }
            MappingAction::Look(number, record) => {
                let did = Did::Look(record.protocol, record.external_port);
                let router = self.routers.get_mut(&record.gateway);
                let seen = router.map_or(
                    Seen {
                        sight: Sight::Silent,
                        external: None,
                    },
                    |router| router.look(&record, now),
                );
                (number, did, Outcome::Looked(seen))
            }
            MappingAction::Map(number, record) => {
                let did = Did::Map(record.protocol, record.external_port, record.lease_seconds);
                let router = self.routers.get_mut(&record.gateway);
                let result = router.map_or(Err(Denial::Silent), |router| router.map(&record, now));
                (number, did, Outcome::Mapped(result))
            }
            MappingAction::Unmap(number, record) => {
                let did = Did::Unmap(record.protocol, record.external_port);
                let router = self.routers.get_mut(&record.gateway);
                let removal = router.map_or(Removal::Unknown, |router| router.unmap(&record, now));
                (number, did, Outcome::Unmapped(removal))
            }
            MappingAction::Prove(number, endpoint) => {
                let outcome = self.dialler.unwrap_or_else(|| self.dial(endpoint));
                match outcome {
                    ProofOutcome::Reached => self.reached = Some(endpoint),
                    ProofOutcome::Unreachable => self.reached = None,
                    ProofOutcome::Unavailable => {}
                }
                (number, Did::Prove(endpoint), Outcome::Proved(outcome))
            }
        };
        self.did.push((now, did));
        self.tell(MappingEvent::Done(number, outcome));
        true
    }

    fn find(&self, gateways: &[Gateway]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for gateway in gateways {
            let Some(router) = self.routers.get(&gateway.address) else {
                continue;
            };
            if router.quirks.silent {
                continue;
            }
            for &protocol in &router.speaks {
                let pcp = protocol == MappingProtocol::Pcp;
                findings.push(Finding {
                    gateway: *gateway,
                    protocol,
                    external: (!pcp).then_some(router.external),
                    epoch: (protocol != MappingProtocol::Upnp).then(|| router.epoch(self.now)),
                });
            }
        }
        findings
    }

    fn dial(&mut self, endpoint: SocketAddr) -> ProofOutcome {
        let now = self.now;
        let network = self.network.clone();
        let reached = network.iter().any(|gateway| {
            let to = SocketAddr::new(gateway.local, PORT);
            let router = self.routers.get_mut(&gateway.address);
            router.is_some_and(|router| router.forwards(endpoint, to, now))
        });
        if reached {
            ProofOutcome::Reached
        } else {
            ProofOutcome::Unreachable
        }
    }

    /// Carries out whatever there is to do now.
    pub(super) fn settle(&mut self) {
        for _ in 0..1_000 {
            if !self.step() {
                return;
            }
        }
        panic!(
            "the machine does not come to rest: {:?}",
            &self.did[self.did.len() - 20..]
        );
    }

    /// Lets time pass, with all that is due on the way.
    pub(super) fn pass(&mut self, duration: Duration) {
        let end = self.now.plus(duration);
        for _ in 0..100_000 {
            match self.machine.poll_timeout() {
                Some(due) if due <= end => {
                    self.now = self.now.max(due);
                    self.tell(MappingEvent::Timeout);
                    self.settle();
                }
                _ => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("the machine spins");
    }

    pub(super) fn pass_seconds(&mut self, seconds: u64) {
        self.pass(Duration::from_secs(seconds));
    }

    pub(super) fn maps(&self) -> Vec<(MappingProtocol, u16, u32)> {
        let of = |(_, did): &(Moment, Did)| match did {
            Did::Map(protocol, port, lease) => Some((*protocol, *port, *lease)),
            _ => None,
        };
        self.did.iter().filter_map(of).collect()
    }

    pub(super) fn take(&mut self) -> Vec<Did> {
        self.did.drain(..).map(|(_, did)| did).collect()
    }

    /// A crash: the memory is gone, the disk and the routers are not.
    pub(super) fn crash(&mut self) {
        self.waiting.clear();
        self.reached = None;
        self.machine = MappingLease::new(settings(), self.disk.clone(), self.now);
    }

    pub(super) fn lose_waiting(&mut self) {
        self.waiting.clear();
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}
