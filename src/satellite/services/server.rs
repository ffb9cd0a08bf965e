//! One stream to a service, from the asking to the last byte: is it published, is it granted, is there
//! room, is its program there? Only then is the stream taken, and from then on it is relayed until one
//! side is done, or the grant, the service or the tunnel ends. Every stream is noted in the audit log,
//! refused ones, too.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use tokio::net::UdpSocket;

use super::buffer::{BUFFER_BYTES, BufferPool};
use super::flow::{self, PACKET_MAX_BYTES, relay_packets};
use super::live::{LiveService, Place};
use super::local::{self, ConnectError, LocalStream, Relayed};
use super::meter::{Direction, Meter};
use super::note::{Closing, Note};
use super::registry::{ServiceLimits, Services};
use super::relay::{HeldUp, Passed, Traffic, relay};
use crate::audit::AuditOutcome;
use crate::base::counter::Counter;
use crate::base::id::PeerId;
use crate::base::limit::error_chain;
use crate::contract::service::{ServiceDefinition, ServiceProtocol};
use crate::grant::Denial;
use crate::satellite::grants::{Admission, Asked, Gate};
use crate::store::audit_log::AuditLog;
use crate::tunnel::{Farewell, IncomingStream};
use crate::wire::{RefusalCode, ServiceRequest, StreamEnd, StreamKind, StreamRefusal};

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
    packet_buffers: BufferPool,
    /// Streams that were refused, by [`RefusalCode::ALL`].
    refusals: [Counter; RefusalCode::ALL.len()],
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
                buffers: BufferPool::of(BUFFER_BYTES),
                packet_buffers: BufferPool::of(PACKET_MAX_BYTES),
                refusals: Default::default(),
            }),
        }
    }

    /// How many streams were refused since the start, by the kind of reason; only reasons that occurred.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        let counts = self.shared.refusals.iter().map(Counter::get);
        let counted = RefusalCode::ALL
            .iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0);
        counted
            .map(|(code, count)| (code.word().to_owned(), count))
            .collect()
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

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Connection,
    Packets,
}

impl Wanted {
    const fn of(protocol: ServiceProtocol) -> Self {
        match protocol {
            ServiceProtocol::Tcp | ServiceProtocol::Http | ServiceProtocol::Unix => Self::Connection,
            ServiceProtocol::Udp => Self::Packets,
        }
    }
}

