//! Where a satellite can be dialled: a UDP socket that takes the parent's bridge alone, by both
//! certificates, answers the proofs that were asked for, and hands out the calls for a tunnel.
//!
//! The socket is open to the world once a port leads to it. Whoever has no certificate of the
//! parent's bridge ends in the handshake; few handshakes are made at once, and each is bounded in
//! time.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::dial::certificate_time;
use super::presented::{Presented, PresentedError};
use crate::base::id::SessionId;
use crate::base::limit::{error_chain, foreign_text};
use crate::base::ordered_map::OrderedMap;
use crate::contract::invitation::ParentTrust;
use crate::identity::reversed::{BridgeTrust, satellite_server_config};
use crate::identity::tls::TlsConfigError;
use crate::machine::membership::StoredIdentity;
use crate::process::clock::Clock;
use crate::process::entropy;
use crate::process::supervisor::TaskScope;
use crate::tunnel::quic::{BindError, IncomingConnection, QuicEndpoint, QuicSettings};
use crate::tunnel::{Greeted, TunnelSettings};
use crate::wire::{DirectCall, Hello, RefusalCode, Refused, TUNNEL_ALPN, Welcome, dial_back_feature};

/// Connections from outside that are looked at at once, in number: a proof of each family, a
/// repetition of each, and room. More are refused; they cost memory that a small box needs.
const CONNECTIONS_MAX: usize = 16;

/// Proofs that may be awaited at once, in number: one of each family, and room.
const PROOFS_MAX: usize = 8;

/// Calls that may be awaited at once, in number: one of each host-bridge, and room.
const CALLS_MAX: usize = 16;

/// Calls that nobody has asked for and that may wait to be looked at, in number; more are refused.
const UNASKED_MAX: usize = 4;

