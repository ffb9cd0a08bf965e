//! Ways for people and programs to reach services of satellites. Everything that does so comes
//! through [`Access::open`]: it finds the peer and its tunnel, takes the grant that the peer has
//! handed over, asks the satellite for the service in the operator's name, and enters the access into
//! the table of those in flight. What the bytes are is not known here; the satellite alone decides
//! what is published and what the grant allows.

mod client;
mod connect;
mod credentials;
mod error;
mod exchange;
mod headers;
mod ingress;
mod login;
mod names;
mod packets;
mod proxy;
mod sessions;
mod socks;
mod unknown;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{debug, info};

pub use client::Client;
pub use connect::{CONNECT_PATH, PACKETS_PROTOCOL, SESSION_HEADER, UPGRADE_PROTOCOL};
pub use error::AccessError;
pub(in crate::bridge) use error::{called, why_offline};
pub(in crate::bridge) use exchange::InScope;
pub use ingress::SATELLITES_PREFIX;
pub use names::{is_service_name, reachable_services};
pub use proxy::Proxy;
pub use sessions::{AccessLimits, Accesses, SessionEnd, SessionView, Via};

use super::federation_api::{internal_error, stored_badly};
use super::links::Links;
use super::operator_api::Operator;
use super::permission::PeerRef;
use super::registry::record::{HeldGrant, PeerRecord};
use super::registry::{Ledger, RegistryError};
use super::reply::Reply;
use crate::audit::{AuditAction, AuditEvent, AuditOutcome};
use crate::base::id::TraceId;
use crate::base::limit::foreign_text;
use crate::process::clock::Clock;
use crate::process::entropy;
use crate::process::supervisor::TaskScope;
use crate::store::audit_log::AuditLog;
use crate::store::database::StoreError;
use crate::tunnel::connection::{OpenStreamError, Tunnel};
use crate::tunnel::relay::{Counted, Passed, RelayEnd, relay};
use crate::tunnel::stream::{TunnelStream, refusal_in};
use crate::tunnel::{CloseReason, Farewell};
use crate::wire::{GoodbyeReason, ServiceRequest, StreamEnd, StreamHeader, StreamKind};
use credentials::Presented;
use login::Logins;
pub use packets::ServiceFlow;
use sessions::{About, Place};
pub use unknown::UnknownTokens;

/// Time in which a satellite must have taken or refused a stream: its own patience with a local
/// program is 10 s, and a satellite link answers within a few more.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// How often it is looked whether operators with accesses in flight still may.
const REVIEW_INTERVAL: Duration = Duration::from_secs(2);

/// How long the tunnel's own word is awaited when a stream of it has failed: the tunnel knows why.
const CLOSE_REASON_WAIT: Duration = Duration::from_millis(500);

/// Who wants to reach what.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Id or name of the peer.
    pub peer: String,
    /// The service's published name.
    pub service: String,
    /// Who asks.
    pub operator: Operator,
    /// Where the asking program is, where that is known.
    pub source: Option<SocketAddr>,
    /// By which way.
    pub via: Via,
}

/// Opens accesses. One per daemon.
#[derive(Debug)]
pub struct Access {
    ledger: Arc<Ledger>,
    links: Arc<Links>,
    sessions: Arc<Accesses>,
    clock: Clock,
    audit: AuditLog,
    work: TaskScope,
    unknown: Arc<UnknownTokens>,
    logins: Logins,
}

/// A stream to a service, and its place in the table.
#[derive(Debug)]
pub struct ServiceStream {
    io: Counted<TunnelStream>,
    hold: Hold,
}

/// Keeps an access in the table, and knows when it must end.
#[derive(Debug)]
pub struct Hold {
    tunnel: Tunnel,
    farewell: Farewell,
    place: Place,
}

/// What the registry knows of an access.
struct Found {
    peer: PeerRecord,
    grant: Option<HeldGrant>,
}

impl Access {
    /// On the live tunnels. Relays run in tasks of `work`.
    pub fn new(
        ledger: Arc<Ledger>,
        links: Arc<Links>,
        sessions: Arc<Accesses>,
        clock: Clock,
        audit: AuditLog,
        work: TaskScope,
        unknown: Arc<UnknownTokens>,
    ) -> Self {
        Self {
            ledger,
            links,
            sessions,
            clock,
            audit,
            work,
            unknown,
            logins: Logins::new(),
        }
    }

    /// The accesses in flight.
    pub const fn sessions(&self) -> &Arc<Accesses> {
        &self.sessions
    }

