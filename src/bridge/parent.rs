//! Who answers satellites: this host-bridge as their parent, or the platform beside which it stands. What
//! the tunnels and the HTTPS listener need of either.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Body;
use rustls::pki_types::CertificateDer;
use tracing::error;

use super::dial_back::Reached;
use super::direct::Redial;
use super::federation_api::{Caller, CallerCertificate, FederationApi, RedialFailed, may_connect};
use super::held_grants;
use super::links::AUTHORITY_RETIRED;
use super::metrics::RequestCounts;
use super::platform::PlatformParent;
use super::registry::Registry;
use super::reply::{BodyError, Reply, ReplyBody};
use crate::base::id::PeerId;
use crate::base::limit::error_chain;
use crate::contract::TUNNEL_LEAVE_PATH;
use crate::contract::peer::PeerStatus;
use crate::identity::anchors::Anchors;
use crate::identity::tls::OwnAnchors as _;
use crate::tunnel::transport::Transport;
use crate::wire::GoodbyeReason;

/// Who answers.
#[derive(Debug, Clone)]
pub enum Parent {
    /// This host-bridge.
    Own {
        /// Its interface for children.
        federation: Arc<FederationApi>,
        /// Its peers.
        registry: Arc<Registry>,
    },
    /// A platform.
    Platform(Arc<PlatformParent>),
}

/// An answer, and what it means for its peer's tunnels.
#[derive(Debug)]
pub struct Answered {
    /// To be sent.
    pub response: Response<ReplyBody>,
    /// To be done when the peer has heard it.
    pub ends: Option<PeerEnds>,
}

impl From<Response<ReplyBody>> for Answered {
    fn from(response: Response<ReplyBody>) -> Self {
        Self { response, ends: None }
    }
}

/// A peer whose tunnels end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerEnds {
    /// Which.
    pub peer: PeerId,
    /// In the tunnel's words.
    pub reason: GoodbyeReason,
    /// In the operator's.
    pub message: String,
}

/// The registry could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the host-bridge cannot read its registry")]
pub struct NoRegistry;

impl Parent {
    /// What satellites asked, and how it was answered.
    pub fn answered(&self) -> &RequestCounts {
        match self {
            Self::Own { federation, .. } => federation.answered(),
            Self::Platform(platform) => &platform.answered,
        }
    }

    /// Why a peer whose certificate has verified may not have a tunnel, if it may not.
    pub async fn objection(
        &self,
        certificate: &CallerCertificate,
        peer: PeerId,
    ) -> Result<Option<(GoodbyeReason, String)>, NoRegistry> {
        let registry = match self {
            Self::Platform(platform) => {
                platform.shown(peer, certificate);
                return Ok(None);
            }
            Self::Own { registry, .. } => Arc::clone(registry),
        };
        let own = Arc::clone(&registry);
        let row = tokio::task::spawn_blocking(move || registry.peer_by_id(peer)).await;
        let Ok(Ok(row)) = row else {
            error!(%peer, "the registry could not be read; a peer had to be turned away");
            return Err(NoRegistry);
        };
        Ok(match row {
            None => Some((GoodbyeReason::Revoked, "the peer is not known here".to_owned())),
            Some(row) if !may_connect(row.status) => {
                let reason = match row.status {
                    PeerStatus::Revoked => GoodbyeReason::Revoked,
                    _ => GoodbyeReason::Suspended,
                };
                Some((reason, format!("the peer is {}", row.status)))
            }
            Some(row) if !own.is_enrolled(&row, certificate.key) => {
                let why = "this box's key is none that the peer has enrolled: another box has taken its place, or the \
                           host-bridge's registry is an older backup; ask the parent's operator to readmit the peer, or \
                           for a new token and rejoin";
                Some((GoodbyeReason::Superseded, why.to_owned()))
            }
            Some(_) if !own.has_authority(peer, &certificate.der) => {
                Some((GoodbyeReason::Done, AUTHORITY_RETIRED.to_owned()))
            }
            Some(_) => None,
        })
    }

    /// Enrols the key with which a peer has come, by an operator's word.
    pub async fn readmit(&self, certificate: &CallerCertificate, peer: PeerId) -> bool {
        let Self::Own { registry, .. } = self else {
            return false;
        };
        let (registry, certificate) = (Arc::clone(registry), certificate.clone());
        let readmitted =
            tokio::task::spawn_blocking(move || registry.readmit(&peer.to_string(), &certificate)).await;
        match readmitted {
            Ok(Ok(_)) => true,
            Ok(Err(why)) => {
                error!(%peer, why = %error_chain(&why), "a peer that an operator has readmitted was not taken");
                false
            }
            Err(_) => false,
        }
    }

    /// By what the peer of this certificate's name certifies itself, if it does.
    pub fn own_anchors(&self, certificate: &CertificateDer<'_>) -> Option<Arc<Anchors>> {
        match self {
            Self::Own { registry, .. } => registry.peer_anchors().of(certificate),
            Self::Platform(_) => None,
        }
    }

    /// Whether this side dials satellites that ask for a tunnel.
    pub fn dials_satellites(&self) -> bool {
        match self {
            Self::Own { federation, .. } => federation.dials_satellites(),
            Self::Platform(_) => true,
        }
    }

    /// Dials the satellite that asks for a tunnel, or words the answer why there is none.
    pub async fn dial_for_tunnel<B>(&self, request: Request<B>, caller: Caller) -> Result<Reached, Reply>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        match self {
            Self::Own { federation, .. } => Arc::clone(federation).dial_for_tunnel(request, caller).await,
            Self::Platform(platform) => platform.dial_for_tunnel(request, &caller).await,
        }
    }

    /// Dials a peer again where it was reached.
    pub async fn redial(&self, redial: &Redial) -> Result<Arc<dyn Transport>, RedialFailed> {
        match self {
            Self::Own { federation, .. } => federation.redial(redial).await,
            Self::Platform(platform) => platform.redial(redial).await,
        }
    }

    /// Answers a request that came through a tunnel.
    pub async fn answer_tunnel<B>(&self, request: Request<B>, caller: Caller) -> Answered
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        if !held_grants::serves(request.uri().path()) {
            return self.answer(request, caller).await;
        }
        match self {
            Self::Platform(platform) => platform.answer_tunnel(request, &caller).await.into(),
            Self::Own { federation, .. } => {
                let leaves = request.uri().path() == TUNNEL_LEAVE_PATH;
                let peer = caller
                    .certificate
                    .as_ref()
                    .and_then(|certificate| certificate.peer);
                let response = Arc::clone(federation).handle_tunnel(request, caller).await;
                let left = peer.filter(|_| leaves && response.status().is_success());
                Answered {
                    ends: left.map(|peer| PeerEnds {
                        peer,
                        reason: GoodbyeReason::Revoked,
                        message: held_grants::HAS_LEFT.to_owned(),
                    }),
                    response,
                }
            }
        }
    }

    /// Answers a request to the federation's interface, whatever it came over.
    pub async fn answer<B>(&self, request: Request<B>, caller: Caller) -> Answered
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        match self {
            Self::Own { federation, .. } => Arc::clone(federation).handle(request, caller).await.into(),
            Self::Platform(platform) => platform.answer(request, &caller).await,
        }
    }
}
