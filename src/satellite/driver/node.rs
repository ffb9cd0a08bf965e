//! What the loop does for the node's identity: carries out its requests, none of which belongs to a tunnel,
//! writes it to files where that is wanted, and remembers what failed.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Driver;
use crate::base::limit::error_chain;
use crate::base::time::Moment;
use crate::contract::delivery::NodeEnrollment;
use crate::contract::invitation::ParentTrust;
use crate::machine::child::ChildEvent;
use crate::machine::membership::{KeyMaterial, Membership};
use crate::machine::node_identity::{NodeEvent, NodeMembership, NodeStanding};
use crate::process::blocking;
use crate::process::config::node::PlatformCa;
use crate::satellite::node_client::{NodeClient, Outcome, goes_over_tunnel};
use crate::satellite::node_files;

/// Reports that may wait for the loop: one request is under way at a time, and one may be of before.
const REPORTS_MAX: usize = 2;

/// Delay before files that could not be written are tried again: somebody has to change something first.
const FILES_RETRY: Duration = Duration::from_secs(600);

/// See the module's text.
#[derive(Debug)]
pub(super) struct NodeCare {
    pub(super) reports: (mpsc::Sender<Outcome>, mpsc::Receiver<Outcome>),
    /// Why the last request failed, until one succeeds.
    pub(super) last_error: Option<String>,
    /// Of which certificate the files are, and where.
    written: Option<(String, PathBuf)>,
    /// Why they could not be written.
    pub(super) files_error: Option<String>,
    files_again: Option<Moment>,
}

impl Default for NodeCare {
    fn default() -> Self {
        Self {
            reports: mpsc::channel(REPORTS_MAX),
            last_error: None,
            written: None,
            files_error: None,
            files_again: None,
        }
    }
}

impl NodeCare {
    /// Where the files are.
    pub(super) fn directory(&self) -> Option<&PathBuf> {
        self.written.as_ref().map(|(_, directory)| directory)
    }
}

impl Driver {
    pub(super) fn enroll_node(&self, enrollment: NodeEnrollment, key: KeyMaterial) {
        let Some(membership) = self.machine.membership() else {
            return;
        };
        let tunnelled = goes_over_tunnel(&enrollment.platform_url, &membership.parent.url);
        let tunnel = self
            .primary_tunnel()
            .map(|(_, tunnel, _)| tunnel)
            .filter(|_| tunnelled);
        let (client, reports) = (self.node_client(membership), self.node.reports.0.clone());
        self.scope.spawn_until_cancelled("node enrollment", async move {
            let outcome = match client.await {
                Ok(client) => client.enroll(tunnel, &enrollment, &key).await,
                Err(why) => (NodeEvent::NotSent, Some(why)),
            };
            // A loop that is gone does not want it.
            let _ = reports.send(outcome).await;
        });
    }

    pub(super) fn refresh_node(&self, node: NodeMembership, key: KeyMaterial) {
        let Some(membership) = self.machine.membership() else {
            return;
        };
        let (client, reports) = (self.node_client(membership), self.node.reports.0.clone());
        self.scope.spawn_until_cancelled("node renewal", async move {
            let outcome = match client.await {
                Ok(client) => client.refresh(&node, &key).await,
                Err(why) => (NodeEvent::NotSent, Some(why)),
            };
            let _ = reports.send(outcome).await;
        });
    }

    /// The way to a platform, once its authorities are read.
    fn node_client(
        &self,
        membership: &Membership,
    ) -> impl Future<Output = Result<NodeClient, String>> + Send + use<> {
        let mut client = NodeClient {
            trust: membership.parent.trust.clone(),
            learned: Some(membership.identity.certificate.ca_chain_pem.clone()),
            proxies: self.settings.ways.proxy.clone(),
            clock: self.clock.clone(),
        };
        let authority = self.settings.node.platform_ca.clone();
        async move {
            let trust = match authority {
                None => return Ok(client),
                Some(PlatformCa::System) => ParentTrust::SystemRoots,
                Some(PlatformCa::File(path)) => {
                    let text = tokio::fs::read_to_string(&path).await;
                    ParentTrust::Bundle(text.map_err(|error| {
                        format!(
                            "node_identity.platform_ca {} cannot be read: {error}",
                            path.display()
                        )
                    })?)
                }
            };
            client.trust = trust;
            client.learned = None;
            Ok(client)
        }
    }

    pub(super) fn take_node_report(&mut self, (event, why): Outcome) {
        if let Some(why) = &why
            && self.node.last_error.as_ref() != Some(why)
        {
            tracing::warn!(reason = %why, "no certificate from the platform for this box as its node");
        }
        self.node.last_error = why;
        self.tell(ChildEvent::Node(event));
    }

    /// Says what is new of the node, and brings its files up to date.
    pub(super) async fn keep_node(&mut self) {
        match self
            .machine
            .membership()
            .and_then(|membership| membership.node.as_ref())
        {
            Some(NodeStanding::Enrolled(node)) => {
                let node = node.clone();
                self.keep_node_files(node).await;
            }
            _ => self.node.files_error = None,
        }
    }

    async fn keep_node_files(&mut self, node: NodeMembership) {
        let now = self.clock.now();
        let Some(directory) = node_files::directory(&self.settings.node.write_to) else {
            self.node.files_error = None;
            return;
        };
        let wanted = (node.identity.certificate.serial.clone(), directory.clone());
        let waits = self.node.files_again.is_some_and(|again| now < again);
        if self.node.written.as_ref() == Some(&wanted) || waits {
            return;
        }
        match blocking::run(move || node_files::write(&directory, &node)).await {
            Ok(changed) => {
                if changed {
                    tracing::info!(directory = %wanted.1.display(), "the node's identity is written");
                }
                self.node.written = Some(wanted);
                self.node.files_error = None;
                self.node.files_again = None;
            }
            Err(error) => {
                let why = error_chain(&error);
                if self.node.files_error.as_ref() != Some(&why) {
                    tracing::error!(reason = %why, "the node's identity could not be written; trying again");
                }
                self.node.files_error = Some(why);
                self.node.files_again = Some(now.plus(FILES_RETRY));
            }
        }
    }
}
