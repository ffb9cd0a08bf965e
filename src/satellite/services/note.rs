//! What the audit log and the program's log say of a stream, whatever becomes of it: refused, opened,
//! closed, or dropped because the tunnel has ended.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::meter::Direction;
use crate::audit::{AuditAction, AuditEvent, AuditOutcome};
use crate::base::id::{GrantId, PeerId, TraceId};
use crate::base::limit::foreign_text;
use crate::base::time::Moment;
use crate::process::clock::Clock;
use crate::satellite::grants::Admission;
use crate::store::audit_log::AuditLog;
use crate::wire::{ServiceRequest, StreamRefusal};

/// Whose stream it is, and to what.
#[derive(Debug, Clone)]
pub(super) struct Note {
    audit: AuditLog,
    clock: Clock,
    since: Moment,
    peer: PeerId,
    trace: TraceId,
    actor: String,
    service: String,
    source: Option<SocketAddr>,
    grant: Option<GrantId>,
    subject: Option<String>,
}

impl Note {
    /// Before anything is decided.
    pub(super) fn new(
        audit: &AuditLog,
        clock: &Clock,
        peer: PeerId,
        request: &ServiceRequest,
        trace: TraceId,
    ) -> Self {
        Self {
            audit: audit.clone(),
            since: clock.now(),
            clock: clock.clone(),
            peer,
            trace,
            actor: foreign_text(&request.subject),
            service: foreign_text(&request.service),
            source: request.source,
            grant: None,
            subject: None,
        }
    }

    /// With the grant that lets it in.
    pub(super) fn granted(mut self, admission: &Admission) -> Self {
        let permit = admission.permit();
        self.grant = Some(permit.grant());
        self.subject = Some(permit.remote_subject().to_owned());
        self
    }

    /// It comes to nothing.
    pub(super) fn refused(&self, refusal: &StreamRefusal, outcome: AuditOutcome) {
        tracing::info!(
            trace = %self.trace,
            service = %self.service,
            subject = %self.actor,
            code = ?refusal.code,
            reason = %refusal.message,
            "stream to a service refused"
        );
        self.record(AuditAction::ServiceOpened, outcome, [0, 0]);
    }

    /// The asking side went away before it was taken.
    pub(super) fn given_up(&self, why: &std::io::Error) {
        let outcome = AuditOutcome::Failed(format!("the asking side gave the stream up: {why}"));
        self.record(AuditAction::ServiceOpened, outcome, [0, 0]);
    }

    /// It is taken.
    pub(super) fn opened(self) -> Closing {
        tracing::info!(
            trace = %self.trace,
            service = %self.service,
            grant = self.grant.map(tracing::field::display),
            subject = %self.actor,
            source = self.source.map(tracing::field::display),
            "stream to a service opened"
        );
        self.record(AuditAction::ServiceOpened, AuditOutcome::Done, [0, 0]);
        Closing {
            note: self,
            bytes: [AtomicU64::new(0), AtomicU64::new(0)],
            told: false,
        }
    }

    fn record(&self, action: AuditAction, outcome: AuditOutcome, [bytes_in, bytes_out]: [u64; 2]) {
        self.audit.record(&AuditEvent {
            action,
            federation_peer_id: Some(self.peer),
            remote_subject: self.subject.clone(),
            actor: Some(self.actor.clone()),
            grant: self.grant,
            object: Some(self.service.clone()),
            source: self.source,
            trace: Some(self.trace),
            bytes_in,
            bytes_out,
            duration: self.clock.now().since(self.since),
            outcome,
        });
    }
}

/// Notes the end of a stream that was opened, also when it is dropped because the tunnel has ended.
pub(super) struct Closing {
    note: Note,
    bytes: [AtomicU64; 2],
    told: bool,
}

impl Closing {
    /// Bytes that have passed.
    pub(super) fn count(&self, direction: Direction, bytes: u64) {
        let [inward, outward] = &self.bytes;
        let counter = match direction {
            Direction::In => inward,
            Direction::Out => outward,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// It has ended.
    pub(super) fn tell(mut self, outcome: AuditOutcome) {
        self.record(outcome);
    }

    fn record(&mut self, outcome: AuditOutcome) {
        self.told = true;
        let bytes = self.bytes.each_ref().map(|count| count.load(Ordering::Relaxed));
        tracing::info!(
            trace = %self.note.trace,
            service = %self.note.service,
            bytes_in = bytes[0],
            bytes_out = bytes[1],
            outcome = ?outcome,
            "stream to a service closed"
        );
        self.note.record(AuditAction::ServiceClosed, outcome, bytes);
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if !self.told {
            self.record(AuditOutcome::Cut("the tunnel has ended".to_owned()));
        }
    }
}
