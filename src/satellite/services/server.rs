//! One stream to a service, from the asking to the last byte: is it published, is it granted, is there
//! room, is its program there? Only then is the stream taken, and from then on it is relayed until one
//! side is done, or the grant, the service or the tunnel ends. Every stream is noted in the audit log,
//! refused ones, too.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::buffer::BufferPool;
use super::live::{LiveService, Place};
use super::local::{self, LocalStream};
use super::meter::{Direction, Meter};
use super::registry::{ServiceLimits, Services};
use super::relay::{HeldUp, Traffic, relay};
use crate::audit::{AuditAction, AuditEvent, AuditOutcome};
use crate::base::id::{GrantId, PeerId, TraceId};
use crate::base::limit::{error_chain, foreign_text};
use crate::base::time::Moment;
use crate::contract::service::{ServiceDefinition, ServiceProtocol};
use crate::grant::Denial;
use crate::process::clock::Clock;
use crate::satellite::grants::{Admission, Asked, Gate};
use crate::store::audit_log::AuditLog;
use crate::tunnel::{IncomingStream, TunnelStream};
use crate::wire::{RefusalCode, ServiceRequest, StreamKind, StreamRefusal};

/// Serves the parent's streams to services. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct ServiceServer {
    shared: Arc<Shared>,
}

struct Shared {
    services: Services,
    gate: Gate,
    audit: AuditLog,
    buffers: BufferPool,
}

/// The same for one tunnel: whose streams they are, and what they share.
#[derive(Debug, Clone)]
pub struct SessionServices {
    server: ServiceServer,
    peer: PeerId,
    meter: Arc<Meter>,
    held_up: Arc<HeldUp>,
}

impl ServiceServer {
    /// What is published, who may reach it, and where it is noted.
    pub fn new(services: Services, gate: Gate, audit: AuditLog) -> Self {
        Self {
            shared: Arc::new(Shared {
                services,
                gate,
                audit,
                buffers: BufferPool::default(),
            }),
        }
    }

    /// What is published.
    pub fn services(&self) -> &Services {
        &self.shared.services
    }

    /// For a new tunnel of this peer.
    pub fn session(&self, peer: PeerId) -> SessionServices {
        SessionServices {
            meter: Arc::new(self.shared.services.session_meter()),
            held_up: Arc::default(),
            server: self.clone(),
            peer,
        }
    }
}

impl fmt::Debug for ServiceServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceServer")
            .field("services", &self.shared.services)
            .finish_non_exhaustive()
    }
}

/// A stream that may go on.
struct Granted {
    service: Arc<LiveService>,
    definition: Arc<ServiceDefinition>,
    admission: Admission,
    limits: ServiceLimits,
    place: Place,
}

/// A stream that may not: what the asking side reads, and what is noted.
struct Turned {
    refusal: StreamRefusal,
    outcome: AuditOutcome,
    service: Option<Arc<LiveService>>,
}

impl SessionServices {
    /// Serves one stream to its end. Dropped before, the stream is cut.
    pub async fn serve(self, stream: IncomingStream) {
        let trace = stream.header().trace;
        let (request, protocol_fits): (_, fn(ServiceProtocol) -> bool) = match &stream.header().kind {
            StreamKind::Connect(request) => (request.clone(), |protocol| protocol != ServiceProtocol::Udp),
            StreamKind::Http | StreamKind::Flow(_) => return stream.refuse_kind().await,
        };
        let note = Note::new(&self, &request, trace);
        let opened = match self.admit(&request, protocol_fits) {
            Ok(granted) => {
                let note = note.granted(&granted.admission);
                self.reach(granted, &request)
                    .await
                    .map_err(|turned| (note.clone(), turned))
                    .map(|reached| (note, reached))
            }
            Err(turned) => Err((note, turned)),
        };
        match opened {
            Ok((note, (granted, local))) => self.carry(stream, granted, local, note).await,
            Err((note, turned)) => {
                if let Some(service) = &turned.service {
                    service.count_refusal();
                }
                tracing::info!(
                    %trace,
                    service = %foreign_text(&request.service),
                    subject = %foreign_text(&request.subject),
                    code = ?turned.refusal.code,
                    reason = %turned.refusal.message,
                    "stream to a service refused"
                );
                note.record(AuditAction::ServiceOpened, turned.outcome, [0, 0]);
                stream.refuse(turned.refusal).await;
            }
        }
    }

    /// Everything that can be said without asking the local program.
    fn admit(&self, request: &ServiceRequest, fits: fn(ServiceProtocol) -> bool) -> Result<Granted, Turned> {
        let shared = &self.server.shared;
        let unknown = |message: String| Turned::refused(RefusalCode::UnknownService, message, None);
        let service = shared
            .services
            .find(&request.service)
            .map_err(|error| unknown(error.to_string()))?;
        let definition = service.definition();
        let asked = Asked {
            peer: self.peer,
            service: definition.name.as_str(),
            token: request.grant_token.as_ref(),
            subject: &request.subject,
            source: request.source.map(|source| source.ip().to_canonical()),
        };
        let now = shared.services.clock().trusted().now;
        let admission = match shared.gate.admit(&asked, now) {
            Ok(admission) => admission,
            Err(denial) => return Err(Turned::denied(&denial, service)),
        };
        if !fits(definition.protocol) {
            let message = format!(
                "service `{}` speaks {}, which takes no stream of this kind",
                definition.name, definition.protocol
            );
            return Err(Turned::refused(
                RefusalCode::UnsupportedKind,
                message,
                Some(service),
            ));
        }
        let Some(place) = Place::take(&service, definition.max_connections) else {
            let message = format!(
                "service `{}` has as many connections as its limit allows ({}); try again when one has ended",
                definition.name, definition.max_connections
            );
            return Err(Turned::refused(RefusalCode::Busy, message, Some(service)));
        };
        Ok(Granted {
            limits: shared.services.limits(),
            service,
            definition,
            admission,
            place,
        })
    }

