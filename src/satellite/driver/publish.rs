//! What the loop shows of itself: the status report, the watchdog's verdict, and the log lines of a
//! certificate's life.

use super::Driver;
use crate::base::time::UnixTime;
use crate::machine::membership::{Candidate, Membership};
use crate::machine::renewal::CertificateStanding;
use crate::machine::watchdog::Verdict;
use crate::satellite::parent_client::RELEASE;
use crate::satellite::report::{Reached, link_report};
use crate::satellite::services::ServiceServer;
use crate::satellite::status::{
    ClockReport, CountersReport, HeartbeatReport, LinkReport, NEEDS_REJOIN, StatusReport,
};

impl Driver {
    pub(super) fn publish(&mut self) {
        let now = self.clock.trusted().now;
        self.certificate.observe(self.machine.membership(), now);
        self.certificate.observe_refusal(self.machine.needs_rejoin());
        self.pulse.send_replace(self.clock.now());
        self.show_standing();
        self.show_member();
        self.status.send_replace(self.report());
        let verdict = self.machine.watchdog(self.clock.now());
        self.health.send_if_modified(|current| {
            let changed = *current != verdict;
            if changed && let Verdict::Starve(reason) = &verdict {
                tracing::error!(reason, "the watchdog is no longer fed");
            }
            *current = verdict;
            changed
        });
    }

    fn report(&self) -> StatusReport {
        let heartbeat = HeartbeatReport {
            last_acknowledged_at: self.facts.last_acknowledged_at,
            last_error: self.failures.heartbeat.clone(),
            our_endpoints: self.facts.our_endpoints.clone(),
            schema_compatibility: self.facts.schema_compatibility.clone(),
        };
        let mut store = self.store.report(self.recovered.clone());
        // What failed here says more than what failed for the log or the grants, which share the store.
        if self.store_error.is_some() {
            store.last_error.clone_from(&self.store_error);
        }
        let mut report = StatusReport::of_state(
            self.machine.state(),
            RELEASE,
            self.clock_report(),
            self.link_report(),
            heartbeat,
            store,
        );
        report.daemon_running = true;
        if let Some(surroundings) = &self.surroundings {
            let peer = self.machine.membership().map(|membership| membership.peer_id);
            report.grants = surroundings.grants_report(peer);
        }
        if let Some(server) = &self.services {
            report.services = server.services().reports();
        }
        report.own_authority = self.authority_report();
        report.reach = self.reach.report().cloned();
        report.https = self.reach.https().cloned();
        report.counters = CountersReport {
            streams_refused: self
                .services
                .as_ref()
                .map(ServiceServer::refusals)
                .unwrap_or_default(),
            audit_events_lost: self.audit.lost(),
            ..self.counters.clone()
        };
        if let (Some(peer), Some(operator)) = (&mut report.peer, &self.settings.operator) {
            peer.disclose(operator);
        }
        if let Some(node) = &mut report.node {
            node.last_error.clone_from(&self.node.last_error);
            node.files = self
                .node
                .directory()
                .map(|directory| directory.display().to_string());
            node.files_error.clone_from(&self.node.files_error);
        }
        if let Some(cluster) = &mut report.cluster {
            self.tell_cluster(cluster);
        }
        if let Some(certificate) = &mut report.certificate {
            certificate.renewal_error.clone_from(&self.failures.renewal);
            certificate.needs_rejoin = self.machine.needs_rejoin();
            certificate.bundle_error.clone_from(&self.bundle.trouble);
        }
        report
    }

    fn clock_report(&self) -> ClockReport {
        let trusted = self.clock.trusted();
        ClockReport {
            system: self.clock.system(),
            trusted: trusted.now,
            doubt: trusted.doubt.map(|doubt| doubt.to_string()).or_else(|| {
                let ahead = self.clock.ahead_of_parent()?;
                Some(format!(
                    "the system clock is {} s ahead of the parent's",
                    ahead.as_secs()
                ))
            }),
        }
    }

    fn link_report(&self) -> LinkReport {
        let wall = self.clock.trusted().now;
        let now = self.clock.now();
        let reached = |id| {
            self.live(id).map(|live| Reached {
                address: live.address,
                since: live.since,
                udp_dropped: live.overload.dropped(),
            })
        };
        let last_error = self.failures.link.clone();
        link_report(&self.machine, reached, last_error, now, |moment| {
            wall.plus(moment.since(now))
        })
    }
}

/// Remembers how the certificate stood, to log what changes.
#[derive(Debug, Default)]
pub(super) struct CertificateWatch {
    sight: Option<Sight>,
    /// Whether the parent does not renew it.
    refused: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Sight {
    serial: String,
    standing: CertificateStanding,
    proving: bool,
}

impl CertificateWatch {
    fn observe(&mut self, membership: Option<&Membership>, now: UnixTime) {
        let seen = membership.map(|membership| Sight {
            serial: membership.identity.certificate.serial.clone(),
            standing: CertificateStanding::judge(
                membership.identity.not_before,
                membership.identity.certificate.not_after,
                now,
            ),
            proving: matches!(membership.candidate, Some(Candidate::Issued(_))),
        });
        if seen == self.sight {
            return;
        }
        if let (Some(before), Some(seen), Some(membership)) = (&self.sight, &seen, membership) {
            log_renewal(before, seen, membership.identity.certificate.not_after);
        }
        let standing_before = self.sight.as_ref().map(|before| before.standing);
        if let (Some(seen), Some(membership)) = (&seen, membership)
            && standing_before != Some(seen.standing)
        {
            log_standing(seen.standing, membership);
        }
        self.sight = seen;
    }

    fn observe_refusal(&mut self, refused: bool) {
        if refused && !self.refused {
            tracing::error!("{NEEDS_REJOIN}");
        }
        self.refused = refused;
    }
}

fn log_renewal(before: &Sight, seen: &Sight, not_after: UnixTime) {
    if before.serial != seen.serial {
        tracing::info!(serial = %seen.serial, %not_after, "certificate renewed");
    } else if before.proving && !seen.proving {
        tracing::warn!(
            "the parent did not take the renewed certificate; the present one stays in use, and another is asked for later"
        );
    }
}

fn log_standing(standing: CertificateStanding, membership: &Membership) {
    let not_before = membership.identity.not_before;
    let not_after = membership.identity.certificate.not_after;
    match standing {
        CertificateStanding::Valid => {}
        CertificateStanding::RenewalDue => tracing::info!(%not_after, "the certificate is due for renewal"),
        CertificateStanding::ExpiresSoon => tracing::warn!(
            %not_after,
            "the certificate expires soon and is not renewed yet; the parent must be reached before"
        ),
        CertificateStanding::Expired => tracing::error!(
            %not_after,
            "the certificate has expired; the parent is asked to renew it, which it does for some time. Set the clock if \
             it is wrong"
        ),
        CertificateStanding::NotYetValid => tracing::warn!(
            %not_before,
            "the certificate is not valid yet by the clock of this box; set the clock"
        ),
    }
}