    /// The operator whose token this is, or nobody; a refusal where that cannot be found out.
    async fn authenticate(&self, presented: &Presented) -> Result<Option<Operator>, Reply> {
        if !presented.looks_like_ours() {
            return Ok(None);
        }
        let (ledger, presented, now) = (
            Arc::clone(&self.ledger),
            presented.clone(),
            self.clock.trusted().now,
        );
        let found = tokio::task::spawn_blocking(move || {
            let operator = ledger.operator_by_token(presented.token.expose(), now)?;
            // A right token under a wrong name is somebody's mistake, and not theirs to profit from.
            Ok::<_, StoreError>(operator.filter(|known| presented.name.is_none_or(|name| name == known.name)))
        });
        match found.await {
            Ok(Ok(operator)) => Ok(operator.map(Operator::Named)),
            Ok(Err(error)) => Err(stored_badly("an operator", &error)),
            Err(_) => Err(internal_error()),
        }
    }

    /// A token was shown that nobody knows: the answer where that is one too many of its source.
    pub(in crate::bridge) fn unknown_token(&self, source: IpAddr) -> Option<Reply> {
        self.unknown.count(source, self.clock.now())
    }

    /// Where relays run.
    pub(super) const fn work(&self) -> &TaskScope {
        &self.work
    }

    /// Looks for ever whether those whose accesses are in flight still may, and cuts the others: an
    /// account that is removed, has ended, or was limited does not go on by what it began before.
    pub async fn look_after(self: Arc<Self>) {
        loop {
            tokio::time::sleep(REVIEW_INTERVAL).await;
            let access = Arc::clone(&self);
            // The registry blocks on the disk. What fails there is told by who needs it.
            let _ = tokio::task::spawn_blocking(move || access.review()).await;
        }
    }

    fn review(&self) {
        let now = self.clock.trusted().now;
        for (account, session) in self.sessions.by_account() {
            let words = match self.ledger.operator_identity(account, now) {
                Ok(Some(identity)) => match identity.may_reach(session.peer_ref(), &session.service) {
                    Ok(()) => continue,
                    Err(why) => why.to_string(),
                },
                Ok(None) => format!("the account of {} was removed or has ended", session.operator),
                Err(_) => continue,
            };
            self.sessions.end(&session.id, &words);
        }
    }

    /// Opens a stream to a service. It is the satellite's to refuse, and whoever is refused is told
    /// in its words.
    pub async fn open(&self, ask: Ask) -> Result<ServiceStream, AccessError> {
        let (stream, tunnel, place) = self
            .audited(ask, StreamKind::Connect, async |tunnel: &Tunnel, header| {
                let mut stream = tunnel.open_stream(header).await.map_err(NotOpened::Tunnel)?;
                stream.accepted().await.map_err(NotOpened::Reply)?;
                Ok(stream)
            })
            .await?;
        let hold = Hold::new(tunnel, place, stream.farewell().clone());
        Ok(ServiceStream {
            io: Counted::new(stream, hold.passed()),
            hold,
        })
    }

    /// The same for packets of a service that speaks UDP.
    pub async fn open_flow(&self, ask: Ask) -> Result<ServiceFlow, AccessError> {
        let (flow, tunnel, place) = self
            .audited(ask, StreamKind::Flow, async |tunnel: &Tunnel, header| {
                let flow = tunnel.open_flow(header).await.map_err(NotOpened::Tunnel)?;
                flow.accepted().await.map_err(NotOpened::Reply)?;
                Ok(flow)
            })
            .await?;
        let hold = Hold::new(tunnel, place, flow.farewell());
        Ok(ServiceFlow::new(flow, hold))
    }

    async fn audited<T>(
        &self,
        ask: Ask,
        kind: fn(ServiceRequest) -> StreamKind,
        open: impl AsyncFnOnce(&Tunnel, StreamHeader) -> Result<T, NotOpened>,
    ) -> Result<(T, Tunnel, Place), AccessError> {
        let trace = TraceId(u64::from_be_bytes(entropy::bytes()));
        // Also where the program does not wait for the satellite's answer.
        let mut event = self.audit.begin(opening(&ask, trace));
        let opened = self.opened(ask, trace, &mut event, kind, open).await;
        event.outcome = match &opened {
            Ok(_) => AuditOutcome::Done,
            Err(error) => {
                info!(%trace, %error, "an access was not given");
                self.sessions.count_refusal(error.code());
                error.audit_outcome()
            }
        };
        opened
    }

