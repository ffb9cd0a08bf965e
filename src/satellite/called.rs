//! One dial of the rung `direct`: asks the host-bridge, over the tunnel that carries, to dial an endpoint of
//! this box, awaits its call at the listener, and greets there; or greets a bridge that has called by itself. When
//! that is done is the ladder's decision.

use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;

use super::parent_client::{self, ExchangeError};
use crate::base::limit::{error_chain, foreign_text};
use crate::contract::invitation::HostPort;
use crate::contract::message::{ContractAnswer, DialBackAnswer, DirectRequest};
use crate::machine::ladder::{DialFailure, DialTarget, Setback};
use crate::machine::membership::Parent;
use crate::process::clock::Clock;
use crate::process::entropy;
use crate::reach::dial::{AGENT, DIAL_TIMEOUT, Established};
use crate::reach::listen::Listener;
use crate::tunnel::{Greeted, GreetingError, Tunnel, TunnelSettings};
use crate::wire::{Hello, TUNNEL_VERSION};

/// With what the bridge is asked, and what is said to it when it calls.
pub(super) struct Approach {
    /// The host-bridge, by the name that this side has for it.
    pub(super) bridge: HostPort,
    /// Over which it is asked.
    pub(super) carrier: Tunnel,
    /// For the request's head.
    pub(super) parent: Parent,
    /// Where it can dial this box: proven, the preferred one first.
    pub(super) endpoints: Vec<SocketAddr>,
    /// Where its call is awaited.
    pub(super) listener: Listener,
    /// Of the hello.
    pub(super) features: Vec<String>,
    /// Limits of the tunnel.
    pub(super) settings: TunnelSettings,
    /// The time.
    pub(super) clock: Clock,
}

