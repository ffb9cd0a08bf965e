//! What the driver remembers of failures, and how the link's state reads in a status report.

use std::net::SocketAddr;

use super::status::{BetterReport, BridgeReport, LinkReport};
use crate::base::time::{Moment, UnixTime};
use crate::machine::child::{ChildEvent, ChildMachine, EventKind};
use crate::machine::ladder::{LadderState, TunnelId, WhyNot};
use crate::machine::uplinks::{LinkState, Uplink};

/// Most failures that are remembered as logged: a few ways, bridges and reasons.
const SAID_MAX: usize = 16;

/// The last failures, in words. Logged once per kind of text, so that an outage of days is a line
/// and not a flood.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Of the link, until it is up again.
    pub(super) link: Option<String>,
    /// What was logged since a tunnel came up last: several ways fail in turn, each in its own words.
    said: Vec<String>,
    /// Of heartbeats, until one is acknowledged.
    pub(super) heartbeat: Option<String>,
    /// Of the certificate's renewal, until it is issued.
    pub(super) renewal: Option<String>,
}

impl Failures {
    /// Notes a failure and logs it when it is news. While another tunnel is up, the loss of one and a
    /// failed dial are no failure of the link.
    pub(super) fn note(&mut self, kind: EventKind, why: String, connected: bool) {
        match kind {
            EventKind::Heartbeat => {
                if self.heartbeat.as_ref() != Some(&why) {
                    tracing::warn!(reason = %why, "heartbeat not acknowledged");
                }
                self.heartbeat = Some(why);
            }
            EventKind::Renewal => {
                tracing::warn!(reason = %why, "certificate not renewed; the present one stays in use");
                self.renewal = Some(why);
            }
            EventKind::Accept => {
                if self.link.as_ref() != Some(&why) {
                    tracing::warn!(reason = %why, "accept not answered with a membership");
                }
                self.link = Some(why);
            }
            EventKind::Tunnel => {
                tracing::warn!(reason = %why, "tunnel lost");
                if !connected {
                    self.link = Some(why);
                }
            }
            EventKind::Status(status) => {
                tracing::error!(reason = %why, "the parent counts this satellite as {status}");
                self.link = Some(why);
            }
            EventKind::Other if connected => {
                if self.is_news(&why) {
                    tracing::info!(reason = %why, "another way to the parent was tried and is not open");
                }
            }
            EventKind::Other => {
                if self.is_news(&why) {
                    tracing::warn!(reason = %why, "no tunnel; trying again");
                }
                self.link = Some(why);
            }
        }
    }

    /// Forgets the failure that this event ends.
    pub(super) fn overcome_by(&mut self, event: &ChildEvent) {
        if matches!(event, ChildEvent::RefreshIssued(_)) {
            self.renewal = None;
        }
    }

    fn is_news(&mut self, why: &str) -> bool {
        if self.said.iter().any(|said| said == why) {
            return false;
        }
        if self.said.len() >= SAID_MAX {
            self.said.remove(0);
        }
        self.said.push(why.to_owned());
        true
    }

    /// A tunnel is up. What was said of other ways stays said: they are tried for as long as it is.
    pub(super) fn link_is_up(&mut self) {
        if self.link.take().is_some() {
            self.said.clear();
        }
    }

    /// A heartbeat was acknowledged.
    pub(super) fn heartbeat_acknowledged(&mut self) {
        self.heartbeat = None;
    }
}

/// Where a tunnel leads and since when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reached {
    pub(super) address: SocketAddr,
    pub(super) since: UnixTime,
    /// Packets that the system has dropped before this program took them.
    pub(super) udp_dropped: u64,
}

/// The link as a report tells it. `wall_of` turns a moment of the monotonic clock into wall time.
pub(super) fn link_report(
    machine: &ChildMachine,
    reached: impl Fn(TunnelId) -> Option<Reached>,
    last_error: Option<String>,
    now: Moment,
    wall_of: impl Fn(Moment) -> UnixTime,
) -> LinkReport {
    let uplinks = machine.uplinks();
    let primary = uplinks.primary();
    let on = uplinks
        .ladders()
        .iter()
        .filter(|uplink| uplink.ladder.state() != LadderState::Off);
    let bridges: Vec<BridgeReport> = on
        .map(|uplink| bridge_report(uplink, primary, &reached, now, &wall_of))
        .collect();
    let mut report = LinkReport {
        failures: uplinks.failures(),
        last_error,
        ..LinkReport::default()
    };
    match uplinks.state() {
        LinkState::Off => "off".clone_into(&mut report.state),
        LinkState::Dialing => {
            "dialing".clone_into(&mut report.state);
            let dialled = bridges.iter().find(|bridge| bridge.state == "dialing");
            report.bridge = dialled.map(|bridge| bridge.bridge.clone());
        }
        LinkState::Connected(_) => {
            "connected".clone_into(&mut report.state);
            if let Some(bridge) = bridges.iter().find(|bridge| bridge.primary) {
                report.transport.clone_from(&bridge.rung);
                report.bridge.clone_from(&bridge.address);
                report.since = bridge.since;
            }
        }
        LinkState::Waiting(until) => {
            "waiting".clone_into(&mut report.state);
            report.next_attempt_at = Some(wall_of(until));
        }
    }
    report.bridges = bridges;
    report
}

fn bridge_report(
    uplink: &Uplink,
    primary: Option<TunnelId>,
    reached: impl Fn(TunnelId) -> Option<Reached>,
    now: Moment,
    wall_of: impl Fn(Moment) -> UnixTime,
) -> BridgeReport {
    let ladder = &uplink.ladder;
    let mut report = BridgeReport {
        bridge: uplink.bridge.to_string(),
        failures: ladder.failures(),
        last_error: ladder.last_failure().map(str::to_owned),
        draining: ladder.draining(),
        ..BridgeReport::default()
    };
    match ladder.state() {
        LadderState::Off => "off".clone_into(&mut report.state),
        LadderState::Racing => "dialing".clone_into(&mut report.state),
        LadderState::Waiting(until) => {
            "waiting".clone_into(&mut report.state);
            report.next_attempt_at = Some(wall_of(until));
        }
        LadderState::Carried(carrier) => {
            "connected".clone_into(&mut report.state);
            report.rung = Some(carrier.rung.name().to_owned());
            report.primary = primary == Some(carrier.id);
            let reached = reached(carrier.id);
            report.address = reached.map(|reached| reached.address.to_string());
            report.since = reached.map(|reached| reached.since);
            report.udp_dropped = reached.map_or(0, |reached| reached.udp_dropped);
            let better = ladder.better(now).into_iter();
            report.better = better
                .map(|(rung, why, next_try)| BetterReport {
                    rung: rung.name().to_owned(),
                    why: why_text(&why, now),
                    next_try_at: next_try.map(&wall_of),
                })
                .collect();
        }
    }
    report
}

fn why_text(why: &WhyNot, now: Moment) -> String {
    match why {
        WhyNot::NotTried => "not tried yet".to_owned(),
        WhyNot::NoWayIn => "no way in from outside is proven".to_owned(),
        WhyNot::Trying => "being tried".to_owned(),
        WhyNot::Proving { until } => {
            format!(
                "up, and carries in {} s if it holds",
                until.since(now).as_secs().max(1)
            )
        }
        WhyNot::Failed { why } => why.clone(),
        WhyNot::Barred { until, why } => format!(
            "it does not hold, so it rests for {} min: {why}",
            until.since(now).as_secs().div_ceil(60)
        ),
    }
}
