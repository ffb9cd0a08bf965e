//! Where a satellite can be dialled: a UDP socket that takes the parent's bridge alone, by both
//! certificates, and answers the proofs that were asked for.
//!
//! The socket is open to the world once a port leads to it. Whoever has no certificate of the
//! parent's bridge ends in the handshake; few handshakes are made at once, and each is bounded in
//! time.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tokio::sync::{Semaphore, watch};

use crate::base::id::SessionId;
use crate::base::limit::{error_chain, foreign_text};
use crate::contract::invitation::ParentTrust;
use crate::identity::anchors::{Anchors, AnchorsError};
use crate::identity::certificate::{CertificateChain, PemError};
use crate::identity::key::{InvalidPrivateKey, PrivateKey};
use crate::identity::reversed::{BridgeTrust, satellite_server_config};
use crate::identity::tls::{TimeSource, TlsConfigError, TlsIdentity, TlsIdentityError};
use crate::machine::membership::StoredIdentity;
use crate::process::clock::Clock;
use crate::process::entropy;
use crate::process::supervisor::TaskScope;
use crate::tunnel::quic::{BindError, IncomingConnection, QuicEndpoint, QuicSettings};
use crate::tunnel::{Tunnel, TunnelSettings};
use crate::wire::{RefusalCode, Refused, TUNNEL_ALPN, Welcome, dial_back_feature};

/// Connections from outside that are looked at at once, in number: a proof of each family, a
/// repetition of each, and room. More are refused; they cost memory that a small box needs.
const CONNECTIONS_MAX: usize = 16;

/// Proofs that may be awaited at once, in number: one of each family, and room.
const PROOFS_MAX: usize = 8;

/// Why the listener cannot take bridges.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The key.
    #[error("the stored key cannot be used")]
    Key(#[from] InvalidPrivateKey),
    /// The certificate.
    #[error("the stored certificate cannot be used")]
    Certificate(#[from] PemError),
    /// The anchors.
    #[error("the stored authorities cannot be used")]
    Anchors(#[from] AnchorsError),
    /// The two together.
    #[error(transparent)]
    Pair(#[from] TlsIdentityError),
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
    /// The features by which awaited proofs are known, and whether each has come.
    awaited: Arc<Mutex<BTreeSet<String>>>,
    clock: Clock,
    agent: &'static str,
}

/// A proof that is awaited until this is dropped.
#[derive(Debug)]
pub struct AwaitedProof {
    awaited: Arc<Mutex<BTreeSet<String>>>,
    feature: String,
}

impl Drop for AwaitedProof {
    fn drop(&mut self) {
        self.awaited
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.feature);
    }
}

impl Listener {
    /// Takes the port, for both families where the box has them; 0 is the system's choice. Nobody
    /// is taken in before [`serve`](Self::serve).
    pub fn bind(port: u16, clock: Clock, agent: &'static str) -> Result<Self, BindError> {
        let address = (Ipv6Addr::UNSPECIFIED, port).into();
        Ok(Self {
            socket: QuicEndpoint::unserved(address, QuicSettings::default())?,
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
        let key = PrivateKey::from_pkcs8(identity.pkcs8.clone())?;
        let chain = CertificateChain::from_pem(&identity.certificate.cert_pem)?;
        let bridge = BridgeTrust {
            trust,
            learned: Some(Anchors::from_pem(&identity.certificate.ca_chain_pem)?),
            names,
        };
        let shown = watch::channel(Arc::new(TlsIdentity::new(&chain, &key)?)).1;
        let clock = self.clock.clone();
        let time: TimeSource = Arc::new(move || clock.trusted().now);
        let tls = satellite_server_config(shown, &bridge, &[TUNNEL_ALPN], time)?;
        self.socket.serve(tls)?;
        Ok(())
    }

    /// Awaits a proof with this nonce; `None` when it is none, or when too many are awaited.
    pub fn await_proof(&self, nonce: &str) -> Option<AwaitedProof> {
        let feature = dial_back_feature(nonce)?;
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        if awaited.len() >= PROOFS_MAX {
            return None;
        }
        awaited.insert(feature.clone());
        Some(AwaitedProof {
            awaited: Arc::clone(&self.awaited),
            feature,
        })
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
        self.socket.close();
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
        let decide = |hello: &crate::wire::Hello| {
            let awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
            match hello.features.iter().find(|feature| awaited.contains(*feature)) {
                Some(feature) => Ok(self.welcome(address, feature.clone())),
                None => Err(Refused {
                    code: RefusalCode::NotAdmitted,
                    message: "this satellite dials its host-bridge itself; only proofs are taken here"
                        .to_owned(),
                    retry_after_millis: 0,
                }),
            }
        };
        match Tunnel::accept(transport, TunnelSettings::default(), self.clock.clone(), decide).await {
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