/// Why the listener cannot take bridges.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The identity to be shown.
    #[error("the stored identity cannot be used")]
    Identity(#[from] PresentedError),
    /// The TLS settings.
    #[error("cannot prepare to be dialled")]
    Tls(#[from] TlsConfigError),
    /// The socket.
    #[error(transparent)]
    Quic(#[from] BindError),
}

/// See the module's text. Clones are the same listener.
#[derive(Debug, Clone)]
pub struct Listener {
    socket: QuicEndpoint,
    awaited: Arc<Mutex<Awaited>>,
    clock: Clock,
    agent: &'static str,
}

/// What bridges are to come for.
#[derive(Debug, Default)]
struct Awaited {
    /// The features by which proofs are known.
    proofs: BTreeSet<String>,
    /// Calls for a tunnel, by their nonce.
    calls: OrderedMap<String, oneshot::Sender<Greeted>>,
    /// Who takes calls that nobody has asked for.
    unasked: Option<mpsc::Sender<Unasked>>,
}

/// A call that a bridge makes by itself: it has lost all tunnels to this satellite.
#[derive(Debug)]
pub struct Unasked {
    /// The name by which this side knows the bridge.
    pub bridge: String,
    /// To be greeted, or refused.
    pub greeted: Greeted,
}

/// A proof that is awaited until this is dropped.
#[derive(Debug)]
pub struct AwaitedProof {
    awaited: Arc<Mutex<Awaited>>,
    feature: String,
}

impl Drop for AwaitedProof {
    fn drop(&mut self) {
        lock(&self.awaited).proofs.remove(&self.feature);
    }
}

/// A call for a tunnel that is awaited until this is dropped.
#[derive(Debug)]
pub struct AwaitedCall {
    awaited: Arc<Mutex<Awaited>>,
    nonce: String,
    called: oneshot::Receiver<Greeted>,
}

impl AwaitedCall {
    /// The bridge's call: to be greeted. `None` when the listener is gone. Cancel safe.
    pub async fn called(&mut self) -> Option<Greeted> {
        (&mut self.called).await.ok()
    }
}

impl Drop for AwaitedCall {
    fn drop(&mut self) {
        lock(&self.awaited).calls.remove(&self.nonce);
    }
}

fn lock(awaited: &Mutex<Awaited>) -> MutexGuard<'_, Awaited> {
    // Each change is complete before anything that could panic.
    awaited.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Listener {
    /// Takes the port, for both families where the box has them; 0 is the system's choice. Nobody
    /// is taken in before [`serve`](Self::serve).
    pub fn bind(
        port: u16,
        settings: QuicSettings,
        clock: Clock,
        agent: &'static str,
    ) -> Result<Self, BindError> {
        let address = (Ipv6Addr::UNSPECIFIED, port).into();
        Ok(Self {
            socket: QuicEndpoint::unserved(address, settings)?,
            awaited: Arc::default(),
            clock,
            agent,
        })
    }

    /// Where it listens.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_address()
    }

    /// From now on, takes bridges of this parent that are dialled under these names, and shows
    /// this identity. Reads the system's roots from files where the trust says so: blocking.
    pub fn serve(
        &self,
        identity: &StoredIdentity,
        trust: ParentTrust,
        names: Vec<String>,
    ) -> Result<(), ListenError> {
        let (shown, learned) = Presented::read(identity)?.fixed();
        let bridge = BridgeTrust {
            trust,
            learned: Some(learned),
            names,
        };
        let time = certificate_time(&self.clock);
        let tls = satellite_server_config(shown, &bridge, &[TUNNEL_ALPN], time)?;
        self.socket.serve(tls)?;
        Ok(())
    }

    /// Awaits a proof with this nonce; `None` when it is none, or when too many are awaited.
    pub fn await_proof(&self, nonce: &str) -> Option<AwaitedProof> {
        let feature = dial_back_feature(nonce)?;
        let proofs = &mut lock(&self.awaited).proofs;
        if proofs.len() >= PROOFS_MAX {
            return None;
        }
        proofs.insert(feature.clone());
        Some(AwaitedProof {
            awaited: Arc::clone(&self.awaited),
            feature,
        })
    }

    /// Awaits a call for a tunnel with this nonce; `None` as for a proof.
    pub fn await_call(&self, nonce: &str) -> Option<AwaitedCall> {
        let DirectCall::Asked(nonce) = DirectCall::asked(nonce)? else {
            return None;
        };
        let calls = &mut lock(&self.awaited).calls;
        if calls.len() >= CALLS_MAX {
            return None;
        }
        let (hand_over, called) = oneshot::channel();
        calls.insert(nonce.clone(), hand_over);
        Some(AwaitedCall {
            awaited: Arc::clone(&self.awaited),
            nonce,
            called,
        })
    }

    /// Calls that nobody has asked for, from now on.
    pub fn unasked(&self) -> mpsc::Receiver<Unasked> {
        let (hand_over, calls) = mpsc::channel(UNASKED_MAX);
        lock(&self.awaited).unasked = Some(hand_over);
        calls
    }

    /// Takes who comes until the scope is cancelled.
    pub async fn run(self, scope: TaskScope) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let incoming = tokio::select! {
                () = scope.cancelled() => break,
                incoming = self.socket.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            // Without a place the dialer is refused by the drop.
            if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                let listener = self.clone();
                scope.spawn_until_cancelled("dialled from outside", async move {
                    listener.take(incoming).await;
                    drop(place);
                });
            }
        }
        // Tunnels that were handed out take their own leave.
        self.socket.wait_idle().await;
    }

    async fn take(&self, incoming: IncomingConnection) {
        let address = incoming.remote_address();
        let transport = match incoming.handshake().await {
            Ok(transport) => transport,
            Err(reason) => {
                tracing::debug!(%address, %reason, "somebody from outside was not let in");
                return;
            }
        };
        let settings = TunnelSettings::default();
        let greeted = match Greeted::hear(transport, &settings).await {
            Ok(greeted) => greeted,
            Err(error) => {
                tracing::debug!(%address, error = %error_chain(&error), "a greeting from outside came to nothing");
                return;
            }
        };
        match self.hand_over(greeted) {
            None => tracing::debug!(%address, "called from outside"),
            Some(greeted) => self.answer(greeted, address).await,
        }
    }

    /// To whoever awaits it; what nobody awaits comes back.
    fn hand_over(&self, greeted: Greeted) -> Option<Greeted> {
        match DirectCall::read(&greeted.hello().features) {
            Some(DirectCall::Asked(nonce)) => {
                let Some(awaiting) = lock(&self.awaited).calls.remove(&nonce) else {
                    return Some(greeted);
                };
                awaiting.send(greeted).err()
            }
            Some(DirectCall::Again(bridge)) => {
                let Some(taking) = lock(&self.awaited).unasked.clone() else {
                    return Some(greeted);
                };
                let call = Unasked { bridge, greeted };
                taking.try_send(call).err().map(|full| full.into_inner().greeted)
            }
            None => Some(greeted),
        }
    }

    async fn answer(&self, greeted: Greeted, address: SocketAddr) {
        let decide = |hello: &Hello| {
            let proofs = &lock(&self.awaited).proofs;
            match hello.features.iter().find(|feature| proofs.contains(*feature)) {
                Some(feature) => Ok(self.welcome(address, feature.clone())),
                None => Err(Refused {
                    code: RefusalCode::NotAdmitted,
                    message: "this satellite takes here what it has asked for, and nothing else".to_owned(),
                    retry_after_millis: 0,
                }),
            }
        };
        let settings = TunnelSettings::default();
        match greeted.answer(settings, self.clock.clone(), decide).await {
            Ok((_, hello, driver)) => {
                tracing::debug!(%address, agent = foreign_text(&hello.agent), "proven from outside");
                // The bridge says goodbye, or liveness ends it.
                driver.run().await;
            }
            Err(error) => {
                tracing::debug!(%address, error = %error_chain(&error), "a greeting from outside came to nothing");
            }
        }
    }

    fn welcome(&self, address: SocketAddr, feature: String) -> Welcome {
        let now = self.clock.trusted().now;
        Welcome {
            session: SessionId::new_v7(now, entropy::id_entropy()),
            agent: self.agent.to_owned(),
            keepalive_millis: 0,
            max_streams: 1,
            observed_address: address.to_string(),
            unix_seconds: now.as_seconds(),
            features: vec![feature],
        }
    }
}
