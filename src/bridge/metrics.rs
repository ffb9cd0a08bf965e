//! The host-bridge's metrics, and what health and readiness mean for it. What the names stand for is docs/metrics.md;
//! a test holds both together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use tokio::sync::watch;

use super::access::Accesses;
use super::links::Links;
use super::parent::Parent;
use super::registry::Books;
use super::registry::record::PeerRecord;
use crate::base::exposition::{Exposition, MetricKind, Samples};
use crate::base::limit::error_chain;
use crate::base::time::UnixTime;
use crate::contract::peer::PeerStatus;
use crate::contract::{
    ACCEPT_PATH, CERTIFICATE_REFRESH_PATH, HEARTBEAT_PATH, NODE_ENROLL_PATH, NODE_REFRESH_PATH,
    SERVICE_CATALOG_PATH, TRUST_BUNDLE_PATH,
};
use crate::identity::tls::TlsIdentity;
use crate::process::clock::Clock;
use crate::process::observation::{Observed, Probe};
use crate::store::audit_log::AuditLog;
use crate::tunnel::transport::TunnelProtocol;

/// Peers that have series of their own. Each has three; monitoring of more peers wants a scrape of their boxes.
pub const PEERS_SHOWN_MAX: usize = 1_000;

/// Requests of satellites that were answered, by what was asked and the answer's status.
#[derive(Debug, Default)]
pub struct RequestCounts(Mutex<BTreeMap<(&'static str, u16), u64>>);

impl RequestCounts {
    /// The word for a path: one of a few, whatever is asked.
    pub fn kind_of(path: &str) -> &'static str {
        match path.strip_suffix('/').unwrap_or(path) {
            ACCEPT_PATH => "accept",
            HEARTBEAT_PATH => "heartbeat",
            CERTIFICATE_REFRESH_PATH => "certificate_refresh",
            TRUST_BUNDLE_PATH => "trust_bundle",
            SERVICE_CATALOG_PATH => "service_catalog",
            NODE_ENROLL_PATH => "node_enroll",
            NODE_REFRESH_PATH => "node_refresh",
            _ => "other",
        }
    }

    /// One more.
    pub fn count(&self, kind: &'static str, status: StatusCode) {
        *self.counts().entry((kind, status.as_u16())).or_default() += 1;
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<(&'static str, u16), u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A host-bridge as monitoring sees it.
#[derive(Debug)]
pub struct BridgeObserved {
    /// The peers.
    pub books: Books,
    /// The live tunnels.
    pub links: Arc<Links>,
    /// The accesses in flight.
    pub accesses: Arc<Accesses>,
    /// What satellites asked.
    pub parent: Parent,
    /// The audit log.
    pub audit: AuditLog,
    /// The server's certificate.
    pub shown: watch::Receiver<Arc<TlsIdentity>>,
    /// The clock.
    pub clock: Clock,
    /// When the daemon was started.
    pub started_at: UnixTime,
}

impl Observed for BridgeObserved {
    fn metrics(&self) -> String {
        let mut out = Exposition::new();
        let now = self.clock.trusted().now;
        self.program(&mut out, now);
        self.tunnels(&mut out);
        self.accesses(&mut out);
        // What cannot be read is missing in this scrape; readiness tells why.
        if let Ok(peers) = self.books.ledger().peers() {
            self.peers(&mut out, &peers, now);
        }
        out.into_text()
    }

    fn examine(&self, probe: Probe) -> Result<(), String> {
        match probe {
            // That this is answered at all says that the listeners' tasks and the runtime go on.
            Probe::Alive => Ok(()),
            Probe::Ready => {
                let ledger = self.books.ledger();
                ledger
                    .public()
                    .map_err(|error| format!("the registry cannot be read: {}", error_chain(&error)))?;
                readiness(ledger.failure())
            }
        }
    }
}

/// Whether joins, renewals and changes go through; tunnels stay up where they do not.
fn readiness(failure: Option<String>) -> Result<(), String> {
    match failure {
        Some(why) => Err(format!("the registry cannot be written: {why}")),
        None => Ok(()),
    }
}

impl BridgeObserved {
    fn program(&self, out: &mut Exposition, now: UnixTime) {
        out.metric(
            MetricKind::Gauge,
            "powernode_host_bridge_build_info",
            "Always 1; the label is the program's version.",
        )
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        out.gauge(
            "process_start_time_seconds",
            "When the process was started, in seconds since 1970.",
            u64::try_from(self.started_at.as_seconds()).unwrap_or(0),
        );
        out.gauge(
            "powernode_host_bridge_store_size_bytes",
            "Size of the registry's file.",
            self.books.ledger().size_bytes(),
        );
        out.gauge(
            "powernode_host_bridge_store_failing",
            "1 while the registry cannot be written.",
            self.books.ledger().failure().is_some().into(),
        );
        out.counter(
            "powernode_host_bridge_audit_events_lost_total",
            "Events that came faster than the audit log could write them.",
            self.audit.lost(),
        );
        let mut platform = out.metric(
            MetricKind::Gauge,
            "powernode_host_bridge_platform_reachable",
            "1 where the platform answered when it was last asked, 0 where not; absent where there is none.",
        );
        if let Some(found) = self.books.ledger().roll().and_then(|roll| roll.platform()) {
            platform.sample(&[], u64::from(found.reachable));
        }
        let mut remaining = out.metric(
            MetricKind::Gauge,
            "powernode_host_bridge_certificate_remaining_seconds",
            "Time until the certificate expires; 0 when it has.",
        );
        let server = self.shown.borrow().facts().not_after;
        remaining.sample(&[("certificate", "server")], server.since(now).as_secs());
        if let Books::Own(registry) = &self.books {
            let authority = registry.authority().not_after();
            remaining.sample(&[("certificate", "authority")], authority.since(now).as_secs());
        }
    }

    fn tunnels(&self, out: &mut Exposition) {
        out.gauge(
            "powernode_host_bridge_peers_connected",
            "Peers with a tunnel.",
            self.links.len() as u64,
        );
        let mut tunnels = out.metric(
            MetricKind::Gauge,
            "powernode_host_bridge_tunnels",
            "Tunnels that are up.",
        );
        for protocol in TunnelProtocol::ALL {
            let count = self.links.count_of(protocol) as u64;
            tunnels.sample(&[("transport", protocol.word())], count);
        }
        out.gauge(
            "powernode_host_bridge_bootstrap_connections",
            "Connections without a certificate: boxes that are joining.",
            self.links.bootstrap_len() as u64,
        );
        let counters = self.links.counters();
        let mut handshakes = out.metric(
            MetricKind::Counter,
            "powernode_host_bridge_handshakes_total",
            "Handshakes by what became of them.",
        );
        for protocol in TunnelProtocol::ALL {
            let (done, failed) = counters.handshakes(protocol);
            for (outcome, count) in [("done", done), ("failed", failed)] {
                handshakes.sample(&[("transport", protocol.word()), ("outcome", outcome)], count);
            }
        }
        out.counter(
            "powernode_host_bridge_tunnels_established_total",
            "Tunnels that were taken.",
            counters.established(),
        );
        let mut refused = out.metric(
            MetricKind::Counter,
            "powernode_host_bridge_tunnels_refused_total",
            "Tunnels that were refused, by reason.",
        );
        for (code, count) in counters.refused() {
            refused.sample(&[("reason", code.word())], count);
        }
        let mut requests = out.metric(
            MetricKind::Counter,
            "powernode_host_bridge_federation_requests_total",
            "Requests of satellites by what was asked and the answer's HTTP status.",
        );
        for ((kind, status), count) in self.parent.answered().counts().iter() {
            requests.sample(&[("request", kind), ("status", &status.to_string())], *count);
        }
    }

    fn accesses(&self, out: &mut Exposition) {
        let totals = self.accesses.totals();
        out.gauge(
            "powernode_host_bridge_sessions",
            "Accesses to services at this moment.",
            totals.open,
        );
        out.counter(
            "powernode_host_bridge_sessions_total",
            "Accesses to services.",
            totals.opened,
        );
        let mut refused = out.metric(
            MetricKind::Counter,
            "powernode_host_bridge_sessions_refused_total",
            "Accesses to services that were not given, by the kind of reason.",
        );
        for (code, count) in &totals.refused {
            refused.sample(&[("reason", &code.to_ascii_lowercase())], *count);
        }
        let mut bytes = out.metric(
            MetricKind::Counter,
            "powernode_host_bridge_session_bytes_total",
            "Bytes of accesses to services.",
        );
        bytes.sample(&[("direction", "to_service")], totals.bytes_to_services);
        bytes.sample(&[("direction", "from_service")], totals.bytes_from_services);
    }

    fn peers(&self, out: &mut Exposition, peers: &[PeerRecord], now: UnixTime) {
        let mut by_status = out.metric(
            MetricKind::Gauge,
            "powernode_host_bridge_peers",
            "Peers by status.",
        );
        for status in PeerStatus::ALL {
            let count = peers.iter().filter(|peer| peer.status == *status).count();
            by_status.sample(&[("status", status.as_str())], count as u64);
        }
        let live = peers.iter().filter(|peer| peer.status != PeerStatus::Revoked);
        let shown: Vec<&PeerRecord> = live.take(PEERS_SHOWN_MAX).collect();
        let mut connected = out.metric(
            MetricKind::Gauge,
            "powernode_host_bridge_peer_connected",
            "1 while the peer has a tunnel; absent where it is to have none.",
        );
        for peer in shown.iter().filter(|peer| peer.status.is_awaited()) {
            peer_sample(&mut connected, peer, self.links.get(peer.id).is_some().into());
        }
        let mut age = out.metric(
            MetricKind::Gauge,
            "powernode_host_bridge_peer_heartbeat_age_seconds",
            "Time since the peer's last heartbeat; absent before the first, and where none is to come.",
        );
        for peer in shown.iter().filter(|peer| peer.status.is_awaited()) {
            if let Some(heard) = peer.last_heartbeat_at {
                peer_sample(&mut age, peer, now.since(heard).as_secs());
            }
        }
        let mut remaining = out.metric(
            MetricKind::Gauge,
            "powernode_host_bridge_peer_certificate_remaining_seconds",
            "Time until the peer's newest certificate expires; 0 when it has.",
        );
        for peer in &shown {
            if let Some(newest) = peer.certificates.last() {
                peer_sample(&mut remaining, peer, newest.not_after.since(now).as_secs());
            }
        }
    }
}

fn peer_sample(samples: &mut Samples<'_>, peer: &PeerRecord, value: u64) {
    let (id, name) = (peer.id.to_string(), peer.name.as_deref().unwrap_or_default());
    samples.sample(&[("peer", &id), ("name", name)], value);
}