    async fn opened<T>(
        &self,
        ask: Ask,
        trace: TraceId,
        event: &mut AuditEvent,
        kind: fn(ServiceRequest) -> StreamKind,
        open: impl AsyncFnOnce(&Tunnel, StreamHeader) -> Result<T, NotOpened>,
    ) -> Result<(T, Tunnel, Place), AccessError> {
        // Names of services are host names' labels.
        let service = ask.service.to_ascii_lowercase();
        let ask = Arc::new(Ask { service, ..ask });
        let Found { peer, grant } = self.find(&ask).await?;
        event.federation_peer_id = Some(peer.id);
        if let Some(grant) = &grant {
            event.grant = Some(grant.id);
            event.remote_subject = Some(grant.remote_subject.clone());
        }
        let name = called(&peer);
        if !is_service_name(&ask.service) {
            return Err(AccessError::NoServiceName {
                asked: foreign_text(&ask.service),
            });
        }
        if ask.via.speaks_http()
            && let Some(protocol) = names::protocol_of(&peer, &ask.service).filter(|known| known != "http")
        {
            return Err(AccessError::NotHttp {
                peer: name,
                service: ask.service.clone(),
                protocol,
            });
        }
        let reachable = self.ledger.may_be_reached(&peer);
        let tunnel = self.links.get(peer.id).filter(|_| reachable);
        let tunnel = tunnel.ok_or_else(|| AccessError::Offline {
            peer: name.clone(),
            why: why_offline(&peer),
        })?;
        let about = About {
            id: trace,
            peer: peer.id,
            peer_name: name.clone(),
            service: ask.service.clone(),
            operator: ask.operator.to_string(),
            operator_id: ask.operator.identity().id,
            source: ask.source,
            via: ask.via,
            grant: grant.as_ref().map(|grant| grant.id),
            remote_subject: grant.as_ref().map(|grant| grant.remote_subject.clone()),
        };
        let mut place = self
            .sessions
            .enter(about, self.clock.clone(), self.audit.clone())?;
        let has_grant = grant.is_some();
        let header = StreamHeader {
            kind: kind(ServiceRequest {
                service: ask.service.clone(),
                grant_token: grant.map(|grant| grant.token),
                subject: ask.operator.to_string(),
                source: ask.source,
            }),
            trace,
        };
        let opened = open_within(open(&tunnel, header), &mut place)
            .await
            .map_err(|error| error.into_access(&name, &ask.service, has_grant))?;
        debug!(%trace, peer = %peer.id, service = ask.service, operator = %ask.operator, "an access begins");
        place.opened();
        Ok((opened, tunnel, place))
    }

    async fn find(&self, ask: &Arc<Ask>) -> Result<Found, AccessError> {
        let (ledger, ask, now) = (
            Arc::clone(&self.ledger),
            Arc::clone(ask),
            self.clock.trusted().now,
        );
        // The registry blocks on the disk.
        tokio::task::spawn_blocking(move || {
            let peer = permitted_peer(&ledger, &ask)?;
            let subject = ask.operator.to_string();
            let grant = ledger
                .held_grant_for(peer.id, &ask.service, &subject, now)
                .map_err(RegistryError::Store)?;
            Ok(Found { peer, grant })
        })
        .await
        .unwrap_or_else(|_| Err(AccessError::Internal))
    }
}

