//! The satellite's metrics, made of its status report, and what health and readiness mean for it. What the names
//! stand for is docs/metrics.md; a test holds both together.

use std::time::Duration;

use super::driver::DriverHandle;
use super::services::ServiceReport;
use super::status::StatusReport;
use crate::base::exposition::{Exposition, MetricKind};
use crate::base::time::UnixTime;
use crate::contract::peer::HEARTBEAT_STALE_AFTER;
use crate::contract::service::ServiceHealth;
use crate::machine::ladder::Rung;
use crate::machine::watchdog::Verdict;
use crate::process::observation::{Observed, Probe};

/// A satellite as monitoring sees it.
#[derive(Debug)]
pub struct SatelliteObserved {
    handle: DriverHandle,
    started_at: UnixTime,
}

impl SatelliteObserved {
    /// Of a daemon that starts now.
    pub fn new(handle: DriverHandle) -> Self {
        Self {
            started_at: handle.trusted_now(),
            handle,
        }
    }
}

impl Observed for SatelliteObserved {
    fn metrics(&self) -> String {
        let report = self.handle.status.borrow().clone();
        render(&report, self.started_at, self.handle.trusted_now())
    }

    fn examine(&self, probe: Probe) -> Result<(), String> {
        match probe {
            Probe::Alive => match &*self.handle.health.borrow() {
                Verdict::Starve(reason) => Err(reason.to_string()),
                Verdict::Feed if self.handle.is_moving() => Ok(()),
                Verdict::Feed => Err("the program's main loop has not gone round for a minute".to_owned()),
            },
            Probe::Ready => readiness(&self.handle.status.borrow(), self.handle.trusted_now()),
        }
    }
}

/// Whether the satellite does its work: a tunnel is up, the parent knows that the box lives, and what has to be
/// kept can be.
fn readiness(report: &StatusReport, now: UnixTime) -> Result<(), String> {
    if report.peer.is_none() {
        return Err(report
            .refusal
            .clone()
            .unwrap_or_else(|| "this box has not joined a parent".to_owned()));
    }
    if report.link.state != "connected" {
        return Err(report.link.last_error.as_ref().map_or_else(
            || "no tunnel is up".to_owned(),
            |error| format!("no tunnel is up: {error}"),
        ));
    }
    match heartbeat_age(report, now) {
        Some(age) if age <= HEARTBEAT_STALE_AFTER => match &report.store.last_error {
            Some(why) => Err(format!("the state cannot be written: {why}")),
            None => Ok(()),
        },
        Some(age) => Err(format!(
            "the parent acknowledged the last heartbeat {} s ago",
            age.as_secs()
        )),
        None => Err("the parent has not acknowledged a heartbeat yet".to_owned()),
    }
}

fn heartbeat_age(report: &StatusReport, now: UnixTime) -> Option<Duration> {
    Some(now.since(report.heartbeat.last_acknowledged_at?))
}

fn render(report: &StatusReport, started_at: UnixTime, now: UnixTime) -> String {
    let mut out = Exposition::new();
    program(&mut out, report, started_at);
    membership(&mut out, report, now);
    tunnels(&mut out, report);
    services(&mut out, report);
    out.into_text()
}

fn program(out: &mut Exposition, report: &StatusReport, started_at: UnixTime) {
    out.metric(
        MetricKind::Gauge,
        "powernode_satellite_build_info",
        "Always 1; the label is the program's version.",
    )
    .sample(&[("version", &report.version)], 1);
    out.gauge(
        "process_start_time_seconds",
        "When the process was started, in seconds since 1970.",
        u64::try_from(started_at.as_seconds()).unwrap_or(0),
    );
    out.gauge(
        "powernode_satellite_clock_doubtful",
        "1 while the clock of the box is in doubt.",
        report.clock.doubt.is_some().into(),
    );
    out.gauge(
        "powernode_satellite_store_size_bytes",
        "Size of the store's file.",
        report.store.size_bytes,
    );
    out.gauge(
        "powernode_satellite_store_failing",
        "1 while the state cannot be written.",
        report.store.last_error.is_some().into(),
    );
    out.counter(
        "powernode_satellite_audit_events_lost_total",
        "Events that came faster than the audit log could write them.",
        report.counters.audit_events_lost,
    );
}