/// The local end of a stream.
enum Local {
    Connection(LocalStream),
    Packets(UdpSocket),
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
        let (request, wanted) = match &stream.header().kind {
            StreamKind::Connect(request) => (request.clone(), Wanted::Connection),
            StreamKind::Flow(request) => (request.clone(), Wanted::Packets),
            StreamKind::Http => return stream.refuse_kind().await,
        };
        let shared = &self.server.shared;
        let (clock, trace) = (shared.services.clock(), stream.header().trace);
        let mut note = Note::new(&shared.audit, clock, self.peer, &request, trace);
        let reached = match self.admit(&request, wanted) {
            Ok(granted) => {
                note = note.granted(&granted.admission);
                self.reach(granted, &request, wanted).await
            }
            Err(turned) => Err(turned),
        };
        match reached {
            Ok((granted, Local::Connection(local))) => self.carry(stream, granted, local, note).await,
            Ok((granted, Local::Packets(socket))) => self.carry_packets(stream, granted, socket, note).await,
            Err(turned) => {
                if let Some(service) = &turned.service {
                    service.count_refusal();
                }
                shared.refusals[turned.refusal.code as usize].increment();
                note.refused(&turned.refusal, turned.outcome);
                stream.refuse(turned.refusal).await;
            }
        }
    }

    /// Everything that can be said without asking the local program.
    fn admit(&self, request: &ServiceRequest, wanted: Wanted) -> Result<Granted, Turned> {
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
        if wanted != Wanted::of(definition.protocol) {
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

    /// The local end: for a connection, only when the program has answered.
    async fn reach(
        &self,
        granted: Granted,
        request: &ServiceRequest,
        wanted: Wanted,
    ) -> Result<(Granted, Local), Turned> {
        let Granted {
            definition, limits, ..
        } = &granted;
        let clock = self.server.shared.services.clock();
        let reached = match wanted {
            Wanted::Connection => local::connect(definition, request.source, limits.connect_timeout, clock)
                .await
                .map(Local::Connection),
            Wanted::Packets => flow::open(&definition.address)
                .await
                .map(Local::Packets)
                .map_err(ConnectError::Failed),
        };
        match reached {
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
    async fn carry(&self, stream: IncomingStream, granted: Granted, local: LocalStream, note: Note) {
        let mut local = Relayed::new(local);
        let mut tunnel = match stream.accept().await {
            Ok(tunnel) => tunnel,
            Err(error) => return note.given_up(&error),
        };
        let (shared, farewell) = (&self.server.shared, tunnel.farewell().clone());
        let (carried, mut admission) = Carried::begin(granted, note);
        let meters = [&carried.meter, carried.service.meter(), &*self.meter];
        let traffic = Traffic {
            clock: shared.services.clock(),
            buffers: &shared.buffers,
            held_up: &self.held_up,
            meters: &meters,
            passed: &carried,
        };
        let outcome = tokio::select! {
            biased;
            over = over(&mut admission, &carried.service) => over.said_by(&farewell),
            relayed = relay(&mut local.stream, &mut tunnel, &traffic) => match relayed {
                Ok(()) => AuditOutcome::Done,
                Err(error) => broke_off(error.stream_end(), &error, &farewell),
            },
        };
        // A relay that came to its end has ended both sides; any other end must not look like one.
        if outcome == AuditOutcome::Done {
            local.finish();
        } else {
            drop(local);
        }
        drop(tunnel);
        carried.closing.tell(outcome);
    }

    /// The same for packets.
    async fn carry_packets(&self, stream: IncomingStream, granted: Granted, local: UdpSocket, note: Note) {
        let idle = granted.limits.flow_idle_timeout;
        let flow = match stream.accept_flow().await {
            Ok(flow) => flow,
            Err(error) => return note.given_up(&error),
        };
        let (shared, farewell) = (&self.server.shared, flow.farewell());
        let (carried, mut admission) = Carried::begin(granted, note);
        let meters = [&carried.meter, carried.service.meter(), &*self.meter];
        let traffic = Traffic {
            clock: shared.services.clock(),
            buffers: &shared.packet_buffers,
            held_up: &self.held_up,
            meters: &meters,
            passed: &carried,
        };
        let outcome = tokio::select! {
            biased;
            over = over(&mut admission, &carried.service) => over.said_by(&farewell),
            relayed = relay_packets(&local, &flow, &traffic, idle) => match relayed {
                Ok(()) => heard_end(&farewell).unwrap_or(AuditOutcome::Done),
                Err(error) => broke_off(error.stream_end(), &error, &farewell),
            },
        };
        if outcome == AuditOutcome::Done {
            flow.finish().await;
        }
        carried.closing.tell(outcome);
    }
}

/// Why a stream must be cut: what the asking side is told, and what is noted, which may be more.
struct Over(StreamEnd, String);

impl Over {
    fn said_by(self, farewell: &Farewell) -> AuditOutcome {
        farewell.say(self.0);
        AuditOutcome::Cut(self.1)
    }
}

/// Resolves when a stream must be cut.
async fn over(admission: &mut Admission, service: &LiveService) -> Over {
    tokio::select! {
        biased;
        ended = admission.ended() => Over(ended.stream_end(), ended.to_string()),
        () = service.withdrawn() => {
            let why = StreamEnd::ServiceWithdrawn;
            Over(why, why.to_string())
        }
    }
}

/// One side has ended a stream before its time.
fn broke_off(told: Option<StreamEnd>, error: &(dyn Error + 'static), farewell: &Farewell) -> AuditOutcome {
    match told {
        Some(why) => farewell.say(why),
        None => {
            if let Some(outcome) = heard_end(farewell) {
                return outcome;
            }
        }
    }
    AuditOutcome::Failed(error_chain(error))
}

/// How the asking side says that it has ended a stream.
fn heard_end(farewell: &Farewell) -> Option<AuditOutcome> {
    match farewell.heard()? {
        StreamEnd::Abandoned => None,
        why if why.is_decided() => Some(AuditOutcome::Cut(format!("by the asking side: {why}"))),
        why => Some(AuditOutcome::Failed(why.to_string())),
    }
}

/// A stream that is relayed.
struct Carried {
    service: Arc<LiveService>,
    meter: Meter,
    closing: Closing,
    _place: Place,
}

impl Carried {
    fn begin(granted: Granted, note: Note) -> (Self, Admission) {
        let carried = Self {
            service: granted.service,
            meter: Meter::new(granted.limits.stream_bandwidth),
            closing: note.opened(),
            _place: granted.place,
        };
        (carried, granted.admission)
    }
}

impl Passed for Carried {
    fn passed(&self, direction: Direction, bytes: u64) {
        self.service.count_bytes(direction, bytes);
        self.closing.count(direction, bytes);
    }
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
