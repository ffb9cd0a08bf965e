//! Proves to a satellite that it can be reached: dials the endpoint that it asks for, by QUIC or HTTPS,
//! shakes hands with both certificates, shows the nonce that it was given, and says what it found.

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

use super::federation_api::{CallerCertificate, is_enrolled};
use super::registry::record::PeerRecord;
use super::reply::Reply;
use crate::base::limit::error_chain;
use crate::base::time::UnixTime;
use crate::contract::message::{DialBackOver, DialBackRequest};
use crate::identity::anchors::Anchors;
use crate::identity::reversed::bridge_client_config;
use crate::identity::tls::{IdentityWatch, TimeSource, TlsConfigError};
use crate::identity::tls_failure::FailureRecord;
use crate::process::clock::Clock;
use crate::reach::default_route::source_towards;
use crate::tunnel::quic::{QuicEndpoint, QuicSettings};
use crate::tunnel::{Tunnel, TunnelSettings};
use crate::wire::{Goodbye, GoodbyeReason, Hello, TUNNEL_ALPN, TUNNEL_VERSION, dial_back_feature};
use rule::{Asked, DialBackRule, NotDialled};

/// Time for one dial, with handshake and greeting: two repetitions of a lost first packet.
const DIAL_TIME: Duration = Duration::from_secs(4);

/// Dials under way at once, in number. Each has a socket's share and a handshake's memory.
const DIALS_MAX: usize = 64;

/// When to come back where there is no room.
const BUSY_RETRY: Duration = Duration::from_secs(10);

/// How this program calls itself to satellites.
const AGENT: &str = concat!("powernode-host-bridge/", env!("CARGO_PKG_VERSION"));

/// Dials back.
pub struct DialBack {
    rule: Mutex<DialBackRule>,
    dials: Semaphore,
    socket: OnceCell<QuicEndpoint>,
    identity: IdentityWatch,
    anchors: watch::Receiver<Arc<Anchors>>,
    clock: Clock,
}

impl std::fmt::Debug for DialBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DialBack").finish_non_exhaustive()
    }
}

/// What a dial found.
enum Found {
    /// The very satellite that asked.
    Reached,
    /// Not it, and why.
    Unreachable(String),
    /// The bridge could not try.
    Unable(String),
}

impl DialBack {
    /// Shows the server's identity and knows satellites by the authority.
    pub fn new(identity: IdentityWatch, anchors: watch::Receiver<Arc<Anchors>>, clock: Clock) -> Self {
        Self {
            rule: Mutex::new(DialBackRule::new(false)),
            dials: Semaphore::new(DIALS_MAX),
            socket: OnceCell::new(),
            identity,
            anchors,
            clock,
        }
    }

    /// Answers a satellite's request.
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
            return Reply::failure(StatusCode::UNPROCESSABLE_ENTITY, "nonce is 32 hex digits");
        };
        let endpoint = request.endpoint;
        let address = endpoint.ip().to_canonical();
        let Ok(from) = source_towards(address) else {
            return unavailable("this host-bridge has no route to that address");
        };
        let asked = Asked {
            peer: peer.id,
            source,
            endpoint,
            own: from == address,
        };
        if let Err(refusal) = self.admit(asked, allow_private) {
            debug!(peer = %peer.id, %endpoint, %refusal, "a dial-back was refused");
            return refused(refusal);
        }
        let Ok(_place) = self.dials.try_acquire() else {
            return unavailable("this host-bridge proves as many endpoints as it can at the moment");
        };
        let dial = async {
            let endpoint = SocketAddr::new(address, endpoint.port());
            match request.over {
                DialBackOver::Quic => self.dial(peer, endpoint, feature).await,
                DialBackOver::Https => self.call(peer, endpoint, &request.nonce).await,
            }
        };
        let found = tokio::time::timeout(DIAL_TIME, dial).await.unwrap_or_else(|_| {
            Found::Unreachable(format!("nothing answered within {} s", DIAL_TIME.as_secs()))
        });
        let (reached, why) = match found {
            Found::Reached => (true, None),
            Found::Unreachable(why) => (false, Some(why)),
            Found::Unable(why) => return unavailable(&why),
        };
        // Every satellite asks every few minutes.
        debug!(peer = %peer.id, %endpoint, reached, why, "dialled a satellite back");
        Reply::data(&json!({ "endpoint": endpoint, "reached": reached, "error": why, "over": request.over }))
    }

    fn admit(&self, asked: Asked, allow_private: bool) -> Result<(), NotDialled> {
        let mut rule = self.rule.lock().unwrap_or_else(PoisonError::into_inner);
        rule.set_allow_private(allow_private);
        rule.admit(asked, self.clock.now())
    }

    fn tls(&self, alpn: &[&[u8]], failures: &FailureRecord) -> Result<ClientConfig, TlsConfigError> {
        let clock = self.clock.clone();
        let time: TimeSource = Arc::new(move || clock.trusted().now);
        bridge_client_config(
            self.identity.clone(),
            self.anchors.clone(),
            alpn,
            time,
            failures.clone(),
        )
    }

    async fn call(&self, peer: &PeerRecord, endpoint: SocketAddr, nonce: &str) -> Found {
        match self.tls(https::ALPN, &FailureRecord::default()) {
            Ok(config) => {
                let now = self.clock.trusted().now;
                https::call((peer, now), endpoint, config, nonce).await
            }
            Err(error) => Found::Unable(error_chain(&error)),
        }
    }

    async fn dial(&self, peer: &PeerRecord, endpoint: SocketAddr, feature: String) -> Found {
        let bind = async || QuicEndpoint::client(QuicSettings::default());
        let socket = match self.socket.get_or_try_init(bind).await {
            Ok(socket) => socket,
            Err(error) => return Found::Unable(error_chain(&error)),
        };
        let failures = FailureRecord::default();
        let config = match self.tls(&[TUNNEL_ALPN], &failures) {
            Ok(config) => config,
            Err(error) => return Found::Unable(error_chain(&error)),
        };
        let transport = match socket
            .dial(endpoint, &endpoint.ip().to_string(), config, &failures)
            .await
        {
            Ok(transport) => transport,
            Err(error) => return Found::Unreachable(error_chain(&error)),
        };
        if !is_this_peer(peer, transport.peer_certificate().as_ref(), self.clock.trusted().now) {
            return Found::Unreachable("another satellite answered there".to_owned());
        }
        let hello = Hello {
            version: TUNNEL_VERSION,
            agent: AGENT.to_owned(),
            features: vec![feature.clone()],
        };
        match Tunnel::dial(transport, hello, TunnelSettings::default(), self.clock.clone()).await {
            Ok((tunnel, welcome, driver)) => {
                let goodbye = Goodbye {
                    reason: GoodbyeReason::Done,
                    message: String::new(),
                    retry_after_millis: 0,
                };
                tokio::join!(driver.run(), tunnel.close(goodbye));
                if welcome.features.contains(&feature) {
                    Found::Reached
                } else {
                    Found::Unreachable("what answered there does not know of this proof".to_owned())
                }
            }
            Err(error) => Found::Unreachable(error_chain(&error)),
        }
    }
}

/// Whether what was shown is this very peer's certificate, and in force.
fn is_this_peer(peer: &PeerRecord, shown: Option<&CertificateDer<'_>>, now: UnixTime) -> bool {
    let shown = shown.and_then(|der| CallerCertificate::read(der, now));
    shown.is_some_and(|shown| shown.peer == Some(peer.id) && is_enrolled(peer, shown.key))
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
