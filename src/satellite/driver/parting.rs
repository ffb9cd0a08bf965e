//! What the loop does when the owner leaves: the parent gets a last notice, over a fresh tunnel where the one that
//! was there turns out to be dead, and the keys go.

use std::time::Duration;

use tokio::sync::mpsc;

use super::tunnels::goodbye;
use super::{Departure, Driver, LeaveError};
use crate::audit::{AuditAction, AuditEvent};
use crate::base::limit::error_chain;
use crate::contract::message::HeartbeatRequest;
use crate::contract::peer::PeerStatus;
use crate::machine::child::ChildEvent;
use crate::machine::join::Farewell;
use crate::machine::ladder::Rung;
use crate::machine::membership::{Membership, Parent};
use crate::machine::node_identity::NodeStanding;
use crate::process::blocking;
use crate::process::supervisor::TaskScope;
use crate::reach::connect::{Approach, connect};
use crate::satellite::grants::courier::{LastNotice, last_notice};
use crate::satellite::membership_store::Facts;
use crate::satellite::node_files;
use crate::satellite::parent_client::farewell_request;
use crate::tunnel::Tunnel;
use crate::wire::{GoodbyeReason, SessionClaim};

/// Time for the last notice, for which the owner waits at a command line: that a tunnel is dead shows within five
/// seconds, and a slow handshake takes as long.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(15);

/// Time between the answer to whoever has asked to leave and the stop of the daemon.
const ANSWER_TIME: Duration = Duration::from_millis(500);

impl Driver {
    /// Ends the peering. The parent is told first, while there is a key to tell it with; that it cannot
    /// be told holds nobody here.
    pub(super) async fn leave(&mut self, reason: String) -> Result<Departure, LeaveError> {
        let membership = self.machine.membership().ok_or(LeaveError::NotJoined)?.clone();
        let notice = self.parting(&membership, &reason).tell().await;
        let ends_by_operator = notice == LastNotice::Declared;
        let not_told = match notice {
            LastNotice::Taken | LastNotice::Declared => None,
            LastNotice::NotGiven(why) | LastNotice::Lost(why) => Some(why),
        };
        let peer_id = membership.peer_id;
        let farewell = Farewell {
            parent: membership.parent,
            peer_id,
            reason,
            at: self.clock.trusted().now,
            told: not_told.is_none(),
            erased: false,
            former: membership.former,
        };
        let saved = self.store.save_farewell(farewell.clone()).await;
        self.store_error = saved.as_ref().err().map(|error| error_chain(error));
        saved.map_err(LeaveError::Save)?;
        tracing::warn!(peer = %peer_id, reason = %farewell.reason, not_told, "left the parent; the keys are destroyed");
        if let Some(node) = membership
            .node
            .as_ref()
            .and_then(NodeStanding::membership)
            .cloned()
        {
            let place = self.settings.node.write_to.clone();
            // What fails is logged; the task outlives nobody.
            let _ = blocking::start(move || node_files::leave(&place, &node)).await;
        }
        if let Some(surroundings) = &self.surroundings {
            surroundings.grants.close();
            surroundings.audit.record(&AuditEvent {
                federation_peer_id: Some(peer_id),
                actor: Some("owner".to_owned()),
                object: Some(farewell.reason.clone()),
                ..AuditEvent::of(AuditAction::Left)
            });
        }
        self.facts = Facts::default();
        self.facts_dirty = true;
        self.tell(ChildEvent::Left(Box::new(farewell)));
        let (clock, scope) = (self.clock.clone(), self.scope.clone());
        // The files are made anew when nobody has them open. First the command line reads its answer.
        self.scope.spawn_until_cancelled("leave", async move {
            clock.sleep_until(clock.now().plus(ANSWER_TIME)).await;
            scope.request_stop();
        });
        Ok(Departure {
            peer_id,
            not_told,
            ends_by_operator,
        })
    }

    fn parting(&self, membership: &Membership, reason: &str) -> Parting {
        Parting {
            parent: membership.parent.clone(),
            reason: reason.to_owned(),
            last: farewell_request(membership, reason, self.clock.trusted().now),
            tunnel: self.primary_tunnel().map(|(_, tunnel, _)| tunnel),
            status: membership.status,
            approaches: self.fresh_approaches(),
            scope: self.scope.child(),
        }
    }