fn membership(out: &mut Exposition, report: &StatusReport, now: UnixTime) {
    out.gauge(
        "powernode_satellite_joined",
        "1 once the box is a member of a federation.",
        report.peer.is_some().into(),
    );
    let mut status = out.metric(
        MetricKind::Gauge,
        "powernode_satellite_peer_status",
        "1 for the status in which the parent counts this satellite.",
    );
    if let Some(peer) = &report.peer {
        status.sample(&[("status", peer.status.as_str())], 1);
    }
    let counters = &report.counters;
    let mut heartbeats = out.metric(
        MetricKind::Counter,
        "powernode_satellite_heartbeats_total",
        "Heartbeats by what became of them.",
    );
    heartbeats.sample(&[("outcome", "acknowledged")], counters.heartbeats_acknowledged);
    heartbeats.sample(&[("outcome", "failed")], counters.heartbeats_failed);
    let mut age = out.metric(
        MetricKind::Gauge,
        "powernode_satellite_heartbeat_age_seconds",
        "Time since the parent acknowledged a heartbeat; absent before the first.",
    );
    if let Some(since) = heartbeat_age(report, now) {
        age.sample(&[], since.as_secs());
    }
    let mut remaining = out.metric(
        MetricKind::Gauge,
        "powernode_satellite_certificate_remaining_seconds",
        "Time until the certificate expires, by the trusted clock; 0 when it has.",
    );
    if let Some(certificate) = &report.certificate {
        remaining.sample(
            &[("identity", "federation")],
            certificate.not_after.since(now).as_secs(),
        );
    }
    let of_node = report.node.as_ref().and_then(|node| node.certificate.as_ref());
    if let Some(certificate) = of_node {
        remaining.sample(
            &[("identity", "node")],
            certificate.not_after.since(now).as_secs(),
        );
    }
    if let Some(own) = &report.own_authority {
        remaining.sample(
            &[("identity", "own_authority")],
            own.issuing.not_after.since(now).as_secs(),
        );
    }
    let mut renewals = out.metric(
        MetricKind::Counter,
        "powernode_satellite_certificate_renewals_total",
        "Renewals of the certificate by what became of them.",
    );
    renewals.sample(&[("outcome", "issued")], counters.certificates_renewed);
    renewals.sample(&[("outcome", "failed")], counters.certificate_renewals_failed);
}

fn tunnels(out: &mut Exposition, report: &StatusReport) {
    out.gauge(
        "powernode_satellite_connected",
        "1 while a tunnel to the parent is up.",
        (report.link.state == "connected").into(),
    );
    let bridges = &report.link.bridges;
    let mut up = out.metric(
        MetricKind::Gauge,
        "powernode_satellite_tunnels",
        "Tunnels that are up, by the way in use.",
    );
    for rung in Rung::ALL {
        let of_it = bridges
            .iter()
            .filter(|bridge| bridge.rung.as_deref() == Some(rung.name()));
        up.sample(&[("rung", rung.name())], of_it.count() as u64);
    }
    out.gauge(
        "powernode_satellite_tunnels_wanted",
        "Host-bridges of which a tunnel is wanted.",
        bridges.len() as u64,
    );
    let counters = &report.counters;
    out.counter(
        "powernode_satellite_tunnels_established_total",
        "Tunnels that came up.",
        counters.tunnels_established,
    );
    out.counter(
        "powernode_satellite_tunnels_lost_total",
        "Tunnels that were lost.",
        counters.tunnels_lost,
    );
    out.counter(
        "powernode_satellite_dials_failed_total",
        "Ways to a host-bridge that were tried and are not open.",
        counters.dials_failed,
    );
    let mappings = report.reach.iter().flat_map(|reach| &reach.mappings);
    out.gauge(
        "powernode_satellite_endpoints_proven",
        "Endpoints of this box that were proven to be reachable from outside.",
        mappings.filter(|mapping| mapping.proven).count() as u64,
    );
}

/// One number of each service. How many services there are is bounded, and their names are the box's own.
type PerService = (MetricKind, &'static str, &'static str, fn(&ServiceReport) -> u64);

