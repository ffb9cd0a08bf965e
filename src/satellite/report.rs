//! What the driver remembers of failures, and how the link's state reads in a status report.

use std::net::SocketAddr;

use super::status::LinkReport;
use crate::base::time::{Moment, UnixTime};
use crate::machine::child::ChildEvent;
use crate::machine::join::JoinEvent;
use crate::machine::reconnect::LinkState;

/// The last failures, in words. Logged once per kind of text, so that an outage of days is a line
/// and not a flood.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Of the link, until it is up again.
    pub(super) link: Option<String>,
    /// Of heartbeats, until one is acknowledged.
    pub(super) heartbeat: Option<String>,
    /// Of the certificate's renewal, until it is issued.
    pub(super) renewal: Option<String>,
}

impl Failures {
    /// Notes a failure and logs it when it is news.
    pub(super) fn note(&mut self, event: &ChildEvent, why: String) {
        match event {
            ChildEvent::HeartbeatFailed(_) | ChildEvent::HeartbeatRefused => {
                if self.heartbeat.as_ref() != Some(&why) {
                    tracing::warn!(reason = %why, "heartbeat not acknowledged");
                }
                self.heartbeat = Some(why);
            }
            ChildEvent::RefreshFailed => {
                tracing::warn!(reason = %why, "certificate not renewed; the present one stays in use");
                self.renewal = Some(why);
            }
            ChildEvent::Join(
                JoinEvent::Failed(_) | JoinEvent::AnswerLost | JoinEvent::NotSent | JoinEvent::Unusable(_),
            ) => {
                if self.link.as_ref() != Some(&why) {
                    tracing::warn!(reason = %why, "accept not answered with a membership");
                }
                self.link = Some(why);
            }
            ChildEvent::TunnelLost(_) => {
                tracing::warn!(reason = %why, "tunnel lost");
                self.link = Some(why);
            }
            ChildEvent::StatusTold(status) => {
                tracing::error!(reason = %why, "the parent counts this satellite as {status}");
                self.link = Some(why);
            }
            _ => {
                if self.link.as_ref() != Some(&why) {
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

    /// A tunnel is up.
    pub(super) fn link_is_up(&mut self) {
        self.link = None;
    }

    /// A heartbeat was acknowledged.
    pub(super) fn heartbeat_acknowledged(&mut self) {
        self.heartbeat = None;
    }
}

/// The link as a report tells it. `wall_of` turns a moment of the monotonic clock into wall time.
pub(super) fn link_report(
    state: &LinkState,
    connected: Option<(SocketAddr, UnixTime)>,
    failures: u32,
    last_error: Option<String>,
    wall_of: impl Fn(Moment) -> UnixTime,
) -> LinkReport {
    let mut report = LinkReport {
        failures,
        last_error,
        ..LinkReport::default()
    };
    match state {
        LinkState::Off => "off".clone_into(&mut report.state),
        LinkState::Resolving => "resolving".clone_into(&mut report.state),
        LinkState::Dialing(target) => {
            "dialing".clone_into(&mut report.state);
            report.bridge = Some(target.address.to_string());
        }
        LinkState::Connected(_) => {
            "connected".clone_into(&mut report.state);
            report.transport = Some("quic".to_owned());
            report.bridge = connected.map(|(address, _)| address.to_string());
            report.since = connected.map(|(_, since)| since);
        }
        LinkState::Waiting(until) => {
            "waiting".clone_into(&mut report.state);
            report.next_attempt_at = Some(wall_of(*until));
        }
    }
    report
}
