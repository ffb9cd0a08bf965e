//! Tunnels as they come in: the handshake, who is let in as what, and the requests that arrive
//! through them. A dialer with a peer's certificate gets a session; one without a certificate
//! gets a short time to accept, one with a certificate that has expired a short time to renew it,
//! and nothing else.

mod visit;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::service::service_fn;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio_rustls::server::TlsStream;
use tracing::field::display;
use tracing::{Instrument, debug, info, info_span, warn};

use self::visit::Visitor;
use super::direct::{self, Calling, RedialEvent, Redialer};
use super::federation_api::{Caller, CallerCertificate, Standing};
use super::links::{Link, Links, SessionGuard};
use super::parent::Parent;
use super::peer_view::TurnedAway;
use super::refused_certificates::RefusedCertificates;
use super::settings::BridgeSettings;
use crate::base::id::{NetworkId, PeerId, SessionId};
use crate::base::limit::{error_chain, foreign_text};
use crate::contract::TUNNEL_DIRECT_PATH;
use crate::identity::tls_failure::TlsFailure;
use crate::process::clock::Clock;
use crate::process::entropy;
use crate::process::supervisor::TaskScope;
use crate::tunnel::connection::{Tunnel, TunnelSettings};
use crate::tunnel::http;
use crate::tunnel::quic::{IncomingConnection, QuicEndpoint};
use crate::tunnel::stream::TunnelStream;
use crate::tunnel::tcp::{self, TcpSettings};
use crate::tunnel::transport::{BoxFuture, Side, Transport, TransportClosed, TunnelProtocol};
use crate::tunnel::{CloseReason, TunnelDriver};
use crate::wire::{
    DIRECT_FEATURE, Goodbye, GoodbyeReason, Hello, RefusalCode, Refused, SESSIONS_FEATURE, SessionClaim,
    StreamKind, Welcome, reached_at_feature,
};

/// When a dialer that is not admitted should try again. An operator has to do something first, and
/// this is how long the satellite stays away after that.
const NOT_ADMITTED_RETRY: Duration = Duration::from_secs(60);

/// When a dialer that found no place should try again.
const BUSY_RETRY: Duration = Duration::from_secs(5);

/// When satellites should come back after a stop: long enough for a restart. Each is told a time
/// of its own up to twice this, so that they do not come all at once.
const RESTART_RETRY: Duration = Duration::from_secs(2);

/// Time in which a peer whose tunnels end must have read the answer that says why.
const LAST_ANSWER_TIME: Duration = Duration::from_secs(2);

/// Longest trial that a satellite can ask for.
const TRIAL_MAX: Duration = Duration::from_secs(60);

/// What a tunnel is told at its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IngressSettings {
    /// How often the satellite pings an idle tunnel.
    pub keepalive: Duration,
    /// Streams that a satellite may hold open at once.
    pub max_streams: u32,
    /// Streams that this side opens at once.
    pub max_streams_opened: u32,
    /// How long requests in progress may go on when the bridge stops.
    pub drain: Duration,
}

/// Takes tunnels in.
#[derive(Debug)]
pub struct Ingress {
    /// Answers what arrives through them, and says who may come in.
    pub parent: Parent,
    /// Holds who is in.
    pub links: Arc<Links>,
    /// For the welcome.
    pub clock: Clock,
    /// Where connections and requests run.
    pub work: TaskScope,
    /// What tunnels are told.
    pub settings: IngressSettings,
    /// For where each peer is reached from outside.
    pub live: watch::Receiver<BridgeSettings>,
    /// Dials satellites again that it has dialled and lost.
    pub redialer: Arc<Redialer>,
    /// Says whose certificates do not pass.
    pub refused_certificates: RefusedCertificates,
    /// Held while a peer is taken with a key that an operator has named.
    pub readmitting: tokio::sync::Mutex<()>,
}

/// The endpoint is gone.
#[derive(Debug, thiserror::Error)]
#[error("the QUIC socket is closed and takes no more tunnels; restart the host-bridge")]
pub struct EndpointClosed;

/// A peer that has proven who it is and may come in.
struct Admitted {
    peer: PeerId,
    certificate: CallerCertificate,
}

