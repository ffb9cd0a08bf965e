//! What the loop does about grants, and about the end of them all: once a member's tunnel is up, the
//! parent's operator grant is made where there should be one, and what is due is handed over; when the
//! owner leaves, the parent gets a last notice and the keys go.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{Departure, Driver, LeaveError};
use crate::audit::{AuditAction, AuditEvent};
use crate::base::limit::error_chain;
use crate::contract::peer::{PeerStatus, SpawnMode};
use crate::machine::child::ChildEvent;
use crate::machine::join::Farewell;
use crate::machine::node_identity::NodeStanding;
use crate::process::blocking;
use crate::satellite::grants::courier::{Courier, LastNotice, last_notice};
use crate::satellite::membership_store::Facts;
use crate::satellite::node_files;
use crate::satellite::parent_client::farewell_request;
use crate::tunnel::Tunnel;

/// Time between the answer to whoever has asked to leave and the stop of the daemon.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// Waits for a change of the grants; for ever, where there are none to change.
pub(super) async fn changed(changes: Option<&mut watch::Receiver<u64>>) {
    // The sender lives in the book, which the driver holds.
    let heard = match changes {
        Some(changes) => changes.changed().await.is_ok(),
        None => false,
    };
    if !heard {
        std::future::pending::<()>().await;
    }
}

impl Driver {
    /// Over the primary tunnel, and over another one when that becomes the primary.
    pub(super) fn hand_over_grants(&mut self) {
        let primary = self.primary_tunnel();
        let id = primary.as_ref().map(|(id, _, _)| *id);
        if self.grants_over.0 == id {
            return;
        }
        self.grants_over.1.cancel();
        self.grants_over = (id, self.scope.child());
        if let Some((_, tunnel, _)) = primary {
            self.hand_over_grants_through(tunnel);
        }
    }

    fn hand_over_grants_through(&self, tunnel: Tunnel) {
        let (Some(membership), Some(surroundings)) = (self.machine.membership(), &self.surroundings) else {
            return;
        };
        let managed = membership.spawn_mode == SpawnMode::ManagedChild;
        let former = membership.former.clone();
        let audit = surroundings.audit.clone();
        let courier = Courier {
            tunnel,
            parent: membership.parent.clone(),
            peer: membership.peer_id,
            book: surroundings.grants.clone(),
            clock: self.clock.clone(),
            trouble: Arc::clone(&surroundings.handover_trouble),
        };
        self.grants_over.1.spawn_until_cancelled("grants", async move {
            if let Err(error) = courier.book.succeed(former, courier.peer).await {
                tracing::error!(error = %error_chain(&error), "the grants of before could not be taken over; the next tunnel tries again");
                return;
            }
            if managed {
                match courier.book.mirror(courier.peer).await {
                    Ok(Some(issued)) if !issued.reused => {
                        tracing::info!(grant = %issued.grant.id, until = %issued.grant.expires_at, "the parent may operate this box");
                        audit.record(&AuditEvent {
                            federation_peer_id: Some(courier.peer),
                            remote_subject: Some(issued.grant.remote_subject.clone()),
                            grant: Some(issued.grant.id),
                            ..AuditEvent::of(AuditAction::GrantIssued)
                        });
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::error!(error = %error_chain(&error), "the parent's operator grant could not be made; the next tunnel tries again");
                    }
                }
            }
            courier.run().await;
        });
    }

    /// Ends the peering. The parent is told first, while there is a key to tell it with; that it cannot
    /// be told holds nobody here.
    pub(super) async fn leave(&mut self, reason: String) -> Result<Departure, LeaveError> {
        let membership = self.machine.membership().ok_or(LeaveError::NotJoined)?;
        let (peer_id, parent) = (membership.peer_id, membership.parent.clone());
        let former = membership.former.clone();
        let node = membership
            .node
            .as_ref()
            .and_then(NodeStanding::membership)
            .cloned();
        let last = farewell_request(membership, &reason, self.clock.trusted().now);
        let notice = match self.primary_tunnel() {
            Some((_, tunnel, _)) => last_notice(&tunnel, &parent, &reason, &last).await,
            // The parent has ended it before.
            None if membership.status == PeerStatus::Revoked => LastNotice::Taken,
            None => LastNotice::NotGiven("there is no tunnel to it at this moment".to_owned()),
        };
        let ends_by_operator = notice == LastNotice::Declared;
        let not_told = match notice {
            LastNotice::Taken | LastNotice::Declared => None,
            LastNotice::NotGiven(why) => Some(why),
        };
        let farewell = Farewell {
            parent,
            peer_id,
            reason,
            at: self.clock.trusted().now,
            told: not_told.is_none(),
            erased: false,
            former,
        };
        let saved = self.store.save_farewell(farewell.clone()).await;
        self.store_error = saved.as_ref().err().map(|error| error_chain(error));
        saved.map_err(LeaveError::Save)?;
        tracing::warn!(peer = %peer_id, reason = %farewell.reason, not_told, "left the parent; the keys are destroyed");
        if let Some(node) = node {
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
}
