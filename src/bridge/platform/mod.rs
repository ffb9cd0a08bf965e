//! The host-bridge beside a platform: every rule is the platform's, and this end carries. Requests of
//! satellites go to it with what their tunnel has verified of them, answers come back as they are; who may
//! hold a tunnel follows from its answers. Knows no registry and no certificate authority.

mod head;
mod noted;
mod overheard;
mod pool;
mod review;
pub mod roll;
mod standing;
mod target;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body, Incoming};
use tokio::sync::watch;
use tracing::{Span, debug, info, warn};

use super::dial_back::{DialBack, Reached};
use super::direct::Redial;
use super::federation_api::{Caller, CallerCertificate, RedialFailed, internal_error, of_peer};
use super::held_grants;
use super::lent_body::LentBody;
use super::metrics::RequestCounts;
use super::parent::{Answered, PeerEnds};
use super::registry::Ledger;
use super::registry::record::PeerRecord;
use super::reply::{BodyError, Reply, ReplyBody};
use super::request_body::read_body;
use super::settings::BridgeSettings;
use crate::audit::{AuditAction, AuditEvent};
use crate::base::id::PeerId;
use crate::base::limit::{JSON_BODY_MAX_BYTES, error_chain};
use crate::base::time::{Moment, UnixTime};
use crate::contract::{PLATFORM_ANSWER_LOST, TUNNEL_DIAL_BACK_PATH, TUNNEL_LEAVE_PATH};
use crate::identity::certificate::CertificateFacts;
use crate::machine::source_rate::{Source, SourceRate};
use crate::process::clock::Clock;
use crate::store::audit_log::AuditLog;
use crate::tunnel::transport::Transport;
use crate::wire::GoodbyeReason;
use head::{Vouched, from_platform, to_platform};
use roll::{HeartbeatExchange, RequestPlace, Roll, Verdict};
use target::Target;

pub(super) use head::{CALLING_INSTANCE, FORWARDED_FOR, ForwardedIdentity, SDWAN_NETWORK};
pub use pool::{PlatformError, Pool};
pub use standing::{Answered as HeartbeatAnswered, Standing};

/// When to come back to a platform that is away: a restart of one takes about as long.
const AWAY_RETRY: Duration = Duration::from_secs(10);

/// When a peer should come back that has too many requests on their way.
const BUSY_RETRY: Duration = Duration::from_secs(2);

/// Who has decided, in the audit log.
const PLATFORM_ACTOR: &str = "platform";

/// How long the platform may be silent where no configuration says so: for a moment during a reload.
const SILENCE: Duration = Duration::from_secs(25);

/// The platform as this host-bridge stands beside it.
#[derive(Debug)]
pub struct PlatformParent {
    pub(super) ledger: Arc<Ledger>,
    pub(super) roll: Arc<Roll>,
    pub(super) pool: Pool,
    pub(super) dial_back: DialBack,
    pub(super) clock: Clock,
    pub(super) settings: watch::Receiver<BridgeSettings>,
    pub(super) audit: AuditLog,
    pub(super) rate: Mutex<SourceRate>,
    pub(super) answered: RequestCounts,
}

impl PlatformParent {
    /// A peer shows a certificate of the platform's in a tunnel, or asks with it.
    pub fn shown(&self, peer: PeerId, certificate: &CallerCertificate) {
        if let Ok(facts) = CertificateFacts::of_der(&certificate.der) {
            self.roll.shown(peer, &facts, self.clock.trusted().now);
        }
    }