/// A connection whose handshake is done, by who has made it.
enum Arrival {
    /// The satellite, which greets.
    Dialled(Arc<dyn Transport>),
    /// This side: it says what for, and then the satellite greets.
    Called(Calling),
}

impl Ingress {
    /// Takes tunnels until the scope is cancelled.
    pub async fn run(
        self: Arc<Self>,
        endpoint: QuicEndpoint,
        network: Option<NetworkId>,
        intake: TaskScope,
    ) -> Result<(), EndpointClosed> {
        loop {
            tokio::select! {
                () = intake.cancelled() => return Ok(()),
                incoming = endpoint.accept() => {
                    let incoming = incoming.ok_or(EndpointClosed)?;
                    let ingress = Arc::clone(&self);
                    self.work.spawn("tunnel", async move { ingress.connection(incoming, network).await });
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, incoming: IncomingConnection, network: Option<NetworkId>) {
        let address = incoming.remote_address();
        let Some(shaken) = self.unless_stopping(incoming.handshake()).await else {
            return;
        };
        match shaken {
            Ok(transport) => {
                let counters = self.links.counters();
                counters.count_handshake(TunnelProtocol::Quic, true);
                self.take(transport, network).await;
            }
            Err(TransportClosed::Tls {
                found_by: Side::Ours,
                failure,
            }) => self.handshake_failed(address, TunnelProtocol::Quic, &failure, Some(&failure)),
            Err(reason) => self.handshake_failed(address, TunnelProtocol::Quic, &reason, None),
        }
    }

    /// A handshake came to nothing, over whatever transport; with what was found here, if anything was.
    pub(super) fn handshake_failed(
        &self,
        address: SocketAddr,
        protocol: TunnelProtocol,
        why: &dyn std::fmt::Display,
        found: Option<&TlsFailure>,
    ) {
        self.links.counters().count_handshake(protocol, false);
        if let Some(refused) = found.filter(|failure| failure.is_about_their_certificate()) {
            let (source, why) = (address.ip().to_canonical(), refused.to_string());
            self.refused_certificates.note(source, &why, self.clock.now());
        } else {
            debug!(%address, %why, transport = protocol.word(), "a handshake failed");
        }
    }

    /// Takes a tunnel that has come to the HTTPS listener.
    pub async fn take_tcp(
        self: Arc<Self>,
        stream: TlsStream<TcpStream>,
        address: SocketAddr,
        network: Option<NetworkId>,
    ) {
        tcp::tune(stream.get_ref().0);
        let settings = TcpSettings {
            max_streams: self.settings.max_streams,
        };
        self.take(tcp::accept(stream, address, settings), network).await;
    }

    /// Takes one connection whose handshake is done, over whatever transport, to its end.
    pub async fn take(self: Arc<Self>, transport: Arc<dyn Transport>, network: Option<NetworkId>) {
        let address = transport.remote_address();
        match transport.peer_certificate() {
            None => self.visit(transport, (address, network), Visitor::Stranger).await,
            Some(der) => {
                let shown = CallerCertificate::read(&der, self.clock.trusted().now);
                self.member(transport, (address, network), shown).await;
            }
        }
    }

    /// Takes a connection whose dialer has shown a certificate.
    async fn member(
        self: Arc<Self>,
        transport: Arc<dyn Transport>,
        (address, network): (SocketAddr, Option<NetworkId>),
        shown: Option<CallerCertificate>,
    ) {
        match self.admit(shown.clone()).await {
            Ok(Admitted { peer, certificate }) if certificate.standing == Standing::Expired => {
                info!(%address, %peer, "a peer comes with a certificate that has expired, and may renew it");
                self.visit(transport, (address, network), Visitor::Expired(certificate))
                    .instrument(info_span!("tunnel", %peer))
                    .await;
            }
            Ok(admitted) => {
                let session = SessionId::new_v7(self.clock.trusted().now, entropy::id_entropy());
                let span = info_span!("tunnel", peer = %admitted.peer, %session);
                let arrival = Arrival::Dialled(transport);
                self.session(arrival, (address, network), admitted, session)
                    .instrument(span)
                    .await;
            }
            Err(refused) => {
                let named = shown.as_ref().and_then(|certificate| certificate.peer);
                let peer = named.map(display);
                warn!(%address, peer, why = %refused.message, "a tunnel was not admitted");
                if let (Some(peer), Some(certificate), RefusalCode::NotAdmitted) =
                    (named, shown, refused.code)
                {
                    let turned = TurnedAway {
                        at: self.clock.trusted().now,
                        why: refused.message.clone(),
                        certificate,
                    };
                    self.links.turn_away(peer, turned);
                }
                self.decline(transport, refused).await;
            }
        }
    }

    /// Makes a tunnel of a connection that this side has dialled, to its end.
    pub(super) fn call(self: Arc<Self>, calling: Calling) -> BoxFuture<'static, ()> {
        // Of a type of its own: a tunnel's requests may ask for such tunnels.
        Box::pin(async move {
            let address = calling.transport.remote_address();
            let shown = calling.transport.peer_certificate();
            let certificate = shown.and_then(|der| CallerCertificate::read(&der, self.clock.trusted().now));
            match self.admit(certificate).await {
                Ok(admitted) => {
                    let session = SessionId::new_v7(self.clock.trusted().now, entropy::id_entropy());
                    let span = info_span!("tunnel", peer = %admitted.peer, %session, direct = true);
                    // Which its handshake has found valid: no grace for an expired one where this side dials.
                    self.session(Arrival::Called(calling), (address, None), admitted, session)
                        .instrument(span)
                        .await;
                }
                Err(refused) => calling.told.came_to_nothing(refused.message),
            }
        })
    }

    async fn admit(&self, certificate: Option<CallerCertificate>) -> Result<Admitted, Refused> {
        let not_admitted = |why: &str| refused(RefusalCode::NotAdmitted, why, NOT_ADMITTED_RETRY);
        let Some((certificate, peer)) = certificate.and_then(|shown| {
            let peer = shown.peer?;
            Some((shown, peer))
        }) else {
            return Err(not_admitted("the certificate is no federation peer's"));
        };
        let mut objection = self.objection(&certificate, peer).await?;
        // Another key is what an operator can say is right; being suspended is not.
        let is_another = matches!(objection, Some((GoodbyeReason::Superseded, _)));
        if is_another {
            self.readmit_expected(&certificate, peer).await;
            objection = self.objection(&certificate, peer).await?;
        }
        match objection {
            None => Ok(Admitted { peer, certificate }),
            Some((_, why)) => Err(not_admitted(&why)),
        }
    }

    /// Takes the peer with what it has come with from now on, where an operator has named that. A box comes by
    /// several ways at once: whoever is not the first waits until its key is enrolled.
    async fn readmit_expected(&self, certificate: &CallerCertificate, peer: PeerId) {
        let _turn = self.readmitting.lock().await;
        let now = self.clock.trusted().now;
        if !self.links.take_expected(peer, certificate, now) || !self.parent.readmit(certificate, peer).await
        {
            return;
        }
        info!(%peer, certificate = %certificate.digest(), "a peer has come with the certificate that an operator named");
        self.links.close_replaced(peer);
    }

    /// Why the peer may not come in, if it may not.
    async fn objection(
        &self,
        certificate: &CallerCertificate,
        peer: PeerId,
    ) -> Result<Option<(GoodbyeReason, String)>, Refused> {
        let objection = self.parent.objection(certificate, peer).await;
        objection.map_err(|error| refused(RefusalCode::Busy, &error.to_string(), BUSY_RETRY))
    }

    async fn session(
        self: Arc<Self>,
        arrival: Arrival,
        (address, network): (SocketAddr, Option<NetworkId>),
        admitted: Admitted,
        session: SessionId,
    ) {
        let Admitted { peer, certificate } = admitted;
        let reached = match &arrival {
            Arrival::Called(calling) => RedialEvent::Reached(calling.redial.clone()),
            Arrival::Dialled(_) => RedialEvent::Connected(peer),
        };
        let decide = |hello: &Hello| match self.links.check(peer) {
            Ok(()) => Ok(self.welcome(session, address, hello, Some(peer))),
            Err(full) => Err(refused(RefusalCode::Busy, &full.to_string(), BUSY_RETRY)),
        };
        let Some((tunnel, hello, driver)) = self.greet(arrival, decide).await else {
            return;
        };
        let caller = Caller {
            source: address.ip(),
            network,
            certificate: Some(certificate.clone()),
        };
        let link = Link {
            tunnel: tunnel.clone(),
            caller: caller.clone(),
            since: self.clock.trusted().now,
            direct: matches!(reached, RedialEvent::Reached(_)),
            agent: foreign_text(&hello.agent),
        };
        let served = async {
            let claim = SessionClaim::read(&hello.features);
            match self.links.enter(peer, session, &claim, link) {
                Ok(place) => {
                    info!(%address, agent = foreign_text(&hello.agent), "a satellite is connected");
                    self.redialer.tell(reached);
                    // Whoever was suspended since the handshake must not stay. Where the registry
                    // cannot be read, the next request finds out.
                    if let Ok(Some((reason, why))) = self.objection(&certificate, peer).await {
                        place.close(reason, &why);
                    }
                    tokio::join!(
                        self.serve(&tunnel, &caller),
                        promote(&place, &tunnel, claim.trial),
                    );
                    Some(place)
                }
                Err(full) => {
                    let goodbye = goodbye(GoodbyeReason::LimitExceeded, &full.to_string(), BUSY_RETRY);
                    tunnel.close(goodbye).await;
                    None
                }
            }
        };
        let (reason, place) = tokio::join!(driver.run(), served);
        let live = place.is_some_and(SessionGuard::leave);
        if live && self.links.get(peer).is_none() {
            self.redialer.tell(match &reason {
                CloseReason::Silent { .. } | CloseReason::Transport(_) => RedialEvent::Gone(peer),
                _ => RedialEvent::Left(peer),
            });
        }
        info!(%reason, live, "a satellite's tunnel has ended");
    }

    /// Serves a session's requests until the tunnel ends or the bridge stops.
    async fn serve(self: &Arc<Self>, tunnel: &Tunnel, caller: &Caller) {
        let requests = self.work.child();
        let ended = loop {
            let incoming = tokio::select! {
                incoming = tunnel.accept_stream() => incoming,
                () = self.work.cancelled() => break false,
            };
            let Ok(incoming) = incoming else {
                break true;
            };
            let trace = incoming.header().trace;
            let ingress = Arc::clone(self);
            let caller = caller.clone();
            let request = async move {
                match incoming.header().kind {
                    StreamKind::Http => {}
                    StreamKind::Connect(_) | StreamKind::Flow(_) => return incoming.refuse_kind().await,
                }
                if let Ok(stream) = incoming.accept().await {
                    ingress.request(stream, caller).await;
                }
            };
            // As many at once as the transport lets the satellite open streams.
            requests.spawn(
                "tunnel request",
                request.instrument(info_span!("request", %trace)),
            );
        };
        if !ended {
            self.drain(tunnel).await;
        }
    }

    /// The bridge stops: what is in progress may end, then the satellite is told when to return.
    async fn drain(&self, tunnel: &Tunnel) {
        const LOOK_AGAIN: Duration = Duration::from_millis(50);
        let idle = async {
            while tunnel.stats().open_streams > 0 {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        // Half of the time is the goodbye's.
        let _ = tokio::time::timeout(self.settings.drain / 2, idle).await;
        let spread = u64::from_be_bytes(entropy::bytes()) % millis(RESTART_RETRY).max(1);
        let come_back = RESTART_RETRY.saturating_add(Duration::from_millis(spread));
        let message = "the host-bridge stops or restarts";
        tunnel
            .close(goodbye(GoodbyeReason::ShuttingDown, message, come_back))
            .await;
    }

    async fn request(self: &Arc<Self>, stream: TunnelStream, caller: Caller) {
        let (ends, told) = (OnceLock::new(), Notify::new());
        let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
            let (caller, ends, told) = (caller.clone(), &ends, &told);
            async move {
                if request.uri().path() == TUNNEL_DIRECT_PATH {
                    return Ok(direct::answer(self, request, caller).await.into_response());
                }
                let answered = self.parent.answer_tunnel(request, caller).await;
                if let Some(peer_ends) = answered.ends {
                    // One request a stream, so there is none before it.
                    let _ = ends.set(peer_ends);
                    told.notify_one();
                }
                Ok::<_, Infallible>(answered.response)
            }
        });
        let late = async {
            told.notified().await;
            tokio::time::sleep(LAST_ANSWER_TIME).await;
        };
        tokio::select! {
            served = http::serve(stream, service) => {
                if let Err(error) = served {
                    debug!(%error, "a request through a tunnel was not served to its end");
                }
            }
            () = late => debug!("a peer does not read the last answer that it gets"),
        }
        // Now that it has heard the answer.
        if let Some(ends) = ends.into_inner() {
            self.links.close(ends.peer, ends.reason, &ends.message);
        }
    }

    async fn decline(&self, transport: Arc<dyn Transport>, refused: Refused) {
        self.greet(Arrival::Dialled(transport), |_| Err(refused)).await;
    }

    /// The greeting, unless it comes to nothing or the bridge stops before it is done.
    async fn greet(
        &self,
        arrival: Arrival,
        decide: impl FnOnce(&Hello) -> Result<Welcome, Refused>,
    ) -> Option<(Tunnel, Hello, TunnelDriver)> {
        let settings = TunnelSettings {
            max_streams: self.settings.max_streams_opened,
            ..TunnelSettings::default()
        };
        let decide = |hello: &Hello| {
            let decided = decide(hello);
            self.links.counters().count_greeting(&decided);
            decided
        };
        let clock = self.clock.clone();
        match arrival {
            Arrival::Dialled(transport) => {
                let address = transport.remote_address();
                let greeted = Tunnel::accept(transport, settings, clock, decide);
                let greeted = self.unless_stopping(greeted).await?;
                greeted
                    .inspect_err(|error| debug!(%address, %error, "a greeting came to nothing"))
                    .ok()
            }
            Arrival::Called(Calling {
                transport,
                call,
                told,
                ..
            }) => {
                let hello = direct::hello(&call);
                let greeted = Tunnel::call(transport, hello, settings, clock, decide);
                match self.unless_stopping(greeted).await? {
                    Ok(greeted) => {
                        told.came_up();
                        Some(greeted)
                    }
                    Err(error) => {
                        told.came_to_nothing(error_chain(&error));
                        None
                    }
                }
            }
        }
    }

    /// What nobody is promised yet is given up when the bridge stops: a dialer that has fallen
    /// silent must not hold the stop up.
    async fn unless_stopping<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.work.cancelled() => None,
        }
    }

