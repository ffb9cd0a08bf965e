//! What the tasks of a link report to the loop, with the link's number on it.

use std::net::SocketAddr;

use tokio::sync::mpsc;

use crate::contract::message::{HeartbeatResponse, TrustBundle};
use crate::machine::child::ChildEvent;
use crate::machine::ladder::{DialTarget, TunnelId};
use crate::reach::dial::Established;

/// A task's report: of which link, and what.
#[derive(Debug)]
pub(in crate::satellite) struct Report {
    pub(in crate::satellite) link: TunnelId,
    pub(in crate::satellite) news: News,
}

/// What a task reports.
#[derive(Debug)]
pub(in crate::satellite) enum News {
    /// For the machine, as it is.
    Event(ChildEvent),
    /// For the machine, with the reason in words for status and log.
    Failed(ChildEvent, String),
    /// A dial gave a tunnel.
    Established(Box<EstablishedLink>),
    /// A heartbeat was acknowledged.
    Acknowledged(Box<HeartbeatResponse>),
    /// The parent's trust bundle.
    Bundle(Box<TrustBundle>),
}

/// A tunnel with the address at which it was reached.
pub(in crate::satellite) struct EstablishedLink {
    pub(in crate::satellite) target: DialTarget,
    /// Where it came in, if the bridge has dialled.
    pub(in crate::satellite) endpoint: Option<SocketAddr>,
    pub(in crate::satellite) established: Established,
}

impl std::fmt::Debug for EstablishedLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EstablishedLink")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// Sends one task's reports with its link's number on them.
#[derive(Debug, Clone)]
pub(in crate::satellite) struct Reporter {
    pub(super) link: TunnelId,
    pub(super) reports: mpsc::Sender<Report>,
}

impl Reporter {
    /// The tunnel that it speaks of.
    pub(in crate::satellite) const fn tunnel(&self) -> TunnelId {
        self.link
    }

    /// Waits for a place in the queue; a loop that is gone does not want it any more.
    pub(in crate::satellite) async fn send(&self, news: News) {
        let _ = self
            .reports
            .send(Report {
                link: self.link,
                news,
            })
            .await;
    }
}