    /// Carries one request to the platform.
    pub async fn answer<B>(&self, request: Request<B>, caller: &Caller) -> Answered
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let path = request.uri().path().to_owned();
        let (head, body) = request.into_parts();
        let (body, lender) = LentBody::lend(body);
        let request = Request::from_parts(head, body);
        let (target, answered) = match Target::of(&request) {
            Ok(target) => (target, self.carry(request, target, caller).await),
            Err(refusal) => {
                drop(request);
                (Target::Other, Err(refusal))
            }
        };
        let answered = match answered {
            Ok(answered) => answered,
            Err(refusal) => {
                lender.discard_rest().await;
                refusal.into_response().into()
            }
        };
        self.answered
            .count(RequestCounts::kind_of(&path), answered.response.status());
        self.note(&path, target, caller, answered)
    }

    async fn carry<B>(&self, request: Request<B>, target: Target, caller: &Caller) -> Result<Answered, Reply>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let Some(certificate) = &caller.certificate else {
            return self.carry_strangers(request, target, caller).await;
        };
        let Some(identity) = ForwardedIdentity::of(&certificate.der) else {
            return Err(Reply::unauthorized(
                "the certificate's common name cannot be told to the platform",
            ));
        };
        let vouched = Vouched {
            identity: Some(&identity),
            source: caller.source,
            network: caller.network,
        };
        let Some(peer) = certificate.peer else {
            // A node's certificate: it has no heartbeat of a peer's.
            return self.relayed(request, vouched, None).await;
        };
        self.shown(peer, certificate);
        if !self.roll.may_send(peer, target) {
            return Err(unreachable_peer());
        }
        let place = self.roll.begin_request(peer).ok_or_else(|| {
            Reply::failure(
                StatusCode::SERVICE_UNAVAILABLE,
                "as many requests of this peer are on their way as may be",
            )
            .retry_after(BUSY_RETRY)
        })?;
        if target == Target::Heartbeat {
            // Both bodies of it pass as a whole.
            let answered = self.heartbeat(request, peer, vouched).await;
            drop(place);
            return answered;
        }
        self.relayed(request, vouched, Some(place)).await
    }

    async fn carry_strangers<B>(
        &self,
        request: Request<B>,
        target: Target,
        caller: &Caller,
    ) -> Result<Answered, Reply>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        if !target.is_for_strangers() {
            return Err(Reply::unauthorized("mTLS client certificate required"));
        }
        let admitted = {
            let per_minute = self.settings.borrow().config.limits.accepts_per_source_per_minute;
            let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
            rate.set_limit(per_minute);
            rate.admit(Source::of(caller.source), self.clock.now())
        };
        admitted.map_err(|after| {
            Reply::failure(
                StatusCode::TOO_MANY_REQUESTS,
                "too many accepts from this address; wait before the next one",
            )
            .retry_after(after)
        })?;
        let vouched = Vouched {
            identity: None,
            source: caller.source,
            network: caller.network,
        };
        self.relayed(request, vouched, None).await
    }

    /// `place` is kept until the answer has passed.
    async fn relayed<B>(
        &self,
        request: Request<B>,
        vouched: Vouched<'_>,
        place: Option<RequestPlace>,
    ) -> Result<Answered, Reply>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let (head, body) = request.into_parts();
        let answer = self
            .send(head, body.map_err(Into::into).boxed_unsync(), vouched)
            .await?;
        let passing = |body: Incoming| {
            let body = body.map_frame(move |frame| {
                let _ = &place;
                frame
            });
            body.map_err(Into::into).boxed_unsync()
        };
        Ok(answer.map(passing).into())
    }

    /// A heartbeat is looked at on its way: by the platform's answer this end knows where the peer stands.
    async fn heartbeat<B>(
        &self,
        request: Request<B>,
        peer: PeerId,
        vouched: Vouched<'_>,
    ) -> Result<Answered, Reply>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let (head, body) = request.into_parts();
        let sent = read_body(body).await?;
        let answer = self.send(head, whole(sent.clone()), vouched).await?;
        let (head, body) = answer.into_parts();
        let answer = match Limited::new(body, JSON_BODY_MAX_BYTES).collect().await {
            Ok(answer) => answer.to_bytes(),
            Err(error) => {
                let error = error_chain(&*error);
                warn!(%peer, error, "the platform's answer to a heartbeat broke off or is too long");
                return Err(away("the platform's answer broke off", PLATFORM_ANSWER_LOST));
            }
        };
        let exchange = HeartbeatExchange {
            sent: &sent,
            http_status: head.status.as_u16(),
            answer: &answer,
        };
        let verdict = self.roll.heartbeat_answered(peer, exchange, self.both_times());
        let ends = self.told(peer, vouched.source, verdict);
        Ok(Answered {
            response: Response::from_parts(head, whole(answer)),
            ends,
        })
    }

    /// Notes what the platform has said of a peer, and says what that means for the peer's tunnels.
    fn told(&self, peer: PeerId, source: IpAddr, verdict: Option<Verdict>) -> Option<PeerEnds> {
        let noted = |action, object| {
            self.audit.record(&AuditEvent {
                actor: Some(PLATFORM_ACTOR.to_owned()),
                object,
                ..of_peer(action, peer, source)
            });
        };
        match verdict? {
            Verdict::Resumed => {
                info!(%peer, "the platform takes a peer again");
                noted(AuditAction::PeerResumed, None);
                None
            }
            Verdict::Refused { words, news } => {
                warn!(%peer, why = words, "a peer's tunnels are closed");
                if news {
                    noted(AuditAction::PeerSuspended, Some(words.clone()));
                }
                Some(PeerEnds {
                    peer,
                    reason: GoodbyeReason::Suspended,
                    message: words,
                })
            }
        }
    }

    /// For people, and for durations.
    fn both_times(&self) -> (UnixTime, Moment) {
        (self.clock.trusted().now, self.clock.now())
    }

    async fn send(
        &self,
        mut head: request::Parts,
        body: ReplyBody,
        vouched: Vouched<'_>,
    ) -> Result<Response<Incoming>, Reply> {
        let Some(target) = self.pool.target(&head.uri) else {
            return Err(Reply::unknown_path(head.uri.path()));
        };
        to_platform(&mut head.headers, vouched, &self.pool.host());
        let mut request = Request::new(body);
        *request.method_mut() = head.method;
        *request.uri_mut() = target;
        *request.headers_mut() = head.headers;
        let silence = self
            .settings
            .borrow()
            .config
            .parent
            .platform()
            .map_or(SILENCE, |platform| platform.timeout);
        let sent = self.pool.send(request, silence).await;
        self.note_platform(sent.as_ref().err());
        match sent {
            Ok(mut answer) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                answer.headers_mut().clear();
                Err(away("the platform changed the protocol", PLATFORM_ANSWER_LOST))
            }
            Ok(mut answer) => {
                from_platform(answer.headers_mut());
                Ok(answer)
            }
            Err(error) if error.nothing_was_sent() => Err(away(&error.to_string(), "PLATFORM_UNREACHABLE")),
            Err(error) => Err(away(&error.to_string(), PLATFORM_ANSWER_LOST)),
        }
    }

    /// Remembers how the platform was found, and logs when that changes.
    fn note_platform(&self, error: Option<&PlatformError>) {
        let error = error.map(|error| error_chain(error));
        let was_away = self.roll.platform().is_some_and(|before| !before.reachable);
        match &error {
            Some(error) if was_away => debug!(error, "the platform is still away"),
            Some(error) => warn!(
                error,
                "the platform did not answer; satellites are told to come back"
            ),
            None if was_away => info!("the platform answers again"),
            None => {}
        }
        self.roll.platform_found(error, self.clock.trusted().now);
    }

    /// Answers a request about a tunnel's two ends that came through that tunnel.
    pub async fn answer_tunnel<B>(&self, request: Request<B>, caller: &Caller) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BodyError>,
    {
        let (head, body) = request.into_parts();
        let reply = match read_body(body).await {
            Ok(body) => self.tunnel_told(&head, body, caller).await,
            Err(refusal) => refusal,
        };
        reply.into_response()
    }

    /// Dials a peer for the tunnel that it asks for through one that it has.
    pub async fn dial_for_tunnel<B>(&self, request: Request<B>, caller: &Caller) -> Result<Reached, Reply>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BodyError>,
    {
        let (head, body) = request.into_parts();
        if head.method != Method::POST {
            return Err(Reply::wrong_method("POST"));
        }
        let body = read_body(body).await?;
        let peer = self.reachable_peer(caller).ok_or_else(unreachable_peer)?;
        let allow_private = self.settings.borrow().config.reach_allow_private;
        self.dial_back
            .dial_for_tunnel(&peer, caller.source, allow_private, &body)
            .await
    }

    /// Dials a peer again where it was reached.
    pub async fn redial(&self, redial: &Redial) -> Result<Arc<dyn Transport>, RedialFailed> {
        let known = self.roll.peer(redial.peer);
        let peer = known
            .filter(|peer| self.roll.may_be_reached(peer.id))
            .ok_or(RedialFailed::MayNotCome)?;
        let allow_private = self.settings.borrow().config.reach_allow_private;
        self.dial_back
            .redial(&peer, allow_private, redial.endpoint)
            .await
            .map_err(RedialFailed::NotReached)
    }

    /// The peer of a tunnel, unless the platform has refused it.
    fn reachable_peer(&self, caller: &Caller) -> Option<PeerRecord> {
        let peer = caller.certificate.as_ref()?.peer?;
        self.roll.peer(peer).filter(|_| self.roll.may_be_reached(peer))
    }

    async fn tunnel_told(&self, head: &request::Parts, body: Bytes, caller: &Caller) -> Reply {
        let Some(peer) = self.reachable_peer(caller) else {
            return unreachable_peer();
        };
        let path = head.uri.path();
        match path {
            TUNNEL_DIAL_BACK_PATH if head.method == Method::POST => {
                let allow_private = self.settings.borrow().config.reach_allow_private;
                self.dial_back
                    .answer(&peer, caller.source, allow_private, &body)
                    .await
            }
            TUNNEL_DIAL_BACK_PATH => Reply::wrong_method("POST"),
            _ => {
                let (ledger, now, span) = (
                    Arc::clone(&self.ledger),
                    self.clock.trusted().now,
                    Span::current(),
                );
                let (method, path) = (head.method.clone(), path.to_owned());
                let (audit, source) = (self.audit.clone(), caller.source);
                // The ledger blocks on the disk.
                let answered = tokio::task::spawn_blocking(move || {
                    span.in_scope(|| {
                        let reply = match path.as_str() {
                            TUNNEL_LEAVE_PATH => {
                                held_grants::leave_platform(&ledger, peer.id, &method, &body)
                            }
                            path => held_grants::answer(&ledger, &peer, (&method, path), &body, now),
                        };
                        let told = held_grants::noted(peer.id, source, &path, &body, reply.status());
                        if let Some(told) = told {
                            audit.record(&told);
                        }
                        reply
                    })
                });
                answered.await.unwrap_or_else(|_| internal_error())
            }
        }
    }
}

fn whole(bytes: Bytes) -> ReplyBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn unreachable_peer() -> Reply {
    Reply::unauthorized("No reachable FederationPeer for mTLS subject")
}

/// What a satellite is told while the platform is away: it keeps what it has and comes back.
fn away(why: &str, code: &str) -> Reply {
    Reply::coded(
        StatusCode::SERVICE_UNAVAILABLE,
        code,
        &format!("{why}; nothing is wrong with this request, come back with it"),
    )
    .retry_after(AWAY_RETRY)
}