/// The peer that is asked for, if the operator may reach the service there. Who may not is told so
/// whether there is such a peer or not, and near names are those that the operator sees.
fn permitted_peer(ledger: &Ledger, ask: &Ask) -> Result<PeerRecord, AccessError> {
    let identity = ask.operator.identity();
    let may = |peer| {
        let allowed = identity.may_reach(peer, &ask.service);
        allowed.map_err(|why| AccessError::NotPermitted(why.to_string()))
    };
    match names::find_peer(ledger, &ask.peer) {
        Ok(peer) => {
            may((&peer).into())?;
            Ok(peer)
        }
        Err(RegistryError::UnknownPeer { asked, near }) => {
            may(PeerRef::Called(&ask.peer))?;
            let sees = |name: &String| identity.sees(PeerRef::Called(name));
            let near = near.into_iter().filter(sees).collect();
            Err(RegistryError::UnknownPeer { asked, near }.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Why a stream was not opened, before it is put into words.
enum NotOpened {
    Tunnel(OpenStreamError),
    Reply(std::io::Error),
    Late,
    Cut(String),
}

async fn open_within<T>(
    opening: impl Future<Output = Result<T, NotOpened>>,
    place: &mut Place,
) -> Result<T, NotOpened> {
    tokio::select! {
        biased;
        cut = place.cut() => Err(NotOpened::Cut(cut.words)),
        opened = timeout(OPEN_TIMEOUT, opening) => opened.unwrap_or(Err(NotOpened::Late)),
    }
}

impl NotOpened {
    fn into_access(self, peer: &str, service: &str, has_grant: bool) -> AccessError {
        match self {
            Self::Reply(error) => match refusal_in(&error) {
                Some(refusal) => AccessError::of_refusal(refusal, peer, service, has_grant),
                None => AccessError::Lost {
                    peer: peer.to_owned(),
                    why: error.to_string(),
                },
            },
            Self::Tunnel(error) => AccessError::Lost {
                peer: peer.to_owned(),
                why: crate::base::limit::error_chain(&error),
            },
            Self::Late => AccessError::TimedOut {
                peer: peer.to_owned(),
                within: OPEN_TIMEOUT,
            },
            Self::Cut(words) => AccessError::Cut(words),
        }
    }
}

impl ServiceStream {
    /// The access's id.
    pub fn id(&self) -> TraceId {
        self.hold.place.id()
    }

    /// Carries a client's bytes until either side has ended, or the access must.
    pub async fn carry(self, mut client: Client) {
        let Self { io, mut hold } = self;
        let end = relay(&mut client, io, hold.must_end()).await;
        let whole = matches!(end, RelayEnd::Finished);
        // The client hears of the end when it can be asked for.
        hold.close(end).await;
        if whole {
            client.finish();
        }
    }

    /// The bytes, and what keeps the access in the table: for those who speak a protocol over it.
    pub fn into_parts(self) -> (Counted<TunnelStream>, Hold) {
        (self.io, self.hold)
    }
}

impl Hold {
    fn new(tunnel: Tunnel, place: Place, farewell: Farewell) -> Self {
        // Unless something else is known when it is given up.
        farewell.say(StreamEnd::ClientBroke);
        Self {
            tunnel,
            farewell,
            place,
        }
    }

    /// The stream's counts.
    fn passed(&self) -> Arc<Passed> {
        self.place.passed()
    }

    fn id(&self) -> TraceId {
        self.place.id()
    }

    /// Resolves when the access must end, in the words that the user is told. When the bridge stops, the
    /// tunnel ends after its part of `shutdown.drain`, and not before: a transfer may come to its end. Cancel
    /// safe.
    pub async fn must_end(&mut self) -> String {
        let peer = self.place.peer_name().to_owned();
        tokio::select! {
            biased;
            cut = self.place.cut() => {
                self.farewell.say(cut.end);
                cut.words
            }
            reason = self.tunnel.closed() => tunnel_ended(&peer, &reason),
        }
    }

    /// Leaves the table, and tells the audit log how it ended.
    pub async fn close(self, end: RelayEnd<String>) {
        let heard = self.farewell.heard();
        let outcome = match (end, heard) {
            (RelayEnd::Cut(words), _) => AuditOutcome::Cut(words),
            // Whoever speaks a protocol over the stream may take its reset for an end, or for the client's.
            (_, Some(why)) if why.is_decided() => AuditOutcome::Cut(self.satellite_ended(why)),
            (RelayEnd::Finished, _) => AuditOutcome::Done,
            (RelayEnd::Left(error), _) => {
                AuditOutcome::Failed(format!("the client's connection broke: {error}"))
            }
            (RelayEnd::Right(_), Some(why)) if why != StreamEnd::Abandoned => {
                AuditOutcome::Failed(self.satellite_ended(why))
            }
            (RelayEnd::Right(error), _) => self.service_failed(&error).await,
        };
        self.place.leave(outcome);
    }

    fn satellite_ended(&self, why: StreamEnd) -> String {
        format!("{} has ended the session: {why}", self.place.peer_name())
    }

    /// The stream of the service has failed: because the tunnel did, or a satellite that gives no reasons has
    /// given it up.
    async fn service_failed(&self, error: &std::io::Error) -> AuditOutcome {
        let peer = self.place.peer_name();
        match timeout(CLOSE_REASON_WAIT, self.tunnel.closed()).await {
            Ok(reason) => AuditOutcome::Cut(tunnel_ended(peer, &reason)),
            Err(_) => AuditOutcome::Failed(format!(
                "{peer} has ended the session and gave no reason ({error}); its owner sees it in `powernode-satellite audit show`"
            )),
        }
    }
}

fn tunnel_ended(peer: &str, reason: &CloseReason) -> String {
    if let CloseReason::Local(goodbye) = reason
        && goodbye.reason == GoodbyeReason::ShuttingDown
    {
        return goodbye.message.clone();
    }
    format!("the tunnel of {peer} has ended: {reason}")
}

fn opening(ask: &Ask, trace: TraceId) -> AuditEvent {
    AuditEvent {
        actor: Some(ask.operator.to_string()),
        object: Some(foreign_text(&ask.service)),
        source: ask.source,
        trace: Some(trace),
        ..AuditEvent::of(AuditAction::ServiceOpened)
    }
}

impl From<RegistryError> for AccessError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Store(source) => {
                tracing::error!(error = %crate::base::limit::error_chain(&source), "a peer could not be looked up");
                Self::Internal
            }
            other => Self::UnknownPeer(other.to_string()),
        }
    }
}