    /// Every way to every host-bridge on which this box dials.
    fn fresh_approaches(&self) -> Vec<Approach> {
        let Some(credentials) = self
            .machine
            .purpose()
            .and_then(|purpose| self.credentials(purpose))
        else {
            return Vec::new();
        };
        let claim = SessionClaim {
            run: Some(self.run),
            // Nothing is to be opened on it.
            trial: Some(LEAVE_TIMEOUT),
            replaces: Vec::new(),
        };
        let rungs = &self.settings.child.uplinks.ladder.rungs;
        let uplinks = self.machine.uplinks().ladders();
        uplinks
            .iter()
            .flat_map(|uplink| {
                let dialled = rungs.iter().filter(|rung| **rung != Rung::Direct);
                dialled
                    .map(|rung| self.approach(&uplink.bridge, *rung, credentials.clone(), claim.features()))
            })
            .collect()
    }
}

/// What the parent is told, and the ways to it.
struct Parting {
    parent: Parent,
    reason: String,
    last: HeartbeatRequest,
    /// The one that is there.
    tunnel: Option<Tunnel>,
    status: PeerStatus,
    /// To others.
    approaches: Vec<Approach>,
    scope: TaskScope,
}

impl Parting {
    /// Tells it, within [`LEAVE_TIMEOUT`].
    async fn tell(mut self) -> LastNotice {
        let tunnel = self.tunnel.take();
        // The parent has ended it before.
        if tunnel.is_none() && self.status == PeerStatus::Revoked {
            return LastNotice::Taken;
        }
        // Why another one is dialled.
        let mut before = tunnel.is_none().then(|| "there was no tunnel to it".to_owned());
        let telling = async {
            if let Some(tunnel) = tunnel {
                match self.give(&tunnel).await {
                    LastNotice::Lost(why) => before = Some(format!("the tunnel to it broke: {why}")),
                    given => return given,
                }
            }
            let approaches = std::mem::take(&mut self.approaches);
            let fresh = match fresh_tunnel(approaches, &self.scope).await {
                Ok(fresh) => fresh,
                Err(why) => return LastNotice::NotGiven(why),
            };
            let given = self.give(&fresh).await;
            let goodbye = goodbye(GoodbyeReason::Done, "");
            self.scope
                .spawn("goodbye", async move { fresh.close(goodbye).await });
            given
        };
        let why = match tokio::time::timeout(LEAVE_TIMEOUT, telling).await {
            Ok(LastNotice::NotGiven(why) | LastNotice::Lost(why)) if before.is_some() => {
                format!("over a new one: {why}")
            }
            Ok(LastNotice::NotGiven(why) | LastNotice::Lost(why)) => why,
            Ok(given) => return given,
            Err(_) => format!("no answer came within {} s", LEAVE_TIMEOUT.as_secs()),
        };
        LastNotice::NotGiven(match before {
            Some(before) => format!("{before}; {why}"),
            None => why,
        })
    }

    async fn give(&self, tunnel: &Tunnel) -> LastNotice {
        last_notice(tunnel, &self.parent, &self.reason, &self.last).await
    }
}

/// The first tunnel that comes up; else the most telling failure.
async fn fresh_tunnel(approaches: Vec<Approach>, scope: &TaskScope) -> Result<Tunnel, String> {
    let dials = scope.child();
    let (sender, mut outcomes) = mpsc::channel(1);
    for approach in approaches {
        let sender = sender.clone();
        dials.spawn_until_cancelled("dial", async move {
            // Nobody waits for a second one.
            let _ = sender.send(connect(approach).await).await;
        });
    }
    drop(sender);
    let mut failed = None;
    while let Some(outcome) = outcomes.recv().await {
        match outcome {
            Ok((_, established)) => {
                dials.cancel();
                let driver = established.driver;
                scope.spawn("tunnel", async move {
                    driver.run().await;
                });
                return Ok(established.tunnel);
            }
            Err(failure) => {
                let failure = failure.for_ladder();
                if failure.answered || failed.is_none() {
                    failed = Some(failure.why);
                }
            }
        }
    }
    Err(failed.unwrap_or_else(|| "no host-bridge is known".to_owned()))
}
