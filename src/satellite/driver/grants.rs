//! What the loop does about grants: once a member's tunnel is up, the parent's operator grant is made where
//! there should be one, and what is due is handed over.

use std::sync::Arc;

use tokio::sync::watch;

use super::Driver;
use crate::audit::{AuditAction, AuditEvent};
use crate::base::limit::error_chain;
use crate::contract::peer::SpawnMode;
use crate::satellite::grants::courier::Courier;
use crate::tunnel::Tunnel;

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
}