const PER_SERVICE: [PerService; 4] = [
    (
        MetricKind::Gauge,
        "powernode_satellite_service_healthy",
        "1 unless the service's program was found not to answer.",
        |service| (service.health != ServiceHealth::Unhealthy).into(),
    ),
    (
        MetricKind::Gauge,
        "powernode_satellite_service_connections",
        "Connections to the service at this moment.",
        |service| service.connections.into(),
    ),
    (
        MetricKind::Counter,
        "powernode_satellite_service_connections_total",
        "Connections to the service.",
        |service| service.opened,
    ),
    (
        MetricKind::Counter,
        "powernode_satellite_service_refusals_total",
        "Streams to the service that were refused.",
        |service| service.refused,
    ),
];

fn services(out: &mut Exposition, report: &StatusReport) {
    out.gauge(
        "powernode_satellite_grants_active",
        "Grants that let something through.",
        report.grants.active as u64,
    );
    out.gauge(
        "powernode_satellite_grants_undelivered",
        "Grants, and ends of grants, of which the parent has yet to be told.",
        report.grants.undelivered as u64,
    );
    let mut refused = out.metric(
        MetricKind::Counter,
        "powernode_satellite_streams_refused_total",
        "Streams to services that were refused, by the kind of reason.",
    );
    for (reason, count) in &report.counters.streams_refused {
        refused.sample(&[("reason", reason)], *count);
    }
    for (kind, name, help, value) in PER_SERVICE {
        let mut samples = out.metric(kind, name, help);
        for service in &report.services {
            samples.sample(&[("service", service.service.name.as_str())], value(service));
        }
    }
    let mut bytes = out.metric(
        MetricKind::Counter,
        "powernode_satellite_service_bytes_total",
        "Bytes between the parent and the service.",
    );
    for service in &report.services {
        let name = service.service.name.as_str();
        bytes.sample(&[("service", name), ("direction", "in")], service.bytes_in);
        bytes.sample(&[("service", name), ("direction", "out")], service.bytes_out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::PeerId;
    use crate::contract::peer::{PeerStatus, SpawnMode};
    use crate::satellite::status::{BridgeReport, LinkReport, PeerReport};

    fn at(seconds: i64) -> UnixTime {
        UnixTime::from_seconds(seconds)
    }

    #[test]
    fn a_box_that_has_not_joined_is_measured_and_not_ready() {
        let report = StatusReport::empty(at(1_000));
        let text = render(&report, at(900), at(1_000));
        assert!(text.contains("\npowernode_satellite_joined 0\n"), "{text}");
        assert!(text.contains("\nprocess_start_time_seconds 900\n"), "{text}");
        assert!(
            !text.contains("\npowernode_satellite_heartbeat_age_seconds "),
            "{text}"
        );
        assert_eq!(
            readiness(&report, at(1_000)).unwrap_err(),
            "this box has not joined a parent"
        );
    }

    #[test]
    fn a_box_that_cannot_write_its_state_is_not_ready() {
        let mut report = StatusReport::empty(at(1_000));
        report.peer = Some(PeerReport {
            id: PeerId::new_v7(at(900), [7; 10]),
            status: PeerStatus::Active,
            spawn_mode: SpawnMode::ManagedChild,
            contract_version: 1,
            accepted_at: at(900),
            operator_contact: "ops@example.com".to_owned(),
            location: "DE".to_owned(),
            data_residency: None,
            warnings: Vec::new(),
        });
        report.link.state = "connected".to_owned();
        report.heartbeat.last_acknowledged_at = Some(at(990));
        assert_eq!(readiness(&report, at(1_000)), Ok(()));
        report.store.last_error = Some("the disk is full".to_owned());
        assert_eq!(
            readiness(&report, at(1_000)).unwrap_err(),
            "the state cannot be written: the disk is full"
        );
    }

    #[test]
    fn tunnels_are_counted_by_the_way_in_use() {
        let bridge = |rung: &str| BridgeReport {
            rung: Some(rung.to_owned()),
            ..BridgeReport::default()
        };
        let report = StatusReport {
            link: LinkReport {
                state: "connected".to_owned(),
                bridges: vec![bridge("quic"), bridge("tls"), BridgeReport::default()],
                ..LinkReport::default()
            },
            ..StatusReport::empty(at(1_000))
        };
        let text = render(&report, at(900), at(1_000));
        for line in [
            "powernode_satellite_connected 1",
            "powernode_satellite_tunnels{rung=\"quic\"} 1",
            "powernode_satellite_tunnels{rung=\"tls\"} 1",
            "powernode_satellite_tunnels{rung=\"proxy\"} 0",
            "powernode_satellite_tunnels_wanted 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
