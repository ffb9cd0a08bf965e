//! Dials satellites where they ask for it, under one rule: to prove to one that it can be reached, by QUIC or
//! HTTPS, with handshake, the nonce that it has given, and an answer what was found; or for a tunnel.

mod https;
mod rule;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tokio::sync::{OnceCell, Semaphore, watch};
use tracing::debug;

use super::direct::Redial;
use super::federation_api::{CallerCertificate, is_enrolled};
use super::peer_anchors::PeerAnchors;
use super::registry::record::PeerRecord;
use super::reply::Reply;
use crate::base::limit::error_chain;
use crate::contract::message::{DialBackOver, DialBackRequest, DirectRequest};
use crate::identity::anchors::Anchors;
use crate::identity::reversed::bridge_client_config;
use crate::identity::tls::{IdentityWatch, TimeSource};
use crate::identity::tls_failure::FailureRecord;
use crate::process::clock::Clock;
use crate::reach::default_route::source_towards;
use crate::tunnel::quic::{BindError, QuicEndpoint, QuicSettings};
use crate::tunnel::transport::Transport;
use crate::tunnel::{Tunnel, TunnelSettings};
use crate::wire::{
    DirectCall, Goodbye, GoodbyeReason, Hello, TUNNEL_ALPN, TUNNEL_VERSION, dial_back_feature,
};
use rule::{Asked, DialBackRule, NotDialled};

/// Time for one dial, with handshake and greeting: two repetitions of a lost first packet.
const DIAL_TIME: Duration = Duration::from_secs(4);

/// Dials under way at once, in number. Each has a socket's share and a handshake's memory.
const DIALS_MAX: usize = 64;

/// When to come back where there is no room.
const BUSY_RETRY: Duration = Duration::from_secs(10);

/// How this program calls itself to satellites.
pub(super) const AGENT: &str = concat!("powernode-host-bridge/", env!("CARGO_PKG_VERSION"));

/// Dials back.
pub struct DialBack {
    rule: Mutex<DialBackRule>,
    dials: Semaphore,
    /// What tunnels that this side dials run over. A proof has a socket of its own: what a router still
    /// remembers of an earlier dial from here would let it through where a stranger is not.
    socket: OnceCell<QuicEndpoint>,
    tunnels: QuicSettings,
    identity: IdentityWatch,
    anchors: watch::Receiver<Arc<Anchors>>,
    equals: Arc<PeerAnchors>,
    clock: Clock,
}

impl std::fmt::Debug for DialBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DialBack").finish_non_exhaustive()
    }
}

/// Why a dial did not reach the very satellite that asked for it.
#[derive(Debug)]
pub enum NotReached {
    /// Not it answered, and why.
    Unreachable(String),
    /// The bridge could not try.
    Unable(String),
}

/// A satellite that this side has dialled because it asked for a tunnel.
#[derive(Debug)]
pub struct Reached {
    /// The connection, its handshake done by both sides.
    pub transport: Arc<dyn Transport>,
    /// Whom, where, and by which name it knows this side.
    pub redial: Redial,
    /// By what it knows this call.
    pub call: DirectCall,
}

impl DialBack {
    /// Shows the server's identity and knows satellites by the authority, or by their own.
    pub fn new(
        identity: IdentityWatch,
        anchors: watch::Receiver<Arc<Anchors>>,
        equals: Arc<PeerAnchors>,
        clock: Clock,
        tunnels: QuicSettings,
    ) -> Self {
        Self {
            rule: Mutex::new(DialBackRule::new(false)),
            dials: Semaphore::new(DIALS_MAX),
            socket: OnceCell::new(),
            tunnels,
            identity,
            anchors,
            equals,
            clock,
        }
    }

    /// Answers a satellite's request for a proof.
    pub async fn answer(&self, peer: &PeerRecord, source: IpAddr, allow_private: bool, body: &[u8]) -> Reply {
        let request: DialBackRequest = match serde_json::from_slice(body) {
            Ok(request) => request,
            Err(_) => {
                return Reply::failure(
                    StatusCode::BAD_REQUEST,
                    "the request is not the JSON object with `endpoint` and `nonce` that a dial-back is",
                );
            }
        };
        let Some(feature) = dial_back_feature(&request.nonce) else {
            return bad_nonce();
        };
        let prove = |endpoint| async move {
            let socket = QuicEndpoint::client(QuicSettings::default()).map_err(no_socket)?;
            self.prove(&socket, peer, endpoint, feature).await
        };
        let (endpoint, nonce) = (request.endpoint, &request.nonce);
        let call = |endpoint| async move { self.call(peer, endpoint, nonce).await };
        let found = match request.over {
            DialBackOver::Quic => self.dial(peer, source, allow_private, endpoint, prove).await,
            DialBackOver::Https => self.dial(peer, source, allow_private, endpoint, call).await,
        };
        let proof = |why_not: Option<&str>| {
            Reply::data(&json!({
                "endpoint": endpoint,
                "reached": why_not.is_none(),
                "error": why_not,
                "over": request.over,
            }))
        };
        match found {
            Ok(Ok(())) => proof(None),
            Ok(Err(NotReached::Unreachable(why))) => proof(Some(&why)),
            Ok(Err(NotReached::Unable(why))) => unavailable(&why),
            Err(refusal) => refusal,
        }
    }