    async fn reach(
        &self,
        granted: Granted,
        request: &ServiceRequest,
    ) -> Result<(Granted, LocalStream), Turned> {
        let Granted {
            definition, limits, ..
        } = &granted;
        let clock = self.server.shared.services.clock();
        match local::connect(definition, request.source, limits.connect_timeout, clock).await {
            Ok(local) => Ok((granted, local)),
            Err(error) => {
                tracing::warn!(
                    service = %definition.name,
                    address = %definition.address,
                    error = %error_chain(&error),
                    "the program of a published service was not reached"
                );
                let message = format!("service `{}` is published, but {error}", definition.name);
                Err(Turned {
                    outcome: AuditOutcome::Failed(error_chain(&error)),
                    refusal: StreamRefusal {
                        code: RefusalCode::ServiceUnavailable,
                        message,
                    },
                    service: Some(granted.service),
                })
            }
        }
    }

    /// From the acceptance to the end.
    async fn carry(&self, stream: IncomingStream, granted: Granted, mut local: LocalStream, note: Note) {
        let shared = &self.server.shared;
        let Granted {
            service,
            mut admission,
            limits,
            place: _place,
            definition,
        } = granted;
        let mut tunnel = match stream.accept().await {
            Ok(tunnel) => tunnel,
            Err(error) => {
                local.abort();
                let outcome = AuditOutcome::Failed(format!("the asking side gave the stream up: {error}"));
                note.record(AuditAction::ServiceOpened, outcome, [0, 0]);
                return;
            }
        };
        note.record(AuditAction::ServiceOpened, AuditOutcome::Done, [0, 0]);
        tracing::info!(
            trace = %note.trace,
            service = %definition.name,
            grant = %admission.permit().grant(),
            subject = %note.actor,
            source = note.source.map(tracing::field::display),
            "stream to a service opened"
        );
        let closing = Closing {
            note,
            bytes: [AtomicU64::new(0), AtomicU64::new(0)],
            told: false,
        };
        let stream_meter = Meter::new(limits.stream_bandwidth);
        let passed = |direction: Direction, bytes: u64| {
            service.count_bytes(direction, bytes);
            closing.count(direction, bytes);
        };
        let traffic = Traffic {
            clock: shared.services.clock(),
            buffers: &shared.buffers,
            held_up: &self.held_up,
            meters: &[&stream_meter, service.meter(), &self.meter],
            passed: &passed,
        };
        let outcome = tokio::select! {
            biased;
            ended = admission.ended() => AuditOutcome::Cut(ended.to_string()),
            () = service.withdrawn() => AuditOutcome::Cut("the service was withdrawn".to_owned()),
            relayed = relay(&mut local, &mut tunnel, &traffic) => match relayed {
                Ok(()) => AuditOutcome::Done,
                Err(error) => AuditOutcome::Failed(error_chain(&error)),
            },
        };
        finish(local, tunnel, &outcome);
        closing.tell(outcome);
    }
}

/// A relay that came to its end has ended both sides; any other end must not look like one.
fn finish(local: LocalStream, tunnel: TunnelStream, outcome: &AuditOutcome) {
    match outcome {
        AuditOutcome::Done => {}
        AuditOutcome::Refused(_) | AuditOutcome::Cut(_) | AuditOutcome::Failed(_) => local.abort(),
    }
    // What was not shut down is aborted by this.
    drop(tunnel);
}

impl Turned {
    fn refused(code: RefusalCode, message: String, service: Option<Arc<LiveService>>) -> Self {
        Self {
            outcome: AuditOutcome::Refused(message.clone()),
            refusal: StreamRefusal { code, message },
            service,
        }
    }

    /// The audit log reads more than the caller does.
    fn denied(denial: &Denial, service: Arc<LiveService>) -> Self {
        let code = match denial.http_status() {
            401 => RefusalCode::Unauthorized,
            _ => RefusalCode::Forbidden,
        };
        Self {
            outcome: AuditOutcome::Refused(denial.to_string()),
            refusal: StreamRefusal {
                code,
                message: denial.answer(),
            },
            service: Some(service),
        }
    }
}

/// What the audit log says of a stream, whatever becomes of it.
#[derive(Debug, Clone)]
struct Note {
    audit: AuditLog,
    clock: Clock,
    since: Moment,
    peer: PeerId,
    trace: TraceId,
    actor: String,
    service: String,
    source: Option<std::net::SocketAddr>,
    grant: Option<GrantId>,
    subject: Option<String>,
}

impl Note {
    fn new(session: &SessionServices, request: &ServiceRequest, trace: TraceId) -> Self {
        let shared = &session.server.shared;
        let clock = shared.services.clock().clone();
        Self {
            audit: shared.audit.clone(),
            since: clock.now(),
            clock,
            peer: session.peer,
            trace,
            actor: foreign_text(&request.subject),
            service: foreign_text(&request.service),
            source: request.source,
            grant: None,
            subject: None,
        }
    }

    fn granted(mut self, admission: &Admission) -> Self {
        let permit = admission.permit();
        self.grant = Some(permit.grant());
        self.subject = Some(permit.remote_subject().to_owned());
        self
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
struct Closing {
    note: Note,
    bytes: [AtomicU64; 2],
    told: bool,
}

impl Closing {
    fn count(&self, direction: Direction, bytes: u64) {
        let [inward, outward] = &self.bytes;
        let counter = match direction {
            Direction::In => inward,
            Direction::Out => outward,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    fn tell(mut self, outcome: AuditOutcome) {
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