/// Why it came to nothing.
#[derive(Debug, Error)]
pub(super) enum DirectError {
    /// The bridge is of an earlier build.
    #[error("this host-bridge dials no satellites; one of a later build does")]
    NotOffered,
    /// The listener shows the present certificate, and a tunnel is to prove another.
    #[error("a renewed certificate is to be proven first, over a tunnel that this side dials")]
    Renewing,
    /// Nothing to dial.
    #[error("no way in from outside is proven")]
    NoWayIn,
    /// The carrier went meanwhile.
    #[error("the tunnel over which the host-bridge is asked has gone")]
    NoCarrier,
    /// The listener's bound.
    #[error("too many host-bridges are awaited at the moment")]
    TooMany,
    /// No answer.
    #[error("the host-bridge could not be asked to dial {endpoint}")]
    NotAsked {
        /// What.
        endpoint: SocketAddr,
        /// Why.
        #[source]
        source: ExchangeError,
    },
    /// It did not try.
    #[error("the host-bridge does not dial {endpoint} (HTTP {status}): {why}")]
    Declined {
        /// What.
        endpoint: SocketAddr,
        /// How.
        status: u16,
        /// In its words.
        why: String,
        /// When to ask again.
        retry_after: Option<Duration>,
    },
    /// It tried.
    #[error("the host-bridge did not reach {endpoint}: {why}")]
    NotReached {
        /// What.
        endpoint: SocketAddr,
        /// In its words.
        why: String,
    },
    /// It came, and no tunnel came of it.
    #[error("the host-bridge has dialled {endpoint}, but the greeting came to nothing")]
    Greeting {
        /// Where.
        endpoint: SocketAddr,
        /// Why.
        #[source]
        source: GreetingError,
    },
    /// The same, where it had not been asked.
    #[error("the host-bridge has dialled by itself, but the greeting came to nothing")]
    Unasked(#[source] GreetingError),
    /// Neither call nor answer.
    #[error("the host-bridge did not dial {endpoint} within {} s", DIAL_TIMEOUT.as_secs())]
    TimedOut {
        /// What.
        endpoint: SocketAddr,
    },
}

impl DirectError {
    /// For the ladder.
    pub(super) fn for_ladder(&self) -> DialFailure {
        let setback = match self {
            Self::NotOffered => Setback::Persistent,
            Self::Declined {
                retry_after: Some(told),
                ..
            } => Setback::RetryAfter(*told),
            _ => Setback::Transient,
        };
        DialFailure {
            setback,
            // It says nothing of the other ways.
            answered: false,
            why: error_chain(self),
        }
    }
}

/// A tunnel that the bridge has dialled.
pub(super) struct Called {
    /// The bridge, and where it dialled from.
    pub(super) target: DialTarget,
    /// What it dialled.
    pub(super) endpoint: SocketAddr,
    /// The tunnel.
    pub(super) established: Established,
}

/// A call that the bridge has made by itself, and what is said to it.
pub(super) struct UnaskedCall {
    /// The host-bridge, by the name that this side has for it.
    pub(super) bridge: HostPort,
    /// The call.
    pub(super) greeted: Greeted,
    /// Of the hello.
    pub(super) features: Vec<String>,
    /// Limits of the tunnel.
    pub(super) settings: TunnelSettings,
    /// The time.
    pub(super) clock: Clock,
}

/// Greets a bridge that has called by itself.
pub(super) async fn answer(call: UnaskedCall) -> Result<(DialTarget, Established), DirectError> {
    let target = DialTarget {
        host: call.bridge.host().to_owned(),
        address: call.greeted.remote_address(),
    };
    match greet(call.greeted, call.features, call.settings, call.clock).await {
        Ok(established) => Ok((target, established)),
        Err(source) => Err(DirectError::Unasked(source)),
    }
}

/// Has the endpoints dialled, one after the other, until one has given a tunnel.
pub(super) async fn connect(approach: &Approach) -> Result<Called, DirectError> {
    let mut failed = DirectError::NoWayIn;
    for endpoint in &approach.endpoints {
        let called = tokio::time::timeout(DIAL_TIMEOUT, call(approach, *endpoint)).await;
        match called.unwrap_or(Err(DirectError::TimedOut { endpoint: *endpoint })) {
            Ok(called) => return Ok(called),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn call(approach: &Approach, endpoint: SocketAddr) -> Result<Called, DirectError> {
    let nonce = format!("{:032x}", u128::from_ne_bytes(entropy::bytes()));
    let mut awaited = approach.listener.await_call(&nonce).ok_or(DirectError::TooMany)?;
    let request = DirectRequest {
        endpoint,
        nonce,
        bridge: approach.bridge.to_string(),
    };
    let mut asked = std::pin::pin!(parent_client::direct(
        &approach.carrier,
        &approach.parent,
        &request
    ));
    let mut answered = false;
    let greeted = loop {
        tokio::select! {
            biased;
            called = awaited.called() => break called.ok_or(DirectError::NoWayIn)?,
            answer = &mut asked, if !answered => {
                said_yes(endpoint, answer)?;
                answered = true;
            }
        }
    };
    let address = greeted.remote_address();
    let (features, clock) = (approach.features.clone(), approach.clock.clone());
    let established = greet(greeted, features, approach.settings, clock).await;
    let established = established.map_err(|source| DirectError::Greeting { endpoint, source })?;
    let host = approach.bridge.host().to_owned();
    Ok(Called {
        target: DialTarget { host, address },
        endpoint,
        established,
    })
}

async fn greet(
    greeted: Greeted,
    features: Vec<String>,
    settings: TunnelSettings,
    clock: Clock,
) -> Result<Established, GreetingError> {
    let hello = Hello {
        version: TUNNEL_VERSION,
        agent: AGENT.to_owned(),
        features,
    };
    let (tunnel, welcome, driver) = greeted.greet(hello, settings, clock).await?;
    Ok(Established {
        tunnel,
        driver,
        welcome,
    })
}

/// Whether the bridge says that it has dialled: its call is there by then.
fn said_yes(
    endpoint: SocketAddr,
    answer: Result<ContractAnswer<DialBackAnswer>, ExchangeError>,
) -> Result<(), DirectError> {
    match answer {
        Ok(ContractAnswer::Data(answer)) if answer.reached => Ok(()),
        Ok(ContractAnswer::Data(answer)) => Err(DirectError::NotReached {
            endpoint,
            why: foreign_text(&answer.error.unwrap_or_default()),
        }),
        Ok(ContractAnswer::Failure(failure)) => Err(match failure.http_status {
            404 | 405 => DirectError::NotOffered,
            status => DirectError::Declined {
                endpoint,
                status,
                why: foreign_text(&failure.error),
                retry_after: failure.retry_after,
            },
        }),
        Err(source) => Err(DirectError::NotAsked { endpoint, source }),
    }
}