    /// Dials a satellite for the tunnel that it asks for, or words the answer why there is none.
    pub async fn dial_for_tunnel(
        &self,
        peer: &PeerRecord,
        source: IpAddr,
        allow_private: bool,
        body: &[u8],
    ) -> Result<Reached, Reply> {
        let request: DirectRequest = serde_json::from_slice(body).map_err(|_| {
            Reply::failure(
                StatusCode::BAD_REQUEST,
                "the request is not the JSON object with `endpoint`, `nonce` and `bridge` that asks for a direct tunnel",
            )
        })?;
        let call = DirectCall::asked(&request.nonce).ok_or_else(bad_nonce)?;
        if DirectCall::again(&request.bridge).is_none() {
            return Err(Reply::failure(
                StatusCode::UNPROCESSABLE_ENTITY,
                "bridge is the host-bridge's name and port",
            ));
        }
        let connect =
            |endpoint| async move { self.connect(self.shared_socket().await?, peer, endpoint).await };
        match self
            .dial(peer, source, allow_private, request.endpoint, connect)
            .await?
        {
            Ok(transport) => Ok(Reached {
                transport,
                redial: Redial {
                    peer: peer.id,
                    endpoint: request.endpoint,
                    bridge: request.bridge,
                },
                call,
            }),
            Err(NotReached::Unreachable(why)) => Err(reply(request.endpoint, Some(&why))),
            Err(NotReached::Unable(why)) => Err(unavailable(&why)),
        }
    }

    /// Dials a satellite again where it was reached.
    pub async fn redial(
        &self,
        peer: &PeerRecord,
        allow_private: bool,
        endpoint: SocketAddr,
    ) -> Result<Arc<dyn Transport>, String> {
        let connect =
            |endpoint| async move { self.connect(self.shared_socket().await?, peer, endpoint).await };
        // It was there, so that is where it comes from.
        let source = endpoint.ip().to_canonical();
        match self.dial(peer, source, allow_private, endpoint, connect).await {
            Ok(Ok(transport)) => Ok(transport),
            Ok(Err(NotReached::Unreachable(why) | NotReached::Unable(why))) => Err(why),
            Err(_) => Err("the rule for dials does not allow it now".to_owned()),
        }
    }

    /// One dial under the rule and within its time, or the answer why it is not made.
    async fn dial<T, F>(
        &self,
        peer: &PeerRecord,
        source: IpAddr,
        allow_private: bool,
        endpoint: SocketAddr,
        dial: impl FnOnce(SocketAddr) -> F,
    ) -> Result<Result<T, NotReached>, Reply>
    where
        F: Future<Output = Result<T, NotReached>>,
    {
        let address = endpoint.ip().to_canonical();
        let Ok(from) = source_towards(address) else {
            return Err(unavailable("this host-bridge has no route to that address"));
        };
        let asked = Asked {
            peer: peer.id,
            source,
            endpoint,
            own: from == address,
        };
        if let Err(refusal) = self.admit(asked, allow_private) {
            debug!(peer = %peer.id, %endpoint, %refusal, "a dial was refused");
            return Err(refused(refusal));
        }
        let Ok(_place) = self.dials.try_acquire() else {
            return Err(unavailable(
                "this host-bridge dials as many satellites as it can at the moment",
            ));
        };
        let dialled = dial(SocketAddr::new(address, endpoint.port()));
        let found = tokio::time::timeout(DIAL_TIME, dialled)
            .await
            .unwrap_or_else(|_| {
                let why = format!("nothing answered within {} s", DIAL_TIME.as_secs());
                Err(NotReached::Unreachable(why))
            });
        // Every satellite asks every few minutes.
        debug!(peer = %peer.id, %endpoint, why = ?found.as_ref().err(), "dialled a satellite");
        Ok(found)
    }

    fn admit(&self, asked: Asked, allow_private: bool) -> Result<(), NotDialled> {
        let mut rule = self.rule.lock().unwrap_or_else(PoisonError::into_inner);
        rule.set_allow_private(allow_private);
        rule.admit(asked, self.clock.now())
    }