    fn welcome(
        &self,
        session: SessionId,
        address: SocketAddr,
        hello: &Hello,
        peer: Option<PeerId>,
    ) -> Welcome {
        let sessions = SessionClaim::read(&hello.features).run.is_some();
        let reached_at = peer.and_then(|peer| self.live.borrow().peer_url(peer));
        let direct =
            self.parent.dials_satellites() && hello.features.iter().any(|feature| feature == DIRECT_FEATURE);
        Welcome {
            session,
            agent: AGENT.to_owned(),
            keepalive_millis: u32::try_from(millis(self.settings.keepalive)).unwrap_or(u32::MAX),
            max_streams: self.settings.max_streams,
            observed_address: address.to_string(),
            unix_seconds: self.clock.trusted().now.as_seconds(),
            features: [(sessions, SESSIONS_FEATURE), (direct, DIRECT_FEATURE)]
                .into_iter()
                .filter(|(both, _)| *both)
                .map(|(_, feature)| feature.to_owned())
                .chain(reached_at.and_then(|url| reached_at_feature(&url)))
                .collect(),
        }
    }
}

/// Lets a session carry when its trial is over. A trial longer than any satellite's is none.
async fn promote(place: &SessionGuard<'_>, tunnel: &Tunnel, trial: Option<Duration>) {
    let Some(trial) = trial else { return };
    if tokio::time::timeout(trial.min(TRIAL_MAX), tunnel.closed())
        .await
        .is_err()
    {
        place.promote();
    }
}

/// How this program calls itself to satellites.
const AGENT: &str = concat!("powernode-host-bridge/", env!("CARGO_PKG_VERSION"));

fn refused(code: RefusalCode, message: &str, after: Duration) -> Refused {
    Refused {
        code,
        message: message.to_owned(),
        retry_after_millis: u32::try_from(millis(after)).unwrap_or(u32::MAX),
    }
}

fn goodbye(reason: GoodbyeReason, message: &str, after: Duration) -> Goodbye {
    Goodbye {
        reason,
        message: message.to_owned(),
        retry_after_millis: u32::try_from(millis(after)).unwrap_or(u32::MAX),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