    async fn shared_socket(&self) -> Result<&QuicEndpoint, NotReached> {
        let bind = async || QuicEndpoint::shared_client(self.tunnels);
        self.socket.get_or_try_init(bind).await.map_err(no_socket)
    }

    /// Shakes hands with the very peer.
    async fn connect(
        &self,
        socket: &QuicEndpoint,
        peer: &PeerRecord,
        endpoint: SocketAddr,
    ) -> Result<Arc<dyn Transport>, NotReached> {
        let failures = FailureRecord::default();
        let config = self.tls(peer, &[TUNNEL_ALPN], &failures)?;
        let transport = socket
            .dial(endpoint, &endpoint.ip().to_string(), config, &failures)
            .await
            .map_err(unreachable)?;
        self.check_peer(peer, transport.peer_certificate().as_ref())?;
        Ok(transport)
    }

    fn tls(
        &self,
        peer: &PeerRecord,
        alpn: &[&[u8]],
        failures: &FailureRecord,
    ) -> Result<ClientConfig, NotReached> {
        let clock = self.clock.clone();
        let time: TimeSource = Arc::new(move || clock.trusted().now);
        let own = self.equals.get(peer.id);
        bridge_client_config(
            self.identity.clone(),
            own.map_or_else(|| self.anchors.clone(), |own| watch::channel(own).1),
            alpn,
            time,
            failures.clone(),
        )
        .map_err(|error| NotReached::Unable(error_chain(&error)))
    }

    /// Whether what was shown is this very peer's certificate, and in force.
    fn check_peer(&self, peer: &PeerRecord, shown: Option<&CertificateDer<'_>>) -> Result<(), NotReached> {
        let now = self.clock.trusted().now;
        let shown = shown.and_then(|der| CallerCertificate::read(der, now));
        let certifies_itself = self.equals.get(peer.id).is_some();
        let is_this_peer = shown.is_some_and(|shown| {
            shown.peer == Some(peer.id) && (certifies_itself || is_enrolled(peer, shown.key))
        });
        if is_this_peer {
            Ok(())
        } else {
            Err(NotReached::Unreachable(
                "another satellite answered there".to_owned(),
            ))
        }
    }

    async fn prove(
        &self,
        socket: &QuicEndpoint,
        peer: &PeerRecord,
        endpoint: SocketAddr,
        feature: String,
    ) -> Result<(), NotReached> {
        let transport = self.connect(socket, peer, endpoint).await?;
        let hello = hello(feature.clone());
        let greeted = Tunnel::dial(transport, hello, TunnelSettings::default(), self.clock.clone()).await;
        let (tunnel, welcome, driver) = greeted.map_err(unreachable)?;
        let goodbye = Goodbye {
            reason: GoodbyeReason::Done,
            message: String::new(),
            retry_after_millis: 0,
        };
        tokio::join!(driver.run(), tunnel.close(goodbye));
        if welcome.features.contains(&feature) {
            Ok(())
        } else {
            Err(NotReached::Unreachable(
                "what answered there does not know of this proof".to_owned(),
            ))
        }
    }
}

/// What this side says where it has dialled a satellite.
pub(super) fn hello(feature: String) -> Hello {
    Hello {
        version: TUNNEL_VERSION,
        agent: AGENT.to_owned(),
        features: vec![feature],
    }
}

/// The answer to a request that was understood.
pub(super) fn reply(endpoint: SocketAddr, why_not: Option<&str>) -> Reply {
    Reply::data(&json!({ "endpoint": endpoint, "reached": why_not.is_none(), "error": why_not }))
}

fn unreachable(error: impl std::error::Error + 'static) -> NotReached {
    NotReached::Unreachable(error_chain(&error))
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn no_socket(error: BindError) -> NotReached {
    NotReached::Unable(error_chain(&error))
}

fn bad_nonce() -> Reply {
    Reply::failure(StatusCode::UNPROCESSABLE_ENTITY, "nonce is 32 hex digits")
}

fn refused(refusal: NotDialled) -> Reply {
    let status = match refusal {
        NotDialled::Scope(..) | NotDialled::Own(_) | NotDialled::LowPort(_) => StatusCode::FORBIDDEN,
        NotDialled::TooOften { after } => {
            return Reply::failure(StatusCode::TOO_MANY_REQUESTS, &refusal.to_string()).retry_after(after);
        }
    };
    Reply::failure(status, &refusal.to_string())
}

fn unavailable(why: &str) -> Reply {
    Reply::failure(StatusCode::SERVICE_UNAVAILABLE, why).retry_after(BUSY_RETRY)
}
